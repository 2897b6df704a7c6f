//! The outbox: which rows changed since a read.
//!
//! Ids in the outbox are not in commit order: a transaction gets its ids while it runs, and may commit late. Reading by
//! id would miss what it wrote. A reader therefore remembers which transactions it has seen: `xmin`, the oldest one that
//! was still running, below which nothing new appears, and those at or above `xmin` that were visible. Later it reads
//! what all other transactions from `xmin` on have written. On a primary, PostgreSQL's own `pg_visible_in_snapshot`
//! could say what was visible; on a standby a snapshot does not list the running transactions, and they would count
//! as seen.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use tokio_postgres::{Row, Statement};

use super::session::{PostgresSession, SessionError};
use super::state::{self, ServerState};
use super::{PostgresName, schema};
use crate::store::StoreError;
use crate::store::outbox::ChangedKey;
use crate::store::value::Value;

/// A position in the outbox. Everything before it has been read.
#[derive(Clone)]
pub(super) struct OutboxPosition {
    /// Every transaction below has ended, and what it wrote was seen.
    xmin: i64,
    /// Transactions at or above `xmin` that were seen: a few, or as many as the outbox holds while one transaction
    /// runs for long.
    seen: Vec<i64>,
    /// Number of times that the outbox had been pruned.
    prunes: i64,
}

/// The outbox's statements, prepared on a session.
pub(super) struct PostgresOutbox {
    poll: Statement,
    changes: Statement,
    transactions: Statement,
}

/// The state of the server and of its outbox, read in one round trip.
pub(super) struct OutboxState {
    pub(super) server: ServerState,
    pub(super) progress: OutboxProgress,
    version: i64,
    xmin: i64,
    prunes: i64,
    is_restored: bool,
}

/// Content of the outbox since a position.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum OutboxProgress {
    Nothing,
    Some,
    /// Rows that were never seen may have been pruned.
    Lost,
}

/// The rows that the outbox named since a position.
pub(super) struct ChangedKeys {
    pub(super) keys: Vec<ChangedKey>,
    /// Time when the oldest was written. The server's clock measured its age.
    pub(super) readable_since: Option<Instant>,
}

impl PostgresOutbox {
    pub(super) fn prepare(session: &PostgresSession) -> Result<Self, SessionError> {
        Ok(Self {
            poll: session.prepare(&POLL.replace("{state}", state::COLUMNS))?,
            changes: session.prepare(CHANGES)?,
            transactions: session.prepare(TRANSACTIONS)?,
        })
    }

    /// Asks if anything has been committed since `position`.
    pub(super) fn poll(
        &self,
        session: &PostgresSession,
        position: &OutboxPosition,
    ) -> Result<OutboxState, SessionError> {
        let row = session.prepared_one(&self.poll, &[&position.xmin, &position.seen])?;
        let (prunes, pruned_xid) = (row.try_get("prunes")?, row.try_get::<_, i64>("pruned_xid")?);
        let progress = if prunes != position.prunes && pruned_xid >= position.xmin {
            OutboxProgress::Lost
        } else if row.try_get("has_changes")? {
            OutboxProgress::Some
        } else {
            OutboxProgress::Nothing
        };
        Ok(OutboxState {
            server: ServerState::of(&row)?,
            progress,
            version: row.try_get("version")?,
            xmin: row.try_get("xmin")?,
            prunes,
            is_restored: row.try_get("is_restored")?,
        })
    }

    /// Reads which rows changed since `position`, each once, in about the order of their last change, and when the
    /// oldest of them did. `None` if there are too many, or if one has a form that no trigger of ours writes.
    pub(super) fn changed_keys(
        &self,
        session: &PostgresSession,
        position: &OutboxPosition,
    ) -> Result<Option<ChangedKeys>, SessionError> {
        let mut read: Vec<Option<ChangedKey>> = Vec::new();
        let mut oldest_us: i64 = 0;
        session.for_each(
            &self.changes,
            &[&position.xmin, &position.seen, &(OUTBOX_ROWS_MAX + 1)],
            |row| {
                read.push(changed_key(row));
                oldest_us = row.try_get("age_us").unwrap_or(0).max(oldest_us);
            },
        )?;
        let readable_since =
            Instant::now().checked_sub(Duration::from_micros(oldest_us.max(0).unsigned_abs()));
        if read.len() as i64 > OUTBOX_ROWS_MAX {
            return Ok(None);
        }
        let mut seen = HashSet::new();
        // This goes from the last to the first, so that each row keeps its last place.
        let keys: Option<Vec<ChangedKey>> = read.into_iter().rev().collect();
        Ok(keys.map(|mut keys| {
            keys.retain(|key| seen.insert(*key));
            keys.reverse();
            ChangedKeys { keys, readable_since }
        }))
    }

    /// The position of a reader that has seen everything that the transaction of `state` sees.
    pub(super) fn position(
        &self,
        session: &PostgresSession,
        state: &OutboxState,
    ) -> Result<OutboxPosition, SessionError> {
        let mut seen = Vec::new();
        session.for_each(&self.transactions, &[&state.xmin], |row| seen.extend(row.try_get::<_, i64>(0)))?;
        Ok(OutboxPosition { xmin: state.xmin, seen, prunes: state.prunes })
    }
}

impl OutboxState {
    /// Refuses a store whose schema has changed under a relay, or that another one has replaced.
    pub(super) fn check(&self, name: &PostgresName) -> Result<(), StoreError> {
        schema::check_version(self.version, name)?;
        if self.is_restored {
            return Err(StoreError::Restored { store: name.describe() });
        }
        Ok(())
    }
}

impl OutboxPosition {
    /// Position of a reader that has seen nothing.
    pub(super) const BEGINNING: Self = Self { xmin: 0, seen: Vec::new(), prunes: 0 };

    /// Moves to `state`, which had nothing new. Transactions below its `xmin` need not be remembered.
    pub(super) fn advance(&mut self, state: &OutboxState) {
        if self.xmin != state.xmin {
            self.xmin = state.xmin;
            self.seen.retain(|xid| *xid >= state.xmin);
        }
        self.prunes = state.prunes;
    }
}

fn changed_key(row: &Row) -> Option<ChangedKey> {
    let relation = row.try_get("relation").ok()?;
    let column = if relation == "credentials" { "key_sha256" } else { "key_id" };
    ChangedKey::decode(relation, row.try_get::<_, Value<'_>>(column).ok()?)
}

/// Polls the outbox. `$1` and `$2` are a position's `xmin` and `seen`. A visible row of a transaction that is yet to
/// come was written in another cluster: the store was restored from a dump.
///
/// This query and the ones below ask in the order of `changes_by_xid`, from one end of it. A planner that cannot guess a
/// bound takes it for one that most rows keep, and would read through the whole outbox.
const POLL: &str = "
    SELECT {state},
        (SELECT coalesce(max(version), 0) FROM sluicegate.schema_version) AS version,
        pg_snapshot_xmin(now_seen)::text::int8 AS xmin,
        prunes,
        pruned_xid::text::int8 AS pruned_xid,
        (
            SELECT true FROM sluicegate.changes
            WHERE xid >= $1::int8::text::xid8 AND xid::text::int8 <> ALL ($2::int8[])
            ORDER BY xid DESC LIMIT 1
        ) IS NOT NULL AS has_changes,
        coalesce(
            (SELECT xid FROM sluicegate.changes ORDER BY xid DESC LIMIT 1) >= pg_snapshot_xmax(now_seen), false
        ) AS is_restored
    FROM sluicegate.outbox_state, pg_current_snapshot() AS now_seen";

const CHANGES: &str = "
    SELECT relation, key_sha256, key_id,
        (1000000 * extract(epoch FROM clock_timestamp() - changed_at))::int8 AS age_us
    FROM (
        SELECT * FROM sluicegate.changes
        WHERE xid >= $1::int8::text::xid8 AND xid::text::int8 <> ALL ($2::int8[])
        ORDER BY xid DESC LIMIT $3::int8
    ) AS since ORDER BY id";

/// Finds each transaction by one step down the index, for any number of rows that it wrote.
const TRANSACTIONS: &str = "
    WITH RECURSIVE since AS (
        (SELECT xid FROM sluicegate.changes WHERE xid >= $1::int8::text::xid8 ORDER BY xid LIMIT 1)
        UNION ALL
        SELECT (SELECT xid FROM sluicegate.changes WHERE xid > since.xid ORDER BY xid LIMIT 1)
        FROM since WHERE xid IS NOT NULL
    )
    SELECT xid::text::int8 FROM since WHERE xid IS NOT NULL";

/// Changes that are read one by one. Reading everything is as fast as reading more than that.
const OUTBOX_ROWS_MAX: i64 = 100_000;
