//! The queries on the outbox: which rows changed after one of its rows, and what they are now.

use rusqlite::types::ValueRef;
use rusqlite::{Params, Row, Transaction};

use super::relations::for_each;
use crate::authz::PrincipalId;
use crate::store::changed_key::{ChangedKey, ChangedRow, Recorded};
use crate::store::dialect::SQLITE;
use crate::store::relations::LIVE_PRINCIPALS;
use crate::store::value::StoreRow;

/// The rows that changed after outbox row `since`, each once, in the order of their last change. `None` if the outbox
/// holds something that no trigger of ours wrote.
pub(super) fn changed_rows(
    transaction: &Transaction<'_>,
    since: i64,
) -> rusqlite::Result<Option<Vec<ChangedRow>>> {
    // With max() alone, the other columns are those of the row that has it.
    let mut statement = transaction.prepare_cached(
        "SELECT relation, key, max(id), gone FROM changes WHERE id > ?1 GROUP BY relation, key ORDER BY max(id)",
    )?;
    let decode = |row: &Row<'_>| match row.get_ref(0)? {
        ValueRef::Text(relation) => {
            let relation = std::str::from_utf8(relation).unwrap_or_default();
            let recorded = Recorded::of(row.get(2)?, row.get(3)?);
            let key = row.value(1).and_then(|key| ChangedKey::decode(relation, key));
            Ok(key.map(|key| ChangedRow { key, recorded }))
        }
        _ => Ok(None),
    };
    statement.query_map([since], decode)?.collect()
}

/// Runs `query` for the row whose `column` is `key`.
pub(super) fn by_key(
    transaction: &Transaction<'_>,
    query: &str,
    column: &str,
    key: impl Params,
    on_row: impl FnMut(&Row<'_>),
) -> rusqlite::Result<()> {
    for_each(transaction, &format!("SELECT * FROM ({query}) WHERE {column} = ?1"), key, on_row)
}

/// True if the principal exists and was not removed.
pub(super) fn is_live(transaction: &Transaction<'_>, id: PrincipalId) -> rusqlite::Result<bool> {
    let sql = format!("SELECT 1 FROM ({}) WHERE id = ?1", SQLITE.sql(LIVE_PRINCIPALS));
    transaction.prepare_cached(&sql)?.exists([id.0])
}
