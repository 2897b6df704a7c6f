//! Place of a read in the history of a store file.
//!
//! A store of ours holds its identity, and its outbox numbers what was committed. The number of the newest row never
//! goes back, although the outbox is pruned, except where the file itself goes back. A file of another program has
//! neither: nothing in it says which of two of its states is the newer.

use rusqlite::types::ValueRef;
use rusqlite::{Connection, OptionalExtension, Row};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::SqlitePath;
use crate::store::{Position, Standing, StoreError, StoreId};

/// Where an answer stands.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) position: Position,
    pub(super) standing: Standing,
    /// True for a store of ours, which has an outbox.
    pub(super) is_ours: bool,
}

/// A row of the outbox by its number, and the fingerprint that it is recognised by.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub(super) struct OutboxMark {
    /// 0 before the first row.
    pub(super) number: i64,
    /// 0 where the row is not there any more.
    pub(super) mark: u64,
}

impl Place {
    /// The place of a read on `connection`, in its transaction.
    pub(super) fn of(
        connection: &Connection,
        path: &SqlitePath,
        known: Option<Position>,
        is_ours: bool,
    ) -> Result<Self, StoreError> {
        let place = || {
            let position = if is_ours { of_our_store(connection)? } else { of_foreign_file(path) };
            Ok(Self { position, standing: standing(connection, position, known)?, is_ours })
        };
        place().map_err(|error| path.error(error))
    }
}

impl OutboxMark {
    /// The newest row that there ever was.
    pub(super) fn newest(connection: &Connection) -> rusqlite::Result<Self> {
        let sql = "SELECT max(
            coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'changes'), 0),
            coalesce((SELECT max(id) FROM changes), 0))";
        let number = connection.prepare_cached(sql)?.query_row([], |row| row.get(0))?;
        Ok(Self { number, mark: mark_of(connection, number)?.unwrap_or(0) })
    }

    /// True unless the outbox has another row of this number, or has not come to it.
    pub(super) fn is_in_history(self, connection: &Connection, newest: Self) -> rusqlite::Result<bool> {
        if self.number > newest.number {
            return Ok(false);
        }
        Ok(self.mark == 0 || mark_of(connection, self.number)?.is_none_or(|mark| mark == self.mark))
    }

    /// True if the outbox has all rows from this one to `newest`, and this one is what it was.
    pub(super) fn leads_to(self, connection: &Connection, newest: Self) -> rusqlite::Result<bool> {
        if !self.is_in_history(connection, newest)? {
            return Ok(false);
        }
        let sql = "SELECT count(*) FROM changes WHERE id > ?1";
        let later: i64 = connection.prepare_cached(sql)?.query_row([self.number], |row| row.get(0))?;
        Ok(newest.number.checked_sub(self.number) == Some(later))
    }
}

/// Position in a store of ours.
fn of_our_store(connection: &Connection) -> rusqlite::Result<Position> {
    let sql = "SELECT id FROM store_identity";
    let id: Vec<u8> = connection.prepare_cached(sql)?.query_row([], |row| row.get(0))?;
    let newest = OutboxMark::newest(connection)?;
    let mut store = [0; 16];
    let bytes = id.len().min(store.len());
    store[..bytes].copy_from_slice(&id[..bytes]);
    Ok(Position { store: StoreId(store), timeline: 0, log: newest.number.unsigned_abs(), mark: newest.mark })
}

/// Position in a file of another program: the same at all times, for whatever file the path leads to.
fn of_foreign_file(path: &SqlitePath) -> Position {
    let digest = Sha256::digest(path.path.as_os_str().as_encoded_bytes());
    let mut store = [0; 16];
    store.copy_from_slice(&digest[..16]);
    Position { store: StoreId(store), timeline: 0, log: 0, mark: 0 }
}

/// Relation of a read at `position` to the newest one that was believed.
fn standing(
    connection: &Connection,
    position: Position,
    known: Option<Position>,
) -> rusqlite::Result<Standing> {
    let Some(known) = known else {
        return Ok(Standing::Newer);
    };
    if (known.store, known.timeline) != (position.store, position.timeline) {
        return Ok(Standing::Elsewhere);
    }
    if known == position {
        return Ok(Standing::Newer);
    }
    let number = |log: u64| i64::try_from(log).unwrap_or(i64::MAX);
    let known = OutboxMark { number: number(known.log), mark: known.mark };
    let newest = OutboxMark { number: number(position.log), mark: position.mark };
    let is_later = known.is_in_history(connection, newest)?;
    Ok(if is_later { Standing::Newer } else { Standing::Older })
}

/// Fingerprint of an outbox row; `None` if it is not there. It is kept over restarts and never 0.
fn mark_of(connection: &Connection, number: i64) -> rusqlite::Result<Option<u64>> {
    let sql = "SELECT relation, key, changed_at FROM changes WHERE id = ?1";
    let mark = |row: &Row<'_>| {
        let mut digest = Sha256::new();
        digest.update(number.to_le_bytes());
        for column in 0..3 {
            let (kind, number, bytes) = match row.get_ref(column)? {
                ValueRef::Null => (0, [0; 8], &[][..]),
                ValueRef::Integer(integer) => (1, integer.to_le_bytes(), &[][..]),
                ValueRef::Real(real) => (2, real.to_le_bytes(), &[][..]),
                ValueRef::Text(text) => (3, text.len().to_le_bytes(), text),
                ValueRef::Blob(bytes) => (4, bytes.len().to_le_bytes(), bytes),
            };
            digest.update([kind]);
            digest.update(number);
            digest.update(bytes);
        }
        let digest = digest.finalize();
        let (first, _) = digest.split_first_chunk::<8>().unwrap_or((&[0; 8], &[]));
        Ok(u64::from_le_bytes(*first).max(1))
    };
    connection.prepare_cached(sql)?.query_row([number], mark).optional()
}
