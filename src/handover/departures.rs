//! The old process after the new one runs: moves tunnels there, reports the sessions that are left, and follows the new
//! one's decisions about them.
//!
//! A batch of tunnels is captured, sent, and kept until the new process has all of it; only then the new process is told
//! to go on. So whatever fails, exactly one process goes on with a tunnel.

use std::collections::HashSet;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::channel::{Channel, ChannelError, Message};
use super::message::{NUMBERS_MAX, ROWS_MAX, Traffic};
use super::other_process::OtherProcess;
use super::successor::Committed;
use super::tunnels::send_tunnel;
use crate::engine::{EndResult, EngineBusy, EngineHandle, MovedTunnel, SessionRow};
use crate::sys::service_thread::{ServiceThread, StopSignal};

/// The thread that moves tunnels. Dropping it ends the connection with the new process.
pub struct DeparturesThread {
    _thread: ServiceThread,
    progress: DepartureProgress,
}

/// How far the tunnels have moved. Cheap to clone.
#[derive(Clone, Default)]
pub struct DepartureProgress {
    moved: Arc<AtomicU64>,
    /// Every tunnel that could move when the new process began has moved.
    has_moved_all: Arc<AtomicBool>,
    has_lost_successor: Arc<AtomicBool>,
    has_said_farewell: Arc<AtomicBool>,
}

impl DeparturesThread {
    /// Starts to move tunnels to `successor`. `earlier` is the process before this one, whose sessions are this one's to
    /// report. `on_lost` is called once where the new process does not decide any more while sessions are left here.
    pub fn start(
        successor: Committed,
        engine: EngineHandle,
        earlier: OtherProcess,
        on_lost: impl FnOnce() + Send + 'static,
    ) -> io::Result<Self> {
        let progress = DepartureProgress::default();
        let departures = Departures {
            channel: successor.channel,
            moves_tunnels: successor.moves_tunnels,
            listeners: engine.listener_addresses(),
            engine,
            earlier,
            reported: HashSet::new(),
            batch: 0,
            progress: progress.clone(),
        };
        let thread = ServiceThread::start("hand-over", move |stop| departures.run(&stop, on_lost))?;
        Ok(Self { _thread: thread, progress })
    }

    pub fn progress(&self) -> DepartureProgress {
        self.progress.clone()
    }
}

impl DepartureProgress {
    /// Number of tunnels that have moved so far.
    pub fn moved(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }

    /// Every tunnel that could move has moved, or none can any more.
    pub fn is_settled(&self) -> bool {
        self.has_moved_all.load(Ordering::Acquire) || self.has_lost_successor.load(Ordering::Acquire)
    }

    pub fn has_lost_successor(&self) -> bool {
        self.has_lost_successor.load(Ordering::Acquire)
    }

    /// The new process has ended, or is about to, in good order.
    pub fn has_said_farewell(&self) -> bool {
        self.has_said_farewell.load(Ordering::Acquire)
    }
}

struct Departures {
    channel: Channel,
    moves_tunnels: bool,
    listeners: Vec<SocketAddr>,
    engine: EngineHandle,
    earlier: OtherProcess,
    /// Sessions that the new process knows of.
    reported: HashSet<u64>,
    batch: u64,
    progress: DepartureProgress,
}

impl Departures {
    fn run(mut self, stop: &StopSignal, on_lost: impl FnOnce()) {
        let lasted = if self.moves_tunnels {
            self.earlier.decide_here(false);
            self.follow(stop)
        } else {
            // The new process would not understand what there is to say.
            self.progress.has_moved_all.store(true, Ordering::Release);
            Err(ChannelError::NotUnderstood("its format of tunnels is another one".to_owned()))
        };
        if let Err(error) = lasted {
            self.earlier.decide_here(true);
            self.progress.has_lost_successor.store(true, Ordering::Release);
            if self.engine.sessions_active() > 0 {
                tracing::warn!(
                    sessions = self.engine.sessions_active(),
                    "{error}; this process goes on with its sessions, and follows the store by itself"
                );
            }
            on_lost();
        }
    }

    fn follow(&mut self, stop: &StopSignal) -> Result<(), ChannelError> {
        loop {
            self.report_sessions()?;
            self.move_tunnels()?;
            self.progress.has_moved_all.store(true, Ordering::Release);
            self.report_sessions()?;
            let look_again_at = Instant::now() + LOOK_EVERY;
            while Instant::now() < look_again_at {
                if stop.is_stopped() {
                    return self.report_sessions();
                }
                let left = look_again_at.saturating_duration_since(Instant::now());
                if self.channel.wait(None, false, left.min(STOP_LOOK_EVERY))? {
                    self.serve_next()?;
                }
            }
        }
    }

    /// Moves all tunnels that can move.
    fn move_tunnels(&mut self) -> Result<(), ChannelError> {
        for thread in 0..self.engine.thread_count() {
            loop {
                let tunnels = self.engine.capture(thread, BATCH_MAX).map_err(busy)?;
                if tunnels.is_empty() {
                    break;
                }
                self.move_batch(tunnels)?;
            }
        }
        Ok(())
    }

    /// Moves a batch of tunnels; where that fails, they go on here.
    fn move_batch(&mut self, tunnels: Vec<MovedTunnel>) -> Result<(), ChannelError> {
        self.batch += 1;
        let count = tunnels.len() as u64;
        fault("capture");
        if let Err(error) = self.send_batch(&tunnels) {
            self.take_back(tunnels);
            return Err(error);
        }
        fault("sent");
        for tunnel in &tunnels {
            self.reported.remove(&tunnel.facts.session);
        }
        // From here on they are the new process's. Where this process dies before, the new one notices, and goes on.
        if let Err(error) = self.channel.send(&Traffic::Yours(self.batch), &[]) {
            self.take_back(tunnels);
            return Err(error);
        }
        drop(tunnels);
        self.progress.moved.fetch_add(count, Ordering::Relaxed);
        fault("moved");
        Ok(())
    }

    fn send_batch(&mut self, tunnels: &[MovedTunnel]) -> Result<(), ChannelError> {
        for tunnel in tunnels {
            send_tunnel(&self.channel, tunnel, &self.listeners)?;
        }
        self.channel.send(&Traffic::BatchEnd(self.batch), &[])?;
        let deadline = Instant::now() + BATCH_TIME_MAX;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(ChannelError::Late);
            }
            if self.channel.wait(None, false, left)?
                && let Some(batch) = self.serve_next()?
                && batch == self.batch
            {
                return Ok(());
            }
        }
    }

    fn take_back(&self, tunnels: Vec<MovedTunnel>) {
        let count = tunnels.len();
        match self.engine.adopt(tunnels) {
            Ok(()) => tracing::warn!(count, "tunnels could not be moved, and go on in this process"),
            Err(error) => tracing::error!(count, "tunnels could not be moved, and are lost: {error}"),
        }
    }

    /// Acts on the next message. Returns the batch that it acknowledges, where it does.
    fn serve_next(&mut self) -> Result<Option<u64>, ChannelError> {
        let Message::Traffic(traffic, _) = self.channel.receive()? else {
            return Err(ChannelError::NotUnderstood("a step after its time".to_owned()));
        };
        match traffic {
            Traffic::Got(batch) => return Ok(Some(batch)),
            Traffic::Judged(verdicts) => {
                // One that has moved meanwhile is not here any more.
                let here = verdicts.iter().map(|(session, verdict)| (*session, (*verdict).into()));
                self.engine.judge(here).map_err(busy)?;
                self.earlier.judge(verdicts);
            }
            Traffic::List { request } => self.send_rows(request)?,
            Traffic::Farewell => self.progress.has_said_farewell.store(true, Ordering::Release),
            Traffic::End { request, session } => {
                let was_found = self.end_session(session)?;
                self.channel.send(&Traffic::Ended { request, was_found }, &[])?;
            }
            _ => return Err(ChannelError::NotUnderstood("a message of the other side".to_owned())),
        }
        Ok(None)
    }

    fn send_rows(&self, request: u64) -> Result<(), ChannelError> {
        let rows = self.rows()?;
        let mut parts = rows.chunks(ROWS_MAX).peekable();
        if parts.peek().is_none() {
            return self.channel.send(&Traffic::Rows { request, rows: Vec::new(), is_last: true }, &[]);
        }
        while let Some(part) = parts.next() {
            let is_last = parts.peek().is_none();
            self.channel.send(&Traffic::Rows { request, rows: part.to_vec(), is_last }, &[])?;
        }
        Ok(())
    }

    fn end_session(&self, session: u64) -> Result<bool, ChannelError> {
        let mut pending = self.engine.end_session(session).map_err(busy)?;
        let ended = poll(|| pending.poll())?;
        if ended == EndResult::Ended {
            return Ok(true);
        }
        Ok(self.earlier.end(session).recv_timeout(ANSWER_TIME_MAX).unwrap_or(false))
    }

    /// Reports the sessions that are here, and those that are not any more.
    fn report_sessions(&mut self) -> Result<(), ChannelError> {
        let rows = self.rows()?;
        let here: HashSet<u64> = rows.iter().map(|row| row.facts.session).collect();
        let gone: Vec<u64> = self.reported.difference(&here).copied().collect();
        for part in gone.chunks(NUMBERS_MAX) {
            self.channel.send(&Traffic::Gone(part.to_vec()), &[])?;
        }
        // A session that has got its right since counts for its principal from then on.
        let is_new = |row: &&SessionRow| !self.reported.contains(&row.facts.session) || row.tunnel.is_none();
        let new: Vec<SessionRow> = rows.iter().filter(is_new).cloned().collect();
        for part in new.chunks(ROWS_MAX) {
            self.channel.send(&Traffic::Held(part.to_vec()), &[])?;
        }
        // Those without a tunnel are reported again until they have one.
        self.reported = here;
        Ok(())
    }

    /// The sessions of this process and of those before it.
    fn rows(&self) -> Result<Vec<SessionRow>, ChannelError> {
        let mut pending = self.engine.list_sessions().map_err(busy)?;
        let mut rows = poll(|| pending.poll())?.rows;
        if self.earlier.sessions() > 0 {
            rows.extend(self.earlier.list().recv_timeout(ANSWER_TIME_MAX).unwrap_or_default());
        }
        Ok(rows)
    }
}

/// Polls until an engine thread has answered.
fn poll<T>(mut poll: impl FnMut() -> Option<T>) -> Result<T, ChannelError> {
    let give_up_at = Instant::now() + ANSWER_TIME_MAX;
    loop {
        if let Some(answer) = poll() {
            return Ok(answer);
        }
        if Instant::now() >= give_up_at {
            return Err(ChannelError::Io(io::Error::other("an engine thread has not answered")));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn busy(error: EngineBusy) -> ChannelError {
    ChannelError::Io(io::Error::other(error))
}

/// A place where tests have the old process die; see [`super::predecessor::fault`].
fn fault(place: &str) {
    super::predecessor::fault(place);
}

/// Tunnels that are at rest at once, per thread. Few, so that none rests for long: a batch takes some milliseconds.
const BATCH_MAX: usize = 64;

/// Time in which the new process has to acknowledge a batch.
const BATCH_TIME_MAX: Duration = Duration::from_secs(5);

/// Time between two looks at the sessions that are left.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Time between two looks at whether the thread is to stop.
const STOP_LOOK_EVERY: Duration = Duration::from_millis(50);

/// Time in which an engine thread, or the process before this one, answers.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(3);
