//! The addresses of this node's own VPN tables, laid over the rows of devices that the store gives.
//!
//! A table comes before the store for the devices that it holds, wherever `store` stands in `vpn.addresses`; among
//! tables the order counts. Until a table has given its first addresses, the store's word stands. One thread owns the
//! layer; no call waits but [`AddressLayer::wait_for_tables`].

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use super::claims::{PresenceClaims, RowAge, Whereabouts};
use super::file::WatchedFile;
use super::known_devices::KnownDevices;
use super::openvpn::OpenVpn;
use super::report_queue::ReportQueue;
use super::wireguard::WireGuard;
use super::{Patience, PresenceSource};
use crate::authz::{Change, Device, DeviceId, DeviceUuid};
use crate::config::{AddressSource, Config};
use crate::store::{Quarantined, RowKey, StoreWarnings, Word};

/// The tables of `vpn.addresses`, and the rows of devices that the store gave last.
pub struct AddressLayer {
    /// Tables in the order of `vpn.addresses`. The first that knows a device has its address.
    tables: Vec<Box<dyn PresenceSource>>,
    /// True if `vpn.addresses` names the store, so that its address counts for a device that no table holds.
    is_store_listed: bool,
    devices: KnownDevices,
    /// Devices whose address has changed in a table since they were last reported.
    moved: HashSet<DeviceUuid>,
    /// The holder of each address that a table gives.
    holders: HashMap<IpAddr, AddressHolder>,
    /// Addresses whose holder has changed since the changes were last drained.
    changed_holders: HashSet<IpAddr>,
    /// Present if this node reports its devices to the store.
    claims: Option<PresenceClaims>,
    /// Makes the tables and the reports.
    make: MakeTables,
}

type Tables = (Vec<Box<dyn PresenceSource>>, Option<PresenceClaims>);

type MakeTables = Box<dyn Fn() -> Tables + Send>;

/// The holder of an address by an own table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressHolder {
    Device(DeviceUuid),
    /// A peer that is no device, or several devices at once. The address is no device's.
    Stranger,
}

/// An address of an own table whose holder has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HolderChange {
    pub address: IpAddr,
    /// `None` where no table says anything of the address any more.
    pub holder: Option<AddressHolder>,
}

/// Rows of devices whose place in the own tables has changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct DeviceMoves {
    /// Rows of devices that a table holds, with the address that it gives. An explicit word: the VPN itself says so.
    pub settled: Vec<Device>,
    /// Rows of devices that no table holds any more, placed as the store's last answer has them. These are inferred
    /// changes, so that a table that breaks is judged like a query that does.
    pub left: Vec<Device>,
}

impl AddressLayer {
    /// Makes the layer that `vpn` describes. With `vpn.report`, `reports` gets what is to be written about devices.
    pub fn new(config: &Config, reports: &ReportQueue) -> Self {
        let (vpn, reports, heartbeat) = (config.vpn.clone(), reports.clone(), config.forward.heartbeat);
        let is_store_listed = !vpn.knows_addresses();
        let make = move || {
            let table = |source: &AddressSource| -> Option<Box<dyn PresenceSource>> {
                match source {
                    AddressSource::Store => None,
                    AddressSource::File(path) => Some(Box::new(WatchedFile::new(path.clone()))),
                    AddressSource::OpenVpn(at) => Some(Box::new(OpenVpn::new(at.clone()))),
                    AddressSource::WireGuard(interface) => Some(Box::new(WireGuard::new(interface, &vpn))),
                }
            };
            let reporter = vpn.node.as_deref().filter(|_| vpn.report);
            let claims = reporter.map(|node| PresenceClaims::new(node, reports.clone(), heartbeat));
            (vpn.addresses.iter().filter_map(table).collect(), claims)
        };
        Self::of_tables(Box::new(make), is_store_listed)
    }

    fn of_tables(make: MakeTables, is_store_listed: bool) -> Self {
        let (tables, claims) = make();
        Self {
            tables,
            make,
            is_store_listed,
            devices: KnownDevices::default(),
            moved: HashSet::new(),
            holders: HashMap::new(),
            changed_holders: HashSet::new(),
            claims,
        }
    }

    /// Waits for the first addresses of the tables, or else a node begins with no device online. Each table has a time
    /// limit of a few seconds.
    pub fn wait_for_tables(&mut self) {
        self.poll_tables(Patience::FirstAddresses);
    }

    /// Leaves the tables to another process of this node: some of their sources serve one at a time. The devices stay
    /// where they are.
    pub fn leave_tables(&mut self) {
        self.tables.clear();
        self.claims = None;
        self.moved.clear();
    }

    /// Takes the tables again after [`leave_tables`](Self::leave_tables). Until one is filled, its devices stay where
    /// they are.
    pub fn take_tables(&mut self) {
        (self.tables, self.claims) = (self.make)();
    }

    /// Applies what is new to the tables, without waiting.
    pub fn poll(&mut self) {
        self.poll_tables(Patience::Nothing);
    }

    /// True once each table has got addresses. Until then it says nothing that a device is in none.
    pub fn are_filled(&self) -> bool {
        self.tables.iter().all(|table| table.table().is_filled())
    }

    /// True if addresses come from own tables alone, and no table has given any yet.
    pub fn lacks_addresses(&self) -> bool {
        !self.is_store_listed && !self.tables.iter().any(|table| table.table().is_filled())
    }

    /// Locates all devices of a full read.
    pub fn lay_relation(&mut self, devices: &mut [Device]) {
        if self.tables.is_empty() {
            return;
        }
        self.devices = KnownDevices::default();
        for device in devices {
            // Devices that the answer lacks may be in force, and go on to move.
            self.moved.remove(&device.uuid);
            self.devices.insert(device.clone());
            self.locate(device, RowAge::JustRead);
        }
        let devices = &self.devices;
        if let Some(claims) = &mut self.claims {
            claims.retain(|uuid| devices.contains(uuid));
        }
    }

    /// Locates the devices among the words of the store.
    pub fn lay_words(&mut self, words: &mut [Word], quarantined: &[Quarantined]) {
        self.forget_quarantined(quarantined);
        for word in words {
            match word {
                Word::Row(change) => self.lay_change(change),
                Word::Ended(RowKey::Device(id)) => self.forget(*id),
                _ => {}
            }
        }
    }

    /// Locates a device as the store has it, where nothing is to be remembered of it.
    pub fn lay(&self, device: &mut Device) {
        device.address = self.address(device);
    }

    /// Drains the devices that have moved in a table. `in_force` finds a device's row that decides now; only its place
    /// changes.
    pub fn drain_moves(&mut self, in_force: impl Fn(&DeviceUuid) -> Option<Device>) -> DeviceMoves {
        let mut moves = DeviceMoves::default();
        for uuid in std::mem::take(&mut self.moved) {
            let by_store = self.devices.named(&uuid).cloned();
            let laid = by_store.map(|mut device| {
                self.locate(&mut device, RowAge::Known);
                device
            });
            let Some(mut device) = in_force(&uuid) else { continue };
            match (whereabouts(&self.tables, &uuid), laid) {
                (Some(Whereabouts { address, .. }), laid) => {
                    device.address = Some(address);
                    let is_claimed = self.claims.as_ref().is_some_and(|claims| claims.decides(&uuid));
                    if let (true, Some(laid)) = (is_claimed, laid) {
                        (device.node, device.online) = (laid.node, laid.online);
                    }
                    moves.settled.push(device);
                }
                (None, Some(laid)) => {
                    (device.address, device.node, device.online) = (laid.address, laid.node, laid.online);
                    moves.left.push(device);
                }
                // Neither a table nor the store's last answer knows where it is.
                (None, None) => {
                    device.address = None;
                    moves.left.push(device);
                }
            }
        }
        moves
    }

    /// Drains the addresses whose holder by the own tables has changed.
    pub fn drain_holders(&mut self) -> Vec<HolderChange> {
        let changed = std::mem::take(&mut self.changed_holders);
        changed.into_iter().map(|address| HolderChange { address, holder: self.holder(&address) }).collect()
    }

    /// The holder of an address by the own tables.
    pub fn holder(&self, address: &IpAddr) -> Option<AddressHolder> {
        self.holders.get(&address.to_canonical()).copied()
    }

    /// The device that has an address by the own tables.
    pub fn owner_here(&self, address: &IpAddr) -> Option<DeviceUuid> {
        match self.holder(address)? {
            AddressHolder::Device(uuid) => Some(uuid),
            AddressHolder::Stranger => None,
        }
    }

    /// True if an own table holds the device.
    pub fn is_here(&self, uuid: &DeviceUuid) -> bool {
        whereabouts(&self.tables, uuid).is_some()
    }

    /// Adds the warnings about the tables.
    pub fn add_warnings(&self, warnings: &mut StoreWarnings) {
        for source in &self.tables {
            warnings.bad_lines.append(source.table().bad_lines());
            warnings.stale_addresses.extend(source.table().failure());
        }
    }

    pub fn warnings(&self) -> StoreWarnings {
        let mut warnings = StoreWarnings::default();
        self.add_warnings(&mut warnings);
        warnings
    }

    /// Locates the device of a change.
    fn lay_change(&mut self, change: &mut Change) {
        match change {
            _ if self.tables.is_empty() => {}
            Change::Device(device) => {
                self.moved.remove(&device.uuid);
                self.devices.insert(device.clone());
                self.locate(device, RowAge::JustRead);
            }
            Change::DeviceGone(id) => self.forget(*id),
            _ => {}
        }
    }

    /// Forgets the store's rows that do not decode. The last good version of such a device stays in force.
    fn forget_quarantined(&mut self, quarantined: &[Quarantined]) {
        for row in quarantined {
            if let RowKey::Device(id) = row.key {
                self.devices.remove(id);
            }
        }
    }

    fn poll_tables(&mut self, patience: Patience) {
        let were_filled = self.are_filled();
        let mut has_changed = false;
        for table in &mut self.tables {
            let (was_filled, version) = (table.table().is_filled(), table.table().version());
            let moved = table.poll(patience);
            has_changed |= table.table().version() != version;
            if let (Some(claims), true) = (&mut self.claims, was_filled) {
                let devices = moved.iter().filter(|uuid| self.devices.contains(uuid));
                let here = devices.filter(|uuid| table.table().address(uuid).is_some());
                here.for_each(|uuid| claims.record_arrival(*uuid));
            }
            self.moved.extend(moved);
        }
        if has_changed {
            self.count_holders();
        }
        let are_filled_now = !were_filled && self.are_filled();
        let Some(claims) = &mut self.claims else { return };
        self.moved.extend(claims.apply_answers());
        self.moved.extend(claims.apply_device_answers());
        if are_filled_now {
            // A device that no table has now has left meanwhile.
            self.moved.extend(self.devices.uuids());
        }
        claims.repeat(|uuid| whereabouts(&self.tables, uuid));
    }

    fn forget(&mut self, id: DeviceId) {
        if let (Some(claims), Some(device)) = (&mut self.claims, self.devices.get(id)) {
            claims.forget(&device.uuid);
        }
        self.devices.remove(id);
    }

    /// Turns `device`, as the store has it, into the device that decisions are made by.
    fn locate(&mut self, device: &mut Device, age: RowAge) {
        let are_filled = self.are_filled();
        if let Some(claims) = &mut self.claims {
            claims.settle(device, whereabouts(&self.tables, &device.uuid), are_filled, age);
        }
        device.address = self.address(device);
    }

    fn address(&self, device: &Device) -> Option<IpAddr> {
        let by_table = whereabouts(&self.tables, &device.uuid).map(|place| place.address);
        by_table.or(device.address.filter(|_| self.is_store_listed))
    }

    /// Finds the holder of each address anew. An address that an earlier table gives to a device is not another one's.
    fn count_holders(&mut self) {
        let mut holders = HashMap::new();
        for (place, source) in self.tables.iter().enumerate() {
            let earlier = &self.tables[..place];
            for (uuid, address) in source.table().addresses() {
                if whereabouts(earlier, uuid).is_none() {
                    holders.entry(*address).or_insert(AddressHolder::Device(*uuid));
                }
            }
            for address in source.table().occupied() {
                holders.entry(*address).or_insert(AddressHolder::Stranger);
            }
        }
        let before = std::mem::replace(&mut self.holders, holders);
        let has_changed = |address: &&IpAddr| before.get(*address) != self.holders.get(*address);
        let changed = before.keys().chain(self.holders.keys()).filter(has_changed).copied();
        self.changed_holders.extend(changed);
    }
}

/// The device's address in the first table that knows it.
fn whereabouts(tables: &[Box<dyn PresenceSource>], uuid: &DeviceUuid) -> Option<Whereabouts> {
    tables.iter().find_map(|source| {
        let table = source.table();
        Some(Whereabouts { address: table.address(uuid)?, since: table.since(uuid) })
    })
}

#[cfg(test)]
mod tests;
