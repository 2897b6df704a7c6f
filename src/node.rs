//! Puts a node together and takes it down.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use crate::admin::{AdminServer, AdminServerError, SelfProbe, Sources};
use crate::authz::Authority;
use crate::config::{Config, ListenerKind};
use crate::control::{
    Control, ControlError, HeartbeatThread, PresenceWriterThread, QueriesError, StatusHandle,
};
use crate::engine::{Engine, EngineError, EngineHandle, Inherited};
use crate::store::{self, ReportQueue};
use crate::telemetry::{AuditError, AuditLog, AuditReopener};
use crate::wire::TlsConfigs;

/// A running relay. Its parts end in the order of the fields: no client comes in any more before what
/// serves them goes.
pub struct Node {
    engine: Option<Engine>,
    handle: EngineHandle,
    client_addresses: Vec<SocketAddr>,
    forward_address: Option<SocketAddr>,
    _directory: HeartbeatThread,
    _locations: PresenceWriterThread,
    _probe: SelfProbe,
    control: Control,
    admin: AdminServer,
    audit: AuditLog,
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
}

/// How a drain came to its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Drained {
    /// The last session ended by itself.
    Empty,
    /// So many were left when the time was up.
    Left(u64),
    /// Whoever asked for it lost patience.
    Interrupted,
}

impl Node {
    /// Reads the store, publishes the first snapshot, and only then accepts clients.
    pub fn start(config: Config) -> Result<Self, NodeError> {
        let tls = TlsConfigs::load(&config).map_err(EngineError::from)?;
        Self::start_on(Inherited::none(), config, tls)
    }

    /// As [`start`](Self::start), with client listeners that a service manager opened.
    pub fn start_on(inherited: Inherited, config: Config, tls: TlsConfigs) -> Result<Self, NodeError> {
        let config = Arc::new(config);
        let authority = Arc::new(Authority::new(config.authz.max_stale, config.vpn.node.as_deref()));
        let (audit, audit_sender) = AuditLog::start(&config.audit, config.vpn.node.as_deref())?;
        // The control thread is there before the engine, which it is to tell of every publication.
        let to_tell: Arc<OnceLock<EngineHandle>> = Arc::default();
        let told = Arc::clone(&to_tell);
        let on_publish = move || {
            if let Some(engine) = told.get() {
                engine.recheck();
            }
        };
        let reports = ReportQueue::default();
        let control = Control::start(
            store::located_source(&config, &reports),
            Arc::clone(&authority),
            on_publish,
            audit_sender.clone(),
            &config,
        )?;
        let engine = Engine::start_on(
            inherited,
            Arc::clone(&config),
            tls,
            Arc::clone(&authority),
            audit_sender.clone(),
        )?;
        let handle = engine.handle();
        let handle = to_tell.get_or_init(|| handle).clone();
        // For what was published before the engine could be told.
        handle.recheck();
        let of = |from| {
            let listeners = config.listen.iter().zip(engine.client_addresses());
            listeners.filter(move |(listen, _)| listen.from == from).map(|(_, address)| *address)
        };
        let client_addresses: Vec<_> = of(ListenerKind::Client).collect();
        let forward_address = of(ListenerKind::Peer).next();
        let advertised = forward_address.map(|bound| advertised(config.forward.advertise, bound));
        let directory =
            HeartbeatThread::start(store::node_table(&config), Arc::clone(&authority), advertised, &config)
                .map_err(NodeError::Thread)?;
        let table = store::claim_table(&config);
        let locations = PresenceWriterThread::start(table, Arc::clone(&authority), reports, &config)
            .map_err(NodeError::Thread)?;
        let probe = SelfProbe::start(&config, &client_addresses, &handle).map_err(NodeError::Thread)?;
        let sources = Sources {
            engine: handle.clone(),
            probe: probe.status(),
            control: control.status(),
            authority,
            directory_errors: directory.errors(),
            locations: locations.counts(),
            commands: control.commands(),
            audit: audit_sender,
            audit_lost: audit.lost(),
        };
        let admin = match AdminServer::start(&config.admin, sources) {
            Ok(admin) => admin,
            Err(error) => {
                engine.stop();
                return Err(error.into());
            }
        };
        Ok(Self {
            engine: Some(engine),
            handle,
            client_addresses,
            forward_address,
            _directory: directory,
            _locations: locations,
            _probe: probe,
            control,
            admin,
            audit,
        })
    }

    /// Where clients reach this node, in the order of `listen`.
    pub fn client_addresses(&self) -> &[SocketAddr] {
        &self.client_addresses
    }

    /// Where other nodes reach it; `None` where it stands alone.
    pub fn forward_address(&self) -> Option<SocketAddr> {
        self.forward_address
    }

    pub fn admin_address(&self) -> SocketAddr {
        self.admin.address()
    }

    pub fn engine(&self) -> &EngineHandle {
        &self.handle
    }

    pub fn status(&self) -> StatusHandle {
        self.control.status()
    }

    /// A way to let go of an audit log that was rotated.
    pub fn audit_reopener(&self) -> AuditReopener {
        self.audit.reopener()
    }

    /// Takes over what of `config` a running node can; see [`Config::needs_restart`].
    pub fn reload(&self, config: Config, tls: TlsConfigs) -> Result<(), QueriesError> {
        self.control.commands().reload(config.clone())?;
        self.handle.replace_certificates(tls);
        self.handle.replace_signers(config.authz.tokens);
        Ok(())
    }

    /// Turns new clients away and waits until the last session has ended, `patience` is over, or
    /// `is_interrupted` says so.
    pub fn drain(&self, patience: Duration, is_interrupted: impl Fn() -> bool) -> Drained {
        self.handle.drain();
        let give_up_at = Instant::now() + patience;
        loop {
            match self.handle.sessions_active() {
                0 => return Drained::Empty,
                left if Instant::now() >= give_up_at => return Drained::Left(left),
                _ if is_interrupted() => return Drained::Interrupted,
                _ => std::thread::sleep(DRAIN_LOOK),
            }
        }
    }

    /// Ends every session and waits for all threads.
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(engine) = self.engine.take() {
            engine.stop();
        }
    }
}

/// How often a drain looks whether it is done.
const DRAIN_LOOK: Duration = Duration::from_millis(50);

/// By what others are to reach `bound`; a port of 0 stands for its real one.
fn advertised(configured: Option<SocketAddr>, bound: SocketAddr) -> SocketAddr {
    match configured {
        Some(address) if address.port() == 0 => SocketAddr::new(address.ip(), bound.port()),
        Some(address) => address,
        None => bound,
    }
}
