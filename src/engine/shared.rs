//! The state that all engine threads and their handles share.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use nix::unistd::gettid;
use parking_lot::{Mutex, RwLock};
use rustls::{ClientConfig, ServerConfig};

use super::fd_budget::client_share;
use super::limits::SessionLimits;
use crate::authz::{Authority, DecisionLog};
use crate::config::{Config, KernelTls, ListenerKind};
use crate::engine::peer_health::PeerHealth;
use crate::engine::requests::{EngineBusy, PendingEnd, PendingList, RequestQueue, thread_of};
use crate::engine::self_probe::SelfProbe;
use crate::engine::token_rate_limit::TokenRateLimit;
use crate::engine::worker::signals::{ServicePhase, Signals};
use crate::sys::kernel_tls;
use crate::sys::wake::Wake;
use crate::telemetry::{AuditSender, EngineCounters, UsageTable};
use crate::wire::{KeySets, ShownCertificate, TlsConfigs, Verifier};

pub(super) struct Shared {
    /// The configuration in force. Each engine thread has the pointer too, and renews it when `config_version` changes.
    config: RwLock<Arc<Config>>,
    config_version: AtomicU64,
    pub authority: Arc<Authority>,
    pub audit: AuditSender,
    pub limits: Arc<SessionLimits>,
    /// One per thread, in the order of their numbers.
    pub threads: Vec<ThreadShared>,
    pub signals: Signals,
    /// TLS records of tunnels are left to the kernel.
    leaves_tls_to_kernel: AtomicBool,
    pub token_rate_limit: TokenRateLimit,
    pub peer_health: PeerHealth,
    /// The signers of session tokens; read once for each head with a token.
    verifier: RwLock<Arc<Verifier>>,
    /// The signers' sets of keys, which change while the verifier stays.
    pub key_sets: Arc<KeySets>,
    pub self_probe: SelfProbe,
    /// Times that stalled tunnels were to make room.
    sheds: AtomicU64,
    /// The engine threads begin without accepting clients.
    pub starts_paused: AtomicBool,
    /// The numbers of sessions begin above this: those below may be another process's.
    pub numbers_from: AtomicU64,
    /// Sums of threads that have ended or begun anew. Locked where one does, and where sums are collected.
    pub left_usage: Mutex<UsageTable>,
    /// The TLS settings in force. Locked where a connection by TLS begins, and where certificates are replaced.
    tls: RwLock<TlsConfigs>,
}

/// The part of one thread: its wake-up, counters, decision log and requests.
pub(super) struct ThreadShared {
    pub wake: Arc<Wake>,
    pub counters: Arc<EngineCounters>,
    pub decision_log: Arc<DecisionLog>,
    pub requests: RequestQueue,
    /// Number of the configuration that the thread works by.
    config_version: AtomicU64,
    /// The system's id of the thread; 0 until it runs.
    system_id: AtomicI32,
}

impl ThreadShared {
    pub fn new(decision_log: Arc<DecisionLog>, listeners: usize) -> io::Result<Self> {
        let wake = Arc::new(Wake::new()?);
        Ok(Self {
            requests: RequestQueue::new(Arc::clone(&wake)),
            wake,
            counters: Arc::new(EngineCounters::for_listeners(listeners)),
            decision_log,
            config_version: AtomicU64::new(0),
            system_id: AtomicI32::new(0),
        })
    }

    /// Records the id of the thread; the thread itself calls it.
    pub fn record_running(&self) {
        self.system_id.store(gettid().as_raw(), Ordering::Relaxed);
    }

    /// Records that the thread works by this configuration; the thread itself calls it.
    pub fn record_config(&self, version: u64) {
        self.config_version.store(version, Ordering::Release);
    }

    #[cfg(test)]
    pub fn config_version(&self) -> u64 {
        self.config_version.load(Ordering::Acquire)
    }

    pub fn system_id(&self) -> Option<i32> {
        Some(self.system_id.load(Ordering::Relaxed)).filter(|id| *id != 0)
    }
}

impl Shared {
    pub fn new(
        config: Arc<Config>,
        tls: TlsConfigs,
        authority: Arc<Authority>,
        audit: AuditSender,
        limits: Arc<SessionLimits>,
        threads: Vec<ThreadShared>,
    ) -> Self {
        let key_sets = Arc::new(KeySets::default());
        Self {
            peer_health: PeerHealth::default(),
            token_rate_limit: TokenRateLimit::new(config.limits.unknown_tokens_per_minute),
            verifier: RwLock::new(Arc::new(verifier(&config, &key_sets))),
            key_sets,
            tls: RwLock::new(tls),
            leaves_tls_to_kernel: AtomicBool::new(can_leave_tls(&config)),
            config: RwLock::new(config),
            config_version: AtomicU64::new(0),
            authority,
            audit,
            limits,
            threads,
            signals: Signals::new(),
            self_probe: SelfProbe::default(),
            starts_paused: AtomicBool::new(false),
            numbers_from: AtomicU64::new(0),
            left_usage: Mutex::default(),
            sheds: AtomicU64::new(0),
        }
    }

    /// Verifies session tokens by the keys in `key_sets`.
    pub fn with_key_sets(mut self, key_sets: Arc<KeySets>) -> Self {
        self.key_sets = key_sets;
        self.replace_signers(&self.config());
        self
    }

    pub fn config(&self) -> Arc<Config> {
        Arc::clone(&self.config.read())
    }

    /// Number of configurations before the one in force.
    pub fn config_version(&self) -> u64 {
        self.config_version.load(Ordering::Acquire)
    }

    /// `Auto` where TLS records of tunnels are left to the kernel.
    pub fn kernel_tls(&self) -> KernelTls {
        match self.leaves_tls_to_kernel.load(Ordering::Relaxed) {
            true => KernelTls::Auto,
            false => KernelTls::Off,
        }
    }

    /// Puts `config` in force; see [`Config::needs_new_process`] for the keys that cannot change. Has every session decided
    /// again, so that open tunnels get its timeouts. Waits until every thread works by it.
    pub fn replace_config(&self, config: Arc<Config>) {
        let sessions_max = client_share(&config, self.threads.len()).sessions_max;
        self.limits.replace(&config.limits, sessions_max);
        self.token_rate_limit.replace(config.limits.unknown_tokens_per_minute);
        self.leaves_tls_to_kernel.store(can_leave_tls(&config), Ordering::Relaxed);
        *self.config.write() = config;
        let version = self.config_version.fetch_add(1, Ordering::Release) + 1;
        self.recheck();
        let give_up_at = Instant::now() + TAKE_OVER_TIME;
        while self.threads.iter().any(|thread| thread.config_version.load(Ordering::Acquire) < version) {
            if Instant::now() >= give_up_at {
                return tracing::warn!("an engine thread is busy, and takes over the configuration later");
            }
            std::thread::sleep(TAKE_OVER_POLL);
        }
    }

    pub fn verifier(&self) -> Arc<Verifier> {
        Arc::clone(&self.verifier.read())
    }

    /// Accepts the tokens of the signers in `config` from here on. A set of keys that stays keeps its keys.
    pub fn replace_signers(&self, config: &Config) {
        let next = verifier(config, &self.key_sets);
        *self.verifier.write() = Arc::new(next);
    }

    /// Requests a list of the sessions from every thread.
    pub fn list_sessions(&self) -> Result<PendingList, EngineBusy> {
        PendingList::start(
            self.threads.iter().map(|thread| (&thread.requests, thread.counters.sessions.active.get())),
        )
    }

    /// Requests the end of one session from its thread.
    pub fn end_session(&self, session: u64) -> Result<PendingEnd, EngineBusy> {
        PendingEnd::start(&self.thread_with(session).requests, session)
    }

    /// The thread that has, or is to have, the session with this number. A session from another process may have begun
    /// on a thread that this process does not have.
    pub fn thread_with(&self, session: u64) -> &ThreadShared {
        &self.threads[thread_of(session) % self.threads.len()]
    }

    /// Has each thread end some of the tunnels that have stalled longest.
    pub fn shed_stalled(&self) {
        self.sheds.fetch_add(1, Ordering::Release);
        self.wake_all();
    }

    /// Number of times that [`shed_stalled`](Self::shed_stalled) was called.
    pub fn sheds(&self) -> u64 {
        self.sheds.load(Ordering::Acquire)
    }

    pub fn recheck(&self) {
        self.signals.recheck();
        self.wake_all();
    }

    pub fn set_phase(&self, phase: ServicePhase) {
        self.signals.set_phase(phase);
        self.wake_all();
    }

    pub fn stop(&self) {
        self.signals.stop();
        self.wake_all();
    }

    /// The TLS settings of this listener; `None` where it speaks no TLS.
    pub fn tls(&self, listener: usize, config: &Config) -> Option<Arc<ServerConfig>> {
        self.tls.read().server(listener, config.listen.get(listener)?)
    }

    /// The TLS settings for connections to other nodes; `None` where this node stands alone.
    pub fn peer_tls(&self) -> Option<Arc<ClientConfig>> {
        self.tls.read().peer_client()
    }

    /// The certificates that this node shows.
    pub fn certificates(&self) -> Vec<ShownCertificate> {
        self.tls.read().shown().to_vec()
    }

    /// True where at least one listener for clients speaks no TLS, or has a certificate that clients accept now.
    pub fn has_usable_listener(&self, now: SystemTime) -> bool {
        let (tls, config) = (self.tls.read(), self.config());
        let mut listeners = config.listen.iter().enumerate();
        listeners.any(|(place, listen)| {
            listen.from == ListenerKind::Client
                && (listen.tls.is_none() || tls.shown_by_listener(place).any(|shown| shown.is_usable(now)))
        })
    }

    /// Shows new clients the certificates of `tls`, whose listeners are the same.
    pub fn replace_certificates(&self, tls: TlsConfigs) {
        *self.tls.write() = tls;
    }

    /// The TLS settings in force.
    pub fn tls_configs(&self) -> TlsConfigs {
        self.tls.read().clone()
    }

    pub fn phase(&self) -> ServicePhase {
        self.signals.phase()
    }

    pub fn is_stopping(&self) -> bool {
        self.signals.is_stopping()
    }

    pub fn wake_all(&self) {
        for thread in &self.threads {
            thread.wake.wake();
        }
    }
}

/// Time that the engine threads have to take over a configuration. A turn takes far less.
const TAKE_OVER_TIME: Duration = Duration::from_secs(1);

const TAKE_OVER_POLL: Duration = Duration::from_millis(1);

/// The verifier for the signers in `config`, whose sources of keys become those in force.
fn verifier(config: &Config, key_sets: &KeySets) -> Verifier {
    key_sets.replace(config.authz.key_sources());
    Verifier::new(config.authz.tokens.clone(), key_sets)
}

/// True only where TLS is spoken at all and the kernel can.
fn can_leave_tls(config: &Config) -> bool {
    let is_wanted = config.engine.kernel_tls == KernelTls::Auto && config.speaks_tls();
    match is_wanted.then(kernel_tls::probe) {
        None => false,
        Some(Ok(())) => true,
        Some(Err(error)) => {
            tracing::info!(%error, "TLS is not left to the kernel, which cannot; `sluicegate doctor` says more");
            false
        }
    }
}
