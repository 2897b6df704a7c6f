//! A row of any relation, and what a change of it amounts to.

use crate::authz::{Change, Credential, Device, DeviceUuid, Grant, Scope, Snapshot, UnixMillis};
use crate::control::api::ChangeKind;
use crate::store::RowKey;

/// A row of any relation.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(in crate::control) enum AnyRow {
    Credential(Credential),
    Grant(Grant),
    Device(Device),
}

impl AnyRow {
    pub(in crate::control) fn key(&self) -> RowKey {
        match self {
            Self::Credential(row) => RowKey::Credential(row.key),
            Self::Grant(row) => RowKey::Grant(row.id),
            Self::Device(row) => RowKey::Device(row.id),
        }
    }

    pub(in crate::control) fn put(self) -> Change {
        match self {
            Self::Credential(row) => Change::Credential(row),
            Self::Grant(row) => Change::Grant(row),
            Self::Device(row) => Change::Device(row),
        }
    }

    /// True for a right that can be used at `now`, and for every device.
    pub(in crate::control) fn is_live(&self, now: UnixMillis) -> bool {
        let lasts = |end: Option<UnixMillis>| end.is_none_or(|end| end > now);
        match self {
            Self::Credential(row) => !row.revoked && lasts(row.expires_at),
            Self::Grant(row) => !row.revoked && lasts(row.expires_at),
            Self::Device(_) => true,
        }
    }

    pub(in crate::control) fn is_revoked(&self) -> bool {
        match self {
            Self::Credential(row) => row.revoked,
            Self::Grant(row) => row.revoked,
            Self::Device(_) => false,
        }
    }

    /// The row with its end recorded; a device has none.
    pub(in crate::control) fn revoked(self) -> Option<Self> {
        match self {
            Self::Credential(row) => Some(Self::Credential(Credential { revoked: true, ..row })),
            Self::Grant(row) => Some(Self::Grant(Grant { revoked: true, ..row })),
            Self::Device(_) => None,
        }
    }

    /// The name by which clients know a device; other rows have none.
    pub(in crate::control) fn uuid(&self) -> Option<DeviceUuid> {
        match self {
            Self::Device(row) => Some(row.uuid),
            Self::Credential(_) | Self::Grant(_) => None,
        }
    }

    /// True for a grant whose number names another right than `other`'s: another principal or another target.
    pub(in crate::control) fn is_another_right(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Grant(a), Self::Grant(b)) => a.principal != b.principal || a.scope != b.scope,
            (Self::Device(a), Self::Device(b)) => a.uuid != b.uuid,
            _ => false,
        }
    }
}

/// The row that `snapshot` has under `key`.
pub(in crate::control) fn row_of(snapshot: &Snapshot, key: &RowKey) -> Option<AnyRow> {
    match key {
        RowKey::Credential(key) => snapshot.credential(key).map(AnyRow::Credential),
        RowKey::Grant(id) => snapshot.grant(*id).map(AnyRow::Grant),
        RowKey::Device(id) => snapshot.device(*id).map(AnyRow::Device),
        RowKey::Unreadable { .. } => None,
    }
}

/// The change that leaves `row` under `key`.
pub(in crate::control) fn change_to(key: &RowKey, row: Option<AnyRow>) -> Option<Change> {
    match (row, key) {
        (Some(row), _) => Some(row.put()),
        (None, RowKey::Credential(key)) => Some(Change::CredentialGone(*key)),
        (None, RowKey::Grant(id)) => Some(Change::GrantGone(*id)),
        (None, RowKey::Device(id)) => Some(Change::DeviceGone(*id)),
        (None, RowKey::Unreadable { .. }) => None,
    }
}

/// The key and the row that a change leaves; `None` for a principal, which is no row.
pub(in crate::control) fn row_after(change: Change) -> Option<(RowKey, Option<AnyRow>)> {
    Some(match change {
        Change::Credential(row) => (RowKey::Credential(row.key), Some(AnyRow::Credential(row))),
        Change::CredentialGone(key) => (RowKey::Credential(key), None),
        Change::Grant(row) => (RowKey::Grant(row.id), Some(AnyRow::Grant(row))),
        Change::GrantGone(id) => (RowKey::Grant(id), None),
        Change::Device(row) => (RowKey::Device(row.id), Some(AnyRow::Device(row))),
        Change::DeviceGone(id) => (RowKey::Device(id), None),
        Change::PrincipalGone(_) => return None,
    })
}

/// Classifies the change from `before` to `after`; `None` where it changes no decision, or only gives back a location.
pub(in crate::control) fn classify(
    before: Option<&AnyRow>,
    after: Option<&AnyRow>,
    now: UnixMillis,
) -> Option<ChangeKind> {
    let before = before.filter(|row| row.is_live(now));
    match (before, after) {
        (None, None) => None,
        (None, Some(after)) => after.is_live(now).then_some(ChangeKind::Gained),
        (Some(_), None) => Some(ChangeKind::Absent),
        (Some(_), Some(after)) if !after.is_live(now) => Some(ChangeKind::Ended),
        (Some(AnyRow::Credential(before)), Some(AnyRow::Credential(after))) => credential(before, after),
        (Some(AnyRow::Grant(before)), Some(AnyRow::Grant(after))) => grant(before, after),
        (Some(AnyRow::Device(before)), Some(AnyRow::Device(after))) => device(before, after),
        // Rows of one key are of one relation.
        _ => Some(ChangeKind::Reassigned),
    }
}

fn credential(before: &Credential, after: &Credential) -> Option<ChangeKind> {
    if before.principal != after.principal {
        return Some(ChangeKind::Reassigned);
    }
    lasting(before.expires_at, after.expires_at)
}

fn grant(before: &Grant, after: &Grant) -> Option<ChangeKind> {
    if before.principal != after.principal {
        return Some(ChangeKind::Reassigned);
    }
    let ports = if before.ports == after.ports {
        None
    } else if before.ports.min() <= after.ports.min() && after.ports.max() <= before.ports.max() {
        Some(ChangeKind::Narrowed)
    } else if after.ports.min() <= before.ports.min() && before.ports.max() <= after.ports.max() {
        Some(ChangeKind::Widened)
    } else {
        Some(ChangeKind::Reassigned)
    };
    let together = [scope(before.scope, after.scope), ports, lasting(before.expires_at, after.expires_at)];
    together.into_iter().flatten().reduce(|all, kind| if all == kind { all } else { ChangeKind::Reassigned })
}

fn scope(before: Scope, after: Scope) -> Option<ChangeKind> {
    match (before, after) {
        (before, after) if before == after => None,
        (_, Scope::Any) => Some(ChangeKind::Widened),
        (Scope::Any, _) => Some(ChangeKind::Narrowed),
        _ => Some(ChangeKind::Reassigned),
    }
}

fn lasting(before: Option<UnixMillis>, after: Option<UnixMillis>) -> Option<ChangeKind> {
    match (before, after) {
        (before, after) if before == after => None,
        (_, None) => Some(ChangeKind::Widened),
        (None, Some(_)) => Some(ChangeKind::Narrowed),
        (Some(before), Some(after)) if after < before => Some(ChangeKind::Narrowed),
        _ => Some(ChangeKind::Widened),
    }
}

fn device(before: &Device, after: &Device) -> Option<ChangeKind> {
    if before.uuid != after.uuid || before.fleet != after.fleet {
        return Some(ChangeKind::Reassigned);
    }
    match (is_located(before), is_located(after)) {
        (true, false) => Some(ChangeKind::Unlocated),
        (true, true) if before.address != after.address || before.node != after.node => {
            Some(ChangeKind::Moved)
        }
        _ => None,
    }
}

/// True where some node can reach the device: by its address, or because it holds the device's VPN connection.
pub(in crate::control) fn is_located(device: &Device) -> bool {
    device.online && (device.address.is_some() || device.node.is_some())
}
