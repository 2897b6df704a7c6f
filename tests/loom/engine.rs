//! An engine thread with one tunnel, and what other threads may ask of it.

use std::collections::VecDeque;

use loom::sync::{Arc, Mutex};

use crate::authz::{Authority, Decision, Query, UnixMillis};
use crate::sys::wake::Wake;
use signals::{Recheck, SignalReader, Signals};

#[path = "../../src/engine/worker/signals.rs"]
mod signals;

/// What the thread shares with all others, as `engine::shared` does.
pub struct Shared {
    pub authority: Authority,
    signals: Signals,
    wake: Wake,
    requests: Mutex<VecDeque<WorkerRequest>>,
}

/// Any request that is not a level; told apart by its number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WorkerRequest(pub u32);

/// The queue had no room.
#[derive(Debug)]
pub struct Busy;

/// See the module.
pub struct EngineThread {
    shared: Arc<Shared>,
    attention: SignalReader,
}

/// What came of a turn.
#[derive(Debug, Default)]
pub struct Turn {
    /// The tunnel's decision, where it was put again.
    pub recheck: Option<Decision>,
    pub request: Option<WorkerRequest>,
    pub is_last: bool,
}

impl Shared {
    pub fn new(authority: Authority) -> Arc<Self> {
        let requests = Mutex::default();
        Arc::new(Self { authority, signals: Signals::new(), wake: Wake::default(), requests })
    }

    pub fn recheck(&self) {
        self.signals.recheck();
        self.wake.wake();
    }

    pub fn stop(&self) {
        self.signals.stop();
        self.wake.wake();
    }

    pub fn nudge(&self) {
        self.wake.wake();
    }

    pub fn ask(&self, request: WorkerRequest) -> Result<(), Busy> {
        {
            let mut requests = self.requests.lock().unwrap();
            if requests.len() == REQUESTS_MAX {
                return Err(Busy);
            }
            requests.push_back(request);
        }
        self.wake.wake();
        Ok(())
    }
}

impl EngineThread {
    pub fn new(shared: &Arc<Shared>) -> Self {
        Self { shared: Arc::clone(shared), attention: SignalReader::default() }
    }

    /// The first part of a turn alone: pinning orders what it stands between, whatever the signals do.
    pub fn hears_recheck(&mut self) -> bool {
        self.attention.read(&self.shared.signals) == Recheck::Asked
    }

    /// As `Worker::turn`, in its order: sleep, read the signals, pin, take the waking, do an request.
    pub fn turn(&mut self, tunnel: &Query, now: UnixMillis) -> Turn {
        let shared = &*self.shared;
        let is_woken = if self.attention.is_done() {
            shared.wake.sleep();
            true
        } else {
            shared.wake.is_there()
        };
        let is_last = shared.signals.is_stopping();
        let recheck = self.attention.read(&shared.signals);
        let view = shared.authority.pin();
        if is_woken {
            self.attention.take(&shared.wake);
        }
        let recheck = (recheck == Recheck::Asked).then(|| view.decide(tunnel, now));
        let mut request = None;
        if self.attention.has_requests() {
            request = shared.requests.lock().unwrap().pop_front();
            if request.is_none() {
                self.attention.found_no_request();
            }
        }
        Turn { recheck, request, is_last }
    }
}

/// RequestsInProgress that wait; few, so that there is no room for a third.
pub const REQUESTS_MAX: usize = 2;
