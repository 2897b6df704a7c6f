//! Rows and ends in the form in which the files have them.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::authz::{
    Change, Credential, Device, DeviceId, DeviceUuid, End, FleetId, Grant, GrantId, Incarnation, KeyHash,
    PortRange, PrincipalId, Scope, UnixMillis,
};

/// `key, principal, expires_at, revoked`
pub(super) type CredentialFields = ([u8; 32], i64, Option<i64>, bool);

/// `id, principal, scope, port_min, port_max, expires_at, revoked`
pub(super) type GrantFields = (i64, i64, ScopeFields, u16, u16, Option<i64>, bool);

/// `id, uuid, fleet, address, node, online`
pub(super) type DeviceFields = (i64, String, Option<i64>, Option<IpAddr>, Option<String>, bool);

#[derive(Serialize, Deserialize)]
pub(super) enum ScopeFields {
    Any,
    Fleet(i64),
    Device(i64),
}

/// A row that changed.
#[derive(Serialize, Deserialize)]
pub(super) enum ChangeFields {
    Credential(CredentialFields),
    CredentialGone([u8; 32]),
    Grant(GrantFields),
    GrantGone(i64),
    Device(DeviceFields),
    DeviceGone(i64),
    PrincipalGone(i64),
}

#[derive(Serialize, Deserialize)]
pub(super) enum EndFields {
    Credential([u8; 32]),
    /// Number and incarnation.
    Grant(i64, u64),
    Principal(i64),
}

pub(super) fn credential_fields(row: &Credential) -> CredentialFields {
    (*row.key.as_bytes(), row.principal.0, row.expires_at.map(|end| end.0), row.revoked)
}

pub(super) fn grant_fields(row: &Grant) -> GrantFields {
    let scope = match row.scope {
        Scope::Any => ScopeFields::Any,
        Scope::Fleet(id) => ScopeFields::Fleet(id.0),
        Scope::Device(id) => ScopeFields::Device(id.0),
    };
    let expires_at = row.expires_at.map(|end| end.0);
    (row.id.0, row.principal.0, scope, row.ports.min(), row.ports.max(), expires_at, row.revoked)
}

pub(super) fn device_fields(row: &Device) -> DeviceFields {
    let node = row.node.as_deref().map(String::from);
    (row.id.0, row.uuid.to_string(), row.fleet.map(|fleet| fleet.0), row.address, node, row.online)
}

pub(super) fn credential((key, principal, expires_at, revoked): CredentialFields) -> Credential {
    Credential {
        key: KeyHash::from_bytes(key),
        principal: PrincipalId(principal),
        expires_at: expires_at.map(UnixMillis),
        revoked,
    }
}

/// `None` for ports that are no range.
pub(super) fn grant((id, principal, scope, min, max, expires_at, revoked): GrantFields) -> Option<Grant> {
    let scope = match scope {
        ScopeFields::Any => Scope::Any,
        ScopeFields::Fleet(id) => Scope::Fleet(FleetId(id)),
        ScopeFields::Device(id) => Scope::Device(DeviceId(id)),
    };
    let (ports, expires_at) = (PortRange::new(min, max)?, expires_at.map(UnixMillis));
    Some(Grant { id: GrantId(id), principal: PrincipalId(principal), scope, ports, expires_at, revoked })
}

/// `None` for a uuid that is none.
pub(super) fn device((id, uuid, fleet, address, node, online): DeviceFields) -> Option<Device> {
    let (uuid, fleet) = (DeviceUuid::parse(&uuid)?, fleet.map(FleetId));
    let (id, node) = (DeviceId(id), node.map(Box::from));
    // Whose an address is gets worked out anew at each start.
    Some(Device { id, uuid, fleet, address, node, online, disputed: false })
}

impl ChangeFields {
    pub(super) fn of(change: &Change) -> Self {
        match change {
            Change::Credential(row) => Self::Credential(credential_fields(row)),
            Change::CredentialGone(key) => Self::CredentialGone(*key.as_bytes()),
            Change::Grant(row) => Self::Grant(grant_fields(row)),
            Change::GrantGone(id) => Self::GrantGone(id.0),
            Change::Device(row) => Self::Device(device_fields(row)),
            Change::DeviceGone(id) => Self::DeviceGone(id.0),
            Change::PrincipalGone(id) => Self::PrincipalGone(id.0),
        }
    }

    /// `None` for a row that does not decode.
    pub(super) fn change(self) -> Option<Change> {
        Some(match self {
            Self::Credential(fields) => Change::Credential(credential(fields)),
            Self::CredentialGone(key) => Change::CredentialGone(KeyHash::from_bytes(key)),
            Self::Grant(fields) => Change::Grant(grant(fields)?),
            Self::GrantGone(id) => Change::GrantGone(GrantId(id)),
            Self::Device(fields) => Change::Device(device(fields)?),
            Self::DeviceGone(id) => Change::DeviceGone(DeviceId(id)),
            Self::PrincipalGone(id) => Change::PrincipalGone(PrincipalId(id)),
        })
    }
}

impl EndFields {
    pub(super) fn of(end: &End) -> Self {
        match end {
            End::Credential(key) => Self::Credential(*key.as_bytes()),
            End::Grant(id, incarnation) => Self::Grant(id.0, incarnation.0),
            End::Principal(id) => Self::Principal(id.0),
        }
    }

    pub(super) fn end(self) -> End {
        match self {
            Self::Credential(key) => End::Credential(KeyHash::from_bytes(key)),
            Self::Grant(id, incarnation) => End::Grant(GrantId(id), Incarnation(incarnation)),
            Self::Principal(id) => End::Principal(PrincipalId(id)),
        }
    }
}
