//! The table of nodes on PostgreSQL, written on the primary.

use std::net::SocketAddr;
use std::time::Duration;

use super::connect::{Access, Connector};
use super::session::{Failure, Session};
use crate::config::postgres::Target;
use crate::config::{PostgresUrl, Store};
use crate::store::StoreError;
use crate::store::directory::{NODES_MAX, NodeTable, Nodes};

/// See the module.
pub struct PostgresNodes {
    connector: Connector,
    session: Option<Session>,
}

impl PostgresNodes {
    pub fn new(url: &PostgresUrl, store: &Store) -> Self {
        Self { connector: Connector::new(url, store), session: None }
    }

    fn with<T>(&mut self, act: impl FnOnce(&Session) -> Result<T, Failure>) -> Result<T, StoreError> {
        let session = match self.session.take() {
            Some(session) => session,
            None => self.connector.connect(Target::Primary, Access::Write, Duration::ZERO)?.session,
        };
        let done = act(&session);
        self.session = done.is_ok().then_some(session);
        done.map_err(|failure| self.connector.place.error(failure))
    }
}

impl NodeTable for PostgresNodes {
    fn write(&mut self, name: &str, forward: SocketAddr) -> Result<(), StoreError> {
        self.with(|session| session.execute(WRITE, &[&name, &forward.to_string()]).map(drop))
    }

    fn read(&mut self) -> Result<Nodes, StoreError> {
        self.with(|session| {
            let mut nodes = Nodes::default();
            for row in session.query(READ, &[&(NODES_MAX as i64)])? {
                nodes.add(row.get(0), row.get(1), row.get(2));
            }
            Ok(nodes)
        })
    }
}

const WRITE: &str =
    "INSERT INTO sluicegate.nodes (name, forward_address, heartbeat_at) VALUES ($1, $2, now())
    ON CONFLICT (name) DO UPDATE SET forward_address = EXCLUDED.forward_address, heartbeat_at = now()";

const READ: &str = "SELECT name, forward_address,
        CAST(EXTRACT(EPOCH FROM now() - heartbeat_at) * 1000 AS bigint)
    FROM sluicegate.nodes ORDER BY name LIMIT $1";
