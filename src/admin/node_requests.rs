//! Requests to the thread that started the node and reloads it, and the outcomes of reloads.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, bounded};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::api::{DrainBegun, DrainEnded, ReloadOutcome, ReloadStatus};
use crate::authz::UnixMillis;
use crate::handover::UpgradeTicket;

/// Something that the main thread is to do.
#[derive(Debug)]
pub enum NodeRequest {
    /// Reads the configuration again. The outcome is recorded under this number.
    Reload(u64),
    /// Drains the node without an end of the process, for this time or until it is to serve again.
    Drain(Option<Duration>, oneshot::Sender<DrainBegun>),
    /// Ends such a drain.
    Serve(oneshot::Sender<DrainEnded>),
    /// Hands over to a new process. Nobody may wait for the outcome.
    Upgrade(Option<UpgradeTicket>),
}

/// A way to send requests to the main thread, from any thread, and to see what came of them. Cheap to clone.
#[derive(Clone)]
pub struct NodeRequests {
    queue: Sender<NodeRequest>,
    reloads: Arc<Mutex<Reloads>>,
}

/// Reason why a request was not sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RequestError {
    #[error("{REQUESTS_MAX} requests wait already; try again")]
    Busy,
    #[error("this relay takes no such requests: it runs inside another program, or ends")]
    Gone,
}

/// Reloads since the start.
struct Reloads {
    /// Reloads that were asked for.
    asked: u64,
    /// The latest outcomes, the newest last.
    outcomes: VecDeque<ReloadOutcome>,
    /// Time from which the configuration in force is.
    succeeded_at: UnixMillis,
}

impl NodeRequests {
    /// Returns the sending end, and the requests for the main thread.
    pub fn new() -> (Self, Receiver<NodeRequest>) {
        let (queue, requests) = bounded(REQUESTS_MAX);
        let reloads = Reloads { asked: 0, outcomes: VecDeque::new(), succeeded_at: UnixMillis::now() };
        (Self { queue, reloads: Arc::new(Mutex::new(reloads)) }, requests)
    }

    /// Requests a reload. Returns its number, for [`outcome`](Self::outcome).
    pub fn reload(&self) -> Result<u64, RequestError> {
        let mut reloads = self.reloads.lock();
        let number = reloads.asked + 1;
        self.send(NodeRequest::Reload(number))?;
        reloads.asked = number;
        Ok(number)
    }

    /// Drains the node, for `lasts` or until [`serve`](Self::serve).
    pub async fn drain(&self, lasts: Option<Duration>) -> Result<DrainBegun, RequestError> {
        let (answer, answered) = oneshot::channel();
        self.send(NodeRequest::Drain(lasts, answer))?;
        answered.await.map_err(|_| RequestError::Gone)
    }

    /// Serves new clients again.
    pub async fn serve(&self) -> Result<DrainEnded, RequestError> {
        let (answer, answered) = oneshot::channel();
        self.send(NodeRequest::Serve(answer))?;
        answered.await.map_err(|_| RequestError::Gone)
    }

    /// Hands over to the program on disk.
    pub fn upgrade(&self, ticket: Option<UpgradeTicket>) -> Result<(), RequestError> {
        self.send(NodeRequest::Upgrade(ticket))
    }

    fn send(&self, request: NodeRequest) -> Result<(), RequestError> {
        self.queue
            .try_send(request)
            .map_err(|error| if error.is_full() { RequestError::Busy } else { RequestError::Gone })
    }

    /// Records what came of the reload with this number.
    pub fn record(&self, number: u64, result: Result<(), String>) {
        let at = UnixMillis::now();
        let mut reloads = self.reloads.lock();
        if result.is_ok() {
            reloads.succeeded_at = at;
        }
        if reloads.outcomes.len() == OUTCOMES_KEPT {
            reloads.outcomes.pop_front();
        }
        reloads.outcomes.push_back(ReloadOutcome { number, at, error: result.err() });
    }

    /// The outcome of a reload; `None` while it is not known, or not any more.
    pub fn outcome(&self, number: u64) -> Option<ReloadOutcome> {
        self.reloads.lock().outcomes.iter().find(|outcome| outcome.number == number).cloned()
    }

    pub fn status(&self) -> ReloadStatus {
        let reloads = self.reloads.lock();
        ReloadStatus { last: reloads.outcomes.back().cloned(), in_force_since: reloads.succeeded_at }
    }
}

/// Requests that wait while another runs. A reload may take as long as two full reads of the store.
const REQUESTS_MAX: usize = 8;

/// Outcomes that somebody may still ask for: of all requests that can wait, and of as many before.
const OUTCOMES_KEPT: usize = 2 * REQUESTS_MAX;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reload_has_an_outcome_of_its_own_and_a_refused_one_leaves_the_time_of_the_last_success() {
        let (requests, queue) = NodeRequests::new();
        let began = requests.status().in_force_since;
        let (first, second) = (requests.reload().unwrap(), requests.reload().unwrap());
        assert!(queue.try_iter().map(|request| format!("{request:?}")).eq(["Reload(1)", "Reload(2)"]));
        assert_eq!(requests.outcome(first), None);
        requests.record(first, Err("no".to_owned()));
        assert_eq!(requests.outcome(first).unwrap().error.as_deref(), Some("no"));
        assert_eq!((requests.outcome(second), requests.status().in_force_since), (None, began));
        requests.record(second, Ok(()));
        assert_eq!(requests.status().last.unwrap().error, None);
        assert_eq!(requests.outcome(first).unwrap().error.as_deref(), Some("no"));
    }

    #[test]
    fn no_more_requests_wait_than_the_bound_and_none_where_nobody_serves_them() {
        let (requests, queue) = NodeRequests::new();
        (0..REQUESTS_MAX).for_each(|_| assert!(requests.reload().is_ok()));
        assert_eq!(requests.reload(), Err(RequestError::Busy));
        drop(queue);
        assert_eq!(requests.reload(), Err(RequestError::Gone));
    }
}
