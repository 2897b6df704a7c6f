//! Time limits of queries. SQLite has none itself: it runs a query until it ends, on the thread that asks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rusqlite::Connection;

use super::SqlitePath;
use crate::store::StoreError;

/// Time that the queries of one piece of work may take, and the relation that they read.
#[derive(Clone, Copy)]
pub(super) struct TimeLimit {
    pub(super) relation: &'static str,
    pub(super) limit: Duration,
}

impl TimeLimit {
    /// Runs `work`, and ends its query when the time is over.
    pub(super) fn run<T>(
        self,
        connection: &mut Connection,
        path: &SqlitePath,
        work: impl FnOnce(&mut Connection) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let is_over = Arc::new(AtomicBool::new(false));
        let deadline = Instant::now() + self.limit;
        let flag = Arc::clone(&is_over);
        let check = move || {
            let over = Instant::now() >= deadline;
            flag.fetch_or(over, Ordering::Relaxed);
            over
        };
        connection.progress_handler(OPERATIONS_PER_CHECK, Some(check)).map_err(|error| path.error(error))?;
        let result = work(connection);
        let removed = connection.progress_handler(0, None::<fn() -> bool>);
        if result.is_err() && is_over.load(Ordering::Relaxed) {
            let Self { relation, limit } = self;
            return Err(StoreError::SlowQuery { store: path.describe(), relation, limit });
        }
        removed.map_err(|error| path.error(error))?;
        result
    }
}

/// Instructions of SQLite's machine between two looks at the clock: well under a millisecond.
const OPERATIONS_PER_CHECK: i32 = 10_000;

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn a_query_that_gives_no_row_ends_when_its_time_is_over() {
        let mut connection = Connection::open_in_memory().unwrap();
        let path = SqlitePath::new(Path::new("store.db"));
        let limit = TimeLimit { relation: "grants", limit: Duration::from_millis(30) };
        let endless =
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n WHERE i < 0";
        let count = |connection: &mut Connection, sql: &str| {
            let row = connection.query_row(sql, [], |row| row.get::<_, i64>(0));
            row.map_err(|error| path.error(error))
        };
        let began = Instant::now();
        let error = limit.run(&mut connection, &path, |connection| count(connection, endless)).unwrap_err();
        assert!(began.elapsed() >= Duration::from_millis(30));
        assert_eq!(
            error.to_string(),
            "the query for grants on sqlite:store.db ran for more than 30ms and was ended; see its plan with EXPLAIN \
             QUERY PLAN, and give it an index"
        );
        assert_eq!(limit.run(&mut connection, &path, |connection| count(connection, "SELECT 7")).unwrap(), 7);
    }
}
