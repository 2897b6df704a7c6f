//! Schedules the streams that have bytes to move.
//!
//! A turn of the thread has a bounded number of bytes for all streams together, so that small messages never wait for
//! long. A stream that has just become ready is visited before streams that never run dry, so that a web page does
//! not wait for downloads. A stream that goes on is visited turn after turn, until it is dry or its stint is over:
//! its data is still in the cache, and a source whose buffer is never empty sends its next bytes on our CPU as soon as
//! there is room.

use std::collections::VecDeque;

use crate::engine::user_data::Slot;

/// The streams of one thread.
#[derive(Default)]
pub(in crate::engine) struct Streams {
    /// Streams that became ready. Here and below, each session is listed at most once, except for one that took over
    /// the slot of another.
    fresh: VecDeque<Slot>,
    /// Streams that had more bytes than a visit moves.
    lasting: VecDeque<Slot>,
    visit: Option<Visit>,
    /// The stream of `lasting` that has its stint, and the bytes that it has moved in it.
    in_stint: Option<Slot>,
    stint_bytes: u64,
    /// Bytes that this turn has used, and those of them for `fresh` streams.
    turn_bytes: u64,
    fresh_bytes: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Visit {
    slot: Slot,
    is_fresh: bool,
}

impl Streams {
    pub fn begin_turn(&mut self) {
        self.turn_bytes = 0;
        self.fresh_bytes = 0;
    }

    /// Queues the stream in `slot`.
    pub fn add(&mut self, slot: Slot) {
        match self.visit {
            Some(visit) if visit.slot == slot && visit.is_fresh => self.lasting.push_back(slot),
            Some(visit) if visit.slot == slot && self.stint_bytes < STINT_BYTES => {
                self.lasting.push_front(slot);
            }
            Some(visit) if visit.slot == slot => {
                self.in_stint = None;
                self.lasting.push_back(slot);
            }
            _ => self.fresh.push_back(slot),
        }
    }

    /// The next stream to move bytes; `None` once the turn's bytes for streams are used up.
    pub fn next(&mut self) -> Option<Slot> {
        self.visit = None;
        if self.turn_bytes >= TURN_BYTES {
            return None;
        }
        let is_fresh = self.lasting.is_empty() || self.fresh_bytes < FRESH_BYTES && !self.fresh.is_empty();
        let queue = if is_fresh { &mut self.fresh } else { &mut self.lasting };
        let slot = queue.pop_front()?;
        self.visit = Some(Visit { slot, is_fresh });
        if !is_fresh && self.in_stint != Some(slot) {
            self.in_stint = Some(slot);
            self.stint_bytes = 0;
        }
        Some(slot)
    }

    /// Records that the stream of the last [`Self::next`] has moved `bytes`. The caller adds it again if it has more.
    pub fn record_moved(&mut self, bytes: u64) {
        let cost = bytes.max(VISIT_BYTES);
        self.turn_bytes += cost;
        match self.visit {
            Some(visit) if visit.is_fresh => self.fresh_bytes += cost,
            _ => self.stint_bytes += bytes,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.fresh.is_empty() && self.lasting.is_empty()
    }
}

/// Bytes of a turn for streams: about 100 µs.
pub(in crate::engine) const TURN_BYTES: u64 = 1024 * 1024;

/// Bytes of them for streams that became ready, while others go on.
const FRESH_BYTES: u64 = TURN_BYTES / 2;

/// Bytes that a stream which is never dry moves before the next one begins.
const STINT_BYTES: u64 = 4 * 1024 * 1024;

/// Bytes that a visit counts as, at least.
const VISIT_BYTES: u64 = 16 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    /// Serves streams that always have `slice_bytes` more for `turns` turns.
    fn served(streams: &mut Streams, turns: usize, slice_bytes: u64) -> Vec<Slot> {
        let mut served = Vec::new();
        for _ in 0..turns {
            streams.begin_turn();
            while let Some(slot) = streams.next() {
                streams.add(slot);
                streams.record_moved(slice_bytes);
                served.push(slot);
            }
        }
        served
    }

    fn with_streams(count: u32) -> Streams {
        let mut streams = Streams::default();
        (0..count).for_each(|slot| streams.add(Slot(slot)));
        streams
    }

    #[test]
    fn a_turn_ends_when_its_bytes_are_used_up() {
        let mut streams = with_streams(10);
        assert_eq!(served(&mut streams, 1, TURN_BYTES / 4).len(), 4);
        assert!(!streams.is_empty());
    }

    #[test]
    fn streams_that_move_next_to_nothing_cannot_prolong_a_turn() {
        let mut streams = with_streams(10_000);
        streams.begin_turn();
        let visits = std::iter::from_fn(|| streams.next().inspect(|_| streams.record_moved(1))).count();
        assert_eq!(visits as u64, TURN_BYTES / VISIT_BYTES);
    }

    #[test]
    fn a_stream_goes_on_over_turns_until_its_stint_is_over_and_all_have_theirs() {
        let mut streams = with_streams(3);
        let first_visits = served(&mut streams, 3, TURN_BYTES);
        assert_eq!(first_visits, [0, 1, 2].map(Slot));
        let mut order = served(&mut streams, 20, TURN_BYTES);
        assert!(order.iter().filter(|slot| **slot == Slot(1)).count() as u64 >= STINT_BYTES / TURN_BYTES);
        order.dedup();
        assert_eq!(order[..4], [0, 1, 2, 0].map(Slot));
    }

    #[test]
    fn one_that_becomes_ready_does_not_wait_for_stints_but_leaves_half_of_the_turn() {
        let mut streams = with_streams(2);
        served(&mut streams, 2, TURN_BYTES);
        (10..14).for_each(|slot| streams.add(Slot(slot)));
        assert_eq!(served(&mut streams, 1, TURN_BYTES / 4), [10, 11, 0, 0].map(Slot));
    }

    #[test]
    fn a_stint_that_ended_early_takes_nothing_from_the_next() {
        let mut streams = with_streams(2);
        served(&mut streams, 2, TURN_BYTES);
        served(&mut streams, 3, TURN_BYTES);
        streams.begin_turn();
        assert_eq!(streams.next(), Some(Slot(0)), "in its stint");
        streams.record_moved(1);
        streams.add(Slot(2));
        let next = served(&mut streams, 7, TURN_BYTES);
        assert_eq!(next, [2, 1, 1, 1, 1, 1, 2].map(Slot), "a whole stint, to the visit that completes it");
    }

    #[test]
    fn a_stream_that_runs_dry_gives_way() {
        let mut streams = with_streams(2);
        streams.begin_turn();
        for slot in [0, 1] {
            assert_eq!(streams.next(), Some(Slot(slot)));
            streams.record_moved(1);
        }
        assert_eq!(streams.next(), None);
        assert!(streams.is_empty());
    }
}
