//! Tells the service manager how the node is (`sd_notify(3)`): ready, one line of status, the watchdog's
//! beat, and that it stops. Does nothing where no manager listens.
//!
//! The beat is a promise that clients are served: every engine thread has turned since the last one, and the
//! snapshot that served is still there. What the store says, or that it says nothing, never stops the beat:
//! a restart would not mend a bad source, and would end every tunnel.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sd_notify::NotifyState;

use crate::authz::Undecided;
use crate::control::{Status, StatusHandle};
use crate::engine::EngineHandle;
use crate::node::Node;
use crate::sys::service_thread::{ServiceThread, StopSignal};
use crate::telemetry::{Cause, LogOnChange};

/// The thread that beats; dropping it ends the thread.
pub(super) struct Supervised {
    stopping: Arc<AtomicBool>,
    _thread: ServiceThread,
}

impl Supervised {
    /// Says that the node is ready, and from now on how it is.
    pub fn start(node: &Node) -> io::Result<Self> {
        let stopping = Arc::<AtomicBool>::default();
        if std::env::var_os("NOTIFY_SOCKET").is_none() {
            return Ok(Self { stopping, _thread: ServiceThread::default() });
        }
        let watchdog = sd_notify::watchdog_enabled();
        let mut watchdog = Watchdog {
            engine: node.engine().clone(),
            control: node.status(),
            watchdog,
            // A beat that comes late by one interval is still in time.
            interval: watchdog.map_or(STATUS_INTERVAL, |allowed| (allowed / 3).min(STATUS_INTERVAL)),
            stopping: Arc::clone(&stopping),
            turns_seen: Vec::new(),
            has_served: false,
            status: LogOnChange::default(),
        };
        tell(&[NotifyState::Ready, NotifyState::Status(&watchdog.status_line())]);
        let thread = ServiceThread::start("supervised", move |stop| watchdog.run(&stop))?;
        Ok(Self { stopping, _thread: thread })
    }

    /// Says that the node reloads for as long as `reload` takes.
    pub fn reloading(&self, reload: impl FnOnce()) {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => tell(&[NotifyState::Reloading, now]),
            Err(error) => tracing::warn!(%error, "the service manager cannot be told of a reload"),
        }
        reload();
        tell(&[NotifyState::Ready]);
    }

    /// Says that the node drains and will be gone; the beat goes on until then.
    pub fn stopping(&self) {
        self.stopping.store(true, Ordering::Release);
        tell(&[NotifyState::Stopping]);
    }
}

struct Watchdog {
    engine: EngineHandle,
    control: StatusHandle,
    /// How long the manager waits for a beat before it restarts the node; `None` where it does not.
    watchdog: Option<Duration>,
    interval: Duration,
    stopping: Arc<AtomicBool>,
    /// By thread, at the last look.
    turns_seen: Vec<u64>,
    /// There has been a snapshot.
    has_served: bool,
    /// The status line that the manager has.
    status: LogOnChange,
}

impl Watchdog {
    fn run(&mut self, stop: &StopSignal) {
        // The turns that the first look asks for are seen by the second.
        let _nothing_to_compare = self.look();
        while !stop.is_stopped_within(self.interval) {
            let serves = self.look();
            match (self.watchdog, serves) {
                (Some(_), Ok(())) => tell(&[NotifyState::Watchdog]),
                (_, Err(trouble)) => tracing::error!("{trouble}; the service manager gets no beat"),
                (None, Ok(())) => {}
            }
            self.tell_status();
            if self.stopping.load(Ordering::Acquire) {
                // A drain may last as long as the configuration says, whatever the unit does.
                let usec = u32::try_from(self.interval.as_micros()).unwrap_or(u32::MAX);
                tell(&[NotifyState::ExtendTimeoutUsec(usec.saturating_mul(3))]);
            }
        }
    }

    /// Whether the node serves clients. Asks the threads for another turn, for the next look to see.
    fn look(&mut self) -> Result<(), String> {
        let turns: Vec<u64> = self.engine.counters().map(|engine| engine.hot.turns.get()).collect();
        let stuck = turns.iter().zip(&self.turns_seen).position(|(now, before)| now == before);
        self.turns_seen = turns;
        self.engine.nudge();
        let has_snapshot = self.engine.trouble() != Some(Undecided::NoSnapshot);
        let has_lost_it = self.has_served && !has_snapshot;
        self.has_served |= has_snapshot;
        match stuck {
            Some(number) => Err(format!("engine thread {number} has not turned for {:?}", self.interval)),
            None if has_lost_it => Err("the snapshot that served is gone".to_owned()),
            None => Ok(()),
        }
    }

    fn tell_status(&mut self) {
        let line = self.status_line();
        if self.status.changes_to(line.clone()) {
            tell(&[NotifyState::Status(&line)]);
        }
    }

    fn status_line(&self) -> String {
        let doing = if self.stopping.load(Ordering::Acquire) { "draining" } else { "serving" };
        let sessions = self.engine.sessions_active();
        let authorization = authorization(&self.control.get(), self.engine.trouble());
        format!("{doing}, {sessions} sessions; {authorization}")
    }
}

/// What decides, in words.
fn authorization(status: &Status, trouble: Option<Undecided>) -> String {
    let generation = status.generation.map_or(0, |generation| generation.0);
    match (trouble, &status.hold) {
        (Some(undecided), _) => format!("nothing can be decided ({})", Cause::from(undecided)),
        (None, Some(held)) => format!("generation {generation} held by rule {}", held.hold.rule),
        (None, None) if status.last_error.is_some() => {
            format!("generation {generation}, the store cannot be read")
        }
        (None, None) => format!("generation {generation} in force"),
    }
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "the service manager cannot be told");
    }
}

/// How old the status line may be.
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
    fn a_thread_that_no_longer_turns_takes_the_beat_away() {
        let folder = tempfile::tempdir().unwrap();
        let node = node(&folder);
        let mut watchdog = Watchdog {
            engine: node.engine().clone(),
            control: node.status(),
            watchdog: None,
            interval: Duration::from_millis(50),
            stopping: Arc::default(),
            turns_seen: Vec::new(),
            has_served: false,
            status: LogOnChange::default(),
        };
        let _nothing_to_compare = watchdog.look();
        std::thread::sleep(watchdog.interval);
        assert_eq!(watchdog.look(), Ok(()));
        node.stop();
        let _turns_until_it_stopped = watchdog.look();
        let expected = "engine thread 0 has not turned for 50ms".to_owned();
        assert_eq!(watchdog.look(), Err(expected));
    }
}
