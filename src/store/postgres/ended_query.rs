//! The operator's query for ended rows, read once in a while beside the outbox.

use std::time::{Duration, Instant};

use tokio_postgres::Statement;

use super::PostgresName;
use super::relations::allow_full_read;
use super::session::{PostgresSession, SessionError};
use super::transaction::BEGIN_READ;
use crate::config::RelationQuery;
use crate::store::contract::{self, GivenColumn};
use crate::store::decode;
use crate::store::ended::{ENDED_ROWS_MAX, EndedLog, EndedRows};
use crate::store::{Quarantined, StoreError, Word};

/// The query, and what it gave the last time.
pub(super) struct EndedQuery {
    query: RelationQuery,
    every: Duration,
    /// `None` before the first try.
    tried_at: Option<Instant>,
    pub(super) log: EndedLog,
}

impl EndedQuery {
    pub(super) fn new(query: RelationQuery, every: Duration) -> Self {
        Self { query, every, tried_at: None, log: EndedLog::new() }
    }

    pub(super) fn is_due(&self) -> bool {
        self.tried_at.is_none_or(|at| at.elapsed() >= self.every)
    }

    /// Reads the query, in a transaction of its own. Returns the words for what it had not given before. After an error
    /// the transaction may still be open.
    pub(super) fn read(
        &mut self,
        session: &PostgresSession,
        name: &PostgresName,
    ) -> Result<(Vec<Word>, Vec<Quarantined>), StoreError> {
        self.tried_at = Some(Instant::now());
        let statement = self.prepare(session, name)?;
        session.batch(BEGIN_READ).map_err(|error| name.error(error))?;
        allow_full_read(session, name)?;
        let mut rows = EndedRows::default();
        let read = session.for_each(&statement, &[], |row| rows.add(decode::ended(row)));
        read.map_err(|error| query_error(name, error))?;
        session.batch("COMMIT").map_err(|error| name.error(error))?;
        if rows.len() > ENDED_ROWS_MAX {
            let detail = format!("it gives more than {ENDED_ROWS_MAX} rows; leave out what ended long ago");
            return Err(broken(name, detail));
        }
        Ok(self.log.record(rows))
    }

    fn prepare(&self, session: &PostgresSession, name: &PostgresName) -> Result<Statement, StoreError> {
        // The line break ends a comment in the last line.
        let sql = format!("SELECT * FROM (\n{}\n) AS ended LIMIT {}", self.query.sql, ENDED_ROWS_MAX + 1);
        let statement = session.prepare(&sql).map_err(|error| query_error(name, error))?;
        if !statement.params().is_empty() {
            return Err(broken(name, "it wants parameters, and there are none".to_owned()));
        }
        let columns = statement.columns().iter();
        let given: Vec<_> = columns
            .map(|column| GivenColumn { name: column.name(), kind: Some(column.type_().name()) })
            .collect();
        contract::check_ended(&given).map_err(|mismatch| broken(name, mismatch.to_string()))?;
        Ok(statement)
    }
}

/// Sorts an error of the query: a mistake in it breaks the contract.
fn query_error(name: &PostgresName, error: SessionError) -> StoreError {
    match name.error(error) {
        StoreError::Query { detail, .. } => broken(name, detail),
        other => other,
    }
}

fn broken(name: &PostgresName, detail: String) -> StoreError {
    StoreError::Contract { store: name.describe(), relation: contract::ENDED_NAME, detail }
}
