//! Rule `references`: grants name principals and targets that are there.
//!
//! Some never do: a principal may have no token yet, a fleet no device. What counts is a grant that did and
//! does not any more, and a new one on a device that nobody knows.

use std::collections::HashSet;

use super::{Candidate, Changed, Hold, Rule, exceeds, is_live_grant};
use crate::authz::{Credential, FleetId, Grant, GrantId, PrincipalId, Scope, Snapshot};
use crate::config::Allowance;
use crate::store::RowKey;

pub(super) fn check(candidate: &Candidate<'_>, allowed: Allowance) -> Result<(), Hold> {
    let dangling = without_target(candidate).chain(without_principal(candidate));
    let dangling: HashSet<GrantId> = dangling.map(|grant| grant.id).collect();
    let total = candidate.live.grants;
    if !exceeds(dangling.len(), total, allowed) {
        return Ok(());
    }
    let figures = format!(
        "{} of {total} grants turn to naming a principal or a target that is not there; \
         authz.guard.max_dangling is {} rows or {} %",
        dangling.len(),
        allowed.rows,
        allowed.share * 100.0
    );
    Err(Hold::new(Rule::References, dangling.len(), figures, dangling.into_iter().map(RowKey::Grant)))
}

fn without_target(candidate: &Candidate<'_>) -> impl Iterator<Item = Grant> {
    let changed = || candidate.difference.grants.iter().filter(|row| is_retargeted(row));
    let names_fleet = |row: &Changed<Grant>| matches!(row.after.map(|row| row.scope), Some(Scope::Fleet(_)));
    let fleets = if changed().any(names_fleet) { fleets(candidate.store) } else { HashSet::new() };
    changed().filter_map(move |row| {
        let grant = row.after.filter(|row| is_live_grant(row, candidate.revocations, candidate.now))?;
        let is_there = match grant.scope {
            Scope::Any => true,
            Scope::Device(id) => candidate.store.device(id).is_some(),
            // A fleet without devices is nothing wrong, unless the grant was about another one before.
            Scope::Fleet(id) => row.before.is_none() || fleets.contains(&id),
        };
        (!is_there).then_some(grant)
    })
}

/// Grants of principals who held a credential and hold none any more, or that have turned to such.
fn without_principal(candidate: &Candidate<'_>) -> impl Iterator<Item = Grant> {
    let difference = candidate.difference;
    let left: HashSet<PrincipalId> = difference.credentials.iter().filter_map(principal_left).collect();
    let joined = difference.grants.iter().filter_map(principal_joined);
    let mut missing: HashSet<PrincipalId> = left.iter().copied().chain(joined).collect();
    if !missing.is_empty() {
        for row in candidate.store.credentials() {
            missing.remove(&row.principal);
        }
    }
    // Only those who lost their credentials make all their grants dangle.
    let abandoned: HashSet<PrincipalId> = left.intersection(&missing).copied().collect();
    let all = (!abandoned.is_empty()).then(|| candidate.store.grants()).into_iter().flatten();
    let moved = difference.grants.iter().filter(|row| principal_joined(row).is_some());
    let moved = moved.filter_map(|row| row.after);
    moved
        .filter(move |grant| missing.contains(&grant.principal))
        .chain(all.filter(move |grant| abandoned.contains(&grant.principal)))
        .filter(|grant| is_live_grant(grant, candidate.revocations, candidate.now))
}

/// The grant is new, or about something else than before.
fn is_retargeted(row: &Changed<Grant>) -> bool {
    row.before.map(|row| row.scope) != row.after.map(|row| row.scope)
}

/// Returns the former principal of a credential that has another one now.
fn principal_left(row: &Changed<Credential>) -> Option<PrincipalId> {
    let (before, after) = (row.before?.principal, row.after?.principal);
    (before != after).then_some(before)
}

/// Returns the principal of a grant that had another one before.
fn principal_joined(row: &Changed<Grant>) -> Option<PrincipalId> {
    let (before, after) = (row.before?.principal, row.after?.principal);
    (before != after).then_some(after)
}

fn fleets(snapshot: &Snapshot) -> HashSet<FleetId> {
    snapshot.devices().filter_map(|device| device.fleet).collect()
}
