//! What the store says, as far as it was read: a snapshot of its own, beside the one in force.
//!
//! Both share all rows in which they agree. Where a row does not decode, its last good version stands in.

use std::collections::HashSet;
use std::sync::Arc;

use super::guard::{Difference, Duplicates, Touched};
use super::quarantine::row_key;
use crate::authz::{Change, Generation, Snapshot};
use crate::store::{Quarantined, RowKey, Rows};

/// See the module.
pub(super) struct CandidateBuilder {
    snapshot: Arc<Snapshot>,
    /// Keys of rows that may differ from the snapshot in force.
    touched: Touched,
    duplicates: Duplicates,
}

impl CandidateBuilder {
    pub(super) fn empty() -> Self {
        let snapshot = Snapshot::build(NEVER_PUBLISHED, Vec::new(), Vec::new(), Vec::new());
        Self { snapshot: Arc::new(snapshot), touched: Touched::nothing(), duplicates: Duplicates::default() }
    }

    /// The outcome of a full read. `last_good` has what stands in for bad rows.
    pub(super) fn replace(&mut self, rows: Rows, quarantined: &[Quarantined], last_good: Option<&Snapshot>) {
        self.duplicates = Duplicates::among_rows(&rows);
        let Rows { credentials, grants, devices, .. } = rows;
        let built = Snapshot::build(NEVER_PUBLISHED, credentials, grants, devices);
        let stand_ins = last_good.map(|last_good| stand_ins(quarantined, last_good, &built));
        self.snapshot = Arc::new(built.apply(NEVER_PUBLISHED, &stand_ins.unwrap_or_default()));
        self.touched = Touched::Everything;
    }

    /// The outcome of a read of changes. Those of `bad` rows are left out: their last good versions stay.
    pub(super) fn apply(&mut self, changes: &[Change], bad: &HashSet<&RowKey>) {
        let is_good = |change: &&Change| row_key(change).is_none_or(|key| !bad.contains(&key));
        let changes: Vec<Change> = changes.iter().filter(is_good).cloned().collect();
        self.duplicates.add(Duplicates::among_changes(&changes));
        let displaced = changes.iter().filter_map(|change| self.displaced_by(change));
        self.touched.add(displaced.collect::<Vec<_>>());
        self.touched.add(changes.iter().filter_map(row_key));
        self.snapshot = Arc::new(self.snapshot.apply(NEVER_PUBLISHED, &changes));
    }

    /// `in_force` was published from this, but for the rows `kept`, which the store does not have.
    pub(super) fn share(&mut self, in_force: &Arc<Snapshot>, kept: &HashSet<RowKey>) {
        let gone: Vec<Change> = kept.iter().filter_map(gone).collect();
        self.snapshot = if gone.is_empty() {
            Arc::clone(in_force)
        } else {
            Arc::new(in_force.apply(NEVER_PUBLISHED, &gone))
        };
        self.touched = Touched::nothing();
        self.touched.add(kept.iter().cloned());
    }

    /// Another snapshot is in force, which differs from the last one in `touched`.
    pub(super) fn touch(&mut self, touched: Touched) {
        self.touched.merge(touched);
    }

    pub(super) fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    pub(super) fn duplicates(&self) -> &Duplicates {
        &self.duplicates
    }

    /// Returns the difference between `in_force` and the store's answer. Remembers it for the next call.
    pub(super) fn difference(&mut self, in_force: &Snapshot) -> Difference {
        let difference = Difference::between(in_force, &self.snapshot, &self.touched);
        self.touched = Touched::nothing();
        self.touched.add(difference.keys());
        difference
    }

    /// The device that loses its place to one with the same uuid.
    fn displaced_by(&self, change: &Change) -> Option<RowKey> {
        let Change::Device(device) = change else { return None };
        let other = self.snapshot.device_named(device.uuid)?;
        (other.id != device.id).then_some(RowKey::Device(other.id))
    }
}

/// The last good versions of bad rows. A good row that has the same uuid now wins.
fn stand_ins(quarantined: &[Quarantined], last_good: &Snapshot, read: &Snapshot) -> Vec<Change> {
    let stand_in = |row: &Quarantined| match &row.key {
        RowKey::Credential(key) => last_good.credential(key).map(Change::Credential),
        RowKey::Grant(id) => last_good.grant(*id).map(Change::Grant),
        RowKey::Device(id) => last_good
            .device(*id)
            .filter(|device| read.device_named(device.uuid).is_none())
            .map(Change::Device),
        RowKey::Unreadable { .. } => None,
    };
    quarantined.iter().filter_map(stand_in).collect()
}

fn gone(key: &RowKey) -> Option<Change> {
    match key {
        RowKey::Credential(key) => Some(Change::CredentialGone(*key)),
        RowKey::Grant(id) => Some(Change::GrantGone(*id)),
        RowKey::Device(id) => Some(Change::DeviceGone(*id)),
        RowKey::Unreadable { .. } => None,
    }
}

/// Generation of a candidate, which has none of its own until it is published.
pub(super) const NEVER_PUBLISHED: Generation = Generation(0);
