//! Wake-ups: has the control thread read at once when a right was revoked.
//!
//! A thread listens on a connection of its own, to the primary, since standbys pass no notifications on. It
//! carries no data, and nothing depends on it: what it misses is found by polling.

use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, bounded};
use tokio::sync::watch;

use super::connect::{Access, Connector};
use super::session::{Heard, Session};
use crate::config::postgres::TargetSession;
use crate::store::StoreError;
use crate::sys::service_thread::{ServiceThread, StopSignal};
use crate::telemetry::LogOnChange;

/// The listening thread's handle; the thread ends when this is dropped, but is not waited for: it may just
/// be waiting for a server.
pub(super) struct WakeUps {
    /// Dropped to end a wait for notifications; nothing is ever sent.
    _stop: watch::Sender<()>,
    _thread: ServiceThread,
    wake_ups: Receiver<()>,
    /// Keeps the channel open if the thread should end.
    _sender: Sender<()>,
}

impl WakeUps {
    /// Without a thread, where none can be had, there are no wake-ups.
    pub(super) fn start(connector: Connector) -> Self {
        let (sender, wake_ups) = bounded(WAKE_UPS_MAX);
        let (stop, stopped) = watch::channel(());
        let listener = Listener { connector, wake: sender.clone(), stopped, trouble: LogOnChange::default() };
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

/// What the thread owns.
struct Listener {
    connector: Connector,
    wake: Sender<()>,
    /// Closed when the thread is to stop.
    stopped: watch::Receiver<()>,
    trouble: LogOnChange,
}

/// Why listening on one connection came to its end.
enum End {
    Stopped,
    Lost(String),
}

impl Listener {
    fn run(mut self, stop: &StopSignal) {
        let mut pause = RETRY_PAUSE_MIN;
        loop {
            match self.connect() {
                Ok(session) => {
                    pause = RETRY_PAUSE_MIN;
                    match self.listen(session) {
                        End::Stopped => return,
                        End::Lost(why) => self.log_trouble(why),
                    }
                }
                Err(error) => self.log_trouble(error.to_string()),
            }
            if stop.is_stopped_within(jittered(pause)) {
                return;
            }
            pause = (pause * 2).min(RETRY_PAUSE_MAX);
        }
    }

    fn connect(&self) -> Result<Session, StoreError> {
        let connected = self.connector.connect(TargetSession::Primary, Access::Read, Duration::ZERO)?;
        let listening = connected.session.batch("LISTEN sluicegate");
        listening.map_err(|failure| self.connector.place.error(failure))?;
        Ok(connected.session)
    }

    fn listen(&mut self, mut session: Session) -> End {
        if self.trouble.ends() {
            tracing::info!("{} wakes this node again", self.connector.place.describe());
        }
        // For what was revoked while nobody listened.
        self.wake();
        let mut echoes = [].iter();
        loop {
            let echo = echoes.next();
            match session.listen(*echo.unwrap_or(&SILENCE_MAX), &mut self.stopped) {
                Heard::Notification => {
                    self.wake();
                    // What is read may be a standby, which the revocation reaches later than the word of it.
                    if self.connector.has_choice() {
                        echoes = ECHOES.iter();
                    }
                }
                Heard::Stop => return End::Stopped,
                Heard::End => return End::Lost("the connection for wake-ups has ended".to_owned()),
                Heard::Nothing if echo.is_some() => self.wake(),
                Heard::Nothing => {
                    if let Err(failure) = session.batch("SELECT") {
                        return End::Lost(self.connector.place.error(failure).to_string());
                    }
                }
            }
        }
    }

    fn wake(&self) {
        // A full channel says what one more would say.
        let _already_full = self.wake.try_send(());
    }

    fn log_trouble(&mut self, trouble: String) {
        if self.trouble.changes_to(trouble.clone()) {
            tracing::warn!("{trouble}; until then revocations are found by polling");
        }
    }
}

/// Half to all of `pause`, so that nodes do not all come back in the same moment.
fn jittered(pause: Duration) -> Duration {
    // Without random bytes there is no jitter; nothing depends on it.
    let random = getrandom::u32().unwrap_or(u32::MAX / 2);
    pause.mul_f64(0.5 + 0.5 * f64::from(random) / f64::from(u32::MAX))
}

/// One wake-up says what many would say.
const WAKE_UPS_MAX: usize = 1;

/// After so long without a word the server is asked whether it is still there.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// Pauses before a wake-up is repeated, for standbys: the first takes what arrives at once, the last what
/// takes long. Whatever takes longer is found by polling.
const ECHOES: [Duration; 4] = [
    Duration::from_millis(10),
    Duration::from_millis(40),
    Duration::from_millis(200),
    Duration::from_millis(750),
];

/// Between two attempts to listen; doubled with each.
const RETRY_PAUSE_MIN: Duration = Duration::from_millis(500);
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(30);
