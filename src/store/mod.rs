//! Reads the rights that the relay decides by, through a [`StoreReader`] that gives checked rows, and writes what nodes
//! and commands have to say. Nothing above this module knows SQL.
//!
//! The relations, the commands and the table of nodes are written once, in the words of `dialect` and on top of `sql`.
//! `sqlite` and `postgres` hold what differs. `open` picks one of them by the configuration.

pub mod admin;
mod changed_key;
mod contract;
mod decode;
mod dialect;
mod duplicates;
mod ended;
mod error;
mod fingerprints;
#[doc(hidden)]
pub mod fuzzing;
mod migration;
mod nodes;
mod open;
mod position;
pub mod postgres;
mod presence;
mod reader;
mod relations;
mod rows;
mod sql;
pub mod sqlite;
mod value;
mod warnings;

pub use contract::{ContractColumn, contract_columns};
pub use error::StoreError;
pub use nodes::{NODES_MAX, NodeList, NodeRow, NodeTable};
pub use open::{
    QueriesDigest, check_sessions, check_stores, claim_table, has_principal_names, node_table,
    principal_names, queries_digest, reader,
};
pub use position::{KnownPosition, Position, Standing, StoreId};
pub use presence::{
    AddressHolder, AddressLayer, ClaimTable, DeviceMoves, HolderChange, PresenceReport, ReportAnswer,
    ReportQueue, wireguard_calls,
};
pub use reader::{Bookmark, RelationAnswer, RelationRows, StoreReader, Word, Words, WordsAnswer};
pub use rows::{Comparison, Quarantined, Relation, RowKey, Rows};
pub use warnings::{Examples, StoreWarnings};

/// Result of initialising a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Initialised {
    Created,
    Migrated { from: i64 },
    UpToDate,
}
