//! Polling of stores without an outbox: each is read whole on a period, and its rows count only if they have changed.

use std::hash::{BuildHasher, Hash, RandomState};
use std::time::{Duration, Instant};

use super::{Changes, Quarantined, Relation, RelationRows, RowKey, Rows};

/// The time of the next read, and a fingerprint of the last one.
pub(super) struct Polling {
    every: Duration,
    /// `None` before the first read.
    last: Option<LastRead>,
    hashers: [RandomState; 2],
}

struct LastRead {
    at: Instant,
    fingerprint: Fingerprint,
}

/// Hash of all rows in any order. A store need not keep to one order.
type Fingerprint = [u64; 2];

impl Polling {
    pub(super) fn new(every: Duration) -> Self {
        Self { every, last: None, hashers: [RandomState::new(), RandomState::new()] }
    }

    pub(super) fn is_due(&self) -> bool {
        self.last.as_ref().is_none_or(|last| last.at.elapsed() >= self.every)
    }

    /// Records the rows that were read.
    pub(super) fn record(&mut self, rows: &Rows) {
        self.last = Some(LastRead { at: Instant::now(), fingerprint: self.fingerprint(rows) });
    }

    /// Records the rows of a read that was due, and compares them with those of the read before.
    pub(super) fn changes(&mut self, rows: Rows) -> Changes {
        let before = self.last.as_ref().map(|last| last.fingerprint);
        self.record(&rows);
        let now = self.last.as_ref().map(|last| last.fingerprint);
        if now == before { Changes::Nothing } else { Changes::All(rows) }
    }

    fn fingerprint(&self, rows: &Rows) -> Fingerprint {
        let Rows { credentials, grants, devices, quarantined, ended } = rows;
        let mut sum = Fingerprint::default();
        let mut add = |each: &dyn Fn(&RandomState) -> u64| {
            for (sum, hasher) in sum.iter_mut().zip(&self.hashers) {
                *sum = sum.wrapping_add(each(hasher));
            }
        };
        for row in credentials {
            add(&|hasher| tagged(hasher, 0, row));
        }
        for row in grants {
            add(&|hasher| tagged(hasher, 1, row));
        }
        for row in devices {
            add(&|hasher| tagged(hasher, 2, row));
        }
        for row in quarantined {
            add(&|hasher| tagged(hasher, 3, row));
        }
        for end in ended {
            add(&|hasher| tagged(hasher, 4, end));
        }
        sum
    }
}

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

fn tagged(hasher: &RandomState, kind: u8, row: impl Hash) -> u64 {
    hasher.hash_one((kind, row))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authz::{Device, DeviceId, DeviceUuid, GrantId};
    use crate::store::{Quarantined, RowKey};

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

    fn rows(devices: &[i64]) -> Rows {
        Rows { devices: devices.iter().copied().map(device).collect(), ..Rows::default() }
    }

    #[test]
    fn only_other_rows_are_a_change_in_whatever_order_they_come() {
        let mut polling = Polling::new(Duration::from_secs(60));
        assert!(polling.is_due());
        let mut is_change = |rows: Rows| matches!(polling.changes(rows), Changes::All(_));
        assert!(is_change(rows(&[1, 2])));
        assert!(!is_change(rows(&[2, 1])));
        assert!(is_change(rows(&[1, 2, 2])), "a row that came twice");
        assert!(is_change(rows(&[1])));
        let offline = || {
            let mut rows = rows(&[1]);
            rows.devices[0].online = false;
            rows
        };
        assert!(is_change(offline()));
        let with_bad_row = || {
            let mut rows = offline();
            rows.quarantined.push(Quarantined { key: RowKey::Grant(GrantId(1)), reason: "bad".to_owned() });
            rows
        };
        assert!(is_change(with_bad_row()));
        assert!(!is_change(with_bad_row()));
        assert!(is_change(rows(&[])));
        assert!(!polling.is_due());
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
