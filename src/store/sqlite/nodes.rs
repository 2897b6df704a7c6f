//! The table of nodes on SQLite, for nodes on one machine.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

use super::Place;
use crate::store::StoreError;
use crate::store::directory::{NODES_MAX, NodeTable, Nodes};

/// See the module.
pub struct SqliteNodes {
    place: Place,
    connection: Option<Connection>,
}

impl SqliteNodes {
    pub fn new(path: &Path) -> Self {
        Self { place: Place::new(path), connection: None }
    }

    fn with<T>(&mut self, act: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, StoreError> {
        let done = match self.connection.take().map_or_else(|| self.open(), Ok) {
            Ok(connection) => {
                let done = act(&connection);
                self.connection = done.is_ok().then_some(connection);
                done
            }
            Err(error) => Err(error),
        };
        done.map_err(|error| self.place.error(error))
    }

    fn open(&self) -> rusqlite::Result<Connection> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(&self.place.path, flags)?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        Ok(connection)
    }
}

impl NodeTable for SqliteNodes {
    fn write(&mut self, name: &str, forward: SocketAddr) -> Result<(), StoreError> {
        self.with(|connection| {
            connection.execute(WRITE, (name, forward.to_string()))?;
            Ok(())
        })
    }

    fn read(&mut self) -> Result<Nodes, StoreError> {
        self.with(|connection| {
            let mut nodes = Nodes::default();
            let mut statement = connection.prepare_cached(READ)?;
            let mut rows = statement.query([NODES_MAX])?;
            while let Some(row) = rows.next()? {
                nodes.add(row.get(0)?, row.get(1)?, row.get(2)?);
            }
            Ok(nodes)
        })
    }
}

/// For another writer to finish; the next try is soon.
const BUSY_TIMEOUT: Duration = Duration::from_secs(1);

const WRITE: &str = "INSERT INTO nodes (name, forward_address, heartbeat_at)
    VALUES (?1, ?2, CAST(unixepoch('subsec') * 1000 AS INTEGER))
    ON CONFLICT (name) DO UPDATE
    SET forward_address = excluded.forward_address, heartbeat_at = excluded.heartbeat_at";

const READ: &str = "SELECT name, forward_address, CAST(unixepoch('subsec') * 1000 AS INTEGER) - heartbeat_at
    FROM nodes ORDER BY name LIMIT ?1";
