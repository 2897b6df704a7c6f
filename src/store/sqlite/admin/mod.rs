//! The writing side of the embedded store.
//!
//! Each call is one transaction. Triggers of the schema tell the relays what changed; what a call adds is
//! to keep the outbox short.

mod devices;
mod grants;
mod principals;
mod tokens;

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, Transaction, TransactionBehavior};

use super::{OUTBOX_ROWS_MAX, Place, schema};
use crate::store::admin::{AdminError, Nearest};
use crate::store::{Initialised, StoreError};

/// An open store that may be changed.
pub struct Admin {
    place: Place,
    connection: Connection,
}

impl Admin {
    /// Makes the store at `path`, its folder included, or brings it to this program's schema.
    pub fn init(path: &Path) -> Result<Initialised, StoreError> {
        let place = Place::new(path);
        if let Some(folder) = path.parent() {
            let made = DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(folder);
            made.map_err(|error| place.unreadable(error))?;
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE;
        let mut admin = Self::connect(place, flags)?;
        // Before anything is changed: the file may be another program's.
        schema::check_initialisable(&admin.connection, &admin.place)?;
        admin.enable_wal()?;
        schema::initialise(&mut admin.connection, &admin.place)
    }

    /// Opens the store at `path`, which must exist and be of this program's schema.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let admin = Self::connect(Place::new(path), OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        schema::check(&admin.connection, &admin.place)?;
        Ok(admin)
    }

    fn connect(place: Place, flags: OpenFlags) -> Result<Self, StoreError> {
        let open = || {
            let connection =
                Connection::open_with_flags(&place.path, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
            connection.busy_timeout(BUSY_TIMEOUT)?;
            connection.pragma_update(None, "foreign_keys", true)?;
            // A revocation that was confirmed must outlive a power cut.
            connection.pragma_update(None, "synchronous", "FULL")?;
            Ok(connection)
        };
        let connection = open().map_err(|error| place.error(error))?;
        Ok(Self { place, connection })
    }

    /// Kept in the file. Without it, readers and writers would wait for each other.
    fn enable_wal(&self) -> Result<(), StoreError> {
        let mode: String = self
            .connection
            .pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))
            .map_err(|error| self.place.error(error))?;
        if mode == "wal" {
            Ok(())
        } else {
            Err(self.place.unreadable(format!("its file system allows journal mode {mode} only, not WAL")))
        }
    }

    /// Changes the store by `change`, wholly or not at all.
    fn write<T>(
        &mut self,
        change: impl FnOnce(&Transaction<'_>) -> Result<T, Failure>,
    ) -> Result<T, AdminError> {
        self.transact(TransactionBehavior::Immediate, |transaction| {
            let value = change(transaction)?;
            let prune = "DELETE FROM changes WHERE id <= (SELECT max(id) FROM changes) - ?1";
            transaction.execute(prune, [OUTBOX_ROWS_MAX])?;
            Ok(value)
        })
    }

    fn read<T>(
        &mut self,
        read: impl FnOnce(&Transaction<'_>) -> Result<T, Failure>,
    ) -> Result<T, AdminError> {
        self.transact(TransactionBehavior::Deferred, read)
    }

    fn transact<T>(
        &mut self,
        behavior: TransactionBehavior,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, Failure>,
    ) -> Result<T, AdminError> {
        let place = &self.place;
        let work = |connection: &mut Connection| {
            let transaction = connection.transaction_with_behavior(behavior)?;
            let value = work(&transaction)?;
            transaction.commit()?;
            Ok(value)
        };
        work(&mut self.connection).map_err(|failure| match failure {
            Failure::Sqlite(error) => place.error(error).into(),
            Failure::Admin(error) => *error,
        })
    }
}

/// What can go wrong inside a transaction, before it is known which store it was.
enum Failure {
    Sqlite(rusqlite::Error),
    Admin(Box<AdminError>),
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

impl From<AdminError> for Failure {
    fn from(error: AdminError) -> Self {
        Self::Admin(Box::new(error))
    }
}

/// What `name` may have been meant to be, among the texts that `sql` selects.
fn nearest(
    transaction: &Transaction<'_>,
    sql: &str,
    name: &str,
    otherwise: &'static str,
) -> Result<Nearest, Failure> {
    let mut statement = transaction.prepare(sql)?;
    let candidates: Vec<String> = statement.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
    Ok(Nearest::among(candidates, name, otherwise))
}

/// How long a command waits for another writer.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Of a folder that is made for the store: who holds what is nobody else's business.
const FOLDER_MODE: u32 = 0o700;
