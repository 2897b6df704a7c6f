//! Makes readers, tables and commands for the store that the configuration names.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::admin::{Admin, AdminError};
use super::dialect::SQLITE;
use super::nodes::NodeTable;
use super::presence::ClaimTable;
use super::relations::PerRelation;
use super::{Initialised, KnownPosition, Relation, StoreError, StoreReader, postgres, sqlite};
use crate::authz::PrincipalId;
use crate::config::{self, Authz, Config, Profile, StoreUrl};

/// A reader of the rights of the store that the configuration names. It connects with its first read, and so never
/// fails here. All readers of one store share `known`.
pub fn reader(store: &config::Store, authz: &Authz, known: KnownPosition) -> Box<dyn StoreReader> {
    match &store.url {
        StoreUrl::Sqlite(path) => Box::new(sqlite::SqliteReader::new(path, store, authz, known)),
        StoreUrl::Postgres(url) => Box::new(postgres::PostgresReader::new(url, store, authz, known)),
    }
}

/// Fails where a store of `config` is behind something that a relay cannot work through.
pub fn check_stores(config: &Config) -> Result<(), StoreError> {
    check_sessions(&config.store)?;
    match &config.forward.directory_url {
        Some(_) => check_sessions(&writing_store(config)),
        None => Ok(()),
    }
}

/// Fails where `store` is behind something that a relay cannot work through.
pub fn check_sessions(store: &config::Store) -> Result<(), StoreError> {
    match &store.url {
        StoreUrl::Sqlite(_) => Ok(()),
        StoreUrl::Postgres(url) => postgres::check_sessions(url, store),
    }
}

/// SHA-256 of the texts of the queries that read the relations, in the order of [`Relation::ALL`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct QueriesDigest([[u8; 32]; 3]);

impl QueriesDigest {
    /// The relations that the other queries read in another way.
    pub fn differing(&self, other: &Self) -> Vec<Relation> {
        let digests = Relation::ALL.into_iter().zip(self.0.iter().zip(&other.0));
        digests.filter(|(_, (ours, others))| ours != others).map(|(relation, _)| relation).collect()
    }
}

/// Digest of the queries that read the relations: ours, and those that replace some of them.
pub fn queries_digest(store: &config::Store, authz: &Authz) -> QueriesDigest {
    let ours = match &store.url {
        StoreUrl::Sqlite(_) => PerRelation::of_reference_schema(&SQLITE),
        StoreUrl::Postgres(_) => postgres::SourceSchema::of(store.profile, authz).queries(),
    };
    let PerRelation { credentials, grants, devices } = ours.replaced_by(&authz.queries);
    QueriesDigest([credentials, grants, devices].map(|sql| Sha256::digest(sql).into()))
}

/// The table of nodes that the configuration names.
pub fn node_table(config: &Config) -> NodeTable {
    let store = writing_store(config);
    match &store.url {
        StoreUrl::Sqlite(path) => NodeTable::new(sqlite::SqliteWriter::new(path)),
        StoreUrl::Postgres(url) => NodeTable::new(postgres::PostgresWriter::new(url, &store)),
    }
}

/// The table of claims that the configuration names. The role that writes the nodes' table writes it too.
pub fn claim_table(config: &Config) -> ClaimTable {
    let store = writing_store(config);
    match &store.url {
        StoreUrl::Sqlite(path) => ClaimTable::new(sqlite::SqliteWriter::new(path)),
        StoreUrl::Postgres(url) => ClaimTable::new(postgres::PostgresWriter::new(url, &store)),
    }
}

/// True where the store has names of principals. Those of another schema are other people.
pub fn has_principal_names(config: &Config) -> bool {
    config.store.profile == Profile::Reference && !config.authz.queries.are_replaced()
}

/// The names of all principals.
pub fn principal_names(config: &Config) -> Result<HashMap<PrincipalId, String>, AdminError> {
    Ok(Admin::open(&config.store)?.principal_names()?.into_iter().collect())
}

/// The store, as the role that may write what nodes say about themselves.
fn writing_store(config: &Config) -> config::Store {
    match &config.forward.directory_url {
        // Another role has another password.
        Some(url) => config::Store {
            url: url.clone(),
            password_file: config.forward.directory_password_file.clone(),
            ..config.store.clone()
        },
        None => config.store.clone(),
    }
}

impl Admin {
    /// Makes the store, or brings it to this program's schema.
    pub fn init(store: &config::Store) -> Result<Initialised, StoreError> {
        match &store.url {
            StoreUrl::Sqlite(path) => sqlite::init(path),
            StoreUrl::Postgres(url) => postgres::init(url, store),
        }
    }

    /// Opens the store, which must exist and be of this program's schema.
    pub fn open(store: &config::Store) -> Result<Self, StoreError> {
        match &store.url {
            StoreUrl::Sqlite(path) => sqlite::open(path),
            StoreUrl::Postgres(url) => postgres::open(url, store),
        }
    }
}
