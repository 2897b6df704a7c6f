//! Signals to all engine threads, and the order of reads by which a sleeping thread misses none.
//!
//! Signals are flags, not messages: a thread that is behind sees the latest state of each, so no queue can fill. A
//! sender sets a flag first and wakes the threads afterwards. A thread clears its eventfd first and reads the flags
//! afterwards. In the opposite order it could clear a wake-up whose flag it has not read, and sleep: the ring does
//! not report a wake-up that was cleared before it polled.
//!
//! `tests/loom` runs this file in every possible order of threads.

use crate::sys::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sys::wake::Wake;

/// The flags that all threads read.
pub(in crate::engine) struct Signals {
    /// The value of a [`ServicePhase`].
    phase: AtomicU64,
    stopping: AtomicBool,
    /// Number of requests to repeat every session's decision.
    rechecks: AtomicU64,
}

/// The clients that the node serves, on the way from its service to its end.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum ServicePhase {
    /// All.
    Serving = 0,
    /// All, while the node says that it is not ready, so that load balancers send new ones elsewhere.
    LameDuck = 1,
    /// Open tunnels, and requests that peers hand over. Clients of its own are refused.
    Draining = 2,
    /// Open tunnels. The node is about to end, and peers ask again later.
    Leaving = 3,
}

/// The flags that one thread has read.
#[derive(Default)]
pub(in crate::engine) struct SignalReader {
    /// The value of `rechecks` at the last read.
    rechecks_seen: u64,
    /// The thread was woken and has not read the flags since.
    signals_unread: bool,
    /// The thread was woken and has not found its queue of requests empty since.
    requests_unread: bool,
}

/// A request to repeat every session's decision.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::engine) enum Recheck {
    Requested,
    NotRequested,
}

impl Signals {
    pub fn new() -> Self {
        Self {
            phase: AtomicU64::new(ServicePhase::Serving as u64),
            stopping: AtomicBool::new(false),
            rechecks: AtomicU64::new(0),
        }
    }

    /// Requests a recheck. Wake the threads afterwards, as after each of the next two.
    pub fn recheck(&self) {
        self.rechecks.fetch_add(1, Ordering::Release);
    }

    pub fn set_phase(&self, phase: ServicePhase) {
        self.phase.store(phase as u64, Ordering::Release);
    }

    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
    }

    pub fn phase(&self) -> ServicePhase {
        match self.phase.load(Ordering::Acquire) {
            0 => ServicePhase::Serving,
            1 => ServicePhase::LameDuck,
            2 => ServicePhase::Draining,
            _ => ServicePhase::Leaving,
        }
    }

    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }
}

impl SignalReader {
    /// The thread was woken: clears the eventfd.
    pub fn clear(&mut self, wake: &Wake) {
        wake.clear();
        self.signals_unread = true;
        self.requests_unread = true;
    }

    /// Reads the flags at the begin of a turn. Call it before the view is pinned: then the view is at least as new as
    /// the request for a recheck.
    pub fn read(&mut self, signals: &Signals) -> Recheck {
        self.signals_unread = false;
        let rechecks = signals.rechecks.load(Ordering::Acquire);
        if std::mem::replace(&mut self.rechecks_seen, rechecks) == rechecks {
            Recheck::NotRequested
        } else {
            Recheck::Requested
        }
    }

    /// Records that the queue of requests was empty.
    pub fn found_no_request(&mut self) {
        self.requests_unread = false;
    }

    pub fn has_requests(&self) -> bool {
        self.requests_unread
    }

    /// True where the thread has handled everything that it was woken for.
    pub fn is_done(&self) -> bool {
        !self.signals_unread && !self.requests_unread
    }
}
