//! Peers that hang: connections to them do not open, or no reply comes. All engine threads share what one of them finds
//! out, so that each client does not wait for itself.
//!
//! A peer that hangs is left out for a time, which grows while it goes on to hang. After each such time one request is a
//! trial; the others are refused at once until that has an answer.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// The peers that hang.
#[derive(Default)]
pub(super) struct PeerHealth {
    /// Number of them, which is 0 almost always.
    count: AtomicUsize,
    peers: Mutex<HashMap<Box<str>, HangingPeer>>,
}

struct HangingPeer {
    failures: u32,
    trial_at: Instant,
}

/// Whether a request may go to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admittance {
    Yes,
    /// The peer hung before. This request finds out if it does still.
    Trial,
    /// The peer hangs.
    No,
}

impl PeerHealth {
    /// Decides about a request for the peer `name`.
    pub(super) fn admit(&self, name: &str, now: Instant) -> Admittance {
        if self.hanging() == 0 {
            return Admittance::Yes;
        }
        match self.peers.lock().get_mut(name) {
            None => Admittance::Yes,
            Some(peer) if now >= peer.trial_at => {
                peer.trial_at = now + peer.left_out_for();
                Admittance::Trial
            }
            Some(_) => Admittance::No,
        }
    }

    /// Returns whether the peer hangs, as far as anybody knows.
    pub(super) fn is_hanging(&self, name: &str) -> bool {
        self.hanging() > 0 && self.peers.lock().contains_key(name)
    }

    /// A request has found that the peer hangs. Those that find it at the same time count once.
    pub(super) fn record_hang(&self, name: &str, admitted: Admittance, now: Instant) {
        let mut peers = self.peers.lock();
        let is_full = peers.len() >= PEERS_MAX;
        match peers.get_mut(name) {
            Some(peer) if admitted == Admittance::Trial => {
                peer.failures = peer.failures.saturating_add(1);
                peer.trial_at = now + peer.left_out_for();
            }
            Some(_) => {}
            None if is_full => {}
            None => {
                tracing::warn!("{name} hangs: requests for its devices are refused until it answers again");
                let mut peer = HangingPeer { failures: 1, trial_at: now };
                peer.trial_at += peer.left_out_for();
                peers.insert(name.into(), peer);
            }
        }
        self.count.store(peers.len(), Ordering::Relaxed);
    }

    /// The peer has answered.
    pub(super) fn record_answer(&self, name: &str) {
        if self.hanging() == 0 {
            return;
        }
        let mut peers = self.peers.lock();
        if peers.remove(name).is_some() {
            tracing::info!("{name} answers again");
        }
        self.count.store(peers.len(), Ordering::Relaxed);
    }

    /// Number of peers that hang.
    pub(super) fn hanging(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }
}

impl HangingPeer {
    fn left_out_for(&self) -> Duration {
        LEFT_OUT_MIN.saturating_mul(1 << (self.failures - 1).min(DOUBLINGS_MAX)).min(LEFT_OUT_MAX)
    }
}

/// First time for which a peer is left out. Each further one is twice as long, up to the longest.
const LEFT_OUT_MIN: Duration = Duration::from_secs(1);

const LEFT_OUT_MAX: Duration = Duration::from_secs(30);

const DOUBLINGS_MAX: u32 = 5;

/// Peers that are remembered. One more is asked as if nothing were known.
const PEERS_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_that_hangs_is_left_out_for_a_growing_time_with_one_trial_after_each() {
        let (health, begin) = (PeerHealth::default(), Instant::now());
        let at = |ms: u64| begin + Duration::from_millis(ms);
        assert_eq!(health.admit("b", at(0)), Admittance::Yes);
        for _ in 0..300 {
            health.record_hang("b", Admittance::Yes, at(0));
        }
        assert!(health.is_hanging("b") && !health.is_hanging("c"));
        assert_eq!(
            (health.admit("b", at(999)), health.admit("c", at(999))),
            (Admittance::No, Admittance::Yes)
        );
        assert_eq!(health.admit("b", at(1_000)), Admittance::Trial, "300 at once are one failure");
        assert_eq!(health.admit("b", at(1_001)), Admittance::No, "others wait for the trial");
        health.record_hang("b", Admittance::Trial, at(2_000));
        assert_eq!(health.admit("b", at(3_999)), Admittance::No);
        assert_eq!(health.admit("b", at(4_000)), Admittance::Trial);
        for _ in 0..20 {
            health.record_hang("b", Admittance::Trial, at(5_000));
        }
        assert_eq!(health.admit("b", at(34_999)), Admittance::No);
        assert_eq!(health.admit("b", at(35_000)), Admittance::Trial, "30 s at most");
        health.record_answer("b");
        assert_eq!((health.admit("b", at(35_001)), health.hanging()), (Admittance::Yes, 0));
    }
}
