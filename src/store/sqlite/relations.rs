//! The three relations of the contract, as queries on the reference schema.

use rusqlite::types::ValueRef;
use rusqlite::{Params, Row, Transaction};

use crate::store::decode::{self, BadRow, Value};

/// Decodes each row that `sql` selects.
pub(super) fn for_each<T>(
    transaction: &Transaction<'_>,
    sql: &str,
    params: impl Params,
    decode: impl Fn(&Row<'_>) -> Result<T, BadRow>,
    mut take: impl FnMut(Result<T, BadRow>),
) -> rusqlite::Result<()> {
    let mut statement = transaction.prepare_cached(sql)?;
    let mut rows = statement.query(params)?;
    while let Some(row) = rows.next()? {
        take(decode(row));
    }
    Ok(())
}

impl decode::Row for Row<'_> {
    fn value(&self, index: usize) -> Option<Value<'_>> {
        self.get_ref(index).ok().map(|value| match value {
            ValueRef::Null => Value::Null,
            ValueRef::Integer(integer) => Value::Integer(integer),
            ValueRef::Real(real) => Value::Real(real),
            ValueRef::Text(text) => Value::Text(text),
            ValueRef::Blob(bytes) => Value::Bytes(bytes),
        })
    }
}

/// Relation `credentials` of the contract. What is held by nobody, or by a principal that was removed, has
/// ended.
pub(super) const CREDENTIALS: &str = "
    SELECT key_sha256, principal, expires_at,
        revoked_at IS NOT NULL OR principals.id IS NULL OR removed_at IS NOT NULL AS revoked
    FROM credentials LEFT JOIN principals ON principals.id = principal";

/// Relation `grants` of the contract.
pub(super) const GRANTS: &str = "
    SELECT grants.id AS grant_id, principal, scope, target, port_min, port_max, expires_at,
        revoked_at IS NOT NULL OR principals.id IS NULL OR removed_at IS NOT NULL AS revoked
    FROM grants LEFT JOIN principals ON principals.id = principal";

/// Relation `devices` of the contract.
pub(super) const DEVICES: &str = "SELECT id AS device, uuid, fleet, address, node, online FROM devices";
