//! What others may ask of the control thread: what is held, to accept it, to go back.
//!
//! Asked through a bounded queue and answered by the control thread, so that nothing here needs a lock.

use std::time::Duration;

use crossbeam::channel::Sender;
use tokio::sync::oneshot;

use super::api::{Accepted, ExpectRequest, Expectation, Group, HoldStatus, Publication, RolledBack};
use super::diff_report::DiffReport;
use crate::authz::Generation;
use crate::config::{Config, Queries};
use crate::store::{Relation, StoreError};

/// A way to ask, from any thread. Cheap to clone.
#[derive(Clone)]
pub struct Commands {
    pub(super) queue: Sender<Request>,
}

/// A request, and the sender for its reply.
pub(super) enum Request {
    Diff(oneshot::Sender<Result<DiffReport, GuardCommandError>>),
    /// Publishes what is held if its digest is this one: all of it, or one group.
    Accept(String, Option<Group>, oneshot::Sender<Result<Accepted, GuardCommandError>>),
    /// Goes back to before the last publication, or to this generation.
    RollBack(Option<Generation>, oneshot::Sender<Result<RolledBack, GuardCommandError>>),
    /// Announces a mass change. The request was checked.
    Expect(ExpectRequest, oneshot::Sender<Result<Expectation, GuardCommandError>>),
    ClearExpectation(Group, oneshot::Sender<Result<Expectation, GuardCommandError>>),
    /// Asks for the publications of late, the newest first.
    History(oneshot::Sender<Result<Vec<Publication>, GuardCommandError>>),
    /// Asks what these queries would change in place of the ones that they replace.
    Compare(Queries, oneshot::Sender<Result<DiffReport, QueriesError>>),
    Reload(Box<Config>, oneshot::Sender<Result<(), QueriesError>>),
    Writing(Writing, oneshot::Sender<()>),
    Following(Following, oneshot::Sender<()>),
}

/// Whether this process writes the state on disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Writing {
    ByThisProcess,
    /// Another process of this node is about to, or does.
    ByAnother,
}

/// Whether this process follows the store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Following {
    Yes,
    /// As before a `No`: the VPN's tables are this process's again.
    Again,
    /// Another process of this node decides. The VPN's tables are left to it.
    No,
}

/// Reason why a command failed; each text ends in what to do.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum GuardCommandError {
    #[error("nothing is held: what the store says is in force")]
    NothingHeld,
    #[error("there is nothing to accept: the store breaks the contract; mend the query or the schema")]
    NoCandidate,
    #[error(
        "what is held is not what this digest was printed for; run `sluicegate authz diff` again, and accept the \
         digest that it prints"
    )]
    OtherDigest,
    #[error("the group {0} is not held; `sluicegate authz status` lists the groups that are")]
    NotHeld(Group),
    #[error("there is nothing to go back to: no publication is on probation any more")]
    NoHistory,
    #[error("generation {} cannot be gone back to; `sluicegate authz history` lists those that can", .0.0)]
    NoSuchGeneration(Generation),
    #[error("nothing is expected of the group {0}; `sluicegate authz status` lists what is expected")]
    NotExpected(Group),
    #[error("`{0}` is not a relation; write credentials, grants or devices")]
    NoRelation(String),
    #[error(
        "a change is expected for at least 1s and at most {}",
        humantime::format_duration(EXPECT_TIME_MAX)
    )]
    ExpectTime,
    #[error("between 1 and {EXPECT_ROWS_MAX} rows can be expected to change")]
    ExpectRows,
    #[error(
        "{EXPECTATIONS_MAX} changes are expected already, and no more can be; clear one with `sluicegate authz \
         expect --clear RELATION KIND`"
    )]
    ExpectMany,
    #[error("nothing is in force yet; `sluicegate authz status` says why")]
    NothingInForce,
    #[error("the control thread is busy; try again")]
    Busy,
    #[error("the control thread has ended; restart the relay")]
    Gone,
    #[error("the relay could not carry this out; its log says why")]
    Dropped,
}

/// Reason why queries were not compared, or not applied; each text ends in what to do.
#[derive(Debug, thiserror::Error)]
pub enum QueriesError {
    #[error(transparent)]
    Command(#[from] GuardCommandError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(
        "the guard refuses the changed queries: {0}; `sluicegate authz diff --candidate` lists what they change"
    )]
    Refused(Box<HoldStatus>),
}

impl Commands {
    pub async fn diff(&self) -> Result<DiffReport, GuardCommandError> {
        self.request(Request::Diff).await
    }

    /// Publishes what is held, or one group of it. Fails if it is not what `digest` was made of.
    pub async fn accept(&self, digest: String, group: Option<Group>) -> Result<Accepted, GuardCommandError> {
        self.request(|answer| Request::Accept(digest, group, answer)).await
    }

    /// Undoes what was inferred since `generation`, or by the last publication.
    pub async fn roll_back(&self, generation: Option<Generation>) -> Result<RolledBack, GuardCommandError> {
        self.request(|answer| Request::RollBack(generation, answer)).await
    }

    /// Announces a mass change, so that it takes effect beyond its budget.
    pub async fn expect(&self, request: ExpectRequest) -> Result<Expectation, GuardCommandError> {
        request.check()?;
        self.request(|answer| Request::Expect(request, answer)).await
    }

    /// Takes an announcement back; returns it.
    pub async fn clear_expectation(&self, group: Group) -> Result<Expectation, GuardCommandError> {
        self.request(|answer| Request::ClearExpectation(group, answer)).await
    }

    /// Lists the publications of late, the newest first.
    pub async fn history(&self) -> Result<Vec<Publication>, GuardCommandError> {
        self.request(Request::History).await
    }

    /// Returns what `candidate` would change, and whether the guard would hold it. Relations that it does not name
    /// keep their queries.
    pub async fn compare(&self, candidate: Queries) -> Result<DiffReport, QueriesError> {
        self.request(|answer| Request::Compare(candidate, answer)).await
    }

    /// Takes over what of `config` concerns the control thread, all of it or nothing. Waits for the answer, and
    /// so is not for an asynchronous caller.
    pub fn reload(&self, config: Config) -> Result<(), QueriesError> {
        self.send(|answer| Request::Reload(Box::new(config), answer))?
            .blocking_recv()
            .unwrap_or_else(|_| Err(GuardCommandError::Dropped.into()))
    }

    /// Begins or stops to write the state on disk. After a stop all of it is there. Waits for the answer, as
    /// [`reload`](Self::reload) does.
    pub fn write(&self, writing: Writing) -> Result<(), GuardCommandError> {
        let answer = self.send(|answer| Request::Writing(writing, answer))?;
        answer.blocking_recv().map_err(|_| GuardCommandError::Dropped)
    }

    /// Begins or stops to follow the store. Waits for the answer, as [`reload`](Self::reload) does.
    pub fn follow(&self, following: Following) -> Result<(), GuardCommandError> {
        let answer = self.send(|answer| Request::Following(following, answer))?;
        answer.blocking_recv().map_err(|_| GuardCommandError::Dropped)
    }

    async fn request<T, E: From<GuardCommandError>>(
        &self,
        request: impl FnOnce(oneshot::Sender<Result<T, E>>) -> Request,
    ) -> Result<T, E> {
        self.send(request)?.await.unwrap_or(Err(GuardCommandError::Dropped.into()))
    }

    fn send<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<T>) -> Request,
    ) -> Result<oneshot::Receiver<T>, GuardCommandError> {
        let (answer, answered) = oneshot::channel();
        self.queue.try_send(request(answer)).map_err(|error| {
            if error.is_full() { GuardCommandError::Busy } else { GuardCommandError::Gone }
        })?;
        Ok(answered)
    }
}

impl ExpectRequest {
    fn check(&self) -> Result<(), GuardCommandError> {
        if Relation::named(&self.relation).is_none() {
            return Err(GuardCommandError::NoRelation(self.relation.clone()));
        }
        if !(EXPECT_TIME_MIN..=EXPECT_TIME_MAX).contains(&self.lasts) {
            return Err(GuardCommandError::ExpectTime);
        }
        if !(1..=EXPECT_ROWS_MAX).contains(&self.rows) {
            return Err(GuardCommandError::ExpectRows);
        }
        Ok(())
    }
}

/// Longest time for which a change can be expected. An announcement that nobody remembers is a hole in the guard.
pub const EXPECT_TIME_MAX: Duration = Duration::from_secs(24 * 3600);

const EXPECT_TIME_MIN: Duration = Duration::from_secs(1);

/// More rows than the largest installation has of a relation.
pub const EXPECT_ROWS_MAX: usize = 100_000_000;

/// Announcements at a time: one for each kind of change of each relation.
pub const EXPECTATIONS_MAX: usize = 32;

/// Requests that wait for the control thread.
pub(super) const REQUESTS_MAX: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::api::ChangeKind;

    fn refusal(relation: &str, rows: usize, lasts: Duration) -> Option<GuardCommandError> {
        ExpectRequest { relation: relation.to_owned(), kind: ChangeKind::Absent, rows, lasts }.check().err()
    }

    #[test]
    fn what_is_expected_is_bounded_in_rows_and_time() {
        use GuardCommandError::{ExpectRows, ExpectTime, NoRelation};
        let minute = Duration::from_secs(60);
        assert_eq!(refusal("grants", EXPECT_ROWS_MAX, EXPECT_TIME_MAX), None);
        assert_eq!(refusal("grants", EXPECT_ROWS_MAX + 1, minute), Some(ExpectRows));
        assert_eq!(refusal("grants", 0, minute), Some(ExpectRows));
        assert_eq!(refusal("grants", 5, EXPECT_TIME_MAX + Duration::from_millis(1)), Some(ExpectTime));
        assert_eq!(refusal("grants", 5, Duration::ZERO), Some(ExpectTime));
        assert_eq!(refusal("rights", 5, minute), Some(NoRelation("rights".to_owned())));
        assert!(ExpectTime.to_string().ends_with("at most 1day"), "{ExpectTime}");
    }
}
