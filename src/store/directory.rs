//! The nodes of an installation: each writes that it lives, and reads when the others last did.

use std::net::SocketAddr;
use std::time::Duration;

use super::{StoreError, postgres, sqlite};
use crate::config::{Config, Store, StoreUrl};

/// The table of nodes. Calls block, and each is one transaction; after an error the next call connects anew.
pub trait NodeTable: Send {
    /// Writes that the node with this name lives now, takes requests at `forward`, and holds so many devices, where
    /// it can say that.
    fn write(&mut self, name: &str, forward: SocketAddr, devices: Option<usize>) -> Result<(), StoreError>;

    /// All nodes, at most [`NODES_MAX`] of them.
    fn read(&mut self) -> Result<Nodes, StoreError>;
}

/// What the table says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Nodes {
    pub nodes: Vec<NodeRow>,
    /// Rows that cannot be used: which, and why.
    pub bad: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeRow {
    pub name: Box<str>,
    pub forward: SocketAddr,
    /// Since it last said that it lives, by the store's own clock.
    pub age_ms: i64,
    /// That it holds, by its own word; `None` where it could not say.
    pub devices: Option<usize>,
}

impl NodeRow {
    pub fn is_stale(&self, max_age: Duration) -> bool {
        i128::from(self.age_ms) > max_age.as_millis() as i128
    }
}

impl Nodes {
    /// Takes a row as the table has it. A node that never gave an address or a sign of life is none yet.
    pub(super) fn add(
        &mut self,
        name: String,
        forward: Option<String>,
        age_ms: Option<i64>,
        devices: Option<i64>,
    ) {
        let devices = devices.and_then(|devices| usize::try_from(devices).ok());
        let (Some(forward), Some(age_ms)) = (forward, age_ms) else { return };
        match forward.parse() {
            Ok(forward) => self.nodes.push(NodeRow { name: name.into(), forward, age_ms, devices }),
            Err(_) => self.bad.push(format!("node {name}: `{forward}` is no address with a port")),
        }
    }
}

/// The table that the configuration names.
pub fn node_table(config: &Config) -> Box<dyn NodeTable> {
    let store = writing_store(config);
    match &store.url {
        StoreUrl::Sqlite(path) => Box::new(sqlite::SqliteNodes::new(path)),
        StoreUrl::Postgres(url) => Box::new(postgres::PostgresNodes::new(url, &store)),
    }
}

/// The store as the role that may write what nodes say of themselves.
pub(super) fn writing_store(config: &Config) -> Store {
    match &config.forward.directory_url {
        // Another role has another password.
        Some(url) => Store {
            url: url.clone(),
            password_file: config.forward.directory_password_file.clone(),
            ..config.store.clone()
        },
        None => config.store.clone(),
    }
}

/// Nodes of one installation; further ones are not read.
pub const NODES_MAX: usize = 4096;
