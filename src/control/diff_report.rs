//! Rows that are held, or that other queries would change, as `authz diff` lists them.

use std::borrow::Cow;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::api::{Group, HoldStatus};
use crate::authz::{Credential, Device, Grant, Scope, UnixMillis};
use crate::store::{Relation, RowKey};

/// The changes that are held, or those that other queries would make.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct DiffReport {
    /// Fingerprint of all changed rows, listed here or not. `authz accept` publishes exactly these.
    pub digest: String,
    /// What is held; of other queries, what the guard would hold.
    pub holds: Vec<HoldStatus>,
    pub credentials: DiffCounts,
    pub grants: DiffCounts,
    pub devices: DiffCounts,
    /// Devices that can be dialled and no longer could.
    pub devices_unlocated: usize,
    /// Rows that differ, at most [`DIFF_ROWS_MAX`].
    pub rows: Vec<DiffRow>,
}

#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct DiffCounts {
    pub gone: usize,
    pub new: usize,
    pub changed: usize,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DiffRow {
    pub relation: Cow<'static, str>,
    /// Name of the row, as in listings.
    pub row: String,
    /// Group that the change belongs to; absent for a change that no group counts.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub group: Option<Group>,
    pub before: Option<String>,
    pub after: Option<String>,
}

impl DiffReport {
    /// Counts `row`, and lists it while there is room.
    pub(super) fn push(&mut self, row: DiffRow) {
        let counts = match Relation::named(&row.relation) {
            Some(Relation::Credentials) => &mut self.credentials,
            Some(Relation::Grants) => &mut self.grants,
            Some(Relation::Devices) | None => &mut self.devices,
        };
        match (&row.before, &row.after) {
            (Some(_), Some(_)) => counts.changed += 1,
            (None, _) => counts.new += 1,
            (_, None) => counts.gone += 1,
        }
        if self.rows.len() < DIFF_ROWS_MAX {
            self.rows.push(row);
        }
    }

    pub fn by_relation(&self) -> [(&'static str, DiffCounts); 3] {
        [
            (Relation::Credentials.name(), self.credentials),
            (Relation::Grants.name(), self.grants),
            (Relation::Devices.name(), self.devices),
        ]
    }
}

impl DiffCounts {
    pub const fn total(self) -> usize {
        self.gone + self.new + self.changed
    }
}

impl DiffRow {
    pub(super) fn new(
        key: &RowKey,
        group: Option<Group>,
        before: Option<String>,
        after: Option<String>,
    ) -> Self {
        let (relation, shown) = (key.relation().name(), key.to_string());
        let row = shown.strip_prefix(relation).unwrap_or(&shown).trim().to_owned();
        Self { relation: relation.into(), row, group, before, after }
    }
}

pub(super) fn show_credential(row: &Credential) -> String {
    format!("principal {}{}", row.principal.0, show_end(row.expires_at, row.revoked))
}

pub(super) fn show_grant(row: &Grant) -> String {
    let scope = match row.scope {
        Scope::Any => "any device".to_owned(),
        Scope::Fleet(id) => format!("fleet {}", id.0),
        Scope::Device(id) => format!("device {}", id.0),
    };
    let end = show_end(row.expires_at, row.revoked);
    format!("principal {}, {scope}, ports {}-{}{end}", row.principal.0, row.ports.min(), row.ports.max())
}

pub(super) fn show_device(row: &Device) -> String {
    let address = row.address.map_or("no address".to_owned(), |address| address.to_string());
    let fleet = row.fleet.map(|fleet| format!(", fleet {}", fleet.0)).unwrap_or_default();
    let node = row.node.as_ref().map(|node| format!(", on {node}")).unwrap_or_default();
    let online = if row.online { "" } else { ", offline" };
    format!("{} at {address}{fleet}{node}{online}", row.uuid)
}

fn show_end(expires_at: Option<UnixMillis>, revoked: bool) -> String {
    let time = |end: UnixMillis| match Timestamp::from_millisecond(end.0) {
        Ok(time) => format!(", until {time:.0}"),
        Err(_) => format!(", until {} ms", end.0),
    };
    let end = expires_at.map(time).unwrap_or_default();
    if revoked { format!("{end}, revoked") } else { end }
}

/// Rows that a report lists. Counts are of all.
pub const DIFF_ROWS_MAX: usize = 1_000;
