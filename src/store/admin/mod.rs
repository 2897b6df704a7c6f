//! The writing side, for the store commands and the demo. The relay never comes here.
//!
//! What is the same for every kind of store: what there is to write, what can be wrong with it, and
//! [`Admin`], which hands each call to the store that it was opened for.

pub(super) mod names;
mod rows;
pub(super) mod token;

pub use names::Nearest;
pub use rows::{
    CredentialRow, DevicePatch, DeviceRow, GrantRow, GrantTarget, IssuedToken, NewDevice, PrincipalRow,
    Revoked,
};

use super::{Initialised, StoreError, postgres, sqlite};
use crate::authz::{DeviceId, DeviceUuid, GrantId, PortRange, PrincipalId, UnixMillis};
use crate::config::{Store, StoreUrl};

/// An open store that may be changed. Each call is one transaction.
pub enum Admin {
    Sqlite(sqlite::Admin),
    Postgres(postgres::Admin),
}

/// Why a change was not made; each text ends in what to do.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("no principal is named `{name}`; {nearest}")]
    PrincipalUnknown { name: String, nearest: Nearest },
    #[error("a principal named `{name}` exists; choose another name")]
    PrincipalExists { name: String },
    #[error("no credential is called {id}; `sluicegate token list` shows them all")]
    CredentialUnknown { id: String },
    #[error("no device has the uuid {uuid}; {nearest}")]
    DeviceUnknown { uuid: String, nearest: Nearest },
    #[error("a device with the uuid {uuid} exists; `sluicegate device set` changes it")]
    DeviceExists { uuid: String },
    #[error("no fleet is named `{name}`; {nearest}")]
    FleetUnknown { name: String, nearest: Nearest },
    #[error("no grant has the number {id}; `sluicegate grant list` shows them all")]
    GrantUnknown { id: i64 },
    #[error("`{name}` is no good name; use 1 to {max} printable characters", max = names::NAME_CHARS_MAX)]
    Name { name: String },
    #[error("the system gave no random bytes ({0}); try again")]
    Random(getrandom::Error),
}

/// Hands a call to whichever store it is.
macro_rules! on_store {
    ($self:expr, $admin:ident => $call:expr) => {
        match $self {
            Admin::Sqlite($admin) => $call,
            Admin::Postgres($admin) => $call,
        }
    };
}

impl Admin {
    /// Makes the store, or brings it to this program's schema.
    pub fn init(store: &Store) -> Result<Initialised, StoreError> {
        match &store.url {
            StoreUrl::Sqlite(path) => sqlite::Admin::init(path),
            StoreUrl::Postgres(url) => postgres::Admin::init(url, store),
        }
    }

    /// Opens the store, which must exist and be of this program's schema.
    pub fn open(store: &Store) -> Result<Self, StoreError> {
        match &store.url {
            StoreUrl::Sqlite(path) => sqlite::Admin::open(path).map(Self::Sqlite),
            StoreUrl::Postgres(url) => postgres::Admin::open(url, store).map(Self::Postgres),
        }
    }

    pub fn add_principal(&mut self, name: &str) -> Result<PrincipalId, AdminError> {
        on_store!(self, admin => admin.add_principal(name))
    }

    pub fn principals(&mut self) -> Result<Vec<PrincipalRow>, AdminError> {
        on_store!(self, admin => admin.principals())
    }

    /// Ends the principal and everything that it holds. Its name is free again, its number is not.
    pub fn remove_principal(&mut self, name: &str) -> Result<PrincipalId, AdminError> {
        on_store!(self, admin => admin.remove_principal(name))
    }

    pub fn issue_token(
        &mut self,
        principal: &str,
        label: Option<&str>,
        expires_at: Option<UnixMillis>,
    ) -> Result<IssuedToken, AdminError> {
        on_store!(self, admin => admin.issue_token(principal, label, expires_at))
    }

    pub fn credentials(&mut self) -> Result<Vec<CredentialRow>, AdminError> {
        on_store!(self, admin => admin.credentials())
    }

    /// Revokes the credential that listings show as `id`: the first 16 hex digits of its key.
    pub fn revoke_credential(&mut self, id: &str) -> Result<Revoked, AdminError> {
        on_store!(self, admin => admin.revoke_credential(id))
    }

    pub fn add_device(&mut self, device: &NewDevice) -> Result<DeviceId, AdminError> {
        on_store!(self, admin => admin.add_device(device))
    }

    pub fn set_device(&mut self, uuid: DeviceUuid, patch: &DevicePatch) -> Result<(), AdminError> {
        on_store!(self, admin => admin.set_device(uuid, patch))
    }

    pub fn devices(&mut self) -> Result<Vec<DeviceRow>, AdminError> {
        on_store!(self, admin => admin.devices())
    }

    /// Deletes the device; what was granted on it alone is revoked.
    pub fn remove_device(&mut self, uuid: DeviceUuid) -> Result<DeviceId, AdminError> {
        on_store!(self, admin => admin.remove_device(uuid))
    }

    pub fn add_grant(
        &mut self,
        principal: &str,
        target: &GrantTarget,
        ports: PortRange,
        expires_at: Option<UnixMillis>,
    ) -> Result<GrantId, AdminError> {
        on_store!(self, admin => admin.add_grant(principal, target, ports, expires_at))
    }

    pub fn grants(&mut self) -> Result<Vec<GrantRow>, AdminError> {
        on_store!(self, admin => admin.grants())
    }

    pub fn revoke_grant(&mut self, id: GrantId) -> Result<Revoked, AdminError> {
        on_store!(self, admin => admin.revoke_grant(id))
    }
}
