//! Rows in which the store's newest answer differs from what is in force, by relation.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, HashSet};

use super::row::AnyRow;
use crate::authz::{DeviceId, UnixMillis};
use crate::control::api::{ChangeKind, Rule};
use crate::store::{Position, Quarantined, RowKey};

/// The newest answer about one relation.
#[derive(Default)]
pub(in crate::control) struct RelationState {
    /// Rows that differ and were not applied.
    pub(in crate::control) pending: PendingRows,
    /// Kinds of which more rows differ than are kept.
    pub(in crate::control) overflow: BTreeMap<ChangeKind, Overflow>,
    /// Answers so far that were believed.
    pub(in crate::control) reads: u64,
    /// Time of the last judgement.
    pub(in crate::control) decided_at: UnixMillis,
    pub(in crate::control) read_at: Option<UnixMillis>,
    pub(in crate::control) position: Option<Position>,
    /// Rows of the last answer, with those that did not decode.
    pub(in crate::control) rows: usize,
    /// Rows that do not decode; their last good versions stay.
    pub(in crate::control) bad: HashSet<RowKey>,
    pub(in crate::control) bad_examples: Vec<Quarantined>,
    /// Why the whole relation waits, but for mends.
    pub(in crate::control) relation_hold: Option<RelationHold>,
}

/// A row that differs.
#[derive(Clone, Debug)]
pub(in crate::control) struct PendingRow {
    pub(in crate::control) after: Option<AnyRow>,
    /// Kind of the change from the baseline; `None` for a mend, and for what changes no decision.
    pub(in crate::control) kind: Option<ChangeKind>,
    pub(in crate::control) since: UnixMillis,
    /// Number of the answer that showed the change first.
    pub(in crate::control) first_read: u64,
    /// `None` where the row only waits for a second answer.
    pub(in crate::control) held: Option<Rule>,
}

/// Rows of one kind that are too many to keep. They are counted anew with each answer.
#[derive(Clone, Debug)]
pub(in crate::control) struct Overflow {
    pub(in crate::control) rows: usize,
    pub(in crate::control) digest: u128,
    pub(in crate::control) examples: Vec<String>,
    pub(in crate::control) since: UnixMillis,
}

/// Reason that keeps all changes of a relation back.
#[derive(Clone, Debug)]
pub(in crate::control) struct RelationHold {
    pub(in crate::control) rule: Rule,
    pub(in crate::control) figures: String,
    pub(in crate::control) examples: Vec<String>,
    pub(in crate::control) since: UnixMillis,
}

/// Differing rows by their keys. Counts are kept, so that a look at what is held costs nothing while it stays.
#[derive(Default)]
pub(in crate::control) struct PendingRows {
    rows: HashMap<RowKey, PendingRow>,
    counts: BTreeMap<(Option<ChangeKind>, Option<Rule>), usize>,
    /// Worked out when it is asked for; `None` once a row has changed.
    held: RefCell<Option<Vec<HeldGroup>>>,
    /// Devices whose row here has come, gone or changed since the last drain.
    changed_devices: HashSet<DeviceId>,
}

/// Rows of one kind that are held by one rule.
#[derive(Clone, Debug)]
pub(in crate::control) struct HeldGroup {
    pub(in crate::control) kind: ChangeKind,
    pub(in crate::control) rule: Rule,
    pub(in crate::control) rows: usize,
    pub(in crate::control) since: UnixMillis,
    pub(in crate::control) examples: Vec<String>,
}

impl PendingRows {
    pub(in crate::control) fn insert(&mut self, key: RowKey, row: PendingRow) {
        self.remove(&key);
        self.changed_devices.extend(device_of(&key));
        *self.counts.entry((row.kind, row.held)).or_default() += 1;
        self.held.take();
        self.rows.insert(key, row);
    }

    pub(in crate::control) fn remove(&mut self, key: &RowKey) -> Option<PendingRow> {
        let row = self.rows.remove(key)?;
        self.changed_devices.extend(device_of(key));
        self.uncount((row.kind, row.held));
        Some(row)
    }

    /// Has the row held by `rule`, or by none. Returns what held it before; `None` where there is no such row.
    pub(in crate::control) fn hold(&mut self, key: &RowKey, rule: Option<Rule>) -> Option<Option<Rule>> {
        let row = self.rows.get_mut(key)?;
        let (kind, before) = (row.kind, std::mem::replace(&mut row.held, rule));
        if before != rule {
            *self.counts.entry((kind, rule)).or_default() += 1;
            self.uncount((kind, before));
        }
        Some(before)
    }

    pub(in crate::control) fn remove_kind(&mut self, kind: ChangeKind) {
        let gone = self.rows.extract_if(|_, row| row.kind == Some(kind));
        self.changed_devices.extend(gone.filter_map(|(key, _)| device_of(&key)));
        self.counts.retain(|(of, _), _| *of != Some(kind));
        self.held.take();
    }

    /// Puts the rows of a newer answer in the place of `before`.
    pub(in crate::control) fn follow(&mut self, before: Self) {
        self.changed_devices.extend(before.changed_devices);
        self.changed_devices.extend(before.rows.keys().filter_map(device_of));
    }

    pub(in crate::control) fn drain_changed_devices(&mut self) -> HashSet<DeviceId> {
        std::mem::take(&mut self.changed_devices)
    }

    pub(in crate::control) fn get(&self, key: &RowKey) -> Option<&PendingRow> {
        self.rows.get(key)
    }

    pub(in crate::control) fn iter(&self) -> impl Iterator<Item = (&RowKey, &PendingRow)> {
        self.rows.iter()
    }

    pub(in crate::control) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Number of rows that are no mends.
    pub(in crate::control) fn charged(&self) -> usize {
        self.counts.iter().filter(|((kind, _), _)| kind.is_some()).map(|(_, rows)| rows).sum()
    }

    /// Number of rows of `kind` that are held by `rule`, or by none.
    pub(in crate::control) fn count(&self, kind: ChangeKind, rule: Option<Rule>) -> usize {
        self.counts.get(&(Some(kind), rule)).copied().unwrap_or_default()
    }

    /// True where no row waits for a second answer or is free.
    pub(in crate::control) fn is_all_held(&self) -> bool {
        self.counts.keys().all(|(kind, rule)| kind.is_some() && rule.is_some())
    }

    pub(in crate::control) fn is_anything_held(&self) -> bool {
        self.counts.keys().any(|(_, rule)| rule.is_some())
    }

    /// What is held, by kind and rule.
    pub(in crate::control) fn held(&self) -> Vec<HeldGroup> {
        self.held.borrow_mut().get_or_insert_with(|| self.held_groups()).clone()
    }

    fn held_groups(&self) -> Vec<HeldGroup> {
        let held = self.counts.iter().filter_map(|((kind, rule), rows)| Some(((*kind)?, (*rule)?, *rows)));
        held.map(|(kind, rule, rows)| {
            let of_group =
                || self.rows.iter().filter(move |(_, row)| row.kind == Some(kind) && row.held == Some(rule));
            let since = of_group().map(|(_, row)| row.since).min().unwrap_or_default();
            let examples = super::Guard::examples(of_group().map(|(key, _)| key));
            HeldGroup { kind, rule, rows, since, examples }
        })
        .collect()
    }

    fn uncount(&mut self, group: (Option<ChangeKind>, Option<Rule>)) {
        self.held.take();
        if let Some(count) = self.counts.get_mut(&group) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&group);
            }
        }
    }
}

const fn device_of(key: &RowKey) -> Option<DeviceId> {
    match key {
        RowKey::Device(id) => Some(*id),
        _ => None,
    }
}

impl RelationState {
    pub(in crate::control) fn is_anything_held(&self) -> bool {
        self.relation_hold.is_some() || !self.overflow.is_empty() || self.pending.is_anything_held()
    }
}

/// Differing rows of one kind that are kept one by one. Held rows beyond are read again when they are accepted.
pub(in crate::control) const PENDING_ROWS_MAX: usize = 100_000;

/// Differing rows that outlive a restart. Of more, the next answers are judged as new ones.
pub(in crate::control) const PENDING_KEPT_MAX: usize = 10_000;
