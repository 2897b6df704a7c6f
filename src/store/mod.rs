//! Reads the rights that the relay decides by, as a [`Source`] of checked rows, and writes what nodes and commands have
//! to say. Nothing above this module knows SQL.
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
mod migration;
mod nodes;
mod open;
mod outbox;
mod polling;
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

use std::time::{Duration, Instant};

use crossbeam::channel::{self, Receiver};

use crate::authz::Change;
use crate::config::Queries;

pub use contract::{ContractColumn, contract_columns};
pub use error::StoreError;
pub use nodes::{NODES_MAX, NodeList, NodeRow, NodeTable};
pub use open::{QueriesDigest, claim_table, located_source, node_table, queries_digest, reader, source};
pub use position::{KnownPosition, Position, Standing, StoreId};
pub use presence::{
    AddressHolder, AddressLayer, ClaimTable, DeviceMoves, HolderChange, PresenceReport, ReportAnswer,
    ReportQueue,
};
pub use reader::{Bookmark, RelationAnswer, RelationRows, StoreReader, Word, Words, WordsAnswer};
pub use rows::{Changes, Comparison, Quarantined, Relation, RowKey, Rows};
pub use warnings::{Examples, StoreWarnings};

/// A database whose rights the relay reads. A source never writes to it.
///
/// Calls block; only the control thread makes them. After an error a source can be used again: its next call
/// reconnects if it has to.
pub trait Source: Send {
    /// Reads all relations as of one moment, and remembers that moment for [`Source::read_changes`].
    fn read_all(&mut self) -> Result<Rows, StoreError>;

    /// Reads the changes that were committed since the last successful read of either kind.
    fn read_changes(&mut self) -> Result<Changes, StoreError>;

    /// Reads all relations twice as of one moment, by the running queries and by `candidate`. Fails if the candidate
    /// breaks the contract. The source remembers nothing of either.
    fn compare(&mut self, candidate: &Queries) -> Result<Comparison, StoreError>;

    /// Reads by `queries` from now on. The next read has to be one of everything.
    fn replace_queries(&mut self, queries: Queries);

    /// Changes of device addresses that come from elsewhere than the store, while the store cannot be read.
    fn changes_elsewhere(&mut self) -> Vec<Change> {
        Vec::new()
    }

    /// Things that the reads so far met and could not use.
    fn warnings(&self) -> StoreWarnings {
        StoreWarnings::default()
    }

    /// Age that the last read rows already had when they were read. It is zero except for a replica that is behind.
    fn lag(&self) -> Duration {
        Duration::ZERO
    }

    /// Time since when the oldest of the last read changes could have been read, if the store says so.
    fn readable_since(&self) -> Option<Instant> {
        None
    }

    /// Signals that there is something to read before the next poll. This is a hint that nothing depends on; a store
    /// that cannot give any never does.
    fn wake_ups(&mut self) -> Receiver<()> {
        channel::never()
    }

    /// Kind and place of the store for log lines, without secrets.
    fn describe(&self) -> String;
}

/// Result of initialising a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Initialised {
    Created,
    Migrated { from: i64 },
    UpToDate,
}
