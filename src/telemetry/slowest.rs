//! The slowest requests of the last minute, as one thread recorded them.
//!
//! The recording thread never waits: while a reader holds the lock, it leaves the request out.

use arrayvec::ArrayVec;
use parking_lot::Mutex;

use super::Cause;
use crate::authz::{DeviceUuid, UnixMillis};

/// Duration of one request from accept to the reply, and its outcome.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RequestTiming {
    pub at: UnixMillis,
    pub us: u64,
    pub session: u64,
    /// The true cause of the refusal; `None` where the tunnel opened.
    pub refused: Option<Cause>,
    pub uuid: Option<DeviceUuid>,
    pub port: Option<u16>,
}

impl RequestTiming {
    /// `open`, or the cause of the refusal.
    pub fn outcome(&self) -> &'static str {
        self.refused.map_or("open", Cause::slug)
    }
}

#[derive(Default)]
pub struct SlowestRequests {
    /// The slowest first.
    slowest: Mutex<ArrayVec<RequestTiming, SLOWEST_KEPT>>,
}

impl SlowestRequests {
    pub fn record(&self, handshake: RequestTiming) {
        let Some(mut slowest) = self.slowest.try_lock() else { return };
        slowest.retain(|kept| is_recent(kept, handshake.at));
        let place = slowest.partition_point(|kept| kept.us >= handshake.us);
        if place < SLOWEST_KEPT {
            if slowest.is_full() {
                slowest.pop();
            }
            slowest.insert(place, handshake);
        }
    }

    pub fn get(&self, now: UnixMillis) -> ArrayVec<RequestTiming, SLOWEST_KEPT> {
        let mut slowest = self.slowest.lock().clone();
        slowest.retain(|kept| is_recent(kept, now));
        slowest
    }
}

fn is_recent(handshake: &RequestTiming, now: UnixMillis) -> bool {
    now.0.saturating_sub(handshake.at.0) <= RECENT_MS
}

/// Number of requests kept for each thread. The status page shows as many of all threads together.
pub const SLOWEST_KEPT: usize = 8;

const RECENT_MS: i64 = 60_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn handshake(at: i64, us: u64) -> RequestTiming {
        RequestTiming { at: UnixMillis(at), us, session: 1, refused: None, uuid: None, port: None }
    }

    fn kept(slowest: &SlowestRequests, now: i64) -> Vec<u64> {
        slowest.get(UnixMillis(now)).iter().map(|kept| kept.us).collect()
    }

    #[test]
    fn the_slowest_are_kept_in_order_and_the_faster_make_room() {
        let slowest = SlowestRequests::default();
        for us in [3, 9, 1, 7, 5, 10, 2, 8, 4, 6] {
            slowest.record(handshake(0, us));
        }
        assert_eq!(kept(&slowest, 0), [10, 9, 8, 7, 6, 5, 4, 3]);
    }

    #[test]
    fn what_is_a_minute_old_makes_room_for_anything() {
        let slowest = SlowestRequests::default();
        for _ in 0..SLOWEST_KEPT {
            slowest.record(handshake(0, 1_000_000));
        }
        slowest.record(handshake(RECENT_MS, 5));
        assert!(!kept(&slowest, RECENT_MS).contains(&5));
        slowest.record(handshake(RECENT_MS + 1, 5));
        assert_eq!(kept(&slowest, RECENT_MS + 1), [5]);
        assert!(kept(&slowest, 3 * RECENT_MS).is_empty());
    }

    #[test]
    fn whoever_records_does_not_wait_for_a_reader() {
        let slowest = SlowestRequests::default();
        let reading = slowest.slowest.lock();
        slowest.record(handshake(0, 1));
        drop(reading);
        assert!(kept(&slowest, 0).is_empty());
    }
}
