//! What commands give and get: things to make, and things as listings show them.

use std::net::IpAddr;

use crate::authz::{CredentialId, DeviceId, DeviceUuid, GrantId, PrincipalId, UnixMillis};

/// A principal that was not removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrincipalRow {
    pub id: PrincipalId,
    pub name: String,
    pub created_at: UnixMillis,
    /// Neither revoked nor expired.
    pub live_credentials: i64,
    pub live_grants: i64,
}

/// A token that nobody can be told again.
pub struct IssuedToken {
    /// The secret itself; this type has no `Debug` for its sake.
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
    /// Made where there is none of that name.
    pub fleet: Option<String>,
    pub address: Option<IpAddr>,
    /// The node that holds its VPN connection; any reaches it where this is absent.
    pub node: Option<String>,
    pub online: bool,
}

/// What to change about a device; what is absent stays.
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

/// Which devices a grant is about, in the words of a command.
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
    /// A fleet's name or a device's uuid; the number, where what it names is gone.
    pub target: Option<String>,
    pub port_min: u16,
    pub port_max: u16,
    pub created_at: UnixMillis,
    pub expires_at: Option<UnixMillis>,
    pub revoked_at: Option<UnixMillis>,
}

/// What came of ending something that may have ended before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Revoked {
    Now,
    Before(UnixMillis),
}
