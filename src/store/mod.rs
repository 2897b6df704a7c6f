//! Where rights come from: a [`Source`] of checked rows. Nothing above this module knows SQL.

pub mod admin;
mod contract;
mod decode;
mod directory;
mod locations;
mod polling;
pub mod postgres;
mod presence;
pub mod sqlite;
mod warnings;

use std::fmt;
use std::time::{Duration, Instant};

use crossbeam::channel::{self, Receiver};
use sha2::{Digest, Sha256};

use crate::authz::{Change, Credential, Device, DeviceId, Grant, GrantId, KeyHash};
use crate::config::{self, AddressSource, Authz, Config, Queries, StoreUrl};

pub use directory::{NODES_MAX, NodeRow, NodeTable, Nodes, node_table};
pub use locations::{Answer, LocationTable, Report, Reports, location_table};
pub use warnings::{Noted, StoreWarnings};

/// A database that the relay reads and never writes.
///
/// Calls block; only the control thread makes them. After an error a source must be usable again: the
/// next call reconnects where it has to.
pub trait Source: Send {
    /// Reads all relations as of one moment, and remembers that moment for [`Source::read_changes`].
    fn read_all(&mut self) -> Result<Rows, StoreError>;

    /// What was committed since the last successful read of either kind.
    fn read_changes(&mut self) -> Result<Changes, StoreError>;

    /// Reads all relations twice, by the queries that run and by `candidate`, both as of one moment. Fails
    /// where the candidate breaks the contract; nothing is remembered of either.
    fn compare(&mut self, candidate: &Queries) -> Result<Comparison, StoreError>;

    /// Reads by `queries` from now on, and all of it next.
    fn replace_queries(&mut self, queries: Queries);

    /// What has changed elsewhere than in the store, for when the store cannot be read.
    fn changes_elsewhere(&mut self) -> Vec<Change> {
        Vec::new()
    }

    /// What the reads so far met and could make nothing of.
    fn warnings(&self) -> StoreWarnings {
        StoreWarnings::default()
    }

    /// How old what was read last was already then: more than nothing only for a copy that is behind.
    fn lag(&self) -> Duration {
        Duration::ZERO
    }

    /// Since when what the last read of changes gave was there to be read, the oldest of it, as far as the store
    /// tells.
    fn readable_since(&self) -> Option<Instant> {
        None
    }

    /// Tells when there is something to read before the next poll. A hint that nothing depends on: a store
    /// that cannot give any never does.
    fn wake_ups(&mut self) -> Receiver<()> {
        channel::never()
    }

    /// For log lines: the kind and place of the store, without secrets.
    fn describe(&self) -> String;
}

/// The source that the configuration names, with device addresses from where `vpn.addresses` says. Connects with
/// its first read, and so never fails here. Where `vpn.report` is set, `reports` gets what the store is to be told.
pub fn located_source(config: &Config, reports: &Reports) -> Box<dyn Source> {
    let source = source(&config.store, &config.authz);
    match &*config.vpn.addresses {
        [AddressSource::Store] => source,
        _ => Box::new(presence::Located::new(source, config, reports)),
    }
}

/// The store that the configuration names, and nothing beside it.
pub fn source(store: &config::Store, authz: &Authz) -> Box<dyn Source> {
    match &store.url {
        StoreUrl::Sqlite(path) => Box::new(sqlite::SqliteSource::new(path, authz)),
        StoreUrl::Postgres(url) => Box::new(postgres::PostgresSource::new(url, store, authz)),
    }
}

/// Tells queries from others by their text. SHA-256.
pub type QueriesDigest = [u8; 32];

/// Of the queries that relations are read by, ours among them.
pub fn queries_digest(store: &config::Store, authz: &Authz) -> QueriesDigest {
    let ours = match &store.url {
        StoreUrl::Sqlite(_) => sqlite::QUERIES,
        StoreUrl::Postgres(_) => postgres::Schema::of(store.profile, authz).queries(),
    };
    let queries = &authz.queries;
    let replaced = [&queries.credentials, &queries.grants, &queries.devices];
    let mut digest = Sha256::new();
    for (ours, replaced) in ours.into_iter().zip(replaced) {
        let sql = replaced.as_ref().map_or(ours, |query| query.sql.as_str());
        digest.update(sql.len().to_le_bytes());
        digest.update(sql);
    }
    digest.finalize().into()
}

/// What initialising a store found and did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Initialised {
    Created,
    Migrated { from: i64 },
    UpToDate,
}

/// Every row of the three relations that decoded, and what became of those that did not.
#[derive(Debug, Default)]
pub struct Rows {
    pub credentials: Vec<Credential>,
    pub grants: Vec<Grant>,
    pub devices: Vec<Device>,
    pub quarantined: Vec<Quarantined>,
    /// Rows that say that they are revoked and are quarantined for something else: the end counts.
    pub ended: Vec<Change>,
}

/// What two sets of queries give of the same moment.
#[derive(Debug)]
pub struct Comparison {
    pub running: Rows,
    pub candidate: Rows,
}

#[derive(Debug)]
pub enum Changes {
    Nothing,
    /// In commit order.
    Some {
        changes: Vec<Change>,
        quarantined: Vec<Quarantined>,
    },
    /// Of a store that has no outbox: all that it says now, which is not what it said before.
    All(Rows),
    /// The outbox does not lead from the last read to now: read everything.
    Behind,
}

/// A row that does not decode to the contract. Its last good version stays in force.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Quarantined {
    pub key: RowKey,
    pub reason: String,
}

/// Names a row of a relation.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum RowKey {
    Credential(KeyHash),
    Grant(GrantId),
    Device(DeviceId),
    /// The key itself does not decode; this is what the store says instead.
    Unreadable {
        relation: Relation,
        key: String,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Relation {
    Credentials,
    Grants,
    Devices,
}

/// Why a store could not be read or written; each text ends in the remedy.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("{store} does not exist; `sluicegate store init` creates it")]
    Missing { store: String },
    #[error("{store} is locked by another process; end its long transaction, then try again")]
    Locked { store: String },
    #[error("{store} is damaged ({detail}); restore it from a backup")]
    Corrupt { store: String, detail: String },
    #[error("{store} is a database of another program; point `store.url` elsewhere")]
    Foreign { store: String },
    #[error("{store} has schema version {found}, this sluicegate needs {wanted}; {remedy}")]
    Version { store: String, found: i64, wanted: i64, remedy: &'static str },
    #[error("{store} cannot be used ({detail}); check its path, permissions and disk")]
    Unreadable { store: String, detail: String },
    #[error("{store} cannot be reached ({detail}); see that it runs and that `store.url` leads to it")]
    Unreachable { store: String, detail: String },
    #[error(
        "{store} refuses its role ({detail}); see to its password and to the rights in docs/postgresql.md"
    )]
    Denied { store: String, detail: String },
    #[error("{store} has no connection left ({detail}); end idle ones or raise its max_connections")]
    Full { store: String, detail: String },
    #[error("{store} is too slow ({detail}); see what it is busy with, or raise `store.statement_timeout`")]
    Slow { store: String, detail: String },
    #[error(
        "{store} broke a read off ({detail}); it is tried again, and on a standby \
         `hot_standby_feedback = on` keeps it from happening"
    )]
    Interrupted { store: String, detail: String },
    #[error("{store} was restored from a dump; `sluicegate store init` fits its outbox to this server")]
    Restored { store: String },
    #[error("{store} runs PostgreSQL {found}; the reference schema needs 13 or later")]
    ServerVersion { store: String, found: String },
    #[error("store.password_file {path} cannot be read ({detail}); see that it is there and readable")]
    PasswordFile { path: String, detail: String },
    #[error("the query for {relation} on {store} breaks the contract ({detail}); mend it or what it reads")]
    Contract { store: String, relation: &'static str, detail: String },
    #[error("a query on {store} failed ({detail}); is its schema as `sluicegate store init` made it?")]
    Query { store: String, detail: String },
}

impl StoreError {
    /// What went wrong, without saying where again: for a list of servers that all failed.
    fn detail(&self) -> String {
        match self {
            Self::Unreadable { detail, .. }
            | Self::Corrupt { detail, .. }
            | Self::Unreachable { detail, .. }
            | Self::Denied { detail, .. }
            | Self::Full { detail, .. }
            | Self::Slow { detail, .. }
            | Self::Interrupted { detail, .. }
            | Self::Contract { detail, .. }
            | Self::Query { detail, .. } => detail.clone(),
            whole => whole.to_string(),
        }
    }

    /// Whether the store is there and answers, but not as the contract says.
    pub const fn breaks_contract(&self) -> bool {
        matches!(self, Self::Query { .. } | Self::Contract { .. } | Self::Version { .. })
    }
}

impl RowKey {
    pub const fn relation(&self) -> Relation {
        match self {
            Self::Credential(_) => Relation::Credentials,
            Self::Grant(_) => Relation::Grants,
            Self::Device(_) => Relation::Devices,
            Self::Unreadable { relation, .. } => *relation,
        }
    }
}

impl fmt::Display for RowKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.relation().name())?;
        match self {
            Self::Credential(key) => write!(f, "{}", key.credential_id()),
            Self::Grant(id) => write!(f, "{}", id.0),
            Self::Device(id) => write!(f, "{}", id.0),
            Self::Unreadable { key, .. } => f.write_str(key),
        }
    }
}

impl Relation {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Credentials => "credentials",
            Self::Grants => "grants",
            Self::Devices => "devices",
        }
    }
}
