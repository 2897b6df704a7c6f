//! The state that all engine threads and their handles share.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::time::SystemTime;

use nix::unistd::gettid;
use parking_lot::RwLock;
use rustls::{ClientConfig, ServerConfig};

use super::limits::SessionLimits;
use crate::authz::{Authority, DecisionLog};
use crate::config::{Config, KernelTls, ListenerKind};
use crate::engine::requests::{EngineBusy, PendingEnd, PendingList, RequestQueue, thread_of};
use crate::engine::self_probe::SelfProbe;
use crate::engine::token_rate_limit::TokenRateLimit;
use crate::engine::worker::signals::Signals;
use crate::sys::kernel_tls;
use crate::sys::wake::Wake;
use crate::telemetry::{AuditSender, EngineCounters};
use crate::wire::{ShownCertificate, TlsConfigs, Verifier};

pub(super) struct Shared {
    pub config: Arc<Config>,
    pub authority: Arc<Authority>,
    pub audit: AuditSender,
    pub limits: Arc<SessionLimits>,
    /// One per thread, in the order of their numbers.
    pub threads: Vec<ThreadShared>,
    pub signals: Signals,
    /// `Auto` where TLS records of tunnels are left to the kernel.
    pub kernel_tls: KernelTls,
    pub token_rate_limit: TokenRateLimit,
    /// The signers of session tokens; read once for each head with a token.
    verifier: RwLock<Arc<Verifier>>,
    pub self_probe: SelfProbe,
    /// Times that stalled tunnels were to make room.
    sheds: AtomicU64,
    /// The TLS settings in force. Locked where a connection by TLS begins, and where certificates are replaced.
    tls: RwLock<TlsConfigs>,
}

/// The part of one thread: its wake-up, counters, decision log and requests.
pub(super) struct ThreadShared {
    pub wake: Arc<Wake>,
    pub counters: Arc<EngineCounters>,
    pub decision_log: Arc<DecisionLog>,
    pub requests: RequestQueue,
    /// The system's id of the thread; 0 until it runs.
    system_id: AtomicI32,
}

impl ThreadShared {
    pub fn new(decision_log: Arc<DecisionLog>) -> io::Result<Self> {
        let wake = Arc::new(Wake::new()?);
        Ok(Self {
            requests: RequestQueue::new(Arc::clone(&wake)),
            wake,
            counters: Arc::default(),
            decision_log,
            system_id: AtomicI32::new(0),
        })
    }

    /// Records the id of the thread; the thread itself calls it.
    pub fn record_running(&self) {
        self.system_id.store(gettid().as_raw(), Ordering::Relaxed);
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
        Self {
            token_rate_limit: TokenRateLimit::new(config.limits.unknown_tokens_per_minute),
            verifier: RwLock::new(Arc::new(Verifier::new(config.authz.tokens.clone()))),
            tls: RwLock::new(tls),
            kernel_tls: kernel_tls_of(&config),
            config,
            authority,
            audit,
            limits,
            threads,
            signals: Signals::new(),
            self_probe: SelfProbe::default(),
            sheds: AtomicU64::new(0),
        }
    }

    pub fn verifier(&self) -> Arc<Verifier> {
        Arc::clone(&self.verifier.read())
    }

    pub fn replace_verifier(&self, verifier: Verifier) {
        *self.verifier.write() = Arc::new(verifier);
    }

    /// Requests a list of the sessions from every thread.
    pub fn list_sessions(&self) -> Result<PendingList, EngineBusy> {
        PendingList::start(
            self.threads.iter().map(|thread| (&thread.requests, thread.counters.sessions.active.get())),
        )
    }

    /// Requests the end of one session from its thread.
    pub fn end_session(&self, session: u64) -> Result<PendingEnd, EngineBusy> {
        let thread = self.threads.get(thread_of(session));
        PendingEnd::start(thread.map(|thread| &thread.requests), session)
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

    pub fn drain(&self) {
        self.signals.drain();
        self.wake_all();
    }

    pub fn stop(&self) {
        self.signals.stop();
        self.wake_all();
    }

    /// The TLS settings of this listener; `None` where it speaks no TLS.
    pub fn tls(&self, listener: usize) -> Option<Arc<ServerConfig>> {
        self.tls.read().server(listener, self.config.listen.get(listener)?)
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
        let tls = self.tls.read();
        let listeners = self.config.listen.iter().enumerate();
        listeners.filter(|(_, listen)| listen.from == ListenerKind::Client).any(|(place, listen)| {
            listen.tls.is_none() || tls.shown_by_listener(place).any(|shown| shown.is_usable(now))
        })
    }

    /// Shows new clients the certificates of `tls`, whose listeners are the same.
    pub fn replace_certificates(&self, tls: TlsConfigs) {
        *self.tls.write() = tls;
    }

    pub fn is_draining(&self) -> bool {
        self.signals.is_draining()
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

/// `Auto` only where TLS is spoken at all and the kernel can.
fn kernel_tls_of(config: &Config) -> KernelTls {
    let is_wanted = config.engine.kernel_tls == KernelTls::Auto && config.speaks_tls();
    match is_wanted.then(kernel_tls::probe) {
        None => KernelTls::Off,
        Some(Ok(())) => KernelTls::Auto,
        Some(Err(error)) => {
            tracing::info!(%error, "TLS is not left to the kernel, which cannot; `sluicegate doctor` says more");
            KernelTls::Off
        }
    }
}
