//! What was inferred within the window: the way from the baseline to what is in force.
//!
//! The baseline is not kept: it is what is in force with this ledger undone. So it costs as much as changed, however
//! large the installation is. A row whose changes are older than the window leaves the ledger, and what it is now is
//! the baseline; while anything of its relation is held it stays, so that no slow drift can move the baseline along, and a
//! mend is known as one however late it comes.

use std::collections::{HashMap, HashSet, VecDeque};

use super::row::AnyRow;
use crate::authz::{Generation, UnixMillis};
use crate::control::api::ChangeKind;
use crate::store::{Relation, RowKey};

/// See the module.
#[derive(Default)]
pub(in crate::control) struct Ledger {
    entries: HashMap<RowKey, LedgerEntry>,
    /// Number of entries by relation and kind.
    counts: HashMap<(Relation, ChangeKind), usize>,
    /// Rows whose entry has come, gone or changed since the last drain.
    changed: HashSet<RowKey>,
}

/// A row that was changed by inference.
#[derive(Clone, Debug)]
pub(in crate::control) struct LedgerEntry {
    /// Kind of the change from the baseline to what is in force.
    pub(in crate::control) kind: ChangeKind,
    /// Its changes, the oldest first; never empty.
    pub(in crate::control) steps: VecDeque<LedgerStep>,
}

/// A row whose changes have become the baseline.
pub(in crate::control) struct SettledRow {
    pub(in crate::control) key: RowKey,
    pub(in crate::control) kind: ChangeKind,
    /// The row in the baseline before.
    pub(in crate::control) before: Option<AnyRow>,
}

/// One change of a row.
#[derive(Clone, Debug)]
pub(in crate::control) struct LedgerStep {
    /// Generation that brought it.
    pub(in crate::control) generation: Generation,
    pub(in crate::control) at: UnixMillis,
    pub(in crate::control) before: Option<AnyRow>,
}

impl Ledger {
    /// The row in the baseline; `None` where it is the one in force.
    pub(in crate::control) fn baseline(&self, key: &RowKey) -> Option<&Option<AnyRow>> {
        self.entries.get(key).and_then(LedgerEntry::baseline)
    }

    pub(in crate::control) fn kind(&self, key: &RowKey) -> Option<ChangeKind> {
        self.entries.get(key).map(|entry| entry.kind)
    }

    pub(in crate::control) fn count(&self, relation: Relation, kind: ChangeKind) -> usize {
        self.counts.get(&(relation, kind)).copied().unwrap_or(0)
    }

    pub(in crate::control) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(in crate::control) fn iter(&self) -> impl Iterator<Item = (&RowKey, &LedgerEntry)> {
        self.entries.iter()
    }

    /// Records that the row was changed by `step`, and is a change of `kind` from the baseline now.
    pub(in crate::control) fn record(&mut self, key: RowKey, kind: ChangeKind, step: LedgerStep) {
        let mut entry = self.remove(&key).unwrap_or(LedgerEntry { kind, steps: VecDeque::new() });
        entry.kind = kind;
        entry.steps.push_back(step);
        if entry.steps.len() > STEPS_MAX {
            // The first one has the baseline.
            entry.steps.remove(1);
        }
        self.insert(key, entry);
        if self.entries.len() > LEDGER_ROWS_MAX {
            self.forget_oldest();
        }
    }

    pub(in crate::control) fn insert(&mut self, key: RowKey, entry: LedgerEntry) {
        self.remove(&key);
        *self.counts.entry((key.relation(), entry.kind)).or_default() += 1;
        self.changed.insert(key.clone());
        self.entries.insert(key, entry);
    }

    /// Forgets the row: what is in force is the baseline.
    pub(in crate::control) fn remove(&mut self, key: &RowKey) -> Option<LedgerEntry> {
        let entry = self.entries.remove(key)?;
        self.changed.insert(key.clone());
        if let Some(count) = self.counts.get_mut(&(key.relation(), entry.kind)) {
            *count -= 1;
        }
        Some(entry)
    }

    pub(in crate::control) fn entry(&self, key: &RowKey) -> Option<&LedgerEntry> {
        self.entries.get(key)
    }

    pub(in crate::control) fn drain_changed(&mut self) -> HashSet<RowKey> {
        std::mem::take(&mut self.changed)
    }

    /// Moves the baseline on to `since`, but for relations of which anything is held. Returns the rows of which what
    /// is in force is the baseline now, with their kinds.
    pub(in crate::control) fn age(
        &mut self,
        since: UnixMillis,
        is_held: impl Fn(Relation) -> bool,
    ) -> Vec<SettledRow> {
        let mut settled = Vec::new();
        let old = |entry: &LedgerEntry| entry.steps.front().is_some_and(|step| step.at < since);
        let aged: Vec<RowKey> = self
            .entries
            .iter()
            .filter(|(key, entry)| old(entry) && !is_held(key.relation()))
            .map(|(key, _)| key.clone())
            .collect();
        for key in aged {
            let Some(mut entry) = self.remove(&key) else { continue };
            let before = entry.baseline().cloned().flatten();
            while entry.steps.front().is_some_and(|step| step.at < since) {
                entry.steps.pop_front();
            }
            if entry.steps.is_empty() {
                settled.push(SettledRow { key, kind: entry.kind, before });
            } else {
                self.insert(key, entry);
            }
        }
        super::shrink(&mut self.entries);
        settled
    }

    /// The rows that changed after `generation`, each with what it was at that generation.
    pub(in crate::control) fn since(&self, generation: Generation) -> Vec<(RowKey, Option<AnyRow>)> {
        let first =
            |entry: &LedgerEntry| entry.steps.iter().find(|step| step.generation > generation).cloned();
        self.entries.iter().filter_map(|(key, entry)| Some((key.clone(), first(entry)?.before))).collect()
    }

    /// Makes room for many, so that the search for the oldest is worth its while.
    fn forget_oldest(&mut self) {
        let at = |entry: &LedgerEntry| entry.steps.front().map(|step| step.at);
        let mut keys: Vec<_> = self.entries.iter().map(|(key, entry)| (at(entry), key.clone())).collect();
        let (old, _, _) = keys.select_nth_unstable_by_key(LEDGER_ROWS_MAX / 10, |(at, _)| *at);
        for (_, key) in old {
            self.remove(key);
        }
    }
}

impl LedgerEntry {
    pub(in crate::control) fn baseline(&self) -> Option<&Option<AnyRow>> {
        self.steps.front().map(|step| &step.before)
    }
}

/// Rows that the ledger holds. Budgets keep it far smaller, unless they are configured to be huge; then the oldest rows
/// become the baseline early.
pub(in crate::control) const LEDGER_ROWS_MAX: usize = 200_000;

/// Changes of one row that are kept apart.
const STEPS_MAX: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authz::{Grant, GrantId, PortRange, PrincipalId, Scope};

    fn grant(max: u16) -> Option<AnyRow> {
        Some(AnyRow::Grant(Grant {
            id: GrantId(1),
            principal: PrincipalId(1),
            scope: Scope::Any,
            ports: PortRange::new(1, max).unwrap(),
            expires_at: None,
            revoked: false,
        }))
    }

    fn step(generation: u64, before: Option<AnyRow>) -> LedgerStep {
        LedgerStep { generation: Generation(generation), at: UnixMillis(generation as i64 * 10), before }
    }

    const KEY: RowKey = RowKey::Grant(GrantId(1));

    #[test]
    fn the_baseline_is_the_oldest_row_of_the_window_and_moves_along() {
        let mut ledger = Ledger::default();
        for generation in 1..=3 {
            ledger.record(KEY, ChangeKind::Narrowed, step(generation, grant(10 - generation as u16)));
        }
        assert_eq!(ledger.baseline(&KEY), Some(&grant(9)));
        ledger.age(UnixMillis(15), |_| true);
        assert_eq!(
            ledger.baseline(&KEY),
            Some(&grant(9)),
            "a relation of which anything is held keeps its baseline"
        );
        ledger.age(UnixMillis(15), |_| false);
        assert_eq!(ledger.baseline(&KEY), Some(&grant(8)));
        ledger.age(UnixMillis(31), |_| false);
        assert_eq!((ledger.baseline(&KEY), ledger.count(Relation::Grants, ChangeKind::Narrowed)), (None, 0));
    }

    #[test]
    fn a_row_is_as_it_was_at_each_generation_of_the_window() {
        let mut ledger = Ledger::default();
        (1..=3).for_each(|generation| {
            ledger.record(KEY, ChangeKind::Narrowed, step(generation, grant(10 - generation as u16)));
        });
        let at = |generation| ledger.since(Generation(generation));
        assert_eq!(at(0), [(KEY, grant(9))]);
        assert_eq!(at(2), [(KEY, grant(7))]);
        assert!(at(3).is_empty());
    }

    #[test]
    fn a_row_that_flaps_keeps_its_baseline_and_a_bounded_past() {
        let mut ledger = Ledger::default();
        (1..1_000).for_each(|generation| {
            ledger.record(KEY, ChangeKind::Narrowed, step(generation, grant(generation as u16)));
        });
        assert_eq!(ledger.baseline(&KEY), Some(&grant(1)));
        assert_eq!((ledger.entries[&KEY].steps.len(), ledger.len()), (STEPS_MAX, 1));
    }
}
