//! Queries to the snapshot and their decisions: never a bare bool, and always with the reason.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::{
    CredentialId, DeviceId, DeviceUuid, Generation, Grant, GrantId, KeyHash, PortRange, PrincipalId, Scope,
    UnixMillis,
};
use crate::wire::Reply;

/// A client's query: may I reach that device and port?
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Query {
    /// `None` where the head carried no credential.
    pub subject: Option<Subject>,
    /// `None` where the name in the head cannot be a device's uuid.
    pub device: Option<DeviceUuid>,
    pub port: u16,
}

/// The requester, by the token in the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Subject {
    /// Whoever holds the credential with this key.
    Key(KeyHash),
    /// The principal that a session token names.
    Principal {
        id: PrincipalId,
        /// The hash of the token. It is no credential of the store, but can be revoked like one.
        token: KeyHash,
        /// Time when the token itself expires.
        until: UnixMillis,
    },
    /// Whoever holds the credential whose key was made from a secret in a session token.
    Secret {
        key: KeyHash,
        /// Principal that has to hold the credential, where the token names one.
        principal: Option<PrincipalId>,
        /// Time when the token itself expires.
        until: UnixMillis,
    },
    /// A user of openBalena who has logged in.
    Login {
        /// The key of the credential that was made from the user's secret.
        key: KeyHash,
        user: LoginUser,
        /// Principal whose rights the login has. `None`: those of its user.
        acts_as: Option<PrincipalId>,
        /// Time when the token itself expires.
        until: UnixMillis,
    },
    /// Whoever holds a session token that opens these ports of every device by itself.
    Bearer {
        id: PrincipalId,
        /// The hash of the token.
        token: KeyHash,
        ports: PortRange,
        /// Time when the token itself expires.
        until: UnixMillis,
    },
}

/// The user that a login names. The number of such a principal is the user's number in its upper 32 bits, and that of
/// the user's actor in the lower ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum LoginUser {
    Number(u32),
    Actor(u32),
}

impl LoginUser {
    /// Returns whether `principal` is this user.
    #[inline]
    pub const fn is(self, principal: PrincipalId) -> bool {
        match self {
            Self::Number(number) => principal.0 >> 32 == number as i64,
            Self::Actor(actor) => principal.0 > u32::MAX as i64 && principal.0 as u32 == actor,
        }
    }
}

impl Subject {
    /// The key whose first bytes name the credential in logs.
    #[inline]
    pub const fn key(&self) -> &KeyHash {
        match self {
            Self::Key(key)
            | Self::Principal { token: key, .. }
            | Self::Secret { key, .. }
            | Self::Login { key, .. }
            | Self::Bearer { token: key, .. } => key,
        }
    }

    /// The key of the credential in the store that everything rests on, where it rests on one.
    #[inline]
    pub const fn credential(&self) -> Option<&KeyHash> {
        match self {
            Self::Key(key) | Self::Secret { key, .. } | Self::Login { key, .. } => Some(key),
            Self::Principal { .. } | Self::Bearer { .. } => None,
        }
    }

    /// The principal whose rights count in the place of those of the credential's.
    #[inline]
    pub const fn acts_as(&self) -> Option<PrincipalId> {
        match self {
            Self::Login { acts_as, .. } => *acts_as,
            _ => None,
        }
    }

    /// The grant that the token itself is, where it is one.
    #[inline]
    pub const fn carried_grant(&self) -> Option<Grant> {
        match self {
            Self::Bearer { id, ports, .. } => Some(Grant {
                id: GrantId::IN_TOKEN,
                principal: *id,
                scope: Scope::Any,
                ports: *ports,
                expires_at: None,
                revoked: false,
            }),
            _ => None,
        }
    }

    /// Returns whether `principal` is the one that the token names, where it names one.
    #[inline]
    pub fn names(&self, principal: PrincipalId) -> bool {
        match self {
            Self::Secret { principal: Some(named), .. } => *named == principal,
            Self::Login { user, .. } => user.is(principal),
            _ => true,
        }
    }

    /// Time when the token itself expires, whatever the store says.
    #[inline]
    pub const fn until(&self) -> Option<UnixMillis> {
        match self {
            Self::Key(_) => None,
            Self::Principal { until, .. }
            | Self::Secret { until, .. }
            | Self::Login { until, .. }
            | Self::Bearer { until, .. } => Some(*until),
        }
    }
}

impl From<KeyHash> for Subject {
    fn from(key: KeyHash) -> Self {
        Self::Key(key)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    Allow(Route),
    Refuse(Refusal),
    Undecided(Undecided),
}

/// Permission to dial one address, and the rights that it rests on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    pub address: IpAddr,
    pub port: u16,
    pub credential: CredentialId,
    pub principal: PrincipalId,
    pub device: DeviceId,
    pub grant: GrantId,
    pub generation: Generation,
    /// The first instant at which a right that this rests on expires.
    pub expires_at: Option<UnixMillis>,
}

/// Permission to reach a device by another node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerRoute<'a> {
    /// Name of the node that holds the device's VPN connection.
    pub node: &'a str,
    pub right: DeviceRight,
}

/// Permission to reach a device, wherever it is, and the rows that it rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceRight {
    pub principal: PrincipalId,
    pub device: DeviceId,
    pub grant: GrantId,
    /// The first instant at which a right that this rests on expires.
    pub expires_at: Option<UnixMillis>,
}

/// Reason why a client may not. [`Refusal::reply`] is what the client gets; `telemetry::Cause` names the reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Refusal {
    CredentialMissing,
    CredentialUnknown,
    CredentialExpired,
    CredentialRevoked,
    /// A session token names another principal than the one that its secret belongs to.
    PrincipalMismatch,
    /// The principal was removed, with every credential and grant that it held.
    PrincipalRevoked,
    DeviceUnknown,
    /// No grant of this principal names the device, its fleet or `any`.
    NoGrant,
    /// A grant names the device, but not this port.
    PortNotGranted,
    GrantExpired,
    GrantRevoked,
    /// Permitted, but the device has no VPN connection, or no address is known for it.
    DeviceOffline,
    /// Permitted, but another node holds the device's VPN connection and this one cannot forward there.
    DeviceElsewhere,
    /// Permitted, but it cannot be told whose the device's address is.
    DeviceDisputed,
}

impl Refusal {
    /// The line that the client sees. Unknown devices and missing permissions share one reply, so that
    /// nobody learns which uuids exist.
    pub const fn reply(self) -> Reply {
        match self {
            Self::CredentialMissing
            | Self::CredentialUnknown
            | Self::CredentialExpired
            | Self::CredentialRevoked
            | Self::PrincipalMismatch
            | Self::PrincipalRevoked => Reply::Credentials,
            Self::DeviceUnknown
            | Self::NoGrant
            | Self::PortNotGranted
            | Self::GrantExpired
            | Self::GrantRevoked => Reply::NotPermitted,
            Self::DeviceOffline | Self::DeviceElsewhere => Reply::DeviceOffline,
            Self::DeviceDisputed => Reply::DeviceDisputed,
        }
    }

    /// Returns whether the right is there, and only a way to the device is missing.
    pub const fn is_of_location(self) -> bool {
        matches!(self, Self::DeviceOffline | Self::DeviceElsewhere | Self::DeviceDisputed)
    }

    /// Returns whether somebody revoked a right. An expired or missing right is no revocation.
    pub const fn is_revocation(self) -> bool {
        matches!(self, Self::CredentialRevoked | Self::PrincipalRevoked | Self::GrantRevoked)
    }
}

/// Reason why the node cannot decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Undecided {
    /// No snapshot was ever published, or what would refuse may be missing in the first one: peers have it.
    NoSnapshot,
    /// The store has not confirmed the snapshot for longer than `authz.max_stale`.
    Stale,
    /// The credential is not in the snapshot, and the store cannot be asked whether it is new.
    StoreUnreachable,
}
