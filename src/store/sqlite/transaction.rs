//! Transactions for statements that are written once for all stores.

use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Connection, ToSql, TransactionBehavior, params_from_iter};

use super::SqlitePath;
use crate::store::StoreError;
use crate::store::dialect::{self, Dialect};
use crate::store::sql::{SqlParam, SqlTransaction, TransactionEnd, TransactionKind};
use crate::store::value::StoreRow;

/// Runs `work` in a transaction on `connection`.
pub(super) fn run(
    connection: &mut Connection,
    path: &SqlitePath,
    kind: TransactionKind,
    work: &mut dyn FnMut(&dyn SqlTransaction) -> TransactionEnd,
) -> Result<TransactionEnd, StoreError> {
    let behavior = match kind {
        // One statement takes the locks that it needs, when it begins.
        TransactionKind::Read | TransactionKind::OneStatement => TransactionBehavior::Deferred,
        TransactionKind::Write => TransactionBehavior::Immediate,
    };
    let mut run = || {
        let transaction = connection.transaction_with_behavior(behavior)?;
        let end = work(&SqliteTransaction { connection: &transaction, path });
        if end == TransactionEnd::Commit {
            transaction.commit()?;
        }
        Ok(end)
    };
    run().map_err(|error| path.error(error))
}

struct SqliteTransaction<'a> {
    connection: &'a Connection,
    path: &'a SqlitePath,
}

impl SqlTransaction for SqliteTransaction<'_> {
    fn dialect(&self) -> &'static Dialect {
        &dialect::SQLITE
    }

    fn store(&self) -> String {
        self.path.describe()
    }

    fn execute_sql(&self, sql: &str, params: &[SqlParam<'_>]) -> Result<u64, StoreError> {
        let run = || self.connection.prepare_cached(sql)?.execute(params_from_iter(params));
        run().map(|changed| changed as u64).map_err(|error| self.path.error(error))
    }

    fn query_sql(
        &self,
        sql: &str,
        params: &[SqlParam<'_>],
        on_row: &mut dyn FnMut(&dyn StoreRow),
    ) -> Result<(), StoreError> {
        let mut run = || {
            let mut statement = self.connection.prepare_cached(sql)?;
            let mut rows = statement.query(params_from_iter(params))?;
            while let Some(row) = rows.next()? {
                on_row(row);
            }
            Ok(())
        };
        run().map_err(|error| self.path.error(error))
    }
}

impl ToSql for SqlParam<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(match *self {
            Self::Null => ToSqlOutput::Borrowed(ValueRef::Null),
            Self::Integer(integer) => ToSqlOutput::Borrowed(ValueRef::Integer(integer)),
            Self::Boolean(boolean) => ToSqlOutput::Borrowed(ValueRef::Integer(boolean.into())),
            Self::Text(text) => ToSqlOutput::Borrowed(ValueRef::Text(text.as_bytes())),
            Self::Bytes(bytes) => ToSqlOutput::Borrowed(ValueRef::Blob(bytes)),
            Self::Time(time) => ToSqlOutput::Borrowed(ValueRef::Integer(time.0)),
            Self::Address(address) => ToSqlOutput::Owned(address.to_string().into()),
        })
    }
}
