//! Serves the requests of other threads, a few sessions in each turn.

use crossbeam::channel::Sender;

use super::signals::SignalReader;
use super::slab::Sessions;
use crate::engine::kernel::Kernel;
use crate::engine::requests::{EndResult, RequestQueue, Verdict, WorkerRequest};
use crate::engine::turn::TurnCx;
use crate::engine::user_data::Slot;

/// The request that this thread serves, and its progress.
#[derive(Default)]
pub(super) struct RequestsInProgress {
    current: Option<CurrentRequest>,
}

struct CurrentRequest {
    request: WorkerRequest,
    /// The next place of the session table to visit.
    next: usize,
}

/// What a request needs of the thread beside its sessions.
pub(super) enum Due {
    End(SessionToEnd),
    /// Decisions of another process about sessions of this thread.
    Judge(Vec<(Slot, Verdict)>),
    Other(WorkerRequest),
}

/// A session that a request wants ended. The caller ends it and then confirms that.
pub(super) struct SessionToEnd {
    pub slot: Slot,
    answer: Sender<EndResult>,
}

impl RequestsInProgress {
    pub fn is_idle(&self) -> bool {
        self.current.is_none()
    }

    /// Continues the oldest request with the next sessions. Returns what is left to the caller, once it is known.
    pub fn serve<K: Kernel>(
        &mut self,
        queue: &RequestQueue,
        sessions: &mut Sessions<K>,
        signals: &mut SignalReader,
        cx: &mut TurnCx<'_, K>,
    ) -> Option<Due> {
        if self.is_idle() && !signals.has_requests() {
            return None;
        }
        let next_request = || Some(CurrentRequest { request: queue.pop()?, next: 0 });
        let Some(CurrentRequest { mut request, next }) = self.current.take().or_else(next_request) else {
            signals.found_no_request();
            return None;
        };
        let end = (next + SESSIONS_PER_TURN).min(sessions.places());
        let mut slots = (next..end).map(|place| Slot(place as u32));
        match &mut request {
            WorkerRequest::List { list, .. } => {
                for slot in slots {
                    let Some(session) = sessions.get_mut(slot) else { continue };
                    // The list never grows: an allocation would take this thread's time.
                    if list.rows.len() < list.rows.capacity() {
                        list.rows.push(session.row(cx.now));
                    } else {
                        list.left_out += 1;
                    }
                }
            }
            WorkerRequest::Usage { .. } => {
                for slot in slots {
                    if let Some(session) = sessions.get_mut(slot) {
                        session.count_use(cx);
                    }
                }
            }
            WorkerRequest::End { session: wanted, answer } => {
                let is_wanted = |slot: &Slot| {
                    sessions
                        .get_mut(*slot)
                        .is_some_and(|session| session.id() == *wanted && session.is_live())
                };
                if let Some(slot) = slots.find(is_wanted) {
                    return Some(Due::End(SessionToEnd { slot, answer: answer.clone() }));
                }
            }
            WorkerRequest::Judge { verdicts } => {
                let judged: Vec<_> = slots
                    .filter_map(|slot| Some((slot, verdicts.remove(&sessions.get_mut(slot)?.id())?)))
                    .collect();
                if !verdicts.is_empty() && end < sessions.places() {
                    self.current = Some(CurrentRequest { request, next: end });
                }
                return (!judged.is_empty()).then_some(Due::Judge(judged));
            }
            _ => return Some(Due::Other(request)),
        }
        if end < sessions.places() {
            self.current = Some(CurrentRequest { request, next: end });
            return None;
        }
        // The requester may have given up.
        match request {
            WorkerRequest::List { list, answer } => drop(answer.try_send(list)),
            WorkerRequest::End { answer, .. } => drop(answer.try_send(EndResult::NotFound)),
            WorkerRequest::Usage { next, answer } => {
                let sums = std::mem::replace(cx.usage, next);
                if let Err(refused) = answer.try_send(sums) {
                    *cx.usage = refused.into_inner();
                }
            }
            other => return Some(Due::Other(other)),
        }
        None
    }
}

impl SessionToEnd {
    /// Answers that the session has ended. The requester may have given up.
    pub fn confirm(self) {
        let _has_given_up = self.answer.try_send(EndResult::Ended);
    }
}

/// Sessions that one turn visits for requests, of some 0.2 µs each.
pub(in crate::engine) const SESSIONS_PER_TURN: usize = 128;
