//! What engines saw of their decisions, for the control thread: which were allowed, and which were refused
//! that the generation before would have allowed.
//!
//! One decision log per engine thread. It never waits and never allocates: rings of a fixed size, in which a new
//! entry takes the place of the oldest where nobody has come to fetch it.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam::queue::ArrayQueue;

use super::{Decision, DeviceId, Permitted, PinnedView, PrincipalId, Query, Refusal, UnixMillis};

/// See the module.
pub struct DecisionLog {
    allowed: ArrayQueue<Query>,
    regressions: ArrayQueue<Regression>,
    decided: AtomicU64,
}

/// A refusal that the generation before would not have given, with all revocations on top of it.
#[derive(Clone, Copy, Debug)]
pub struct Regression {
    pub query: Query,
    pub refusal: Refusal,
    /// The decision of the generation before.
    pub principal: PrincipalId,
    pub device: DeviceId,
    /// `None` where another node held the device.
    pub address: Option<IpAddr>,
}

impl DecisionLog {
    /// Takes note of a decision that was made in `view` at `now`. Costs a refusal a second decision while
    /// there is a generation to be compared with.
    pub fn record(&self, view: &PinnedView<'_>, query: &Query, decision: &Decision, now: UnixMillis) {
        self.decided.fetch_add(1, Ordering::Relaxed);
        match decision {
            // Who may reach a device on another node holds the same rights as who may reach one here.
            Decision::Allow(_) | Decision::Refuse(Refusal::DeviceElsewhere) => {
                let _oldest_is_forgotten = self.allowed.force_push(*query);
            }
            Decision::Refuse(_) | Decision::Undecided(_) => {}
        }
        if let Decision::Refuse(refusal) = decision {
            self.record_regression(view, query, *refusal, now);
        }
    }

    /// Takes note of a refusal that the generation before would not have given, and that neither an expiry nor a
    /// dispute explains. Says whether it is one.
    pub fn record_regression(
        &self,
        view: &PinnedView<'_>,
        query: &Query,
        refusal: Refusal,
        now: UnixMillis,
    ) -> bool {
        if matches!(refusal, Refusal::CredentialExpired | Refusal::GrantExpired | Refusal::DeviceDisputed) {
            return false;
        }
        let Some(before) = view.allowed_before(query, now) else { return false };
        let Permitted { principal, device, address, .. } = before;
        if refusal.is_of_location() && address.is_none() {
            // Where it is now is another node's to know, as it was before.
            return false;
        }
        let regression = Regression { query: *query, refusal, principal, device, address };
        let _oldest_is_forgotten = self.regressions.force_push(regression);
        true
    }

    pub(super) fn new() -> Self {
        Self {
            allowed: ArrayQueue::new(ALLOWED_MAX),
            regressions: ArrayQueue::new(REGRESSIONS_MAX),
            decided: AtomicU64::new(0),
        }
    }

    /// Fetches what was allowed since the last time, as far as there was room.
    pub fn drain_allowed(&self, take: impl FnMut(Query)) {
        // No more than there was room for: an engine may be adding as fast as this takes.
        (0..ALLOWED_MAX).map_while(|_| self.allowed.pop()).for_each(take);
    }

    pub fn drain_regressions(&self, take: impl FnMut(Regression)) {
        (0..REGRESSIONS_MAX).map_while(|_| self.regressions.pop()).for_each(take);
    }

    /// Decisions so far.
    pub fn decided(&self) -> u64 {
        self.decided.load(Ordering::Relaxed)
    }
}

/// Allowed decisions that one thread can make between two looks of the control thread; 900 KiB.
const ALLOWED_MAX: usize = 8192;

/// Regressions of one thread between two looks. A few are enough to act on.
const REGRESSIONS_MAX: usize = 1024;
