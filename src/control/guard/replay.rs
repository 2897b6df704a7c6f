//! Rule `replay`: what was allowed a moment ago is allowed still.
//!
//! Puts recent decisions to the candidate. What ended by a revocation or an expiry is refused by the
//! snapshot in force as well, and so says nothing; absences and lost locations have rules of their own.

use std::collections::{HashSet, VecDeque};

use super::{Candidate, Difference, Hold, Rule};
use crate::authz::{Decision, DecisionContext, Permitted, Query, Refusal, Snapshot, Subject};
use crate::store::RowKey;
use crate::telemetry::Cause;

/// Recently allowed queries, and the rows that allowed them.
pub(in crate::control) struct Replay<'a> {
    pub recent: &'a VecDeque<Query>,
    pub in_force: &'a Snapshot,
    /// This node's name, where it has one.
    pub node: Option<&'a str>,
}

pub(super) fn check(candidate: &Candidate<'_>, replay: Replay<'_>, max_failures: f64) -> Result<(), Hold> {
    let Candidate { store, difference, revocations, now, .. } = candidate;
    if !may_refuse(difference) {
        return Ok(());
    }
    let lost: HashSet<RowKey> = lost_rows(difference).collect();
    let context = DecisionContext { revocations, node: replay.node, now: *now };
    let (mut total, mut failures) = (0, Vec::new());
    for query in replay.recent {
        let before = replay.in_force.permitted(query, context);
        let (Some(before), Some(subject)) = (before, query.subject) else { continue };
        total += 1;
        let Decision::Refuse(refusal) = store.decide(query, context) else { continue };
        let failure = ReplayFailure { before, subject, refusal };
        // Another rule looks after locations.
        if !refusal.is_of_location() && !failure.rests_on(&lost) {
            failures.push(failure);
        }
    }
    if failures.len() as f64 <= max_failures * total as f64 || rest_on_one_row(&failures) {
        return Ok(());
    }
    let figures = format!(
        "{} of {total} recently allowed decisions would be refused with no revocation; \
         authz.guard.max_replay_failures is {} %",
        failures.len(),
        max_failures * 100.0
    );
    let examples = failures.iter().map(|failure| {
        let ReplayFailure { before, subject, refusal } = failure;
        let credential = subject.key().credential_id();
        format!("credential {credential} on device {} ({})", before.device.0, Cause::from(*refusal))
    });
    Err(Hold::new(Rule::Replay, failures.len(), figures, examples))
}

/// A decision that the candidate takes back.
struct ReplayFailure {
    /// Subject that was allowed.
    before: Permitted,
    subject: Subject,
    refusal: Refusal,
}

impl ReplayFailure {
    fn rests_on(&self, rows: &HashSet<RowKey>) -> bool {
        self.rows().iter().any(|row| rows.contains(row))
    }

    fn rows(&self) -> Vec<RowKey> {
        let rows = [RowKey::Grant(self.before.grant), RowKey::Device(self.before.device)];
        self.subject.credential().copied().map(RowKey::Credential).into_iter().chain(rows).collect()
    }
}

/// Returns whether all failures rest on one row. A person may narrow one grant or move one device to another
/// fleet, which refuses everything that rested on it.
fn rest_on_one_row(failures: &[ReplayFailure]) -> bool {
    let Some((first, others)) = failures.split_first() else { return true };
    first.rows().iter().any(|row| others.iter().all(|failure| failure.rows().contains(row)))
}

/// Returns whether a row differs in something that a permission can rest on. Most reads change none.
fn may_refuse(difference: &Difference) -> bool {
    let is_live_still = |revoked: Option<bool>| revoked == Some(false);
    let credentials = difference
        .credentials
        .iter()
        .any(|row| row.before.is_some() && is_live_still(row.after.map(|after| after.revoked)));
    let grants = difference
        .grants
        .iter()
        .any(|row| row.before.is_some() && is_live_still(row.after.map(|after| after.revoked)));
    let devices = difference.devices.iter().any(|row| match (&row.before, &row.after) {
        (Some(before), Some(after)) => before.uuid != after.uuid || before.fleet != after.fleet,
        // A new one can take the uuid of another.
        (None, Some(_)) => true,
        _ => false,
    });
    credentials || grants || devices
}

fn lost_rows(difference: &Difference) -> impl Iterator<Item = RowKey> {
    let credentials = difference.credentials.iter().filter(|row| row.after.is_none());
    let grants = difference.grants.iter().filter(|row| row.after.is_none());
    let devices = difference.devices.iter().filter(|row| row.after.is_none());
    let credentials = credentials.filter_map(|row| Some(RowKey::Credential(row.before?.key)));
    let grants = grants.filter_map(|row| Some(RowKey::Grant(row.before?.id)));
    credentials.chain(grants).chain(devices.filter_map(|row| Some(RowKey::Device(row.before.as_ref()?.id))))
}
