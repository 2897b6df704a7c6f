//! Whose addresses are: follows the rows of devices, and marks those of which it cannot be told.

use std::collections::HashSet;
use std::sync::Arc;

use super::row::AnyRow;
use super::{Guard, index};
use crate::authz::{Change, Device, DeviceId, DeviceUuid, Snapshot};
use crate::config::Config;
use crate::control::api::{ChangeKind, Rule, WordKind};
use crate::control::locations::{AddressOwners, PlaceMove};
use crate::store::{HolderChange, Relation, RowKey};

/// Owners of addresses, and what is in force with the disputed devices marked.
pub(super) struct Places {
    owners: AddressOwners,
    /// What was masked last, and what it was made of.
    masked: Option<Arc<Snapshot>>,
}

impl Places {
    pub(super) fn new(config: &Config) -> Self {
        let owners = AddressOwners::new(config.vpn.node.as_deref());
        Self { owners, masked: None }
    }

    /// Follows a row in force.
    pub(super) fn change(&mut self, before: Option<&AnyRow>, after: Option<&AnyRow>, word: WordKind) {
        let device = |row: Option<&AnyRow>| match row {
            Some(AnyRow::Device(device)) => Some(device.clone()),
            _ => None,
        };
        let (before, after) = (device(before), device(after));
        if before.is_some() || after.is_some() {
            self.owners.change(before.as_ref(), after.as_ref(), word);
        }
    }

    /// Begins with all devices of a snapshot.
    pub(super) fn begin_with(&mut self, snapshot: &Snapshot) {
        self.masked = None;
        for device in snapshot.devices() {
            self.owners.change(None, Some(&device), WordKind::Inferred);
        }
    }
}

impl Guard {
    /// The node's own VPN tables give these addresses to these devices.
    pub(in crate::control) fn change_holders(&mut self, changes: &[HolderChange]) {
        let in_force = self.in_force.clone();
        let number_of = |uuid: &DeviceUuid| in_force.as_ref()?.device_named(*uuid).map(|device| device.id);
        for change in changes {
            self.places.owners.change_holder(change, number_of);
        }
    }

    /// Returns whether a dispute has begun or ended that is not published yet.
    pub(in crate::control) fn has_new_disputes(&self) -> bool {
        self.places.owners.has_changed()
    }

    /// Number of devices of which it cannot be told whose their address is.
    pub(in crate::control) fn disputed(&self) -> usize {
        self.places.owners.disputed_count()
    }

    /// True if the place of the row is another device's: an answer from there is not the device's.
    pub(in crate::control) fn is_anothers_place(&self, device: DeviceId) -> bool {
        let device = self.in_force.as_ref().and_then(|in_force| in_force.device(device));
        device.is_none_or(|device| self.places.owners.is_another_s(&device))
    }

    /// What is in force with the disputed devices marked, after `changes` of what is in force.
    pub(in crate::control) fn mask<'a>(
        &mut self,
        changes: impl Iterator<Item = &'a Change>,
    ) -> Option<Arc<Snapshot>> {
        let in_force = self.in_force.clone()?;
        let disputes = self.places.owners.drain_changed();
        let is_undisputed = self.places.owners.disputed().next().is_none();
        let masked = match self.places.masked.take().filter(|_| !is_undisputed) {
            _ if is_undisputed => in_force,
            Some(masked) => {
                let mut all: Vec<Change> = changes.cloned().collect();
                let devices: HashSet<DeviceId> = all.iter().filter_map(device_of).chain(disputes).collect();
                all.extend(self.flags(&in_force, devices.into_iter()));
                Arc::new(masked.apply(in_force.generation(), &all))
            }
            None => {
                let flags = self.flags(&in_force, self.places.owners.disputed());
                Arc::new(in_force.apply(in_force.generation(), &flags))
            }
        };
        self.places.masked = Some(Arc::clone(&masked));
        Some(masked)
    }

    fn flags(&self, in_force: &Snapshot, devices: impl Iterator<Item = DeviceId>) -> Vec<Change> {
        let flag = |id: DeviceId| {
            let device = in_force.device(id)?;
            Some(Change::Device(Device { disputed: self.places.owners.is_disputed(id), ..device }))
        };
        devices.filter_map(flag).collect()
    }

    /// Follows the answers about devices that are held or wait, where they have changed.
    pub(super) fn follow_pending_devices(&mut self) {
        let pending = &mut self.relations[index(Relation::Devices)].pending;
        for id in pending.drain_changed_devices() {
            let answer = match pending.get(&RowKey::Device(id)).map(|row| &row.after) {
                Some(Some(AnyRow::Device(device))) => Some(device),
                _ => None,
            };
            self.places.owners.set_pending(id, answer);
        }
    }

    /// Holds the inferred moves by which devices would change places, and marks those of the window that are in force.
    pub(super) fn hold_contested_moves(&mut self, in_force: &Snapshot) -> HashSet<RowKey> {
        if !self.config.enabled {
            return HashSet::new();
        }
        let mut moves: Vec<PlaceMove> = Vec::new();
        let device = |row: &Option<AnyRow>| match row {
            Some(AnyRow::Device(device)) => Some(device.clone()),
            _ => None,
        };
        for (key, row) in self.relations[index(Relation::Devices)].pending.iter() {
            let (RowKey::Device(id), Some(after)) = (key, device(&row.after)) else { continue };
            let is_mend = self.ledger.baseline(key).is_some_and(|baseline| *baseline == row.after);
            if !is_mend {
                let before = in_force.device(*id);
                moves.push(self.places.owners.place_move(*id, before.as_ref(), Some(&after), false));
            }
        }
        for (key, entry) in self.ledger.iter() {
            let (RowKey::Device(id), Some(baseline)) = (key, entry.baseline()) else { continue };
            let (before, after) = (device(baseline), in_force.device(*id));
            moves.push(self.places.owners.place_move(*id, before.as_ref(), after.as_ref(), true));
        }
        let mut contested = self.places.owners.judge_moves(&moves, self.live.devices);
        contested.extend(self.contested_uuids(in_force));
        let mut held = HashSet::new();
        let pending = &mut self.relations[index(Relation::Devices)].pending;
        for id in contested {
            let key = RowKey::Device(id);
            if let Some(mut row) = pending.remove(&key) {
                row.kind = row.kind.or(Some(ChangeKind::Moved));
                row.held = Some(Rule::Address);
                pending.insert(key.clone(), row);
                held.insert(key);
            }
        }
        held
    }

    /// Devices whose rows would have the uuid of another row in force: whoever asks for the one would reach the other. The
    /// other one stays as well.
    fn contested_uuids(&self, in_force: &Snapshot) -> Vec<DeviceId> {
        let mut contested = Vec::new();
        for (key, row) in self.relations[index(Relation::Devices)].pending.iter() {
            let (RowKey::Device(id), Some(AnyRow::Device(after))) = (key, &row.after) else { continue };
            let Some(before) = in_force.device(*id).filter(|before| before.uuid != after.uuid) else {
                continue;
            };
            let is_mend = self.ledger.baseline(key).is_some_and(|baseline| *baseline == row.after);
            let other = in_force.device_named(after.uuid).filter(|other| other.id != before.id);
            if let Some(other) = other.filter(|_| !is_mend) {
                contested.extend([*id, other.id]);
            }
        }
        contested
    }

    /// Follows a row that was put in force.
    pub(super) fn follow_place(&mut self, before: Option<&AnyRow>, after: Option<&AnyRow>, word: WordKind) {
        self.places.change(before, after, word);
    }

    /// A word says what a query had come to before: if that was a move, the place is the device's from here on.
    pub(super) fn confirm_place(&mut self, key: &RowKey, after: Option<&AnyRow>) {
        let was_inferred = self.ledger.baseline(key).is_some_and(|baseline| baseline.as_ref() != after);
        if let Some(AnyRow::Device(device)) = after.filter(|_| was_inferred) {
            self.places.owners.confirm(device);
        }
    }
}

const fn device_of(change: &Change) -> Option<DeviceId> {
    match change {
        Change::Device(device) => Some(device.id),
        Change::DeviceGone(id) => Some(*id),
        _ => None,
    }
}
