//! The schema's migrations, and the check that a database is a store.

use super::PostgresName;
use super::session::{PostgresSession, SessionError};
use crate::store::migration::{ADDITIONS, MigrationPlan, SchemaVersion, StoreIdentity};
use crate::store::{Initialised, StoreError};

/// Applies the migrations that the database lacks, all or none.
pub(super) fn initialise(session: &PostgresSession, name: &PostgresName) -> Result<Initialised, StoreError> {
    let error = |failure| name.error(failure);
    check_server(session, name)?;
    session.batch("BEGIN").map_err(error)?;
    // Without the lock, two at once would both find nothing.
    session.query("SELECT pg_advisory_xact_lock($1, 1)", &[&LOCK_NAME]).map_err(error)?;
    let identity = identify(session).map_err(error)?;
    let MigrationPlan { applied, outcome } = identity.plan(VERSION, name.describe())?;
    for (version, migration) in (1..).zip(MIGRATIONS) {
        if version > applied {
            session.batch(migration).map_err(error)?;
            let sql = if ADDITIONS.contains(&version) { RECORD_ADDITION } else { RECORD_VERSION };
            session.execute(sql, &[&version]).map_err(error)?;
        }
    }
    session.batch(FIT_OUTBOX).map_err(error)?;
    session.batch("COMMIT").map_err(error)?;
    Ok(outcome)
}

/// Succeeds if `session` leads to a store of this program's schema.
pub(super) fn check(session: &PostgresSession, name: &PostgresName) -> Result<(), StoreError> {
    check_server(session, name)?;
    identify(session).map_err(|error| name.error(error))?.check(VERSION, name.describe())
}

/// Refuses a store whose schema this program cannot use.
pub(super) fn check_version(version: SchemaVersion, name: &PostgresName) -> Result<(), StoreError> {
    StoreIdentity::Store(version).check(VERSION, name.describe())
}

fn identify(session: &PostgresSession) -> Result<StoreIdentity, SessionError> {
    let found = session.query_one(
        "SELECT to_regclass('sluicegate.schema_version') IS NOT NULL AS is_store,
            EXISTS (
                SELECT FROM pg_class WHERE relnamespace = to_regnamespace('sluicegate')::oid
            ) AS is_filled",
        &[],
    )?;
    if found.try_get("is_store")? {
        let sql = format!("SELECT {REQUIRED_VERSION}, {NEWEST_VERSION}");
        let row = session.query_one(&sql, &[])?;
        return Ok(StoreIdentity::Store(SchemaVersion {
            required: row.try_get(0)?,
            newest: row.try_get(1)?,
        }));
    }
    Ok(if found.try_get("is_filled")? { StoreIdentity::Foreign } else { StoreIdentity::Empty })
}

/// Refuses a server without 64-bit transaction numbers, which the outbox needs.
fn check_server(session: &PostgresSession, name: &PostgresName) -> Result<(), StoreError> {
    let sql = "SELECT current_setting('server_version_num')::int8, current_setting('server_version')";
    let row = session.query_one(sql, &[]).map_err(|error| name.error(error))?;
    let get = || Ok((row.try_get::<_, i64>(0)?, row.try_get::<_, String>(1)?));
    let (number, found) = get().map_err(|error| name.error(SessionError::Driver(error)))?;
    if number < SERVER_VERSION_MIN {
        return Err(StoreError::ServerVersion { store: name.describe(), found });
    }
    Ok(())
}

/// Migrations in their order. The first brings a store to version 1.
const MIGRATIONS: [&str; 5] = [
    include_str!("../schema/postgres/0001_reference.sql"),
    include_str!("../schema/postgres/0002_what_nodes_hold.sql"),
    include_str!("../schema/postgres/0003_every_write_is_told.sql"),
    include_str!("../schema/postgres/0004_what_was_written_is_recorded.sql"),
    include_str!("../schema/postgres/0005_claims_need_more_than_a_row.sql"),
];

/// The version that programs must know to use the store, as an SQL expression.
pub(super) const REQUIRED_VERSION: &str = "(SELECT coalesce(max(version), 0) FROM sluicegate.schema_version)";

/// The newest version, as an SQL expression. The column is missing in versions before 5.
pub(super) const NEWEST_VERSION: &str = "(
    SELECT coalesce(max(greatest(version, (to_jsonb(known) ->> 'adds_up_to')::bigint)), 0)
    FROM sluicegate.schema_version AS known
)";

const RECORD_VERSION: &str = "INSERT INTO sluicegate.schema_version (version) VALUES ($1)";

/// Leaves the version that programs must know.
const RECORD_ADDITION: &str = "UPDATE sluicegate.schema_version SET adds_up_to = $1
    WHERE version = (SELECT max(version) FROM sluicegate.schema_version)";

/// Version of this program's schema.
const VERSION: i64 = MIGRATIONS.len() as i64;

/// Removes what a dump brought along from another cluster, whose transaction numbers mean nothing here.
const FIT_OUTBOX: &str = "
    DELETE FROM sluicegate.changes WHERE xid >= pg_snapshot_xmax(pg_current_snapshot())";

/// The first version with `xid8`, as `server_version_num` gives it.
const SERVER_VERSION_MIN: i64 = 130_000;

/// "SLGT", the first half of the advisory locks that this program takes.
const LOCK_NAME: i32 = 0x534c_4754;
