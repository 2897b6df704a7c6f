//! Schedules the checks whether the peers of tunnels have taken what was sent to them.
//!
//! A check costs a system call for each side of a tunnel. So a tunnel is listed when it sends, and then at most once per
//! interval, however much it sends; and no more once all has arrived. A tunnel that sends nothing is not listed.

use std::collections::VecDeque;
use std::time::Duration;

use crate::engine::timers::Tick;
use crate::engine::user_data::Slot;

/// The tunnels to check, in the order of their times. The caller lists no slot twice, so there are no more entries than
/// places for sessions.
pub(in crate::engine) struct DeliveryChecks {
    queue: VecDeque<(Tick, Slot)>,
    interval_ms: u64,
}

impl DeliveryChecks {
    /// Checks that are a part of `user_timeout` apart.
    pub fn new(user_timeout: Duration) -> Self {
        Self { queue: VecDeque::new(), interval_ms: interval_ms(user_timeout) }
    }

    /// Adds checks that are a part of `user_timeout` apart from now on.
    pub fn set_user_timeout(&mut self, user_timeout: Duration) {
        self.interval_ms = interval_ms(user_timeout);
    }

    /// Lists the tunnel in `slot` for a check one interval from now.
    pub fn add(&mut self, slot: Slot, now: Tick) {
        // Tunnels that are due at about the same time share a wake-up of the thread.
        let together_ms = self.interval_ms / WAKE_UPS_PER_INTERVAL;
        let at = now
            .0
            .saturating_add(self.interval_ms)
            .checked_next_multiple_of(together_ms)
            .map_or(Tick::NEVER, Tick);
        self.queue.push_back((at, slot));
    }

    /// Takes the next tunnel whose check is due.
    pub fn next_due(&mut self, now: Tick) -> Option<Slot> {
        if self.next_time()? > now {
            return None;
        }
        self.queue.pop_front().map(|(_, slot)| slot)
    }

    /// Time of the next check.
    pub fn next_time(&self) -> Option<Tick> {
        self.queue.front().map(|(at, _)| *at)
    }
}

/// Time between two checks of a tunnel, in ms.
fn interval_ms(user_timeout: Duration) -> u64 {
    let interval = (user_timeout / CHECKS_PER_TIMEOUT).max(INTERVAL_MIN);
    u64::try_from(interval.as_millis()).unwrap_or(u64::MAX)
}

/// Checks in one user timeout: a peer that is gone is found no more than a quarter of it late.
const CHECKS_PER_TIMEOUT: u32 = 4;

/// Shortest interval, for user timeouts that are shorter than any network needs.
const INTERVAL_MIN: Duration = Duration::from_millis(200);

/// Wake-ups of the thread in one interval at most.
const WAKE_UPS_PER_INTERVAL: u64 = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tunnels_are_due_in_their_order_an_interval_later_and_together() {
        let mut checks = DeliveryChecks::new(Duration::from_secs(60));
        assert_eq!(checks.next_time(), None);
        for (slot, now) in [(1, 0), (2, 1), (3, 1_875), (4, 1_876)] {
            checks.add(Slot(slot), Tick(now));
        }
        assert_eq!(checks.next_due(Tick(14_999)), None);
        assert_eq!(checks.next_time(), Some(Tick(15_000)));
        assert_eq!(checks.next_due(Tick(15_000)), Some(Slot(1)));
        assert_eq!(checks.next_time(), Some(Tick(16_875)));
        let due: Vec<_> = std::iter::from_fn(|| checks.next_due(Tick(16_875))).collect();
        assert_eq!(due, [Slot(2), Slot(3)]);
        assert_eq!(checks.next_time(), Some(Tick(18_750)));
    }

    #[test]
    fn the_longest_and_the_shortest_timeout_have_their_checks() {
        let mut checks = DeliveryChecks::new(Duration::MAX);
        checks.add(Slot(1), Tick(7));
        assert_eq!(checks.next_due(Tick(u64::MAX - 1)), None);
        let mut checks = DeliveryChecks::new(Duration::from_millis(1));
        checks.add(Slot(1), Tick(7));
        assert_eq!(checks.next_time(), Some(Tick(225)));
    }
}
