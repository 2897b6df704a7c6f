//! The embedded store: an SQLite file in WAL mode. The relay reads it ([`SqliteSource`]), the store
//! commands write it ([`Admin`]), both at the same time.

mod admin;
mod locations;
mod nodes;
mod outbox;
mod relations;
mod schema;
mod source;
mod writer;

use std::path::{Path, PathBuf};

use rusqlite::ErrorCode;

pub use admin::Admin;
pub use locations::SqliteLocations;
pub use nodes::SqliteNodes;
pub(super) use relations::QUERIES;
pub use source::SqliteSource;

pub use super::Initialised;
pub use super::admin::{
    AdminError, CredentialRow, DevicePatch, DeviceRow, GrantRow, GrantTarget, IssuedToken, NewDevice,
    PrincipalRow, Revoked,
};
use super::{Relation, StoreError};

/// Rows that the outbox keeps. A relay that missed more than that reads everything, which is then about
/// as fast as reading so many rows one by one.
const OUTBOX_ROWS_MAX: i64 = 100_000;

/// The path of a store file; names it in errors.
#[derive(Clone, Debug)]
struct Place {
    path: PathBuf,
}

impl Place {
    fn new(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    fn describe(&self) -> String {
        format!("sqlite:{}", self.path.display())
    }

    fn missing(&self) -> StoreError {
        StoreError::Missing { store: self.describe() }
    }

    fn unreadable(&self, detail: impl ToString) -> StoreError {
        StoreError::Unreadable { store: self.describe(), detail: detail.to_string() }
    }

    /// As [`Place::error`], of the query for `relation`: what is wrong with a query breaks the contract.
    fn relation_error(&self, relation: Relation, error: rusqlite::Error) -> StoreError {
        match self.error(error) {
            StoreError::Query { store, detail } => {
                StoreError::Contract { store, relation: relation.name(), detail }
            }
            other => other,
        }
    }

    /// Sorts what SQLite says by what a person can do about it.
    fn error(&self, error: rusqlite::Error) -> StoreError {
        let (store, detail) = (self.describe(), detail(&error));
        match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => StoreError::Locked { store },
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
                StoreError::Corrupt { store, detail }
            }
            Some(ErrorCode::CannotOpen) if !self.path.exists() => StoreError::Missing { store },
            Some(
                ErrorCode::CannotOpen
                | ErrorCode::PermissionDenied
                | ErrorCode::ReadOnly
                | ErrorCode::SystemIoFailure
                | ErrorCode::FileLockingProtocolFailed
                | ErrorCode::DiskFull,
            ) => StoreError::Unreadable { store, detail },
            _ => StoreError::Query { store, detail },
        }
    }
}

/// One line, without the statement that rusqlite would add.
fn detail(error: &rusqlite::Error) -> String {
    match error {
        rusqlite::Error::SqliteFailure(_, Some(message))
        | rusqlite::Error::SqlInputError { msg: message, .. } => message.clone(),
        other => other.to_string(),
    }
}
