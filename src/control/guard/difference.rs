//! Where the store and the snapshot in force differ, row by row.

use std::collections::HashSet;

use crate::authz::{Change, Credential, Device, Grant, Revocations, RowCounts, Snapshot, UnixMillis};
use crate::store::RowKey;

/// One row before and after; never the same, and never absent from both.
#[derive(Clone, Debug)]
pub(in crate::control) struct Changed<R> {
    pub before: Option<R>,
    pub after: Option<R>,
}

/// See the module.
#[derive(Default, Debug)]
pub(in crate::control) struct Difference {
    pub credentials: Vec<Changed<Credential>>,
    pub grants: Vec<Changed<Grant>>,
    pub devices: Vec<Changed<Device>>,
}

/// Rows in which two snapshots may differ.
pub(in crate::control) enum Touched {
    Everything,
    Rows(HashSet<RowKey>),
}

impl Difference {
    pub(in crate::control) fn between(before: &Snapshot, after: &Snapshot, touched: &Touched) -> Self {
        match touched {
            Touched::Everything => Self::of_everything(before, after),
            Touched::Rows(keys) => Self::of_rows(before, after, keys),
        }
    }

    fn of_rows(before: &Snapshot, after: &Snapshot, keys: &HashSet<RowKey>) -> Self {
        let mut difference = Self::default();
        for key in keys {
            match key {
                RowKey::Credential(key) => {
                    difference.credentials.extend(changed(before.credential(key), after.credential(key)));
                }
                RowKey::Grant(id) => difference.grants.extend(changed(before.grant(*id), after.grant(*id))),
                RowKey::Device(id) => {
                    difference.devices.extend(changed(before.device(*id), after.device(*id)));
                }
                RowKey::Unreadable { .. } => {}
            }
        }
        difference
    }

    fn of_everything(before: &Snapshot, after: &Snapshot) -> Self {
        let credentials = before
            .credentials()
            .filter_map(|row| changed(Some(row), after.credential(&row.key)))
            .chain(after.credentials().filter(|row| before.credential(&row.key).is_none()).map(added));
        let grants = before
            .grants()
            .filter_map(|row| changed(Some(row), after.grant(row.id)))
            .chain(after.grants().filter(|row| before.grant(row.id).is_none()).map(added));
        let devices = before
            .devices()
            .filter_map(|row| {
                let now = after.device(row.id);
                changed(Some(row), now)
            })
            .chain(after.devices().filter(|row| before.device(row.id).is_none()).map(added));
        Self { credentials: credentials.collect(), grants: grants.collect(), devices: devices.collect() }
    }

    pub(in crate::control) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(in crate::control) fn len(&self) -> usize {
        self.credentials.len() + self.grants.len() + self.devices.len()
    }

    /// The rows that differ.
    pub(in crate::control) fn keys(&self) -> impl Iterator<Item = RowKey> {
        let credentials =
            self.credentials.iter().filter_map(Changed::any).map(|row| RowKey::Credential(row.key));
        let grants = self.grants.iter().filter_map(Changed::any).map(|row| RowKey::Grant(row.id));
        let devices = self.devices.iter().filter_map(Changed::any).map(|row| RowKey::Device(row.id));
        credentials.chain(grants).chain(devices)
    }

    /// The difference without the rows that `kept` names.
    pub(in crate::control) fn without(mut self, kept: &HashSet<RowKey>) -> Self {
        if !kept.is_empty() {
            let is_kept = |key: RowKey| kept.contains(&key);
            self.credentials.retain(|row| !row.any().is_some_and(|row| is_kept(RowKey::Credential(row.key))));
            self.grants.retain(|row| !row.any().is_some_and(|row| is_kept(RowKey::Grant(row.id))));
            self.devices.retain(|row| !row.any().is_some_and(|row| is_kept(RowKey::Device(row.id))));
        }
        self
    }

    /// Returns the changes that lead from before to after.
    pub(in crate::control) fn changes(&self) -> Vec<Change> {
        let credentials = self.credentials.iter().filter_map(|row| match (&row.before, &row.after) {
            (_, Some(after)) => Some(Change::Credential(*after)),
            (Some(before), None) => Some(Change::CredentialGone(before.key)),
            (None, None) => None,
        });
        let grants = self.grants.iter().filter_map(|row| match (&row.before, &row.after) {
            (_, Some(after)) => Some(Change::Grant(*after)),
            (Some(before), None) => Some(Change::GrantGone(before.id)),
            (None, None) => None,
        });
        let devices = self.devices.iter().filter_map(|row| match (&row.before, &row.after) {
            (_, Some(after)) => Some(Change::Device(after.clone())),
            (Some(before), None) => Some(Change::DeviceGone(before.id)),
            (None, None) => None,
        });
        // What goes, goes first: a new device may have the uuid of one that goes.
        let (gone, rest): (Vec<_>, Vec<_>) =
            credentials.chain(grants).chain(devices).partition(|change| change.is_gone());
        gone.into_iter().chain(rest).collect()
    }

    /// Live credentials that are there no more and that nothing revoked.
    pub(in crate::control) fn lost_credentials<'a>(
        &'a self,
        revocations: &'a Revocations,
        now: UnixMillis,
    ) -> impl Iterator<Item = &'a Credential> {
        vanished(&self.credentials).filter(move |row| is_live_credential(row, revocations, now))
    }

    /// Returns the live grants that vanished.
    pub(in crate::control) fn lost_grants<'a>(
        &'a self,
        revocations: &'a Revocations,
        now: UnixMillis,
    ) -> impl Iterator<Item = &'a Grant> {
        vanished(&self.grants).filter(move |row| is_live_grant(row, revocations, now))
    }

    pub(in crate::control) fn lost_devices(&self) -> impl Iterator<Item = &Device> {
        vanished(&self.devices)
    }

    /// The rows that are live and were not, less those that were and are not: how `live` has changed.
    pub(in crate::control) fn count_live(&self, mut live: RowCounts) -> RowCounts {
        live.credentials = recount(live.credentials, &self.credentials, |row| !row.revoked);
        live.grants = recount(live.grants, &self.grants, |row| !row.revoked);
        live.devices = recount(live.devices, &self.devices, |_| true);
        live
    }
}

impl<R> Changed<R> {
    /// The row as it is, or as it was.
    fn any(&self) -> Option<&R> {
        self.after.as_ref().or(self.before.as_ref())
    }
}

impl Touched {
    pub(in crate::control) fn nothing() -> Self {
        Self::Rows(HashSet::new())
    }

    pub(in crate::control) fn merge(&mut self, other: Self) {
        match other {
            Self::Everything => *self = Self::Everything,
            Self::Rows(keys) => self.add(keys),
        }
    }

    /// Adds `keys`; too many to keep are everything.
    pub(in crate::control) fn add(&mut self, keys: impl IntoIterator<Item = RowKey>) {
        if let Self::Rows(known) = self {
            known.extend(keys);
            if known.len() > TOUCHED_ROWS_MAX {
                *self = Self::Everything;
            }
        }
    }
}

pub(in crate::control) fn is_live_credential(
    row: &Credential,
    revocations: &Revocations,
    now: UnixMillis,
) -> bool {
    let has_ended = row.revoked || revocations.credential(&row.key) || revocations.principal(row.principal);
    !has_ended && row.expires_at.is_none_or(|end| end > now)
}

pub(in crate::control) fn is_live_grant(row: &Grant, revocations: &Revocations, now: UnixMillis) -> bool {
    let has_ended = row.revoked || revocations.grant(row) || revocations.principal(row.principal);
    !has_ended && row.expires_at.is_none_or(|end| end > now)
}

fn changed<R: PartialEq>(before: Option<R>, after: Option<R>) -> Option<Changed<R>> {
    (before != after).then_some(Changed { before, after })
}

fn added<R>(row: R) -> Changed<R> {
    Changed { before: None, after: Some(row) }
}

fn vanished<R>(rows: &[Changed<R>]) -> impl Iterator<Item = &R> {
    rows.iter().filter(|row| row.after.is_none()).filter_map(|row| row.before.as_ref())
}

fn recount<R>(count: usize, rows: &[Changed<R>], is_live: impl Fn(&R) -> bool) -> usize {
    let of = |row: &Option<R>| usize::from(row.as_ref().is_some_and(&is_live));
    let (before, after) =
        rows.iter().fold((0, 0), |(before, after), row| (before + of(&row.before), after + of(&row.after)));
    (count + after).saturating_sub(before)
}

/// Keys that are remembered one by one; comparing everything is as fast from about here on.
const TOUCHED_ROWS_MAX: usize = 100_000;
