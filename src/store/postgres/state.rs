//! What a server is at: whether it takes writes, and how far behind its primary it is.

use std::time::Duration;

use tokio_postgres::Row;

use super::session::{Failure, Session};
use crate::config::postgres::TargetSession;

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ServerState {
    pub(super) is_standby: bool,
    takes_writes: bool,
    /// How old what it shows may be. Zero for a primary.
    pub(super) lag: Duration,
}

impl ServerState {
    pub(super) fn query(session: &Session) -> Result<Self, Failure> {
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

    /// Whether the server is one of those that `target` means.
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

/// What [`ServerState::of`] reads, to be put into a SELECT.
///
/// A standby that has replayed all that it received lags by nothing, however long its primary has been
/// idle; but only while something receives. Without a receiver nobody knows what the primary has
/// committed since, so what was replayed last tells the age.
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
