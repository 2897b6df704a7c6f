//! A made-up set of rights of any size, the same for the same size in every run.
#![allow(dead_code, reason = "each bench is a crate of its own and uses a part of this")]

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use sluicegate::authz::{
    Authority, Change, Credential, Device, DeviceId, DeviceUuid, FleetId, Generation, Grant, GrantId,
    KeyHash, PortRange, PrincipalId, Query, Revocations, RowCounts, Scope, Snapshot, SnapshotBuilder,
    UnixMillis, View,
};

/// Rights in the proportions of the figures to hold: for each ten grants two devices and one credential,
/// each of a principal of its own.
pub struct Population {
    pub credentials: Vec<Credential>,
    pub grants: Vec<Grant>,
    pub devices: Vec<Device>,
}

impl Population {
    pub fn of_grants(grants: usize) -> Self {
        Self {
            credentials: Self::credentials_of(grants),
            devices: Self::devices_of(grants),
            grants: Self::grants_of(grants),
        }
    }

    /// The credentials of a population of so many grants.
    pub fn credentials_of(grants: usize) -> Vec<Credential> {
        (0..credentials(grants)).map(credential).collect()
    }

    /// The devices of a population of so many grants.
    pub fn devices_of(grants: usize) -> Vec<Device> {
        let devices = devices(grants);
        (0..devices).map(|number| device(number, devices)).collect()
    }

    /// The grants of a population of so many.
    pub fn grants_of(grants: usize) -> Vec<Grant> {
        let mut random = Random(0x5117_1ce6_a7e0_0001);
        let (credentials, devices) = (credentials(grants), devices(grants));
        let grant = |number: usize| Grant {
            id: GrantId(number as i64),
            principal: PrincipalId(random.below(credentials) as i64),
            scope: match random.below(100) {
                0 => Scope::Any,
                1..20 => Scope::Fleet(FleetId(random.below(fleets_of(devices)) as i64)),
                _ => Scope::Device(DeviceId(random.below(devices) as i64)),
            },
            ports: PortRange::ANY,
            expires_at: None,
            revoked: false,
        };
        (0..grants).map(grant).collect()
    }

    /// Built row by row, as from a store.
    pub fn snapshot(&self) -> Snapshot {
        let counts = RowCounts {
            credentials: self.credentials.len(),
            grants: self.grants.len(),
            devices: self.devices.len(),
        };
        let mut builder = SnapshotBuilder::new(Generation(1), counts);
        self.credentials.iter().for_each(|row| builder.credential(*row));
        self.grants.iter().for_each(|row| builder.grant(*row));
        self.devices.iter().for_each(|row| builder.device(row.clone()));
        builder.finish()
    }

    /// Changes as they come in from a fleet, without an end: devices that go and come, and a grant that is
    /// told again for every tenth of them, scattered over the whole population.
    pub fn changes(&self) -> impl Iterator<Item = Change> {
        let places = (0..self.devices.len()).cycle().step_by(SCATTER);
        places.enumerate().map(|(number, place)| {
            if number % 10 == 0 {
                let grant = self.grants[place % self.grants.len()];
                return Change::Grant(Grant { expires_at: None, ..grant });
            }
            let device = &self.devices[place];
            Change::Device(Device { online: number % 2 == 0, ..device.clone() })
        })
    }

    /// Questions that are allowed, each by a grant chosen at random, so that no cache helps twice.
    pub fn allowed_queries(&self, count: usize) -> Vec<Query> {
        let mut random = Random(0x5117_1ce6_a7e0_0002);
        let fleets = fleets_of(self.devices.len());
        (0..count)
            .map(|_| {
                let grant = &self.grants[random.below(self.grants.len())];
                let device = match grant.scope {
                    Scope::Device(DeviceId(number)) => number as usize,
                    Scope::Fleet(FleetId(fleet)) => {
                        let members = (self.devices.len() - fleet as usize).div_ceil(fleets);
                        fleet as usize + fleets * random.below(members)
                    }
                    Scope::Any => random.below(self.devices.len()),
                };
                let key = self.credentials[grant.principal.0 as usize].key;
                Query { subject: Some(key.into()), device: Some(self.devices[device].uuid), port: 22 }
            })
            .collect()
    }
}

/// The authority and the view that is in force there. Whoever replaces it frees it once no reader has it any
/// more, as the publisher does.
pub struct Published {
    authority: Arc<Authority>,
    current: Arc<View>,
    retired: Vec<Arc<View>>,
}

impl Published {
    pub fn new(snapshot: Snapshot) -> Self {
        let authority = Arc::new(Authority::new(Duration::from_secs(3600), None));
        let current =
            Arc::new(View { snapshot: Arc::new(snapshot), revocations: Arc::default(), previous: None });
        authority.publish(Arc::clone(&current));
        authority.confirm(UnixMillis(0));
        Self { authority, current, retired: Vec::new() }
    }

    /// Decides at time 0.
    pub fn authority(&self) -> Arc<Authority> {
        Arc::clone(&self.authority)
    }

    pub fn publish(&mut self, snapshot: Snapshot) {
        let revocations: Arc<Revocations> = Arc::clone(&self.current.revocations);
        let next = Arc::new(View { snapshot: Arc::new(snapshot), revocations, previous: None });
        self.retired.push(std::mem::replace(&mut self.current, Arc::clone(&next)));
        self.authority.publish(next);
        self.retired.retain(|view| Arc::strong_count(view) > 1);
    }

    pub fn apply(&mut self, changes: &[Change]) {
        let generation = Generation(self.current.snapshot.generation().0 + 1);
        self.publish(self.current.snapshot.apply(generation, changes));
    }
}

/// Resident memory of this process, after a pause in which the allocator returns free memory.
pub fn resident_bytes() -> u64 {
    std::thread::sleep(Duration::from_millis(200));
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux tells of every process");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its memory, too");
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("in KiB");
    kib * 1024
}

/// A prime, so that changes walk through all shards and not along one.
const SCATTER: usize = 7919;

fn credentials(grants: usize) -> usize {
    (grants / 10).max(1)
}

fn devices(grants: usize) -> usize {
    (grants / 5).max(1)
}

fn credential(number: usize) -> Credential {
    let key = KeyHash::of_token(format!("token {number}").as_bytes());
    Credential { key, principal: PrincipalId(number as i64), expires_at: None, revoked: false }
}

fn device(number: usize, devices: usize) -> Device {
    let mut scattered = Random(number as u64);
    let uuid = format!("{:016x}{:016x}", scattered.next(), number);
    Device {
        id: DeviceId(number as i64),
        uuid: DeviceUuid::parse(&uuid).expect("32 hex digits"),
        fleet: Some(FleetId((number % fleets_of(devices)) as i64)),
        address: Some(IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 + number as u32))),
        node: None,
        online: true,
        disputed: false,
    }
}

/// A hundred devices each.
fn fleets_of(devices: usize) -> usize {
    (devices / 100).max(1)
}

/// SplitMix64: small, and good enough to scatter keys.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}
