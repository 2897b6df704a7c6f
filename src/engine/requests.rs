//! Requests of other threads to the engine threads: list the sessions, end one of them.
//!
//! A request waits in a bounded queue, which the engine thread reads when it is woken. The thread serves a request
//! over several turns, a few sessions in each: see `worker::serve_requests`. The requester provides the memory for
//! the answer and polls for it; an engine thread never waits.

use std::sync::Arc;

use crossbeam::channel::{Receiver, Sender, TryRecvError, bounded};
use crossbeam::queue::ArrayQueue;

use crate::engine::session_view::SessionList;
use crate::sys::wake::Wake;

/// A list of sessions that the engine threads are making.
pub struct PendingList {
    waiting: Vec<Receiver<SessionList>>,
    list: SessionList,
}

/// A request to end a session, which its thread has not answered.
pub struct PendingEnd {
    answer: Receiver<EndResult>,
}

/// The answer to a request to end a session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EndResult {
    Ended,
    NotFound,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("an engine thread has {REQUESTS_MAX} such requests to serve before this one; try again")]
pub struct EngineBusy;

/// The requests to one thread, and its wake-up.
pub(super) struct RequestQueue {
    waiting: ArrayQueue<WorkerRequest>,
    wake: Arc<Wake>,
}

/// A request to an engine thread.
pub(super) enum WorkerRequest {
    List { list: SessionList, answer: Sender<SessionList> },
    End { session: u64, answer: Sender<EndResult> },
}

impl RequestQueue {
    pub fn new(wake: Arc<Wake>) -> Self {
        Self { waiting: ArrayQueue::new(REQUESTS_MAX), wake }
    }

    /// Queues a request and wakes the thread.
    fn send(&self, request: WorkerRequest) -> Result<(), EngineBusy> {
        self.waiting.push(request).map_err(|_| EngineBusy)?;
        self.wake.wake();
        Ok(())
    }

    /// Takes the oldest request.
    pub fn pop(&self) -> Option<WorkerRequest> {
        self.waiting.pop()
    }
}

/// Number of the thread that has the session with this number.
pub(super) const fn thread_of(session: u64) -> usize {
    (session >> SESSION_NUMBER_BITS) as usize
}

impl PendingList {
    /// Requests a list from each thread, given the number of its sessions.
    pub(super) fn start<'a>(
        threads: impl Iterator<Item = (&'a RequestQueue, u64)>,
    ) -> Result<Self, EngineBusy> {
        let mut waiting = Vec::new();
        for (requests, sessions) in threads {
            let room = sessions as usize + LIST_ROOM_SPARE;
            let list = SessionList { rows: Vec::with_capacity(room), left_out: 0 };
            let (answer, answered) = bounded(1);
            requests.send(WorkerRequest::List { list, answer })?;
            waiting.push(answered);
        }
        Ok(Self { waiting, list: SessionList::default() })
    }

    /// The list, once every thread has added its sessions; `None` before. A thread that has ended has none.
    pub fn poll(&mut self) -> Option<SessionList> {
        let list = &mut self.list;
        self.waiting.retain(|answered| match answered.try_recv() {
            Ok(part) => {
                list.rows.extend(part.rows);
                list.left_out += part.left_out;
                false
            }
            Err(TryRecvError::Empty) => true,
            Err(TryRecvError::Disconnected) => false,
        });
        self.waiting.is_empty().then(|| std::mem::take(list))
    }
}

impl PendingEnd {
    /// Requests the end of a session from its thread; `thread` is `None` where no thread has that number.
    pub(super) fn start(thread: Option<&RequestQueue>, session: u64) -> Result<Self, EngineBusy> {
        let (answer, answered) = bounded(1);
        match thread {
            Some(requests) => requests.send(WorkerRequest::End { session, answer })?,
            // A dropped answer reads as "not found".
            None => drop(answer),
        }
        Ok(Self { answer: answered })
    }

    /// The answer; `None` while there is none.
    pub fn poll(&mut self) -> Option<EndResult> {
        match self.answer.try_recv() {
            Ok(found) => Some(found),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => Some(EndResult::NotFound),
        }
    }
}

/// Bits of a session's number below those that hold its thread's number.
pub(super) const SESSION_NUMBER_BITS: u32 = 48;

/// Requests that may wait for one thread.
const REQUESTS_MAX: usize = 8;

/// Room in a list for sessions of one thread that begin while the list is made.
const LIST_ROOM_SPARE: usize = 256;
