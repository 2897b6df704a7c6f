//! Requests to the thread that started the node and reloads it, and the outcomes of reloads.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, bounded};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::api::{DrainBegun, DrainEnded, ReloadOutcome, ReloadStatus};
use crate::authz::UnixMillis;
use crate::handover::{PassedReloads, UpgradeTicket};

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

/// A reload that this process has not heard of, or not any more.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "the outcome of reload {0} is not known any more, since another process serves this node now; its log and \
     `sluicegate status` say what is in force"
)]
pub struct UnknownReload(u64);

/// Reloads since the start, and those of processes before that handed over.
struct Reloads {
    /// Reloads that were asked for.
    asked: u64,
    /// Number of the last that was done.
    done: u64,
    /// The latest outcomes, the newest last.
    outcomes: VecDeque<ReloadOutcome>,
    /// Time from which the configuration in force is.
    succeeded_at: UnixMillis,
}

impl NodeRequests {
    /// Returns the sending end, and the requests for the main thread.
    pub fn new() -> (Self, Receiver<NodeRequest>) {
        let (queue, requests) = bounded(REQUESTS_MAX);
        let (outcomes, succeeded_at) = (VecDeque::new(), UnixMillis::now());
        let reloads = Reloads { asked: 0, done: 0, outcomes, succeeded_at };
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
        let outcome = ReloadOutcome { number, at: UnixMillis::now(), error: result.err() };
        self.reloads.lock().record(outcome);
    }

    /// The reloads for a process that takes over; `done` is one that it does by that.
    pub fn passed(&self, done: Option<u64>) -> PassedReloads {
        let reloads = self.reloads.lock();
        let done = done.map(|number| ReloadOutcome { number, at: UnixMillis::now(), error: None });
        let outcomes = reloads.outcomes.iter().cloned().chain(done.clone());
        let outcomes: Vec<_> = outcomes.collect();
        let last = done.map_or(reloads.done, |done| done.number.max(reloads.done));
        PassedReloads::new(reloads.asked, last, outcomes.into_iter())
    }

    /// Goes on with the reloads of the process before: its outcomes can be asked for here, and those that waited there
    /// are done here.
    pub fn take_over(&self, passed: PassedReloads) {
        let waiting = passed.waiting(REQUESTS_MAX);
        {
            let mut reloads = self.reloads.lock();
            (reloads.asked, reloads.done) = (passed.asked(), *waiting.start() - 1);
            passed.into_outcomes().into_iter().for_each(|outcome| reloads.record(outcome));
        }
        for number in waiting {
            if let Err(error) = self.send(NodeRequest::Reload(number)) {
                self.record(number, Err(error.to_string()));
            }
        }
    }

    /// The outcome of a reload; `Ok(None)` while it is not known.
    pub fn outcome(&self, number: u64) -> Result<Option<ReloadOutcome>, UnknownReload> {
        let reloads = self.reloads.lock();
        let outcome = reloads.outcomes.iter().find(|outcome| outcome.number == number);
        if outcome.is_none() && (number > reloads.asked || number <= reloads.done) {
            return Err(UnknownReload(number));
        }
        Ok(outcome.cloned())
    }

    pub fn status(&self) -> ReloadStatus {
        let reloads = self.reloads.lock();
        ReloadStatus { last: reloads.outcomes.back().cloned(), in_force_since: reloads.succeeded_at }
    }
}

impl Reloads {
    fn record(&mut self, outcome: ReloadOutcome) {
        self.done = self.done.max(outcome.number);
        if outcome.error.is_none() {
            self.succeeded_at = outcome.at;
        }
        if self.outcomes.len() == OUTCOMES_KEPT {
            self.outcomes.pop_front();
        }
        self.outcomes.push_back(outcome);
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
        assert_eq!(requests.outcome(first), Ok(None));
        requests.record(first, Err("no".to_owned()));
        let error = |number| requests.outcome(number).unwrap().map(|outcome| outcome.error);
        assert_eq!(error(first), Some(Some("no".to_owned())));
        assert_eq!((error(second), requests.status().in_force_since), (None, began));
        requests.record(second, Ok(()));
        assert_eq!(requests.status().last.unwrap().error, None);
        assert_eq!(error(first), Some(Some("no".to_owned())));
        assert_eq!(requests.outcome(3), Err(UnknownReload(3)), "nobody asked for it");
    }

    #[test]
    fn a_process_that_takes_over_knows_the_outcomes_and_does_what_waited() {
        let (old, _queue) = NodeRequests::new();
        (1..=5).for_each(|number| assert_eq!(old.reload(), Ok(number)));
        old.record(1, Err("no".to_owned()));
        let (new, queue) = NodeRequests::new();
        // The old process is at the second, which it does by the hand-over.
        new.take_over(old.passed(Some(2)));
        assert!(queue.try_iter().map(|request| format!("{request:?}")).eq([
            "Reload(3)",
            "Reload(4)",
            "Reload(5)"
        ]));
        let error = |number| new.outcome(number).map(|outcome| outcome.map(|outcome| outcome.error));
        assert_eq!(error(1), Ok(Some(Some("no".to_owned()))));
        assert_eq!([error(2), error(3)], [Ok(Some(None)), Ok(None)]);
        assert_eq!(new.reload(), Ok(6));
        // An upgrade does no reload.
        let (newest, _queue) = NodeRequests::new();
        newest.take_over(new.passed(None));
        assert_eq!(newest.outcome(2).unwrap().unwrap().error, None);
        assert_eq!(newest.outcome(3), Ok(None));
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
