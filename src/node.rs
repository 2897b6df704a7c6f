//! Builds a node from its parts, and stops it.

mod hand_over;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use crossbeam::channel::Receiver;
use parking_lot::Mutex;

use crate::admin::api::{ListenerCounts, ListenerInfo, ListenerUse, NodeIdentity};
use crate::admin::{
    AdminServer, AdminServerError, AdminSockets, FirstAccepting, NodeRequests, PrincipalNames,
    SelfProbeThread, Sources,
};
use crate::authz::{Authority, UnixMillis};
use crate::config::{Config, KeyProblem, Listen, ListenerKind};
use crate::control::{
    Control, ControlError, HeartbeatThread, PresenceWriterThread, QueriesError, StatusHandle, StoreAccess,
    TokenKeyThreads, WritePause,
};
use crate::engine::{
    Engine, EngineError, EngineFailure, EngineHandle, Inherited, ServicePhase, not_here, not_permitted,
};
use crate::handover::{
    ArrivalsThread, DeparturesThread, OtherProcess, PassedQueries, Predecessor, PredecessorError,
};
use crate::store::{self, ReportQueue};
use crate::telemetry::{AuditError, AuditLog, AuditReopener};
use crate::usage::UsageThread;
use crate::wire::{KeySets, TlsConfigs, TlsLoadError};

use hand_over::Proof;
pub use hand_over::{HandedOver, Succession};

/// A running relay. The parts stop in the order of the fields: clients come in no more before the parts that serve
/// them stop.
pub struct Node {
    engine: Option<Engine>,
    engine_failures: Receiver<EngineFailure>,
    handle: EngineHandle,
    departures: Option<DeparturesThread>,
    /// The new process, until it has proved itself.
    proof: Option<Proof>,
    arrivals: Option<ArrivalsThread>,
    other: OtherProcess,
    client_addresses: Vec<SocketAddr>,
    forward_address: Option<SocketAddr>,
    heartbeat: HeartbeatThread,
    presence: PresenceWriterThread,
    token_keys: Mutex<TokenKeyThreads>,
    /// Threads that write to the store, as long as no other process of this node does.
    writers: [WritePause; 2],
    probe: Mutex<SelfProbeThread>,
    identity: Arc<Mutex<NodeIdentity>>,
    /// What the store is read by, for a process that takes over.
    queries: Mutex<PassedQueries>,
    control: Control,
    admin: AdminServer,
    usage: UsageThread,
    audit: AuditLog,
    authority: Arc<Authority>,
}

#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    AdminServer(#[from] AdminServerError),
    #[error("a thread cannot be started ({0}); raise the limit on threads or memory")]
    Thread(std::io::Error),
    #[error(transparent)]
    Audit(#[from] AuditError),
    #[error(transparent)]
    Predecessor(#[from] PredecessorError),
    #[error("there are no rights to decide by, and the process before has some: {0}")]
    NoRights(String),
}

/// How a node begins.
pub struct NodeStart {
    /// Client listeners that a service manager opened.
    pub inherited: Inherited,
    /// The process that hands over to this one.
    pub predecessor: Option<Predecessor>,
    /// Requests of the admin side, which the caller serves.
    pub requests: NodeRequests,
}

/// What the process before has, of which the last steps of taking over need to know.
struct TakenState {
    local_socket: Option<PathBuf>,
    /// It has rights to decide by.
    decides: bool,
}

/// Reason why a configuration was not put in force; nothing of it is.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    #[error(transparent)]
    Queries(#[from] QueriesError),
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    AdminServer(#[from] AdminServerError),
    #[error(transparent)]
    Audit(#[from] AuditError),
}

/// Outcome of a drain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Drained {
    /// The last session ended.
    Empty,
    /// The time ran out with this number of sessions left.
    Left(u64),
    /// The caller interrupted the drain.
    Interrupted,
}

impl Node {
    /// Reads the store, publishes the first snapshot, and only then accepts clients.
    pub fn start(config: Config) -> Result<Self, NodeError> {
        let tls = TlsConfigs::load(&config).map_err(EngineError::from)?;
        let (requests, _nobody_serves_them) = NodeRequests::new();
        let start = NodeStart { inherited: Inherited::none(), predecessor: None, requests };
        Self::start_with(start, config, tls)
    }

    /// Starts like [`start`](Self::start), with what `start` brings. A node that takes over accepts clients when the
    /// process before has stopped to, and that one goes on where this fails.
    pub fn start_with(start: NodeStart, config: Config, tls: TlsConfigs) -> Result<Self, NodeError> {
        let NodeStart { inherited, mut predecessor, requests } = start;
        let to_resume = requests.clone();
        let built = Self::build(inherited, predecessor.as_mut(), requests, config, tls);
        let Some(predecessor) = predecessor else { return Ok(built?.0) };
        match built {
            Ok((mut node, taken)) => {
                if taken.decides
                    && let Err(error) = node.wait_for_rights()
                {
                    predecessor.refuse(&error.to_string());
                    return Err(error);
                }
                node.take_over(predecessor, taken.local_socket.as_deref(), &to_resume)?;
                Ok(node)
            }
            Err(error) => {
                predecessor.refuse(&error.to_string());
                Err(error)
            }
        }
    }

    /// Builds the node. With a `predecessor`, clients are not accepted yet.
    fn build(
        inherited: Inherited,
        predecessor: Option<&mut Predecessor>,
        requests: NodeRequests,
        config: Config,
        tls: TlsConfigs,
    ) -> Result<(Self, TakenState), NodeError> {
        let old_process = predecessor.as_ref().map(|predecessor| predecessor.pid);
        let taken = predecessor.map(Predecessor::take_over).transpose()?;
        let decides = taken.as_ref().is_some_and(|taken| taken.decides);
        let (inherited, sockets, first, other, running) = match taken {
            Some(taken) => {
                let inherited = Inherited::of_predecessor(taken.listeners).map_err(EngineError::from)?;
                let sockets =
                    AdminSockets { tcp: taken.admin, local: taken.local_socket, health: taken.health };
                let other = OtherProcess::to_come().map_err(NodeError::Thread)?;
                let running = taken.queries.and_then(|queries| queries.changed_by(&config));
                (inherited, sockets, FirstAccepting::AnotherProcess, other, running)
            }
            None => {
                let sockets = AdminSockets::default();
                (inherited, sockets, FirstAccepting::ThisProcess, OtherProcess::default(), None)
            }
        };
        let local_socket = sockets.local.as_ref().map(|(path, _)| path.clone());
        let config = Arc::new(config);
        let authority = Arc::new(Authority::new(config.authz.max_stale, config.vpn.node.as_deref()));
        let (audit, audit_sender) = AuditLog::start(&config.audit, config.vpn.node.as_deref())?;
        // The control thread starts before the engine, and notifies the engine of each publication.
        let engine_slot: Arc<OnceLock<EngineHandle>> = Arc::default();
        let (to_notify, other_to_notify) = (Arc::clone(&engine_slot), other.clone());
        let on_publish = move || {
            if let Some(engine) = to_notify.get() {
                engine.recheck();
            }
            other_to_notify.recheck();
        };
        let reports = ReportQueue::default();
        let access = StoreAccess::of(&config, &reports).with_peers(tls.peer_client()).in_place_of(running);
        let control =
            Control::start(access, Arc::clone(&authority), on_publish, audit_sender.clone(), &config)?;
        let key_sets = Arc::new(KeySets::default());
        key_sets.replace(config.authz.key_sources());
        let token_keys = TokenKeyThreads::start(Arc::clone(&key_sets), config.authz.state.as_deref())
            .map_err(NodeError::Thread)?;
        token_keys.wait_for_first_reads();
        let engine = Engine::start_on(
            inherited,
            Arc::clone(&config),
            tls,
            key_sets,
            Arc::clone(&authority),
            audit_sender.clone(),
        )?;
        let handle = engine.handle();
        let handle = engine_slot.get_or_init(|| handle).clone();
        // Snapshots may have been published before the engine could be notified.
        handle.recheck();
        let bound = |from| {
            let listeners = config.listen.iter().zip(engine.client_addresses());
            listeners.filter(move |(listen, _)| listen.from == from).map(|(_, address)| *address)
        };
        let client_addresses: Vec<_> = bound(ListenerKind::Client).collect();
        let forward_address = bound(ListenerKind::Peer).next();
        let advertised = forward_address.map(|bound| advertised(config.forward.advertise, bound));
        let heartbeat = HeartbeatThread::start(
            store::node_table(&config),
            Arc::clone(&authority),
            control.status(),
            advertised,
            old_process,
            &config,
        )
        .map_err(NodeError::Thread)?;
        let table = store::claim_table(&config);
        let presence = PresenceWriterThread::start(table, Arc::clone(&authority), reports, &config)
            .map_err(NodeError::Thread)?;
        let probe = SelfProbeThread::start(&config, &client_addresses, &handle).map_err(NodeError::Thread)?;
        let usage = UsageThread::start(&handle, audit_sender.clone(), &config).map_err(NodeError::Thread)?;
        let identity = Arc::new(Mutex::new(identity(&config, engine.client_addresses())));
        let sources = Sources {
            identity: Arc::clone(&identity),
            names: PrincipalNames::new(Arc::clone(&config)),
            engine: handle.clone(),
            probe: probe.status(),
            control: control.status(),
            authority: Arc::clone(&authority),
            directory_errors: heartbeat.errors(),
            locations: presence.counts(),
            commands: control.commands(),
            requests,
            audit: audit_sender,
            audit_lost: audit.lost(),
            other: other.clone(),
            usage: usage.handle(),
        };
        let admin = match AdminServer::start_on(sockets, first, &config.admin, sources) {
            Ok(admin) => admin,
            Err(error) => {
                engine.stop();
                return Err(error.into());
            }
        };
        let node = Self {
            engine_failures: engine.failures().clone(),
            engine: Some(engine),
            handle,
            departures: None,
            proof: None,
            arrivals: None,
            other,
            client_addresses,
            forward_address,
            writers: [heartbeat.write_pause(), presence.write_pause()],
            heartbeat,
            presence,
            token_keys: Mutex::new(token_keys),
            probe: Mutex::new(probe),
            identity,
            queries: Mutex::new(PassedQueries::of(&config)),
            control,
            admin,
            usage,
            audit,
            authority,
        };
        Ok((node, TakenState { local_socket, decides }))
    }

    /// Returns the reasons why [`start`](Self::start) would fail that are in the files which the configuration names.
    pub fn check(config: &Config) -> Vec<KeyProblem> {
        AuditLog::check(&config.audit).into_iter().chain(AdminServer::check(&config.admin)).collect()
    }

    /// What a start would wait for on this machine, or lack a privilege for, in one line each.
    pub fn check_awaited(config: &Config) -> Vec<String> {
        let admin = [Some(config.admin.address), config.admin.health_address];
        let addresses = config.listen.iter().map(|listen| listen.address).chain(admin.into_iter().flatten());
        let addresses: Vec<_> = addresses.collect();
        let not_permitted = not_permitted(addresses.iter().copied()).into_iter().map(|address| {
            format!(
                "this user may not listen on {address}; a relay needs CAP_NET_BIND_SERVICE for it \
                 (AmbientCapabilities= of its unit), or a socket unit that opens it"
            )
        });
        let address = |ip| {
            format!("{ip} is no address of this machine; a relay waits until it is (`ip address` lists them)")
        };
        let interface = config.vpn.interface.as_ref().filter(|_| config.vpn.lacks_interface());
        let interface = interface.map(|name| {
            format!("there is no network interface `{name}` (vpn.interface); a relay waits for it")
        });
        not_here(addresses).into_iter().map(address).chain(not_permitted).chain(interface).collect()
    }

    /// Addresses of the client listeners, in the order of `listen`.
    pub fn client_addresses(&self) -> &[SocketAddr] {
        &self.client_addresses
    }

    /// Address that other nodes connect to. `None` where the node stands alone.
    pub fn forward_address(&self) -> Option<SocketAddr> {
        self.forward_address
    }

    pub fn admin_address(&self) -> SocketAddr {
        self.admin.address()
    }

    /// The failures of engine threads that could not begin anew. The process should end then.
    pub fn engine_failures(&self) -> &Receiver<EngineFailure> {
        &self.engine_failures
    }

    /// The address that serves health checks alone. `None` where there is none.
    pub fn health_address(&self) -> Option<SocketAddr> {
        self.admin.health_address()
    }

    /// The state by which the engine decides.
    pub fn authority(&self) -> &Arc<Authority> {
        &self.authority
    }

    pub fn engine(&self) -> &EngineHandle {
        &self.handle
    }

    pub fn status(&self) -> StatusHandle {
        self.control.status()
    }

    /// A handle that reopens the audit log after it was rotated.
    pub fn audit_reopener(&self) -> AuditReopener {
        self.audit.reopener()
    }

    /// Puts `config` in force, all of it or nothing. [`Config::needs_new_process`] must name no key of it. Waits for the store
    /// where queries have changed.
    pub fn reload(&self, config: Config, tls: TlsConfigs) -> Result<(), ReloadError> {
        let Some(engine) = &self.engine else { return Ok(()) };
        // First everything that can fail.
        let audit = self.audit.prepare(&config.audit)?;
        let token = AdminServer::read_token(&config.admin)?;
        engine.prepare(&config)?;
        self.control.commands().reload(config.clone())?;
        self.audit.apply(audit);
        self.admin.replace_token(token);
        self.authority.set_max_stale(config.authz.max_stale);
        *self.queries.lock() = PassedQueries::of(&config);
        let config = Arc::new(config);
        self.follow_token_keys(&config);
        engine.reconfigure(Arc::clone(&config), tls);
        self.usage.handle().reconfigure(config.usage.interval);
        let advertised = self.forward_address.map(|bound| advertised(config.forward.advertise, bound));
        self.heartbeat.reconfigure(advertised, &config);
        self.presence.reconfigure(&config);
        self.identity.lock().listeners = listeners(&config, engine.client_addresses());
        self.restart_probe(&config);
        Ok(())
    }

    /// Reads the certificate files of the configuration in force again; see [`EngineHandle::renew_certificates`].
    pub fn renew_certificates(&self) -> Vec<TlsLoadError> {
        self.handle.renew_certificates()
    }

    /// Reads the sets of keys that `config` names. Those that are new are read before they count.
    fn follow_token_keys(&self, config: &Config) {
        self.handle.key_sets().replace(config.authz.key_sources());
        let mut threads = self.token_keys.lock();
        if let Err(error) = threads.follow() {
            tracing::error!(%error, "a set of keys is not read; raise the limit on threads or memory");
        }
        threads.wait_for_first_reads();
    }

    /// Probes by `config`, where it says something else than before.
    fn restart_probe(&self, config: &Config) {
        if let Err(error) = self.probe.lock().restart(config, &self.client_addresses, &self.handle) {
            tracing::error!(%error, "the self-probe cannot be started; raise the limit on threads or memory");
        }
    }

    /// Records what was used so far, rather than at the end of the interval. Another process may report it then.
    pub fn record_usage(&self) {
        self.usage.handle().flush();
    }

    /// Number of sessions of this process, and of processes before it, which it answers for.
    pub fn sessions(&self) -> u64 {
        self.handle.sessions_active() + self.other.sessions()
    }

    /// Brings the node to its end: says that it is not ready and still serves new clients for `lame_duck`; then refuses
    /// them, and waits until the last session has ended, `patience` has passed or `is_interrupted` returns true. Peers
    /// get their requests served until the end, since nobody else has this node's devices.
    pub fn drain(
        &self,
        lame_duck: Duration,
        patience: Duration,
        is_interrupted: impl Fn() -> bool,
    ) -> Drained {
        if self.handle.phase() < ServicePhase::Draining {
            self.handle.set_phase(ServicePhase::LameDuck);
            let refuse_at = Instant::now() + lame_duck;
            while Instant::now() < refuse_at {
                if is_interrupted() {
                    return Drained::Interrupted;
                }
                std::thread::sleep(DRAIN_CHECK_INTERVAL.min(lame_duck));
            }
        }
        self.handle.set_phase(ServicePhase::Draining);
        let give_up_at = Instant::now() + patience;
        let leave_at = give_up_at - LEAVE_TIME.min(patience / 2);
        loop {
            match self.handle.sessions_busy() + self.other.sessions() {
                // A peer's request that was served just before is among the sessions of the next look.
                0 if self.handle.phase() == ServicePhase::Leaving => return Drained::Empty,
                0 => self.handle.set_phase(ServicePhase::Leaving),
                left if Instant::now() >= give_up_at => return Drained::Left(left),
                _ if is_interrupted() => return Drained::Interrupted,
                _ if Instant::now() >= leave_at => self.handle.set_phase(ServicePhase::Leaving),
                _ => {}
            }
            std::thread::sleep(DRAIN_CHECK_INTERVAL);
        }
    }

    /// Ends every session and waits for all threads.
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // What is left is reported while the engine can still list it.
        self.departures = None;
        self.arrivals = None;
        if let Some(engine) = self.engine.take() {
            engine.stop();
        }
    }
}

/// The node for operators. `bound` are the addresses of `config.listen`, in their order.
fn identity(config: &Config, bound: &[SocketAddr]) -> NodeIdentity {
    let name = config.vpn.node.clone();
    NodeIdentity { name, started_at: UnixMillis::now(), listeners: listeners(config, bound) }
}

fn listeners(config: &Config, bound: &[SocketAddr]) -> Vec<ListenerInfo> {
    let listener = |(listen, address): (&Listen, &SocketAddr)| ListenerInfo {
        address: *address,
        serves: match listen.from {
            ListenerKind::Client => ListenerUse::Clients,
            ListenerKind::Peer => ListenerUse::Nodes,
        },
        tls: listen.tls.is_some(),
        counts: ListenerCounts::default(),
    };
    config.listen.iter().zip(bound).map(listener).collect()
}

/// Interval at which a drain checks whether it is done.
const DRAIN_CHECK_INTERVAL: Duration = Duration::from_millis(50);

/// Last part of a drain, in which peers get no new tunnels, so that their short ones end before the node does. They ask
/// again for `timeouts.forward`, which is longer.
const LEAVE_TIME: Duration = Duration::from_secs(2);

/// Address of `bound` for other nodes. A configured port of 0 stands for the real port.
fn advertised(configured: Option<SocketAddr>, bound: SocketAddr) -> SocketAddr {
    match configured {
        Some(address) if address.port() == 0 => SocketAddr::new(address.ip(), bound.port()),
        Some(address) => address,
        None => bound,
    }
}
