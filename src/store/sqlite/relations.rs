//! The three relations of the contract, as queries on the reference schema.

use rusqlite::{Params, Row, Transaction};

use super::decode::BadRow;

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

/// Relation `credentials` of the contract. What a removed principal holds has ended. What nobody holds is
/// absent, and no revocation: a column that has come to mean something else must not end rights for ever.
pub(super) const CREDENTIALS: &str = "
    SELECT key_sha256, principal, expires_at,
        revoked_at IS NOT NULL OR removed_at IS NOT NULL AS revoked
    FROM credentials JOIN principals ON principals.id = principal";

/// Relation `grants` of the contract.
pub(super) const GRANTS: &str = "
    SELECT grants.id AS grant_id, principal, scope, target, port_min, port_max, expires_at,
        revoked_at IS NOT NULL OR removed_at IS NOT NULL AS revoked
    FROM grants JOIN principals ON principals.id = principal";

/// Relation `devices` of the contract.
pub(super) const DEVICES: &str = "SELECT id AS device, uuid, fleet, address, node, online FROM devices";
