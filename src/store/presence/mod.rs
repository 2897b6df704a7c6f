//! Addresses of devices from the sources that `vpn.addresses` names, laid over the rows of a store.
//!
//! To everything else such an address is one that the store gave, and a change in a source is a change that was read.
//! With `vpn.report`, this also reports to the store which devices are in this node's VPN.

mod address_list;
mod claim_table;
mod claims;
mod file;
mod known_devices;
mod mailbox;
mod openvpn;
mod report_queue;
mod table;
mod wireguard;

use std::collections::HashSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crossbeam::channel::Receiver;

use super::{Changes, Comparison, Quarantined, RowKey, Rows, Source, StoreError, StoreWarnings};
use crate::authz::{Change, Device, DeviceUuid};
use crate::config::{AddressSource, Config, Queries};
use claims::{PresenceClaims, RowAge, Whereabouts};
use file::WatchedFile;
use known_devices::KnownDevices;
use openvpn::OpenVpn;
use table::PresenceTable;
use wireguard::WireGuard;

pub use claim_table::ClaimTable;
pub use report_queue::{PresenceReport, ReportAnswer, ReportQueue};

/// A source of rows whose devices have the addresses that `vpn.addresses` gives.
pub(super) struct LocatedSource {
    store: Box<dyn Source>,
    /// Origins of addresses. The first that knows a device has its address.
    origins: Vec<AddressOrigin>,
    devices: KnownDevices,
    /// Devices whose address has changed in a table since they were last reported.
    moved: HashSet<DeviceUuid>,
    /// Present if this node reports its devices to the store.
    claims: Option<PresenceClaims>,
}

enum AddressOrigin {
    Store,
    Presence(Box<dyn PresenceSource>),
}

/// Addresses that are kept outside the store, and that change without it.
trait PresenceSource: Send {
    /// Applies what is new to the table, without waiting, and returns the devices whose address has changed.
    fn poll(&mut self) -> Vec<DeviceUuid>;

    fn table(&self) -> &PresenceTable;
}

impl LocatedSource {
    pub(super) fn new(store: Box<dyn Source>, config: &Config, reports: &ReportQueue) -> Self {
        let vpn = &config.vpn;
        let presence = |source: &AddressSource| -> Option<Box<dyn PresenceSource>> {
            match source {
                AddressSource::Store => None,
                AddressSource::File(path) => Some(Box::new(WatchedFile::new(path.clone()))),
                AddressSource::OpenVpn(path) => Some(Box::new(OpenVpn::new(path.clone()))),
                AddressSource::WireGuard(interface) => Some(Box::new(WireGuard::new(interface, vpn))),
            }
        };
        let origin = |source| presence(source).map_or(AddressOrigin::Store, AddressOrigin::Presence);
        let origins = vpn.addresses.iter().map(origin).collect();
        let reporter = vpn.node.as_deref().filter(|_| vpn.report);
        let claims =
            reporter.map(|node| PresenceClaims::new(node, reports.clone(), config.forward.heartbeat));
        Self { store, origins, devices: KnownDevices::default(), moved: HashSet::new(), claims }
    }

    fn poll_tables(&mut self) {
        let were_filled = self.are_filled();
        for origin in &mut self.origins {
            let AddressOrigin::Presence(source) = origin else { continue };
            let was_filled = source.table().is_filled();
            let moved = source.poll();
            if let (Some(claims), true) = (&mut self.claims, was_filled) {
                let devices = moved.iter().filter(|uuid| self.devices.contains(uuid));
                let here = devices.filter(|uuid| source.table().address(uuid).is_some());
                here.for_each(|uuid| claims.record_arrival(*uuid));
            }
            self.moved.extend(moved);
        }
        let are_filled_now = !were_filled && self.are_filled();
        let Some(claims) = &mut self.claims else { return };
        self.moved.extend(claims.apply_answers());
        if are_filled_now {
            // A device that no table has now has left meanwhile.
            self.moved.extend(self.devices.uuids());
        }
        claims.repeat(|uuid| whereabouts(&self.origins, uuid));
    }

    /// True once each table has got addresses.
    fn are_filled(&self) -> bool {
        self.origins.iter().all(|origin| match origin {
            AddressOrigin::Store => true,
            AddressOrigin::Presence(source) => source.table().is_filled(),
        })
    }

    /// Locates all devices of a full read.
    fn located(&mut self, mut rows: Rows) -> Rows {
        self.devices = KnownDevices::default();
        self.moved.clear();
        for device in &mut rows.devices {
            self.devices.insert(device.clone());
            self.locate(device, RowAge::JustRead);
        }
        let devices = &self.devices;
        if let Some(claims) = &mut self.claims {
            claims.retain(|uuid| devices.contains(uuid));
        }
        rows
    }

    /// Locates the devices among changes that the store gave.
    fn locate_changes(&mut self, changes: &mut [Change], quarantined: &[Quarantined]) {
        for row in quarantined {
            // The device's last good version stays in force, and so does its address.
            if let RowKey::Device(id) = row.key {
                self.devices.remove(id);
            }
        }
        for change in changes {
            match change {
                Change::Device(device) => {
                    self.moved.remove(&device.uuid);
                    self.devices.insert(device.clone());
                    self.locate(device, RowAge::JustRead);
                }
                Change::DeviceGone(id) => {
                    if let (Some(claims), Some(device)) = (&mut self.claims, self.devices.get(*id)) {
                        claims.forget(&device.uuid);
                    }
                    self.devices.remove(*id);
                }
                _ => {}
            }
        }
    }

    /// Drains the devices that have moved in a table, as changes of their rows.
    fn drain_moves(&mut self) -> Vec<Change> {
        let moved = std::mem::take(&mut self.moved);
        let mut devices: Vec<Device> =
            moved.iter().filter_map(|uuid| self.devices.named(uuid).cloned()).collect();
        devices.iter_mut().for_each(|device| self.locate(device, RowAge::Known));
        devices.into_iter().map(Change::Device).collect()
    }

    /// Turns `device`, as the store has it, into the device that decisions are made by.
    fn locate(&mut self, device: &mut Device, age: RowAge) {
        let are_filled = self.are_filled();
        if let Some(claims) = &mut self.claims {
            claims.settle(device, whereabouts(&self.origins, &device.uuid), are_filled, age);
        }
        device.address = self.address(device);
    }

    fn address(&self, device: &Device) -> Option<IpAddr> {
        self.origins.iter().find_map(|origin| match origin {
            AddressOrigin::Store => device.address,
            AddressOrigin::Presence(source) => source.table().address(&device.uuid),
        })
    }
}

/// The device's address in the first table that knows it.
fn whereabouts(origins: &[AddressOrigin], uuid: &DeviceUuid) -> Option<Whereabouts> {
    origins.iter().find_map(|origin| match origin {
        AddressOrigin::Store => None,
        AddressOrigin::Presence(source) => {
            let table = source.table();
            Some(Whereabouts { address: table.address(uuid)?, since: table.since(uuid) })
        }
    })
}

impl Source for LocatedSource {
    fn read_all(&mut self) -> Result<Rows, StoreError> {
        self.poll_tables();
        let rows = self.store.read_all()?;
        Ok(self.located(rows))
    }

    fn read_changes(&mut self) -> Result<Changes, StoreError> {
        self.poll_tables();
        let (mut changes, quarantined) = match self.store.read_changes()? {
            Changes::Nothing => (Vec::new(), Vec::new()),
            Changes::Some { changes, quarantined } => (changes, quarantined),
            Changes::All(rows) => return Ok(Changes::All(self.located(rows))),
            Changes::Behind => return Ok(Changes::Behind),
        };
        self.locate_changes(&mut changes, &quarantined);
        changes.extend(self.drain_moves());
        if changes.is_empty() && quarantined.is_empty() {
            return Ok(Changes::Nothing);
        }
        Ok(Changes::Some { changes, quarantined })
    }

    fn compare(&mut self, candidate: &Queries) -> Result<Comparison, StoreError> {
        self.poll_tables();
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
        self.poll_tables();
        self.drain_moves()
    }

    fn warnings(&self) -> StoreWarnings {
        let mut warnings = self.store.warnings();
        for origin in &self.origins {
            if let AddressOrigin::Presence(source) = origin {
                warnings.bad_lines.append(source.table().bad_lines());
                warnings.stale_addresses.extend(source.table().failure());
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
