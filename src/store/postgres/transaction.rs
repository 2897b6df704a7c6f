//! Transactions for statements that are written once for all stores.

use tokio_postgres::types::ToSql;

use super::PostgresName;
use super::session::PostgresSession;
use crate::store::StoreError;
use crate::store::dialect::{self, Dialect};
use crate::store::sql::{SqlParam, SqlTransaction, TransactionEnd, TransactionKind};
use crate::store::value::StoreRow;

/// Runs `work` in a transaction on `session`.
pub(super) fn run(
    session: &PostgresSession,
    name: &PostgresName,
    kind: TransactionKind,
    work: &mut dyn FnMut(&dyn SqlTransaction) -> TransactionEnd,
) -> Result<TransactionEnd, StoreError> {
    let transaction = PostgresTransaction { session, name };
    let begin = match kind {
        TransactionKind::Read => BEGIN_READ,
        TransactionKind::Write => "BEGIN",
        TransactionKind::OneStatement => return Ok(work(&transaction)),
    };
    let done = session.batch(begin).and_then(|()| match work(&transaction) {
        TransactionEnd::Commit => session.batch("COMMIT").map(|()| TransactionEnd::Commit),
        TransactionEnd::RollBack => Ok(TransactionEnd::RollBack),
    });
    if !matches!(done, Ok(TransactionEnd::Commit)) {
        // If this fails too, the session has ended, and the transaction with it.
        drop(session.batch("ROLLBACK"));
    }
    done.map_err(|error| name.error(error))
}

struct PostgresTransaction<'a> {
    session: &'a PostgresSession,
    name: &'a PostgresName,
}

impl SqlTransaction for PostgresTransaction<'_> {
    fn dialect(&self) -> &'static Dialect {
        &dialect::POSTGRES
    }

    fn store(&self) -> String {
        self.name.describe()
    }

    fn execute_sql(&self, sql: &str, params: &[SqlParam<'_>]) -> Result<u64, StoreError> {
        self.session.execute(sql, &driver_params(params)).map_err(|error| self.name.error(error))
    }

    fn query_sql(
        &self,
        sql: &str,
        params: &[SqlParam<'_>],
        on_row: &mut dyn FnMut(&dyn StoreRow),
    ) -> Result<(), StoreError> {
        let rows = self.session.query(sql, &driver_params(params)).map_err(|error| self.name.error(error))?;
        rows.iter().for_each(|row| on_row(row));
        Ok(())
    }
}

fn driver_params<'a>(params: &'a [SqlParam<'a>]) -> Vec<&'a (dyn ToSql + Sync)> {
    params.iter().map(|param| param as &(dyn ToSql + Sync)).collect()
}

/// Begins a transaction that shows one moment of the store.
pub(super) const BEGIN_READ: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
