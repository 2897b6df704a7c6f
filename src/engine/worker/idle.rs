//! Decides how a thread without work waits: it spins, parks until one completion, or gathers (parks until several
//! completions are there).
//!
//! To park and wake costs more than a small message, so while messages follow each other closely, a thread spins. It
//! spins only after a short gap and only for `busy_poll`, and after some spins without success it does not spin for a
//! while. An idle thread never spins. A thread with many sessions does not spin either: completions that arrive while
//! it sleeps are handled together, which saves more than the wait costs. Where all its work is streams, which need no
//! quick reaction, it gathers: each stream then moves more bytes at a time, which is cheaper for all sides.

use std::time::Duration;

use crate::engine::user_data::{Purpose, Slot};
use crate::sys::ring::Gather;

/// The policy policy of one thread, and its recent history.
pub(in crate::engine) struct IdlePolicy {
    busy_poll: Duration,
    /// Spins in a row that found no completion.
    misses: u32,
    /// Sleeps until the next try to spin.
    resting: u32,
    /// The last time without work was short.
    was_short: bool,
    /// The sessions of the last completions, as a set of bits by slot; two sessions may share a bit.
    sessions_seen: u64,
    /// Completions since `sessions_seen` was reset.
    completions_seen: u32,
    /// Number of them that were for streams.
    streams_seen: u32,
    /// Bytes that the thread had spliced when `sessions_seen` was reset.
    spliced_bytes: u64,
    /// The kind of work that the last completions were.
    load: Load,
}

/// The recent work of a thread.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Load {
    FewSessions,
    ManySessions,
    /// Streams only, of about this many sessions.
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
            load: Load::FewSessions,
        }
    }

    pub fn set_busy_poll(&mut self, busy_poll: Duration) {
        self.busy_poll = busy_poll;
    }

    /// The time to spin; `None` to park at once.
    pub fn spin_time(&mut self) -> Option<Duration> {
        if self.busy_poll.is_zero() || !self.was_short || self.load != Load::FewSessions {
            return None;
        }
        if self.resting > 0 {
            self.resting -= 1;
            return None;
        }
        Some(self.busy_poll)
    }

    /// A spin found a completion.
    pub fn record_hit(&mut self) {
        self.misses = 0;
    }

    /// A spin found no completion.
    pub fn record_miss(&mut self) {
        self.misses += 1;
        if self.misses >= MISSES_TO_REST {
            self.misses = 0;
            self.resting = SLEEPS_OF_REST;
        }
    }

    /// The completions that a sleep waits for; `None` to wake at the first one.
    pub fn gather(&self) -> Option<Gather> {
        let Load::Streams(sessions) = self.load else { return None };
        // A single stream never has two completions: it waits for the whole patience and then moves more bytes.
        Some(Gather { completions: sessions.clamp(2, GATHER_MAX), patience: GATHER_PATIENCE })
    }

    /// Records a completion for `purpose` of the session in `slot`.
    pub fn record_completion(&mut self, slot: Slot, purpose: Purpose) {
        self.sessions_seen |= 1 << (slot.0 % u64::BITS);
        self.completions_seen += 1;
        if purpose.is_of_stream() {
            self.streams_seen += 1;
        } else if let Load::Streams(_) = self.load {
            self.load = Load::FewSessions;
        }
    }

    /// Records the end of a turn. `spliced_bytes` is the total that the thread has spliced so far.
    pub fn record_turn(&mut self, spliced_bytes: u64) {
        if self.completions_seen < COMPLETIONS_SAMPLED {
            return;
        }
        let sessions = self.sessions_seen.count_ones();
        let bytes_each = (spliced_bytes - self.spliced_bytes) / u64::from(self.completions_seen);
        let only_streams = self.streams_seen == self.completions_seen;
        self.load = if only_streams && bytes_each >= STREAM_BYTES_EACH {
            Load::Streams(sessions)
        } else if sessions > SESSIONS_MAX {
            Load::ManySessions
        } else {
            Load::FewSessions
        };
        (self.sessions_seen, self.completions_seen, self.streams_seen) = (0, 0, 0);
        self.spliced_bytes = spliced_bytes;
    }

    /// Records a time without work, asleep or awake.
    pub fn record_gap(&mut self, gap: Duration) {
        self.was_short = gap < self.busy_poll * SHORT_GAP;
    }
}

/// Number of times `busy_poll` up to which a gap counts as short. A gap includes the sleep and the wake-up that a
/// spin would have saved.
const SHORT_GAP: u32 = 4;

/// Sessions up to which the thread spins for the next message.
const SESSIONS_MAX: u32 = 8;

/// Completions over which sessions are counted, at least: as many as the set has bits, so that all can differ.
const COMPLETIONS_SAMPLED: u32 = 64;

/// Bytes per readiness from which a session counts as a stream. Exchanges of some 10 KiB are spliced too, but need a
/// quick reaction.
const STREAM_BYTES_EACH: u64 = 64 * 1024;

/// Completions that a sleep waits for at most.
const GATHER_MAX: u32 = 16;

/// Time that a sleep waits for more than one completion. A stream of 10 Gbit/s brings 125 kB in that time, half as
/// much as one splice moves.
const GATHER_PATIENCE: Duration = Duration::from_micros(100);

/// Spins in a row without success after which the thread stops spinning for a while.
const MISSES_TO_REST: u32 = 8;

/// Sleeps for which it does not spin then.
const SLEEPS_OF_REST: u32 = 64;

#[cfg(test)]
mod tests {
    use super::*;

    const POLL: Duration = Duration::from_micros(50);

    #[test]
    fn a_thread_spins_after_short_gaps_only() {
        let mut policy = IdlePolicy::new(POLL);
        assert_eq!(policy.spin_time(), None);
        policy.record_gap(Duration::from_micros(150));
        assert_eq!(policy.spin_time(), Some(POLL));
        policy.record_gap(Duration::from_millis(1));
        assert_eq!(policy.spin_time(), None);
    }

    #[test]
    fn after_spins_without_success_a_thread_does_not_spin_for_a_while() {
        let mut policy = IdlePolicy::new(POLL);
        policy.record_gap(Duration::from_micros(150));
        let spun = (0..1000)
            .filter(|_| {
                let spins = policy.spin_time().is_some();
                if spins {
                    policy.record_miss();
                }
                spins
            })
            .count();
        assert!((80..160).contains(&spun), "{spun} of 1000");
    }

    /// Serves completions of `sessions` sessions in turn.
    fn serve(policy: &mut IdlePolicy, sessions: u32, purpose: Purpose, bytes_each: u64) {
        for number in 0..COMPLETIONS_SAMPLED {
            policy.record_completion(Slot(100 + number % sessions), purpose);
        }
        policy.record_turn(policy.spliced_bytes + u64::from(COMPLETIONS_SAMPLED) * bytes_each);
    }

    #[test]
    fn a_thread_that_serves_many_sessions_parks_at_once() {
        let mut policy = IdlePolicy::new(POLL);
        policy.record_gap(Duration::from_micros(10));
        serve(&mut policy, SESSIONS_MAX + 1, Purpose::UpReceive, 0);
        assert_eq!((policy.spin_time(), policy.gather()), (None, None));
        serve(&mut policy, SESSIONS_MAX, Purpose::UpReceive, 0);
        assert_eq!((policy.spin_time(), policy.gather()), (Some(POLL), None));
    }

    #[test]
    fn a_thread_that_serves_only_streams_gathers() {
        let mut policy = IdlePolicy::new(POLL);
        policy.record_gap(Duration::from_micros(10));
        serve(&mut policy, 3, Purpose::DownReadable, STREAM_BYTES_EACH);
        assert_eq!(policy.spin_time(), None);
        assert_eq!(policy.gather().map(|gather| gather.completions), Some(3));
        serve(&mut policy, 60, Purpose::DownReadable, STREAM_BYTES_EACH);
        assert_eq!(policy.gather().map(|gather| gather.completions), Some(GATHER_MAX));
        serve(&mut policy, 1, Purpose::DownReadable, STREAM_BYTES_EACH);
        assert_eq!(policy.gather().map(|gather| gather.completions), Some(2));
        policy.record_completion(Slot(1), Purpose::UpReceive);
        assert_eq!(policy.gather(), None, "one message among them is reason enough to be quick");
        serve(&mut policy, 60, Purpose::DownReadable, STREAM_BYTES_EACH);
        assert_eq!(policy.gather(), None, "and is remembered for a while");
        serve(&mut policy, 60, Purpose::DownReadable, STREAM_BYTES_EACH / 4);
        assert_eq!(policy.gather(), None, "large messages are not streams");
    }

    #[test]
    fn a_busy_poll_of_zero_never_spins() {
        let mut policy = IdlePolicy::new(Duration::ZERO);
        policy.record_gap(Duration::ZERO);
        assert_eq!(policy.spin_time(), None);
    }
}
