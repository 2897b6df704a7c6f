//! The outbox: which rows changed since a read, and what has become of them.

use rusqlite::types::Value;
use rusqlite::{OptionalExtension, Row, Transaction};

use super::OUTBOX_ROWS_MAX;
use super::relations::{CREDENTIALS, DEVICES, GRANTS, for_each};
use crate::authz::{Change, DeviceId, GrantId, KeyHash, PrincipalId};
use crate::store::Changes;
use crate::store::decode::{self, BadRow};

/// What was committed after outbox row `since`, and the newest row now.
pub(super) fn changes(
    transaction: &Transaction<'_>,
    since: Option<OutboxRow>,
) -> rusqlite::Result<(Changes, Option<OutboxRow>)> {
    let newest = OutboxRow::newest(transaction)?;
    if newest == since {
        return Ok((Changes::Nothing, newest));
    }
    if !leads_on(transaction, since.as_ref(), newest.as_ref())? {
        return Ok((Changes::Behind, newest));
    }
    let Some(changed) = changed_rows(transaction, since.map_or(0, |row| row.id))? else {
        return Ok((Changes::Behind, newest));
    };
    let (mut changes, mut quarantined) = (Vec::new(), Vec::new());
    for key in changed {
        key.read(transaction, &mut |row| match row {
            Ok(change) => changes.push(change),
            Err(bad) => {
                changes.extend(bad.end());
                quarantined.push(bad.quarantined);
            }
        })?;
    }
    Ok((Changes::Some { changes, quarantined }, newest))
}

/// A row of the outbox, with everything by which it can be known again.
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

/// Whether the outbox holds everything that was committed between `since` and `newest`: the row that was
/// read last is still there and the same, or none was there and the first one ever is. A store that was
/// restored in place from a backup fails this too.
fn leads_on(
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

/// The rows that changed after outbox row `since`, each once, in the order of their last change; `None`
/// where the outbox holds what no trigger of ours wrote.
fn changed_rows(transaction: &Transaction<'_>, since: i64) -> rusqlite::Result<Option<Vec<ChangedRow>>> {
    let mut statement = transaction.prepare_cached(
        "SELECT relation, key FROM changes WHERE id > ?1 GROUP BY relation, key ORDER BY max(id)",
    )?;
    let rows = statement.query_map([since], |row| Ok(ChangedRow::decode(row.get(0)?, row.get(1)?)))?;
    rows.collect()
}

/// A row that the outbox names.
enum ChangedRow {
    Principal(PrincipalId),
    Credential(KeyHash),
    Grant(GrantId),
    Device(DeviceId),
}

impl ChangedRow {
    fn decode(relation: Value, key: Value) -> Option<Self> {
        let Value::Text(relation) = relation else {
            return None;
        };
        match (relation.as_str(), key) {
            ("principals", Value::Integer(id)) => Some(Self::Principal(PrincipalId(id))),
            ("credentials", Value::Blob(key)) => {
                key.try_into().ok().map(|key| Self::Credential(KeyHash::from_bytes(key)))
            }
            ("grants", Value::Integer(id)) => Some(Self::Grant(GrantId(id))),
            ("devices", Value::Integer(id)) => Some(Self::Device(DeviceId(id))),
            _ => None,
        }
    }

    /// Reads the row as it is now and gives it, or its absence, to `take`.
    fn read(
        &self,
        transaction: &Transaction<'_>,
        take: &mut impl FnMut(Result<Change, BadRow>),
    ) -> rusqlite::Result<()> {
        let mut found = false;
        let mut take_found = |row| {
            found = true;
            take(row);
        };
        let gone = match self {
            Self::Principal(id) => {
                if is_live(transaction, *id)? {
                    return Ok(());
                }
                Change::PrincipalGone(*id)
            }
            Self::Credential(key) => {
                let sql = format!("SELECT * FROM ({CREDENTIALS}) WHERE key_sha256 = ?1");
                let decode = |row: &Row<'_>| decode::credential(row).map(Change::Credential);
                for_each(transaction, &sql, [key.as_bytes()], decode, &mut take_found)?;
                Change::CredentialGone(*key)
            }
            Self::Grant(id) => {
                let sql = format!("SELECT * FROM ({GRANTS}) WHERE grant_id = ?1");
                let decode = |row: &Row<'_>| decode::grant(row).map(Change::Grant);
                for_each(transaction, &sql, [id.0], decode, &mut take_found)?;
                Change::GrantGone(*id)
            }
            Self::Device(id) => {
                let sql = format!("SELECT * FROM ({DEVICES}) WHERE device = ?1");
                let decode = |row: &Row<'_>| decode::device(row).map(Change::Device);
                for_each(transaction, &sql, [id.0], decode, &mut take_found)?;
                Change::DeviceGone(*id)
            }
        };
        if !found {
            take(Ok(gone));
        }
        Ok(())
    }
}

fn is_live(transaction: &Transaction<'_>, id: PrincipalId) -> rusqlite::Result<bool> {
    let sql = "SELECT removed_at IS NULL FROM principals WHERE id = ?1";
    let live = transaction.prepare_cached(sql)?.query_row([id.0], |row| row.get(0)).optional()?;
    Ok(live.unwrap_or(false))
}
