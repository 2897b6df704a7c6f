//! The state of a server: its role, and how far it is behind its primary.

use std::time::Duration;

use tokio_postgres::Row;

use super::session::{PostgresSession, SessionError};
use crate::config::postgres::TargetSession;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ServerState {
    pub(super) is_standby: bool,
    takes_writes: bool,
    /// Highest age of what it shows. Zero for a primary.
    pub(super) lag: Duration,
}

impl ServerState {
    pub(super) fn query(session: &PostgresSession) -> Result<Self, SessionError> {
        let row = session.query_one(&format!("SELECT {COLUMNS}"), &[])?;
        Ok(Self::of(&row)?)
    }

    /// Reads columns `is_standby, takes_writes, lag_ms` of [`COLUMNS`].
    pub(super) fn of(row: &Row) -> Result<Self, tokio_postgres::Error> {
        let lag_ms: i64 = row.try_get("lag_ms")?;
        Ok(Self {
            is_standby: row.try_get("is_standby")?,
            takes_writes: row.try_get("takes_writes")?,
            lag: Duration::from_millis(lag_ms.max(0).unsigned_abs()),
        })
    }

    /// True if `target` allows this server.
    pub(super) fn suits(&self, target: TargetSession) -> bool {
        match target {
            TargetSession::Any => true,
            TargetSession::ReadWrite => self.takes_writes,
            TargetSession::ReadOnly => !self.takes_writes,
            TargetSession::Primary => !self.is_standby,
            TargetSession::Standby | TargetSession::PreferStandby => self.is_standby,
        }
    }
}

/// Columns of a SELECT that [`ServerState::of`] reads.
///
/// A standby that has replayed everything that it received has no lag, even if its primary has been idle for long. That
/// holds while it has a receiver. Without one nobody knows what the primary has committed since, so the lag is the age
/// of the last replayed commit.
pub(super) const COLUMNS: &str = "
    pg_is_in_recovery() AS is_standby,
    NOT pg_is_in_recovery() AND NOT current_setting('default_transaction_read_only')::bool AS takes_writes,
    CASE
        WHEN NOT pg_is_in_recovery() THEN 0
        WHEN pg_last_wal_receive_lsn() <= pg_last_wal_replay_lsn()
            AND EXISTS (SELECT FROM pg_stat_wal_receiver) THEN 0
        ELSE (1000 * extract(epoch FROM clock_timestamp()
            - coalesce(pg_last_xact_replay_timestamp(), pg_postmaster_start_time())))::int8
    END AS lag_ms";
