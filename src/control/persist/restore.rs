//! Reads a state and the journals that continue it, as what was in force when they were written last.

use std::collections::HashSet;

use super::folder::Folder;
use super::journal::{JournalEnd, JournalReader};
use super::record::{JournalEntry, JournalRecord};
use super::state_file::{self, StateHeader, StateReader, StateRows};
use super::{Kept, KeptError, Origin};
use crate::authz::{Change, End, Generation, Revocations, UnixMillis};
use crate::store::{Bookmark, Position, QueriesDigest};

/// Reads everything; `None` where there is no state.
pub(super) fn restore(folder: &Folder, origin: &Origin) -> Result<Option<Kept>, KeptError> {
    let Some(state) = open(folder)? else { return Ok(None) };
    // Its checksum first: a header that is damaged is not another store's.
    let (header, rows) = state.rows()?;
    check_store(folder, &header, origin)?;
    let mut journal = JournalReader::new(folder, header.journal)?;
    let mut replay = Replay::new(&header, &rows);
    while let Some(entry) = journal.next()? {
        if !replay.apply(entry) {
            let path = folder.journal(journal.end().place.number).display().to_string();
            return Err(KeptError::Damaged { path, detail: "a row does not decode" });
        }
    }
    Ok(Some(replay.kept(rows, origin)))
}

/// The end of the journals that continue the state, without reading its rows; `None` where there is no state.
pub(super) fn journal_end(folder: &Folder, origin: &Origin) -> Result<Option<JournalEnd>, KeptError> {
    let Some(state) = open(folder)? else { return Ok(None) };
    check_store(folder, &state.header, origin)?;
    let mut journal = JournalReader::new(folder, state.header.journal)?;
    while journal.next()?.is_some() {}
    Ok(Some(journal.end()))
}

fn open(folder: &Folder) -> Result<Option<StateReader>, KeptError> {
    folder.check_permissions()?;
    state_file::open(folder)
}

fn check_store(folder: &Folder, header: &StateHeader, origin: &Origin) -> Result<(), KeptError> {
    if header.store == origin.store {
        return Ok(());
    }
    let (found, wanted) = (header.store.clone(), origin.store.clone());
    Err(KeptError::Store { path: folder.state().display().to_string(), found, wanted })
}

/// What the journals add to a state.
struct Replay {
    generation: Generation,
    confirmed_at: UnixMillis,
    seen_at: UnixMillis,
    queries: QueriesDigest,
    position: Option<Position>,
    bookmark: Option<Bookmark>,
    changes: Vec<Change>,
    ends: HashSet<End>,
    /// Those that came after a gap: the state may have their rows in an earlier form.
    gap_ends: HashSet<End>,
    /// `None` while it is the state's.
    memory: Option<Vec<u8>>,
    has_gap: bool,
}

impl Replay {
    fn new(header: &StateHeader, rows: &StateRows) -> Self {
        Self {
            generation: Generation(header.generation),
            confirmed_at: UnixMillis(header.confirmed_at),
            seen_at: UnixMillis(header.seen_at),
            queries: header.queries,
            position: header.position,
            bookmark: rows.bookmark.clone(),
            changes: Vec::new(),
            ends: rows.ends.iter().copied().collect(),
            gap_ends: HashSet::new(),
            memory: None,
            has_gap: false,
        }
    }

    /// Returns whether the entry decodes.
    fn apply(&mut self, entry: JournalEntry) -> bool {
        match entry {
            JournalEntry::Gap => self.has_gap = true,
            JournalEntry::Times { confirmed_at, seen_at } => {
                self.confirmed_at = self.confirmed_at.max(UnixMillis(confirmed_at));
                self.seen_at = self.seen_at.max(UnixMillis(seen_at));
            }
            JournalEntry::Queries(queries) => self.queries = queries,
            JournalEntry::Record(fields) => match fields.record() {
                Some((record, seen_at)) => {
                    self.seen_at = self.seen_at.max(seen_at);
                    self.apply_record(if self.has_gap { record.words_alone() } else { record });
                }
                None => return false,
            },
        }
        true
    }

    fn apply_record(&mut self, record: JournalRecord) {
        if let Some(generation) = record.generation {
            self.generation = self.generation.max(generation);
        }
        self.changes.extend(record.inferred.iter().chain(&record.words).cloned());
        for end in &record.lifted {
            self.ends.remove(end);
            self.gap_ends.remove(end);
        }
        let ends = if self.has_gap { &mut self.gap_ends } else { &mut self.ends };
        ends.extend(&record.ended);
        self.position = record.position.or(self.position);
        self.bookmark = record.bookmark.or(self.bookmark.take());
        self.memory = record.memory.or(self.memory.take());
    }

    fn kept(self, rows: StateRows, origin: &Origin) -> Kept {
        let gap_ends = self.gap_ends.iter().flat_map(|end| end.within(&rows.snapshot));
        let ends: Vec<End> = self.ends.into_iter().chain(gap_ends).collect();
        let none = Revocations::default();
        let snapshot = match self.changes.is_empty() && self.generation == rows.snapshot.generation() {
            true => rows.snapshot,
            false => rows.snapshot.apply(self.generation, &self.changes),
        };
        Kept {
            snapshot,
            revocations: none.with_ends(ends).unwrap_or(none),
            confirmed_at: self.confirmed_at,
            seen_at: self.seen_at,
            other_queries: self.queries.differing(&origin.queries),
            position: self.position,
            bookmark: self.bookmark,
            memory: self.memory.unwrap_or(rows.memory),
            has_gap: self.has_gap,
        }
    }
}
