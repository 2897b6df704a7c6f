//! Whether a thread that has run out of work should look on for a moment before it sleeps.
//!
//! Going to sleep and being woken costs more than a small message does, so while messages follow each
//! other closely it pays to wait awake. A thread spins only after a short gap, only for `busy_poll`, and
//! not for a while once it has spun in vain a few times; an idle thread never spins. Neither does one
//! that serves many sessions at once: what arrives while it sleeps is then taken together, which is
//! worth more than the wait.

use std::time::Duration;

use super::token::Slot;

pub(super) struct Spin {
    busy_poll: Duration,
    /// Spins in a row that ended with nothing.
    misses: u32,
    /// Sleeps that are still to pass before spinning is tried again.
    resting: u32,
    /// The last time without work was short.
    was_short: bool,
    /// One bit for each session that had one of the last completions, by its slot; two may share a bit.
    sessions_seen: u64,
    /// Completions since `sessions_seen` was empty.
    completions_seen: u32,
    /// The last completions belonged to many sessions.
    serves_many: bool,
}

impl Spin {
    pub fn new(busy_poll: Duration) -> Self {
        Self {
            busy_poll,
            misses: 0,
            resting: 0,
            was_short: false,
            sessions_seen: 0,
            completions_seen: 0,
            serves_many: false,
        }
    }

    /// How long to look on; `None` to sleep at once.
    pub fn budget(&mut self) -> Option<Duration> {
        if self.busy_poll.is_zero() || !self.was_short || self.serves_many {
            return None;
        }
        if self.resting > 0 {
            self.resting -= 1;
            return None;
        }
        Some(self.busy_poll)
    }

    pub fn hit(&mut self) {
        self.misses = 0;
    }

    pub fn miss(&mut self) {
        self.misses += 1;
        if self.misses >= MISSES_TO_REST {
            self.misses = 0;
            self.resting = SLEEPS_OF_REST;
        }
    }

    /// A completion belonged to the session in `slot`.
    pub fn note_session(&mut self, slot: Slot) {
        self.sessions_seen |= 1 << (slot.0 % u64::BITS);
        self.completions_seen += 1;
        if self.completions_seen == COMPLETIONS_LOOKED_AT {
            self.serves_many = self.sessions_seen.count_ones() > SESSIONS_MAX;
            self.sessions_seen = 0;
            self.completions_seen = 0;
        }
    }

    /// The thread had nothing to do for `gap`, asleep or awake.
    pub fn note_gap(&mut self, gap: Duration) {
        self.was_short = gap < self.busy_poll * SHORT_GAP;
    }
}

/// A gap of up to this many times `busy_poll` counts as short: it holds the sleep and the waking that a
/// spin would have saved.
const SHORT_GAP: u32 = 4;

/// Sessions that take turns closely enough for each to wait for the next message awake.
const SESSIONS_MAX: u32 = 8;

/// Completions over which sessions are counted; no more than there are bits, so that all can differ.
const COMPLETIONS_LOOKED_AT: u32 = 64;

const MISSES_TO_REST: u32 = 8;

const SLEEPS_OF_REST: u32 = 64;

#[cfg(test)]
mod tests {
    use super::*;

    const POLL: Duration = Duration::from_micros(50);

    #[test]
    fn a_thread_spins_after_short_gaps_only() {
        let mut spin = Spin::new(POLL);
        assert_eq!(spin.budget(), None);
        spin.note_gap(Duration::from_micros(150));
        assert_eq!(spin.budget(), Some(POLL));
        spin.note_gap(Duration::from_millis(1));
        assert_eq!(spin.budget(), None);
    }

    #[test]
    fn spinning_in_vain_is_given_up_for_a_while() {
        let mut spin = Spin::new(POLL);
        spin.note_gap(Duration::from_micros(150));
        let spun = (0..1000)
            .filter(|_| {
                let spins = spin.budget().is_some();
                if spins {
                    spin.miss();
                }
                spins
            })
            .count();
        assert!((80..160).contains(&spun), "{spun} of 1000");
    }

    #[test]
    fn a_thread_that_serves_many_sessions_sleeps_at_once() {
        let mut spin = Spin::new(POLL);
        spin.note_gap(Duration::from_micros(10));
        for number in 0..COMPLETIONS_LOOKED_AT {
            spin.note_session(Slot(100 + number % (SESSIONS_MAX + 1)));
        }
        assert_eq!(spin.budget(), None);
        for number in 0..COMPLETIONS_LOOKED_AT {
            spin.note_session(Slot(100 + number % SESSIONS_MAX));
        }
        assert_eq!(spin.budget(), Some(POLL));
    }

    #[test]
    fn a_busy_poll_of_zero_never_spins() {
        let mut spin = Spin::new(Duration::ZERO);
        spin.note_gap(Duration::ZERO);
        assert_eq!(spin.budget(), None);
    }
}
