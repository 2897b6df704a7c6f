//! The machine's monotonic clock, which every process reads alike.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// Time since the machine started, in µs, without the time that it slept.
pub fn monotonic_us() -> u64 {
    // The clock is there on every Linux, so the call cannot fail.
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |time| Duration::from(time).as_micros() as u64)
}
