//! Keeps what is in force in step with the store.
//!
//! Readers read the store on threads of their own; the control thread puts what they read to the guard, publishes what
//! may take effect to the shared [`Authority`], and answers operators. Whatever goes wrong here, a fault of our own
//! included, leaves what is in force.

pub mod api;
mod commands;
mod contested_devices;
mod control_thread;
mod diff_report;
mod guard;
mod heartbeat;
mod hold_log;
mod kept_directory;
mod locations;
mod neighbours;
mod persist;
mod presence_writer;
mod probation;
mod process_identity;
mod publisher;
mod readers;
mod report;
mod status;
mod token_keys;
mod write_pause;

use std::sync::Arc;

use crossbeam::channel;
use rustls::ClientConfig;

pub use commands::{
    Commands, EXPECT_ROWS_MAX, EXPECT_TIME_MAX, EXPECTATIONS_MAX, Following, GuardCommandError, QueriesError,
    Writing,
};
pub use contested_devices::ClaimAnswers;
pub use diff_report::{DIFF_ROWS_MAX, DiffCounts, DiffReport, DiffRow};
pub use guard::GuardPreview;
pub use heartbeat::{DirectoryErrors, HeartbeatThread};
#[doc(hidden)]
pub use persist::fuzzing;
pub use presence_writer::{LocationCounts, PresenceWriterThread};
pub use readers::ReaderFactory;
pub use status::{ControlStatus, StatusHandle};
pub use token_keys::TokenKeyThreads;
pub use write_pause::WritePause;

use crate::authz::Authority;
use crate::config::{Config, Queries};
use crate::store::{self, AddressLayer, KnownPosition, ReportQueue, StoreError, queries_digest};
use crate::sys::service_thread::ServiceThread;
use crate::telemetry::AuditSender;
use control_thread::{ControlThread, Parts, StartError};
use neighbours::Inquiry;
use persist::Persistence;
use publisher::Publisher;
use report::GuardReport;

/// The running control thread; dropping it stops the thread and waits for it.
pub struct Control {
    _thread: ServiceThread,
    status: StatusHandle,
    commands: Commands,
}

/// The ways to the store, and to the nodes that share it.
pub struct StoreAccess {
    /// Makes readers, each with a connection of its own.
    pub readers: ReaderFactory,
    /// The position that the readers compare with.
    pub known: KnownPosition,
    /// The node's own VPN tables.
    pub layer: AddressLayer,
    /// Other queries that rights are read by so far. What this node's change is judged before it begins.
    pub running: Option<Queries>,
    /// Certificates for asking peers what they have in force; `None` asks nobody.
    pub peer_tls: Option<Arc<ClientConfig>>,
}

impl StoreAccess {
    /// The way to the store that `config` names. With `vpn.report`, `reports` gets what is to be written about devices.
    pub fn of(config: &Config, reports: &ReportQueue) -> Self {
        let known = KnownPosition::default();
        let (store, authz, shared) = (config.store.clone(), config.authz.clone(), known.clone());
        let readers: ReaderFactory = Arc::new(move || store::reader(&store, &authz, shared.clone()));
        Self { readers, known, layer: AddressLayer::new(config, reports), running: None, peer_tls: None }
    }

    /// Has a start compare its queries with `running`, and fail where the guard refuses the difference.
    pub fn in_place_of(self, running: Option<Queries>) -> Self {
        Self { running, ..self }
    }

    /// Has a start without kept state ask the peers in the store's list of nodes.
    pub fn with_peers(self, peer_tls: Option<Arc<ClientConfig>>) -> Self {
        Self { peer_tls, ..self }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Queries(#[from] QueriesError),
    #[error("{0}")]
    Fault(String),
    #[error("the control thread cannot be started ({0}); raise the limit on threads or memory")]
    Thread(std::io::Error),
}

impl Control {
    /// Begins with what was kept on disk, whatever the store does. Without it, reads the store, publishes it to
    /// `authority` unless the guard holds it, and only then returns. Where the store is away, it returns at once, and
    /// nothing is decided until the store is there. From then on threads keep up.
    ///
    /// `on_publish` is called on the control thread, and once here, after each publication; live sessions are to be
    /// decided again then. `audit` gets the events of the guard.
    pub fn start(
        store: StoreAccess,
        authority: Arc<Authority>,
        on_publish: impl Fn() + Send + 'static,
        audit: AuditSender,
        config: &Config,
    ) -> Result<Self, ControlError> {
        let StoreAccess { readers: factory, known, layer, running, peer_tls } = store;
        let peers = Inquiry::new(config, peer_tls);
        let report = GuardReport::new(audit);
        let queries = queries_digest(&config.store, &config.authz);
        let name = factory().describe();
        let persistence =
            config.authz.state.as_ref().map(|folder| Persistence::new(folder, name.clone(), queries));
        let publisher = Publisher::new(Arc::clone(&authority), Box::new(on_publish), persistence);
        let parts = Parts { name, factory, running, known, layer, peers, authority, publisher, report };
        let control = ControlThread::start(parts, config)?;
        let status = control.status();
        let (queue, requests) = channel::bounded(commands::REQUESTS_MAX);
        let (started, has_started) = channel::bounded(1);
        let thread = ServiceThread::start("control", move |stop| control.run(&stop, &requests, &started))
            .map_err(ControlError::Thread)?;
        match has_started.recv() {
            Ok(outcome) => outcome?,
            Err(_) => return Err(ControlError::Fault("the control thread has ended".to_owned())),
        }
        Ok(Self { _thread: thread, status, commands: Commands { queue } })
    }

    /// Says why the state that a node keeps in `authz.state` would not be used at a start.
    pub fn check_state(config: &Config) -> Option<String> {
        let error = persist::check_permissions(config.authz.state.as_deref()?).err()?;
        Some(error.to_string())
    }

    /// The handle of the thread's status, which stays readable after the thread has stopped.
    pub fn status(&self) -> StatusHandle {
        self.status.clone()
    }

    /// A way to look into what is held, and to act on it.
    pub fn commands(&self) -> Commands {
        self.commands.clone()
    }
}

impl From<StartError> for ControlError {
    fn from(error: StartError) -> Self {
        match error {
            StartError::Store(error) => Self::Store(error),
            StartError::Queries(error) => Self::Queries(error),
            StartError::Fault(fault) => Self::Fault(fault),
            StartError::Thread(error) => Self::Thread(error),
        }
    }
}
