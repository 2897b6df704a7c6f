//! The embedded store: an SQLite file in WAL mode. The relay reads it ([`SqliteReader`]), and the store commands write
//! it at the same time.

mod admin;
mod connection;
mod ended_reader;
mod files;
mod outbox;
mod outbox_follower;
mod position;
mod reader;
mod relations;
mod schema;
mod time_limit;
mod transaction;
mod words;
mod writer;

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::unistd::{AccessFlags, Uid, User, access};
use rusqlite::ErrorCode;

pub use admin::{init, open};
pub use reader::SqliteReader;
pub(super) use writer::SqliteWriter;

use super::StoreError;

/// Path of a store file. It names the store in errors.
#[derive(Clone, Debug)]
struct SqlitePath {
    path: PathBuf,
}

impl SqlitePath {
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

    fn replaced(&self) -> StoreError {
        StoreError::Replaced { store: self.describe() }
    }

    /// Sorts an error of the file system.
    fn file_error(&self, error: std::io::Error) -> StoreError {
        match error.kind() {
            ErrorKind::NotFound => self.missing(),
            _ => self.unreadable(error),
        }
    }

    /// Sorts an error of the query for `relation`. A mistake in the query breaks the contract.
    fn relation_error(&self, relation: &'static str, error: rusqlite::Error) -> StoreError {
        match self.error(error) {
            StoreError::Query { store, detail } => StoreError::Contract { store, relation, detail },
            other => other,
        }
    }

    /// The file beside the store that this user may not write, or the folder in which SQLite makes it; with the reason.
    fn unwritable(&self) -> Option<(PathBuf, Errno)> {
        let database = self.path.canonicalize().unwrap_or_else(|_| self.path.clone());
        let beside = ["-wal", "-shm"].map(|suffix| {
            let mut name = database.clone().into_os_string();
            name.push(suffix);
            PathBuf::from(name)
        });
        let folder = match database.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
            _ => PathBuf::from("."),
        };
        beside.into_iter().chain([folder]).find_map(|path| match access(&path, AccessFlags::W_OK) {
            Err(reason @ (Errno::EACCES | Errno::EPERM | Errno::EROFS)) => Some((path, reason)),
            _ => None,
        })
    }

    /// Sorts an error of SQLite by what a person can do about it.
    fn error(&self, error: rusqlite::Error) -> StoreError {
        let (store, detail) = (self.describe(), detail(&error));
        let code = error.sqlite_error_code();
        if let Some((path, reason)) = code.filter(is_of_files).and_then(|_| self.unwritable()) {
            let path = path.display().to_string();
            return StoreError::Unwritable { store, path, reason: reason.desc(), user: user_name() };
        }
        match code {
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

/// True for errors that a lack of rights on the files can have.
const fn is_of_files(code: &ErrorCode) -> bool {
    matches!(
        code,
        ErrorCode::CannotOpen
            | ErrorCode::PermissionDenied
            | ErrorCode::ReadOnly
            | ErrorCode::SystemIoFailure
            | ErrorCode::FileLockingProtocolFailed
    )
}

/// Name of the user that this process runs as, or its number.
fn user_name() -> String {
    let id = Uid::effective();
    User::from_uid(id).ok().flatten().map_or_else(|| format!("uid {id}"), |user| user.name)
}

/// The error in one line, without the statement that rusqlite would add.
fn detail(error: &rusqlite::Error) -> String {
    match error {
        rusqlite::Error::SqliteFailure(_, Some(message))
        | rusqlite::Error::SqlInputError { msg: message, .. } => message.clone(),
        other => other.to_string(),
    }
}

/// Rows that the outbox keeps. A relay that missed more than that reads everything, which is then about as fast as
/// reading so many rows one by one.
const OUTBOX_ROWS_MAX: i64 = 100_000;
