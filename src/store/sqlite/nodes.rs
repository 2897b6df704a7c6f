//! The table of nodes on SQLite, for nodes on one machine.

use std::net::SocketAddr;
use std::path::Path;

use super::writer::Writer;
use crate::store::StoreError;
use crate::store::directory::{NODES_MAX, NodeTable, Nodes};

/// See the module.
pub struct SqliteNodes(Writer);

impl SqliteNodes {
    pub fn new(path: &Path) -> Self {
        Self(Writer::new(path))
    }
}

impl NodeTable for SqliteNodes {
    fn write(&mut self, name: &str, forward: SocketAddr, devices: Option<usize>) -> Result<(), StoreError> {
        self.0.with(|connection| {
            connection.execute(WRITE, (name, forward.to_string(), devices.map(|devices| devices as i64)))?;
            Ok(())
        })
    }

    fn read(&mut self) -> Result<Nodes, StoreError> {
        self.0.with(|connection| {
            let mut nodes = Nodes::default();
            let mut statement = connection.prepare_cached(READ)?;
            let mut rows = statement.query([NODES_MAX as i64])?;
            while let Some(row) = rows.next()? {
                nodes.add(row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?);
            }
            Ok(nodes)
        })
    }
}

const WRITE: &str = "INSERT INTO nodes (name, forward_address, heartbeat_at, devices)
    VALUES (?1, ?2, CAST(unixepoch('subsec') * 1000 AS INTEGER), ?3)
    ON CONFLICT (name) DO UPDATE
    SET forward_address = excluded.forward_address, heartbeat_at = excluded.heartbeat_at,
        devices = excluded.devices";

const READ: &str = "SELECT name, forward_address, CAST(unixepoch('subsec') * 1000 AS INTEGER) - heartbeat_at,
        devices
    FROM nodes ORDER BY name LIMIT ?1";
