//! Going back to what was in force before, and staying there until the store says something better.

use std::sync::Arc;

use super::{Admission, count_live};
use crate::authz::{Change, DecisionContext, Query, Snapshot, UnixMillis};
use crate::config::OnRegression;
use crate::control::guard::{Changed, Difference, Hold, Rule};
use crate::control::probation::{Evidence, LostRight};
use crate::control::report::Return;
use crate::control::reused_addresses::ReusedAddresses;
use crate::telemetry::By;

/// Reason why the store's answer was taken out of force.
pub(super) enum Rejection {
    /// It refuses these, which the generation before allows.
    Evidence(Evidence),
    /// A person said so.
    Person(Hold),
}

impl Admission {
    /// Acts on what clients were refused.
    pub(super) fn check_for_regressions(&mut self) {
        self.history.forget_old();
        if self.history.oldest().is_none() {
            self.publisher.compare_with(None);
            self.publisher.settle();
        }
        let Some(in_force) = &self.last_good else { return };
        let Some(evidence) = self.probation.poll(self.publisher.authority(), in_force) else { return };
        match (self.on_regression, self.restorable(&evidence)) {
            (OnRegression::Rollback, Some(before)) => {
                self.report.rolls_back(&evidence.hold, before.generation());
                self.return_to(&before, By::Guard, &evidence.hold);
                self.holding.hold(evidence.hold.clone(), self.generation());
                self.rejection = Some(Rejection::Evidence(evidence));
            }
            _ => {
                self.report.may_be_wrong(&evidence.hold, self.generation());
                self.probation.begin_anew();
            }
        }
    }

    /// Puts `before` in force again: with everything that has ended since, and without the addresses that
    /// are other devices' now. `hold` says why.
    pub(super) fn return_to(&mut self, before: &Arc<Snapshot>, by: By, hold: &Hold) {
        let Some(rejected) = &self.last_good else { return };
        let from = rejected.generation();
        let touched = self.history.return_to(before);
        let since = Difference::between(before, rejected, &touched);
        let returned = before.apply(self.publisher.next_generation(), &shortened(&since));
        let returned = Arc::new(returned);
        self.candidate_builder.touch(touched);
        let difference = self.candidate_builder.difference(&returned);
        self.reused_addresses =
            ReusedAddresses::on(returned.devices(), &difference, self.candidate_builder.snapshot());
        let masked = returned.apply(returned.generation(), &self.reused_addresses.changes(&returned));
        self.live = count_live(&returned);
        self.last_good = Some(returned);
        self.rollbacks += 1;
        self.probation.begin_anew();
        self.publisher.compare_with(self.history.oldest().cloned());
        self.publisher.publish(Arc::new(masked));
        self.report.rolled_back(
            by,
            hold,
            Return { from, to: before.generation(), in_force: self.generation() },
        );
    }

    /// Returns the hold that keeps the store's answer out of force; `None` once it no longer refuses most of what it
    /// was rejected for.
    pub(super) fn rejected(&self, now: UnixMillis) -> Option<Hold> {
        match self.rejection.as_ref()? {
            Rejection::Person(hold) => Some(hold.clone()),
            Rejection::Evidence(evidence) => {
                let in_force = self.last_good.as_deref()?;
                let is_still_refused = |query: &&Query| {
                    self.has(in_force, evidence.lost, query, now)
                        && !self.has(self.candidate_builder.snapshot(), evidence.lost, query, now)
                };
                let refused = evidence.queries.iter().filter(is_still_refused).count();
                (refused * 2 > evidence.queries.len()).then(|| evidence.hold.clone())
            }
        }
    }

    /// The newest snapshot that allows most of what is refused now.
    fn restorable(&self, evidence: &Evidence) -> Option<Arc<Snapshot>> {
        let Evidence { queries, lost, .. } = evidence;
        let now = UnixMillis::now();
        let allows_most = |snapshot: &&Arc<Snapshot>| {
            let allowed = queries.iter().filter(|query| self.has(snapshot, *lost, query, now)).count();
            allowed * 2 > queries.len()
        };
        self.history.newest_first().find(allows_most).cloned()
    }

    fn has(&self, snapshot: &Snapshot, lost: LostRight, query: &Query, now: UnixMillis) -> bool {
        let context =
            DecisionContext { revocations: self.publisher.revocations(), node: self.node.as_deref(), now };
        let permitted = snapshot.permitted(query, context);
        match lost {
            LostRight::Rights => permitted.is_some(),
            LostRight::Locations => permitted.is_some_and(|permitted| permitted.address.is_some()),
        }
    }
}

/// The hold that a person's rollback is reported as.
pub(super) fn rejected_by_person(generation: u64) -> Hold {
    let figures = format!(
        "an operator has gone back to generation {generation}; `sluicegate authz accept` publishes what the \
         store says"
    );
    Hold::new(Rule::Operator, 1, figures, [""; 0])
}

/// The rows as they were before, but for rights that end sooner now: an explicit end is not put off.
fn shortened(since: &Difference) -> Vec<Change> {
    let credentials = since.credentials.iter().filter_map(|Changed { before, after }| {
        let (mut before, after) = ((*before)?, (*after)?);
        let is_sooner = ends_sooner(after.expires_at, before.expires_at);
        before.expires_at = after.expires_at;
        is_sooner.then_some(Change::Credential(before))
    });
    let grants = since.grants.iter().filter_map(|Changed { before, after }| {
        let (mut before, after) = ((*before)?, (*after)?);
        let is_sooner = ends_sooner(after.expires_at, before.expires_at);
        before.expires_at = after.expires_at;
        is_sooner.then_some(Change::Grant(before))
    });
    credentials.chain(grants).collect()
}

fn ends_sooner(one: Option<UnixMillis>, other: Option<UnixMillis>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => one < other,
        (one, other) => one.is_some() && other.is_none(),
    }
}
