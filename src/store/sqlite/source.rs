//! The relay's side of a store file. It reads and never writes.
//!
//! The relay has a connection of its own, which writers do not share. `PRAGMA data_version` says on it whether
//! anybody else has committed, so that a poll of a quiet store costs a few system calls. After a commit, one read
//! transaction reads the outbox and the rows that changed. In WAL mode none of that waits for a writer or makes one
//! wait.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, Transaction};

use super::outbox::{self, OutboxRow};
use super::relations::SqliteRelations;
use super::{SqlitePath, schema};
use crate::config::{Authz, Queries};
use crate::store::polling::Polling;
use crate::store::{Changes, Comparison, Rows, Source, StoreError};

/// A source on an SQLite file.
pub struct SqliteSource {
    path: SqlitePath,
    queries: Queries,
    reread_every: Duration,
    /// Present if the queries were replaced: then the outbox says nothing about their rows.
    polling: Option<Polling>,
    /// `None` before the first read and after an error.
    open: Option<OpenFile>,
}

/// A connection and how far it has read.
struct OpenFile {
    connection: Connection,
    file: FileId,
    relations: SqliteRelations,
    /// `None` until everything was read through this connection.
    position: Option<ReadPosition>,
}

/// The moment of the last read.
struct ReadPosition {
    /// Taken before the transaction, so that a commit in between is read twice rather than missed.
    data_version: i64,
    newest: Option<OutboxRow>,
}

impl SqliteSource {
    pub fn new(path: &Path, authz: &Authz) -> Self {
        let mut source = Self {
            path: SqlitePath::new(path),
            queries: Queries::default(),
            reread_every: authz.reread,
            polling: None,
            open: None,
        };
        source.replace_queries(authz.queries.clone());
        source
    }

    /// Runs `read` on a connection to the file that is at the path now.
    ///
    /// After an error the connection is dropped, and the position with it: the outbox does not say what was done to a
    /// store in the meantime to repair it. A lock alone changes neither.
    fn with_open<T>(
        &mut self,
        read: impl FnOnce(&mut OpenFile, &SqlitePath) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let result = self.connect().and_then(|mut open| {
            let result = read(&mut open, &self.path);
            self.open = Some(open);
            result
        });
        if result.as_ref().is_err_and(|error| !matches!(error, StoreError::Locked { .. })) {
            self.open = None;
        }
        result
    }

    /// Takes the open connection, or makes one if another file is at the path now.
    fn connect(&mut self) -> Result<OpenFile, StoreError> {
        let file = FileId::at(&self.path)?;
        match self.open.take() {
            Some(open) if open.file == file => Ok(open),
            _ => OpenFile::new(file, SqliteRelations::new(&self.queries), &self.path),
        }
    }
}

impl Source for SqliteSource {
    fn read_all(&mut self) -> Result<Rows, StoreError> {
        if self.polling.is_none() {
            return self.with_open(OpenFile::read_all);
        }
        let rows = self.with_open(OpenFile::read_foreign)?;
        if let Some(polling) = &mut self.polling {
            polling.record(&rows);
        }
        Ok(rows)
    }

    fn read_changes(&mut self) -> Result<Changes, StoreError> {
        match &mut self.polling {
            None => self.with_open(OpenFile::read_changes),
            Some(polling) if !polling.is_due() => Ok(Changes::Nothing),
            Some(_) => {
                let rows = self.with_open(OpenFile::read_foreign)?;
                Ok(self.polling.as_mut().map_or(Changes::Behind, |polling| polling.changes(rows)))
            }
        }
    }

    fn compare(&mut self, candidate: &Queries) -> Result<Comparison, StoreError> {
        self.with_open(|open, path| open.compare(&SqliteRelations::new(candidate), path))
    }

    fn replace_queries(&mut self, queries: Queries) {
        self.polling = queries.are_replaced().then(|| Polling::new(self.reread_every));
        self.queries = queries;
        self.open = None;
    }

    fn describe(&self) -> String {
        self.path.describe()
    }
}

impl OpenFile {
    /// Opens the path. `file` was read before that, so that the next read notices a file that replaces it meanwhile.
    fn new(file: FileId, relations: SqliteRelations, path: &SqlitePath) -> Result<Self, StoreError> {
        let open = || {
            let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
            let connection = Connection::open_with_flags(&path.path, flags)?;
            connection.busy_timeout(BUSY_TIMEOUT)?;
            connection.pragma_update(None, "query_only", true)?;
            // The relay trusts a store with its rows alone.
            connection.pragma_update(None, "trusted_schema", false)?;
            Ok(connection)
        };
        let connection = open().map_err(|error| path.error(error))?;
        Ok(Self { connection, file, relations, position: None })
    }

    fn read_all(&mut self, path: &SqlitePath) -> Result<Rows, StoreError> {
        self.read(path, |transaction, relations, _| {
            let rows = relations.read(transaction, path)?;
            Ok((rows, OutboxRow::newest(transaction).map_err(|error| path.error(error))?))
        })
    }

    /// Reads a database that need not have our schema.
    fn read_foreign(&mut self, path: &SqlitePath) -> Result<Rows, StoreError> {
        let transaction = self.connection.transaction().map_err(|error| path.error(error))?;
        self.relations.read(&transaction, path)
    }

    fn compare(&mut self, candidate: &SqliteRelations, path: &SqlitePath) -> Result<Comparison, StoreError> {
        let transaction = self.connection.transaction().map_err(|error| path.error(error))?;
        let running = self.relations.read(&transaction, path)?;
        Ok(Comparison { running, candidate: candidate.read(&transaction, path)? })
    }

    fn read_changes(&mut self, path: &SqlitePath) -> Result<Changes, StoreError> {
        match &self.position {
            None => return Ok(Changes::Behind),
            Some(position) => {
                let data_version = data_version(&self.connection).map_err(|error| path.error(error))?;
                if data_version == position.data_version {
                    return Ok(Changes::Nothing);
                }
            }
        }
        self.read(path, |transaction, _, since| {
            outbox::changes(transaction, since).map_err(|error| path.error(error))
        })
    }

    /// Runs `read` in one read transaction. It gets and returns the newest row of the outbox.
    fn read<T>(
        &mut self,
        path: &SqlitePath,
        read: impl FnOnce(
            &Transaction<'_>,
            &SqliteRelations,
            Option<OutboxRow>,
        ) -> Result<(T, Option<OutboxRow>), StoreError>,
    ) -> Result<T, StoreError> {
        let error = |error| path.error(error);
        let data_version = data_version(&self.connection).map_err(error)?;
        let transaction = self.connection.transaction().map_err(error)?;
        schema::check(&transaction, path)?;
        let since = self.position.as_ref().and_then(|position| position.newest.clone());
        let (value, newest) = read(&transaction, &self.relations, since)?;
        transaction.commit().map_err(error)?;
        self.position = Some(ReadPosition { data_version, newest });
        Ok(value)
    }
}

fn data_version(connection: &Connection) -> rusqlite::Result<i64> {
    connection.pragma_query_value(None, "data_version", |row| row.get(0))
}

/// Identity of a file, which another one that takes its name does not have.
#[derive(Clone, Copy, PartialEq, Eq)]
struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    /// Reads the metadata and does not open the file: closing it again would drop the locks that SQLite holds on it.
    fn at(path: &SqlitePath) -> Result<Self, StoreError> {
        match std::fs::metadata(&path.path) {
            Ok(metadata) => Ok(Self { device: metadata.dev(), inode: metadata.ino() }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(path.missing()),
            Err(error) => Err(path.unreadable(error)),
        }
    }
}

/// Time that a read waits for a lock, which no ordinary writer holds in WAL mode.
const BUSY_TIMEOUT: Duration = Duration::from_millis(250);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::sqlite;

    #[test]
    fn the_relays_connection_cannot_write() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store.db");
        sqlite::init(&path).unwrap();
        let mut source = SqliteSource::new(&path, &Authz::default());
        source.read_all().unwrap();
        let open = source.open.as_ref().unwrap();
        let error = open.connection.execute("DELETE FROM changes", []).unwrap_err();
        assert_eq!(error.sqlite_error_code(), Some(rusqlite::ErrorCode::ReadOnly), "{error}");
    }
}
