//! The three relations of the contract: by which queries, and whether these keep it.

use rusqlite::types::ValueRef;
use rusqlite::{Connection, Params, Row, Transaction};

use super::Place;
use crate::config::{Queries, RelationQuery};
use crate::store::contract::{self, Given};
use crate::store::decode::{self, BadRow, Value};
use crate::store::{Relation, Rows, StoreError};

/// By which credentials, grants and devices are read where nothing replaces them.
pub(in crate::store) const QUERIES: [&str; 3] = [CREDENTIALS, GRANTS, DEVICES];

/// The relations' queries.
pub(super) struct Relations {
    credentials: String,
    grants: String,
    devices: String,
}

impl Relations {
    /// Those on the reference schema where `queries` has no others.
    pub(super) fn new(queries: &Queries) -> Self {
        let sql = |replaced: &Option<RelationQuery>, ours: &str| {
            replaced.as_ref().map_or(ours, |query| query.sql.as_str()).to_owned()
        };
        Self {
            credentials: sql(&queries.credentials, CREDENTIALS),
            grants: sql(&queries.grants, GRANTS),
            devices: sql(&queries.devices, DEVICES),
        }
    }

    /// Holds what the queries would give against the contract: names only, since SQLite knows types of values
    /// and not of columns.
    fn check(&self, connection: &Connection, place: &Place) -> Result<(), StoreError> {
        for (relation, sql) in [
            (Relation::Credentials, &self.credentials),
            (Relation::Grants, &self.grants),
            (Relation::Devices, &self.devices),
        ] {
            let statement = connection.prepare(sql).map_err(|error| place.relation_error(relation, error))?;
            let names = statement.column_names();
            let given: Vec<_> = names.into_iter().map(|name| Given { name, kind: None }).collect();
            contract::check(relation, &given).map_err(|mismatch| StoreError::Contract {
                store: place.describe(),
                relation: relation.name(),
                detail: mismatch.to_string(),
            })?;
        }
        Ok(())
    }

    /// Checks the queries and reads all rows.
    pub(super) fn read(&self, transaction: &Transaction<'_>, place: &Place) -> Result<Rows, StoreError> {
        self.check(transaction, place)?;
        let mut rows = Rows::default();
        let Rows { credentials, grants, devices, quarantined, ended } = &mut rows;
        let mut take_bad = |bad: BadRow| {
            ended.extend(bad.end());
            quarantined.push(bad.quarantined);
        };
        for_each(
            transaction,
            &self.credentials,
            [],
            |row| decode::credential(row),
            |row| match row {
                Ok(credential) => credentials.push(credential),
                Err(bad) => take_bad(bad),
            },
        )
        .map_err(|error| place.relation_error(Relation::Credentials, error))?;
        for_each(
            transaction,
            &self.grants,
            [],
            |row| decode::grant(row),
            |row| match row {
                Ok(grant) => grants.push(grant),
                Err(bad) => take_bad(bad),
            },
        )
        .map_err(|error| place.relation_error(Relation::Grants, error))?;
        for_each(
            transaction,
            &self.devices,
            [],
            |row| decode::device(row),
            |row| match row {
                Ok(device) => devices.push(device),
                Err(bad) => take_bad(bad),
            },
        )
        .map_err(|error| place.relation_error(Relation::Devices, error))?;
        Ok(rows)
    }
}

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

/// Relation `credentials` on the reference schema. What a removed principal holds has ended. What nobody holds is
/// absent, and no revocation: a column that has come to mean something else must not end rights for ever.
pub(super) const CREDENTIALS: &str = "
    SELECT key_sha256, principal, expires_at,
        revoked_at IS NOT NULL OR removed_at IS NOT NULL AS revoked
    FROM credentials JOIN principals ON principals.id = principal";

/// Relation `grants` on the reference schema.
pub(super) const GRANTS: &str = "
    SELECT grants.id AS grant_id, principal, scope, target, port_min, port_max, expires_at,
        revoked_at IS NOT NULL OR removed_at IS NOT NULL AS revoked
    FROM grants JOIN principals ON principals.id = principal";

/// Relation `devices` on the reference schema.
pub(super) const DEVICES: &str = "SELECT id AS device, uuid, fleet, address, node, online FROM devices";
