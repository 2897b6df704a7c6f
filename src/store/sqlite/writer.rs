//! The connection that a node writes its heartbeat and its devices by, beside other nodes on its machine.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

use super::connection::SharedConnection;
use super::{SqlitePath, transaction};
use crate::store::StoreError;
use crate::store::sql::{SqlDatabase, SqlTransaction, TransactionEnd, TransactionKind};

/// Opens the file at its first use, and again after an error or after it was replaced.
pub(in crate::store) struct SqliteWriter {
    path: SqlitePath,
    connection: SharedConnection,
}

impl SqliteWriter {
    pub(in crate::store) fn new(path: &Path) -> Self {
        let path = SqlitePath::new(path);
        Self { connection: SharedConnection::new(path.clone(), open), path }
    }
}

impl SqlDatabase for SqliteWriter {
    fn transact(
        &mut self,
        kind: TransactionKind,
        work: &mut dyn FnMut(&dyn SqlTransaction) -> TransactionEnd,
    ) -> Result<TransactionEnd, StoreError> {
        let path = &self.path;
        let end = self.connection.with(|open| transaction::run(&mut open.connection, path, kind, work))?;
        if end == TransactionEnd::RollBack {
            // The connection may be what failed.
            self.connection.close();
        }
        Ok(end)
    }
}

fn open(path: &SqlitePath) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(&path.path, flags)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    Ok(connection)
}

/// Time that a node waits for another writer. The next try is soon.
const BUSY_TIMEOUT: Duration = Duration::from_secs(1);
