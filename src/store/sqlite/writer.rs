//! The connection that a node writes its heartbeat and its devices by, beside other nodes on its machine.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

use super::{SqlitePath, transaction};
use crate::store::StoreError;
use crate::store::sql::{SqlDatabase, SqlTransaction, TransactionEnd, TransactionKind};

/// Opens the file at its first use, and again after an error.
pub(in crate::store) struct SqliteWriter {
    path: SqlitePath,
    connection: Option<Connection>,
}

impl SqliteWriter {
    pub(in crate::store) fn new(path: &Path) -> Self {
        Self { path: SqlitePath::new(path), connection: None }
    }

    /// Runs `act` on the connection, which is kept if that succeeds.
    fn with<T>(
        &mut self,
        act: impl FnOnce(&mut Connection, &SqlitePath) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.open().map_err(|error| self.path.error(error))?,
        };
        let value = act(&mut connection, &self.path)?;
        self.connection = Some(connection);
        Ok(value)
    }

    fn open(&self) -> rusqlite::Result<Connection> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(&self.path.path, flags)?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        Ok(connection)
    }
}

impl SqlDatabase for SqliteWriter {
    fn transact(
        &mut self,
        kind: TransactionKind,
        work: &mut dyn FnMut(&dyn SqlTransaction) -> TransactionEnd,
    ) -> Result<TransactionEnd, StoreError> {
        let end = self.with(|connection, path| transaction::run(connection, path, kind, work))?;
        if end == TransactionEnd::RollBack {
            // The connection may be what failed.
            self.connection = None;
        }
        Ok(end)
    }
}

/// Time that a node waits for another writer. The next try is soon.
const BUSY_TIMEOUT: Duration = Duration::from_secs(1);
