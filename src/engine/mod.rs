//! The data plane: one pinned thread per CPU, each with its own ring, listeners, sessions and timers.
//!
//! The engine decides from the shared [`Authority`] and never reads a store.
//!
//! # Memory
//! An idle tunnel holds no buffer and no pipe. A stalled tunnel holds in each direction either the bytes that it
//! copied and could not send, at most half of [`SESSION_BYTES_MAX`], or one pipe of `engine.pipe_bytes`, never both.
//! So it takes at most 288 KiB of the node's memory, or 512 KiB of the kernel's by default. A whole node takes
//!
//! - `limits.sessions` × 288 KiB for stalled tunnels (2.2 GiB for the default of 8,000, all stalled at once),
//! - per engine thread `engine.buffers` × 4 KiB (4 MiB), from the start,
//! - per engine thread `engine.pipes` × `engine.pipe_bytes` (128 MiB) of the kernel's memory; pipes are kept.
//!
//! A stalled tunnel with TLS on either end holds less, the records of one receive per direction (84 KiB), and the
//! state of its TLS connections, some KiB, as long as it lives. Each engine thread has 250 KiB in which it opens and
//! seals records.
//!
//! Socket buffers are the kernel's memory too: each socket of a tunnel may take up to the largest values of
//! `net.ipv4.tcp_rmem` and `net.ipv4.tcp_wmem`. Before the machine's TCP memory runs out, stalled tunnels end (see
//! `tcp_memory`).

mod clock;
mod fd_budget;
mod forward;
mod hand_over;
mod kernel;
mod limits;
mod listener;
mod moved_tunnel;
mod peer_health;
mod peer_pool;
mod requests;
mod self_probe;
mod session;
mod session_view;
mod shared;
#[cfg(simulation)]
#[path = "../../tests/simulate/src/simulation/mod.rs"]
pub mod simulation;
mod tcp_memory;
mod timers;
mod tls;
mod token_rate_limit;
mod turn;
mod usage;
mod user_data;
mod worker;

#[cfg(test)]
mod tests;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use crossbeam::channel::{Receiver, Sender, bounded};
use parking_lot::Mutex;

use crate::authz::{Authority, KeyHash, NodeEntry, Undecided, UnixMillis};
use crate::config::{Config, KernelTls};
use crate::sys::confine::{ThreadKind, confine_thread};
use crate::sys::cpu::{self, Cpu};
use crate::sys::ring::RingError;
use crate::sys::service_thread::join_within;
use crate::telemetry::{AuditSender, EngineCounters};
use crate::wire::{KeySets, ShownCertificate, TlsConfigs, TlsLoadError};
use fd_budget::client_share;
use kernel::uring::UringKernel;
use limits::SessionLimits;
use listener::bind::bind_all;
use shared::{Shared, ThreadShared};
use tcp_memory::TcpMemoryWatch;
use tls::handshake_pool::HandshakeThreads;
use worker::driver::DriverSeat;
use worker::restarts::Restarts;
use worker::{TurnError, Worker, WorkerSeat};

pub use fd_budget::{Shortage, threads};
pub use forward::SESSION_BYTES_MAX;
pub use hand_over::PassedListener;
pub use limits::HeldPlace;
pub use listener::bind::{Inherited, InheritedError};
pub use listener::own_address::not_here;
pub use listener::privileged_port::{advice as listen_advice, not_permitted};
pub use moved_tunnel::{MovedEnd, MovedFacts, MovedFlow, MovedTunnel, Unsent};
pub use requests::{Accepting, EndResult, EngineBusy, PendingEnd, PendingList, Verdict};
pub use session_view::{DirectionRow, PathKind, SessionList, SessionRow, SessionState, TunnelRow};
pub use token_rate_limit::TokenCounts;
pub use usage::UsageCollector;
pub use worker::restarts::EngineFailure;
pub use worker::signals::ServicePhase;

#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error("cannot listen on {address}: {source}; {}", listen_advice(*address, source))]
    Listen { address: SocketAddr, source: io::Error },
    #[error(transparent)]
    Inherited(#[from] InheritedError),
    #[error(transparent)]
    Ring(#[from] RingError),
    #[error(transparent)]
    Tls(#[from] TlsLoadError),
    #[error("an engine thread cannot be started: {0}")]
    Thread(io::Error),
}

/// The running engine threads.
pub struct Engine {
    shared: Arc<Shared>,
    client_addresses: Vec<SocketAddr>,
    threads: Vec<JoinHandle<()>>,
    /// Its threads run once TLS is spoken.
    handshakes: Mutex<HandshakeThreads>,
    failures: Receiver<EngineFailure>,
    tcp_memory: TcpMemoryWatch,
}

/// A handle to command the engine from any thread. Cheap to clone.
#[derive(Clone)]
pub struct EngineHandle {
    shared: Arc<Shared>,
}

/// The most buffers and pipes that all threads can have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Capacity {
    pub buffers: usize,
    pub pipes: usize,
}

/// Numbers of nodes in the directory, with a recent heartbeat (`fresh`) and without one (`stale`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DirectoryCounts {
    pub fresh: usize,
    pub stale: usize,
}

impl Engine {
    /// Binds every listener and starts the threads; returns once all of them accept.
    pub fn start(
        config: Arc<Config>,
        authority: Arc<Authority>,
        audit: AuditSender,
    ) -> Result<Self, EngineError> {
        let tls = TlsConfigs::load(&config)?;
        Self::start_on(Inherited::none(), config, tls, Arc::default(), authority, audit)
    }

    /// Starts the threads with listeners and TLS settings that exist already. `key_sets` has the signers' sets of keys, as
    /// far as they could be read.
    pub fn start_on(
        inherited: Inherited,
        config: Arc<Config>,
        tls: TlsConfigs,
        key_sets: Arc<KeySets>,
        authority: Arc<Authority>,
        audit: AuditSender,
    ) -> Result<Self, EngineError> {
        let cpus = cpu::allowed().map_err(EngineError::Thread)?;
        let count = if config.engine.threads == 0 { cpus.len() } else { config.engine.threads };
        let is_paused = inherited.is_paused();
        let (client_addresses, mut listeners) = bind_all(&config, count, inherited)?;
        let limits = Arc::new(SessionLimits::new(&config.limits, client_share(&config, count)));
        let threads = (0..count)
            .map(|_| ThreadShared::new(authority.decision_log(), config.listen.len()))
            .collect::<io::Result<Vec<_>>>()
            .map_err(EngineError::Thread)?;
        let shared = Shared::new(config, tls, authority, audit, limits, threads);
        let shared = Arc::new(shared.with_key_sets(key_sets));
        shared.starts_paused.store(is_paused, Ordering::Relaxed);
        let wakes = shared.threads.iter().map(|thread| Arc::clone(&thread.wake));
        let (mut handshakes, pools) = HandshakeThreads::new(wakes);
        if shared.config().speaks_tls() {
            handshakes.start().map_err(EngineError::Thread)?;
        }
        let handshakes = Mutex::new(handshakes);
        // Room for a failure of each.
        let (fail, failures) = bounded(count);
        let threads = Vec::with_capacity(count);
        let tcp_memory = TcpMemoryWatch::start(&shared).map_err(EngineError::Thread)?;
        let mut engine = Self { shared, client_addresses, threads, handshakes, failures, tcp_memory };
        let (started, all_started) = bounded(count);
        for (number, (listeners, handshakes)) in listeners.drain(..).zip(pools).enumerate() {
            let cpu = cpus[number % cpus.len()];
            let seat = WorkerSeat { driver: DriverSeat { listeners, sessions_begun: 0 }, handshakes };
            let thread = engine.spawn(number, cpu, seat, started.clone(), fail.clone());
            match thread {
                Ok(thread) => engine.threads.push(thread),
                Err(error) => {
                    engine.stop();
                    return Err(EngineError::Thread(error));
                }
            }
        }
        drop(started);
        let outcome = all_started.iter().collect::<Result<(), RingError>>();
        if let Err(error) = outcome {
            engine.stop();
            return Err(error.into());
        }
        Ok(engine)
    }

    /// Tests whether this machine gives a thread what it needs: a ring with its buffers. Opens no socket.
    pub fn check(config: &Config) -> Result<(), RingError> {
        UringKernel::new(config, KernelTls::Off).map(drop)
    }

    /// The addresses of the client listeners, in the order of `listen`; real ports where the config has 0.
    pub fn client_addresses(&self) -> &[SocketAddr] {
        &self.client_addresses
    }

    /// The failures of threads that could not begin anew. The node can serve no longer all of its clients then.
    pub fn failures(&self) -> &Receiver<EngineFailure> {
        &self.failures
    }

    /// Starts the threads that `config` needs and that do not run, for [`reconfigure`](Self::reconfigure).
    pub fn prepare(&self, config: &Config) -> Result<(), EngineError> {
        match config.speaks_tls() {
            true => self.handshakes.lock().start().map_err(EngineError::Thread),
            false => Ok(()),
        }
    }

    /// Puts `config` and its TLS settings in force; see [`Config::needs_new_process`] for the keys that must be the same.
    pub fn reconfigure(&self, config: Arc<Config>, tls: TlsConfigs) {
        self.shared.replace_certificates(tls);
        self.shared.replace_signers(&config);
        self.shared.replace_config(config);
    }

    pub fn handle(&self) -> EngineHandle {
        EngineHandle { shared: Arc::clone(&self.shared) }
    }

    /// Ends every session and waits for the threads.
    pub fn stop(self) {
        drop(self.tcp_memory);
        self.shared.stop();
        for thread in self.threads {
            join_within(thread, STOP_MAX);
        }
        self.handshakes.into_inner().join();
    }

    /// Starts one thread. The thread makes the ring, which serves its maker alone.
    fn spawn(
        &self,
        number: usize,
        cpu: Cpu,
        seat: WorkerSeat,
        started: Sender<Result<(), RingError>>,
        fail: Sender<EngineFailure>,
    ) -> io::Result<JoinHandle<()>> {
        let shared = Arc::clone(&self.shared);
        std::thread::Builder::new().name(format!("engine-{number}")).spawn(move || {
            shared.threads[number].record_running();
            if let Err(error) = cpu::pin_thread(cpu) {
                tracing::warn!(%error, cpu = cpu.0, "an engine thread runs unpinned");
            }
            confine_thread(ThreadKind::Engine);
            let worker = match UringKernel::new(&shared.config(), shared.kernel_tls()) {
                Ok(kernel) => Worker::new(number, kernel, seat, Arc::clone(&shared)),
                Err(error) => {
                    // The receiver is gone only where another thread has failed already.
                    let _nobody_waits = started.send(Err(error));
                    return;
                }
            };
            let _nobody_waits = started.send(Ok(()));
            drop(started);
            if let Err(failure) = run_with_restarts(worker, number, &shared) {
                // There is room for one failure of each thread.
                let _nobody_waits = fail.send(failure);
            }
        })
    }
}

/// Time that an engine thread has to end: its sessions have less.
const STOP_MAX: Duration = Duration::from_secs(5);

/// Runs `worker`, and a new one each time that it fails. A restart of the thread alone spares the tunnels of all other
/// threads, and its listeners stay open.
fn run_with_restarts(mut worker: Worker, number: usize, shared: &Arc<Shared>) -> Result<(), EngineFailure> {
    let mut restarts = Restarts::default();
    loop {
        let Err(failed) = worker.run() else { return Ok(()) };
        shared.threads[number].counters.sessions.thread_restarts.add(1);
        let (error, sessions) = (&failed.error, failed.sessions);
        tracing::error!(%error, number, sessions, "an engine thread has failed; its sessions were reset, and it begins anew");
        let mut error = failed.error;
        let kernel = loop {
            if shared.is_stopping() {
                return Ok(());
            }
            if !restarts.try_again() {
                return Err(EngineFailure { thread: number, error: error.to_string() });
            }
            match UringKernel::new(&shared.config(), shared.kernel_tls()) {
                Ok(kernel) => break kernel,
                Err(refused) => error = TurnError::NoRing(refused),
            }
        };
        worker = Worker::new(number, kernel, failed.seat, Arc::clone(shared));
    }
}

impl EngineHandle {
    /// Decides again for every session, by the view in force; tunnels that it no longer allows end.
    pub fn recheck(&self) {
        self.shared.recheck();
    }

    /// Serves the clients of this phase from now on. Open tunnels go on in each.
    pub fn set_phase(&self, phase: ServicePhase) {
        self.shared.set_phase(phase);
    }

    pub fn phase(&self) -> ServicePhase {
        self.shared.phase()
    }

    /// The number of sessions on all threads, without connections that peers keep ready.
    pub fn sessions_busy(&self) -> u64 {
        let busy = |counters: &EngineCounters| {
            counters.sessions.active.get().saturating_sub(counters.sessions.idle_peers.get())
        };
        self.counters().map(busy).sum()
    }

    /// The number of sessions on all threads.
    pub fn sessions_active(&self) -> u64 {
        self.counters().map(|counters| counters.sessions.active.get()).sum()
    }

    /// Requests a list of the sessions from every thread.
    pub fn list_sessions(&self) -> Result<PendingList, EngineBusy> {
        self.shared.list_sessions()
    }

    /// Requests the end of the session with this number.
    pub fn end_session(&self, session: u64) -> Result<PendingEnd, EngineBusy> {
        self.shared.end_session(session)
    }

    /// True where there is no place for another session.
    pub fn is_full(&self) -> bool {
        self.shared.limits.is_full()
    }

    /// The limit on sessions: `limits.sessions`, or fewer where the descriptors do not suffice.
    pub fn sessions_max(&self) -> u32 {
        self.shared.limits.sessions_max()
    }

    /// Reads the certificate files of the configuration in force again, for new connections. Returns the errors of files
    /// that cannot be used: their listeners go on with what they have.
    pub fn renew_certificates(&self) -> Vec<TlsLoadError> {
        let (renewed, errors) = self.shared.tls_configs().renewed(&self.shared.config());
        self.shared.replace_certificates(renewed);
        errors
    }

    /// The configuration in force.
    pub fn config(&self) -> Arc<Config> {
        self.shared.config()
    }

    /// The sets of keys that verify session tokens.
    pub fn key_sets(&self) -> &Arc<KeySets> {
        &self.shared.key_sets
    }

    /// The certificates that this node shows to clients and to other nodes.
    pub fn certificates(&self) -> Vec<ShownCertificate> {
        self.shared.certificates()
    }

    /// True where the certificates let clients in at one listener at least.
    pub fn has_usable_listener(&self, now: SystemTime) -> bool {
        self.shared.has_usable_listener(now)
    }

    /// Counts the nodes in the directory.
    pub fn directory_counts(&self) -> DirectoryCounts {
        let max_age = self.shared.config().forward.max_age;
        let directory = self.shared.authority.directory().get();
        let stale = directory.nodes().filter(|(_, node)| node.age > max_age).count();
        DirectoryCounts { stale, fresh: directory.nodes().count() - stale }
    }

    /// Number of peers that hang, so that requests for their devices are refused at once.
    pub fn hanging_peers(&self) -> usize {
        self.shared.peer_health.hanging()
    }

    /// The names of the peers that a request can be handed to, sorted; empty where this node stands alone.
    pub fn reachable_peers(&self) -> Vec<Arc<str>> {
        let (config, directory) = (self.shared.config(), self.shared.authority.directory().get());
        if config.forward.tls.is_none() {
            return Vec::new();
        }
        let (own, max_age) = (config.vpn.node.as_deref(), config.forward.max_age);
        let is_peer = |name: &str, node: &NodeEntry| {
            Some(name) != own && node.age <= max_age && config.forward.allows(name, node.forward.ip())
        };
        let others = directory.nodes().filter(|(name, node)| is_peer(name, node));
        let mut names: Vec<Arc<str>> = others.map(|(name, _)| name.into()).collect();
        names.sort();
        names
    }

    /// Sets the token of the node's own probe, which belongs to nobody. Its refusals are neither counted nor audited.
    pub fn expect_self_probe(&self, key: KeyHash) {
        self.shared.self_probe.expect(key);
    }

    /// Hands the node's own probe to this peer from now on, which refuses it; `None` refuses it here.
    pub fn forward_self_probe_through(&self, node: Option<Arc<str>>) {
        self.shared.self_probe.forward_through(node);
    }

    /// Takes the true cause of the last refusal of the node's own probe, with its detail.
    pub fn take_self_probe_refusal(&self) -> Option<String> {
        self.shared.self_probe.take_refusal()
    }

    /// The buffers and pipes of all threads together.
    pub fn capacity(&self) -> Capacity {
        let (config, threads) = (self.shared.config(), self.shared.threads.len());
        let config = &config.engine;
        Capacity { buffers: usize::from(config.buffers) * threads, pipes: config.pipes * threads }
    }

    /// The system's id of each thread, in the order of their numbers.
    pub fn system_ids(&self) -> impl Iterator<Item = Option<i32>> {
        self.shared.threads.iter().map(ThreadShared::system_id)
    }

    /// Wakes every thread for one turn, whether it has work or not.
    pub fn nudge(&self) {
        self.shared.wake_all();
    }

    /// The reason why nothing can be decided now; `None` where decisions are possible.
    pub fn trouble(&self) -> Option<Undecided> {
        self.shared.authority.trouble(UnixMillis::now())
    }

    /// The counters of each thread.
    pub fn counters(&self) -> impl Iterator<Item = &EngineCounters> {
        self.shared.threads.iter().map(|thread| &*thread.counters)
    }
}
