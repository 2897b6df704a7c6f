//! The deadlines of a worker's sessions: a hierarchical wheel of milliseconds.
//!
//! A session's slot has at most one timer that counts. Moving a deadline later costs nothing: the timer fires at
//! its old time, and the worker then reads the session's true deadline and sets the timer again. The next session
//! in the slot finds a timer set and needs none of its own. So a message causes no timer work, and a short session
//! hardly any. A heap, or a crate that must hear of each change, would cost more.

use crate::engine::timers::Tick;
use crate::engine::user_data::Slot;

/// A time at which the worker checks the deadline of the session in `slot`, whichever session that is by then.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::engine) struct Timer {
    pub at: Tick,
    pub slot: Slot,
}

/// The timers of one worker.
pub(in crate::engine) struct TimerWheel {
    now: u64,
    levels: [WheelLevel; LEVELS],
    entries: usize,
}

/// 64 slots, each as wide as the whole level below.
struct WheelLevel {
    occupied: u64,
    slots: [Vec<Timer>; SLOTS],
}

impl TimerWheel {
    pub fn new() -> Self {
        Self { now: 0, levels: std::array::from_fn(|_| WheelLevel::new()), entries: 0 }
    }

    pub fn insert(&mut self, entry: Timer) {
        self.entries += 1;
        self.place(entry);
    }

    /// Appends to `fired` every entry that is due at `now`.
    pub fn advance(&mut self, now: Tick, fired: &mut Vec<Timer>) {
        while let Some((level, slot, start)) = self.next_slot() {
            if start > now.0 {
                break;
            }
            self.now = self.now.max(start);
            self.levels[level].occupied &= !(1 << slot);
            for entry in std::mem::take(&mut self.levels[level].slots[slot]) {
                if entry.at <= now {
                    self.entries -= 1;
                    fired.push(entry);
                } else {
                    self.place(entry);
                }
            }
        }
        self.now = self.now.max(now.0);
    }

    /// When to look again: no entry fires before. `None` where there is none.
    pub fn next(&self) -> Option<Tick> {
        self.next_slot().map(|(_, _, start)| Tick(start))
    }

    fn place(&mut self, entry: Timer) {
        // What is due already goes to the next tick, which is not in the past.
        let at = entry.at.0.clamp(self.now + 1, self.now + HORIZON);
        let level = level_of(self.now, at);
        let slot = (at >> (level as u32 * BITS)) as usize % SLOTS;
        self.levels[level].occupied |= 1 << slot;
        self.levels[level].slots[slot].push(entry);
    }

    /// The occupied slot that starts first, lower levels before higher ones.
    fn next_slot(&self) -> Option<(usize, usize, u64)> {
        if self.entries == 0 {
            return None;
        }
        (0..LEVELS).find_map(|level| {
            let shift = level as u32 * BITS;
            let current = (self.now >> shift) % SLOTS as u64;
            let ahead = self.levels[level].occupied.rotate_right(current as u32);
            if ahead == 0 {
                return None;
            }
            let distance = u64::from(ahead.trailing_zeros());
            let slot = (current + distance) % SLOTS as u64;
            let start = ((self.now >> shift) + distance) << shift;
            Some((level, slot as usize, start))
        })
    }
}

impl WheelLevel {
    fn new() -> Self {
        Self { occupied: 0, slots: std::array::from_fn(|_| Vec::new()) }
    }
}

/// The lowest level on which `at` and `now` lie in different slots of the same turn.
fn level_of(now: u64, at: u64) -> usize {
    let differing = (now ^ at) | (SLOTS as u64 - 1);
    (((63 - differing.leading_zeros()) / BITS) as usize).min(LEVELS - 1)
}

const BITS: u32 = 6;
const SLOTS: usize = 1 << BITS;
const LEVELS: usize = 6;

/// Later entries wait here and are looked at again; half the wheel, so that no slot is lapped. About a
/// year.
const HORIZON: u64 = 1 << (BITS * LEVELS as u32 - 1);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(at: u64) -> Timer {
        Timer { at: Tick(at), slot: Slot(at as u32) }
    }

    #[test]
    fn an_entry_that_is_overdue_fires_at_the_next_turn() {
        let mut wheel = TimerWheel::new();
        let mut fired = Vec::new();
        wheel.advance(Tick(5_000), &mut fired);
        wheel.insert(entry(10));
        wheel.advance(Tick(5_001), &mut fired);
        assert_eq!(fired, [entry(10)]);
        assert_eq!(wheel.next(), None);
    }

    proptest! {
        #[test]
        fn every_entry_fires_once_and_never_early(
            steps in prop::collection::vec((0u64..5_000_000, 1u64..200_000), 1..60),
        ) {
            let mut wheel = TimerWheel::new();
            let mut waiting = Vec::new();
            let mut now = 0;
            for (ahead, step) in steps {
                wheel.insert(entry(now + ahead));
                waiting.push(now + ahead);
                let due_first = waiting.iter().copied().min().unwrap();
                prop_assert!(wheel.next().unwrap().0 <= due_first.max(now + 1));
                now += step;
                let mut fired = Vec::new();
                wheel.advance(Tick(now), &mut fired);
                let mut fired: Vec<u64> = fired.iter().map(|entry| entry.at.0).collect();
                let mut due: Vec<u64> = waiting.iter().copied().filter(|&at| at <= now).collect();
                waiting.retain(|&at| at > now);
                fired.sort_unstable();
                due.sort_unstable();
                prop_assert_eq!(fired, due);
            }
        }
    }
}
