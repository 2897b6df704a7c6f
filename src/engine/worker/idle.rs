//! How a thread waits that has run out of work: awake for a moment, asleep, or asleep until several
//! completions are there.
//!
//! Going to sleep and being woken costs more than a small message does, so while messages follow each
//! other closely it pays to wait awake. A thread spins only after a short gap, only for `busy_poll`, and
//! not for a while once it has spun in vain a few times; an idle thread never spins. Neither does one
//! that serves many sessions at once: what arrives while it sleeps is then taken together, which is
//! worth more than the wait. Where all that it serves are streams, which have no use for being quick, it
//! sleeps until several have something: each then moves more at a time, which is cheaper for all sides.

use std::time::Duration;

use crate::engine::user_data::{Purpose, Slot};
use crate::sys::ring::Gather;

pub(in crate::engine) struct IdlePolicy {
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
    /// How many of them were streams'.
    streams_seen: u32,
    /// What the thread had spliced when `sessions_seen` was empty.
    spliced_bytes: u64,
    /// To whom the last completions belonged.
    served: Served,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Served {
    Few,
    Many,
    /// Nothing but streams, of about so many sessions.
    Streams(u32),
}

impl IdlePolicy {
    pub fn new(busy_poll: Duration) -> Self {
        Self {
            busy_poll,
            misses: 0,
            resting: 0,
            was_short: false,
            sessions_seen: 0,
            completions_seen: 0,
            streams_seen: 0,
            spliced_bytes: 0,
            served: Served::Few,
        }
    }

    /// How long to look on; `None` to sleep at once.
    pub fn budget(&mut self) -> Option<Duration> {
        if self.busy_poll.is_zero() || !self.was_short || self.served != Served::Few {
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

    /// What a sleep waits for; `None` for the first completion.
    pub fn gather(&self) -> Option<Gather> {
        let Served::Streams(sessions) = self.served else { return None };
        // One stream alone never brings two, so that it waits out the patience, and moves more for it.
        Some(Gather { completions: sessions.clamp(2, GATHER_MAX), patience: GATHER_PATIENCE })
    }

    /// A completion was for `purpose` of the session in `slot`.
    pub fn note_completion(&mut self, slot: Slot, purpose: Purpose) {
        self.sessions_seen |= 1 << (slot.0 % u64::BITS);
        self.completions_seen += 1;
        if purpose.is_of_stream() {
            self.streams_seen += 1;
        } else if let Served::Streams(_) = self.served {
            self.served = Served::Few;
        }
    }

    /// A turn is over, by whose end the thread has spliced `spliced_bytes` in all.
    pub fn note_turn(&mut self, spliced_bytes: u64) {
        if self.completions_seen < COMPLETIONS_LOOKED_AT {
            return;
        }
        let sessions = self.sessions_seen.count_ones();
        let bytes_each = (spliced_bytes - self.spliced_bytes) / u64::from(self.completions_seen);
        let only_streams = self.streams_seen == self.completions_seen;
        self.served = if only_streams && bytes_each >= STREAM_BYTES_EACH {
            Served::Streams(sessions)
        } else if sessions > SESSIONS_MAX {
            Served::Many
        } else {
            Served::Few
        };
        (self.sessions_seen, self.completions_seen, self.streams_seen) = (0, 0, 0);
        self.spliced_bytes = spliced_bytes;
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

/// Completions over which sessions are counted, at least; as many as there are bits, so that all can differ.
const COMPLETIONS_LOOKED_AT: u32 = 64;

/// Bytes that a stream has for each readiness. Exchanges of some 10 KiB are spliced too, and want to be
/// quick.
const STREAM_BYTES_EACH: u64 = 64 * 1024;

/// Completions that a sleep waits for at most.
const GATHER_MAX: u32 = 16;

/// How long it waits for more than one. A stream of 10 Gbit/s brings 125 kB in that time, half of what one of
/// its splices moves.
const GATHER_PATIENCE: Duration = Duration::from_micros(100);

const MISSES_TO_REST: u32 = 8;

const SLEEPS_OF_REST: u32 = 64;

#[cfg(test)]
mod tests {
    use super::*;

    const POLL: Duration = Duration::from_micros(50);

    #[test]
    fn a_thread_spins_after_short_gaps_only() {
        let mut waiting = IdlePolicy::new(POLL);
        assert_eq!(waiting.budget(), None);
        waiting.note_gap(Duration::from_micros(150));
        assert_eq!(waiting.budget(), Some(POLL));
        waiting.note_gap(Duration::from_millis(1));
        assert_eq!(waiting.budget(), None);
    }

    #[test]
    fn spinning_in_vain_is_given_up_for_a_while() {
        let mut waiting = IdlePolicy::new(POLL);
        waiting.note_gap(Duration::from_micros(150));
        let spun = (0..1000)
            .filter(|_| {
                let spins = waiting.budget().is_some();
                if spins {
                    waiting.miss();
                }
                spins
            })
            .count();
        assert!((80..160).contains(&spun), "{spun} of 1000");
    }

    /// Completions of so many sessions, by turns.
    fn serve(waiting: &mut IdlePolicy, sessions: u32, purpose: Purpose, bytes_each: u64) {
        for number in 0..COMPLETIONS_LOOKED_AT {
            waiting.note_completion(Slot(100 + number % sessions), purpose);
        }
        waiting.note_turn(waiting.spliced_bytes + u64::from(COMPLETIONS_LOOKED_AT) * bytes_each);
    }

    #[test]
    fn a_thread_that_serves_many_sessions_sleeps_at_once() {
        let mut waiting = IdlePolicy::new(POLL);
        waiting.note_gap(Duration::from_micros(10));
        serve(&mut waiting, SESSIONS_MAX + 1, Purpose::UpReceive, 0);
        assert_eq!((waiting.budget(), waiting.gather()), (None, None));
        serve(&mut waiting, SESSIONS_MAX, Purpose::UpReceive, 0);
        assert_eq!((waiting.budget(), waiting.gather()), (Some(POLL), None));
    }

    #[test]
    fn a_thread_that_serves_nothing_but_streams_waits_for_several() {
        let mut waiting = IdlePolicy::new(POLL);
        waiting.note_gap(Duration::from_micros(10));
        serve(&mut waiting, 3, Purpose::DownReadable, STREAM_BYTES_EACH);
        assert_eq!(waiting.budget(), None);
        assert_eq!(waiting.gather().map(|gather| gather.completions), Some(3));
        serve(&mut waiting, 60, Purpose::DownReadable, STREAM_BYTES_EACH);
        assert_eq!(waiting.gather().map(|gather| gather.completions), Some(GATHER_MAX));
        serve(&mut waiting, 1, Purpose::DownReadable, STREAM_BYTES_EACH);
        assert_eq!(waiting.gather().map(|gather| gather.completions), Some(2));
        waiting.note_completion(Slot(1), Purpose::UpReceive);
        assert_eq!(waiting.gather(), None, "one message among them is reason enough to be quick");
        serve(&mut waiting, 60, Purpose::DownReadable, STREAM_BYTES_EACH);
        assert_eq!(waiting.gather(), None, "and is remembered for a while");
        serve(&mut waiting, 60, Purpose::DownReadable, STREAM_BYTES_EACH / 4);
        assert_eq!(waiting.gather(), None, "large messages are not streams");
    }

    #[test]
    fn a_busy_poll_of_zero_never_spins() {
        let mut waiting = IdlePolicy::new(Duration::ZERO);
        waiting.note_gap(Duration::ZERO);
        assert_eq!(waiting.budget(), None);
    }
}
