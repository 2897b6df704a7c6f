//! One immutable, complete state of all rights. A delta makes a new one that shares what it did not touch.
//! What follows from it for a client is in `decide`.

use super::relations::{Credentials, Devices, Edit, Grants, HeldCredential};
use super::table::KeyHasher;
use super::{Credential, Device, DeviceId, Grant, GrantId, KeyHash, PrincipalId};

/// Numbers snapshots in the order of their publication, from 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Generation(pub u64);

/// One committed change of the store.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
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

impl Change {
    /// Returns whether the change removes a row.
    pub const fn is_gone(&self) -> bool {
        matches!(self, Self::CredentialGone(_) | Self::GrantGone(_) | Self::DeviceGone(_))
    }
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
    pub(super) credentials: Credentials,
    pub(super) grants: Grants,
    pub(super) devices: Devices,
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
        let counts =
            RowCounts { credentials: credentials.len(), grants: grants.len(), devices: devices.len() };
        let mut builder = SnapshotBuilder::new(generation, counts);
        credentials.into_iter().for_each(|row| builder.credential(row));
        grants.into_iter().for_each(|row| builder.grant(row));
        devices.into_iter().for_each(|row| builder.device(row));
        builder.finish()
    }

    /// The snapshot after `changes`, in their order.
    ///
    /// [`Change::PrincipalGone`] ends the principal through [`Revocations`](super::Revocations), which
    /// the caller adds the same changes to. Its rows stay, out of reach, until the store names each or
    /// the next full build.
    pub fn apply(&self, generation: Generation, changes: &[Change]) -> Self {
        let mut edits = Edits::default();
        for change in changes.iter().cloned() {
            match change {
                Change::Credential(row) => edits.credentials.push(Edit::Put(row)),
                Change::CredentialGone(key) => edits.credentials.push(Edit::Remove(key)),
                Change::Grant(row) => edits.grants.push(Edit::Put(row)),
                Change::GrantGone(id) => edits.grants.push(Edit::Remove(id)),
                Change::Device(row) => edits.devices.push(Edit::Put(row)),
                Change::DeviceGone(id) => edits.devices.push(Edit::Remove(id)),
                Change::PrincipalGone(_) => {}
            }
        }
        let mut next = Self { generation, ..self.clone() };
        next.credentials.edit(edits.credentials);
        next.grants.edit(edits.grants);
        next.devices.edit(edits.devices);
        next
    }

    /// The snapshot with each relation of another one.
    pub fn of_parts(generation: Generation, credentials: &Self, grants: &Self, devices: &Self) -> Self {
        Self {
            generation,
            credentials: credentials.credentials.clone(),
            grants: grants.grants.clone(),
            devices: devices.devices.clone(),
        }
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
        let HeldCredential { principal, expires_at, revoked } = self.credentials.seek(key).get()?;
        Some(Credential { key: *key, principal, expires_at, revoked })
    }

    pub fn grant(&self, id: GrantId) -> Option<Grant> {
        self.grants.get(id)
    }

    pub fn device(&self, id: DeviceId) -> Option<Device> {
        self.devices.get(id)
    }

    /// Every credential, in no order.
    pub fn credentials(&self) -> impl Iterator<Item = Credential> {
        self.credentials.iter()
    }

    /// Every grant, in no order.
    pub fn grants(&self) -> impl Iterator<Item = Grant> {
        self.grants.iter()
    }

    /// Every device, in no order.
    pub fn devices(&self) -> impl Iterator<Item = Device> {
        self.devices.iter()
    }
}

/// Puts a snapshot together from rows as they are read, without a second copy of them all.
pub struct SnapshotBuilder {
    snapshot: Snapshot,
    edits: Edits,
}

impl SnapshotBuilder {
    /// Room is made for `expected` rows at once; more may come.
    pub fn new(generation: Generation, expected: RowCounts) -> Self {
        let hasher = KeyHasher::default();
        let snapshot = Snapshot {
            generation,
            credentials: Credentials::sized_for(expected.credentials, hasher.clone()),
            grants: Grants::sized_for(expected.grants, hasher.clone()),
            devices: Devices::sized_for(expected.devices, hasher),
        };
        Self { snapshot, edits: Edits::default() }
    }

    pub fn credential(&mut self, row: Credential) {
        let edits = &mut self.edits.credentials;
        edits.push(Edit::Put(row));
        if edits.len() >= portion(self.snapshot.credentials.len()) {
            self.snapshot.credentials.edit(std::mem::take(edits));
        }
    }

    pub fn grant(&mut self, row: Grant) {
        let edits = &mut self.edits.grants;
        edits.push(Edit::Put(row));
        if edits.len() >= portion(self.snapshot.grants.len()) {
            self.snapshot.grants.edit(std::mem::take(edits));
        }
    }

    pub fn device(&mut self, row: Device) {
        let edits = &mut self.edits.devices;
        edits.push(Edit::Put(row));
        if edits.len() >= portion(self.snapshot.devices.len()) {
            self.snapshot.devices.edit(std::mem::take(edits));
        }
    }

    pub fn finish(self) -> Snapshot {
        let Self { mut snapshot, edits } = self;
        snapshot.credentials.edit(edits.credentials);
        snapshot.grants.edit(edits.grants);
        snapshot.devices.edit(edits.devices);
        snapshot
    }
}

/// Changes of each relation, in their order.
#[derive(Default)]
struct Edits {
    credentials: Vec<Edit<Credential>>,
    grants: Vec<Edit<Grant>>,
    devices: Vec<Edit<Device>>,
}

/// Rows that a builder gathers before it puts them in a table of so many. Each time all shards are written
/// anew; with a fixed share of what is there the work stays in proportion to the rows, and so does what is
/// gathered.
fn portion(rows: usize) -> usize {
    (rows / PORTION_SHARE).max(PORTION_MIN)
}

/// An eighth: each row is written nine times on average, and the rows that wait take a fifth of the memory
/// that the table takes.
const PORTION_SHARE: usize = 8;

/// Rows that are always gathered; a few MiB.
const PORTION_MIN: usize = 1 << 16;
