//! Reads the three relations of the contract, and checks that their queries keep it.

use rusqlite::types::ValueRef;
use rusqlite::{Connection, Params, Row, Transaction};

use super::SqlitePath;
use crate::config::Queries;
use crate::store::contract::{self, ContractMismatch, ENDED_NAME, GivenColumn};
use crate::store::dialect::SQLITE;
use crate::store::ended::{ENDED_ROWS_MAX, EndedRows};
use crate::store::relations::{DecodedRelation, PerRelation};
use crate::store::value::{StoreRow, Value};
use crate::store::{Relation, Rows, StoreError, decode};

/// The queries that a source reads by.
pub(super) struct SqliteRelations(PerRelation<String>);

impl SqliteRelations {
    /// The queries on the reference schema, except for those that `queries` replaces.
    pub(super) fn new(queries: &Queries) -> Self {
        Self(PerRelation::of_reference_schema(&SQLITE).replaced_by(queries))
    }

    /// Checks the queries and reads all rows.
    pub(super) fn read(&self, transaction: &Transaction<'_>, path: &SqlitePath) -> Result<Rows, StoreError> {
        for (relation, sql) in self.0.iter() {
            check_relation(transaction, relation, sql, path)?;
        }
        let mut rows = Rows::default();
        for (relation, sql) in self.0.iter() {
            for_each(transaction, sql, [], |row| rows.add(relation, row))
                .map_err(|error| path.relation_error(relation.name(), error))?;
        }
        Ok(rows)
    }

    /// Checks the query for `relation` and reads its rows.
    pub(super) fn read_one(
        &self,
        relation: Relation,
        transaction: &Transaction<'_>,
        path: &SqlitePath,
    ) -> Result<DecodedRelation, StoreError> {
        let sql = self.0.get(relation);
        check_relation(transaction, relation, sql, path)?;
        let mut decoded = DecodedRelation::new(relation);
        for_each(transaction, sql, [], |row| decoded.add(row))
            .map_err(|error| path.relation_error(relation.name(), error))?;
        Ok(decoded)
    }
}

/// Checks `sql`, the query for relation `ended`, and reads its rows.
pub(super) fn read_ended(
    sql: &str,
    transaction: &Transaction<'_>,
    path: &SqlitePath,
) -> Result<EndedRows, StoreError> {
    let error = |error| path.relation_error(ENDED_NAME, error);
    check(transaction, ENDED_NAME, sql, path, contract::check_ended)?;
    let mut statement = transaction.prepare_cached(sql).map_err(error)?;
    let mut found = statement.query([]).map_err(error)?;
    let mut rows = EndedRows::default();
    while let Some(row) = found.next().map_err(error)? {
        if rows.len() == ENDED_ROWS_MAX {
            let detail = format!("it gives more than {ENDED_ROWS_MAX} rows; leave old ends out");
            return Err(StoreError::Contract { store: path.describe(), relation: ENDED_NAME, detail });
        }
        rows.add(decode::ended(row));
    }
    Ok(rows)
}

/// Compares the columns of a query with the contract: their names alone, since SQLite has types for values and not
/// for columns.
fn check(
    connection: &Connection,
    relation: &'static str,
    sql: &str,
    path: &SqlitePath,
    check: impl Fn(&[GivenColumn<'_>]) -> Result<(), ContractMismatch>,
) -> Result<(), StoreError> {
    let statement = connection.prepare(sql).map_err(|error| path.relation_error(relation, error))?;
    let names = statement.column_names();
    let given: Vec<_> = names.into_iter().map(|name| GivenColumn { name, kind: None }).collect();
    check(&given).map_err(|mismatch| StoreError::Contract {
        store: path.describe(),
        relation,
        detail: mismatch.to_string(),
    })
}

fn check_relation(
    connection: &Connection,
    relation: Relation,
    sql: &str,
    path: &SqlitePath,
) -> Result<(), StoreError> {
    check(connection, relation.name(), sql, path, |given| contract::check(relation, given))
}

/// Gives each row of `sql` to `on_row`.
pub(super) fn for_each(
    transaction: &Transaction<'_>,
    sql: &str,
    params: impl Params,
    mut on_row: impl FnMut(&Row<'_>),
) -> rusqlite::Result<()> {
    let mut statement = transaction.prepare_cached(sql)?;
    let mut rows = statement.query(params)?;
    while let Some(row) = rows.next()? {
        on_row(row);
    }
    Ok(())
}

impl StoreRow for Row<'_> {
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_relation_ended_has_a_bound() {
        let mut connection = Connection::open_in_memory().unwrap();
        let path = SqlitePath::new(Path::new("store.db"));
        let mut read = |rows: usize| {
            let sql = format!(
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows})
                SELECT 'grants' AS relation, i AS id, 1 AS ended_at FROM n"
            );
            read_ended(&sql, &connection.transaction().unwrap(), &path).map(|rows| rows.len())
        };
        assert_eq!(read(ENDED_ROWS_MAX).unwrap(), ENDED_ROWS_MAX);
        let error = read(ENDED_ROWS_MAX + 1).unwrap_err();
        assert!(error.to_string().contains("more than 1000000 rows; leave old ends out"), "{error}");
    }
}
