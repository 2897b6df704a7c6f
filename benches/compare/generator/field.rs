//! Everything that one work is done with: its clients, the backend's side of them, and what they tally.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use socket2::Socket;

use super::backend::{self, Served};
use super::client::{self, Client, Job, OpeningBytes};
use super::poller::{Interest, Key, Poller, Ready};
use super::tally::Tally;
use super::{Backend, MeasureError, STALL_MAX, Target, socket};
use crate::record::Load;

pub struct Field {
    poller: Poller<Peer>,
    ready: Vec<Ready>,
    /// What is sent, and where what is received goes.
    scratch: Box<[u8]>,
    tally: Tally,
    opening: OpeningBytes,
    address: std::net::SocketAddr,
    clients_begun: u64,
    /// Begun and not yet through.
    in_flight: usize,
    /// Clients whose tunnel is open, in the order in which they opened.
    open: Vec<Key>,
    /// Clients that are done with [`Job::Once`] stay connected.
    keeps_used: bool,
}

/// What keeps the clients going.
#[derive(Clone, Copy, Debug)]
pub enum Pacing {
    /// Each goes on by itself.
    Peers,
    /// A message is due every so many nanoseconds, by turns on the first so many of the open clients.
    Open { interval_ns: f64, began_ns: u64, clients: usize },
    /// So many are always being opened.
    NewTunnels { in_flight: usize },
    /// Nothing is supposed to move.
    Idle,
}

enum Peer {
    Listener(Socket),
    Served(Served),
    Client(Client),
}

impl Field {
    pub fn new(target: &Target, backend: &Backend) -> Result<Self, MeasureError> {
        let mut poller = Poller::new()?;
        poller.add(Peer::Listener(backend.listener.try_clone()?), Interest::Readable)?;
        Ok(Self {
            poller,
            ready: Vec::new(),
            scratch: vec![b'.'; SCRATCH_BYTES].into_boxed_slice(),
            tally: Tally::new(),
            opening: OpeningBytes::new(&target.opening, backend.address.port()),
            address: target.address,
            clients_begun: 0,
            in_flight: 0,
            open: Vec::new(),
            keeps_used: false,
        })
    }

    pub fn keep_used(&mut self) {
        self.keeps_used = true;
    }

    /// From now on what arrives counts.
    pub fn record(&mut self) {
        self.tally.record();
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
            let is_stuck = now_ns - progressed_ns > STALL_MAX.as_nanos() as u64;
            if is_stuck || self.tally.errors() > 0 {
                let first = self.first_error();
                return Err(MeasureError::Opening { opened: self.open.len(), wanted, first });
            }
        }
        Ok(())
    }

    /// Every open client begins to exchange, and goes on by itself.
    pub fn closed_loop(&mut self) -> Result<Pacing, MeasureError> {
        self.tally.is_closed_loop = true;
        let now_ns = self.tally.now_ns();
        for place in 0..self.open.len() {
            self.owe(place, now_ns);
        }
        Ok(Pacing::Peers)
    }

    /// Messages are due `rate` times a second, from now on, by turns on the open clients.
    pub fn open_loop(&mut self, rate: f64) -> Pacing {
        Pacing::Open { interval_ns: 1e9 / rate, began_ns: self.tally.now_ns(), clients: self.open.len() }
    }

    /// Goes on for `duration`; gives how long it was exactly.
    pub fn run(&mut self, pacing: Pacing, duration: Duration) -> Result<Duration, MeasureError> {
        let began_ns = self.tally.now_ns();
        self.tally.progress_ns = began_ns;
        let mut now_ns = began_ns;
        while now_ns - began_ns < duration.as_nanos() as u64 {
            let patience_ms = self.pace(pacing, now_ns)?;
            self.turn(patience_ms)?;
            now_ns = self.tally.now_ns();
            let is_idle = matches!(pacing, Pacing::Idle);
            if !is_idle && now_ns.saturating_sub(self.tally.progress_ns) > STALL_MAX.as_nanos() as u64 {
                return Err(MeasureError::Stalled { first: self.first_error() });
            }
            if self.tally.errors() > ERRORS_MAX {
                return Err(MeasureError::Errors { errors: self.tally.errors(), first: self.first_error() });
            }
        }
        Ok(Duration::from_nanos(now_ns - began_ns))
    }

    pub fn into_load(self, seconds: f64) -> Load {
        self.tally.into_load(seconds)
    }

    /// Begins what is due at `now_ns`; how long the next wait may be.
    fn pace(&mut self, pacing: Pacing, now_ns: u64) -> Result<u8, MeasureError> {
        match pacing {
            Pacing::Peers | Pacing::Idle => Ok(PATIENCE_MS),
            Pacing::NewTunnels { in_flight } => {
                while self.in_flight < in_flight {
                    self.begin_client(Job::Once)?;
                }
                Ok(PATIENCE_MS)
            }
            Pacing::Open { interval_ns, began_ns, clients } => {
                let due = ((now_ns - began_ns) as f64 / interval_ns) as u64;
                while self.tally.owed < due {
                    let due_ns = began_ns + (self.tally.owed as f64 * interval_ns) as u64;
                    self.owe((self.tally.owed % clients as u64) as usize, due_ns);
                    self.tally.owed += 1;
                }
                // The core is ours: looking on keeps to the schedule better than any sleep.
                Ok(0)
            }
        }
    }

    fn owe(&mut self, place: usize, due_ns: u64) {
        let key = self.open[place];
        let Some(Peer::Client(client)) = self.poller.get_mut(key) else { return };
        match client.owe(due_ns, &mut self.scratch) {
            Ok(true) => {}
            Ok(false) => self.tally.failed("messages were due faster than answers came".to_owned()),
            Err(error) => {
                self.tally.failed(error);
                self.poller.remove(key);
            }
        }
    }

    fn begin_client(&mut self, job: Job) -> Result<(), MeasureError> {
        self.clients_begun += 1;
        let socket = socket::connect(self.address, self.clients_begun)?;
        let client = Client::new(socket, job, self.tally.now_ns());
        self.poller.add(Peer::Client(client), Interest::Edges)?;
        self.in_flight += 1;
        Ok(())
    }

    fn turn(&mut self, patience_ms: u8) -> Result<(), MeasureError> {
        let mut ready = std::mem::take(&mut self.ready);
        self.poller.wait(patience_ms, &mut ready)?;
        for &one in &ready {
            match self.poller.get_mut(one.key) {
                None => {}
                Some(Peer::Listener(listener)) => {
                    let accepted = listener.accept().ok().and_then(|(socket, _)| Served::new(socket).ok());
                    if let Some(served) = accepted {
                        self.poller.add(Peer::Served(served), Interest::Edges)?;
                    }
                }
                Some(Peer::Served(served)) => match served.serve(one, &mut self.scratch) {
                    backend::Step::Goes { bulk_bytes } => self.tally.arrived(bulk_bytes),
                    backend::Step::Wants(interest) => self.poller.set_interest(one.key, interest)?,
                    backend::Step::Over => drop(self.poller.remove(one.key)),
                },
                Some(Peer::Client(client)) => {
                    let was_open = client.is_open();
                    let step = client.act(one, &self.opening, &mut self.scratch, &mut self.tally);
                    self.after(one.key, was_open, step)?;
                }
            }
        }
        self.ready = ready;
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
            Ok(client::Step::Done) if self.keeps_used => self.open.push(key),
            Ok(client::Step::Done) => drop(self.poller.remove(key)),
            Err(error) => {
                self.tally.failed(error);
                self.poller.remove(key);
            }
        }
        self.in_flight -= usize::from(!was_open);
        Ok(())
    }

    fn first_error(&self) -> String {
        self.tally.first_error().unwrap_or("none").to_owned()
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

/// Errors of one run after which it is given up.
const ERRORS_MAX: u64 = 1_000;

/// How long a wait for readiness may take, so that the end of a run is not missed.
const PATIENCE_MS: u8 = 10;

/// As much as a 256 KiB pipe takes, and more than the largest message.
const SCRATCH_BYTES: usize = 256 * 1024;
