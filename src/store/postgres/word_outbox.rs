//! The statements that find what the outbox has for a reader, by its [`Horizon`].

use std::time::{Duration, Instant};

use tokio_postgres::{Row, Statement};

use super::PostgresName;
use super::horizon::{Horizon, OpenTransactions};
use super::place::{self, ServerPlace};
use super::schema;
use super::session::{PostgresSession, SessionError};
use crate::authz::UnixMillis;
use crate::store::StoreError;
use crate::store::changed_key::{ChangedKey, ChangedRow, Recorded};
use crate::store::migration::SchemaVersion;
use crate::store::value::Value;

/// The outbox's statements, prepared on a session.
pub(super) struct WordOutbox {
    poll: Statement,
    new_rows: Statement,
    still_open: Statement,
}

/// The state of a server and of its outbox, read in one statement.
pub(super) struct OutboxPoll {
    pub(super) place: ServerPlace,
    /// True if the outbox has rows that may be new.
    pub(super) has_rows: bool,
    /// Number of times that the outbox was pruned, and the newest transaction whose rows went.
    pub(super) prunes: i64,
    pub(super) pruned: i64,
    /// Transactions that the statement's snapshot did not show. A standby does not name the open ones.
    pub(super) hidden: OpenTransactions,
    /// The server's clock.
    pub(super) now: UnixMillis,
    version: SchemaVersion,
    is_restored: bool,
}

/// Rows of the outbox that are new to a reader.
pub(super) struct NewRows {
    /// The rows that changed, each once, in about the order of their last change.
    pub(super) rows: Vec<ChangedRow>,
    /// Transactions that wrote the rows.
    pub(super) xids: Vec<i64>,
    /// Transaction before which the read was cut short.
    pub(super) cut: Option<i64>,
    /// Time when the oldest was written. The server's clock measured its age.
    pub(super) readable_since: Option<Instant>,
}

struct OutboxRow {
    id: i64,
    xid: i64,
    row: Option<ChangedRow>,
    age_us: i64,
}

impl WordOutbox {
    pub(super) fn prepare(session: &PostgresSession) -> Result<Self, SessionError> {
        Ok(Self {
            poll: session.prepare(&poll())?,
            new_rows: session.prepare(NEW_ROWS)?,
            still_open: session.prepare(STILL_OPEN)?,
        })
    }

    /// Asks for the state of the server, and whether the outbox has anything beyond `horizon`.
    pub(super) fn poll(
        &self,
        session: &PostgresSession,
        horizon: &Horizon,
    ) -> Result<OutboxPoll, SessionError> {
        let row = session.prepared_one(&self.poll, &[&horizon.next, &horizon.open])?;
        Ok(OutboxPoll {
            place: ServerPlace::of(&row)?,
            has_rows: row.try_get("has_rows")?,
            prunes: row.try_get("prunes")?,
            pruned: row.try_get("pruned")?,
            hidden: OpenTransactions { next: row.try_get("xmax")?, open: row.try_get("open")? },
            now: UnixMillis(row.try_get("now_ms")?),
            version: SchemaVersion {
                required: row.try_get("required_version")?,
                newest: row.try_get("newest_version")?,
            },
            is_restored: row.try_get("is_restored")?,
        })
    }

    /// The transactions from `horizon` on that are open now. A snapshot that is taken later shows all others.
    ///
    /// A standby cannot say it in one statement: its snapshots do not list the open transactions, and each is asked for
    /// by its number, after the snapshot. One call asks for [`XIDS_ASKED_MAX`] at most, and the next goes on from there.
    pub(super) fn still_open(
        &self,
        session: &PostgresSession,
        horizon: &Horizon,
    ) -> Result<OpenTransactions, SessionError> {
        let row = session.prepared_one(&self.still_open, &[&horizon.next, &horizon.open, &XIDS_ASKED_MAX])?;
        Ok(OpenTransactions { next: row.try_get("next")?, open: row.try_get("open")? })
    }

    /// Reads the rows beyond `horizon`. `None` if one transaction wrote too many, or if a row has a form that no trigger
    /// of ours writes.
    pub(super) fn new_rows(
        &self,
        session: &PostgresSession,
        horizon: &Horizon,
    ) -> Result<Option<NewRows>, SessionError> {
        let mut rows = Vec::new();
        let mut failure = None;
        let params: super::session::Params<'_> = &[&horizon.next, &horizon.open, &(OUTBOX_ROWS_MAX + 1)];
        session.for_each(&self.new_rows, params, |row| match OutboxRow::of(row) {
            Ok(row) => rows.push(row),
            Err(error) => failure = Some(error),
        })?;
        match failure {
            Some(error) => Err(error.into()),
            None => Ok(NewRows::of(rows, horizon, OUTBOX_ROWS_MAX as usize)),
        }
    }
}

impl OutboxPoll {
    /// Refuses a store whose schema has changed under a relay, or whose outbox comes from another server.
    pub(super) fn check(&self, name: &PostgresName) -> Result<(), StoreError> {
        schema::check_version(self.version, name)?;
        if self.is_restored {
            return Err(StoreError::Restored { store: name.describe() });
        }
        Ok(())
    }
}

impl NewRows {
    fn of(rows: Vec<OutboxRow>, horizon: &Horizon, rows_max: usize) -> Option<Self> {
        let (late, mut later): (Vec<_>, Vec<_>) = rows.into_iter().partition(|row| row.xid < horizon.next);
        if late.len() > rows_max {
            return None;
        }
        let mut cut = None;
        if later.len() > rows_max {
            // The last transaction may have more rows than were read.
            let last = later.iter().map(|row| row.xid).max()?;
            later.retain(|row| row.xid < last);
            if later.is_empty() {
                return None;
            }
            cut = Some(last);
        }
        let mut rows: Vec<_> = late.into_iter().chain(later).filter(|row| horizon.is_new(row.xid)).collect();
        rows.sort_unstable_by_key(|row| row.id);
        let oldest_us = rows.iter().map(|row| row.age_us).max().unwrap_or_default();
        let mut xids: Vec<_> = rows.iter().map(|row| row.xid).collect();
        xids.dedup();
        let mut seen = std::collections::HashSet::new();
        // This goes from the last to the first, so that each row keeps its last place, and what was written last.
        let rows: Option<Vec<_>> = rows.into_iter().rev().map(|row| row.row).collect();
        let mut rows = rows?;
        rows.retain(|row| seen.insert(row.key));
        rows.reverse();
        let age = Duration::from_micros(oldest_us.max(0).unsigned_abs());
        Some(Self { rows, xids, cut, readable_since: Instant::now().checked_sub(age) })
    }
}

impl OutboxRow {
    fn of(row: &Row) -> Result<Self, tokio_postgres::Error> {
        let relation: &str = row.try_get("relation")?;
        let column = if relation == "credentials" { "key_sha256" } else { "key_id" };
        let id = row.try_get("id")?;
        let recorded = Recorded::of(id, row.try_get("gone")?);
        let key = ChangedKey::decode(relation, row.try_get::<_, Value<'_>>(column)?);
        Ok(Self {
            id,
            xid: row.try_get("xid")?,
            row: key.map(|key| ChangedRow { key, recorded }),
            age_us: row.try_get("age_us")?,
        })
    }
}

fn poll() -> String {
    POLL.replace("{place}", &place::columns())
        .replace("{required_version}", schema::REQUIRED_VERSION)
        .replace("{newest_version}", schema::NEWEST_VERSION)
}

/// Polls the outbox. `$1` and `$2` are a horizon. A visible row of a transaction that is yet to come was written on
/// another server: the store was restored from a dump.
///
/// This query and the next go down `changes_by_xid` from one end, or to single transactions. A planner that cannot guess
/// a bound takes it for one that most rows keep, and would read through the whole outbox.
const POLL: &str = "
    SELECT {place},
        {required_version} AS required_version,
        {newest_version} AS newest_version,
        prunes,
        pruned_xid::text::int8 AS pruned,
        pg_snapshot_xmax(now_seen)::text::int8 AS xmax,
        ARRAY(SELECT xid::text::int8 FROM pg_snapshot_xip(now_seen) AS open (xid)) AS open,
        (extract(epoch FROM now()) * 1000)::int8 AS now_ms,
        (
            SELECT true FROM sluicegate.changes WHERE xid >= $1::int8::text::xid8 ORDER BY xid DESC LIMIT 1
        ) IS NOT NULL OR EXISTS (
            SELECT FROM unnest($2::int8[]) AS open (xid), LATERAL (
                SELECT FROM sluicegate.changes WHERE changes.xid = open.xid::text::xid8
                ORDER BY changes.xid LIMIT 1
            ) AS late
        ) AS has_rows,
        coalesce(
            (SELECT xid FROM sluicegate.changes ORDER BY xid DESC LIMIT 1) >= pg_snapshot_xmax(now_seen), false
        ) AS is_restored
    FROM sluicegate.outbox_state, pg_current_snapshot() AS now_seen";

const NEW_ROWS: &str = "
    SELECT id, xid::text::int8 AS xid, relation, key_sha256, key_id, gone,
        (1000000 * extract(epoch FROM clock_timestamp() - changed_at))::int8 AS age_us
    FROM (
        (SELECT * FROM sluicegate.changes WHERE xid >= $1::int8::text::xid8 ORDER BY xid LIMIT $3::int8)
        UNION ALL
        (
            SELECT late.* FROM unnest($2::int8[]) AS open (xid), LATERAL (
                SELECT * FROM sluicegate.changes WHERE changes.xid = open.xid::text::xid8
                ORDER BY changes.xid LIMIT $3::int8
            ) AS late LIMIT $3::int8
        )
    ) AS new_row";

/// Asks for each transaction by its number. What is below the snapshot's `xmin` has ended, and what is beyond its `xmax`
/// is yet to come; the server must not be asked for either.
const STILL_OPEN: &str = "
    SELECT next, ARRAY(
        SELECT xid FROM (
            SELECT unnest($2::int8[]) UNION SELECT generate_series(greatest($1::int8, xmin), next - 1)
        ) AS candidates (xid)
        WHERE xid >= xmin AND CASE
            WHEN xid >= xmax THEN true
            ELSE coalesce(pg_xact_status(xid::text::xid8) = 'in progress', false)
        END
    ) AS open
    FROM (
        SELECT xmin, xmax, least(xmax, greatest($1::int8, xmin) + $3::int8) AS next FROM (
            SELECT pg_snapshot_xmin(now_seen)::text::int8 AS xmin, pg_snapshot_xmax(now_seen)::text::int8 AS xmax
            FROM pg_current_snapshot() AS now_seen
        ) AS snapshot
    ) AS range";

/// Rows that one read gives. More of one transaction are read by reading the relations whole, which is as fast; more of
/// several wait for the next read.
const OUTBOX_ROWS_MAX: i64 = 100_000;

/// Transactions that a standby is asked for at once. That takes it about a tenth of a second, and a primary that gives
/// out numbers faster for long does not exist.
const XIDS_ASKED_MAX: i64 = 100_000;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authz::GrantId;

    fn rows(rows: &[(i64, i64, i64)]) -> Vec<OutboxRow> {
        let row = |&(id, xid, grant)| OutboxRow {
            id,
            xid,
            row: Some(ChangedRow { key: ChangedKey::Grant(GrantId(grant)), recorded: Recorded::Row(id) }),
            age_us: 0,
        };
        rows.iter().map(row).collect()
    }

    fn grants(new: &NewRows) -> Vec<i64> {
        let id = |row: &ChangedRow| if let ChangedKey::Grant(id) = row.key { id.0 } else { 0 };
        new.rows.iter().map(id).collect()
    }

    #[test]
    fn each_row_is_named_once_at_the_place_of_its_last_change() {
        let new = NewRows::of(rows(&[(3, 7, 1), (1, 7, 1), (2, 8, 2)]), &Horizon::BEGINNING, 10).unwrap();
        assert_eq!((grants(&new), new.cut), (vec![2, 1], None));
        assert_eq!(new.rows[1].recorded, Recorded::Row(3), "what was written last");
    }

    #[test]
    fn a_read_is_cut_before_the_transaction_that_may_go_on() {
        let all = rows(&[(1, 7, 1), (2, 8, 2), (3, 8, 3)]);
        let new = NewRows::of(all, &Horizon::BEGINNING, 2).unwrap();
        assert_eq!((grants(&new), new.cut), (vec![1], Some(8)));
        let one = rows(&[(1, 8, 1), (2, 8, 2), (3, 8, 3)]);
        assert!(NewRows::of(one, &Horizon::BEGINNING, 2).is_none(), "one transaction that is too large");
    }

    #[test]
    fn a_row_that_no_trigger_wrote_is_not_guessed() {
        let mut all = rows(&[(1, 7, 1)]);
        all[0].row = None;
        assert!(NewRows::of(all, &Horizon::BEGINNING, 2).is_none());
    }
}
