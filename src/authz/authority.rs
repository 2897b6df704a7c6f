//! The snapshot in force and how far it can be trusted: written by the control thread, read by engines.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use super::{Decision, Query, Refusal, Revocations, Snapshot, Undecided, UnixMillis};
use crate::sys::root::{Pin, Root};

/// What decides: a snapshot with the revocations on top of it.
pub struct View {
    pub snapshot: Arc<Snapshot>,
    pub revocations: Arc<Revocations>,
}

/// Shared by the control thread, which publishes, and the engines, which decide.
pub struct Authority {
    root: Root<View>,
    /// When the store last confirmed that the view is current.
    confirmed_at: AtomicI64,
    store_reachable: AtomicBool,
    max_stale_ms: i64,
    /// This node's name, where it has one.
    node: Option<Box<str>>,
}

/// The view in force, held for one turn of an engine.
pub struct PinnedView<'a> {
    view: Pin<'a, View>,
    authority: &'a Authority,
}

impl Authority {
    pub fn new(max_stale: Duration, node: Option<&str>) -> Self {
        Self {
            root: Root::empty(),
            confirmed_at: AtomicI64::new(i64::MIN),
            store_reachable: AtomicBool::new(false),
            max_stale_ms: i64::try_from(max_stale.as_millis()).unwrap_or(i64::MAX),
            node: node.map(Into::into),
        }
    }

    /// Control thread only. The caller keeps an `Arc` of its own until it is the last one, so that a
    /// large snapshot is never freed on an engine thread.
    pub fn publish(&self, view: Arc<View>) {
        self.root.publish(view);
    }

    /// The store answered at `now`, and the view in force is what it says.
    pub fn confirm(&self, now: UnixMillis) {
        self.confirmed_at.store(now.0, Ordering::Relaxed);
        self.store_reachable.store(true, Ordering::Relaxed);
    }

    /// The store could not be read.
    pub fn lost_store(&self) {
        self.store_reachable.store(false, Ordering::Relaxed);
    }

    /// Pins the view; once per turn of an event loop, never across a blocking wait.
    pub fn pin(&self) -> PinnedView<'_> {
        PinnedView { view: self.root.pin(), authority: self }
    }
}

impl PinnedView<'_> {
    pub fn decide(&self, query: &Query, now: UnixMillis) -> Decision {
        let Some(view) = self.view.get() else {
            return Decision::Undecided(Undecided::NoSnapshot);
        };
        let authority = self.authority;
        let age_ms = now.0.saturating_sub(authority.confirmed_at.load(Ordering::Relaxed));
        if age_ms > authority.max_stale_ms {
            return Decision::Undecided(Undecided::Stale);
        }
        match view.snapshot.decide(query, &view.revocations, authority.node.as_deref(), now) {
            Decision::Refuse(Refusal::CredentialUnknown)
                if !authority.store_reachable.load(Ordering::Relaxed) =>
            {
                Decision::Undecided(Undecided::StoreUnreachable)
            }
            decision => decision,
        }
    }

    pub fn get(&self) -> Option<&View> {
        self.view.get()
    }
}
