//! The rights of an installation as plain rows, and what they decide. It is written anew here, so that the relay's own
//! decision has something to be compared with.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};

use sluicegate::authz::{
    Credential, Device, DeviceId, DeviceUuid, FleetId, Grant, GrantId, KeyHash, PortRange, PrincipalId,
    Scope, UnixMillis,
};
use sluicegate::control::api::ChangeKind;
use sluicegate::store::Relation;

/// A row of any of the three relations.
#[derive(Clone, PartialEq, Debug)]
pub enum RightsRow {
    Credential(Credential),
    Grant(Grant),
    Device(Device),
}

/// The key of a row in its relation.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum RightsKey {
    Credential(KeyHash),
    Grant(GrantId),
    Device(DeviceId),
}

/// All rows, and the ways to them.
#[derive(Clone, Default)]
pub struct Rights {
    rows: HashMap<RightsKey, RightsRow>,
    credentials_of: HashMap<PrincipalId, Vec<KeyHash>>,
    grants_of: HashMap<PrincipalId, Vec<GrantId>>,
    grants_on: HashMap<Scope, Vec<GrantId>>,
    devices_by_uuid: HashMap<DeviceUuid, DeviceId>,
    devices_in: HashMap<Option<FleetId>, Vec<DeviceId>>,
}

/// A client's request.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Question {
    pub key: KeyHash,
    pub uuid: DeviceUuid,
    pub port: u16,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    Allow(IpAddr),
    Refuse,
    /// It cannot be told whose the address is.
    Disputed,
}

/// One row as it is and as an answer has it.
#[derive(Clone, Debug)]
pub struct RowChange {
    pub key: RightsKey,
    pub before: Option<RightsRow>,
    pub after: Option<RightsRow>,
    /// The answer has the row, but it does not decode, or it is there twice.
    pub is_unusable: bool,
}

/// The rights with one row changed.
struct Changed<'a> {
    rights: &'a Rights,
    change: Option<&'a RowChange>,
}

impl RightsRow {
    pub fn key(&self) -> RightsKey {
        match self {
            Self::Credential(row) => RightsKey::Credential(row.key),
            Self::Grant(row) => RightsKey::Grant(row.id),
            Self::Device(row) => RightsKey::Device(row.id),
        }
    }

    /// True where the row gives nothing any more.
    pub fn has_ended(&self, now: UnixMillis) -> bool {
        let ended =
            |revoked, expires_at: Option<UnixMillis>| revoked || expires_at.is_some_and(|at| at <= now);
        match self {
            Self::Credential(row) => ended(row.revoked, row.expires_at),
            Self::Grant(row) => ended(row.revoked, row.expires_at),
            Self::Device(_) => false,
        }
    }
}

impl RightsKey {
    pub const fn relation(self) -> Relation {
        match self {
            Self::Credential(_) => Relation::Credentials,
            Self::Grant(_) => Relation::Grants,
            Self::Device(_) => Relation::Devices,
        }
    }
}

impl Rights {
    pub fn new(rows: impl IntoIterator<Item = RightsRow>) -> Self {
        let mut rights = Self::default();
        for row in rows {
            match &row {
                RightsRow::Credential(row) => {
                    rights.credentials_of.entry(row.principal).or_default().push(row.key);
                }
                RightsRow::Grant(row) => {
                    rights.grants_of.entry(row.principal).or_default().push(row.id);
                    rights.grants_on.entry(row.scope).or_default().push(row.id);
                }
                RightsRow::Device(row) => {
                    rights.devices_by_uuid.insert(row.uuid, row.id);
                    rights.devices_in.entry(row.fleet).or_default().push(row.id);
                }
            }
            rights.rows.insert(row.key(), row);
        }
        rights
    }

    /// These rights with the row put in, or taken out.
    pub fn with(&self, key: RightsKey, row: Option<RightsRow>) -> Self {
        let others = self.rows.values().filter(|row| row.key() != key).cloned();
        Self::new(others.chain(row))
    }

    pub fn get(&self, key: RightsKey) -> Option<&RightsRow> {
        self.rows.get(&key)
    }

    pub fn of(&self, relation: Relation) -> impl Iterator<Item = &RightsRow> {
        self.rows.values().filter(move |row| row.key().relation() == relation)
    }

    /// Rows of a relation that changes of a kind are counted against: those that have not ended, and devices that have
    /// a location where locations change.
    pub fn live(&self, relation: Relation, kind: ChangeKind, now: UnixMillis) -> usize {
        let is_of_location = matches!(kind, ChangeKind::Moved | ChangeKind::Unlocated);
        let counts = |row: &&RightsRow| match row {
            RightsRow::Device(device) if is_of_location => device.online && device.address.is_some(),
            row => !row.has_ended(now),
        };
        self.of(relation).filter(counts).count()
    }

    pub fn credentials_of(&self, principal: PrincipalId) -> impl Iterator<Item = KeyHash> {
        self.credentials_of.get(&principal).into_iter().flatten().copied()
    }

    pub fn grants_of(&self, principal: PrincipalId) -> impl Iterator<Item = &Grant> {
        self.grants_of.get(&principal).into_iter().flatten().filter_map(|id| self.grant(*id))
    }

    pub fn grants_on(&self, scope: Scope) -> impl Iterator<Item = &Grant> {
        self.grants_on.get(&scope).into_iter().flatten().filter_map(|id| self.grant(*id))
    }

    pub fn device(&self, id: DeviceId) -> Option<&Device> {
        match self.rows.get(&RightsKey::Device(id)) {
            Some(RightsRow::Device(device)) => Some(device),
            _ => None,
        }
    }

    pub fn device_by_uuid(&self, uuid: &DeviceUuid) -> Option<&Device> {
        self.device(*self.devices_by_uuid.get(uuid)?)
    }

    /// A device that `scope` is about; of many, one that depends on `pick`.
    pub fn example(&self, scope: Scope, pick: usize) -> Option<&Device> {
        match scope {
            Scope::Device(id) => self.device(id),
            Scope::Fleet(fleet) => {
                let devices = self.devices_in.get(&Some(fleet))?;
                self.device(devices[pick % devices.len()])
            }
            Scope::Any => {
                let fleets = self.devices_in.len().max(1) as i64;
                self.example(Scope::Fleet(FleetId((pick as i64 * 7) % fleets + 1)), pick)
            }
        }
    }

    pub fn decide(&self, question: &Question, now: UnixMillis) -> Verdict {
        Changed { rights: self, change: None }.decide(question, now)
    }

    /// Decides as if one row were what an answer has.
    pub fn decide_with(&self, change: &RowChange, question: &Question, now: UnixMillis) -> Verdict {
        Changed { rights: self, change: Some(change) }.decide(question, now)
    }

    fn grant(&self, id: GrantId) -> Option<&Grant> {
        match self.rows.get(&RightsKey::Grant(id)) {
            Some(RightsRow::Grant(grant)) => Some(grant),
            _ => None,
        }
    }
}

impl Changed<'_> {
    fn decide(&self, question: &Question, now: UnixMillis) -> Verdict {
        self.allowed(question, now).map_or(Verdict::Refuse, Verdict::Allow)
    }

    fn allowed(&self, question: &Question, now: UnixMillis) -> Option<IpAddr> {
        let is_live =
            |revoked: bool, expires_at: Option<UnixMillis>| !revoked && expires_at.is_none_or(|at| now < at);
        let credential = self.credential(question.key)?;
        let device = self.device(&question.uuid)?;
        let covers = |grant: &Grant| {
            let reaches = match grant.scope {
                Scope::Any => true,
                Scope::Fleet(fleet) => device.fleet == Some(fleet),
                Scope::Device(id) => device.id == id,
            };
            reaches && grant.ports.contains(question.port) && is_live(grant.revoked, grant.expires_at)
        };
        let is_here = device.node.as_deref().is_none_or(|node| node == HERE);
        let may = is_live(credential.revoked, credential.expires_at)
            && self.grants(credential.principal).any(covers)
            && is_here
            && device.online;
        device.address.filter(|_| may)
    }

    fn credential(&self, key: KeyHash) -> Option<&Credential> {
        let key = RightsKey::Credential(key);
        let row = match self.change {
            Some(change) if change.key == key => change.after.as_ref(),
            _ => self.rights.get(key),
        };
        match row {
            Some(RightsRow::Credential(credential)) => Some(credential),
            _ => None,
        }
    }

    fn grants(&self, principal: PrincipalId) -> impl Iterator<Item = &Grant> {
        let changed = self.change.map(|change| change.key);
        let others =
            self.rights.grants_of(principal).filter(move |grant| Some(RightsKey::Grant(grant.id)) != changed);
        let its = self.change.and_then(|change| match &change.after {
            Some(RightsRow::Grant(grant)) if grant.principal == principal => Some(grant),
            _ => None,
        });
        others.chain(its)
    }

    fn device(&self, uuid: &DeviceUuid) -> Option<&Device> {
        if let Some(change) = self.change {
            match &change.after {
                Some(RightsRow::Device(device)) if device.uuid == *uuid => return Some(device),
                _ => {}
            }
        }
        let changed = self.change.map(|change| change.key);
        self.rights.device_by_uuid(uuid).filter(|device| Some(RightsKey::Device(device.id)) != changed)
    }
}

/// An installation of `devices` devices. Row `n` of each relation belongs to row `n` of the others: principal `n` has
/// credential `n` and grant `n`, which is on device `target(n)`. No number is the same in two relations, so that a
/// query that mixes them up finds another row. The relations have some rows more, which have ended.
#[derive(Clone, Copy)]
pub struct Installation {
    pub devices: usize,
    /// Port that the devices listen on.
    pub port: u16,
    pub now: UnixMillis,
}

impl Installation {
    /// Rows of credentials and of grants.
    pub const fn rows(&self) -> usize {
        let ended = self.devices / 10;
        self.devices + if ended < 4 { 4 } else { ended }
    }

    pub fn rights(&self) -> Rights {
        let credentials = (0..self.rows()).map(|n| RightsRow::Credential(self.credential(n)));
        let grants = (0..self.rows()).map(|n| RightsRow::Grant(self.grant(n)));
        let devices = (0..self.devices).map(|n| RightsRow::Device(self.device(n)));
        Rights::new(credentials.chain(grants).chain(devices))
    }

    pub fn token(n: usize) -> String {
        format!("token-{n}")
    }

    pub fn principal(&self, n: usize) -> PrincipalId {
        PrincipalId((n * step(self.rows()) + 3) as i64 % self.rows() as i64 + 1)
    }

    /// Number of the device, from 0, that grant `n` is on.
    pub const fn target(&self, n: usize) -> usize {
        (n % self.devices * step(self.devices) + 1) % self.devices
    }

    pub fn credential(&self, n: usize) -> Credential {
        Credential {
            key: KeyHash::of_token(Self::token(n).as_bytes()),
            principal: self.principal(n),
            expires_at: self.expires_at(n, 1),
            revoked: self.has_ended(n, 0),
        }
    }

    pub fn grant(&self, n: usize) -> Grant {
        let device = self.target(n);
        let scope = match n {
            _ if n % 40 == 13 => Scope::Any,
            _ if n % 8 == 7 => Scope::Fleet(Self::fleet(device)),
            _ => Scope::Device(Self::device_id(device)),
        };
        Grant {
            id: GrantId(n as i64 + 1),
            principal: self.principal(n),
            scope,
            ports: PortRange::new(self.port - PORTS_AROUND, self.port + PORTS_AROUND).unwrap(),
            expires_at: self.expires_at(n, 3),
            revoked: self.has_ended(n, 2),
        }
    }

    pub fn device(&self, n: usize) -> Device {
        let (is_offline, is_elsewhere) = (n % 10 == 5, Self::is_elsewhere(n));
        // The address of a device that went offline is another one's by now.
        let address = match is_elsewhere {
            true => Ipv4Addr::new(127, 2, (n / 250) as u8, (n % 250 + 1) as u8).into(),
            false => Self::address(if is_offline { n - 1 } else { n }),
        };
        Device {
            id: Self::device_id(n),
            uuid: Self::uuid(n),
            fleet: Some(Self::fleet(n)),
            address: Some(address),
            node: Some(if is_elsewhere { ELSEWHERE } else { HERE }.into()),
            online: !is_offline,
            disputed: false,
        }
    }

    pub fn uuid(n: usize) -> DeviceUuid {
        DeviceUuid::parse(&format!("{:08x}{:024x}", n + 1, 0xfeed)).unwrap()
    }

    /// The address of a device in this node's network. Those of other nodes' are nobody's here.
    pub fn address(n: usize) -> IpAddr {
        Ipv4Addr::new(127, 1, (n / 250) as u8, (n % 250 + 1) as u8).into()
    }

    /// Number of the device, from 0, that answers at `address`. Those of other nodes have no address of this network.
    pub fn device_at(address: IpAddr) -> Option<usize> {
        let n = match address {
            IpAddr::V4(address) => match address.octets() {
                [127, 1, high, low] if low > 0 => usize::from(high) * 250 + usize::from(low) - 1,
                _ => return None,
            },
            IpAddr::V6(_) => return None,
        };
        (!Self::is_elsewhere(n)).then_some(n)
    }

    const fn is_elsewhere(n: usize) -> bool {
        n % 10 == 9
    }

    /// The request that credential `n` and grant `n` are for.
    pub fn question(&self, n: usize) -> Question {
        let key = KeyHash::of_token(Self::token(n).as_bytes());
        Question { key, uuid: Self::uuid(self.target(n)), port: self.port }
    }

    const fn device_id(n: usize) -> DeviceId {
        DeviceId(n as i64 + 1)
    }

    const fn fleet(device: usize) -> FleetId {
        FleetId(device as i64 / 4 + 1)
    }

    /// Every fourth of the rows beyond the devices has ended in the same way.
    const fn has_ended(&self, n: usize, way: usize) -> bool {
        n >= self.devices && (n - self.devices) % 4 == way
    }

    fn expires_at(&self, n: usize, way: usize) -> Option<UnixMillis> {
        match n % 4 {
            _ if self.has_ended(n, way) => Some(UnixMillis(self.now.0 - SOON_MS)),
            0 => Some(UnixMillis(self.now.0 + SOON_MS)),
            2 => Some(UnixMillis(self.now.0 + 30 * 24 * 3_600_000)),
            _ => None,
        }
    }
}

/// A number that has no divisor in common with `count`, about two thirds of it.
const fn step(count: usize) -> usize {
    const fn gcd(a: usize, b: usize) -> usize {
        if b == 0 { a } else { gcd(b, a % b) }
    }
    let mut step = count * 2 / 3 + 1;
    while gcd(step, count) != 1 {
        step += 1;
    }
    step
}

/// This node's name, and another one's.
pub const HERE: &str = "here";
const ELSEWHERE: &str = "there";

/// Ports below and above the devices' own that grants open.
pub const PORTS_AROUND: u16 = 50;

/// Less than a time zone away.
const SOON_MS: i64 = 90 * 60_000;
