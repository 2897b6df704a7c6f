//! What a source of addresses told last, and what of that stays when it tells something else.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use super::lines::Lines;
use super::mailbox::Update;
use crate::authz::{DeviceUuid, UnixMillis};
use crate::store::{Noted, StoreWarnings};
use crate::telemetry::LogOnChange;

/// See the module.
pub(super) struct PresenceTable {
    /// The source, for log lines.
    name: String,
    addresses: HashMap<DeviceUuid, IpAddr>,
    /// Since when devices are there, as far as that is known.
    since: HashMap<DeviceUuid, UnixMillis>,
    /// Whether it has told anything yet.
    is_there: bool,
    bad_lines: Noted,
    /// Why the addresses are those that it gave last.
    trouble: LogOnChange,
}

impl PresenceTable {
    pub(super) fn new(name: String) -> Self {
        Self {
            name,
            addresses: HashMap::new(),
            since: HashMap::new(),
            is_there: false,
            bad_lines: Noted::default(),
            trouble: LogOnChange::default(),
        }
    }

    /// Puts `lines` in the place of what was told before, and says whose address is another one now.
    pub(super) fn take(&mut self, lines: Lines) -> Vec<DeviceUuid> {
        let Lines { mut addresses, since, bad, may_be_empty, .. } = lines;
        if bad.noted != self.bad_lines {
            self.bad_lines = bad.noted.clone();
            let warnings = StoreWarnings { bad_lines: bad.noted.clone(), ..StoreWarnings::default() };
            warnings.lines().iter().for_each(|line| tracing::warn!("vpn.addresses: {line}"));
        }
        // It may be half written, or its writer may just begin.
        if !may_be_empty && addresses.is_empty() && bad.not_free().is_empty() {
            self.have_trouble(Some("there is no address in it".to_owned()));
            return Vec::new();
        }
        self.have_trouble(None);
        let taken: HashSet<IpAddr> = addresses.values().chain(bad.not_free()).copied().collect();
        for (uuid, address) in &self.addresses {
            if bad.may_name(uuid) && !taken.contains(address) {
                addresses.entry(*uuid).or_insert(*address);
            }
        }
        self.since = self.known_since(&addresses, since);
        self.is_there = true;
        let before = std::mem::replace(&mut self.addresses, addresses);
        let gone = before.keys().filter(|uuid| !self.addresses.contains_key(uuid));
        let new = self.addresses.iter().filter(|(uuid, address)| before.get(uuid) != Some(address));
        gone.chain(new.map(|(uuid, _)| uuid)).copied().collect()
    }

    /// What the source does not say was seen to happen, but for those who were there when it was looked at first.
    fn known_since(
        &self,
        addresses: &HashMap<DeviceUuid, IpAddr>,
        mut said: HashMap<DeviceUuid, UnixMillis>,
    ) -> HashMap<DeviceUuid, UnixMillis> {
        let now = UnixMillis::now();
        for (uuid, address) in addresses {
            let has_come = self.is_there && self.addresses.get(uuid) != Some(address);
            let seen = if has_come { Some(now) } else { self.since.get(uuid).copied() };
            if let (false, Some(seen)) = (said.contains_key(uuid), seen) {
                said.insert(*uuid, seen);
            }
        }
        said
    }

    /// Says whose address is another one by what a source has found.
    pub(super) fn hear(&mut self, news: Update) -> Vec<DeviceUuid> {
        match news {
            Update::Nothing => Vec::new(),
            Update::Lines(lines) => self.take(*lines),
            Update::Trouble(trouble) => {
                self.have_trouble(Some(trouble));
                Vec::new()
            }
        }
    }

    /// Records the state of the source, and logs its changes.
    pub(super) fn have_trouble(&mut self, trouble: Option<String>) {
        let Some(trouble) = trouble else {
            if self.trouble.ends() {
                tracing::info!("vpn.addresses: {} can be read again", self.name);
            }
            return;
        };
        if self.trouble.changes_to(trouble) {
            tracing::warn!("vpn.addresses: {}", self.trouble().unwrap_or_default());
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn address(&self, uuid: &DeviceUuid) -> Option<IpAddr> {
        self.addresses.get(uuid).copied()
    }

    /// Since when it is there; `None` where that is not known.
    pub(super) fn since(&self, uuid: &DeviceUuid) -> Option<UnixMillis> {
        self.since.get(uuid).copied()
    }

    /// Whether the source has told anything yet: until then nobody's absence means anything.
    pub(super) const fn is_there(&self) -> bool {
        self.is_there
    }

    pub(super) const fn bad_lines(&self) -> &Noted {
        &self.bad_lines
    }

    pub(super) fn trouble(&self) -> Option<String> {
        let name = &self.name;
        self.trouble.get().map(|why| format!("{name}: {why}; its last addresses stay"))
    }
}
