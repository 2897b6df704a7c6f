//! Streams with bytes to move: whose turn it is, and for how long.
//!
//! A turn of the thread has a bounded number of bytes for all streams together, so that small messages never
//! wait for long. A stream that has just become ready is visited before those that could go on for ever, so
//! a page does not wait for downloads. One that goes on does so in turn after turn, until it is dry or has
//! had its stint: a source whose buffer is never emptied sends what is next on our CPU whenever we make room,
//! and what was touched last is still in the cache.

use std::collections::VecDeque;

use crate::engine::user_data::Slot;

#[derive(Default)]
pub(in crate::engine) struct Streams {
    /// Those that became ready. Here and below, each session at most once, but for one that took over the
    /// slot of another.
    fresh: VecDeque<Slot>,
    /// Those that had more than a visit takes.
    lasting: VecDeque<Slot>,
    visit: Option<Visit>,
    /// Which of the lasting ones has its stint, and what it has moved in it.
    in_stint: Option<Slot>,
    stint_bytes: u64,
    /// What this turn has used, and the fresh ones of it.
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

    /// Has `slot` served.
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

    /// The stream that is to move bytes now; `None` once the turn has nothing left for streams.
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

    /// The stream that [`Self::next`] gave has moved `bytes`, and will be added again if it has more.
    pub fn note_moved(&mut self, bytes: u64) {
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

/// What a turn has for streams: about 100 us.
pub(in crate::engine) const TURN_BYTES: u64 = 1024 * 1024;

/// Of that, for streams that became ready, while others go on.
const FRESH_BYTES: u64 = TURN_BYTES / 2;

/// What a stream that is never dry moves before the next one begins.
const STINT_BYTES: u64 = 4 * 1024 * 1024;

/// A visit counts as so many bytes, however few there were.
const VISIT_BYTES: u64 = 16 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    /// Serves `turns` turns to streams that always have `slice_bytes` more.
    fn served(streams: &mut Streams, turns: usize, slice_bytes: u64) -> Vec<Slot> {
        let mut served = Vec::new();
        for _ in 0..turns {
            streams.begin_turn();
            while let Some(slot) = streams.next() {
                streams.add(slot);
                streams.note_moved(slice_bytes);
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
        let visits = std::iter::from_fn(|| streams.next().inspect(|_| streams.note_moved(1))).count();
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
        streams.note_moved(1);
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
            streams.note_moved(1);
        }
        assert_eq!(streams.next(), None);
        assert!(streams.is_empty());
    }
}
