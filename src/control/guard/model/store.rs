//! The true store of a history, and the lens that answers pass on their way to the guard.

use std::net::IpAddr;

use crate::authz::{
    Change, Credential, Device, DeviceId, DeviceUuid, FleetId, Grant, GrantId, KeyHash, PortRange,
    PrincipalId, Scope, UnixMillis,
};
use crate::control::guard::AnyRow;
use crate::control::guard::row::change_to;
use crate::store::{Position, Quarantined, Relation, RelationRows, RowKey, StoreId};

/// Random numbers that are the same for one seed on every machine.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        (mixed(self.0) % end.max(1) as u64) as usize
    }

    pub(super) fn is_one_in(&mut self, odds: usize) -> bool {
        self.below(odds) == 0
    }
}

/// What is true.
#[derive(Clone)]
pub(super) struct TrueStore {
    pub(super) rows: Vec<AnyRow>,
    pub(super) size: i64,
    timeline: u64,
    log: u64,
}

impl TrueStore {
    pub(super) fn new(size: i64, random: &mut Random) -> Self {
        let mut rows = Vec::new();
        for id in 1..=size {
            rows.push(credential(id, principal(id, size)));
            let scope = match random.below(3) {
                0 => Scope::Any,
                1 => Scope::Fleet(FleetId(1 + id % 2)),
                _ => Scope::Device(DeviceId(id)),
            };
            rows.push(AnyRow::Grant(Grant {
                id: GrantId(id),
                principal: principal(id, size),
                scope,
                ports: PortRange::new(20, 90).unwrap(),
                expires_at: random.is_one_in(4).then_some(UnixMillis(FAR)),
                revoked: false,
            }));
            rows.push(AnyRow::Device(Device {
                id: DeviceId(id),
                uuid: uuid(id),
                fleet: Some(FleetId(1 + id % 2)),
                address: Some(address(id)),
                node: None,
                online: !random.is_one_in(6),
                disputed: false,
            }));
        }
        Self { rows, size, timeline: 1, log: 1 }
    }

    pub(super) fn position(&self) -> Position {
        Position { store: StoreId([7; 16]), timeline: self.timeline, log: self.log, mark: 0 }
    }

    /// A standby that has everything takes over.
    pub(super) fn fail_over(&mut self) {
        self.timeline += 1;
    }

    pub(super) fn row(&self, key: &RowKey) -> Option<&AnyRow> {
        self.rows.iter().find(|row| row.key() == *key)
    }

    /// Commits the row, or its deletion.
    pub(super) fn put(&mut self, key: &RowKey, row: Option<AnyRow>) -> Option<Change> {
        self.log += 1;
        self.rows.retain(|row| row.key() != *key);
        self.rows.extend(row.clone());
        change_to(key, row)
    }

    /// What a query says of `relation`, by `lens` where there is one.
    pub(super) fn answer(
        &self,
        relation: Relation,
        lens: Option<&Lens>,
        now: UnixMillis,
    ) -> (RelationRows, Vec<Quarantined>) {
        let rows = self.rows.iter().filter(|row| row.key().relation() == relation);
        let (mut seen, mut bad) = (Vec::new(), Vec::new());
        for row in rows {
            match lens.filter(|lens| lens.meets(relation, &row.key())) {
                Some(lens) => lens.distort(row, self.size, now, &mut seen, &mut bad),
                None => seen.push(row.clone()),
            }
        }
        // As the control thread does: of rows that are there twice, none is believed.
        let mut devices: Vec<Device> = Vec::new();
        let (mut credentials, mut grants) = (Vec::new(), Vec::new());
        for row in seen {
            match row {
                AnyRow::Credential(row) => credentials.push(row),
                AnyRow::Grant(row) => grants.push(row),
                AnyRow::Device(row) => devices.push(row),
            }
        }
        let twice = |uuid: DeviceUuid| devices.iter().filter(|row| row.uuid == uuid).count() > 1;
        let (doubled, devices): (Vec<Device>, Vec<Device>) =
            devices.iter().cloned().partition(|row| twice(row.uuid));
        bad.extend(doubled.iter().map(|row| quarantined(RowKey::Device(row.id))));
        let rows = match relation {
            Relation::Credentials => RelationRows::Credentials(credentials),
            Relation::Grants => RelationRows::Grants(grants),
            Relation::Devices => RelationRows::Devices(devices),
        };
        (rows, bad)
    }
}

/// A fault of a query.
#[derive(Clone, Debug)]
pub(super) struct Lens {
    pub(super) relation: Relation,
    pub(super) fault: Fault,
    /// Percent of the rows that it meets, and how much more with each read.
    pub(super) part: u64,
    pub(super) drift: u64,
    pub(super) salt: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    Drop,
    Revoke,
    Unrevoke,
    Expire,
    LoseExpiry,
    NextPrincipal,
    /// Two neighbouring rows have each other's principals.
    SwapPrincipals,
    Widen,
    Narrow,
    Truncate,
    FanOut,
    Offline,
    NoAddress,
    OneAddress,
    ShiftAddress,
    SwapAddresses,
    ShiftUuid,
    SwapUuids,
    OtherFleet,
    NoFleet,
    Undecodable,
}

impl Lens {
    pub(super) fn any(random: &mut Random) -> Self {
        use Fault::*;
        let relation = Relation::ALL[random.below(3)];
        let faults: &[Fault] = match relation {
            Relation::Credentials => &[
                Drop,
                Revoke,
                Unrevoke,
                Expire,
                LoseExpiry,
                NextPrincipal,
                SwapPrincipals,
                Truncate,
                Undecodable,
            ],
            Relation::Grants => &[
                Drop,
                Revoke,
                Unrevoke,
                Expire,
                LoseExpiry,
                NextPrincipal,
                SwapPrincipals,
                Widen,
                Narrow,
                FanOut,
                Undecodable,
            ],
            Relation::Devices => &[
                Drop,
                Offline,
                NoAddress,
                OneAddress,
                ShiftAddress,
                SwapAddresses,
                ShiftUuid,
                SwapUuids,
                OtherFleet,
                NoFleet,
                Undecodable,
            ],
        };
        Self {
            relation,
            fault: faults[random.below(faults.len())],
            part: [2, 10, 30, 60, 100][random.below(5)],
            drift: if random.is_one_in(3) { 5 } else { 0 },
            salt: random.below(1 << 30) as u64,
        }
    }

    /// The fault grows with each read, if it does.
    pub(super) fn grow(&mut self) {
        self.part += self.drift;
    }

    fn meets(&self, relation: Relation, key: &RowKey) -> bool {
        let number = match key {
            RowKey::Credential(key) => u64::from(key.as_bytes()[0]),
            RowKey::Grant(id) => id.0 as u64,
            RowKey::Device(id) => id.0 as u64,
            RowKey::Unreadable { .. } => 0,
        };
        let swaps = matches!(self.fault, Fault::SwapPrincipals | Fault::SwapAddresses | Fault::SwapUuids);
        let number = if swaps { number.div_ceil(2) } else { number };
        relation == self.relation && mixed(self.salt ^ number) % 100 < self.part
    }

    fn distort(
        &self,
        row: &AnyRow,
        size: i64,
        now: UnixMillis,
        seen: &mut Vec<AnyRow>,
        bad: &mut Vec<Quarantined>,
    ) {
        match (self.fault, row.clone()) {
            (Fault::Drop, _) => {}
            (Fault::Undecodable, row) => bad.push(quarantined(row.key())),
            (Fault::Truncate, AnyRow::Credential(row)) => {
                let mut key = *row.key.as_bytes();
                key[31] = 0xff;
                seen.push(AnyRow::Credential(Credential { key: KeyHash::from_bytes(key), ..row }));
            }
            (Fault::FanOut, AnyRow::Grant(row)) => {
                let (id, principal) = (GrantId(row.id.0 + 1_000), next(row.principal, size));
                seen.extend([AnyRow::Grant(row), AnyRow::Grant(Grant { id, principal, ..row })]);
            }
            (fault, AnyRow::Credential(mut row)) => {
                match fault {
                    Fault::Revoke => row.revoked = true,
                    Fault::Unrevoke => (row.revoked, row.expires_at) = (false, None),
                    Fault::Expire => row.expires_at = Some(now),
                    Fault::LoseExpiry => row.expires_at = None,
                    Fault::SwapPrincipals => {
                        let id = i64::from(row.key.as_bytes()[0]);
                        row.principal = principal(partner(id, size), size);
                    }
                    _ => row.principal = next(row.principal, size),
                }
                seen.push(AnyRow::Credential(row));
            }
            (fault, AnyRow::Grant(mut row)) => {
                match fault {
                    Fault::Revoke => row.revoked = true,
                    Fault::Unrevoke => (row.revoked, row.expires_at) = (false, None),
                    Fault::Expire => row.expires_at = Some(now),
                    Fault::LoseExpiry => row.expires_at = None,
                    Fault::Widen => (row.scope, row.ports) = (Scope::Any, PortRange::ANY),
                    Fault::Narrow => row.ports = PortRange::new(22, 22).unwrap(),
                    Fault::SwapPrincipals => row.principal = principal(partner(row.id.0, size), size),
                    _ => row.principal = next(row.principal, size),
                }
                seen.push(AnyRow::Grant(row));
            }
            (fault, AnyRow::Device(mut row)) => {
                match fault {
                    Fault::Offline => row.online = false,
                    Fault::NoAddress => row.address = None,
                    Fault::SwapAddresses => row.address = Some(address(partner(row.id.0, size))),
                    Fault::SwapUuids => row.uuid = uuid(partner(row.id.0, size)),
                    Fault::NoFleet => row.fleet = None,
                    Fault::OneAddress => row.address = Some(address(0)),
                    Fault::ShiftAddress => row.address = Some(address(row.id.0 % size + 1)),
                    Fault::OtherFleet => row.fleet = Some(FleetId(9)),
                    _ => row.uuid = uuid(row.id.0 % size + 1),
                }
                seen.push(AnyRow::Device(row));
            }
        }
    }
}

pub(super) fn credential(id: i64, principal: PrincipalId) -> AnyRow {
    let mut key = [0; 32];
    key[0] = id as u8;
    let key = KeyHash::from_bytes(key);
    AnyRow::Credential(Credential { key, principal, expires_at: None, revoked: false })
}

fn quarantined(key: RowKey) -> Quarantined {
    Quarantined { key, reason: "a fault".to_owned() }
}

fn principal(id: i64, size: i64) -> PrincipalId {
    PrincipalId(1 + id % (size / 2 + 1))
}

fn next(principal: PrincipalId, size: i64) -> PrincipalId {
    PrincipalId(1 + principal.0 % (size / 2 + 1))
}

/// The row that changes values with row `id`; the last of an odd number keeps its own.
fn partner(id: i64, size: i64) -> i64 {
    let other = if id % 2 == 1 { id + 1 } else { id - 1 };
    if (1..=size).contains(&other) { other } else { id }
}

fn uuid(id: i64) -> DeviceUuid {
    DeviceUuid::from_bytes(&(id as u128).to_be_bytes()).unwrap()
}

fn address(id: i64) -> IpAddr {
    IpAddr::from([10, 0, 0, id as u8])
}

/// SplitMix64 (Steele, Lea and Flood, 2014).
const fn mixed(word: u64) -> u64 {
    let word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ word >> 31
}

/// An end that no history reaches.
const FAR: i64 = 1 << 50;
