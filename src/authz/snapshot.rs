//! One immutable, complete state of all rights. A delta makes a new one that shares what it did not touch.

use std::net::IpAddr;

use super::table::{Row, Table};
use super::{
    Credential, CredentialId, Decision, Device, DeviceId, DeviceUuid, Grant, GrantId, KeyHash, PrincipalId,
    Query, Refusal, Revocations, Route, Scope, UnixMillis,
};

/// Numbers snapshots in the order of their publication, from 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, serde::Serialize)]
#[serde(transparent)]
pub struct Generation(pub u64);

/// One committed change of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// New, or with new values.
    Credential(Credential),
    CredentialGone(KeyHash),
    Grant(Grant),
    GrantGone(GrantId),
    Device(Device),
    DeviceGone(DeviceId),
    /// The principal was removed, with everything that it holds.
    PrincipalGone(PrincipalId),
}

/// Rows that a snapshot holds, by relation.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RowCounts {
    pub credentials: usize,
    pub grants: usize,
    pub devices: usize,
}

/// Immutable; see the module.
#[derive(Clone)]
pub struct Snapshot {
    generation: Generation,
    /// By the first bytes of the key.
    credentials: Table<Credential>,
    /// By principal and scope.
    grants: Table<Grant>,
    /// By uuid.
    devices: Table<Device>,
    /// Where each grant lies, by its id: a change may move it to another principal or scope.
    grant_places: Table<GrantPlace>,
    /// Where each device lies, by its id.
    device_places: Table<DevicePlace>,
}

impl Snapshot {
    /// Builds a snapshot from whole relations. Where two rows share a key the later one wins; two devices
    /// share one if they have the same id or the same uuid.
    pub fn build(
        generation: Generation,
        credentials: Vec<Credential>,
        grants: Vec<Grant>,
        devices: Vec<Device>,
    ) -> Self {
        let mut snapshot = Self {
            generation,
            credentials: Table::sized_for(credentials.len()),
            grants: Table::sized_for(grants.len()),
            devices: Table::sized_for(devices.len()),
            grant_places: Table::sized_for(grants.len()),
            device_places: Table::sized_for(devices.len()),
        };
        for credential in credentials {
            snapshot.put_credential(credential);
        }
        for grant in grants {
            snapshot.put_grant(grant);
        }
        for device in devices {
            snapshot.put_device(device);
        }
        snapshot
    }

    /// The snapshot after `changes`, in their order.
    ///
    /// [`Change::PrincipalGone`] ends the principal through [`Revocations`], which the caller adds the same
    /// changes to. Its rows stay, out of reach, until the store tells of each or the next full build.
    pub fn apply(&self, generation: Generation, changes: &[Change]) -> Self {
        let mut next = Self { generation, ..self.clone() };
        for change in changes {
            match change {
                Change::Credential(credential) => next.put_credential(*credential),
                Change::CredentialGone(key) => {
                    next.credentials.take(key.credential_id(), |row| row.key.matches(key));
                }
                Change::Grant(grant) => next.put_grant(*grant),
                Change::GrantGone(id) => next.take_grant(*id),
                Change::Device(device) => next.put_device(device.clone()),
                Change::DeviceGone(id) => next.take_device(*id),
                Change::PrincipalGone(_) => {}
            }
        }
        next
    }

    pub fn generation(&self) -> Generation {
        self.generation
    }

    pub fn row_counts(&self) -> RowCounts {
        RowCounts {
            credentials: self.credentials.len(),
            grants: self.grants.len(),
            devices: self.devices.len(),
        }
    }

    /// Decides from this snapshot, with `revocations` on top of it. Looks at nothing but memory.
    ///
    /// Asks in this order, and the first thing that is wrong is the reason: the credential, the device,
    /// a grant that leads from one to the other, and whether `node` (any, where it is `None`) reaches the
    /// device now.
    pub fn decide(
        &self,
        query: &Query,
        revocations: &Revocations,
        node: Option<&str>,
        now: UnixMillis,
    ) -> Decision {
        match self.route(query, revocations, node, now) {
            Ok(route) => Decision::Allow(route),
            Err(refusal) => Decision::Refuse(refusal),
        }
    }

    fn route(
        &self,
        query: &Query,
        revocations: &Revocations,
        node: Option<&str>,
        now: UnixMillis,
    ) -> Result<Route, Refusal> {
        let credential = self.live_credential(query.key, revocations, now)?;
        let device = query.device.and_then(|uuid| self.devices.rows(uuid).next());
        let device = device.ok_or(Refusal::DeviceUnknown)?;
        let grant = self.best_grant(credential.principal, device, query.port, revocations, now)?;
        Ok(Route {
            address: reachable_address(device, node)?,
            port: query.port,
            credential: credential.key.credential_id(),
            principal: credential.principal,
            device: device.id,
            grant: grant.id,
            generation: self.generation,
            expires_at: [credential.expires_at, grant.expires_at].into_iter().flatten().min(),
        })
    }

    fn live_credential(
        &self,
        key: Option<KeyHash>,
        revocations: &Revocations,
        now: UnixMillis,
    ) -> Result<&Credential, Refusal> {
        let key = key.ok_or(Refusal::CredentialMissing)?;
        if revocations.credential(&key) {
            return Err(Refusal::CredentialRevoked);
        }
        let credential = self.credentials.rows(key.credential_id()).find(|row| row.key.matches(&key));
        let credential = credential.ok_or(Refusal::CredentialUnknown)?;
        if revocations.principal(credential.principal) {
            Err(Refusal::PrincipalRevoked)
        } else if credential.revoked {
            Err(Refusal::CredentialRevoked)
        } else if has_expired(credential.expires_at, now) {
            Err(Refusal::CredentialExpired)
        } else {
            Ok(credential)
        }
    }

    /// Of the live grants that open `port` the one that lasts longest, and of those the oldest. Where
    /// there is none, a grant that ended says more than one for other ports.
    fn best_grant(
        &self,
        principal: PrincipalId,
        device: &Device,
        port: u16,
        revocations: &Revocations,
        now: UnixMillis,
    ) -> Result<&Grant, Refusal> {
        let mut best: Option<&Grant> = None;
        let mut refusal = Refusal::NoGrant;
        let scopes = [Some(Scope::Device(device.id)), device.fleet.map(Scope::Fleet), Some(Scope::Any)];
        let keys = scopes.into_iter().flatten().map(|scope| GrantKey { principal, scope });
        for grant in keys.flat_map(|key| self.grants.rows(key)) {
            let problem = if !grant.ports.contains(port) {
                Refusal::PortNotGranted
            } else if grant.revoked || revocations.grant(grant.id) {
                Refusal::GrantRevoked
            } else if has_expired(grant.expires_at, now) {
                Refusal::GrantExpired
            } else {
                if best.is_none_or(|best| precedence(grant) > precedence(best)) {
                    best = Some(grant);
                }
                continue;
            };
            if telling(problem) > telling(refusal) {
                refusal = problem;
            }
        }
        best.ok_or(refusal)
    }

    fn put_credential(&mut self, credential: Credential) {
        self.credentials.put(credential, |row| row.key == credential.key);
    }

    fn put_grant(&mut self, grant: Grant) {
        let place = GrantPlace { id: grant.id, key: grant.key() };
        if let Some(old) = self.grant_places.rows(grant.id).next()
            && old.key != place.key
        {
            self.grants.take(old.key, |row| row.id == grant.id);
        }
        self.grants.put(grant, |row| row.id == grant.id);
        self.grant_places.put(place, |_| true);
    }

    fn take_grant(&mut self, id: GrantId) {
        if let Some(place) = self.grant_places.take(id, |_| true) {
            self.grants.take(place.key, |row| row.id == id);
        }
    }

    fn put_device(&mut self, device: Device) {
        let place = DevicePlace { id: device.id, uuid: device.uuid };
        if let Some(old) = self.device_places.rows(device.id).next()
            && old.uuid != device.uuid
        {
            self.devices.take(old.uuid, |_| true);
        }
        if let Some(displaced) = self.devices.rows(device.uuid).next()
            && displaced.id != device.id
        {
            self.device_places.take(displaced.id, |_| true);
        }
        self.devices.put(device, |_| true);
        self.device_places.put(place, |_| true);
    }

    fn take_device(&mut self, id: DeviceId) {
        if let Some(place) = self.device_places.take(id, |_| true) {
            self.devices.take(place.uuid, |_| true);
        }
    }
}

/// Where the device can be dialled, if this node may and can.
fn reachable_address(device: &Device, node: Option<&str>) -> Result<IpAddr, Refusal> {
    match (device.node.as_deref(), node) {
        (Some(holder), Some(ours)) if holder != ours => Err(Refusal::DeviceElsewhere),
        _ if !device.online => Err(Refusal::DeviceOffline),
        _ => device.address.ok_or(Refusal::DeviceOffline),
    }
}

fn has_expired(expires_at: Option<UnixMillis>, now: UnixMillis) -> bool {
    expires_at.is_some_and(|end| end <= now)
}

/// Orders grants that all permit: lasting before expiring, then the older.
fn precedence(grant: &Grant) -> impl Ord + use<> {
    (grant.expires_at.is_none(), grant.expires_at, std::cmp::Reverse(grant.id))
}

/// How much a reason for having no grant says about what to do.
const fn telling(refusal: Refusal) -> u8 {
    match refusal {
        Refusal::GrantRevoked => 3,
        Refusal::GrantExpired => 2,
        Refusal::PortNotGranted => 1,
        _ => 0,
    }
}

/// What grants are looked up by.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct GrantKey {
    principal: PrincipalId,
    scope: Scope,
}

#[derive(Clone, Copy)]
struct GrantPlace {
    id: GrantId,
    key: GrantKey,
}

#[derive(Clone, Copy)]
struct DevicePlace {
    id: DeviceId,
    uuid: DeviceUuid,
}

impl Row for Credential {
    type Key = CredentialId;

    fn key(&self) -> CredentialId {
        self.key.credential_id()
    }
}

impl Row for Grant {
    type Key = GrantKey;

    fn key(&self) -> GrantKey {
        GrantKey { principal: self.principal, scope: self.scope }
    }
}

impl Row for Device {
    type Key = DeviceUuid;

    fn key(&self) -> DeviceUuid {
        self.uuid
    }
}

impl Row for GrantPlace {
    type Key = GrantId;

    fn key(&self) -> GrantId {
        self.id
    }
}

impl Row for DevicePlace {
    type Key = DeviceId;

    fn key(&self) -> DeviceId {
        self.id
    }
}
