//! Explicit ends of rows that are not in force any more, until nothing that could be believed can bring them back.
//!
//! The rows of an end that is still in the store say themselves that they have ended. A row that was deleted leaves a
//! tombstone: an answer that is older than the deletion, or a wrong one, must not revive it. Once a whole answer from
//! after the deletion has lacked the row and a window has passed, no answer that is believed can have it, and the
//! tombstone goes.

use std::collections::HashMap;
use std::sync::Arc;

use super::answers::is_after;
use super::row::{AnyRow, row_of};
use super::{Guard, Judged, index};
use crate::authz::{Change, End, PrincipalId, Scope, Snapshot, UnixMillis};
use crate::store::{Position, Relation, RowKey};

/// See the module.
#[derive(Default)]
pub(super) struct Tombstones {
    rows: HashMap<RowKey, Tombstone>,
    principals: HashMap<PrincipalId, Tombstone>,
}

/// The end of one row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Tombstone {
    /// Position of the word that ended it.
    pub(super) position: Position,
    pub(super) at: UnixMillis,
    /// The right that the number named, where it was known.
    pub(super) right: Option<(PrincipalId, Scope)>,
    /// Relations of which a whole answer from after the end lacked the row.
    pub(super) confirmed: [bool; 3],
}

impl Tombstones {
    pub(super) fn insert(&mut self, key: RowKey, row: Option<&AnyRow>, position: Position, at: UnixMillis) {
        let right = row.and_then(right);
        self.rows.insert(key, Tombstone { position, at, right, confirmed: [false; 3] });
    }

    pub(super) fn insert_principal(&mut self, id: PrincipalId, position: Position, at: UnixMillis) {
        self.principals.insert(id, Tombstone { position, at, right: None, confirmed: [false; 3] });
    }

    pub(super) fn insert_missing_principal(&mut self, id: PrincipalId, position: Position, at: UnixMillis) {
        if !self.principals.contains_key(&id) {
            self.insert_principal(id, position, at);
        }
    }

    pub(super) fn restore(&mut self, key: RowKey, tombstone: Tombstone) {
        self.rows.insert(key, tombstone);
    }

    pub(super) fn restore_principal(&mut self, id: PrincipalId, tombstone: Tombstone) {
        self.principals.insert(id, tombstone);
    }

    pub(super) fn remove(&mut self, key: &RowKey) -> bool {
        self.rows.remove(key).is_some()
    }

    pub(super) fn remove_principal(&mut self, id: PrincipalId) -> bool {
        self.principals.remove(&id).is_some()
    }

    /// Returns whether `row` is the right that ended, and not another one under its number.
    pub(super) fn covers(&self, key: &RowKey, row: &AnyRow) -> bool {
        self.rows.get(key).is_some_and(|tombstone| tombstone.is_of(row))
    }

    pub(super) fn contains(&self, key: &RowKey) -> bool {
        self.rows.contains_key(key)
    }

    pub(super) fn rows(&self) -> impl Iterator<Item = (&RowKey, &Tombstone)> {
        self.rows.iter()
    }

    pub(super) fn principals(&self) -> impl Iterator<Item = (&PrincipalId, &Tombstone)> {
        self.principals.iter()
    }

    pub(super) fn len(&self) -> usize {
        self.rows.len() + self.principals.len()
    }

    /// A whole answer about `relation` shows which rows are gone for good.
    pub(super) fn confirm(&mut self, relation: Relation, position: Position, answer: &Snapshot) {
        for (key, tombstone) in &mut self.rows {
            let is_newer = !is_after(tombstone.position, position);
            let is_gone = || row_of(answer, key).is_none_or(|row| !tombstone.is_of(&row));
            if key.relation() == relation && is_newer && is_gone() {
                tombstone.confirmed[index(relation)] = true;
            }
        }
        if self.principals.is_empty() {
            return;
        }
        let mut held: HashMap<PrincipalId, bool> = HashMap::new();
        let mut hold = |id: PrincipalId, is_live: bool| *held.entry(id).or_default() |= is_live;
        match relation {
            Relation::Credentials => answer.credentials().for_each(|row| hold(row.principal, !row.revoked)),
            Relation::Grants => answer.grants().for_each(|row| hold(row.principal, !row.revoked)),
            Relation::Devices => return,
        }
        for (id, tombstone) in &mut self.principals {
            if !is_after(tombstone.position, position) && held.get(id) != Some(&true) {
                tombstone.confirmed[index(relation)] = true;
            }
        }
    }
}

impl Tombstone {
    /// Another right may have the number later.
    fn is_of(&self, row: &AnyRow) -> bool {
        match (self.right, right(row)) {
            (Some(ended), Some(right)) => ended == right,
            _ => true,
        }
    }
}

impl Guard {
    /// Returns whether `after` is a row that has ended explicitly.
    pub(super) fn has_ended_explicitly(
        &self,
        key: &RowKey,
        in_force: Option<&AnyRow>,
        after: Option<&AnyRow>,
    ) -> bool {
        let Some(after) = after else { return false };
        if self.tombstones.covers(key, after) {
            return true;
        }
        // The store records each end of a relation that its outbox follows, and each return as well.
        let is_followed = self.followed[index(key.relation())];
        is_followed
            && in_force.is_some_and(AnyRow::is_revoked)
            && self.ledger.baseline(key).is_none()
            && !self.inferred_ends.contains(key)
            && !in_force.is_some_and(|row| row.is_another_right(after))
    }

    /// Forgets the ends that nothing can revive any more.
    pub(super) fn forget_tombstones(&mut self, now: UnixMillis) -> Judged {
        let until = UnixMillis(now.0.saturating_sub(self.window_ms()));
        let mut forgotten: Vec<Change> = Vec::new();
        self.tombstones.rows.retain(|key, tombstone| {
            let is_over = tombstone.at < until && tombstone.confirmed[index(key.relation())];
            if is_over {
                forgotten.extend(super::change_to(key, None));
            }
            !is_over
        });
        self.tombstones.principals.retain(|id, tombstone| {
            let [credentials, grants, _] = tombstone.confirmed;
            let is_over = tombstone.at < until && credentials && grants;
            if is_over {
                forgotten.push(Change::PrincipalGone(*id));
            }
            !is_over
        });
        if forgotten.is_empty() {
            return Judged::default();
        }
        super::shrink(&mut self.tombstones.rows);
        super::shrink(&mut self.tombstones.principals);
        self.is_memory_changed = true;
        self.revive_in_revocations(&forgotten);
        Judged { published: true, ended: false }
    }

    /// Takes ends out of what engines look at first.
    pub(super) fn revive_in_revocations(&mut self, gone: &[Change]) {
        let ends = gone.iter().flat_map(|change| match change {
            Change::GrantGone(id) => self.revocations.ends_of_grant(*id).collect::<Vec<End>>(),
            _ => End::of(change).into_iter().collect(),
        });
        let ends: Vec<End> = ends.collect();
        if let Some(fewer) = self.revocations.without(ends.iter().copied()) {
            self.unpublished.lifted.extend(ends);
            self.revocations = Arc::new(fewer);
        }
    }

    /// Returns whether so many ends wait for a whole answer that the relations should be read soon.
    pub(in crate::control) fn has_many_tombstones(&self) -> bool {
        self.tombstones.len() > TOMBSTONES_READ
    }
}

fn right(row: &AnyRow) -> Option<(PrincipalId, Scope)> {
    match row {
        AnyRow::Grant(row) => Some((row.principal, row.scope)),
        _ => None,
    }
}

/// Tombstones from which on the relations are read soon, so that their number stays bounded by what the store deletes
/// within a few windows.
const TOMBSTONES_READ: usize = 10_000;
