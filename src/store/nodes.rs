//! The table of nodes. Each node writes its heartbeat there, and reads those of the others.

use std::net::SocketAddr;
use std::time::Duration;

use super::StoreError;
use super::sql::{SqlDatabase, TransactionKind};
use super::value::ColumnValue;

/// The table of nodes. Calls block, and each is one transaction; after an error the next call connects again.
pub struct NodeTable {
    database: Box<dyn SqlDatabase>,
}

/// The rows of the table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeList {
    pub nodes: Vec<NodeRow>,
    /// Rows that cannot be used, each with its reason.
    pub bad: Vec<String>,
}

/// A node that has given an address and a heartbeat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeRow {
    pub name: Box<str>,
    /// Address that takes requests of other nodes.
    pub forward: SocketAddr,
    /// Milliseconds since its last heartbeat, by the store's own clock.
    pub age_ms: i64,
    /// Number of devices that it says it holds; `None` if it could not count them.
    pub devices: Option<usize>,
}

impl NodeTable {
    pub(super) fn new(database: impl SqlDatabase + 'static) -> Self {
        Self { database: Box::new(database) }
    }

    /// Writes a heartbeat of the node with this name. It takes requests at `forward` and holds `devices` devices, if it
    /// can count them.
    pub fn write(
        &mut self,
        name: &str,
        forward: SocketAddr,
        devices: Option<usize>,
    ) -> Result<(), StoreError> {
        let (forward, devices) = (forward.to_string(), devices.map(|devices| devices as i64));
        self.database.transaction(TransactionKind::OneStatement, |store| {
            store.execute(WRITE, &[name.into(), forward.as_str().into(), devices.into()]).map(drop)
        })
    }

    /// Reads all nodes, at most [`NODES_MAX`] of them.
    pub fn read(&mut self) -> Result<NodeList, StoreError> {
        let rows = self.database.transaction(TransactionKind::OneStatement, |store| {
            store.rows(READ, &[(NODES_MAX as i64).into()], |row| {
                Ok((
                    ColumnValue::of(row, 0, "name").text()?.to_owned(),
                    ColumnValue::of(row, 1, "forward_address").nullable_text()?,
                    ColumnValue::of(row, 2, "heartbeat_at").nullable(ColumnValue::integer)?,
                    ColumnValue::of(row, 3, "devices").nullable(ColumnValue::integer)?,
                ))
            })
        })?;
        let mut nodes = NodeList::default();
        for (name, forward, age_ms, devices) in rows {
            nodes.add(name, forward, age_ms, devices);
        }
        Ok(nodes)
    }
}

impl NodeRow {
    pub fn is_stale(&self, max_age: Duration) -> bool {
        i128::from(self.age_ms) > max_age.as_millis() as i128
    }
}

impl NodeList {
    /// Adds a row as the table has it. A node that never gave an address or a heartbeat is left out.
    fn add(&mut self, name: String, forward: Option<String>, age_ms: Option<i64>, devices: Option<i64>) {
        let devices = devices.and_then(|devices| usize::try_from(devices).ok());
        let (Some(forward), Some(age_ms)) = (forward, age_ms) else { return };
        match forward.parse() {
            Ok(forward) => self.nodes.push(NodeRow { name: name.into(), forward, age_ms, devices }),
            Err(_) => self.bad.push(format!("node {name}: `{forward}` is no address with a port")),
        }
    }
}

/// Nodes of one installation. Further ones are not read.
pub const NODES_MAX: usize = 4096;

const WRITE: &str = "INSERT INTO {schema}nodes (name, forward_address, heartbeat_at, devices)
    VALUES ($1, $2, {now}, $3)
    ON CONFLICT (name) DO UPDATE
    SET forward_address = excluded.forward_address, heartbeat_at = {now}, devices = excluded.devices";

const READ: &str = "SELECT name, forward_address, {heartbeat_age_ms}, devices
    FROM {schema}nodes ORDER BY name LIMIT $1";
