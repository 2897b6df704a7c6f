//! Rows that one answer gives more than once.
//!
//! A join that fans out gives a row many times. The same row twice is one row; of two that differ, chance would decide
//! which one counts, so neither does.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, Hash, RandomState};

use super::{Quarantined, RelationRows, RowKey};

impl RelationRows {
    /// These rows with each key once. Rows that differ and have one key are left out and quarantined, and so are
    /// devices that share a uuid.
    pub fn deduplicated(self) -> (Self, Vec<Quarantined>) {
        match self {
            Self::Credentials(mut rows) => {
                let bad = settle(&mut rows, |row| row.key, |row| row.revoked, |key| RowKey::Credential(*key));
                (Self::Credentials(rows), bad)
            }
            Self::Grants(mut rows) => {
                let bad = settle(&mut rows, |row| row.id, |row| row.revoked, |id| RowKey::Grant(*id));
                (Self::Grants(rows), bad)
            }
            Self::Devices(mut rows) => {
                // Before rows leave: a device with two uuids makes the uuid of another one doubtful, too.
                let claimed = repeated(&rows, |row| row.uuid);
                let mut claims: HashMap<_, HashSet<_>> = HashMap::new();
                for row in rows.iter().filter(|row| claimed.contains(&row.uuid)) {
                    claims.entry(row.uuid).or_default().insert(row.id);
                }
                claims.retain(|_, devices| devices.len() > 1);
                let mut bad = settle(&mut rows, |row| row.id, |_| false, |id| RowKey::Device(*id));
                let quarantined: HashSet<_> = bad.iter().map(|bad| bad.key.clone()).collect();
                rows.retain(|row| {
                    let Some(devices) = claims.get(&row.uuid) else {
                        return true;
                    };
                    let key = RowKey::Device(row.id);
                    if !quarantined.contains(&key) {
                        let reason = format!("uuid {} is that of {} devices", row.uuid, devices.len());
                        bad.push(Quarantined { key, reason });
                    }
                    false
                });
                (Self::Devices(rows), bad)
            }
            Self::Unchanged => (Self::Unchanged, Vec::new()),
        }
    }
}

/// Leaves each row once, and none of those that differ and have one key. Returns the keys of these. Rows of one key that
/// all say that they have ended agree in what counts, and leave the first.
fn settle<R: PartialEq, K: Hash + Eq>(
    rows: &mut Vec<R>,
    key: impl Fn(&R) -> K,
    has_ended: impl Fn(&R) -> bool,
    name: impl Fn(&K) -> RowKey,
) -> Vec<Quarantined> {
    let repeated = repeated(rows, &key);
    if repeated.is_empty() {
        return Vec::new();
    }
    // For each key its first row, and the number of rows where one differs from it.
    let mut firsts: HashMap<K, Repetition> = HashMap::new();
    for (place, row) in rows.iter().enumerate().filter(|(_, row)| repeated.contains(&key(row))) {
        let repetition =
            firsts.entry(key(row)).or_insert(Repetition { first: place, rows: 0, differs: false });
        repetition.rows += 1;
        let first = &rows[repetition.first];
        repetition.differs |= first != row && !(has_ended(first) && has_ended(row));
    }
    let mut place = 0;
    rows.retain(|row| {
        let repetition = firsts.get(&key(row));
        place += 1;
        repetition.is_none_or(|repetition| !repetition.differs && repetition.first == place - 1)
    });
    let mut bad: Vec<_> = firsts.into_iter().filter(|(_, repetition)| repetition.differs).collect();
    bad.sort_by_key(|(_, repetition)| repetition.first);
    let quarantined = |(key, repetition): (K, Repetition)| Quarantined {
        key: name(&key),
        reason: format!("{} rows have this key and differ", repetition.rows),
    };
    bad.into_iter().map(quarantined).collect()
}

/// Rows of one key.
struct Repetition {
    /// Place of the first one.
    first: usize,
    rows: usize,
    differs: bool,
}

/// The keys that are there more than once.
///
/// Compares hashes first: keeping every key of ten million rows, to find none, would double the memory of a full read.
fn repeated<R, K: Hash + Eq>(rows: &[R], key: impl Fn(&R) -> K) -> HashSet<K> {
    let hasher = RandomState::new();
    let mut hashes: Vec<u64> = rows.iter().map(|row| hasher.hash_one(key(row))).collect();
    hashes.sort_unstable();
    let repeated: HashSet<u64> =
        hashes.windows(2).filter(|pair| pair[0] == pair[1]).map(|pair| pair[0]).collect();
    if repeated.is_empty() {
        return HashSet::new();
    }
    let mut seen = HashSet::new();
    let mut keys = HashSet::new();
    for row in rows.iter().filter(|row| repeated.contains(&hasher.hash_one(key(row)))) {
        if !seen.insert(key(row)) {
            keys.insert(key(row));
        }
    }
    keys
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authz::{
        Device, DeviceId, DeviceUuid, FleetId, Grant, GrantId, PortRange, PrincipalId, Scope,
    };

    fn grant(id: i64, principal: i64) -> Grant {
        Grant {
            id: GrantId(id),
            principal: PrincipalId(principal),
            scope: Scope::Any,
            ports: PortRange::ANY,
            expires_at: None,
            revoked: false,
        }
    }

    fn device(id: i64, uuid: i64) -> Device {
        let uuid = DeviceUuid::parse(&format!("{uuid:032x}")).unwrap();
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

    fn settled_devices(rows: Vec<Device>) -> (Vec<i64>, Vec<String>) {
        let (rows, bad) = RelationRows::Devices(rows).deduplicated();
        let RelationRows::Devices(rows) = rows else { panic!("no devices: {rows:?}") };
        let mut bad: Vec<_> = bad.into_iter().map(|bad| format!("{}: {}", bad.key, bad.reason)).collect();
        bad.sort();
        (rows.iter().map(|row| row.id.0).collect(), bad)
    }

    #[test]
    fn the_same_row_twice_is_one_row_and_differing_ones_are_none() {
        let rows = vec![grant(1, 1), grant(2, 1), grant(1, 1), grant(3, 1), grant(2, 2), grant(2, 1)];
        let (rows, bad) = RelationRows::Grants(rows).deduplicated();
        let RelationRows::Grants(rows) = rows else { panic!("no grants: {rows:?}") };
        assert_eq!(rows, [grant(1, 1), grant(3, 1)]);
        let key = RowKey::Grant(GrantId(2));
        assert_eq!(bad, [Quarantined { key, reason: "3 rows have this key and differ".to_owned() }]);
    }

    #[test]
    fn the_order_of_rows_decides_nothing() {
        for rows in [[grant(1, 1), grant(1, 2)], [grant(1, 2), grant(1, 1)]] {
            let (rows, bad) = RelationRows::Grants(rows.to_vec()).deduplicated();
            assert!(matches!(rows, RelationRows::Grants(rows) if rows.is_empty()));
            assert_eq!(bad.len(), 1);
        }
    }

    #[test]
    fn devices_that_share_a_uuid_are_quarantined_each() {
        let (left, bad) = settled_devices(vec![device(1, 7), device(2, 7), device(3, 8), device(3, 8)]);
        assert_eq!(left, [3], "the same row twice shares its uuid with nobody");
        let uuid = format!("{:032x}", 7);
        assert_eq!(bad, [1, 2].map(|id| format!("devices {id}: uuid {uuid} is that of 2 devices")));
    }

    #[test]
    fn a_device_with_two_uuids_makes_the_uuid_of_another_one_doubtful() {
        let (left, bad) = settled_devices(vec![device(1, 7), device(1, 8), device(2, 8), device(3, 9)]);
        assert_eq!(left, [3]);
        assert_eq!(bad.len(), 2, "{bad:?}");
        assert_eq!(bad[0], "devices 1: 2 rows have this key and differ");
    }

    #[test]
    fn rows_without_repetitions_stay_as_they_are() {
        let rows: Vec<_> = (0..1000).map(|id| Device { fleet: Some(FleetId(1)), ..device(id, id) }).collect();
        let (left, bad) = settled_devices(rows);
        assert_eq!((left.len(), bad), (1000, vec![]));
        assert!(
            matches!(RelationRows::Unchanged.deduplicated(), (RelationRows::Unchanged, bad) if bad.is_empty())
        );
    }
}
