//! The addresses that a source of addresses gave last, and those of them that stay while it gives no others.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use super::address_list::AddressList;
use super::mailbox::PresenceUpdate;
use crate::authz::{DeviceUuid, UnixMillis};
use crate::store::{Examples, StoreWarnings};
use crate::telemetry::LogOnChange;

/// The addresses of one source.
pub(super) struct PresenceTable {
    /// Name of the source for log lines.
    name: String,
    addresses: HashMap<DeviceUuid, IpAddr>,
    /// Time when each device came to its address, as far as it is known.
    since: HashMap<DeviceUuid, UnixMillis>,
    /// Addresses of peers that are no device, and of several devices at once.
    occupied: HashSet<IpAddr>,
    /// Number of lists so far.
    version: u64,
    is_filled: bool,
    bad_lines: Examples,
    /// Reason why the source gives no newer addresses.
    failure: LogOnChange,
}

impl PresenceTable {
    pub(super) fn new(name: String) -> Self {
        Self {
            name,
            addresses: HashMap::new(),
            since: HashMap::new(),
            occupied: HashSet::new(),
            version: 0,
            is_filled: false,
            bad_lines: Examples::default(),
            failure: LogOnChange::default(),
        }
    }

    /// Replaces the addresses by those of `list`, and returns the devices whose address has changed.
    pub(super) fn replace(&mut self, list: AddressList) -> Vec<DeviceUuid> {
        let AddressList { mut addresses, since, bad, may_be_empty, .. } = list;
        if bad.examples != self.bad_lines {
            self.bad_lines = bad.examples.clone();
            let warnings = StoreWarnings { bad_lines: bad.examples.clone(), ..StoreWarnings::default() };
            warnings.lines().iter().for_each(|line| tracing::warn!("vpn.addresses: {line}"));
        }
        // The source may be half written, or its writer may have just begun.
        if !may_be_empty && addresses.is_empty() && bad.occupied().is_empty() {
            self.set_failure(Some("there is no address in it".to_owned()));
            return Vec::new();
        }
        self.set_failure(None);
        let occupied: HashSet<IpAddr> = addresses.values().chain(bad.occupied()).copied().collect();
        for (uuid, address) in &self.addresses {
            if bad.may_name(uuid) && !occupied.contains(address) {
                addresses.entry(*uuid).or_insert(*address);
            }
        }
        self.since = self.completed(since, &addresses);
        self.is_filled = true;
        self.occupied.clone_from(bad.occupied());
        self.version += 1;
        let before = std::mem::replace(&mut self.addresses, addresses);
        let gone = before.keys().filter(|uuid| !self.addresses.contains_key(uuid));
        let new = self.addresses.iter().filter(|(uuid, address)| before.get(uuid) != Some(address));
        gone.chain(new.map(|(uuid, _)| uuid)).copied().collect()
    }

    /// Adds to `since` the times that the source does not give: now for a device that has just come, and the known time
    /// for one that has stayed. Nothing is known of the devices that the first read found.
    fn completed(
        &self,
        mut since: HashMap<DeviceUuid, UnixMillis>,
        addresses: &HashMap<DeviceUuid, IpAddr>,
    ) -> HashMap<DeviceUuid, UnixMillis> {
        let now = UnixMillis::now();
        for (uuid, address) in addresses {
            let has_come = self.is_filled && self.addresses.get(uuid) != Some(address);
            let seen = if has_come { Some(now) } else { self.since.get(uuid).copied() };
            if let (false, Some(seen)) = (since.contains_key(uuid), seen) {
                since.insert(*uuid, seen);
            }
        }
        since
    }

    /// Applies an update of the source, and returns the devices whose address has changed.
    pub(super) fn apply(&mut self, update: PresenceUpdate) -> Vec<DeviceUuid> {
        match update {
            PresenceUpdate::Nothing => Vec::new(),
            PresenceUpdate::Addresses(list) => self.replace(*list),
            PresenceUpdate::Failed(failure) => {
                self.set_failure(Some(failure));
                Vec::new()
            }
        }
    }

    /// Records a failure or the end of one, and logs it if it differs from the last.
    pub(super) fn set_failure(&mut self, failure: Option<String>) {
        let Some(failure) = failure else {
            if self.failure.ends() {
                tracing::info!("vpn.addresses: {} can be read again", self.name);
            }
            return;
        };
        if self.failure.changes_to(failure) {
            tracing::warn!("vpn.addresses: {}", self.failure().unwrap_or_default());
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn address(&self, uuid: &DeviceUuid) -> Option<IpAddr> {
        self.addresses.get(uuid).copied()
    }

    pub(super) fn addresses(&self) -> impl Iterator<Item = (&DeviceUuid, &IpAddr)> {
        self.addresses.iter()
    }

    /// Addresses that are no device's.
    pub(super) const fn occupied(&self) -> &HashSet<IpAddr> {
        &self.occupied
    }

    /// Number of lists that the source has given. Another number means that holders may have changed.
    pub(super) const fn version(&self) -> u64 {
        self.version
    }

    /// Time when the device came to its address. `None` if it is not known.
    pub(super) fn since(&self, uuid: &DeviceUuid) -> Option<UnixMillis> {
        self.since.get(uuid).copied()
    }

    /// True once the source has given addresses. Until then the absence of a device means nothing.
    pub(super) const fn is_filled(&self) -> bool {
        self.is_filled
    }

    pub(super) const fn bad_lines(&self) -> &Examples {
        &self.bad_lines
    }

    /// The failure as a log line, while there is one.
    pub(super) fn failure(&self) -> Option<String> {
        let name = &self.name;
        self.failure.get().map(|reason| format!("{name}: {reason}; its last addresses stay"))
    }
}
