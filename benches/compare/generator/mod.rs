//! The load: clients and devices in one thread, on a core of their own.
//!
//! One thread plays both sides so that each relay has the other core to itself, whatever it is put to. It
//! copies as little as it can: bulk is sent out of a file's pages, and taken off the sockets unread.

mod backend;
mod buffers;
mod client;
mod exchange;
mod field;
mod poller;
mod socket;
mod tally;

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use socket2::Socket;

use crate::process::Snapshot;
use crate::record::{Cost, Load};
use crate::works::{Direction, Pace, Work};
use client::Job;
use field::{Field, Pacing, Used};

/// The address that clients connect to, with the way through it.
pub struct Target {
    pub address: SocketAddr,
    pub opening: Opening,
}

pub enum Opening {
    /// Straight to the backend, or through a relay that asks nothing.
    Plain,
    /// An HTTP CONNECT with a token, answered by 200.
    Connect { uuid: String, token: String },
}

pub struct Timing {
    pub warm_up: Duration,
    pub measure: Duration,
}

/// The listener that relays forward to. Served only while something is measured.
pub struct Backend {
    listener: Socket,
    address: SocketAddr,
}

#[derive(Debug, thiserror::Error)]
pub enum MeasureError {
    #[error("the generator failed: {0}")]
    Generator(#[from] io::Error),
    #[error("only {opened} of {wanted} connections could be opened; {hint}")]
    Opening { opened: usize, wanted: usize, hint: String },
    #[error("nothing came through for {seconds:.1} s; {hint}")]
    Nothing { seconds: f64, hint: String },
    #[error("{errors} errors; {hint}")]
    Errors { errors: u64, hint: String },
    #[error("an open loop needs to be told its rate")]
    NoRate,
    #[error("the relay's process cannot be looked at: {0}")]
    Process(io::Error),
}

impl Backend {
    pub fn start() -> io::Result<Self> {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
        let listener = socket::listen()?;
        let address = listener.local_addr()?.as_socket().ok_or(io::ErrorKind::Unsupported)?;
        Ok(Self { listener, address })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// Puts what is at `target` to `work`. `rate` is how many messages are due per second for [`Pace::Open`]. The
/// cost is that of process `relay` and its children, over exactly the time that was measured.
pub fn measure(
    work: Work,
    rate: Option<f64>,
    target: &Target,
    backend: &mut Backend,
    relay: Option<u32>,
    timing: Timing,
) -> Result<(Load, Option<Cost>), MeasureError> {
    let (message_bytes, used) = match work {
        Work::Exchange { bytes, .. } => (bytes, Used::Close),
        Work::Mixed { .. } => (MIXED_BYTES, Used::Close),
        Work::Idle { .. } => (0, Used::Keep),
        Work::Bulk { .. } | Work::NewTunnels { .. } => (0, Used::Close),
    };
    let mut field = Field::new(target, backend, message_bytes, used)?;
    let pacing = match work {
        Work::Bulk { direction, streams } => {
            field.open(streams, Job::Stream(direction))?;
            Pacing::Streams
        }
        Work::Exchange { bytes, connections, pace } => {
            field.open(connections, Job::Exchange { bytes })?;
            match pace {
                Pace::Open { .. } => Pacing::Schedule { rate: rate.ok_or(MeasureError::NoRate)? },
                Pace::Closed => {
                    field.begin_exchanges();
                    Pacing::Answers
                }
            }
        }
        Work::NewTunnels { in_flight } => Pacing::NewTunnels { in_flight },
        Work::Mixed { streams, connections } => {
            field.open(connections, Job::Exchange { bytes: MIXED_BYTES })?;
            field.begin_exchanges();
            field.open(streams, Job::Stream(Direction::Down))?;
            Pacing::Answers
        }
        Work::Idle { sessions } => return idle(field, sessions, relay, timing),
    };
    field.run(pacing, timing.warm_up)?;
    let before = Snapshot::of(relay)?;
    field.record();
    let seconds = field.run(pacing, timing.measure)?.as_secs_f64();
    let after = Snapshot::of(relay)?;
    if let Pacing::Schedule { .. } = pacing {
        field.await_answers()?;
    }
    let hint = field.hint();
    let mut load = field.into_load(seconds);
    if load.bytes == 0 && load.exchanges == 0 {
        return Err(MeasureError::Nothing { seconds, hint });
    }
    load.bytes += load.exchanges * payload_of_exchange(work);
    Ok((load, Snapshot::cost(before, after)))
}

/// Bytes both ways that come with each exchange, and are not counted one by one.
fn payload_of_exchange(work: Work) -> u64 {
    match work {
        Work::Exchange { bytes, .. } => 2 * bytes as u64,
        Work::NewTunnels { .. } => 2,
        Work::Bulk { .. } | Work::Mixed { .. } | Work::Idle { .. } => 0,
    }
}

/// Opens sessions, uses each once, and looks at what the relay keeps of them.
fn idle(
    mut field: Field,
    sessions: usize,
    relay: Option<u32>,
    timing: Timing,
) -> Result<(Load, Option<Cost>), MeasureError> {
    // What a relay sets up with its first sessions is not theirs.
    field.open(IDLE_WARM_UP, Job::Once)?;
    field.run(Pacing::Idle, SETTLE)?;
    let empty = Snapshot::of(relay)?;
    field.open(sessions, Job::Once)?;
    field.run(Pacing::Idle, SETTLE)?;
    let before = Snapshot::of(relay)?;
    let seconds = field.run(Pacing::Idle, timing.measure)?.as_secs_f64();
    let after = Snapshot::of(relay)?;
    let rss_kib = |snapshot: &Option<Snapshot>| snapshot.as_ref().map_or(0, |snapshot| snapshot.rss_kib);
    let grown_kib = rss_kib(&before) as f64 - rss_kib(&empty) as f64;
    let cost = Snapshot::cost(before, after).map(|cost| Cost {
        rss_kib_per_session: Some(grown_kib / sessions as f64),
        idle_cpu_share: Some((cost.cpu_user_seconds + cost.cpu_system_seconds) / seconds),
        ..cost
    });
    Ok((field.into_load(seconds), cost))
}

/// Bytes of a message that is exchanged beside streams.
const MIXED_BYTES: usize = 128;

/// Sessions that are there before the first that is counted.
const IDLE_WARM_UP: usize = 100;

/// Pause in which a relay comes to rest.
const SETTLE: Duration = Duration::from_secs(1);

/// Silence after which a work is given up.
const STALL_MAX: Duration = Duration::from_secs(10);
