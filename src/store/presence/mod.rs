//! Device addresses from where `vpn.addresses` says: a source that lays them over the rows of a store.
//!
//! To all others such an address is one that the store gave. A source that changes is a read of changes. With
//! `vpn.report` the store is told in turn which devices are here.

mod claims;
mod file;
mod lines;
mod mailbox;
mod openvpn;
mod table;
mod wireguard;

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crossbeam::channel::Receiver;

use super::{Changes, Comparison, Quarantined, Reports, RowKey, Rows, Source, StoreError, StoreWarnings};
use crate::authz::{Change, Device, DeviceId, DeviceUuid};
use crate::config::{AddressSource, Config, Queries};
use claims::{PresenceClaims, Row, Whereabouts};
use file::AddressFile;
use openvpn::OpenVpn;
use table::PresenceTable;
use wireguard::WireGuard;

/// See the module.
pub(super) struct Located {
    store: Box<dyn Source>,
    /// The first that knows a device says where it is.
    places: Vec<Place>,
    devices: Devices,
    /// Whose address has changed in a table since it was last reported.
    moved: HashSet<DeviceUuid>,
    /// Where the store is told which devices are here.
    holdings: Option<PresenceClaims>,
}

enum Place {
    Store,
    Beside(Box<dyn PresenceSource>),
}

/// Addresses that are kept outside the store, and that change without it.
trait PresenceSource: Send {
    /// Takes what is new, without waiting for anything, and says whose address is another one now.
    fn look(&mut self) -> Vec<DeviceUuid>;

    fn table(&self) -> &PresenceTable;
}

/// Good rows, as the store gave them last.
#[derive(Default)]
struct Devices {
    rows: HashMap<DeviceId, Device>,
    by_uuid: HashMap<DeviceUuid, DeviceId>,
}

impl Located {
    pub(super) fn new(store: Box<dyn Source>, config: &Config, reports: &Reports) -> Self {
        let vpn = &config.vpn;
        let place = |source: &AddressSource| match source {
            AddressSource::Store => Place::Store,
            AddressSource::File(path) => Place::Beside(Box::new(AddressFile::new(path.clone()))),
            AddressSource::OpenVpn(path) => Place::Beside(Box::new(OpenVpn::new(path.clone()))),
            AddressSource::WireGuard(interface) => Place::Beside(Box::new(WireGuard::new(interface, vpn))),
        };
        let places = vpn.addresses.iter().map(place).collect();
        let reporter = vpn.node.as_deref().filter(|_| vpn.report);
        let holdings =
            reporter.map(|node| PresenceClaims::new(node, reports.clone(), config.forward.heartbeat));
        Self { store, places, devices: Devices::default(), moved: HashSet::new(), holdings }
    }

    fn look_at_tables(&mut self) {
        let was_told = self.is_told();
        for place in &mut self.places {
            let Place::Beside(source) = place else { continue };
            let was_there = source.table().is_there();
            let moved = source.look();
            if let (Some(holdings), true) = (&mut self.holdings, was_there) {
                let devices = moved.iter().filter(|uuid| self.devices.by_uuid.contains_key(uuid));
                let here = devices.filter(|uuid| source.table().address(uuid).is_some());
                here.for_each(|uuid| holdings.note_arrival(*uuid));
            }
            self.moved.extend(moved);
        }
        let is_told_now = !was_told && self.is_told();
        let Some(holdings) = &mut self.holdings else { return };
        self.moved.extend(holdings.take_answers());
        if is_told_now {
            // Who is not here has left meanwhile.
            self.moved.extend(self.devices.by_uuid.keys());
        }
        holdings.repeat(|uuid| whereabouts(&self.places, uuid));
    }

    /// Whether each table has said who is here.
    fn is_told(&self) -> bool {
        self.places.iter().all(|place| match place {
            Place::Store => true,
            Place::Beside(source) => source.table().is_there(),
        })
    }

    /// Rows as a whole answer of the store has them, now with their addresses.
    fn located(&mut self, mut rows: Rows) -> Rows {
        self.devices = Devices::default();
        self.moved.clear();
        for device in &mut rows.devices {
            self.devices.insert(device.clone());
            self.locate(device, Row::JustRead);
        }
        let devices = &self.devices;
        if let Some(holdings) = &mut self.holdings {
            holdings.retain(|uuid| devices.by_uuid.contains_key(uuid));
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
                    self.locate(device, Row::JustRead);
                }
                Change::DeviceGone(id) => {
                    if let (Some(holdings), Some(device)) = (&mut self.holdings, self.devices.rows.get(id)) {
                        holdings.forget(&device.uuid);
                    }
                    self.devices.remove(*id);
                }
                _ => {}
            }
        }
    }

    /// The devices that a table has elsewhere now, of those that there are.
    fn moves(&mut self) -> Vec<Change> {
        let moved = std::mem::take(&mut self.moved);
        let mut devices: Vec<Device> =
            moved.iter().filter_map(|uuid| self.devices.named(uuid).cloned()).collect();
        devices.iter_mut().for_each(|device| self.locate(device, Row::Known));
        devices.into_iter().map(Change::Device).collect()
    }

    /// Makes of `device`, as the store has it, what is to be decided by.
    fn locate(&mut self, device: &mut Device, row: Row) {
        let is_told = self.is_told();
        if let Some(holdings) = &mut self.holdings {
            holdings.settle(device, whereabouts(&self.places, &device.uuid), is_told, row);
        }
        device.address = self.address(device);
    }

    fn address(&self, device: &Device) -> Option<IpAddr> {
        self.places.iter().find_map(|place| match place {
            Place::Store => device.address,
            Place::Beside(source) => source.table().address(&device.uuid),
        })
    }
}

/// Where the first table that knows a device has it.
fn whereabouts(places: &[Place], uuid: &DeviceUuid) -> Option<Whereabouts> {
    places.iter().find_map(|place| match place {
        Place::Store => None,
        Place::Beside(source) => {
            let table = source.table();
            Some(Whereabouts { address: table.address(uuid)?, since: table.since(uuid) })
        }
    })
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

    fn warnings(&self) -> StoreWarnings {
        let mut warnings = self.store.warnings();
        for place in &self.places {
            if let Place::Beside(source) = place {
                warnings.bad_lines.append(source.table().bad_lines());
                warnings.stale_addresses.extend(source.table().trouble());
            }
        }
        warnings
    }

    fn lag(&self) -> Duration {
        self.store.lag()
    }

    fn readable_since(&self) -> Option<Instant> {
        self.store.readable_since()
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
