//! Keeps old rows from leading to new devices.
//!
//! A VPN gives an address that is free to the next device that comes. While a row stays in force that the
//! store does not stand by any more, its address may be another device's, and must not be dialled.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use super::guard::Difference;
use crate::authz::{Change, Device, DeviceId, DeviceUuid, Snapshot};

/// Devices of the last good snapshot that are not to be dialled.
#[derive(Default, PartialEq, Eq)]
pub(super) struct ReusedAddresses {
    devices: HashSet<DeviceId>,
}

impl ReusedAddresses {
    /// Those of `stale` whose address `store` gives to another device, and to them no more.
    pub(super) fn on(stale: impl Iterator<Item = Device>, difference: &Difference, store: &Snapshot) -> Self {
        let given: HashMap<IpAddr, DeviceUuid> = difference
            .devices
            .iter()
            .filter(|row| address(row.after.as_ref()) != address(row.before.as_ref()))
            .filter_map(|row| row.after.as_ref())
            .filter_map(|device| Some((address(Some(device))?, device.uuid)))
            .collect();
        if given.is_empty() {
            return Self::default();
        }
        let is_anothers = |device: &Device| {
            let own = address(Some(device));
            own.and_then(|own| given.get(&own)).is_some_and(|owner| *owner != device.uuid)
                && address(store.device(device.id).as_ref()) != own
        };
        Self { devices: stale.filter(is_anothers).map(|device| device.id).collect() }
    }

    /// The changes that apply them to `snapshot`.
    pub(super) fn changes(&self, snapshot: &Snapshot) -> Vec<Change> {
        let masked = |id: &DeviceId| snapshot.device(*id).map(|device| Device { address: None, ..device });
        self.devices.iter().filter_map(masked).map(Change::Device).collect()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.devices.is_empty()
    }
}

fn address(device: Option<&Device>) -> Option<IpAddr> {
    device?.address.map(|address| address.to_canonical())
}
