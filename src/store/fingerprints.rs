//! Recognises an answer that is the same as the last one, for relations that are read whole on a period.

use std::hash::{BuildHasher, Hash, RandomState};

use super::{Quarantined, Relation, RelationRows, RowKey};

/// Fingerprints of the last answer for each relation, by which an answer that is the same is recognised.
pub(super) struct AnswerFingerprints {
    last: [Option<Fingerprint>; Relation::ALL.len()],
    hashers: [RandomState; 2],
}

impl AnswerFingerprints {
    pub(super) fn new() -> Self {
        Self { last: Default::default(), hashers: [RandomState::new(), RandomState::new()] }
    }

    /// Forgets all answers: other queries gave them.
    pub(super) fn clear(&mut self) {
        self.last = Default::default();
    }

    /// Records the answer for `relation`. Returns its rows, or that they and all else in it are as the last time.
    pub(super) fn record(
        &mut self,
        relation: Relation,
        rows: RelationRows,
        quarantined: &[Quarantined],
        ended: &[RowKey],
    ) -> RelationRows {
        let fingerprint = self.fingerprint(&rows, quarantined, ended);
        let last = &mut self.last[relation as usize];
        if last.replace(fingerprint) == Some(fingerprint) { RelationRows::Unchanged } else { rows }
    }

    fn fingerprint(&self, rows: &RelationRows, quarantined: &[Quarantined], ended: &[RowKey]) -> Fingerprint {
        let [first, second] = &self.hashers;
        let mut sum = Fingerprint::default();
        let mut add = |[one, other]: Fingerprint| {
            sum = [sum[0].wrapping_add(one), sum[1].wrapping_add(other)];
        };
        let mut add_row = |hashed: &dyn Fn(&RandomState) -> u64| add([hashed(first), hashed(second)]);
        match rows {
            RelationRows::Credentials(rows) => {
                rows.iter().for_each(|row| add_row(&|hasher| tagged(hasher, 0, row)))
            }
            RelationRows::Grants(rows) => {
                rows.iter().for_each(|row| add_row(&|hasher| tagged(hasher, 1, row)))
            }
            RelationRows::Devices(rows) => {
                rows.iter().for_each(|row| add_row(&|hasher| tagged(hasher, 2, row)))
            }
            RelationRows::Unchanged => {}
        }
        quarantined.iter().for_each(|row| add_row(&|hasher| tagged(hasher, 3, row)));
        ended.iter().for_each(|key| add_row(&|hasher| tagged(hasher, 4, key)));
        sum
    }
}

/// Hash of all rows in any order. A store need not keep to one order.
type Fingerprint = [u64; 2];

fn tagged(hasher: &RandomState, kind: u8, row: impl Hash) -> u64 {
    hasher.hash_one((kind, row))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authz::{Device, DeviceId, DeviceUuid, GrantId};

    fn device(id: i64) -> Device {
        let uuid = DeviceUuid::parse(&format!("{id:032x}")).unwrap();
        Device {
            id: DeviceId(id),
            uuid,
            fleet: None,
            address: None,
            node: None,
            online: true,
            disputed: false,
        }
    }

    #[test]
    fn an_answer_is_unchanged_only_against_the_last_one_for_its_relation() {
        let mut answers = AnswerFingerprints::new();
        let devices = |ids: &[i64]| RelationRows::Devices(ids.iter().copied().map(device).collect());
        let mut is_unchanged = |rows, quarantined: &[Quarantined], ended: &[RowKey]| {
            let rows = answers.record(Relation::Devices, rows, quarantined, ended);
            matches!(rows, RelationRows::Unchanged)
        };
        assert!(!is_unchanged(devices(&[]), &[], &[]), "the first answer, even an empty one");
        assert!(!is_unchanged(devices(&[1, 2]), &[], &[]));
        assert!(is_unchanged(devices(&[2, 1]), &[], &[]));
        assert!(!is_unchanged(devices(&[2, 1, 1]), &[], &[]), "a row that came twice");
        let offline = || {
            let mut row = device(1);
            row.online = false;
            RelationRows::Devices(vec![row])
        };
        assert!(!is_unchanged(devices(&[1]), &[], &[]));
        assert!(!is_unchanged(offline(), &[], &[]), "the same key, another value");
        assert!(!is_unchanged(devices(&[2, 1, 1]), &[], &[]));
        let bad = [Quarantined { key: RowKey::Device(DeviceId(3)), reason: "bad".to_owned() }];
        assert!(!is_unchanged(devices(&[2, 1, 1]), &bad, &[]));
        assert!(!is_unchanged(devices(&[2, 1, 1]), &bad, &[RowKey::Grant(GrantId(1))]));
        assert!(is_unchanged(devices(&[2, 1, 1]), &bad, &[RowKey::Grant(GrantId(1))]));

        let grants = answers.record(Relation::Grants, RelationRows::Grants(vec![]), &[], &[]);
        assert!(matches!(grants, RelationRows::Grants(_)), "another relation's first answer");
        answers.clear();
        let after = answers.record(Relation::Grants, grants, &[], &[]);
        assert!(matches!(after, RelationRows::Grants(_)), "answers to other queries count no more");
    }
}
