//! An engine thread with one tunnel, and the requests that other threads can send to it.

use std::collections::VecDeque;

use loom::sync::{Arc, Mutex};

use crate::authz::{Authority, Decision, Query, UnixMillis};
use crate::sys::wake::Wake;
use signals::{Recheck, SignalReader, Signals};

#[path = "../../../src/engine/worker/signals.rs"]
mod signals;

/// The data that all threads share, as in `engine::shared`.
pub struct Shared {
    pub authority: Authority,
    signals: Signals,
    wake: Wake,
    requests: Mutex<VecDeque<WorkerRequest>>,
}

/// A request that goes through the queue. The number identifies it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WorkerRequest(pub u32);

/// The queue holds [`REQUESTS_MAX`] requests already.
#[derive(Debug)]
pub struct QueueFull;

pub struct EngineThread {
    shared: Arc<Shared>,
    signal_reader: SignalReader,
}

/// The result of one turn.
#[derive(Debug, Default)]
pub struct Turn {
    /// The new decision on the tunnel, if the turn rechecked it.
    pub recheck: Option<Decision>,
    /// The request that the turn served.
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

    /// Wakes the thread without a signal or a request.
    pub fn nudge(&self) {
        self.wake.wake();
    }

    pub fn submit(&self, request: WorkerRequest) -> Result<(), QueueFull> {
        {
            let mut requests = self.requests.lock().unwrap();
            if requests.len() == REQUESTS_MAX {
                return Err(QueueFull);
            }
            requests.push_back(request);
        }
        self.wake.wake();
        Ok(())
    }
}

impl EngineThread {
    pub fn new(shared: &Arc<Shared>) -> Self {
        Self { shared: Arc::clone(shared), signal_reader: SignalReader::default() }
    }

    /// Does only the first part of a turn, and no pin. The fence of a pin would hide a missing ordering in
    /// the signals.
    pub fn sees_recheck(&mut self) -> bool {
        self.signal_reader.read(&self.shared.signals) == Recheck::Requested
    }

    /// Does the steps of `Worker::turn` in its order: sleep, read the signals, pin the view, clear the
    /// wake-up, serve one request.
    pub fn turn(&mut self, tunnel: &Query, now: UnixMillis) -> Turn {
        let shared = &*self.shared;
        let is_woken = if self.signal_reader.is_done() {
            shared.wake.sleep();
            true
        } else {
            shared.wake.is_there()
        };
        let is_last = shared.signals.is_stopping();
        let recheck = self.signal_reader.read(&shared.signals);
        let view = shared.authority.pin();
        if is_woken {
            self.signal_reader.clear(&shared.wake);
        }
        let recheck = (recheck == Recheck::Requested).then(|| view.decide(tunnel, now));
        let mut request = None;
        if self.signal_reader.has_requests() {
            request = shared.requests.lock().unwrap().pop_front();
            if request.is_none() {
                self.signal_reader.found_no_request();
            }
        }
        Turn { recheck, request, is_last }
    }
}

/// Requests that fit in the queue. Two, so that a model with three meets a full queue.
const REQUESTS_MAX: usize = 2;
