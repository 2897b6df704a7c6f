//! The relay's side of a store: one relation at a time, and what an outbox says of single rows.

use std::time::{Duration, Instant};

use crossbeam::channel::{self, Receiver};
use serde::{Deserialize, Serialize};

use super::{Comparison, Position, Quarantined, Relation, RowKey, Standing, StoreError, StoreWarnings};
use crate::authz::{Change, Credential, Device, Grant, PrincipalId};
use crate::config::Queries;

/// A database whose rights the relay reads. A reader never writes to it.
///
/// Calls block, for no longer than the time limits of a read. Each reader has a connection of its own and is used by
/// one thread; several read one store side by side. After an error a reader can be used again.
pub trait StoreReader: Send {
    /// Reads one relation whole, as of one moment.
    fn read_relation(&mut self, relation: Relation) -> Result<RelationAnswer, StoreError>;

    /// Reads what the store has recorded since the last call.
    ///
    /// The first call after [`StoreReader::resume`] continues from there. The first call of all begins at the store's
    /// present and gives [`Words::Behind`].
    fn read_words(&mut self) -> Result<WordsAnswer, StoreError>;

    /// The place from which [`StoreReader::read_words`] goes on; `None` before its first success.
    fn bookmark(&self) -> Option<Bookmark>;

    /// Goes on from `bookmark`, which an earlier process has kept.
    fn resume(&mut self, bookmark: Bookmark);

    /// Reads all relations twice as of one moment, by the running queries and by `candidate`. Fails if the candidate
    /// breaks the contract.
    fn compare(&mut self, candidate: &Queries) -> Result<Comparison, StoreError>;

    /// Reads by `queries` from now on.
    fn replace_queries(&mut self, queries: Queries);

    /// True where an outbox names each row that changes, so that relations need to be read whole only rarely.
    fn follows_outbox(&self) -> bool;

    /// Things that the reads so far met and could not use.
    fn warnings(&self) -> StoreWarnings {
        StoreWarnings::default()
    }

    /// Age that the last read rows already had when they were read. It is zero except for a replica that is behind.
    fn lag(&self) -> Duration {
        Duration::ZERO
    }

    /// Signals that there are words to read before the next poll. This is a hint that nothing depends on; a store that
    /// cannot give any never does.
    fn wake_ups(&mut self) -> Receiver<()> {
        channel::never()
    }

    /// Kind and place of the store for log lines, without secrets.
    fn describe(&self) -> String;
}

/// One relation, as of one moment.
#[derive(Debug)]
pub struct RelationAnswer {
    pub rows: RelationRows,
    pub quarantined: Vec<Quarantined>,
    /// Ends of rights whose rows are quarantined for another fault. They say that they are revoked, and that counts.
    pub ended: Vec<RowKey>,
    /// Everything that was committed up to here is in the answer.
    pub position: Position,
    /// The position as far as it is on the store's disk, to be made known. A standby gets nothing beyond it.
    pub durable: Position,
    pub standing: Standing,
}

/// The rows of a relation that decoded.
#[derive(Debug)]
pub enum RelationRows {
    Credentials(Vec<Credential>),
    Grants(Vec<Grant>),
    Devices(Vec<Device>),
    /// The relation is as it was at the reader's last call for it.
    Unchanged,
}

/// What a store has recorded of single rows.
#[derive(Debug)]
pub struct WordsAnswer {
    pub words: Words,
    /// Nothing that was committed after this is in the answer.
    pub position: Position,
    /// The position as far as it is on the store's disk, to be made known. A standby gets nothing beyond it.
    pub durable: Position,
    pub standing: Standing,
    /// Time since when the oldest of the words could have been read, if the store says so.
    pub readable_since: Option<Instant>,
}

#[derive(Debug)]
pub enum Words {
    Nothing,
    /// Words in the order of their commits.
    Some {
        words: Vec<Word>,
        quarantined: Vec<Quarantined>,
    },
    /// What was recorded does not lead from the last call to now: read the relations whole.
    Behind,
}

/// What a store recorded of one row, when it was written. The newest word on a row counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Word {
    /// The row as it is now, or that it is gone.
    Row(Change),
    /// The row has ended; what else it says comes from the operator's query.
    Ended(RowKey),
    /// The row has not ended, whatever was said before.
    Live(RowKey),
    /// The principal was removed, with everything that it holds.
    PrincipalEnded(PrincipalId),
    PrincipalLive(PrincipalId),
}

/// The place from which words are read on, in the reader's own form.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Bookmark(pub Vec<u8>);
