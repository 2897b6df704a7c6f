//! One immutable, complete state of all rights. A delta makes a new one that shares what it did not touch.
//! What follows from it for a client is in `decide`.

use super::table::{Row, Table};
use super::{
    Credential, CredentialId, Device, DeviceId, DeviceUuid, Grant, GrantId, KeyHash, PrincipalId, Scope,
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
    pub(super) credentials: Table<Credential>,
    /// By principal and scope.
    pub(super) grants: Table<Grant>,
    /// By uuid.
    pub(super) devices: Table<Device>,
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
    /// [`Change::PrincipalGone`] ends the principal through [`Revocations`](super::Revocations), which
    /// the caller adds the same changes to. Its rows stay, out of reach, until the store tells of each or
    /// the next full build.
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

    pub fn credential(&self, key: &KeyHash) -> Option<Credential> {
        self.credentials.rows(key.credential_id()).find(|row| row.key.matches(key)).copied()
    }

    pub fn grant(&self, id: GrantId) -> Option<Grant> {
        let place = self.grant_places.rows(id).next()?;
        self.grants.rows(place.key).find(|row| row.id == id).copied()
    }

    pub fn device(&self, id: DeviceId) -> Option<Device> {
        let place = self.device_places.rows(id).next()?;
        self.devices.rows(place.uuid).next().cloned()
    }

    /// Every credential, in no order.
    pub fn credentials(&self) -> impl Iterator<Item = Credential> {
        self.credentials.iter().copied()
    }

    /// Every grant, in no order.
    pub fn grants(&self) -> impl Iterator<Item = Grant> {
        self.grants.iter().copied()
    }

    /// Every device, in no order.
    pub fn devices(&self) -> impl Iterator<Item = Device> {
        self.devices.iter().cloned()
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

/// What grants are looked up by.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct GrantKey {
    pub(super) principal: PrincipalId,
    pub(super) scope: Scope,
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
