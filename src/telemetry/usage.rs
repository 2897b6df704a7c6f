//! Use of the node by principal, credential and device: the sums that engine threads keep, and how they are added up.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use serde::{Deserialize, Serialize};

use crate::authz::{CredentialId, DeviceId, DeviceUuid, PrincipalId};

/// The principal, the credential and the device that a tunnel counts for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct UsageKey {
    pub principal: PrincipalId,
    pub credential: Option<CredentialId>,
    pub device: DeviceId,
}

/// Sums of what tunnels have used. Each is of the time since the last count; `open` is the number at that time.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct UsageSums {
    /// Bytes from client to device.
    pub bytes_up: u64,
    pub bytes_down: u64,
    /// Tunnels that opened.
    pub opened: u64,
    /// Tunnels that were open at the last count.
    pub open: u64,
    /// Time that tunnels were open, all together.
    pub tunnel_ms: u64,
}

/// The sums of one key, with the name by which clients know the device.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct UsageRow {
    pub key: UsageKey,
    pub uuid: Option<DeviceUuid>,
    pub sums: UsageSums,
}

/// Sums by key, of [`USAGE_KEYS_MAX`] keys at most. Further keys are summed in one row, so that totals stay right.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct UsageTable {
    rows: HashMap<UsageKey, (Option<DeviceUuid>, UsageSums)>,
    others: UsageSums,
}

impl UsageSums {
    pub fn add(&mut self, more: &Self) {
        self.bytes_up = self.bytes_up.saturating_add(more.bytes_up);
        self.bytes_down = self.bytes_down.saturating_add(more.bytes_down);
        self.opened = self.opened.saturating_add(more.opened);
        self.open = self.open.saturating_add(more.open);
        self.tunnel_ms = self.tunnel_ms.saturating_add(more.tunnel_ms);
    }

    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

impl UsageTable {
    /// Makes an empty table with room for the keys of so many tunnels.
    pub fn with_room_for(tunnels: usize) -> Self {
        Self { rows: HashMap::with_capacity(tunnels.min(USAGE_KEYS_MAX)), others: UsageSums::default() }
    }

    pub fn add(&mut self, row: &UsageRow) {
        let has_room = self.rows.len() < USAGE_KEYS_MAX;
        match self.rows.entry(row.key) {
            Entry::Occupied(mut known) => known.get_mut().1.add(&row.sums),
            Entry::Vacant(place) if has_room => _ = place.insert((row.uuid, row.sums)),
            Entry::Vacant(_) => self.others.add(&row.sums),
        }
    }

    /// Adds sums of keys that were beyond another table's bound.
    pub fn add_others(&mut self, sums: &UsageSums) {
        self.others.add(sums);
    }

    pub fn add_table(&mut self, other: &Self) {
        other.rows().for_each(|row| self.add(&row));
        self.others.add(&other.others);
    }

    /// Forgets how many tunnels were open, before they are counted anew.
    pub fn clear_open(&mut self) {
        self.rows.values_mut().for_each(|(_, sums)| sums.open = 0);
        self.others.open = 0;
    }

    pub fn rows(&self) -> impl Iterator<Item = UsageRow> {
        self.rows.iter().map(|(key, (uuid, sums))| UsageRow { key: *key, uuid: *uuid, sums: *sums })
    }

    /// The sums of the keys beyond the bound.
    pub fn others(&self) -> UsageSums {
        self.others
    }

    /// Number of keys that have a row.
    pub fn keys(&self) -> usize {
        self.rows.len()
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.others.is_nothing()
    }
}

/// Bound on the keys of one interval that have rows of their own. As many as a large node has devices in use; with 10,000 rows a
/// table takes some 2 MiB.
pub const USAGE_KEYS_MAX: usize = 10_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn row(device: i64, bytes_up: u64) -> UsageRow {
        let key = UsageKey { principal: PrincipalId(1), credential: None, device: DeviceId(device) };
        let sums = UsageSums { bytes_up, opened: 1, open: 1, tunnel_ms: 5, ..UsageSums::default() };
        UsageRow { key, uuid: None, sums }
    }

    fn total(table: &UsageTable) -> UsageSums {
        let mut total = table.others();
        table.rows().for_each(|row| total.add(&row.sums));
        total
    }

    #[test]
    fn keys_beyond_the_bound_are_summed_in_one_row_and_totals_stay_right() {
        let mut table = UsageTable::with_room_for(usize::MAX);
        let keys = USAGE_KEYS_MAX as i64 + 7;
        for device in 0..keys {
            table.add(&row(device, 10));
        }
        // Those that are known still have rows of their own.
        table.add(&row(0, 1));
        assert_eq!((table.keys(), table.others().bytes_up), (USAGE_KEYS_MAX, 70));
        assert_eq!(total(&table).bytes_up, 10 * keys as u64 + 1);

        let mut merged = UsageTable::default();
        merged.add(&row(keys, 3));
        merged.add_table(&table);
        assert_eq!(merged.keys(), USAGE_KEYS_MAX);
        assert_eq!(total(&merged).bytes_up, 10 * keys as u64 + 4);
    }
}
