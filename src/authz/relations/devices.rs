//! Devices, found by uuid, and by id where they change.

use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU32;
use std::sync::Arc;

use hashbrown::HashSet;

use super::index::{Index, IndexEntry};
use super::node_names::{NodeNames, NodeNumber};
use super::{Edit, Identified, pack_all};
use crate::authz::table::{KeyHasher, Row, Sought, Table};
use crate::authz::{Device, DeviceId, DeviceUuid, FleetId};

#[derive(Clone)]
pub(in crate::authz) struct Devices {
    packed: Table<PackedDevice>,
    whole: Table<Device>,
    index: Index<DeviceId>,
    nodes: Arc<NodeNames>,
}

/// The fields of a device that a decision needs.
pub(in crate::authz) struct LocatedDevice<'a> {
    pub(in crate::authz) id: DeviceId,
    pub(in crate::authz) fleet: Option<FleetId>,
    pub(in crate::authz) address: Option<IpAddr>,
    pub(in crate::authz) node: Option<&'a str>,
    pub(in crate::authz) online: bool,
    pub(in crate::authz) disputed: bool,
}

/// A device on its way from memory.
pub(in crate::authz) struct SoughtDevice<'a> {
    devices: &'a Devices,
    uuid: &'a DeviceUuid,
    packed: Option<Sought<'a, PackedDevice>>,
}

impl<'a> SoughtDevice<'a> {
    #[inline]
    pub(in crate::authz) fn get(&self) -> Option<LocatedDevice<'a>> {
        let Self { devices, uuid, packed } = *self;
        match packed.and_then(|packed| packed.rows().next()) {
            Some(device) => Some(device.located(&devices.nodes)),
            None if devices.whole.is_empty() => None,
            None => devices.whole(uuid),
        }
    }
}

impl Devices {
    pub(in crate::authz) fn sized_for(rows: usize, hasher: KeyHasher) -> Self {
        Self {
            packed: Table::sized_for(rows, hasher.clone()),
            whole: Table::sized_for(0, hasher.clone()),
            index: Index::sized_for(rows, hasher),
            nodes: Arc::default(),
        }
    }

    pub(in crate::authz) fn edit(&mut self, edits: Vec<Edit<Device>>) {
        let DeviceEdits { put, removed, ids, uuids } = DeviceEdits::of(edits);
        for name in put.iter().filter_map(|device| device.node.as_deref()) {
            if self.nodes.number(name).is_none() {
                Arc::make_mut(&mut self.nodes).add(name);
            }
        }
        let (packed, whole) = pack_all(put, |device| PackedDevice::pack(device, &self.nodes));

        let mut entries = Vec::with_capacity(packed.len() + whole.len());
        entries.extend(packed.iter().map(|row| IndexEntry::new(row.id(), self.packed.digest(row.key()))));
        entries.extend(whole.iter().map(|row| IndexEntry::new(row.id, self.whole.digest(row.uuid))));
        let displaced = self.index.replace(entries, &removed);

        let mut suspects = displaced.digests;
        suspects.extend(uuids.iter().map(|uuid| self.whole.digest(*uuid)));
        suspects.extend(uuids.iter().filter_map(ShortUuid::of).map(|uuid| self.packed.digest(uuid)));
        let goes = |id: DeviceId, uuid: DeviceUuid| displaced.ids.contains(&id) || uuids.contains(&uuid);
        let packed_gone = self.packed.replace(packed, suspects.clone(), |row| goes(row.id(), row.uuid()));
        let whole_gone = self.whole.replace(whole, suspects, |row| goes(row.id, row.uuid));

        // Those whose uuid was claimed by a device with another id.
        let gone = packed_gone.iter().map(PackedDevice::id).chain(whole_gone.iter().map(|row| row.id));
        self.index.replace(Vec::new(), &gone.filter(|id| !ids.contains(id)).collect());
    }

    /// Has the device with `uuid` fetched.
    #[inline]
    pub(in crate::authz) fn seek<'a>(&'a self, uuid: &'a DeviceUuid) -> SoughtDevice<'a> {
        let packed = ShortUuid::of(uuid).map(|uuid| self.packed.seek(uuid));
        SoughtDevice { devices: self, uuid, packed }
    }

    #[cold]
    fn whole(&self, uuid: &DeviceUuid) -> Option<LocatedDevice<'_>> {
        self.whole.rows(*uuid).next().map(Device::located)
    }

    pub(in crate::authz) fn named(&self, uuid: DeviceUuid) -> Option<Device> {
        match ShortUuid::of(&uuid).and_then(|uuid| self.packed.rows(uuid).next()) {
            Some(row) => Some(row.unpack(&self.nodes)),
            None => self.whole.rows(uuid).next().cloned(),
        }
    }

    pub(in crate::authz) fn get(&self, id: DeviceId) -> Option<Device> {
        let digest = self.index.get(id)?;
        let packed = self.packed.bucket(digest).iter().find(|row| row.id() == id);
        let whole = || self.whole.bucket(digest).iter().find(|row| row.id == id).cloned();
        packed.map(|row| row.unpack(&self.nodes)).or_else(whole)
    }

    pub(in crate::authz) fn iter(&self) -> impl Iterator<Item = Device> {
        self.packed.iter().map(|row| row.unpack(&self.nodes)).chain(self.whole.iter().cloned())
    }

    /// Counts devices without a copy of each.
    pub(in crate::authz) fn count(&self, is_counted: impl Fn(&LocatedDevice<'_>) -> bool) -> usize {
        let packed = self.packed.iter().map(|row| row.located(&self.nodes));
        packed.chain(self.whole.iter().map(Device::located)).filter(is_counted).count()
    }

    pub(in crate::authz) fn len(&self) -> usize {
        self.index.len()
    }
}

/// The net effect of a list of edits. A device ends where a later one claims its id or its uuid, whatever
/// happens to the later one.
struct DeviceEdits {
    put: Vec<Device>,
    /// Ids that no device has in the end.
    removed: HashSet<DeviceId>,
    ids: HashSet<DeviceId>,
    uuids: HashSet<DeviceUuid>,
}

impl DeviceEdits {
    fn of(edits: Vec<Edit<Device>>) -> Self {
        let mut claims = Self {
            put: Vec::with_capacity(edits.len()),
            removed: HashSet::new(),
            ids: HashSet::with_capacity(edits.len()),
            uuids: HashSet::with_capacity(edits.len()),
        };
        for edit in edits.into_iter().rev() {
            let id = edit.id();
            let is_last_of_id = claims.ids.insert(id);
            match edit {
                Edit::Put(device) if claims.uuids.insert(device.uuid) && is_last_of_id => {
                    claims.put.push(device);
                }
                Edit::Put(_) | Edit::Remove(_) => {
                    if is_last_of_id {
                        claims.removed.insert(id);
                    }
                }
            }
        }
        claims
    }
}

/// A uuid of 32 digits, compared and hashed as one number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct ShortUuid(u128);

impl ShortUuid {
    #[inline]
    fn of(uuid: &DeviceUuid) -> Option<Self> {
        uuid.as_bytes().try_into().ok().map(|bytes| Self(u128::from_ne_bytes(bytes)))
    }
}

#[derive(Clone, Copy)]
struct PackedDevice {
    uuid: [u8; 16],
    id: u32,
    /// One more than the fleet.
    fleet: Option<NonZeroU32>,
    address: Option<NonZeroU32>,
    node: Option<NodeNumber>,
    online: bool,
    disputed: bool,
}

impl PackedDevice {
    fn pack(device: &Device, nodes: &NodeNames) -> Option<Self> {
        let fleet = |FleetId(fleet)| NonZeroU32::try_from(u32::try_from(fleet.checked_add(1)?).ok()?).ok();
        let address = |address: IpAddr| match address {
            IpAddr::V4(address) => NonZeroU32::new(address.to_bits()),
            IpAddr::V6(_) => None,
        };
        Some(Self {
            uuid: device.uuid.as_bytes().try_into().ok()?,
            id: device.id.0.try_into().ok()?,
            fleet: packed(device.fleet, fleet)?,
            address: packed(device.address, address)?,
            node: packed(device.node.as_deref(), |name| nodes.number(name))?,
            online: device.online,
            disputed: device.disputed,
        })
    }

    #[inline]
    fn located<'a>(&self, nodes: &'a NodeNames) -> LocatedDevice<'a> {
        LocatedDevice {
            id: self.id(),
            fleet: self.fleet.map(|fleet| FleetId(i64::from(fleet.get()) - 1)),
            address: self.address.map(|address| Ipv4Addr::from_bits(address.get()).into()),
            node: self.node.map(|node| nodes.name(node)),
            online: self.online,
            disputed: self.disputed,
        }
    }

    fn unpack(&self, nodes: &NodeNames) -> Device {
        let LocatedDevice { id, fleet, address, node, online, disputed } = self.located(nodes);
        Device { id, uuid: self.uuid(), fleet, address, node: node.map(Into::into), online, disputed }
    }

    fn id(&self) -> DeviceId {
        DeviceId(self.id.into())
    }

    fn uuid(&self) -> DeviceUuid {
        DeviceUuid::from_bytes(&self.uuid).expect("a uuid may have 16 bytes")
    }
}

/// `None` where there is a value and it cannot be packed.
fn packed<T, P>(value: Option<T>, pack: impl FnOnce(T) -> Option<P>) -> Option<Option<P>> {
    match value {
        Some(value) => pack(value).map(Some),
        None => Some(None),
    }
}

impl Device {
    fn located(&self) -> LocatedDevice<'_> {
        let Self { id, fleet, address, online, disputed, .. } = *self;
        LocatedDevice { id, fleet, address, node: self.node.as_deref(), online, disputed }
    }
}

impl Row for PackedDevice {
    type Key = ShortUuid;
    type Rank = ();

    #[inline]
    fn key(&self) -> ShortUuid {
        ShortUuid(u128::from_ne_bytes(self.uuid))
    }

    fn rank(&self) {}
}

impl Row for Device {
    type Key = DeviceUuid;
    type Rank = ();

    fn key(&self) -> DeviceUuid {
        self.uuid
    }

    fn rank(&self) {}
}

impl Identified for Device {
    type Id = DeviceId;

    fn id(&self) -> DeviceId {
        self.id
    }
}

const _: () = assert!(size_of::<PackedDevice>() == 32);
