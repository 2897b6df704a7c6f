//! Reports the state of the node to the service manager (`sd_notify(3)`): readiness, a status line, the watchdog
//! signal, and the stop. Does nothing where no manager listens.
//!
//! The watchdog signal promises that clients are served: every engine thread has turned since the last one, and
//! there is a snapshot. A problem of the store never stops the signal. A restart would not repair the store, and
//! would end every tunnel.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sd_notify::NotifyState;

use crate::authz::Undecided;
use crate::control::{ControlStatus, StatusHandle};
use crate::engine::{EngineHandle, ServicePhase};
use crate::node::Node;
use crate::sys::service_thread::{ServiceThread, StopSignal};
use crate::telemetry::{Cause, LogOnChange};

/// The thread that reports. Dropping it stops the thread.
pub(super) struct ServiceReporter {
    stopping: Arc<AtomicBool>,
    handed_over: Arc<AtomicBool>,
    _thread: ServiceThread,
}

impl ServiceReporter {
    /// Reports that the node is ready, and starts the thread.
    pub fn start(node: &Node) -> io::Result<Self> {
        let (stopping, handed_over) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
        if std::env::var_os("NOTIFY_SOCKET").is_none() {
            return Ok(Self { stopping, handed_over, _thread: ServiceThread::default() });
        }
        let watchdog = sd_notify::watchdog_enabled();
        let mut watchdog = Watchdog {
            engine: node.engine().clone(),
            control: node.status(),
            watchdog,
            // With a third of the allowed time, a signal that is one interval late is still in time.
            interval: watchdog.map_or(STATUS_INTERVAL, |allowed| (allowed / 3).min(STATUS_INTERVAL)),
            stopping: Arc::clone(&stopping),
            handed_over: Arc::clone(&handed_over),
            turns_seen: Vec::new(),
            has_served: false,
            status: LogOnChange::default(),
        };
        notify(&[NotifyState::Ready, NotifyState::Status(&watchdog.status_line())]);
        let thread = ServiceThread::start("supervised", move |stop| watchdog.run(&stop))?;
        Ok(Self { stopping, handed_over, _thread: thread })
    }

    /// Reports a reload for as long as `reload` takes.
    pub fn reloading<T>(&self, reload: impl FnOnce() -> T) -> T {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => notify(&[NotifyState::Reloading, now]),
            Err(error) => tracing::warn!(%error, "the service manager cannot be notified of a reload"),
        }
        let outcome = reload();
        // A process that took over meanwhile reports that by itself.
        if !self.handed_over.load(Ordering::Acquire) {
            notify(&[NotifyState::Ready]);
        }
        outcome
    }

    /// Reports that another process is the main one from here on. This one reports nothing any more.
    pub fn handed_over(&self, pid: u32) {
        self.handed_over.store(true, Ordering::Release);
        if std::env::var_os("NOTIFY_SOCKET").is_some() {
            notify(&[NotifyState::MainPid(pid)]);
        }
    }

    /// Reports that this process is the main one again, since the other one has ended.
    pub fn taken_back(&self) {
        if std::env::var_os("NOTIFY_SOCKET").is_some() {
            notify(&[NotifyState::MainPid(std::process::id()), NotifyState::Ready]);
        }
        self.handed_over.store(false, Ordering::Release);
    }

    /// Reports that the node stops. The watchdog signal goes on until the process ends.
    pub fn stopping(&self) {
        self.stopping.store(true, Ordering::Release);
        if !self.handed_over.load(Ordering::Acquire) {
            notify(&[NotifyState::Stopping]);
        }
    }
}

struct Watchdog {
    engine: EngineHandle,
    control: StatusHandle,
    /// Time after which the manager restarts a node without a signal. `None` where it does not.
    watchdog: Option<Duration>,
    interval: Duration,
    stopping: Arc<AtomicBool>,
    handed_over: Arc<AtomicBool>,
    /// Turns of each thread at the last check.
    turns_seen: Vec<u64>,
    /// True once there has been a snapshot.
    has_served: bool,
    /// The status line that the manager has.
    status: LogOnChange,
}

impl Watchdog {
    fn run(&mut self, stop: &StopSignal) {
        // This check asks the threads for a turn, which the next check sees.
        let _nothing_to_compare = self.check();
        while !stop.is_stopped_within(self.interval) {
            if self.handed_over.load(Ordering::Acquire) {
                // What this process last reported counts no more.
                self.status = LogOnChange::default();
                continue;
            }
            let serves = self.check();
            match (self.watchdog, serves) {
                (Some(_), Ok(())) => notify(&[NotifyState::Watchdog]),
                (_, Err(trouble)) => {
                    tracing::error!("{trouble}; the service manager gets no watchdog signal")
                }
                (None, Ok(())) => {}
            }
            self.send_status();
            if self.stopping.load(Ordering::Acquire) {
                // A drain may take longer than the stop timeout of the unit.
                let usec = u32::try_from(self.interval.as_micros()).unwrap_or(u32::MAX);
                notify(&[NotifyState::ExtendTimeoutUsec(usec.saturating_mul(3))]);
            }
        }
    }

    /// Checks whether the node serves clients. Asks each thread for another turn, which the next check sees.
    fn check(&mut self) -> Result<(), String> {
        let turns: Vec<u64> = self.engine.counters().map(|engine| engine.hot.turns.get()).collect();
        let stuck = turns.iter().zip(&self.turns_seen).position(|(now, before)| now == before);
        self.turns_seen = turns;
        self.engine.nudge();
        let has_snapshot = self.engine.trouble() != Some(Undecided::NoSnapshot);
        let has_lost_it = self.has_served && !has_snapshot;
        self.has_served |= has_snapshot;
        match stuck {
            Some(number) => {
                let interval = humantime::format_duration(self.interval);
                Err(format!("engine thread {number} has not turned for {interval}"))
            }
            None if has_lost_it => Err("there is no snapshot any more".to_owned()),
            None => Ok(()),
        }
    }

    fn send_status(&mut self) {
        let line = self.status_line();
        if self.status.changes_to(line.clone()) {
            notify(&[NotifyState::Status(&line)]);
        }
    }

    fn status_line(&self) -> String {
        let doing = match self.engine.phase() {
            ServicePhase::Serving => "serving",
            ServicePhase::LameDuck => "draining, and still serving new clients",
            ServicePhase::Draining | ServicePhase::Leaving => "draining",
        };
        let sessions = self.engine.sessions_active();
        let authorization = authorization(&self.control.get(), self.engine.trouble());
        format!("{doing}, {sessions} sessions; {authorization}")
    }
}

/// Describes the state of authorization.
fn authorization(status: &ControlStatus, trouble: Option<Undecided>) -> String {
    let generation = status.generation.map_or(0, |generation| generation.0);
    match (trouble, status.held.first()) {
        (Some(Undecided::NoSnapshot), _) if status.last_error.is_some() => {
            format!("waiting for the store: {}", status.last_error.as_deref().unwrap_or_default())
        }
        (Some(undecided), _) => format!("nothing can be decided ({})", Cause::from(undecided)),
        (None, Some(held)) => {
            format!("generation {generation} in force, {} held by rule {}", held.subject(), held.rule)
        }
        (None, None) if status.last_error.is_some() => {
            format!("generation {generation}, the store cannot be read")
        }
        (None, None) => format!("generation {generation} in force"),
    }
}

fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "the service manager cannot be notified");
    }
}

/// Greatest age of the status line.
const STATUS_INTERVAL: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Listen, Store, StoreUrl};
    use crate::store::sqlite;

    fn node(folder: &tempfile::TempDir) -> Node {
        let path = folder.path().join("store.db");
        sqlite::init(&path).unwrap();
        let mut config = Config {
            store: Store { url: StoreUrl::Sqlite(path), ..Store::default() },
            listen: vec![Listen {
                address: ([127, 0, 0, 1], 0).into(),
                suffixes: Vec::new(),
                ..Listen::default()
            }],
            ..Config::default()
        };
        config.admin.address = ([127, 0, 0, 1], 0).into();
        Node::start(config).unwrap()
    }

    #[test]
    fn a_thread_that_no_longer_turns_stops_the_watchdog_signal() {
        let folder = tempfile::tempdir().unwrap();
        let node = node(&folder);
        let mut watchdog = Watchdog {
            engine: node.engine().clone(),
            control: node.status(),
            watchdog: None,
            interval: Duration::from_millis(50),
            stopping: Arc::default(),
            handed_over: Arc::default(),
            turns_seen: Vec::new(),
            has_served: false,
            status: LogOnChange::default(),
        };
        let _nothing_to_compare = watchdog.check();
        std::thread::sleep(watchdog.interval);
        assert_eq!(watchdog.check(), Ok(()));
        node.stop();
        let _turns_until_it_stopped = watchdog.check();
        let expected = "engine thread 0 has not turned for 50ms".to_owned();
        assert_eq!(watchdog.check(), Err(expected));
    }
}
