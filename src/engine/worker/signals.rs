//! Commands to all engine threads, and the care by which a thread that sleeps misses none of them.
//!
//! Commands are signals, not messages: a thread that is behind sees the last state of each, so there is no
//! queue that could fill. Whoever sets one wakes the threads afterwards; a thread takes the waking first and
//! reads the signals afterwards. The other way round, it could take a waking along with the one that it knows
//! of, and sleep on what came with it: the kernel does not tell of a waking that was taken before it looked.
//!
//! `tests/loom` runs this file in every order that threads can run in.

use crate::sys::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sys::wake::Wake;

/// What all threads have been told.
pub(in crate::engine) struct Signals {
    draining: AtomicBool,
    stopping: AtomicBool,
    /// Counts requests to put every session's decision again.
    rechecks: AtomicU64,
}

/// What one thread has heard of it.
#[derive(Default)]
pub(in crate::engine) struct SignalReader {
    rechecks_heard: u64,
    /// Woken, and has not read the signals since.
    signals_unread: bool,
    /// Woken, and has not found its requests done since.
    requests_unseen: bool,
}

/// Whether every session's decision is to be put again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::engine) enum Recheck {
    Asked,
    NotAsked,
}

impl Signals {
    pub fn new() -> Self {
        Self {
            draining: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            rechecks: AtomicU64::new(0),
        }
    }

    /// Wake the threads after this, as after each of the next two.
    pub fn recheck(&self) {
        self.rechecks.fetch_add(1, Ordering::Release);
    }

    pub fn drain(&self) {
        self.draining.store(true, Ordering::Release);
    }

    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
    }

    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }
}

impl SignalReader {
    /// The thread was woken: takes all wakings so far.
    pub fn take(&mut self, wake: &Wake) {
        wake.clear();
        self.signals_unread = true;
        self.requests_unseen = true;
    }

    /// Begins a turn. Call this before the view is pinned: then the view is at least as new as the request.
    pub fn read(&mut self, signals: &Signals) -> Recheck {
        self.signals_unread = false;
        let rechecks = signals.rechecks.load(Ordering::Acquire);
        if std::mem::replace(&mut self.rechecks_heard, rechecks) == rechecks {
            Recheck::NotAsked
        } else {
            Recheck::Asked
        }
    }

    /// The queue of requests was found empty.
    pub fn found_no_request(&mut self) {
        self.requests_unseen = false;
    }

    pub fn has_requests(&self) -> bool {
        self.requests_unseen
    }

    /// Whether nothing that the thread was woken for is left for another turn.
    pub fn is_done(&self) -> bool {
        !self.signals_unread && !self.requests_unseen
    }
}
