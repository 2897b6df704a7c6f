//! Going back: inferred changes of the window are undone, explicit words are not.
//!
//! What was undone is not put in force again while the store shows it unchanged; another answer about the row is judged
//! as any.

use std::sync::Arc;

use super::row::{AnyRow, change_to, row_after, row_of};
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
    /// where there are none. `changes` are those of what is in force since the last call.
    pub(in crate::control) fn before_losses<'a>(
        &mut self,
        changes: impl Iterator<Item = &'a Change>,
    ) -> Option<Arc<Snapshot>> {
        let mut keys = self.ledger.drain_changed();
        let known = self.before_losses.take();
        if self.losses(false) + self.losses(true) == 0 {
            return None;
        }
        let in_force = self.in_force.clone()?;
        let from = match known {
            Some(known) => {
                keys.extend(changes.cloned().filter_map(row_after).map(|(key, _)| key));
                known
            }
            None => {
                keys = self.ledger.iter().map(|(key, _)| key.clone()).collect();
                Arc::clone(&in_force)
            }
        };
        let (mut gone, mut rest) = (Vec::new(), Vec::new());
        for key in keys {
            let lost = self.ledger.entry(&key).filter(|entry| takes(entry.kind));
            let row = match lost.and_then(|entry| entry.baseline()) {
                Some(baseline) => baseline.clone(),
                None => row_of(&in_force, &key),
            };
            let into = if row.is_none() { &mut gone } else { &mut rest };
            into.extend(change_to(&key, row));
        }
        gone.append(&mut rest);
        let before = Arc::new(from.apply(in_force.generation(), &gone));
        self.before_losses = Some(Arc::clone(&before));
        Some(before)
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
            self.rejected.insert(key.clone(), RejectedRow { answer, rule, since: now, undone: 0 });
            applied.push(AppliedRow { key, after: before, kind: None });
        }
        if applied.is_empty() {
            return None;
        }
        let rows = applied.len();
        self.count_undone(rule);
        self.counts.rollbacks += 1;
        self.is_memory_changed = true;
        self.count_hold(rule);
        let Judged { .. } = self.put_in_force(applied, super::BY_ROLLBACK, now);
        self.hold_rejected(now);
        Some(RolledBack { from, to, in_force: self.generation()?, rows })
    }

    /// Notes with each row that was undone by `rule` how many there are.
    pub(super) fn count_undone(&mut self, rule: Rule) {
        let rows = self.rejected.values().filter(|undone| undone.rule == rule).count();
        let of_rule = self.rejected.values_mut().filter(|undone| undone.rule == rule);
        of_rule.for_each(|undone| undone.undone = rows);
    }

    /// Judges anew what the guard has undone, once the answers show that its cause is mended: what is left says of single
    /// rows that they have ended. A right that is mended shows that; of devices, which come and go, it takes half.
    pub(super) fn release_mended(&mut self, is_right_mended: bool) {
        let by_guard = |row: &&RejectedRow| row.rule == Rule::Probation;
        let left = self.rejected.values().filter(by_guard).count();
        let undone = self.rejected.values().filter(by_guard).map(|row| row.undone).max();
        if left == 0 || undone.is_none_or(|undone| !is_right_mended && left * 2 > undone) {
            return;
        }
        self.rejected.retain(|_, row| row.rule != Rule::Probation);
        self.is_memory_changed = true;
        for state in &mut self.relations {
            let held: Vec<RowKey> = state
                .pending
                .iter()
                .filter(|(_, row)| row.held == Some(Rule::Probation))
                .map(|(key, _)| key.clone())
                .collect();
            for key in held {
                if let Some(mut row) = state.pending.remove(&key) {
                    row.held = None;
                    state.pending.insert(key, row);
                }
            }
        }
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

pub(super) const fn is_of_location(kind: ChangeKind) -> bool {
    matches!(kind, ChangeKind::Unlocated | ChangeKind::Moved)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::authz::{Grant, GrantId, PortRange, PrincipalId, Scope};
    use crate::config::Config;
    use crate::store::{Position, RelationRows, StoreId, Word};

    fn grant(id: i64, max: u16) -> Grant {
        let ports = PortRange::new(1, max).unwrap();
        let (principal, scope) = (PrincipalId(1), Scope::Any);
        Grant { id: GrantId(id), principal, scope, ports, expires_at: None, revoked: false }
    }

    fn rows(snapshot: Option<&Snapshot>) -> Option<Vec<Grant>> {
        let mut rows: Vec<Grant> = snapshot?.grants().collect();
        rows.sort_unstable_by_key(|row| row.id.0);
        Some(rows)
    }

    /// A guard that has 300 grants in force.
    struct Bench {
        guard: Guard,
        position: Position,
        now: UnixMillis,
    }

    impl Bench {
        fn new() -> Self {
            let position = Position { store: StoreId([1; 16]), timeline: 0, log: 0, mark: 0 };
            let mut bench = Self { guard: Guard::new(&Config::default()), position, now: UnixMillis(1_000) };
            bench.answer(Relation::Credentials, RelationRows::Credentials(Vec::new()));
            bench.answer(Relation::Devices, RelationRows::Devices(Vec::new()));
            bench.answer_grants(0, 0);
            bench
        }

        fn answer(&mut self, relation: Relation, rows: RelationRows) {
            self.position.log += 1;
            self.now.0 += 1_000;
            self.guard.answer(relation, rows, Vec::new(), self.position, self.now);
        }

        /// Answers with the 300 grants, of which the first `narrowed` give less and the last `absent` are missing.
        fn answer_grants(&mut self, narrowed: i64, absent: i64) {
            let max = |id| if id < narrowed { 50 } else { 100 };
            let grants = (0..300 - absent).map(|id| grant(id, max(id))).collect();
            self.answer(Relation::Grants, RelationRows::Grants(grants));
        }

        fn undo_losses(&mut self) -> Option<usize> {
            self.guard.undo_losses(false, self.now).map(|undone| undone.rows)
        }

        fn grants(&self) -> usize {
            rows(self.guard.in_force().map(Arc::as_ref)).map_or(0, |rows| rows.len())
        }

        /// Rows that probation has undone.
        fn undone(&self) -> usize {
            self.guard.rejected.values().filter(|undone| undone.rule == Rule::Probation).count()
        }
    }

    #[test]
    fn what_probation_undid_stays_undone_whatever_an_operator_undid_before() {
        let mut bench = Bench::new();
        bench.answer_grants(8, 0);
        assert_eq!(bench.guard.roll_back(None, bench.now).map(|undone| undone.rows), Some(8));
        bench.answer_grants(8, 3);
        bench.answer_grants(8, 3);
        assert_eq!(bench.undo_losses(), Some(3));

        // The store goes on as before: nothing is mended, so nothing is judged anew.
        bench.answer_grants(8, 3);
        bench.answer_grants(8, 3);
        assert_eq!((bench.undone(), bench.grants()), (3, 300));
    }

    /// Where nothing but an answer says that a right has ended, probation undoes a true end beside a wrong one.
    #[test]
    fn a_true_end_that_was_undone_beside_a_mistake_counts_once_the_mistake_is_mended() {
        let mut bench = Bench::new();
        bench.answer_grants(1, 5);
        bench.answer_grants(1, 5);
        assert_eq!(bench.undo_losses(), Some(6));
        bench.answer_grants(1, 5);
        assert_eq!((bench.undone(), bench.grants()), (6, 300));

        bench.answer_grants(0, 5);
        bench.answer_grants(0, 5);
        assert_eq!((bench.undone(), bench.grants()), (0, 295));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]

        /// Steps: grants of which an answer lacks one and narrows one, a word on one, or a window that passes.
        #[test]
        fn what_refusals_are_compared_with_follows_each_change(
            steps in prop::collection::vec((0..3u8, 0..300i64, 0..300i64), 1..40)
        ) {
            let mut guard = Guard::new(&Config::default());
            let (mut at, mut now) = (0, UnixMillis(1_000));
            let mut answer = |guard: &mut Guard, now: UnixMillis, rows: RelationRows| {
                at += 1;
                let relation = match rows {
                    RelationRows::Credentials(_) => Relation::Credentials,
                    RelationRows::Devices(_) => Relation::Devices,
                    _ => Relation::Grants,
                };
                let position = Position { store: StoreId([1; 16]), timeline: 0, log: at, mark: 0 };
                guard.answer(relation, rows, Vec::new(), position, now);
                position
            };
            answer(&mut guard, now, RelationRows::Credentials(Vec::new()));
            answer(&mut guard, now, RelationRows::Devices(Vec::new()));
            answer(&mut guard, now, RelationRows::Grants((0..300).map(|id| grant(id, 100)).collect()));
            for (step, one, other) in steps {
                now.0 += 1_000;
                match step {
                    0 => {
                        let max = |id| if id == other { 50 } else { 100 };
                        let all = || (0..300).filter(|id| *id != one).map(|id| grant(id, max(id))).collect();
                        // An absence needs a second answer.
                        answer(&mut guard, now, RelationRows::Grants(all()));
                        answer(&mut guard, now, RelationRows::Grants(all()));
                    }
                    1 => {
                        let position = answer(&mut guard, now, RelationRows::Unchanged);
                        let word = Word::Row(Change::Grant(grant(one, 70)));
                        guard.words(vec![word], Vec::new(), position, now);
                    }
                    _ => {
                        now.0 += 10 * 60 * 1_000;
                        guard.pass_time(now);
                    }
                }
                let unpublished = guard.drain_unpublished();
                let changes = unpublished.inferred.iter().chain(&unpublished.words);
                let followed = guard.before_losses(changes);
                guard.before_losses = None;
                let anew = guard.before_losses([].iter());
                prop_assert_eq!(rows(followed.as_deref()), rows(anew.as_deref()));
                // The next step follows what was followed.
                guard.before_losses = followed;
            }
        }
    }
}
