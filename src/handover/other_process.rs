//! The old process of this node, as long as it has sessions: how the new one lists and ends them.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crossbeam::channel::{Receiver, Sender, bounded};
use parking_lot::Mutex;

use super::message::VerdictFields;
use crate::engine::SessionRow;
use crate::sys::wake::Wake;

/// A way to the old process, from any thread. Cheap to clone. There may be none.
#[derive(Clone, Default)]
pub struct OtherProcess {
    shared: Option<Arc<Shared>>,
}

pub(super) struct Shared {
    pub(super) wake: Wake,
    /// Requests that the thread has not sent yet.
    requests: Mutex<Vec<Request>>,
    /// Number of sessions that the old process has.
    pub(super) sessions: AtomicU64,
    /// What is in force has changed.
    pub(super) is_recheck_due: AtomicBool,
    /// This process decides about the old one's sessions. False where it has a successor itself, which does.
    pub(super) decides: AtomicBool,
}

/// A request to the old process, and where its answer goes.
pub(super) enum Request {
    List(Sender<Vec<SessionRow>>),
    End(u64, Sender<bool>),
    /// Decisions of the process after this one.
    Judge(Vec<(u64, VerdictFields)>),
}

/// Requests that were sent, by their numbers.
#[derive(Default)]
pub(super) struct Waiting {
    last_number: u64,
    lists: HashMap<u64, (Vec<SessionRow>, Sender<Vec<SessionRow>>)>,
    ends: HashMap<u64, Sender<bool>>,
}

impl OtherProcess {
    /// For a process that takes over. It reaches the old one once [`ArrivalsThread`](super::ArrivalsThread) runs.
    pub fn to_come() -> std::io::Result<Self> {
        Ok(Self { shared: Some(Arc::new(Shared::new()?)) })
    }

    pub(super) fn shared(&self) -> Option<Arc<Shared>> {
        self.shared.clone()
    }

    /// Number of sessions that the old process has.
    pub fn sessions(&self) -> u64 {
        self.shared.as_ref().map_or(0, |shared| shared.sessions.load(Ordering::Relaxed))
    }

    /// Requests the old process's sessions. The channel ends without an answer where there is none.
    pub fn list(&self) -> Receiver<Vec<SessionRow>> {
        let (answer, answered) = bounded(1);
        self.request(Request::List(answer));
        answered
    }

    /// Requests the end of a session of the old process; answered by whether it has one with this number.
    pub fn end(&self, session: u64) -> Receiver<bool> {
        let (answer, answered) = bounded(1);
        self.request(Request::End(session, answer));
        answered
    }

    /// Has the thread decide again about the old process's sessions: what is in force has changed.
    pub fn recheck(&self) {
        if let Some(shared) = &self.shared {
            shared.is_recheck_due.store(true, Ordering::Release);
            shared.wake.wake();
        }
    }

    /// Sets whether this process decides about the old one's sessions, or a later one does.
    pub(super) fn decide_here(&self, decides: bool) {
        if let Some(shared) = &self.shared {
            shared.decides.store(decides, Ordering::Release);
        }
    }

    /// Passes on the decisions of a later process about sessions that are the old process's.
    pub(super) fn judge(&self, verdicts: Vec<(u64, VerdictFields)>) {
        self.request(Request::Judge(verdicts));
    }

    fn request(&self, request: Request) {
        // Without a process the request is dropped, which its receiver notices.
        if let Some(shared) =
            self.shared.as_ref().filter(|shared| shared.sessions.load(Ordering::Relaxed) > 0)
        {
            shared.requests.lock().push(request);
            shared.wake.wake();
        }
    }
}

impl Shared {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            wake: Wake::new()?,
            requests: Mutex::default(),
            sessions: AtomicU64::new(0),
            is_recheck_due: AtomicBool::new(false),
            decides: AtomicBool::new(true),
        })
    }

    pub fn drain(&self) -> Vec<Request> {
        std::mem::take(&mut self.requests.lock())
    }

    /// The old process is gone: nobody is answered any more.
    pub fn close(&self) {
        self.sessions.store(0, Ordering::Relaxed);
        self.requests.lock().clear();
    }
}

impl Waiting {
    pub fn add_list(&mut self, answer: Sender<Vec<SessionRow>>) -> u64 {
        self.last_number += 1;
        self.lists.insert(self.last_number, (Vec::new(), answer));
        self.last_number
    }

    pub fn add_end(&mut self, answer: Sender<bool>) -> u64 {
        self.last_number += 1;
        self.ends.insert(self.last_number, answer);
        self.last_number
    }

    pub fn add_rows(&mut self, request: u64, rows: Vec<SessionRow>, is_last: bool) {
        if let Some((list, _)) = self.lists.get_mut(&request) {
            list.extend(rows);
        }
        if is_last && let Some((list, answer)) = self.lists.remove(&request) {
            let _has_given_up = answer.try_send(list);
        }
    }

    pub fn finish_end(&mut self, request: u64, was_found: bool) {
        if let Some(answer) = self.ends.remove(&request) {
            let _has_given_up = answer.try_send(was_found);
        }
    }
}
