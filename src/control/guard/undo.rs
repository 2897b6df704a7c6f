//! Going back: inferred changes of the window are undone, explicit words are not.
//!
//! What was undone is not put in force again while the store shows it unchanged; another answer about the row is judged
//! as any.

use std::sync::Arc;

use super::row::{AnyRow, change_to, row_of};
use super::{AppliedRow, Guard, Judged, RejectedRow, index};
use crate::authz::{Change, Generation, Snapshot, UnixMillis};
use crate::control::api::{ChangeKind, RolledBack, Rule};
use crate::store::{Relation, RowKey};

/// The result of undoing.
pub(in crate::control) type Undone = Option<RolledBack>;

impl Guard {
    /// Undoes what was inferred after `generation`; without one, the last publication with something to undo. `None`
    /// where nothing is.
    pub(in crate::control) fn roll_back(
        &mut self,
        generation: Option<Generation>,
        now: UnixMillis,
    ) -> Undone {
        let newest =
            self.ledger.iter().flat_map(|(_, entry)| entry.steps.iter().map(|step| step.generation)).max()?;
        let to = generation.unwrap_or(Generation(newest.0.saturating_sub(1)));
        let rows = self.ledger.since(to);
        self.undo(rows, to, Rule::Operator, now)
    }

    /// Undoes all inferred changes of the window that took something away: clients were refused what the baseline
    /// allows.
    pub(in crate::control) fn undo_losses(&mut self, of_locations: bool, now: UnixMillis) -> Undone {
        let is_meant = |kind: ChangeKind| takes(kind) && of_locations == is_of_location(kind);
        let rows: Vec<(RowKey, Option<AnyRow>)> = self
            .ledger
            .iter()
            .filter(|(_, entry)| is_meant(entry.kind))
            .filter_map(|(key, entry)| Some((key.clone(), entry.baseline()?.clone())))
            .collect();
        let to = Generation(self.generation()?.0.saturating_sub(1));
        self.undo(rows, to, Rule::Probation, now)
    }

    /// Number of rows that were taken away within the window by inference.
    pub(in crate::control) fn losses(&self, of_locations: bool) -> usize {
        let is_meant = |kind: &ChangeKind| takes(*kind) && of_locations == is_of_location(*kind);
        let kinds = ChangeKind::ALL.into_iter().filter(is_meant);
        let count =
            |kind| Relation::ALL.map(|relation| self.ledger.count(relation, kind)).iter().sum::<usize>();
        kinds.map(count).sum()
    }

    /// The snapshot that refusals are compared with: what is in force, with the losses of the window given back. `None`
    /// where there are none.
    pub(in crate::control) fn before_losses(&self) -> Option<Arc<Snapshot>> {
        let in_force = self.in_force.as_ref()?;
        let changes: Vec<Change> = self
            .ledger
            .iter()
            .filter(|(_, entry)| takes(entry.kind))
            .filter_map(|(key, entry)| change_to(key, entry.baseline()?.clone()))
            .collect();
        if changes.is_empty() {
            return None;
        }
        Some(Arc::new(in_force.apply(in_force.generation(), &changes)))
    }

    fn undo(
        &mut self,
        rows: Vec<(RowKey, Option<AnyRow>)>,
        to: Generation,
        rule: Rule,
        now: UnixMillis,
    ) -> Undone {
        let in_force = self.in_force.clone()?;
        let from = in_force.generation();
        let mut applied = Vec::new();
        for (key, before) in rows {
            let answer = row_of(&in_force, &key);
            if answer == before {
                continue;
            }
            self.relations[index(key.relation())].pending.remove(&key);
            self.rejected.insert(key.clone(), RejectedRow { answer, rule, since: now });
            applied.push(AppliedRow { key, after: before, kind: None });
        }
        if applied.is_empty() {
            return None;
        }
        let rows = applied.len();
        self.counts.rollbacks += 1;
        self.is_memory_changed = true;
        self.count_hold(rule);
        let Judged { .. } = self.put_in_force(applied, super::BY_ROLLBACK, now);
        self.hold_rejected(now);
        Some(RolledBack { from, to, in_force: self.generation()?, rows })
    }

    /// Shows what was undone as held, as long as the store has not answered anew.
    pub(super) fn hold_rejected(&mut self, now: UnixMillis) {
        let Some(in_force) = self.in_force.clone() else { return };
        for (key, undone) in &self.rejected {
            let before = row_of(&in_force, key);
            let kind = self.kind_of(key, before.as_ref(), undone.answer.as_ref(), now);
            let state = &mut self.relations[index(key.relation())];
            if kind.is_some() && state.pending.get(key).is_none() {
                let row = super::PendingRow {
                    after: undone.answer.clone(),
                    kind,
                    since: undone.since,
                    first_read: state.reads,
                    held: Some(undone.rule),
                };
                state.pending.insert(key.clone(), row);
            }
        }
    }
}

const fn takes(kind: ChangeKind) -> bool {
    matches!(
        kind,
        ChangeKind::Ended
            | ChangeKind::Absent
            | ChangeKind::Narrowed
            | ChangeKind::Reassigned
            | ChangeKind::Unlocated
            | ChangeKind::Moved
    )
}

const fn is_of_location(kind: ChangeKind) -> bool {
    matches!(kind, ChangeKind::Unlocated | ChangeKind::Moved)
}
