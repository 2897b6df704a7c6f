//! The table of nodes on PostgreSQL, written on the primary.

use std::net::SocketAddr;

use super::session::Failure;
use super::writer::Writer;
use crate::config::{PostgresUrl, Store};
use crate::store::StoreError;
use crate::store::directory::{NODES_MAX, NodeTable, Nodes};

/// See the module.
pub struct PostgresNodes(Writer);

impl PostgresNodes {
    pub fn new(url: &PostgresUrl, store: &Store) -> Self {
        Self(Writer::new(url, store))
    }
}

impl NodeTable for PostgresNodes {
    fn write(&mut self, name: &str, forward: SocketAddr, devices: Option<usize>) -> Result<(), StoreError> {
        let devices = devices.map(|devices| devices as i64);
        self.0.with(|session| session.execute(WRITE, &[&name, &forward.to_string(), &devices]).map(drop))
    }

    fn read(&mut self) -> Result<Nodes, StoreError> {
        self.0.with(|session| {
            let mut nodes = Nodes::default();
            for row in session.query(READ, &[&(NODES_MAX as i64)])? {
                let columns = || Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?, row.try_get(3)?));
                let (name, forward, age_ms, devices) = columns().map_err(Failure::Postgres)?;
                nodes.add(name, forward, age_ms, devices);
            }
            Ok(nodes)
        })
    }
}

const WRITE: &str =
    "INSERT INTO sluicegate.nodes (name, forward_address, heartbeat_at, devices) VALUES ($1, $2, now(), $3)
    ON CONFLICT (name) DO UPDATE
    SET forward_address = EXCLUDED.forward_address, heartbeat_at = now(), devices = EXCLUDED.devices";

const READ: &str = "SELECT name, forward_address,
        CAST(EXTRACT(EPOCH FROM now() - heartbeat_at) * 1000 AS bigint), devices
    FROM sluicegate.nodes ORDER BY name LIMIT $1";
