//! The deadlines of a worker's sessions: a hierarchical wheel of milliseconds.
//!
//! A session's slot has at most one timer that counts. Moving a deadline later costs nothing: the timer fires at
//! its old time, and the worker then reads the session's true deadline and sets the timer again. The next session
//! in the slot finds a timer set and needs none of its own. So a message causes no timer work, and a short session
//! hardly any. A heap, or a crate that must hear of each change, would cost more.
//!
//! A timer that an earlier one has overtaken stays where it is, perhaps for an hour. So that those of past sessions do not
//! add up, they are removed once they are as many as the timers that count.

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
    timers: usize,
}

/// A level of 64 slots. One slot covers the time of the whole level below.
struct WheelLevel {
    occupied: u64,
    slots: [Vec<Timer>; SLOTS],
}

impl TimerWheel {
    pub fn new() -> Self {
        Self { now: 0, levels: std::array::from_fn(|_| WheelLevel::new()), timers: 0 }
    }

    pub fn insert(&mut self, timer: Timer) {
        self.timers += 1;
        self.place(timer);
    }

    /// Number of timers, whether they count or not.
    pub fn len(&self) -> usize {
        self.timers
    }

    /// Removes the timers that do not count.
    pub fn retain(&mut self, mut counts: impl FnMut(&Timer) -> bool) {
        for level in &mut self.levels {
            for (number, slot) in level.slots.iter_mut().enumerate() {
                slot.retain(&mut counts);
                if slot.is_empty() {
                    level.occupied &= !(1 << number);
                    *slot = Vec::new();
                }
            }
        }
        self.timers = self.levels.iter().flat_map(|level| &level.slots).map(Vec::len).sum();
    }

    /// Removes every timer that is due at `now` and appends it to `fired`.
    pub fn advance(&mut self, now: Tick, fired: &mut Vec<Timer>) {
        while let Some((level, slot, start)) = self.next_slot() {
            if start > now.0 {
                break;
            }
            self.now = self.now.max(start);
            self.levels[level].occupied &= !(1 << slot);
            for timer in std::mem::take(&mut self.levels[level].slots[slot]) {
                if timer.at <= now {
                    self.timers -= 1;
                    fired.push(timer);
                } else {
                    self.place(timer);
                }
            }
        }
        self.now = self.now.max(now.0);
    }

    /// The next time to call [`Self::advance`]: no timer fires earlier. `None` where there is no timer.
    pub fn next(&self) -> Option<Tick> {
        self.next_slot().map(|(_, _, start)| Tick(start))
    }

    fn place(&mut self, timer: Timer) {
        // An overdue timer goes to the next tick, which is not in the past.
        let at = timer.at.0.clamp(self.now + 1, self.now + HORIZON);
        let level = level_of(self.now, at);
        let slot = (at >> (level as u32 * BITS)) as usize % SLOTS;
        self.levels[level].occupied |= 1 << slot;
        self.levels[level].slots[slot].push(timer);
    }

    /// The occupied slot that starts first, as its level, its place there and its tick. Lower levels come first.
    fn next_slot(&self) -> Option<(usize, usize, u64)> {
        if self.timers == 0 {
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

/// The lowest level on which `at` and `now` are in different slots of the same turn of the wheel.
fn level_of(now: u64, at: u64) -> usize {
    let differing = (now ^ at) | (SLOTS as u64 - 1);
    (((63 - differing.leading_zeros()) / BITS) as usize).min(LEVELS - 1)
}

const BITS: u32 = 6;
const SLOTS: usize = 1 << BITS;
const LEVELS: usize = 6;

/// Ticks ahead that a timer is placed at most; a later one is placed again when this is over. Half of the wheel,
/// so that it never laps itself: about a year.
const HORIZON: u64 = 1 << (BITS * LEVELS as u32 - 1);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn timer(at: u64) -> Timer {
        Timer { at: Tick(at), slot: Slot(at as u32) }
    }

    #[test]
    fn a_timer_that_is_overdue_fires_at_the_next_turn() {
        let mut wheel = TimerWheel::new();
        let mut fired = Vec::new();
        wheel.advance(Tick(5_000), &mut fired);
        wheel.insert(timer(10));
        wheel.advance(Tick(5_001), &mut fired);
        assert_eq!(fired, [timer(10)]);
        assert_eq!(wheel.next(), None);
    }

    #[test]
    fn timers_that_do_not_count_are_removed_and_the_others_fire() {
        let mut wheel = TimerWheel::new();
        (0..10_000).for_each(|at| wheel.insert(timer(at * 700)));
        wheel.retain(|timer| timer.at.0 % 1_400 == 0);
        assert_eq!(wheel.len(), 5_000);
        let mut fired = Vec::new();
        wheel.advance(Tick(7_000_000), &mut fired);
        assert_eq!((fired.len(), wheel.len(), wheel.next()), (5_000, 0, None));
    }

    proptest! {
        #[test]
        fn every_timer_fires_once_and_never_early(
            steps in prop::collection::vec((0u64..5_000_000, 1u64..200_000), 1..60),
        ) {
            let mut wheel = TimerWheel::new();
            let mut waiting = Vec::new();
            let mut now = 0;
            for (ahead, step) in steps {
                wheel.insert(timer(now + ahead));
                waiting.push(now + ahead);
                let due_first = waiting.iter().copied().min().unwrap();
                prop_assert!(wheel.next().unwrap().0 <= due_first.max(now + 1));
                now += step;
                let mut fired = Vec::new();
                wheel.advance(Tick(now), &mut fired);
                let mut fired: Vec<u64> = fired.iter().map(|timer| timer.at.0).collect();
                let mut due: Vec<u64> = waiting.iter().copied().filter(|&at| at <= now).collect();
                waiting.retain(|&at| at > now);
                fired.sort_unstable();
                due.sort_unstable();
                prop_assert_eq!(fired, due);
            }
        }
    }
}
