//! Bounds how often an engine thread that has failed begins anew.
//!
//! A moment without memory, or a defect that few requests meet, costs the thread its sessions and no more. A thread that
//! fails again and again serves nobody, so the process ends, and its manager starts another.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// A thread that could not begin anew.
#[derive(Clone, Debug, thiserror::Error)]
#[error(
    "engine thread {thread} has failed {RESTARTS_MAX} times within {} s, last by: {error}; the relay ends, since that \
     thread serves nobody",
    WINDOW.as_secs()
)]
pub struct EngineFailure {
    pub thread: usize,
    /// The last error.
    pub error: String,
}

/// The recent restarts of one thread.
#[derive(Default)]
pub(in crate::engine) struct Restarts {
    at: VecDeque<Instant>,
}

impl Restarts {
    /// Records a try, after a pause that grows with the tries before it. False where there were too many.
    pub fn try_again(&mut self) -> bool {
        let earlier = self.count(Instant::now());
        if earlier >= RESTARTS_MAX {
            return false;
        }
        std::thread::sleep(PAUSE * earlier as u32);
        self.at.push_back(Instant::now());
        true
    }

    fn count(&mut self, now: Instant) -> usize {
        self.at.retain(|at| now.duration_since(*at) < WINDOW);
        self.at.len()
    }
}

/// Tries within [`WINDOW`]. With their pauses, a want of memory may last three seconds.
const RESTARTS_MAX: usize = 5;

const WINDOW: Duration = Duration::from_secs(60);

/// Pause before the second try; each further one is as much longer.
const PAUSE: Duration = Duration::from_millis(300);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_begins_anew_a_few_times_in_a_minute_and_again_when_that_is_over() {
        let mut restarts = Restarts::default();
        let now = Instant::now();
        restarts.at = std::iter::repeat_n(now, RESTARTS_MAX).collect();
        assert!(!restarts.try_again());
        assert_eq!(restarts.count(now + WINDOW), 0);
        assert!(restarts.try_again());
    }
}
