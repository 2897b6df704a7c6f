//! Device addresses from where `vpn.addresses` says: a source that lays them over the rows of a store.
//!
//! To all others such an address is one that the store gave. A source that changes is a read of changes.

mod file;
mod lines;
mod news;
mod openvpn;
mod told;
mod wireguard;

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crossbeam::channel::Receiver;

use super::{Changes, Comparison, Quarantined, Remarks, RowKey, Rows, Source, StoreError};
use crate::authz::{Change, Device, DeviceId, DeviceUuid};
use crate::config::{AddressSource, Queries, Vpn};
use file::AddressFile;
use openvpn::OpenVpn;
use told::Told;
use wireguard::WireGuard;

/// See the module.
pub(super) struct Located {
    store: Box<dyn Source>,
    /// The first that knows a device says where it is.
    places: Vec<Place>,
    devices: Devices,
    /// Whose address has changed in a table since it was last told.
    moved: HashSet<DeviceUuid>,
}

enum Place {
    Store,
    Beside(Box<dyn Table>),
}

/// Addresses that are kept outside the store, and that change without it.
trait Table: Send {
    /// Takes what is new, without waiting for anything, and says whose address is another one now.
    fn look(&mut self) -> Vec<DeviceUuid>;

    fn told(&self) -> &Told;
}

/// Good rows, as the store gave them last.
#[derive(Default)]
struct Devices {
    rows: HashMap<DeviceId, Device>,
    by_uuid: HashMap<DeviceUuid, DeviceId>,
}

impl Located {
    pub(super) fn new(store: Box<dyn Source>, vpn: &Vpn) -> Self {
        let place = |source: &AddressSource| match source {
            AddressSource::Store => Place::Store,
            AddressSource::File(path) => Place::Beside(Box::new(AddressFile::new(path.clone()))),
            AddressSource::OpenVpn(path) => Place::Beside(Box::new(OpenVpn::new(path.clone()))),
            AddressSource::WireGuard(interface) => Place::Beside(Box::new(WireGuard::new(interface, vpn))),
        };
        let places = vpn.addresses.iter().map(place).collect();
        Self { store, places, devices: Devices::default(), moved: HashSet::new() }
    }

    fn look_at_tables(&mut self) {
        for place in &mut self.places {
            if let Place::Beside(table) = place {
                self.moved.extend(table.look());
            }
        }
    }

    /// Rows as a whole answer of the store has them, now with their addresses.
    fn located(&mut self, mut rows: Rows) -> Rows {
        self.devices = Devices::default();
        self.moved.clear();
        for device in &mut rows.devices {
            self.devices.insert(device.clone());
            device.address = self.address(device);
        }
        rows
    }

    /// Changes as the store told them, now with their addresses.
    fn take_changes(&mut self, changes: &mut [Change], quarantined: &[Quarantined]) {
        for row in quarantined {
            // Its last good version stays as it is, and so where it is.
            if let RowKey::Device(id) = row.key {
                self.devices.remove(id);
            }
        }
        for change in changes {
            match change {
                Change::Device(device) => {
                    self.moved.remove(&device.uuid);
                    self.devices.insert(device.clone());
                    device.address = self.address(device);
                }
                Change::DeviceGone(id) => self.devices.remove(*id),
                _ => {}
            }
        }
    }

    /// The devices that a table has elsewhere now, of those that there are.
    fn moves(&mut self) -> Vec<Change> {
        let moved = std::mem::take(&mut self.moved);
        let devices = moved.iter().filter_map(|uuid| self.devices.named(uuid));
        devices
            .map(|device| Change::Device(Device { address: self.address(device), ..device.clone() }))
            .collect()
    }

    fn address(&self, device: &Device) -> Option<IpAddr> {
        self.places.iter().find_map(|place| match place {
            Place::Store => device.address,
            Place::Beside(table) => table.told().address(&device.uuid),
        })
    }
}

impl Source for Located {
    fn read_all(&mut self) -> Result<Rows, StoreError> {
        self.look_at_tables();
        let rows = self.store.read_all()?;
        Ok(self.located(rows))
    }

    fn read_changes(&mut self) -> Result<Changes, StoreError> {
        self.look_at_tables();
        let (mut changes, quarantined) = match self.store.read_changes()? {
            Changes::Nothing => (Vec::new(), Vec::new()),
            Changes::Some { changes, quarantined } => (changes, quarantined),
            Changes::All(rows) => return Ok(Changes::All(self.located(rows))),
            Changes::Behind => return Ok(Changes::Behind),
        };
        self.take_changes(&mut changes, &quarantined);
        changes.extend(self.moves());
        if changes.is_empty() && quarantined.is_empty() {
            return Ok(Changes::Nothing);
        }
        Ok(Changes::Some { changes, quarantined })
    }

    fn compare(&mut self, candidate: &Queries) -> Result<Comparison, StoreError> {
        self.look_at_tables();
        let Comparison { mut running, mut candidate } = self.store.compare(candidate)?;
        for device in running.devices.iter_mut().chain(&mut candidate.devices) {
            device.address = self.address(device);
        }
        Ok(Comparison { running, candidate })
    }

    fn replace_queries(&mut self, queries: Queries) {
        self.store.replace_queries(queries);
    }

    fn changes_elsewhere(&mut self) -> Vec<Change> {
        self.look_at_tables();
        self.moves()
    }

    fn remarks(&self) -> Remarks {
        let mut remarks = self.store.remarks();
        for place in &self.places {
            if let Place::Beside(table) = place {
                remarks.bad_lines.append(table.told().bad_lines());
                remarks.stale_addresses.extend(table.told().trouble());
            }
        }
        remarks
    }

    fn lag(&self) -> Duration {
        self.store.lag()
    }

    fn told_at(&self) -> Option<Instant> {
        self.store.told_at()
    }

    fn wake_ups(&mut self) -> Receiver<()> {
        self.store.wake_ups()
    }

    fn describe(&self) -> String {
        self.store.describe()
    }
}

impl Devices {
    fn insert(&mut self, device: Device) {
        self.remove(device.id);
        self.by_uuid.insert(device.uuid, device.id);
        self.rows.insert(device.id, device);
    }

    fn remove(&mut self, id: DeviceId) {
        let Some(device) = self.rows.remove(&id) else { return };
        // Another device may have taken its name.
        if self.by_uuid.get(&device.uuid) == Some(&id) {
            self.by_uuid.remove(&device.uuid);
        }
    }

    fn named(&self, uuid: &DeviceUuid) -> Option<&Device> {
        self.rows.get(self.by_uuid.get(uuid)?)
    }
}
