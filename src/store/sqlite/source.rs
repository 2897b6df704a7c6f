//! The relay's side: reads and never writes.
//!
//! One connection of the relay's own, which writers do not share. `PRAGMA data_version` tells on it whether
//! anybody else has committed, so that a quiet store costs a few system calls per poll; only then is the outbox
//! read, and by it the rows that changed, in one read transaction. In WAL mode none of that waits for a
//! writer or makes one wait.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, Transaction};

use super::outbox::{self, OutboxRow};
use super::relations::Relations;
use super::{Place, schema};
use crate::config::{Authz, Queries};
use crate::store::polling::Rereading;
use crate::store::{Changes, Comparison, Rows, Source, StoreError};

/// See the module.
pub struct SqliteSource {
    place: Place,
    queries: Queries,
    reread_every: Duration,
    /// Where the queries were replaced, so that there is no outbox to go by.
    rereading: Option<Rereading>,
    /// `None` before the first read and after an error.
    open: Option<Open>,
}

/// A connection and how far it has read.
struct Open {
    connection: Connection,
    file: FileId,
    relations: Relations,
    /// `None` until everything was read through this connection.
    position: Option<Position>,
}

/// The moment of the last read.
struct Position {
    /// Read before the transaction, so that a commit in between is looked at twice, not missed.
    data_version: i64,
    newest: Option<OutboxRow>,
}

impl SqliteSource {
    pub fn new(path: &Path, authz: &Authz) -> Self {
        let mut source = Self {
            place: Place::new(path),
            queries: Queries::default(),
            reread_every: authz.reread,
            rereading: None,
            open: None,
        };
        source.replace_queries(authz.queries.clone());
        source
    }

    /// Runs `read` on a connection to the file that is at the path now.
    ///
    /// After an error the connection is dropped, and with it the position: what was done to a store in the
    /// meantime to mend it cannot be told from the outbox. A lock alone does nothing to either.
    fn with_open<T>(
        &mut self,
        read: impl FnOnce(&mut Open, &Place) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let result = self.connect().and_then(|mut open| {
            let result = read(&mut open, &self.place);
            self.open = Some(open);
            result
        });
        if result.as_ref().is_err_and(|error| !matches!(error, StoreError::Locked { .. })) {
            self.open = None;
        }
        result
    }

    /// The open connection, unless another file has taken the place of the one that it leads to.
    fn connect(&mut self) -> Result<Open, StoreError> {
        let file = FileId::at(&self.place)?;
        match self.open.take() {
            Some(open) if open.file == file => Ok(open),
            _ => Open::new(file, Relations::new(&self.queries), &self.place),
        }
    }
}

impl Source for SqliteSource {
    fn read_all(&mut self) -> Result<Rows, StoreError> {
        if self.rereading.is_none() {
            return self.with_open(Open::read_all);
        }
        let rows = self.with_open(Open::read_foreign)?;
        if let Some(rereading) = &mut self.rereading {
            rereading.note(&rows);
        }
        Ok(rows)
    }

    fn read_changes(&mut self) -> Result<Changes, StoreError> {
        match &mut self.rereading {
            None => self.with_open(Open::read_changes),
            Some(rereading) if !rereading.is_due() => Ok(Changes::Nothing),
            Some(_) => {
                let rows = self.with_open(Open::read_foreign)?;
                Ok(self.rereading.as_mut().map_or(Changes::Behind, |rereading| rereading.changes(rows)))
            }
        }
    }

    fn compare(&mut self, candidate: &Queries) -> Result<Comparison, StoreError> {
        self.with_open(|open, place| open.compare(&Relations::new(candidate), place))
    }

    fn replace_queries(&mut self, queries: Queries) {
        self.rereading = queries.are_replaced().then(|| Rereading::new(self.reread_every));
        self.queries = queries;
        self.open = None;
    }

    fn describe(&self) -> String {
        self.place.describe()
    }
}

impl Open {
    /// `file` was looked at before this opens the path, so that a file that replaces it meanwhile is
    /// noticed with the next read.
    fn new(file: FileId, relations: Relations, place: &Place) -> Result<Self, StoreError> {
        let open = || {
            let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
            let connection = Connection::open_with_flags(&place.path, flags)?;
            connection.busy_timeout(BUSY_TIMEOUT)?;
            connection.pragma_update(None, "query_only", true)?;
            // A store need not be trusted with more than its rows.
            connection.pragma_update(None, "trusted_schema", false)?;
            Ok(connection)
        };
        let connection = open().map_err(|error| place.error(error))?;
        Ok(Self { connection, file, relations, position: None })
    }

    fn read_all(&mut self, place: &Place) -> Result<Rows, StoreError> {
        self.read(place, |transaction, relations, _| {
            let rows = relations.read(transaction, place)?;
            Ok((rows, OutboxRow::newest(transaction).map_err(|error| place.error(error))?))
        })
    }

    /// Reads what need not have our schema.
    fn read_foreign(&mut self, place: &Place) -> Result<Rows, StoreError> {
        let transaction = self.connection.transaction().map_err(|error| place.error(error))?;
        self.relations.read(&transaction, place)
    }

    fn compare(&mut self, candidate: &Relations, place: &Place) -> Result<Comparison, StoreError> {
        let transaction = self.connection.transaction().map_err(|error| place.error(error))?;
        let running = self.relations.read(&transaction, place)?;
        Ok(Comparison { running, candidate: candidate.read(&transaction, place)? })
    }

    fn read_changes(&mut self, place: &Place) -> Result<Changes, StoreError> {
        match &self.position {
            None => return Ok(Changes::Behind),
            Some(position) => {
                let data_version = data_version(&self.connection).map_err(|error| place.error(error))?;
                if data_version == position.data_version {
                    return Ok(Changes::Nothing);
                }
            }
        }
        self.read(place, |transaction, _, since| {
            outbox::changes(transaction, since).map_err(|error| place.error(error))
        })
    }

    /// Runs `read` in one read transaction; it gets and returns the newest row of the outbox.
    fn read<T>(
        &mut self,
        place: &Place,
        read: impl FnOnce(
            &Transaction<'_>,
            &Relations,
            Option<OutboxRow>,
        ) -> Result<(T, Option<OutboxRow>), StoreError>,
    ) -> Result<T, StoreError> {
        let error = |error| place.error(error);
        let data_version = data_version(&self.connection).map_err(error)?;
        let transaction = self.connection.transaction().map_err(error)?;
        schema::check(&transaction, place)?;
        let since = self.position.as_ref().and_then(|position| position.newest.clone());
        let (value, newest) = read(&transaction, &self.relations, since)?;
        transaction.commit().map_err(error)?;
        self.position = Some(Position { data_version, newest });
        Ok(value)
    }
}

fn data_version(connection: &Connection) -> rusqlite::Result<i64> {
    connection.pragma_query_value(None, "data_version", |row| row.get(0))
}

/// What tells a file from one that takes its name.
#[derive(Clone, Copy, PartialEq, Eq)]
struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    /// Only looks: opening and closing the file here would drop the locks that SQLite holds on it.
    fn at(place: &Place) -> Result<Self, StoreError> {
        match std::fs::metadata(&place.path) {
            Ok(metadata) => Ok(Self { device: metadata.dev(), inode: metadata.ino() }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(place.missing()),
            Err(error) => Err(place.unreadable(error)),
        }
    }
}

/// How long a read waits where the store is locked, which in WAL mode no ordinary writer does.
const BUSY_TIMEOUT: Duration = Duration::from_millis(250);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::sqlite::Admin;

    #[test]
    fn the_relays_connection_cannot_write() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store.db");
        Admin::init(&path).unwrap();
        let mut source = SqliteSource::new(&path, &Authz::default());
        source.read_all().unwrap();
        let open = source.open.as_ref().unwrap();
        let error = open.connection.execute("DELETE FROM changes", []).unwrap_err();
        assert_eq!(error.sqlite_error_code(), Some(rusqlite::ErrorCode::ReadOnly), "{error}");
    }
}
