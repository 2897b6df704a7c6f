//! Other queries beside those that run: what they would change, and whether the guard lets them.
//!
//! Both were put to the same moment of the store, so that whatever differs is the queries' doing. What such
//! a difference takes away was not revoked by anybody: a right that only turns up as revoked or expired is
//! as lost as one that is missing, and devices that have no location any more have not gone offline.

use std::collections::HashSet;

use super::{Admission, count_live};
use crate::authz::{Change, Revocations, Snapshot, UnixMillis};
use crate::control::candidate::{CandidateBuilder, NEVER_PUBLISHED};
use crate::control::diff_report::DiffReport;
use crate::control::guard::{
    Candidate, Changed, Difference, DisplacedDevices, Hold, PeerAnswer, ReadScope, Replay, Rule, Touched,
    Unlocated, is_live_credential, is_live_grant,
};
use crate::control::hold::HoldStatus;
use crate::store::{Comparison, RowKey};

impl Admission {
    /// Returns what the candidate of `comparison` would change, with the hold that refuses it, if one does.
    pub(in crate::control) fn judge_queries(&mut self, comparison: Comparison) -> DiffReport {
        let now = UnixMillis::now();
        let Comparison { running, mut candidate } = comparison;
        let running = Snapshot::build(NEVER_PUBLISHED, running.credentials, running.grants, running.devices);
        let bad_rows = std::mem::take(&mut candidate.quarantined);
        let mut candidate_builder = CandidateBuilder::empty();
        candidate_builder.replace(candidate, &bad_rows, Some(&running));
        let shown = candidate_builder.difference(&running);

        let revocations = self.publisher.revocations();
        let revived = revived(&shown, revocations);
        candidate_builder.apply(&ended(&shown, revocations, now), &HashSet::new());
        let difference = Difference::between(&running, candidate_builder.snapshot(), &Touched::Everything);
        let candidate = Candidate {
            store: candidate_builder.snapshot(),
            difference: &difference,
            live: count_live(&running),
            revocations,
            duplicates: candidate_builder.duplicates(),
            bad_rows: bad_rows.len(),
            bad_examples: &bad_rows,
            read: ReadScope::Everything,
            unlocated: None,
            displaced: PeerAnswer::Agrees,
            now,
        };
        let node = self.node.as_deref();
        let replay = Replay { recent: self.recent.queries(), in_force: &running, node };
        let unlocated = self.guard.unlocated(&difference, &running);
        let displaced = self.guard.displaced(&difference, &running, candidate_builder.snapshot());
        let hold = revived
            .or_else(|| self.guard.judge_once(&candidate, replay).err())
            .or_else(|| unlocated.as_ref().map(Unlocated::by_query))
            .or_else(|| displaced.first().map(DisplacedDevices::by_query))
            .filter(|_| self.guard.is_enabled());
        let hold = hold.map(|hold| HoldStatus { hold, since: now }.of_everything());
        DiffReport::of(&shown, hold.into_iter().collect(), node)
    }
}

/// Rule `revival`: what is revoked comes back by no query.
fn revived(difference: &Difference, revocations: &Revocations) -> Option<Hold> {
    let credentials = difference.credentials.iter().filter_map(|row| {
        let after = row.after.filter(|after| !after.revoked)?;
        let was_revoked = row.before.is_some_and(|before| before.revoked);
        (was_revoked || revocations.credential(&after.key)).then_some(RowKey::Credential(after.key))
    });
    let grants = difference.grants.iter().filter_map(|row| {
        let after = row.after.filter(|after| !after.revoked)?;
        let was_revoked = row.before.is_some_and(|before| before.revoked);
        (was_revoked || revocations.grant(&after)).then_some(RowKey::Grant(after.id))
    });
    let revived: Vec<RowKey> = credentials.chain(grants).collect();
    if revived.is_empty() {
        return None;
    }
    let figures = format!("{} rights that are revoked would no longer read as revoked", revived.len());
    Some(Hold::new(Rule::Revival, revived.len(), figures, revived))
}

/// Takes out the rights that are live and by the candidate are not, so that they count as lost.
fn ended(difference: &Difference, revocations: &Revocations, now: UnixMillis) -> Vec<Change> {
    let credentials = difference.credentials.iter().filter_map(|row| {
        let Changed { before: Some(before), after: Some(after) } = row else { return None };
        let ends =
            is_live_credential(before, revocations, now) && !is_live_credential(after, revocations, now);
        ends.then_some(Change::CredentialGone(before.key))
    });
    let grants = difference.grants.iter().filter_map(|row| {
        let Changed { before: Some(before), after: Some(after) } = row else { return None };
        let ends = is_live_grant(before, revocations, now) && !is_live_grant(after, revocations, now);
        ends.then_some(Change::GrantGone(before.id))
    });
    credentials.chain(grants).collect()
}
