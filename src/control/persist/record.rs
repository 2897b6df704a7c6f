//! Entries of a journal: what is about to be in force, in the order in which it comes into force.

use serde::{Deserialize, Serialize};

use super::frames::CONTENT_BYTES_MAX;
use super::row_fields::{ChangeFields, EndFields};
use crate::authz::{Change, End, Generation, UnixMillis};
use crate::store::{Bookmark, Position, QueriesDigest};

/// One step from what is in force to what will be. The default changes nothing.
///
/// Everything in it is of one moment: after a restart either all of it counts or nothing.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(in crate::control) struct JournalRecord {
    /// Generation of the view with this record; `None` where it stays.
    pub generation: Option<Generation>,
    /// Rows that answers of the store change, in their order.
    pub inferred: Vec<Change>,
    /// Rows that explicit words change, in their order. Applied after the inferred ones.
    pub words: Vec<Change>,
    /// Ends that count no more: a newer word revived the row, or they are forgotten.
    pub lifted: Vec<End>,
    /// Ends that are added to [`Revocations`](crate::authz::Revocations).
    pub ended: Vec<End>,
    /// All that the guard remembers, in the guard's own form; `None` where it stays.
    pub memory: Option<Vec<u8>>,
    /// The place from which words are read on; `None` where it stays.
    pub bookmark: Option<Bookmark>,
    /// The newest position that is believed; `None` where it stays.
    pub position: Option<Position>,
}

/// One entry of a journal.
#[derive(Serialize, Deserialize)]
pub(super) enum JournalEntry {
    Record(RecordFields),
    /// What is in force is not what the entries before lead to. Until the next state only words and ends count.
    Gap,
    Times {
        confirmed_at: i64,
        seen_at: i64,
    },
    /// Queries by which the store is read from here on.
    Queries(QueriesDigest),
}

#[derive(Serialize, Deserialize)]
pub(super) struct RecordFields {
    seen_at: i64,
    generation: Option<u64>,
    inferred: Vec<ChangeFields>,
    words: Vec<ChangeFields>,
    lifted: Vec<EndFields>,
    ended: Vec<EndFields>,
    memory: Option<Vec<u8>>,
    bookmark: Option<Bookmark>,
    position: Option<Position>,
}

impl JournalRecord {
    /// Encodes the record as entries that each fit a frame; more than one, the first of which is a gap, if it is too
    /// large. `None` if a single row is.
    pub(super) fn contents(&self, seen_at: UnixMillis) -> Option<Vec<Vec<u8>>> {
        let whole = encode(&JournalEntry::Record(self.fields(seen_at)))?;
        if whole.len() <= CONTENT_BYTES_MAX {
            return Some(vec![whole]);
        }
        let mut contents = vec![encode(&JournalEntry::Gap)?];
        let Self { generation, words, lifted, ended, .. } = self;
        let record = |part: Self| Self { generation: *generation, ..part };
        for part in words.chunks(CHUNK_ROWS) {
            record(Self { words: part.to_vec(), ..Self::default() }).push_words(seen_at, &mut contents)?;
        }
        for part in lifted.chunks(CHUNK_ROWS) {
            record(Self { lifted: part.to_vec(), ..Self::default() }).push_words(seen_at, &mut contents)?;
        }
        for part in ended.chunks(CHUNK_ROWS) {
            record(Self { ended: part.to_vec(), ..Self::default() }).push_words(seen_at, &mut contents)?;
        }
        Some(contents)
    }

    /// The part that counts after a gap.
    pub(super) fn words_alone(self) -> Self {
        let Self { generation, words, lifted, ended, .. } = self;
        Self { generation, words, lifted, ended, ..Self::default() }
    }

    fn push_words(&self, seen_at: UnixMillis, contents: &mut Vec<Vec<u8>>) -> Option<()> {
        let content = encode(&JournalEntry::Record(self.fields(seen_at)))?;
        if content.len() > CONTENT_BYTES_MAX {
            return None;
        }
        contents.push(content);
        Some(())
    }

    fn fields(&self, seen_at: UnixMillis) -> RecordFields {
        let fields = |changes: &[Change]| changes.iter().map(ChangeFields::of).collect();
        let ends = |ends: &[End]| ends.iter().map(EndFields::of).collect();
        RecordFields {
            seen_at: seen_at.0,
            generation: self.generation.map(|generation| generation.0),
            inferred: fields(&self.inferred),
            words: fields(&self.words),
            lifted: ends(&self.lifted),
            ended: ends(&self.ended),
            memory: self.memory.clone(),
            bookmark: self.bookmark.clone(),
            position: self.position,
        }
    }
}

impl RecordFields {
    /// The record and the latest time seen when it was made; `None` if a row does not decode.
    pub(super) fn record(self) -> Option<(JournalRecord, UnixMillis)> {
        let changes =
            |fields: Vec<ChangeFields>| fields.into_iter().map(ChangeFields::change).collect::<Option<_>>();
        let record = JournalRecord {
            generation: self.generation.map(Generation),
            inferred: changes(self.inferred)?,
            words: changes(self.words)?,
            lifted: self.lifted.into_iter().map(EndFields::end).collect(),
            ended: self.ended.into_iter().map(EndFields::end).collect(),
            memory: self.memory,
            bookmark: self.bookmark,
            position: self.position,
        };
        Some((record, UnixMillis(self.seen_at)))
    }
}

/// `None` for what cannot be encoded, which none of our types is.
pub(super) fn encode(value: &impl Serialize) -> Option<Vec<u8>> {
    postcard::to_stdvec(value).ok()
}

/// Rows in one part of a record that is too large for a frame. With the longest names that stores have, so many fit.
const CHUNK_ROWS: usize = 256;
