//! The latest wall time that this node has seen, so that a clock that is set back revives nothing that has expired.
//!
//! A clock that is far ahead for a moment must not end every right for as long: a jump of more than a day counts in
//! decisions at once, and is kept only once the clock has stood there for a while. A smaller one is kept at once, which
//! can end rights early by a day at most.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::UnixMillis;
// Not those that loom explores: nothing is ordered by this time, and each of its values is as good as the next.
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

/// Shared by all threads that decide. To read it costs a load, and a store once per millisecond.
pub(super) struct LatestTime {
    kept_ms: AtomicI64,
    began: Instant,
    /// An earlier process has kept a time.
    is_restored: AtomicBool,
    jump: Mutex<Option<ClockJump>>,
}

/// A clock far ahead of the time that is kept, by the time since `began`.
struct ClockJump {
    to: UnixMillis,
    since: Duration,
    seen_at: Duration,
}

impl LatestTime {
    pub(super) fn new() -> Self {
        Self {
            kept_ms: AtomicI64::new(i64::MIN),
            began: Instant::now(),
            is_restored: AtomicBool::new(false),
            jump: Mutex::default(),
        }
    }

    /// The time by which rights expire while the wall clock shows `now`.
    #[inline]
    pub(super) fn at(&self, now: UnixMillis) -> UnixMillis {
        let kept_ms = self.kept_ms.load(Ordering::Relaxed);
        if now.0 <= kept_ms {
            return UnixMillis(kept_ms);
        }
        self.advance(now, kept_ms, || self.began.elapsed());
        now
    }

    /// The time to be kept for the next process; `None` while the clock could still be one that was never right: for
    /// [`JUMP_STANDS`] after a start with nothing kept.
    pub(super) fn to_keep(&self) -> Option<UnixMillis> {
        let is_proved = self.is_restored.load(Ordering::Relaxed) || self.began.elapsed() >= JUMP_STANDS;
        let kept_ms = self.kept_ms.load(Ordering::Relaxed);
        (is_proved && kept_ms != i64::MIN).then_some(UnixMillis(kept_ms))
    }

    pub(super) fn restore(&self, kept: UnixMillis) {
        self.is_restored.store(true, Ordering::Relaxed);
        self.kept_ms.fetch_max(kept.0, Ordering::Relaxed);
    }

    #[inline(never)]
    fn advance(&self, now: UnixMillis, kept_ms: i64, since_began: impl Fn() -> Duration) {
        if kept_ms == i64::MIN || now.0.saturating_sub(kept_ms) <= JUMP_MAX_MS {
            self.kept_ms.fetch_max(now.0, Ordering::Relaxed);
            return;
        }
        // Another thread that is here sees the same jump.
        let Some(mut jump) = self.jump.try_lock() else { return };
        let at = since_began();
        match &mut *jump {
            Some(jump) if now >= jump.to && at.saturating_sub(jump.seen_at) <= JUMP_SEEN_EVERY => {
                jump.seen_at = at;
                if at.saturating_sub(jump.since) >= JUMP_STANDS {
                    self.kept_ms.fetch_max(now.0, Ordering::Relaxed);
                }
            }
            jump => *jump = Some(ClockJump { to: now, since: at, seen_at: at }),
        }
    }
}

/// Largest jump that is kept at once, in ms: a day. More is a clock that was set wrong, or a machine that slept for days.
const JUMP_MAX_MS: i64 = 24 * 60 * 60 * 1000;

/// Time that a larger jump has to stand before it is kept. Longer than a machine that starts with a wrong clock takes to
/// set it.
const JUMP_STANDS: Duration = Duration::from_secs(600);

/// Longest time between two looks at a clock for which it counts as having stood still ahead.
const JUMP_SEEN_EVERY: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    const NOON: i64 = 1_800_000_000_000;
    const HOUR: i64 = 3_600_000;
    const YEAR: i64 = 365 * 24 * HOUR;

    fn at(latest: &LatestTime, ms: i64) -> i64 {
        latest.at(UnixMillis(ms)).0
    }

    /// Shows the clock for `seconds`, once a second, beginning `from` seconds after the start.
    fn stand(latest: &LatestTime, ms: i64, from: u64, seconds: u64) {
        for second in from..=from + seconds {
            let kept_ms = latest.kept_ms.load(Ordering::Relaxed);
            latest.advance(UnixMillis(ms), kept_ms, || Duration::from_secs(second));
        }
    }

    #[test]
    fn a_clock_that_is_set_back_changes_nothing_until_it_has_caught_up() {
        let latest = LatestTime::new();
        let shown = [NOON, NOON + 1, NOON + HOUR, NOON, NOON + HOUR - 1, NOON + HOUR + 1];
        let times = shown.map(|ms| at(&latest, ms));
        let expected = [NOON, NOON + 1, NOON + HOUR, NOON + HOUR, NOON + HOUR, NOON + HOUR + 1];
        assert_eq!(times, expected);
    }

    #[test]
    fn a_jump_of_a_day_is_kept_at_once_and_a_larger_one_counts_only_while_it_lasts() {
        let latest = LatestTime::new();
        at(&latest, NOON);
        assert_eq!(at(&latest, NOON + JUMP_MAX_MS), NOON + JUMP_MAX_MS);
        assert_eq!(at(&latest, NOON), NOON + JUMP_MAX_MS);
        assert_eq!(at(&latest, NOON + YEAR), NOON + YEAR);
        assert_eq!(at(&latest, NOON), NOON + JUMP_MAX_MS);
    }

    #[test]
    fn a_large_jump_is_kept_once_it_has_stood() {
        let latest = LatestTime::new();
        at(&latest, NOON);
        let stands = JUMP_STANDS.as_secs();
        stand(&latest, NOON + YEAR, 0, stands - 1);
        assert_eq!(at(&latest, NOON), NOON);
        // Nobody saw it for too long: it may have been right meanwhile.
        stand(&latest, NOON + YEAR, stands + JUMP_SEEN_EVERY.as_secs(), stands - 1);
        assert_eq!(at(&latest, NOON), NOON);
        stand(&latest, NOON + YEAR, 2 * stands + JUMP_SEEN_EVERY.as_secs(), 1);
        assert_eq!(at(&latest, NOON), NOON + YEAR);
    }

    #[test]
    fn the_time_outlives_a_restart_and_a_clock_that_was_never_right_is_not_kept() {
        let latest = LatestTime::new();
        assert_eq!((at(&latest, NOON + YEAR), latest.to_keep()), (NOON + YEAR, None));
        let next = LatestTime::new();
        next.restore(UnixMillis(NOON));
        assert_eq!((at(&next, NOON - HOUR), next.to_keep()), (NOON, Some(UnixMillis(NOON))));
        assert_eq!((at(&next, NOON + HOUR), next.to_keep()), (NOON + HOUR, Some(UnixMillis(NOON + HOUR))));
    }
}
