//! The outbox: which rows changed since a read, and what they are now.

use rusqlite::types::{Value, ValueRef};
use rusqlite::{OptionalExtension, Params, Row, Transaction};

use super::OUTBOX_ROWS_MAX;
use super::relations::for_each;
use crate::authz::{Change, PrincipalId};
use crate::store::Changes;
use crate::store::decode::{self, BadRow};
use crate::store::dialect::SQLITE;
use crate::store::outbox::{ChangedKey, ReadChanges};
use crate::store::relations::{LIVE_PRINCIPALS, PerRelation};
use crate::store::value::StoreRow;

/// Reads what was committed after outbox row `since`. Also returns the newest row.
pub(super) fn changes(
    transaction: &Transaction<'_>,
    since: Option<OutboxRow>,
) -> rusqlite::Result<(Changes, Option<OutboxRow>)> {
    let newest = OutboxRow::newest(transaction)?;
    if newest == since {
        return Ok((Changes::Nothing, newest));
    }
    if !is_complete(transaction, since.as_ref(), newest.as_ref())? {
        return Ok((Changes::Behind, newest));
    }
    let Some(changed) = changed_keys(transaction, since.map_or(0, |row| row.id))? else {
        return Ok((Changes::Behind, newest));
    };
    let queries = PerRelation::of_reference_schema(&SQLITE);
    let mut changes = ReadChanges::default();
    for key in changed {
        read_row(transaction, &queries, key, &mut |row| changes.add(row))?;
    }
    Ok((changes.into(), newest))
}

/// A row of the outbox, with everything that it can be recognised by.
#[derive(Clone, PartialEq)]
pub(super) struct OutboxRow {
    id: i64,
    relation: Value,
    key: Value,
    changed_at: Value,
}

impl OutboxRow {
    pub(super) fn newest(transaction: &Transaction<'_>) -> rusqlite::Result<Option<Self>> {
        let sql = "SELECT id, relation, key, changed_at FROM changes ORDER BY id DESC LIMIT 1";
        transaction.prepare_cached(sql)?.query_row([], Self::decode).optional()
    }

    fn by_id(transaction: &Transaction<'_>, id: i64) -> rusqlite::Result<Option<Self>> {
        let sql = "SELECT id, relation, key, changed_at FROM changes WHERE id = ?1";
        transaction.prepare_cached(sql)?.query_row([id], Self::decode).optional()
    }

    fn decode(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self { id: row.get(0)?, relation: row.get(1)?, key: row.get(2)?, changed_at: row.get(3)? })
    }
}

/// True if the outbox holds everything that was committed between `since` and `newest`: the row that was read last is
/// still there and the same, or none was there and the first one ever is. A store that was restored in place from a
/// backup fails this too.
fn is_complete(
    transaction: &Transaction<'_>,
    since: Option<&OutboxRow>,
    newest: Option<&OutboxRow>,
) -> rusqlite::Result<bool> {
    let Some(newest) = newest else {
        return Ok(false);
    };
    if newest.id.saturating_sub(since.map_or(0, |row| row.id)) > OUTBOX_ROWS_MAX {
        return Ok(false);
    }
    match since {
        Some(since) => Ok(OutboxRow::by_id(transaction, since.id)?.as_ref() == Some(since)),
        None => Ok(OutboxRow::by_id(transaction, 1)?.is_some()),
    }
}

/// The rows that changed after outbox row `since`, each once, in the order of their last change. `None` if the outbox
/// holds something that no trigger of ours wrote.
pub(super) fn changed_keys(
    transaction: &Transaction<'_>,
    since: i64,
) -> rusqlite::Result<Option<Vec<ChangedKey>>> {
    let mut statement = transaction.prepare_cached(
        "SELECT relation, key FROM changes WHERE id > ?1 GROUP BY relation, key ORDER BY max(id)",
    )?;
    let decode = |row: &Row<'_>| match row.get_ref(0)? {
        ValueRef::Text(relation) => {
            let relation = std::str::from_utf8(relation).unwrap_or_default();
            Ok(row.value(1).and_then(|key| ChangedKey::decode(relation, key)))
        }
        _ => Ok(None),
    };
    statement.query_map([since], decode)?.collect()
}

/// Reads the row that `key` names, as it is now, and gives it or its absence to `on_row`.
fn read_row(
    transaction: &Transaction<'_>,
    queries: &PerRelation<String>,
    key: ChangedKey,
    on_row: &mut impl FnMut(Result<Change, BadRow>),
) -> rusqlite::Result<()> {
    let mut is_found = false;
    match key {
        ChangedKey::Principal(id) => is_found = is_live(transaction, id)?,
        ChangedKey::Credential(key) => {
            by_key(transaction, &queries.credentials, "key_sha256", [key.as_bytes()], |row| {
                is_found = true;
                on_row(decode::credential(row).map(Change::Credential));
            })?;
        }
        ChangedKey::Grant(id) => by_key(transaction, &queries.grants, "grant_id", [id.0], |row| {
            is_found = true;
            on_row(decode::grant(row).map(Change::Grant));
        })?,
        ChangedKey::Device(id) => by_key(transaction, &queries.devices, "device", [id.0], |row| {
            is_found = true;
            on_row(decode::device(row).map(Change::Device));
        })?,
    }
    if !is_found {
        on_row(Ok(key.gone()));
    }
    Ok(())
}

pub(super) fn by_key(
    transaction: &Transaction<'_>,
    query: &str,
    column: &str,
    key: impl Params,
    on_row: impl FnMut(&Row<'_>),
) -> rusqlite::Result<()> {
    for_each(transaction, &format!("SELECT * FROM ({query}) WHERE {column} = ?1"), key, on_row)
}

pub(super) fn is_live(transaction: &Transaction<'_>, id: PrincipalId) -> rusqlite::Result<bool> {
    let sql = format!("SELECT 1 FROM ({}) WHERE id = ?1", SQLITE.sql(LIVE_PRINCIPALS));
    transaction.prepare_cached(&sql)?.exists([id.0])
}
