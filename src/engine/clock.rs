//! The clock of an engine thread.

use super::timers::Instant;
use crate::authz::UnixMillis;

pub(super) struct Clock {
    began: std::time::Instant,
}

impl Clock {
    pub fn start() -> Self {
        Self { began: std::time::Instant::now() }
    }

    pub fn read(&self) -> Instant {
        let elapsed = self.began.elapsed();
        Instant { monotonic_us: elapsed.as_micros() as u64, wall: UnixMillis::now() }
    }
}
