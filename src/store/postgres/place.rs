//! Where a server stands in the history of its store: its identity, its timeline and its log position.
//!
//! A standby knows its timeline from its control file, which may be minutes behind after a failover. Its answers then
//! count as older than they are, never as newer.

use tokio_postgres::Row;

use super::session::{PostgresSession, SessionError};
use super::state::{self, ServerState};
use crate::store::{Position, Standing, StoreId};

/// A server's state and its place in the store's history, as of one statement.
#[derive(Clone, Copy)]
pub(super) struct ServerPlace {
    pub(super) state: ServerState,
    pub(super) position: Position,
    /// Log position up to which everything survives a crash of the server.
    pub(super) flushed: u64,
}

impl ServerPlace {
    /// Asks the server. The log position was passed by the time of the answer, and everything that commits later is
    /// behind it.
    pub(super) fn query(session: &PostgresSession) -> Result<Self, SessionError> {
        let row = session.query_one(&format!("SELECT {}", columns()), &[])?;
        Ok(Self::of(&row)?)
    }

    /// Reads the columns that [`columns`] names.
    pub(super) fn of(row: &Row) -> Result<Self, tokio_postgres::Error> {
        let system: i64 = row.try_get("system_identifier")?;
        let (database, tables): (u32, u32) = (row.try_get("database_oid")?, row.try_get("tables_oid")?);
        let mut store = [0; 16];
        store[..8].copy_from_slice(&system.to_be_bytes());
        store[8..12].copy_from_slice(&database.to_be_bytes());
        store[12..].copy_from_slice(&tables.to_be_bytes());
        let number = |name| row.try_get(name).map(|number: i64| number.max(0).unsigned_abs());
        let position =
            Position { store: StoreId(store), timeline: number("timeline")?, log: number("log")?, mark: 0 };
        Ok(Self { state: ServerState::of(row)?, position, flushed: number("flushed")? })
    }

    /// The position with the identity of the database alone, whatever tables of ours it has.
    pub(super) fn position_of_database(&self) -> Position {
        let mut position = self.position;
        position.store.0[12..].fill(0);
        position
    }
}

/// Relation of an answer at `position` to the newest that was believed before the read.
pub(super) fn standing(position: Position, known: Option<Position>) -> Standing {
    match known {
        None => Standing::Newer,
        Some(known) if known.store != position.store => Standing::Elsewhere,
        // A later timeline that is not as far has lost what the earlier one had.
        Some(known) if position.timeline < known.timeline || position.log < known.log => Standing::Older,
        Some(_) => Standing::Newer,
    }
}

/// Columns of a SELECT that [`ServerPlace::of`] reads.
pub(super) fn columns() -> String {
    format!("{}, {PLACE_COLUMNS}", state::COLUMNS)
}

/// The identity has three parts. A copy of the server's files shares the first, and a database that is dropped and
/// made again the first two. Tables that are restored in place from a dump share none but those.
///
/// A standby has applied all that it says it has replayed. A primary's log may hold a commit that it does not show
/// yet, for as long as it waits for its disk or for a synchronous standby.
const PLACE_COLUMNS: &str = "
    (SELECT system_identifier FROM pg_control_system()) AS system_identifier,
    (SELECT oid FROM pg_database WHERE datname = current_database()) AS database_oid,
    coalesce(
        (
            SELECT pg_class.oid FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
            WHERE nspname = 'sluicegate' AND relname = 'outbox_state'
        ), 0
    )::oid AS tables_oid,
    CASE
        WHEN pg_is_in_recovery() THEN (
            SELECT greatest(min_recovery_end_timeline, timeline_id)::int8
            FROM pg_control_recovery(), pg_control_checkpoint()
        )
        ELSE ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::int8
    END AS timeline,
    (
        CASE WHEN pg_is_in_recovery() THEN coalesce(pg_last_wal_replay_lsn(), '0/0')
        ELSE pg_current_wal_insert_lsn() END - '0/0'::pg_lsn
    )::int8 AS log,
    (
        CASE WHEN pg_is_in_recovery() THEN coalesce(pg_last_wal_replay_lsn(), '0/0')
        ELSE pg_current_wal_flush_lsn() END - '0/0'::pg_lsn
    )::int8 AS flushed";

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: Position = Position { store: StoreId([1; 16]), timeline: 2, log: 100, mark: 0 };

    #[test]
    fn an_answer_stands_by_its_store_its_timeline_and_its_log() {
        let at = |timeline, log| standing(Position { timeline, log, ..KNOWN }, Some(KNOWN));
        assert_eq!([at(2, 100), at(2, 101), at(3, 100)], [Standing::Newer; 3]);
        assert_eq!([at(2, 99), at(1, 500), at(3, 99)], [Standing::Older; 3]);
        let other = Position { store: StoreId([2; 16]), ..KNOWN };
        assert_eq!(standing(other, Some(KNOWN)), Standing::Elsewhere);
        assert_eq!(standing(other, None), Standing::Newer);
    }
}
