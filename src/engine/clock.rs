//! The clocks of an engine thread.

use super::kernel::thread::ThreadKernel;
use super::timers::Instant;
use crate::authz::{Authority, UnixMillis};

pub(super) struct Clock {
    /// Lead of the wall clock over the monotonic one when timers were last in step with it, in ms.
    lead_ms: i64,
}

impl Clock {
    pub fn start(kernel: &impl ThreadKernel) -> Self {
        Self { lead_ms: lead_ms(kernel.monotonic_us(), kernel.wall_time()) }
    }

    pub fn read(&self, kernel: &impl ThreadKernel, authority: &Authority) -> Instant {
        let wall = kernel.wall_time();
        Instant { monotonic_us: kernel.monotonic_us(), wall, latest: authority.time(wall) }
    }

    /// Returns whether the wall clock has gained on the monotonic one since the last time, by which timers run: somebody
    /// set it forward, the machine slept, or it runs fast. Rights may have expired long before their timers fire.
    pub fn has_gained(&mut self, now: Instant) -> bool {
        let lead_ms = lead_ms(now.monotonic_us, now.wall);
        let has_gained = lead_ms.saturating_sub(self.lead_ms) >= GAIN_MS;
        // One that lost ends nothing. Timers that fire too early for it are set again.
        if has_gained || lead_ms < self.lead_ms {
            self.lead_ms = lead_ms;
        }
        has_gained
    }
}

fn lead_ms(monotonic_us: u64, wall: UnixMillis) -> i64 {
    wall.0.saturating_sub(i64::try_from(monotonic_us / 1000).unwrap_or(i64::MAX))
}

/// Gain that is worth a look at every tunnel. Small against a second, and far more than the two clocks are read apart.
const GAIN_MS: i64 = 200;

#[cfg(test)]
mod tests {
    use super::*;

    fn instant(monotonic_ms: u64, wall_ms: i64) -> Instant {
        Instant { monotonic_us: monotonic_ms * 1000, wall: UnixMillis(wall_ms), latest: UnixMillis(wall_ms) }
    }

    #[test]
    fn a_step_a_suspend_and_a_clock_that_runs_fast_are_each_noticed_once() {
        let mut clock = Clock { lead_ms: 1_000_000 };
        let shown =
            [(0, 1_000_000), (500, 1_000_500), (1_000, 1_001_100), (1_500, 1_001_700), (2_000, 1_002_200)];
        let noticed = shown.map(|(monotonic, wall)| clock.has_gained(instant(monotonic, wall)));
        assert_eq!(noticed, [false, false, false, true, false]);
        assert!(clock.has_gained(instant(2_001, 9_000_000)));
        assert!(!clock.has_gained(instant(2_002, 9_000_001)));
        // Set back, and forward again: what expired in between may be due.
        assert!(!clock.has_gained(instant(2_003, 1_000_000)));
        assert!(clock.has_gained(instant(2_004, 9_000_000)));
    }
}
