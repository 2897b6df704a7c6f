//! Who used how much of this node: a thread sums it by interval, writes it to the audit log, and keeps it in the state
//! folder.
//!
//! The sums come from the engine threads, whose tunnels count their bytes anyway. A record covers one interval and has a
//! row for each principal, credential and device. Each process writes records of its own, and a report adds up those of
//! all: an old process that keeps some tunnels after a hand-over goes on to write about them.

mod folder;
mod record;
mod recorder;
mod report;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, bounded};

use crate::authz::UnixMillis;
use crate::config::Config;
use crate::engine::EngineHandle;
use crate::sys::service_thread::ServiceThread;
use crate::telemetry::AuditSender;
use folder::UsageFolder;
use recorder::Recorder;

pub use folder::{INTERVALS_KEPT_MAX, KEPT_BYTES_MAX};
pub use report::{REPORT_ROWS_MAX, UsageBy, UsageReport, UsageReportRow};

/// The thread. Dropping it writes the last record; the engine should have stopped before.
pub struct UsageThread {
    _thread: ServiceThread,
    handle: UsageHandle,
}

/// A way to ask the thread, from any other one. Cheap to clone.
#[derive(Clone)]
pub struct UsageHandle {
    requests: Sender<UsageRequest>,
    figures: Arc<UsageFigures>,
}

/// Figures of the thread, for `/metrics`.
#[derive(Default)]
struct UsageFigures {
    /// Keys that had a row of their own in the last interval.
    keys: AtomicU64,
    /// Times that a record could not be written.
    write_errors: AtomicU64,
}

enum UsageRequest {
    Report {
        since: UnixMillis,
        by: UsageBy,
        answer: Sender<UsageReport>,
    },
    /// Ends the interval now.
    Flush {
        done: Sender<()>,
    },
    Reconfigure(Duration),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{REQUESTS_MAX} requests about use wait already; try again")]
pub struct UsageBusy;

impl UsageThread {
    /// Starts to count. A relay without a state folder keeps nothing beyond the interval under way.
    pub fn start(engine: &EngineHandle, audit: AuditSender, config: &Config) -> io::Result<Self> {
        let (requests, to_serve) = bounded(REQUESTS_MAX);
        let figures = Arc::new(UsageFigures::default());
        let folder = config.authz.state.as_deref().map(UsageFolder::inside);
        let (collector, interval) = (engine.usage_collector(), config.usage.interval);
        let recorder = Recorder::new(collector, audit, folder, interval, Arc::clone(&figures));
        let thread = ServiceThread::start("usage", move |stop| recorder.run(&to_serve, &stop))?;
        Ok(Self { _thread: thread, handle: UsageHandle { requests, figures } })
    }

    pub fn handle(&self) -> UsageHandle {
        self.handle.clone()
    }
}

impl UsageHandle {
    /// Requests what was used since this time, from the beginning of the interval that it is in.
    pub fn report(&self, since: UnixMillis, by: UsageBy) -> Result<Receiver<UsageReport>, UsageBusy> {
        let (answer, answered) = bounded(1);
        self.send(UsageRequest::Report { since, by, answer })?;
        Ok(answered)
    }

    /// Ends the interval under way, and waits a while until its record is written.
    pub fn flush(&self) {
        let (done, is_done) = bounded(1);
        if self.send(UsageRequest::Flush { done }).is_ok() {
            // Where it takes longer, the record is written later.
            let _is_late = is_done.recv_timeout(FLUSH_TIME_MAX);
        }
    }

    /// Counts in intervals of this length from now on; 0 counts nothing.
    pub fn reconfigure(&self, interval: Duration) {
        if self.send(UsageRequest::Reconfigure(interval)).is_err() {
            tracing::error!("usage.interval is as before: {UsageBusy}");
        }
    }

    /// Number of keys that had a row of their own in the last interval.
    pub fn keys(&self) -> u64 {
        self.figures.keys.load(Ordering::Relaxed)
    }

    /// Number of times that a record could not be written.
    pub fn write_errors(&self) -> u64 {
        self.figures.write_errors.load(Ordering::Relaxed)
    }

    fn send(&self, request: UsageRequest) -> Result<(), UsageBusy> {
        self.requests.try_send(request).map_err(|_| UsageBusy)
    }
}

/// Requests that may wait for the thread. Each takes it up to a second, where a week of records is read.
const REQUESTS_MAX: usize = 8;

/// Time in which the thread ends an interval, in general.
const FLUSH_TIME_MAX: Duration = Duration::from_secs(3);
