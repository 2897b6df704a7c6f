//! Everything that one work is done with: its clients, the backend's side of them, and what they tally.

use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use socket2::Socket;

use super::backend::{self, Served};
use super::buffers::Buffers;
use super::client::{self, Client, Job, OpeningBytes};
use super::poller::{Interest, Key, Poller, Ready};
use super::tally::Tally;
use super::{Backend, MeasureError, STALL_MAX, Target, socket};
use crate::record::Load;

pub struct Field {
    poller: Poller<Peer>,
    ready: Vec<Ready>,
    buffers: Buffers,
    tally: Tally,
    opening: OpeningBytes,
    address: SocketAddr,
    clients_begun: u64,
    /// Begun and not yet through.
    in_flight: usize,
    /// Clients whose tunnel is open, in the order in which they opened.
    open: Vec<Key>,
    used: Used,
}

/// The fate of clients that are done with [`Job::Once`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Used {
    Close,
    Keep,
}

/// The pacing of the clients.
#[derive(Clone, Copy, Debug)]
pub enum Pacing {
    /// Each stream goes on by itself.
    Streams,
    /// So does each exchange: an answer makes the next message due.
    Answers,
    /// So many messages are due each second, by turns on the open clients.
    Schedule { rate: f64 },
    /// So many are always being opened.
    NewTunnels { in_flight: usize },
    /// Nothing is supposed to move.
    Idle,
}

/// Messages that are due at an even rate.
struct Schedule {
    began_ns: u64,
    interval_ns: f64,
    /// Messages that have been due so far.
    owed: u64,
}

enum Peer {
    Listener(Socket),
    Served(Served),
    Client(Client),
}

impl Field {
    /// Makes buffers for messages of up to `message_bytes`.
    pub fn new(
        target: &Target,
        backend: &Backend,
        message_bytes: usize,
        used: Used,
    ) -> Result<Self, MeasureError> {
        let mut poller = Poller::new()?;
        poller.add(Peer::Listener(backend.listener.try_clone()?), Interest::Readable)?;
        Ok(Self {
            poller,
            ready: Vec::new(),
            buffers: Buffers::new(message_bytes)?,
            tally: Tally::new(),
            opening: OpeningBytes::new(&target.opening, backend.address.port()),
            address: target.address,
            clients_begun: 0,
            in_flight: 0,
            open: Vec::new(),
            used,
        })
    }

    /// Opens `count` clients more, a few at a time, and returns when all are through.
    pub fn open(&mut self, count: usize, job: Job) -> Result<(), MeasureError> {
        let wanted = self.open.len() + count;
        let mut begun = 0;
        let mut progressed_ns = self.tally.now_ns();
        while self.open.len() < wanted {
            while begun < count && self.in_flight < OPENING_MAX {
                self.begin_client(job)?;
                begun += 1;
            }
            let opened = self.open.len();
            self.turn(PATIENCE_MS)?;
            let now_ns = self.tally.now_ns();
            if self.open.len() > opened {
                progressed_ns = now_ns;
            }
            if self.tally.errors() > 0 || now_ns - progressed_ns > STALL_MAX.as_nanos() as u64 {
                let hint = self.hint();
                return Err(MeasureError::Opening { opened: self.open.len(), wanted, hint });
            }
        }
        Ok(())
    }

    /// Every open client begins to exchange, and goes on by itself.
    pub fn begin_exchanges(&mut self) {
        let now_ns = self.tally.now_ns() as f64;
        for place in 0..self.open.len() {
            self.follow(place, now_ns, 0.0);
            self.owe(place);
        }
    }

    /// Starts to count what arrives.
    pub fn record(&mut self) {
        self.tally.record();
    }

    /// Goes on for `duration`; gives how long it was exactly.
    pub fn run(&mut self, pacing: Pacing, duration: Duration) -> Result<Duration, MeasureError> {
        let began_ns = self.tally.now_ns();
        let mut schedule = match pacing {
            Pacing::Schedule { rate } => Some(self.begin_schedule(rate, began_ns)),
            _ => None,
        };
        self.tally.progress_ns = began_ns;
        let mut now_ns = began_ns;
        while now_ns - began_ns < duration.as_nanos() as u64 {
            if let Pacing::NewTunnels { in_flight } = pacing {
                self.keep_in_flight(in_flight)?;
            }
            if let Some(schedule) = &mut schedule {
                self.owe_what_is_due(schedule, now_ns);
            }
            self.turn(pacing.patience_ms())?;
            now_ns = self.tally.now_ns();
            let still_ns = now_ns.saturating_sub(self.tally.progress_ns);
            if !matches!(pacing, Pacing::Idle) && still_ns > STALL_MAX.as_nanos() as u64 {
                return Err(MeasureError::Nothing { seconds: STALL_MAX.as_secs_f64(), hint: self.hint() });
            }
            if self.tally.errors() > ERRORS_MAX {
                return Err(MeasureError::Errors { errors: self.tally.errors(), hint: self.hint() });
            }
        }
        Ok(Duration::from_nanos(now_ns - began_ns))
    }

    /// Waits a while for answers to what was due by a schedule while it was recorded. What stays
    /// unanswered has waited as long as that at least: a stall at the end must not go unseen.
    pub fn await_answers(&mut self) -> Result<(), MeasureError> {
        let give_up_ns = self.tally.now_ns() + ANSWER_PATIENCE.as_nanos() as u64;
        let mut unanswered = self.unanswered();
        while !unanswered.is_empty() && self.tally.now_ns() < give_up_ns {
            self.turn(PATIENCE_MS)?;
            unanswered = self.unanswered();
        }
        for due_ns in unanswered {
            self.tally.unanswered(due_ns);
        }
        Ok(())
    }

    pub fn into_load(self, seconds: f64) -> Load {
        self.tally.into_load(seconds)
    }

    /// A possible cause, for the error when something did not happen.
    pub fn hint(&self) -> String {
        match self.tally.first_error() {
            Some(error) => format!("the first error: {error}"),
            None => "no connection failed".to_owned(),
        }
    }

    fn begin_schedule(&mut self, rate: f64, began_ns: u64) -> Schedule {
        self.tally.is_scheduled = true;
        let interval_ns = 1e9 / rate;
        let clients = self.open.len();
        for place in 0..clients {
            self.follow(place, began_ns as f64 + place as f64 * interval_ns, clients as f64 * interval_ns);
        }
        Schedule { began_ns, interval_ns, owed: 0 }
    }

    fn owe_what_is_due(&mut self, schedule: &mut Schedule, now_ns: u64) {
        let due = ((now_ns - schedule.began_ns) as f64 / schedule.interval_ns) as u64;
        while schedule.owed < due {
            self.owe((schedule.owed % self.open.len() as u64) as usize);
            schedule.owed += 1;
        }
    }

    fn follow(&mut self, place: usize, due_ns: f64, step_ns: f64) {
        if let Some(Peer::Client(client)) = self.poller.get_mut(self.open[place]) {
            client.exchange.follow(due_ns, step_ns);
        }
    }

    fn owe(&mut self, place: usize) {
        let key = self.open[place];
        // One that broke has been counted as an error then.
        let Some(Peer::Client(client)) = self.poller.get_mut(key) else { return };
        if let Err(error) = client.owe(&mut self.buffers) {
            self.tally.failed(error);
            self.poller.remove(key);
        }
    }

    fn unanswered(&mut self) -> Vec<u64> {
        let since_ns = self.tally.since_ns();
        let mut unanswered = Vec::new();
        for &key in &self.open {
            if let Some(Peer::Client(client)) = self.poller.get_mut(key) {
                unanswered.extend(client.exchange.unanswered(since_ns));
            }
        }
        unanswered
    }

    fn keep_in_flight(&mut self, in_flight: usize) -> Result<(), MeasureError> {
        // One that fails at once is not followed by another one in the same turn.
        for _ in self.in_flight..in_flight {
            self.begin_client(Job::Once)?;
        }
        Ok(())
    }

    fn begin_client(&mut self, job: Job) -> Result<(), MeasureError> {
        self.clients_begun += 1;
        match socket::connect(self.address, self.clients_begun) {
            Ok(socket) => {
                let client = Client::new(socket, self.clients_begun, job, self.tally.now_ns());
                self.poller.add(Peer::Client(client), Interest::Edges)?;
                self.in_flight += 1;
            }
            Err(error) => self.tally.failed(client::could_not_connect(&error)),
        }
        Ok(())
    }

    fn turn(&mut self, patience_ms: u8) -> Result<(), MeasureError> {
        let mut ready = std::mem::take(&mut self.ready);
        self.poller.wait(patience_ms, &mut ready)?;
        for &one in &ready {
            match self.poller.get_mut(one.key) {
                None => {}
                Some(Peer::Listener(_)) => self.accept(one.key)?,
                Some(Peer::Served(served)) => match served.serve(one, &mut self.buffers) {
                    backend::Step::Goes { bulk_bytes } => self.tally.arrived(bulk_bytes),
                    backend::Step::Wants(interest) => self.poller.set_interest(one.key, interest)?,
                    backend::Step::Over => drop(self.poller.remove(one.key)),
                },
                Some(Peer::Client(client)) => {
                    let was_open = client.is_open();
                    let step = client.act(one, &self.opening, &mut self.buffers, &mut self.tally);
                    self.after(one.key, was_open, step)?;
                }
            }
        }
        self.ready = ready;
        Ok(())
    }

    fn accept(&mut self, listener: Key) -> Result<(), MeasureError> {
        for _ in 0..ACCEPTS_PER_TURN {
            let Some(Peer::Listener(socket)) = self.poller.get_mut(listener) else { break };
            match socket::accept(socket) {
                Ok(Some(socket)) => self.poller.add(Peer::Served(Served::new(socket)), Interest::Edges)?,
                Ok(None) => break,
                Err(error) => return Err(MeasureError::Generator(error)),
            };
        }
        Ok(())
    }

    fn after(
        &mut self,
        key: Key,
        was_open: bool,
        step: Result<client::Step, String>,
    ) -> Result<(), MeasureError> {
        match step {
            Ok(client::Step::Goes) => return Ok(()),
            Ok(client::Step::Opened(interest)) => {
                self.open.push(key);
                if interest != Interest::Edges {
                    self.poller.set_interest(key, interest)?;
                }
            }
            Ok(client::Step::Done) if self.used == Used::Keep => self.open.push(key),
            Ok(client::Step::Done) => drop(self.poller.remove(key)),
            Err(error) => {
                self.tally.failed(error);
                self.poller.remove(key);
            }
        }
        self.in_flight -= usize::from(!was_open);
        Ok(())
    }
}

impl Pacing {
    /// Longest wait for readiness.
    fn patience_ms(self) -> u8 {
        match self {
            // The core is ours. By looking on all the time we keep to the schedule, and what is measured is how
            // long a relay takes to wake up, not how long we do.
            Self::Answers | Self::Schedule { .. } | Self::NewTunnels { .. } => 0,
            // That would cut streams into smaller pieces than anybody who sleeps gets.
            Self::Streams | Self::Idle => PATIENCE_MS,
        }
    }
}

impl AsFd for Peer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Listener(socket) => socket.as_fd(),
            Self::Served(served) => served.as_fd(),
            Self::Client(client) => client.as_fd(),
        }
    }
}

/// Clients that are being opened at a time, where a work does not say how many.
const OPENING_MAX: usize = 64;

/// Connections that the backend takes before others have their turn.
const ACCEPTS_PER_TURN: usize = 64;

/// Errors of one run after which it is given up.
const ERRORS_MAX: u64 = 1_000;

/// Short enough that the end of a run is not missed.
const PATIENCE_MS: u8 = 10;

/// Longest wait at the end for answers that are still out.
const ANSWER_PATIENCE: Duration = Duration::from_secs(2);
