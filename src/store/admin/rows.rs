//! Parameters of commands, and the rows that listings show.

use std::net::IpAddr;

use crate::authz::{CredentialId, DeviceId, DeviceUuid, GrantId, PrincipalId, UnixMillis};

/// A principal that was not removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrincipalRow {
    pub id: PrincipalId,
    pub name: String,
    pub created_at: UnixMillis,
    /// Credentials that are neither revoked nor expired.
    pub live_credentials: i64,
    /// Grants that are neither revoked nor expired.
    pub live_grants: i64,
}

/// A new token. Nobody can read it again later.
pub struct IssuedToken {
    /// The secret itself. Because of it this type has no `Debug`.
    pub token: String,
    pub credential: CredentialId,
}

/// A credential as listings show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CredentialRow {
    pub credential: CredentialId,
    pub principal: String,
    pub label: Option<String>,
    pub created_at: UnixMillis,
    pub expires_at: Option<UnixMillis>,
    pub revoked_at: Option<UnixMillis>,
}

/// A device to add.
#[derive(Clone, Debug)]
pub struct NewDevice {
    pub uuid: DeviceUuid,
    pub name: Option<String>,
    /// Name of a fleet. It is made if there is none of that name.
    pub fleet: Option<String>,
    pub address: Option<IpAddr>,
    /// The node that holds its VPN connection. Without one, every node can reach it.
    pub node: Option<String>,
    pub online: bool,
}

/// Changes of a device. Absent fields stay as they are.
#[derive(Clone, Debug, Default)]
pub struct DevicePatch {
    pub address: Option<IpAddr>,
    pub node: Option<String>,
    pub online: Option<bool>,
}

/// A device as listings show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceRow {
    pub id: DeviceId,
    pub uuid: String,
    pub name: Option<String>,
    pub fleet: Option<String>,
    pub address: Option<String>,
    pub node: Option<String>,
    pub online: bool,
    pub created_at: UnixMillis,
}

/// The devices of a grant, as a command names them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GrantTarget {
    Any,
    Fleet(String),
    Device(DeviceUuid),
}

/// A grant as listings show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrantRow {
    pub id: GrantId,
    pub principal: String,
    pub scope: String,
    /// A fleet's name or a device's uuid. The number instead, if the fleet or device is gone.
    pub target: Option<String>,
    pub port_min: u16,
    pub port_max: u16,
    pub created_at: UnixMillis,
    pub expires_at: Option<UnixMillis>,
    pub revoked_at: Option<UnixMillis>,
}

/// Result of revoking something that may have been revoked before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Revoked {
    Now,
    Before(UnixMillis),
}
