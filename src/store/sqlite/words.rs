//! The words of the outbox: what is recorded of each row that changed after a bookmark.

use rusqlite::{Params, Transaction};

use super::OUTBOX_ROWS_MAX;
use super::outbox::{by_key, changed_rows, is_live};
use super::position::OutboxMark;
use crate::authz::{Change, UnixMillis};
use crate::config::Queries;
use crate::store::changed_key::{ChangedKey, ChangedRow, Recorded};
use crate::store::decode::{self, BadRow};
use crate::store::dialect::SQLITE;
use crate::store::relations::PerRelation;
use crate::store::{Quarantined, Word};

/// Words in commit order, apart from the rows that did not decode.
#[derive(Default)]
pub(super) struct ReadWords {
    pub(super) words: Vec<Word>,
    pub(super) quarantined: Vec<Quarantined>,
}

/// Reads what was recorded after `bookmark`. `None` if the outbox does not lead from there to `newest`.
///
/// Of a relation whose query is among `replaced`, our tables say only whether a row has ended: the rest comes from the
/// operator's query.
pub(super) fn since(
    transaction: &Transaction<'_>,
    bookmark: OutboxMark,
    newest: OutboxMark,
    replaced: &Queries,
    now: UnixMillis,
) -> rusqlite::Result<Option<ReadWords>> {
    let is_too_much = newest.number.saturating_sub(bookmark.number) > OUTBOX_ROWS_MAX;
    if is_too_much || !bookmark.leads_to(transaction, newest)? {
        return Ok(None);
    }
    let Some(changed) = changed_rows(transaction, bookmark.number)? else {
        return Ok(None);
    };
    let queries = RowQueries::new();
    let mut read = ReadWords::default();
    for row in changed {
        let key = row.key;
        if let ChangedKey::Principal(id) = key {
            let is_live = match row.recorded {
                Recorded::Gone => false,
                Recorded::Row(_) => true,
                Recorded::KeyOnly => is_live(transaction, id)?,
            };
            read.words.push(if is_live { key.live() } else { key.ended() });
            continue;
        }
        let row = queries.find(transaction, row)?;
        if is_replaced(key, replaced) {
            read.add_end(key, row, now);
        } else {
            read.add_row(key, row);
        }
    }
    Ok(Some(read))
}

impl ReadWords {
    fn add_row(&mut self, key: ChangedKey, row: Option<Result<Change, BadRow>>) {
        match row {
            None => self.words.push(Word::Row(key.gone())),
            Some(Ok(change)) => self.words.push(Word::Row(change)),
            Some(Err(bad)) => {
                self.words.extend(bad.ended_key().map(Word::Ended));
                self.quarantined.push(bad.quarantined);
            }
        }
    }

    /// Adds whether the row has ended. One that does not decode and is not revoked says nothing.
    fn add_end(&mut self, key: ChangedKey, row: Option<Result<Change, BadRow>>, now: UnixMillis) {
        match row {
            None => self.words.push(key.ended()),
            Some(Ok(change)) => {
                self.words.push(if has_ended(&change, now) { key.ended() } else { key.live() })
            }
            Some(Err(bad)) => self.words.extend(bad.ended_key().map(Word::Ended)),
        }
    }
}

/// The queries by which a row that the outbox names is found.
struct RowQueries {
    written: PerRelation<String>,
    tables: PerRelation<String>,
}

impl RowQueries {
    fn new() -> Self {
        Self { written: PerRelation::of_outbox(&SQLITE), tables: PerRelation::of_reference_schema(&SQLITE) }
    }

    /// The row as it was written last; `None` if it is gone.
    fn find(
        &self,
        transaction: &Transaction<'_>,
        row: ChangedRow,
    ) -> rusqlite::Result<Option<Result<Change, BadRow>>> {
        let Self { written, tables } = self;
        match (row.recorded, row.key) {
            (Recorded::Gone, _) | (_, ChangedKey::Principal(_)) => Ok(None),
            (Recorded::Row(number), key) => read_row(transaction, written, key, "id", [number]),
            (_, ChangedKey::Credential(key)) => {
                read_row(transaction, tables, row.key, "key_sha256", [key.as_bytes()])
            }
            (_, ChangedKey::Grant(id)) => read_row(transaction, tables, row.key, "grant_id", [id.0]),
            (_, ChangedKey::Device(id)) => read_row(transaction, tables, row.key, "device", [id.0]),
        }
    }
}

/// The row of `queries` that has `value` in `column`.
fn read_row(
    transaction: &Transaction<'_>,
    queries: &PerRelation<String>,
    key: ChangedKey,
    column: &str,
    value: impl Params,
) -> rusqlite::Result<Option<Result<Change, BadRow>>> {
    let mut found = None;
    match key {
        ChangedKey::Principal(_) => {}
        ChangedKey::Credential(_) => by_key(transaction, &queries.credentials, column, value, |row| {
            found = Some(decode::credential(row).map(Change::Credential));
        })?,
        ChangedKey::Grant(_) => by_key(transaction, &queries.grants, column, value, |row| {
            found = Some(decode::grant(row).map(Change::Grant));
        })?,
        ChangedKey::Device(_) => by_key(transaction, &queries.devices, column, value, |row| {
            found = Some(decode::device(row).map(Change::Device));
        })?,
    }
    Ok(found)
}

const fn is_replaced(key: ChangedKey, replaced: &Queries) -> bool {
    match key {
        ChangedKey::Principal(_) => false,
        ChangedKey::Credential(_) => replaced.credentials.is_some(),
        ChangedKey::Grant(_) => replaced.grants.is_some(),
        ChangedKey::Device(_) => replaced.devices.is_some(),
    }
}

/// True if the row says that its right is over.
fn has_ended(change: &Change, now: UnixMillis) -> bool {
    let is_over =
        |revoked: bool, expires_at: Option<UnixMillis>| revoked || expires_at.is_some_and(|end| end <= now);
    match change {
        Change::Credential(row) => is_over(row.revoked, row.expires_at),
        Change::Grant(row) => is_over(row.revoked, row.expires_at),
        Change::Device(_) => false,
        Change::CredentialGone(_)
        | Change::GrantGone(_)
        | Change::DeviceGone(_)
        | Change::PrincipalGone(_) => true,
    }
}
