//! Makes and opens a store file for commands that change it.

use std::fs::{DirBuilder, File};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

use super::{SqlitePath, schema, transaction};
use crate::store::admin::Admin;
use crate::store::sql::{SqlDatabase, SqlTransaction, TransactionEnd, TransactionKind};
use crate::store::{Initialised, StoreError};

/// Makes the store at `path`, its folder included, or brings it to this program's schema.
pub fn init(path: &Path) -> Result<Initialised, StoreError> {
    let path = SqlitePath::new(path);
    if let Some(folder) = path.path.parent() {
        let made = DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(folder);
        made.map_err(|error| path.unreadable(error))?;
    }
    create(&path)?;
    let mut admin = SqliteAdmin::connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    // This stands before any change: the file may be another program's.
    schema::check_initialisable(&admin.connection, &admin.path)?;
    admin.enable_wal()?;
    schema::initialise(&mut admin.connection, &admin.path)
}

/// Makes an empty file where there is none. SQLite would make one that everybody may read, and it gives the files beside
/// it the same mode.
fn create(path: &SqlitePath) -> Result<(), StoreError> {
    match File::options().write(true).create_new(true).mode(FILE_MODE).open(&path.path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(path.unreadable(error)),
        _ => Ok(()),
    }
}

/// Opens the store at `path`, which must exist and be of this program's schema.
pub fn open(path: &Path) -> Result<Admin, StoreError> {
    let admin = SqliteAdmin::connect(SqlitePath::new(path), OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    schema::check(&admin.connection, &admin.path)?;
    Ok(Admin::new(admin))
}

/// A connection that commands change the store by.
struct SqliteAdmin {
    path: SqlitePath,
    connection: Connection,
}

impl SqliteAdmin {
    fn connect(path: SqlitePath, flags: OpenFlags) -> Result<Self, StoreError> {
        let open = || {
            let connection =
                Connection::open_with_flags(&path.path, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
            connection.busy_timeout(BUSY_TIMEOUT)?;
            connection.pragma_update(None, "foreign_keys", true)?;
            // A revocation that was confirmed must outlive a power cut.
            connection.pragma_update(None, "synchronous", "FULL")?;
            Ok(connection)
        };
        let connection = open().map_err(|error| path.error(error))?;
        Ok(Self { path, connection })
    }

    /// Sets WAL mode, which the file keeps. Without it, readers and writers would wait for each other.
    fn enable_wal(&self) -> Result<(), StoreError> {
        let mode: String = self
            .connection
            .pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))
            .map_err(|error| self.path.error(error))?;
        if mode == "wal" {
            Ok(())
        } else {
            Err(self.path.unreadable(format!("its file system allows journal mode {mode} only, not WAL")))
        }
    }
}

impl SqlDatabase for SqliteAdmin {
    fn transact(
        &mut self,
        kind: TransactionKind,
        work: &mut dyn FnMut(&dyn SqlTransaction) -> TransactionEnd,
    ) -> Result<TransactionEnd, StoreError> {
        transaction::run(&mut self.connection, &self.path, kind, work)
    }
}

/// Time that a command waits for another writer.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Mode of a folder that is made for the store: its owner alone sees what is in it.
const FOLDER_MODE: u32 = 0o700;

/// The store has the hashes of tokens, and who may reach which device: nobody else's to read.
const FILE_MODE: u32 = 0o600;
