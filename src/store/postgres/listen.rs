//! Wake-ups, by which the control thread reads at once when a right was revoked.
//!
//! A thread listens on a connection of its own, to the primary, since standbys pass no notifications on. A wake-up
//! carries no data, and nothing depends on it: polling finds what the thread misses.

use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, bounded};
use tokio::sync::watch;

use super::connect::{Access, Connector};
use super::session::{ListenResult, PostgresSession};
use crate::config::postgres::TargetSession;
use crate::store::StoreError;
use crate::sys::service_thread::{ServiceThread, StopSignal};
use crate::telemetry::LogOnChange;

/// Handle of the listening thread. The thread ends when this is dropped; nobody waits for that, since it may be
/// waiting for a server.
pub(super) struct WakeUps {
    /// Dropped to end a wait for notifications. Nothing is ever sent.
    _stop: watch::Sender<()>,
    _thread: ServiceThread,
    wake_ups: Receiver<()>,
    /// Keeps the channel open if the thread should end.
    _sender: Sender<()>,
}

impl WakeUps {
    /// Starts the thread. If the system gives none, there are no wake-ups.
    pub(super) fn start(connector: Connector) -> Self {
        let (sender, wake_ups) = bounded(WAKE_UPS_MAX);
        let (stop, stopped) = watch::channel(());
        let listener =
            WakeUpListener { connector, wake: sender.clone(), stopped, failure: LogOnChange::default() };
        let thread = ServiceThread::start_detached("wake-ups", move |stop| listener.run(&stop));
        let thread = thread.unwrap_or_else(|error| {
            tracing::warn!("no thread for wake-ups ({error}); revocations are found by polling");
            ServiceThread::default()
        });
        Self { _stop: stop, _thread: thread, wake_ups, _sender: sender }
    }

    pub(super) fn receiver(&self) -> Receiver<()> {
        self.wake_ups.clone()
    }
}

/// State of the thread.
struct WakeUpListener {
    connector: Connector,
    wake: Sender<()>,
    /// Closed when the thread has to stop.
    stopped: watch::Receiver<()>,
    failure: LogOnChange,
}

/// Reason why one connection is no longer listened on.
enum ListenEnd {
    Stopped,
    Lost(String),
}

impl WakeUpListener {
    fn run(mut self, stop: &StopSignal) {
        let mut pause = RETRY_PAUSE_MIN;
        loop {
            match self.connect() {
                Ok(session) => {
                    pause = RETRY_PAUSE_MIN;
                    match self.listen(session) {
                        ListenEnd::Stopped => return,
                        ListenEnd::Lost(failure) => self.log(failure),
                    }
                }
                Err(error) => self.log(error.to_string()),
            }
            if stop.is_stopped_within(jittered(pause)) {
                return;
            }
            pause = (pause * 2).min(RETRY_PAUSE_MAX);
        }
    }

    fn connect(&self) -> Result<PostgresSession, StoreError> {
        let connected = self.connector.connect(TargetSession::Primary, Access::Read, Duration::ZERO)?;
        let listening = connected.session.batch("LISTEN sluicegate");
        listening.map_err(|error| self.connector.name.error(error))?;
        Ok(connected.session)
    }

    fn listen(&mut self, mut session: PostgresSession) -> ListenEnd {
        if self.failure.ends() {
            tracing::info!("{} wakes this node again", self.connector.name.describe());
        }
        // Something may have been revoked while nobody listened.
        self.wake();
        let mut echoes = [].iter();
        loop {
            let echo = echoes.next();
            match session.listen(*echo.unwrap_or(&SILENCE_MAX), &mut self.stopped) {
                ListenResult::Notification => {
                    self.wake();
                    // The relay may read from a standby, which gets the revocation later than this notification.
                    if self.connector.has_choice() {
                        echoes = ECHOES.iter();
                    }
                }
                ListenResult::Stop => return ListenEnd::Stopped,
                ListenResult::Closed => {
                    return ListenEnd::Lost("the connection for wake-ups has ended".to_owned());
                }
                ListenResult::Nothing if echo.is_some() => self.wake(),
                ListenResult::Nothing => {
                    if let Err(error) = session.batch("SELECT") {
                        return ListenEnd::Lost(self.connector.name.error(error).to_string());
                    }
                }
            }
        }
    }

    fn wake(&self) {
        // A full channel holds a wake-up already.
        let _already_full = self.wake.try_send(());
    }

    fn log(&mut self, failure: String) {
        if self.failure.changes_to(failure.clone()) {
            tracing::warn!("{failure}; until then revocations are found by polling");
        }
    }
}

/// Shortens `pause` to between half and all of it, so that nodes do not all come back in the same moment.
fn jittered(pause: Duration) -> Duration {
    // Without random bytes there is no jitter. Nothing depends on it.
    let random = getrandom::u32().unwrap_or(u32::MAX / 2);
    pause.mul_f64(0.5 + 0.5 * f64::from(random) / f64::from(u32::MAX))
}

/// Wake-ups that wait to be received. Several would mean the same as one.
const WAKE_UPS_MAX: usize = 1;

/// Silence of the server after which it is asked for a sign of life.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// Pauses before a wake-up is repeated, since a standby may get the revocation only then. Polling finds what takes
/// longer.
const ECHOES: [Duration; 4] = [
    Duration::from_millis(10),
    Duration::from_millis(40),
    Duration::from_millis(200),
    Duration::from_millis(750),
];

/// Shortest pause between two attempts to listen. It doubles with each attempt.
const RETRY_PAUSE_MIN: Duration = Duration::from_millis(500);
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(30);
