//! Rows that do not decode: each is reported once when it turns bad, and counted as long as it stays bad.

use std::collections::HashSet;

use super::report::GuardReport;
use crate::authz::Change;
use crate::store::{Quarantined, RowKey};

/// See the module.
pub(super) struct Quarantine {
    report: GuardReport,
    keys: HashSet<RowKey>,
    /// Examples of the bad rows that were read last.
    examples: Vec<Quarantined>,
}

impl Quarantine {
    pub(super) fn new(report: GuardReport) -> Self {
        Self { report, keys: HashSet::new(), examples: Vec::new() }
    }

    /// The outcome of a full read: these rows are bad, all others are not.
    pub(super) fn replace(&mut self, quarantined: Vec<Quarantined>) {
        let before = std::mem::take(&mut self.keys);
        let is_new = |row: &&Quarantined| !before.contains(&row.key);
        self.report.quarantined(quarantined.iter().filter(is_new));
        self.examples = quarantined.iter().take(EXAMPLES_MAX).cloned().collect();
        self.keys = quarantined.into_iter().map(|row| row.key).collect();
    }

    /// The outcome of a read of changes: `changes` decoded or are gone, `quarantined` are bad.
    pub(super) fn update(&mut self, changes: &[Change], quarantined: Vec<Quarantined>) {
        for key in changes.iter().filter_map(row_key) {
            self.keys.remove(&key);
        }
        self.report.quarantined(quarantined.iter().filter(|row| !self.keys.contains(&row.key)));
        if !quarantined.is_empty() {
            self.examples = quarantined.iter().take(EXAMPLES_MAX).cloned().collect();
        }
        self.keys.extend(quarantined.into_iter().map(|row| row.key));
    }

    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &RowKey> {
        self.keys.iter()
    }

    pub(super) fn examples(&self) -> &[Quarantined] {
        &self.examples
    }
}

/// The row that a change is about; `None` for a principal, which is none of any relation.
pub(super) fn row_key(change: &Change) -> Option<RowKey> {
    match change {
        Change::Credential(row) => Some(RowKey::Credential(row.key)),
        Change::CredentialGone(key) => Some(RowKey::Credential(*key)),
        Change::Grant(row) => Some(RowKey::Grant(row.id)),
        Change::GrantGone(id) => Some(RowKey::Grant(*id)),
        Change::Device(row) => Some(RowKey::Device(row.id)),
        Change::DeviceGone(id) => Some(RowKey::Device(*id)),
        Change::PrincipalGone(_) => None,
    }
}

/// Number of rows whose reasons are kept for status.
const EXAMPLES_MAX: usize = 5;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authz::{DeviceId, GrantId};
    use crate::telemetry::AuditSender;

    fn bad(key: RowKey) -> Quarantined {
        Quarantined { key, reason: "bad".to_owned() }
    }

    #[test]
    fn a_row_counts_from_when_it_turns_bad_until_it_is_good_or_gone() {
        let mut quarantine = Quarantine::new(GuardReport::new(AuditSender::disabled()));
        let grant = || RowKey::Grant(GrantId(1));
        let device = || RowKey::Device(DeviceId(1));
        quarantine.update(&[], vec![bad(grant()), bad(device()), bad(grant())]);
        assert_eq!(quarantine.len(), 2);
        quarantine.update(&[Change::DeviceGone(DeviceId(1))], vec![]);
        assert_eq!(quarantine.len(), 1);
        quarantine.update(&[Change::GrantGone(GrantId(1))], vec![bad(grant())]);
        assert_eq!(quarantine.len(), 1, "revoked, but as bad as before");
        quarantine.replace(vec![bad(device())]);
        assert_eq!(quarantine.keys, HashSet::from([device()]));
    }
}
