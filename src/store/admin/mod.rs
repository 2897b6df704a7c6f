//! Changes that the store commands and the demo make. The relay makes none of them.
//!
//! Each command is written once, for every kind of store: [`Admin`] runs it through `SqlDatabase`.

mod credentials;
mod devices;
mod grants;
mod names;
mod principals;
mod rows;
mod token;

pub use names::Nearest;
pub use rows::{
    CredentialRow, DevicePatch, DeviceRow, GrantRow, GrantTarget, IssuedToken, NewDevice, PrincipalRow,
    Revoked,
};

use super::StoreError;
use super::sql::{SqlDatabase, SqlTransaction, TransactionKind};
use super::value::{ColumnValue, Reason, StoreRow};

/// An open store that may be changed. Each call is one transaction.
pub struct Admin {
    database: Box<dyn SqlDatabase>,
}

/// Reason why a change was not made. Each text ends in what to do.
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

impl Admin {
    pub(super) fn new(database: impl SqlDatabase + 'static) -> Self {
        Self { database: Box::new(database) }
    }

    /// Changes the store by `change`, completely or not at all.
    fn write<T>(
        &mut self,
        change: impl FnOnce(&dyn SqlTransaction) -> Result<T, AdminError>,
    ) -> Result<T, AdminError> {
        self.database.transaction(TransactionKind::Write, change)
    }

    /// Lists the rows that `query` gives.
    fn list<T>(
        &mut self,
        query: &str,
        decode: impl Fn(&dyn StoreRow) -> Result<T, Reason>,
    ) -> Result<Vec<T>, AdminError> {
        self.database.transaction(TransactionKind::Read, |store| Ok(store.rows(query, &[], decode)?))
    }
}

/// Finds the name that `name` may have been meant to be, among those that `query` gives.
fn nearest(
    store: &dyn SqlTransaction,
    query: &str,
    name: &str,
    otherwise: &'static str,
) -> Result<Nearest, AdminError> {
    let text = |row: &dyn StoreRow| Ok(ColumnValue::of(row, 0, "name").text()?.to_owned());
    Ok(Nearest::among(store.rows(query, &[], text)?, name, otherwise))
}

/// Decodes the only column of a row.
fn id(row: &dyn StoreRow) -> Result<i64, Reason> {
    ColumnValue::of(row, 0, "id").integer()
}
