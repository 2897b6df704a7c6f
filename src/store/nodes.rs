//! The table of nodes. Each node writes its heartbeat there, and reads those of the others.

use std::net::SocketAddr;
use std::time::Duration;

use super::StoreError;
use super::sql::{SqlDatabase, SqlParam, TransactionKind};
use super::value::ColumnValue;

/// The table of nodes. Calls block, and each is one transaction; after an error the next call connects again.
pub struct NodeTable {
    database: Box<dyn SqlDatabase>,
}

/// A heartbeat of a node.
#[derive(Clone, Copy, Debug)]
pub struct NodeHeartbeat<'a> {
    pub name: &'a str,
    /// Address that takes requests of other nodes.
    pub forward: SocketAddr,
    /// Number of devices that it holds; `None` if it cannot count them.
    pub devices: Option<usize>,
    /// Identity of the process that writes. `None` answers no claims of other nodes.
    pub process: Option<&'a str>,
    /// Time after the heartbeat for which the node counts as alive.
    pub max_age: Duration,
}

/// The outcome of a heartbeat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HeartbeatOutcome {
    Written,
    /// Another process writes under this name, and it lives. It was told of this one.
    NameTaken {
        process: String,
    },
}

/// Another process under the name of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rival {
    /// Where it would take requests.
    pub forward: String,
    /// Milliseconds since it asked for the name last.
    pub age_ms: i64,
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
    /// The last other process that wanted its name.
    pub rival: Option<Rival>,
}

impl NodeTable {
    pub(super) fn new(database: impl SqlDatabase + 'static) -> Self {
        Self { database: Box::new(database) }
    }

    /// Writes a heartbeat, unless another process under that name lives. The process `over` does not: it has ended.
    pub fn write(
        &mut self,
        heartbeat: &NodeHeartbeat<'_>,
        over: Option<&str>,
    ) -> Result<HeartbeatOutcome, StoreError> {
        let NodeHeartbeat { name, forward, devices, process, max_age } = *heartbeat;
        let (forward, devices) = (forward.to_string(), devices.map(|devices| devices as i64));
        let max_age_ms = max_age.as_millis() as i64;
        let params: [SqlParam<'_>; 6] = [
            name.into(),
            forward.as_str().into(),
            devices.into(),
            process.into(),
            max_age_ms.into(),
            over.into(),
        ];
        let one = TransactionKind::OneStatement;
        let written = self.database.transaction(one, |store| store.execute(WRITE, &params))?;
        if written > 0 {
            return Ok(HeartbeatOutcome::Written);
        }
        let process = self.database.transaction(one, |store| {
            store.first_row(WRITER, &[name.into()], |row| ColumnValue::of(row, 0, "process").nullable_text())
        })?;
        let rival = [name.into(), forward.as_str().into()];
        self.database.transaction(one, |store| store.execute(RIVAL, &rival))?;
        Ok(HeartbeatOutcome::NameTaken { process: process.flatten().unwrap_or_default() })
    }

    /// Gives up the name for `process`, which ends. Another one can have it at once.
    pub fn release(&mut self, name: &str, process: &str) -> Result<(), StoreError> {
        self.database.transaction(TransactionKind::OneStatement, |store| {
            store.execute(RELEASE, &[name.into(), process.into()]).map(drop)
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
                    ColumnValue::of(row, 4, "rival").nullable_text()?,
                    ColumnValue::of(row, 5, "rival_at").nullable(ColumnValue::integer)?,
                ))
            })
        })?;
        let mut nodes = NodeList::default();
        for (name, forward, age_ms, devices, rival, rival_age_ms) in rows {
            let rival = rival.zip(rival_age_ms).map(|(forward, age_ms)| Rival { forward, age_ms });
            nodes.add(name, forward, age_ms, devices, rival);
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
    fn add(
        &mut self,
        name: String,
        forward: Option<String>,
        age_ms: Option<i64>,
        devices: Option<i64>,
        rival: Option<Rival>,
    ) {
        let devices = devices.and_then(|devices| usize::try_from(devices).ok());
        let (Some(forward), Some(age_ms)) = (forward, age_ms) else { return };
        match forward.parse() {
            Ok(forward) => self.nodes.push(NodeRow { name: name.into(), forward, age_ms, devices, rival }),
            Err(_) => self.bad.push(format!("node {name}: `{forward}` is no address with a port")),
        }
    }
}

/// Nodes of one installation. Further ones are not read.
pub const NODES_MAX: usize = 4096;

/// `$4` is the process, `$6` one that has ended. A row without a process is of a relay that ended in order, or of an
/// earlier version.
const WRITE: &str = "INSERT INTO {schema}nodes AS node
        (name, forward_address, heartbeat_at, devices, process, max_age_ms)
    VALUES ($1, $2, {now}, $3, $4, $5)
    ON CONFLICT (name) DO UPDATE
    SET forward_address = excluded.forward_address, heartbeat_at = {now}, devices = excluded.devices,
        process = excluded.process, max_age_ms = excluded.max_age_ms
    WHERE node.process IS NULL OR node.process = excluded.process OR node.process = $6
        OR node.heartbeat_at IS NULL
        OR node.heartbeat_at <= {now} - coalesce(node.max_age_ms, 15000) * {millisecond}";

const WRITER: &str = "SELECT process FROM {schema}nodes WHERE name = $1";

const RIVAL: &str = "UPDATE {schema}nodes SET rival = $2, rival_at = {now} WHERE name = $1";

const RELEASE: &str = "UPDATE {schema}nodes SET process = NULL WHERE name = $1 AND process = $2";

const READ: &str = "SELECT name, forward_address, {heartbeat_age_ms}, devices, rival, {rival_age_ms}
    FROM {schema}nodes ORDER BY name LIMIT $1";
