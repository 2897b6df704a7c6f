//! Commands of a person: diff, accept and rollback.

use super::Admission;
use super::rollback::{Rejection, rejected_by_person};
use crate::authz::{Change, Generation, UnixMillis};
use crate::control::api::{Accepted, Group, RolledBack};
use crate::control::commands::GuardCommandError;
use crate::control::diff_report::DiffReport;
use crate::control::guard::Difference;
use crate::control::hold::HoldStatus;
use crate::telemetry::By;

impl Admission {
    /// Returns what a publication of the store's answer would change.
    pub(in crate::control) fn diff(&mut self) -> Result<DiffReport, GuardCommandError> {
        let last_good = self.last_good.clone().ok_or(GuardCommandError::NothingInForce)?;
        let difference = self.candidate_builder.difference(&last_good);
        let node = self.node.as_deref();
        Ok(DiffReport::of(&difference, self.holds(), node))
    }

    /// Publishes what the store says in spite of the hold, absences included, and without probation: a
    /// person has looked at it.
    pub(in crate::control) fn accept(
        &mut self,
        digest: &str,
        group: Option<Group>,
    ) -> Result<Accepted, GuardCommandError> {
        let held: HoldStatus = self.holding.current().cloned().ok_or(GuardCommandError::NothingHeld)?;
        if self.holding.is_without_candidate() {
            return Err(GuardCommandError::NoCandidate);
        }
        if let Some(group) = group {
            return Err(GuardCommandError::NotHeld(group));
        }
        if self.last_good.is_some() && self.diff()?.digest != digest {
            return Err(GuardCommandError::OtherDigest);
        }
        let now = UnixMillis::now();
        let difference = match &self.last_good {
            Some(last_good) => self.candidate_builder.difference(last_good),
            None => Difference::default(),
        };
        let rows = difference.len();
        self.guard.waive(&held.hold);
        self.doubt = None;
        self.rejection = None;
        // Revocations that were doubted among them.
        let revoked: Vec<Change> =
            difference.changes().into_iter().filter(|change| !change.is_gone()).collect();
        self.publisher.end(&revoked);
        let settled = self.missing_rows.settle_all(&difference, self.publisher.revocations(), now);
        self.put_in_force(difference, settled);
        self.history.forget_all();
        self.publisher.compare_with(None);
        self.probation.begin_anew();
        self.holding.heal(By::Operator, self.generation());
        self.publisher.settle();
        let generation = self.generation().ok_or(GuardCommandError::NothingInForce)?;
        Ok(Accepted { groups: Vec::new(), rows, generation })
    }

    /// Goes back to what was in force before the last publication that is on probation, and stays there
    /// until a person accepts what the store says.
    pub(in crate::control) fn roll_back(
        &mut self,
        generation: Option<Generation>,
    ) -> Result<RolledBack, GuardCommandError> {
        let before = self.history.newest_first().next().cloned().ok_or(GuardCommandError::NoHistory)?;
        let from = self.generation().ok_or(GuardCommandError::NothingInForce)?;
        let to = before.generation();
        if let Some(other) = generation.filter(|generation| *generation != to) {
            return Err(GuardCommandError::NoSuchGeneration(other));
        }
        let hold = rejected_by_person(to.0);
        self.return_to(&before, By::Operator, &hold);
        self.holding.hold(hold.clone(), self.generation());
        self.rejection = Some(Rejection::Person(hold));
        self.publisher.settle();
        let in_force = self.generation().ok_or(GuardCommandError::NothingInForce)?;
        Ok(RolledBack { from, to, in_force, rows: 0 })
    }
}
