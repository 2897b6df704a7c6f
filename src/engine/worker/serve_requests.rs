//! Serves the requests of other threads, a few sessions in each turn.

use super::driver::SessionDriver;
use super::signals::SignalReader;
use crate::engine::kernel::uring::UringKernel;
use crate::engine::requests::{EndResult, WorkerRequest};
use crate::engine::session::Session;
use crate::engine::shared::ThreadShared;
use crate::engine::turn::TurnCx;
use crate::engine::user_data::Slot;

/// The requests that this thread serves.
#[derive(Default)]
pub(super) struct RequestsInProgress {
    current: Option<CurrentRequest>,
}

struct CurrentRequest {
    request: WorkerRequest,
    /// The next place of the session table to visit.
    next: usize,
}

impl RequestsInProgress {
    pub fn is_idle(&self) -> bool {
        self.current.is_none()
    }
}

impl SessionDriver {
    /// Continues the oldest request.
    pub(super) fn serve_requests(&mut self, signals: &mut SignalReader, cx: &mut TurnCx<'_, UringKernel>) {
        if self.requests.is_idle() && !signals.has_requests() {
            return;
        }
        let Some(CurrentRequest { mut request, next }) =
            self.requests.current.take().or_else(|| next_request(&cx.shared.threads[self.number]))
        else {
            signals.found_no_request();
            return;
        };
        let end = (next + SESSIONS_PER_TURN).min(self.sessions.places());
        match &mut request {
            WorkerRequest::List { list, .. } => {
                for place in next..end {
                    let Some(session) = self.sessions.get_mut(Slot(place as u32)) else { continue };
                    // The list never grows: an allocation would take this thread's time.
                    if list.rows.len() < list.rows.capacity() {
                        list.rows.push(session.row(cx.now));
                    } else {
                        list.left_out += 1;
                    }
                }
            }
            WorkerRequest::End { session, answer } => {
                let wanted = *session;
                let is_wanted = |slot: &Slot| {
                    self.sessions
                        .get_mut(*slot)
                        .is_some_and(|session| session.id == wanted && session.is_live())
                };
                if let Some(slot) = (next..end).map(|place| Slot(place as u32)).find(is_wanted) {
                    self.with_session(slot, cx, Session::end_by_admin);
                    let _nobody_waits = answer.try_send(EndResult::Ended);
                    return;
                }
            }
        }
        if end < self.sessions.places() {
            self.requests.current = Some(CurrentRequest { request, next: end });
            return;
        }
        // The requester may have given up.
        match request {
            WorkerRequest::List { list, answer } => drop(answer.try_send(list)),
            WorkerRequest::End { answer, .. } => drop(answer.try_send(EndResult::NotFound)),
        }
    }
}

fn next_request(thread: &ThreadShared) -> Option<CurrentRequest> {
    Some(CurrentRequest { request: thread.requests.pop()?, next: 0 })
}

/// Sessions that one turn visits for requests, of some 0.2 µs each.
pub(in crate::engine) const SESSIONS_PER_TURN: usize = 128;
