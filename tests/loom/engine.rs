//! An engine thread with one tunnel, and what other threads may ask of it.

use std::collections::VecDeque;

use loom::sync::{Arc, Mutex};

use crate::authz::{Authority, Decision, Query, UnixMillis};
use crate::sys::wake::Wake;
use levels::{Attention, Levels, Recheck};

#[path = "../../src/engine/levels.rs"]
mod levels;

/// What the thread shares with all others, as `engine::shared` does.
pub struct Shared {
    pub authority: Authority,
    levels: Levels,
    wake: Wake,
    errands: Mutex<VecDeque<Errand>>,
}

/// Any request that is not a level; told apart by its number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Errand(pub u32);

/// The queue had no room.
#[derive(Debug)]
pub struct Busy;

/// See the module.
pub struct EngineThread {
    shared: Arc<Shared>,
    attention: Attention,
}

/// What came of a turn.
#[derive(Debug, Default)]
pub struct Turn {
    /// The tunnel's decision, where it was put again.
    pub recheck: Option<Decision>,
    pub errand: Option<Errand>,
    pub is_last: bool,
}

impl Shared {
    pub fn new(authority: Authority) -> Arc<Self> {
        let errands = Mutex::default();
        Arc::new(Self { authority, levels: Levels::new(), wake: Wake::default(), errands })
    }

    pub fn recheck(&self) {
        self.levels.recheck();
        self.wake.wake();
    }

    pub fn stop(&self) {
        self.levels.stop();
        self.wake.wake();
    }

    pub fn nudge(&self) {
        self.wake.wake();
    }

    pub fn ask(&self, errand: Errand) -> Result<(), Busy> {
        {
            let mut errands = self.errands.lock().unwrap();
            if errands.len() == ERRANDS_MAX {
                return Err(Busy);
            }
            errands.push_back(errand);
        }
        self.wake.wake();
        Ok(())
    }
}

impl EngineThread {
    pub fn new(shared: &Arc<Shared>) -> Self {
        Self { shared: Arc::clone(shared), attention: Attention::default() }
    }

    /// The first part of a turn alone: pinning orders what it stands between, whatever the levels do.
    pub fn hears_recheck(&mut self) -> bool {
        self.attention.read(&self.shared.levels) == Recheck::Asked
    }

    /// As `Worker::turn`, in its order: sleep, read the levels, pin, take the waking, do an errand.
    pub fn turn(&mut self, tunnel: &Query, now: UnixMillis) -> Turn {
        let shared = &*self.shared;
        let is_woken = if self.attention.is_done() {
            shared.wake.sleep();
            true
        } else {
            shared.wake.is_there()
        };
        let is_last = shared.levels.is_stopping();
        let recheck = self.attention.read(&shared.levels);
        let view = shared.authority.pin();
        if is_woken {
            self.attention.take(&shared.wake);
        }
        let recheck = (recheck == Recheck::Asked).then(|| view.decide(tunnel, now));
        let mut errand = None;
        if self.attention.has_errands() {
            errand = shared.errands.lock().unwrap().pop_front();
            if errand.is_none() {
                self.attention.found_no_errand();
            }
        }
        Turn { recheck, errand, is_last }
    }
}

/// Errands that wait; few, so that there is no room for a third.
pub const ERRANDS_MAX: usize = 2;
