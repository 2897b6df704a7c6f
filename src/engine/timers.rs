//! Time in the engine: the instant of a turn, and the tick as the unit of deadlines.

use std::time::Duration;

use crate::authz::UnixMillis;

/// The thread's clocks, read once per turn.
#[derive(Clone, Copy, Debug)]
pub(super) struct Instant {
    /// Time since the machine started, in µs; every process of the machine has the same.
    pub monotonic_us: u64,
    /// Time for people to read.
    pub wall: UnixMillis,
    /// Time by which rights expire: `wall`, or the latest time that the node has seen where the clock was set back.
    pub latest: UnixMillis,
}

/// Milliseconds since the machine started.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Tick(pub u64);

impl Tick {
    /// A time that does not come.
    pub const NEVER: Self = Self(u64::MAX);

    /// The tick that is `duration` later.
    pub fn after(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)))
    }
}

impl Instant {
    pub fn tick(self) -> Tick {
        Tick(self.monotonic_us / 1000)
    }

    /// The tick after `duration`, rounded up.
    pub fn after(self, duration: Duration) -> Tick {
        Tick(self.tick().after(duration).0.saturating_add(1))
    }

    pub fn us_since(self, earlier_us: u64) -> u64 {
        self.monotonic_us.saturating_sub(earlier_us)
    }
}
