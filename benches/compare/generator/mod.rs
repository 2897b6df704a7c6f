//! The load: clients and devices in one thread, on a core of their own.
//!
//! One thread plays both sides so that each relay has the other core to itself, whatever it is put to. It
//! copies as little as it can: bulk is taken off the sockets unread.

mod backend;
mod client;
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
use crate::works::{Pace, Work};
use client::Job;
use field::{Field, Pacing};

/// Where clients connect, and how they come through.
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
    #[error("only {opened} of {wanted} connections could be opened; the first error: {first}")]
    Opening { opened: usize, wanted: usize, first: String },
    #[error("nothing came through for {} s; the first error: {first}", STALL_MAX.as_secs())]
    Stalled { first: String },
    #[error("{errors} errors; the first: {first}")]
    Errors { errors: u64, first: String },
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

/// Puts what is at `target` to `work`. `rate` is what [`Pace::Open`] sends per second. The cost is that of
/// process `relay` and its children, over exactly the time that was measured.
pub fn measure(
    work: Work,
    rate: Option<f64>,
    target: &Target,
    backend: &mut Backend,
    relay: Option<u32>,
    timing: Timing,
) -> Result<(Load, Option<Cost>), MeasureError> {
    let mut field = Field::new(target, backend)?;
    let pacing = match work {
        Work::Bulk { direction, streams } => {
            field.open(streams, Job::Stream(direction))?;
            Pacing::Peers
        }
        Work::Exchange { bytes, connections, pace } => {
            field.open(connections, Job::Exchange { bytes })?;
            match (pace, rate) {
                (Pace::Open { .. }, Some(rate)) => field.open_loop(rate),
                _ => field.closed_loop()?,
            }
        }
        Work::NewTunnels { in_flight } => Pacing::NewTunnels { in_flight },
        Work::Mixed { streams, connections } => {
            // The exchanges are what is counted, and the first to open are the ones that are paced.
            field.open(connections, Job::Exchange { bytes: MIXED_BYTES })?;
            let pacing = field.closed_loop()?;
            field.open(streams, Job::Stream(crate::works::Direction::Down))?;
            pacing
        }
        Work::Idle { sessions } => return idle(field, sessions, relay, timing),
    };
    field.run(pacing, timing.warm_up)?;
    let before = Snapshot::of(relay)?;
    field.record();
    let seconds = field.run(pacing, timing.measure)?.as_secs_f64();
    let after = Snapshot::of(relay)?;
    Ok((field.into_load(seconds), Snapshot::cost(before, after)))
}

/// Opens sessions, uses each once, and looks at what the relay keeps of them.
fn idle(
    mut field: Field,
    sessions: usize,
    relay: Option<u32>,
    timing: Timing,
) -> Result<(Load, Option<Cost>), MeasureError> {
    field.keep_used();
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

/// Of an exchange beside streams.
const MIXED_BYTES: usize = 128;

/// Sessions that are there before the first that is counted.
const IDLE_WARM_UP: usize = 100;

/// For a relay to come to rest.
const SETTLE: Duration = Duration::from_secs(1);

/// Without a byte for this long, a work is given up.
const STALL_MAX: Duration = Duration::from_secs(10);
