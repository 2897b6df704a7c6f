//! Whose an address is: a place, that is, an address at a node, is one online device's.
//!
//! [`AddressOwners`] follows the rows in force, the answers that are held, and this node's own VPN tables, and names the
//! devices of which it cannot be told whether they are where their row says. Those are disputed, and no others: not
//! devices that a held answer places somewhere else, while nothing else claims the place where they are. `moves` says
//! which inferred moves must not take effect.

mod claims;
mod moves;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, BuildHasherDefault, Hasher, RandomState};

use crate::authz::{Device, DeviceId, DeviceUuid};
use crate::control::api::WordKind;
use crate::store::{AddressHolder, HolderChange};
use claims::{Claim, Contest, Verdict};
pub(in crate::control) use moves::{PlaceMove, places_max};

/// An address at a node. Two places are the same if and, but for one chance in 10^6 among a million, only if node and
/// address are: a hash with a random key stands for both. Such a chance would dispute two devices.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(in crate::control) struct Place(u64);

/// The claims to places. Memory: 17 to 34 bytes for each online device with an address, and some 60 more for each place
/// that several devices claim.
pub(in crate::control) struct AddressOwners {
    node: Option<Box<str>>,
    hasher: RandomState,
    /// Places that one device claims, by its row in force.
    sole: PlaceMap<DeviceId>,
    /// Places that several devices or a held answer claim.
    contests: PlaceMap<Contest>,
    /// Places of held answers.
    pending: HashMap<DeviceId, Place>,
    /// Places that an own table gives.
    tables: PlaceMap<AddressHolder>,
    /// Places of the devices that own tables hold, and their numbers where a row in force has them.
    held_here: HashMap<DeviceUuid, (Place, Option<DeviceId>)>,
    /// Devices in force at a place that is not surely theirs.
    at_doubtful_place: HashSet<DeviceId>,
    /// Devices whose last move was a part of a mass change of places.
    suspects: HashSet<DeviceId>,
    changed: HashSet<DeviceId>,
}

impl AddressOwners {
    /// Makes an empty structure for the node of this name.
    pub(in crate::control) fn new(node: Option<&str>) -> Self {
        Self {
            node: node.map(Into::into),
            hasher: RandomState::new(),
            sole: PlaceMap::default(),
            contests: PlaceMap::default(),
            pending: HashMap::new(),
            tables: PlaceMap::default(),
            held_here: HashMap::new(),
            at_doubtful_place: HashSet::new(),
            suspects: HashSet::new(),
            changed: HashSet::new(),
        }
    }

    /// Follows a change of a row in force. `before` must be the row of the last call for the device.
    pub(in crate::control) fn change(
        &mut self,
        before: Option<&Device>,
        after: Option<&Device>,
        word: WordKind,
    ) {
        let (from, to) = (self.place_of(before), self.place_of(after));
        let uuid = |device: Option<&Device>| device.map(|device| (device.id, device.uuid));
        if uuid(before) != uuid(after) {
            if let Some(device) = before {
                self.number_holder(&device.uuid, device.id, None);
            }
            if let Some(device) = after {
                self.number_holder(&device.uuid, device.id, Some(device.id));
            }
        }
        let id = |device: Option<&Device>| device.map(|device| device.id);
        if (from, id(before)) == (to, id(after)) {
            return;
        }
        if let (Some(device), Some(place)) = (before, from) {
            self.update(place, device.id, |contest| contest.remove(device.id, Claim::IN_FORCE));
            self.clear(device.id);
        }
        if let (Some(device), Some(place)) = (after, to) {
            self.update(place, device.id, |contest| {
                contest.add(device.id, Claim::IN_FORCE);
                if word == WordKind::Explicit {
                    contest.give_to(device.id);
                }
            });
        }
    }

    /// An explicit word says that the device is where its row in force says, and where a query had put it before.
    pub(in crate::control) fn confirm(&mut self, device: &Device) {
        if let Some(place) = self.place_of(Some(device)) {
            self.update(place, device.id, |contest| contest.give_to(device.id));
        }
    }

    /// Sets the row that a held answer of the store has of a device. `None` once the answer agrees with what is in force.
    pub(in crate::control) fn set_pending(&mut self, id: DeviceId, answer: Option<&Device>) {
        let place = self.place_of(answer);
        let before = match place {
            Some(place) => self.pending.insert(id, place),
            None => self.pending.remove(&id),
        };
        if before == place {
            return;
        }
        if let Some(before) = before {
            self.update(before, id, |contest| contest.remove(id, Claim::PENDING));
        }
        if let Some(place) = place {
            self.update(place, id, |contest| contest.add(id, Claim::PENDING));
        }
    }

    /// Follows a change of the own tables. `number_of` finds the number of a device in force.
    pub(in crate::control) fn change_holder(
        &mut self,
        change: &HolderChange,
        number_of: impl Fn(&DeviceUuid) -> Option<DeviceId>,
    ) {
        let place = self.place_here(change.address);
        let before = self.verdict(place);
        if let Some(AddressHolder::Device(uuid)) = self.tables.remove(&place)
            && self.held_here.get(&uuid).is_some_and(|(at, _)| *at == place)
        {
            self.held_here.remove(&uuid);
        }
        if let Some(holder) = change.holder {
            self.tables.insert(place, holder);
            if let AddressHolder::Device(uuid) = holder {
                self.held_here.insert(uuid, (place, number_of(&uuid)));
            }
        }
        self.apply_verdict(place, before, None);
    }

    /// Judges inferred moves: those that wait, and those in force that are not proved yet. Returns the devices whose move
    /// is contested, out of `devices` rows. Those that wait are not to be put in force; those in force are disputed from
    /// now on, until a later call no longer contests them.
    pub(in crate::control) fn judge_moves(
        &mut self,
        moves: &[PlaceMove],
        devices: usize,
    ) -> HashSet<DeviceId> {
        let occupants = |place: Place| self.occupants(place);
        let contested = moves::contested(moves, occupants, places_max(devices));
        let in_force = moves.iter().filter(|step| step.is_in_force).map(|step| step.device);
        let suspects: HashSet<DeviceId> = in_force.filter(|id| contested.contains(id)).collect();
        self.changed.extend(suspects.symmetric_difference(&self.suspects));
        self.suspects = suspects;
        contested
    }

    /// Makes a move for [`AddressOwners::judge_moves`] out of two rows of one device.
    pub(in crate::control) fn place_move(
        &self,
        device: DeviceId,
        before: Option<&Device>,
        after: Option<&Device>,
        is_in_force: bool,
    ) -> PlaceMove {
        PlaceMove { device, from: self.place_of(before), to: self.place_of(after), is_in_force }
    }

    /// True if it cannot be told whether the device is where its row in force says.
    pub(in crate::control) fn is_disputed(&self, id: DeviceId) -> bool {
        self.at_doubtful_place.contains(&id) || self.suspects.contains(&id)
    }

    /// The disputed devices.
    pub(in crate::control) fn disputed(&self) -> impl Iterator<Item = DeviceId> {
        let others = self.suspects.iter().filter(|id| !self.at_doubtful_place.contains(id));
        self.at_doubtful_place.iter().chain(others).copied()
    }

    /// Number of disputed devices. Counts only the suspects one by one.
    pub(in crate::control) fn disputed_count(&self) -> usize {
        let others = self.suspects.iter().filter(|id| !self.at_doubtful_place.contains(id));
        self.at_doubtful_place.len() + others.count()
    }

    /// True if [`AddressOwners::drain_changed`] has something to give.
    pub(in crate::control) fn has_changed(&self) -> bool {
        !self.changed.is_empty()
    }

    /// Drains the devices whose dispute may have begun or ended since the last call.
    pub(in crate::control) fn drain_changed(&mut self) -> HashSet<DeviceId> {
        std::mem::take(&mut self.changed)
    }

    /// True if the place of `device`'s row is another device's by the own tables, by an explicit word, by a row in force
    /// or by the newest answer. A network answer from there is not the device's.
    pub(in crate::control) fn is_another_s(&self, device: &Device) -> bool {
        let located = Device { online: true, ..device.clone() };
        let Some(place) = self.place_of(Some(&located)) else { return false };
        match self.tables.get(&place) {
            Some(AddressHolder::Device(uuid)) => return *uuid != device.uuid,
            Some(AddressHolder::Stranger) => return true,
            None => {}
        }
        let is_sole_of_another = self.sole.get(&place).is_some_and(|id| *id != device.id);
        is_sole_of_another || self.contests.get(&place).is_some_and(|contest| contest.has_other(device.id))
    }

    /// The place of a row: `None` where the device is offline or has no address. A device of no node is dialled by each.
    fn place_of(&self, device: Option<&Device>) -> Option<Place> {
        let device = device.filter(|device| device.online)?;
        let address = device.address?;
        match (device.node.as_deref(), self.node.as_deref()) {
            (Some(node), Some(ours)) if node != ours => {
                Some(Place(self.hasher.hash_one((Some(node), address.to_canonical()))))
            }
            _ => Some(self.place_here(address)),
        }
    }

    fn place_here(&self, address: std::net::IpAddr) -> Place {
        Place(self.hasher.hash_one((None::<&str>, address.to_canonical())))
    }

    /// Devices in force at a place: two are enough to know that there are several.
    fn occupants(&self, place: Place) -> [Option<DeviceId>; 2] {
        match (self.sole.get(&place), self.contests.get(&place)) {
            (Some(id), _) => [Some(*id), None],
            (None, Some(contest)) => {
                let mut in_force = contest.in_force();
                [in_force.next(), in_force.next()]
            }
            (None, None) => [None, None],
        }
    }

    /// Changes the claims to a place, and follows what that changes for the devices there.
    fn update(&mut self, place: Place, id: DeviceId, change: impl FnOnce(&mut Contest)) {
        let before = self.verdict(place);
        let mut contest = self.contests.remove(&place).unwrap_or_default();
        if let Some(sole) = self.sole.remove(&place) {
            contest.add(sole, Claim::IN_FORCE);
        }
        change(&mut contest);
        match contest.sole() {
            Some(sole) => _ = self.sole.insert(place, sole),
            None if !contest.is_empty() => _ = self.contests.insert(place, contest),
            None => {}
        }
        self.apply_verdict(place, before, Some(id));
    }

    /// Records the number of the device that a table names.
    fn number_holder(&mut self, uuid: &DeviceUuid, of: DeviceId, number: Option<DeviceId>) {
        let Some((place, known)) = self.held_here.get(uuid).copied() else { return };
        // Another row may have taken the uuid.
        if number == known || number.is_none() && known != Some(of) {
            return;
        }
        let before = self.verdict(place);
        self.held_here.insert(*uuid, (place, number));
        self.apply_verdict(place, before, None);
    }

    fn verdict(&self, place: Place) -> Verdict {
        match self.tables.get(&place) {
            Some(AddressHolder::Device(uuid)) => {
                Verdict::AllBut(self.held_here.get(uuid).and_then(|(_, number)| *number))
            }
            Some(AddressHolder::Stranger) => Verdict::AllBut(None),
            None => self.contests.get(&place).map_or(Verdict::Nobody, Contest::verdict),
        }
    }

    /// Brings the devices in force at `place` from `before` to the verdict of now. Those of which neither verdict nor
    /// claim has changed are left alone, since everybody may be there.
    fn apply_verdict(&mut self, place: Place, before: Verdict, touched: Option<DeviceId>) {
        let now = self.verdict(place);
        let concerned: Vec<DeviceId> = match (before, now) {
            (Verdict::AllBut(before), Verdict::AllBut(now)) => {
                [before, now, touched].into_iter().flatten().collect()
            }
            (Verdict::Nobody, Verdict::Nobody) => touched.into_iter().collect(),
            _ => match (self.sole.get(&place), self.contests.get(&place)) {
                (Some(id), _) => vec![*id],
                (None, Some(contest)) => contest.in_force().collect(),
                (None, None) => Vec::new(),
            },
        };
        for id in concerned {
            let is_there = self.sole.get(&place) == Some(&id)
                || self.contests.get(&place).is_some_and(|contest| contest.has(id, Claim::IN_FORCE));
            if !is_there {
                continue;
            }
            match now {
                Verdict::AllBut(owner) if owner != Some(id) => {
                    if self.at_doubtful_place.insert(id) {
                        self.changed.insert(id);
                    }
                }
                _ => self.clear(id),
            }
        }
    }

    fn clear(&mut self, id: DeviceId) {
        if self.at_doubtful_place.remove(&id) {
            self.changed.insert(id);
        }
    }
}

type PlaceMap<V> = HashMap<Place, V, BuildHasherDefault<PlaceHasher>>;

/// A place is a hash already.
#[derive(Default)]
struct PlaceHasher(u64);

impl Hasher for PlaceHasher {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.0 = self.0.rotate_left(8) ^ u64::from(*byte));
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
