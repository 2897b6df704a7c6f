//! Requests of other threads to the engine threads: list the sessions, end one of them, and what a hand-over needs.
//!
//! A request waits in a bounded queue, which the engine thread reads when it is woken. The thread serves a request
//! over several turns, a few sessions in each: see `worker::serve_requests`. The requester provides the memory for
//! the answer and polls for it; an engine thread never waits.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, TryRecvError, bounded};
use crossbeam::queue::ArrayQueue;

use crate::authz::{Refusal, UnixMillis};
use crate::engine::moved_tunnel::MovedTunnel;
use crate::engine::session_view::SessionList;
use crate::sys::wake::Wake;
use crate::telemetry::UsageTable;

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
    List {
        list: SessionList,
        answer: Sender<SessionList>,
    },
    End {
        session: u64,
        answer: Sender<EndResult>,
    },
    /// Wants copies of the thread's listening sockets.
    Listeners {
        answer: Sender<Vec<PassedSocket>>,
    },
    /// Begins, pauses or ends the accepting of clients. Answered once no accept is in flight, where that is wanted.
    Accepting {
        mode: Accepting,
        answer: Sender<()>,
    },
    /// Wants tunnels taken out of the thread, at most so many. Answered with none once all were seen.
    Capture {
        tunnels_max: usize,
        answer: Sender<Vec<MovedTunnel>>,
    },
    /// Brings tunnels to go on with.
    Adopt {
        tunnels: Vec<MovedTunnel>,
        answer: Sender<()>,
    },
    /// Wants the sums of what tunnels used since the last such request. The thread goes on with `next`, which is empty.
    Usage {
        next: UsageTable,
        answer: Sender<UsageTable>,
    },
    /// Another process has decided about the rights of these sessions.
    Judge {
        verdicts: HashMap<u64, Verdict>,
    },
}

/// Whether a thread accepts clients.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Accepting {
    Yes,
    /// Clients wait in the listeners' queues.
    Paused,
    /// As paused, and the listeners are closed: another process has them.
    Ended,
}

/// A copy of a listening socket.
#[derive(Debug)]
pub struct PassedSocket {
    /// Place of its settings in the configuration's `listen`.
    pub place: usize,
    pub socket: OwnedFd,
}

/// A decision about a session's right by the process that has the guard's state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// The right stands, until a time where there is one.
    Stands(Option<UnixMillis>),
    Ended(Refusal),
}

impl RequestQueue {
    pub fn new(wake: Arc<Wake>) -> Self {
        Self { waiting: ArrayQueue::new(REQUESTS_MAX), wake }
    }

    /// Queues a request and wakes the thread.
    pub fn send(&self, request: WorkerRequest) -> Result<(), EngineBusy> {
        self.waiting.push(request).map_err(|_| EngineBusy)?;
        self.wake.wake();
        Ok(())
    }

    /// As [`send`](Self::send), and waits a while for room.
    pub fn send_patiently(&self, mut request: WorkerRequest) -> Result<(), EngineBusy> {
        for _ in 0..SEND_TRIES {
            match self.waiting.push(request) {
                Ok(()) => {
                    self.wake.wake();
                    return Ok(());
                }
                Err(refused) => request = refused,
            }
            std::thread::sleep(SEND_PAUSE);
        }
        Err(EngineBusy)
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
    /// Requests the end of a session from its thread.
    pub(super) fn start(thread: &RequestQueue, session: u64) -> Result<Self, EngineBusy> {
        let (answer, answered) = bounded(1);
        thread.send(WorkerRequest::End { session, answer })?;
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

/// Tries of a sender that may wait, and the pause between them: a second in all.
const SEND_TRIES: u32 = 500;
const SEND_PAUSE: Duration = Duration::from_millis(2);

/// Room in a list for sessions of one thread that begin while the list is made.
const LIST_ROOM_SPARE: usize = 256;
