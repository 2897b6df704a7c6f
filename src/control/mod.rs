//! Keeps the snapshot in force in step with the store.
//!
//! One thread reads the store on a short timer, and whole on a long one, and publishes what it says to the
//! shared [`Authority`], if the guard lets it. Whatever goes wrong here, a fault of our own included, leaves
//! the last snapshot in force.

mod admission;
pub mod api;
mod candidate;
mod commands;
mod diff_report;
mod guard;
mod heartbeat;
mod history;
mod hold;
mod hold_log;
mod missing_rows;
mod neighbours;
mod persist;
mod presence_writer;
mod probation;
mod publisher;
mod quarantine;
mod refresh;
mod replay_log;
mod report;
mod reused_addresses;
mod status;

use std::sync::Arc;

use crossbeam::channel;

pub use commands::{
    Commands, EXPECT_ROWS_MAX, EXPECT_TIME_MAX, EXPECTATIONS_MAX, GuardCommandError, QueriesError,
};
pub use diff_report::{DIFF_ROWS_MAX, DiffCounts, DiffReport, DiffRow};
pub use guard::{Hold, Rule};
pub use heartbeat::HeartbeatThread;
pub use hold::{HoldCounts, HoldStatus};
pub use presence_writer::{LocationCounts, PresenceWriterThread};
pub use status::{ControlStatus, StatusHandle};

use crate::authz::Authority;
use crate::config::Config;
use crate::store::{Source, StoreError};
use crate::sys::service_thread::ServiceThread;
use crate::telemetry::AuditSender;
use refresh::Refresher;
use report::GuardReport;

/// The running control thread; dropping it stops the thread and waits for it.
pub struct Control {
    _thread: ServiceThread,
    status: StatusHandle,
    commands: Commands,
}

#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the control thread cannot be started ({0}); raise the limit on threads or memory")]
    Thread(std::io::Error),
}

impl Control {
    /// Reads all of `source`, publishes it to `authority` unless the guard holds it, and only then returns:
    /// a node that cannot read its store does not start, unless a snapshot of it was kept on disk. From then
    /// on a thread of its own keeps up.
    ///
    /// `on_publish` is called on that thread, and once here, after each publication; live sessions are to
    /// be decided again then. `audit` gets the events of the guard.
    pub fn start(
        source: Box<dyn Source>,
        authority: Arc<Authority>,
        on_publish: impl Fn() + Send + 'static,
        audit: AuditSender,
        config: &Config,
    ) -> Result<Self, ControlError> {
        let report = GuardReport::new(audit);
        let refresher = Refresher::start(source, authority, Box::new(on_publish), report, config)?;
        let status = refresher.status();
        let (queue, requests) = channel::bounded(commands::REQUESTS_MAX);
        let thread = ServiceThread::start("control", move |stop| refresher.run(&stop, &requests))
            .map_err(ControlError::Thread)?;
        Ok(Self { _thread: thread, status, commands: Commands { queue } })
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
