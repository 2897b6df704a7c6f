//! The devices of the store, by their id and by their uuid.

use std::collections::HashMap;

use crate::authz::{Device, DeviceId, DeviceUuid};

/// Good rows of devices, as the store gave them last.
#[derive(Default)]
pub(super) struct KnownDevices {
    rows: HashMap<DeviceId, Device>,
    by_uuid: HashMap<DeviceUuid, DeviceId>,
}

impl KnownDevices {
    pub(super) fn insert(&mut self, device: Device) {
        self.remove(device.id);
        self.by_uuid.insert(device.uuid, device.id);
        self.rows.insert(device.id, device);
    }

    pub(super) fn remove(&mut self, id: DeviceId) {
        let Some(device) = self.rows.remove(&id) else { return };
        // Another device may have taken its uuid.
        if self.by_uuid.get(&device.uuid) == Some(&id) {
            self.by_uuid.remove(&device.uuid);
        }
    }

    pub(super) fn get(&self, id: DeviceId) -> Option<&Device> {
        self.rows.get(&id)
    }

    pub(super) fn contains(&self, uuid: &DeviceUuid) -> bool {
        self.by_uuid.contains_key(uuid)
    }

    pub(super) fn uuids(&self) -> impl Iterator<Item = &DeviceUuid> {
        self.by_uuid.keys()
    }

    pub(super) fn named(&self, uuid: &DeviceUuid) -> Option<&Device> {
        self.rows.get(self.by_uuid.get(uuid)?)
    }
}
