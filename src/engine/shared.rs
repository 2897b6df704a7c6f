//! What all engine threads and their handles share.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};

use nix::unistd::gettid;

use super::errands::{self, EngineBusy, Errand, ErrandQueue};
use super::limits::Limits;
use crate::authz::{Authority, Witness};
use crate::config::Config;
use crate::sys::wake::Wake;
use crate::telemetry::{AuditSender, EngineCounters};

/// Commands to all are levels, not messages: a thread that is behind sees the last state of each and misses
/// nothing, so there is no queue that could fill.
pub(super) struct Shared {
    pub config: Arc<Config>,
    pub authority: Arc<Authority>,
    pub audit: AuditSender,
    pub limits: Arc<Limits>,
    /// One per thread, in the order of their numbers.
    pub threads: Vec<ThreadShared>,
    draining: AtomicBool,
    stopping: AtomicBool,
    /// Counts requests to put every session's decision again.
    rechecks: AtomicU64,
}

/// One thread's part: how to wake it, what it counts, and what it saw of its decisions.
pub(super) struct ThreadShared {
    pub wake: Wake,
    pub counters: Arc<EngineCounters>,
    pub witness: Arc<Witness>,
    pub errands: ErrandQueue,
    /// By which the system knows the thread; 0 until it runs.
    system_id: AtomicI32,
}

impl ThreadShared {
    pub fn new(witness: Arc<Witness>) -> io::Result<Self> {
        Ok(Self {
            wake: Wake::new()?,
            counters: Arc::default(),
            witness,
            errands: errands::queue(),
            system_id: AtomicI32::new(0),
        })
    }

    /// Called by the thread itself.
    pub fn note_running(&self) {
        self.system_id.store(gettid().as_raw(), Ordering::Relaxed);
    }

    pub fn system_id(&self) -> Option<i32> {
        Some(self.system_id.load(Ordering::Relaxed)).filter(|id| *id != 0)
    }

    pub fn ask(&self, errand: Errand) -> Result<(), EngineBusy> {
        self.errands.push(errand).map_err(|_| EngineBusy)?;
        self.wake.wake();
        Ok(())
    }
}

impl Shared {
    pub fn new(
        config: Arc<Config>,
        authority: Arc<Authority>,
        audit: AuditSender,
        limits: Arc<Limits>,
        threads: Vec<ThreadShared>,
    ) -> Self {
        Self {
            config,
            authority,
            audit,
            limits,
            threads,
            draining: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            rechecks: AtomicU64::new(0),
        }
    }

    pub fn recheck(&self) {
        self.rechecks.fetch_add(1, Ordering::Release);
        self.wake_all();
    }

    pub fn drain(&self) {
        self.draining.store(true, Ordering::Release);
        self.wake_all();
    }

    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.wake_all();
    }

    /// Read this before the view is pinned: then the view is at least as new as the request.
    pub fn rechecks(&self) -> u64 {
        self.rechecks.load(Ordering::Acquire)
    }

    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    pub fn wake_all(&self) {
        for thread in &self.threads {
            thread.wake.wake();
        }
    }
}
