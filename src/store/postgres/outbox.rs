//! The outbox: which rows changed since a read.
//!
//! Numbers in the outbox are given out as transactions run and say nothing about when these commit; who went
//! by them would pass over whatever commits late. So a reader goes by what it could see: it remembers the
//! oldest transaction that was still running (`xmin`, below which nothing appears any more) and which ones
//! at or above it it has seen, and later takes all others from there on. For the second half PostgreSQL's
//! own `pg_visible_in_snapshot` would do on a primary; on a standby a snapshot does not list the
//! transactions that are running, and those would be taken for seen.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use tokio_postgres::{Row, Statement};

use super::session::{Failure, Session};
use super::state::{self, ServerState};
use super::{Place, schema};
use crate::authz::{DeviceId, GrantId, KeyHash, PrincipalId};
use crate::store::StoreError;

/// How far the outbox has been read.
#[derive(Clone)]
pub(super) struct Position {
    /// Every transaction below has ended, and what it wrote was seen.
    xmin: i64,
    /// Transactions at or above `xmin` that were seen. As many as the outbox holds where one transaction
    /// runs for long, else a few.
    seen: Vec<i64>,
    /// How often the outbox had been pruned.
    prunes: i64,
}

/// The outbox's statements, prepared on a session.
pub(super) struct Outbox {
    look: Statement,
    changes: Statement,
    transactions: Statement,
}

/// What one look at a store tells, at the cost of one round trip.
pub(super) struct Look {
    pub(super) state: ServerState,
    pub(super) news: News,
    version: i64,
    xmin: i64,
    prunes: i64,
    is_restored: bool,
}

/// What the outbox holds since a position.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum News {
    Nothing,
    Some,
    /// Rows that were never seen may have been pruned.
    Lost,
}

/// What the outbox named since a position.
pub(super) struct ChangedRows {
    pub(super) rows: Vec<ChangedRow>,
    /// When the oldest was written, by the server's clock at both ends.
    pub(super) readable_since: Option<Instant>,
}

/// A row that the outbox names.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum ChangedRow {
    Principal(PrincipalId),
    Credential(KeyHash),
    Grant(GrantId),
    Device(DeviceId),
}

impl Outbox {
    pub(super) fn prepare(session: &Session) -> Result<Self, Failure> {
        Ok(Self {
            look: session.prepare(&LOOK.replace("{state}", state::COLUMNS))?,
            changes: session.prepare(CHANGES)?,
            transactions: session.prepare(TRANSACTIONS)?,
        })
    }

    /// Whether anything has been committed since `position`.
    pub(super) fn look(&self, session: &Session, position: &Position) -> Result<Look, Failure> {
        let row = session.prepared_one(&self.look, &[&position.xmin, &position.seen])?;
        let (prunes, pruned_xid) = (row.try_get("prunes")?, row.try_get::<_, i64>("pruned_xid")?);
        let news = if prunes != position.prunes && pruned_xid >= position.xmin {
            News::Lost
        } else if row.try_get("is_news")? {
            News::Some
        } else {
            News::Nothing
        };
        Ok(Look {
            state: ServerState::of(&row)?,
            news,
            version: row.try_get("version")?,
            xmin: row.try_get("xmin")?,
            prunes,
            is_restored: row.try_get("is_restored")?,
        })
    }

    /// The rows that changed since `position`, and when the oldest of them did, each once, in about the order of their last change; `None`
    /// where there are too many, or one that no trigger of ours wrote.
    pub(super) fn changed_rows(
        &self,
        session: &Session,
        position: &Position,
    ) -> Result<Option<ChangedRows>, Failure> {
        let mut read: Vec<Option<ChangedRow>> = Vec::new();
        let mut oldest_us: i64 = 0;
        session.for_each(
            &self.changes,
            &[&position.xmin, &position.seen, &(OUTBOX_ROWS_MAX + 1)],
            |row| {
                read.push(ChangedRow::decode(row));
                oldest_us = row.try_get("age_us").unwrap_or(0).max(oldest_us);
            },
        )?;
        let readable_since =
            Instant::now().checked_sub(Duration::from_micros(oldest_us.max(0).unsigned_abs()));
        if read.len() as i64 > OUTBOX_ROWS_MAX {
            return Ok(None);
        }
        let mut told = HashSet::new();
        // From the last to the first, so that each row keeps its last place.
        let changed: Option<Vec<ChangedRow>> = read.into_iter().rev().collect();
        Ok(changed.map(|mut changed| {
            changed.retain(|row| told.insert(*row));
            changed.reverse();
            ChangedRows { rows: changed, readable_since }
        }))
    }

    /// The position of who has seen all that the transaction of `look` sees.
    pub(super) fn position(&self, session: &Session, look: &Look) -> Result<Position, Failure> {
        let mut seen = Vec::new();
        session.for_each(&self.transactions, &[&look.xmin], |row| seen.extend(row.try_get::<_, i64>(0)))?;
        Ok(Position { xmin: look.xmin, seen, prunes: look.prunes })
    }
}

impl Look {
    /// Refuses a store that was changed in its form, or replaced, under a relay.
    pub(super) fn check(&self, place: &Place) -> Result<(), StoreError> {
        if let Some(refusal) = schema::version_refusal(self.version, place) {
            return Err(refusal);
        }
        if self.is_restored {
            return Err(StoreError::Restored { store: place.describe() });
        }
        Ok(())
    }
}

impl Position {
    /// Of who has seen nothing.
    pub(super) const BEGINNING: Self = Self { xmin: 0, seen: Vec::new(), prunes: 0 };

    /// Where `look` leads, which found nothing new: what is below its `xmin` need not be remembered.
    pub(super) fn advance(&mut self, look: &Look) {
        if self.xmin != look.xmin {
            self.xmin = look.xmin;
            self.seen.retain(|xid| *xid >= look.xmin);
        }
        self.prunes = look.prunes;
    }
}

impl ChangedRow {
    fn decode(row: &Row) -> Option<Self> {
        let id = || row.try_get::<_, i64>("key_id").ok();
        match row.try_get("relation").ok()? {
            "principals" => id().map(|id| Self::Principal(PrincipalId(id))),
            "credentials" => {
                let key = row.try_get::<_, &[u8]>("key_sha256").ok()?.try_into().ok()?;
                Some(Self::Credential(KeyHash::from_bytes(key)))
            }
            "grants" => id().map(|id| Self::Grant(GrantId(id))),
            "devices" => id().map(|id| Self::Device(DeviceId(id))),
            _ => None,
        }
    }
}

/// `$1` and `$2` are a position's `xmin` and `seen`. What is visible and was written by a transaction that is
/// yet to come was written in another cluster: the store was restored from a dump.
///
/// Here and below, what is wanted is asked for in the order of `changes_by_xid`, from an end of it: planners
/// take a bound that they cannot guess for one that most rows keep, and would look through the whole outbox.
const LOOK: &str = "
    SELECT {state},
        (SELECT coalesce(max(version), 0) FROM sluicegate.schema_version) AS version,
        pg_snapshot_xmin(now_seen)::text::int8 AS xmin,
        prunes,
        pruned_xid::text::int8 AS pruned_xid,
        (
            SELECT true FROM sluicegate.changes
            WHERE xid >= $1::int8::text::xid8 AND xid::text::int8 <> ALL ($2::int8[])
            ORDER BY xid DESC LIMIT 1
        ) IS NOT NULL AS is_news,
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

/// Each transaction by one step down the index, however many rows it wrote.
const TRANSACTIONS: &str = "
    WITH RECURSIVE since AS (
        (SELECT xid FROM sluicegate.changes WHERE xid >= $1::int8::text::xid8 ORDER BY xid LIMIT 1)
        UNION ALL
        SELECT (SELECT xid FROM sluicegate.changes WHERE xid > since.xid ORDER BY xid LIMIT 1)
        FROM since WHERE xid IS NOT NULL
    )
    SELECT xid::text::int8 FROM since WHERE xid IS NOT NULL";

/// Changes that are read one by one. For more than that, reading everything is as fast.
const OUTBOX_ROWS_MAX: i64 = 100_000;
