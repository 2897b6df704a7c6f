//! The schema's migrations, and how a store is told from any other database.

use super::Place;
use super::session::{Failure, Session};
use crate::store::{Initialised, StoreError};

/// Applies the migrations that the database lacks, all or none.
pub(super) fn initialise(session: &Session, place: &Place) -> Result<Initialised, StoreError> {
    let error = |failure| place.error(failure);
    check_server(session, place)?;
    session.batch("BEGIN").map_err(error)?;
    // Two at once would both find nothing.
    session.query("SELECT pg_advisory_xact_lock($1, 1)", &[&LOCK_NAME]).map_err(error)?;
    let (applied, outcome) = match identify(session).map_err(error)? {
        Identity::Empty => (0, Initialised::Created),
        Identity::Store { version: VERSION } => (VERSION, Initialised::UpToDate),
        Identity::Store { version } if version < VERSION => {
            (version, Initialised::Migrated { from: version })
        }
        identity => return Err(refusal(&identity, place)),
    };
    for (version, migration) in (1..).zip(MIGRATIONS) {
        if version > applied {
            session.batch(migration).map_err(error)?;
            let sql = "INSERT INTO sluicegate.schema_version (version) VALUES ($1)";
            session.execute(sql, &[&version]).map_err(error)?;
        }
    }
    session.batch(FIT_OUTBOX).map_err(error)?;
    session.batch("COMMIT").map_err(error)?;
    Ok(outcome)
}

/// Whether `session` leads to a store whose schema this program knows.
pub(super) fn check(session: &Session, place: &Place) -> Result<(), StoreError> {
    check_server(session, place)?;
    match identify(session).map_err(|failure| place.error(failure))? {
        Identity::Store { version: VERSION } => Ok(()),
        identity => Err(refusal(&identity, place)),
    }
}

/// What a store of schema version `found` is refused with; `None` where it is this program's.
pub(super) fn version_refusal(found: i64, place: &Place) -> Option<StoreError> {
    (found != VERSION).then(|| refusal(&Identity::Store { version: found }, place))
}

enum Identity {
    /// A database in which nobody has made a schema of that name, or put anything in it.
    Empty,
    Store {
        version: i64,
    },
    Foreign,
}

fn identify(session: &Session) -> Result<Identity, Failure> {
    let found = session.query_one(
        "SELECT to_regclass('sluicegate.schema_version') IS NOT NULL AS is_store,
            EXISTS (
                SELECT FROM pg_class WHERE relnamespace = to_regnamespace('sluicegate')::oid
            ) AS is_filled",
        &[],
    )?;
    if found.try_get("is_store")? {
        let sql = "SELECT coalesce(max(version), 0) FROM sluicegate.schema_version";
        return Ok(Identity::Store { version: session.query_one(sql, &[])?.try_get(0)? });
    }
    Ok(if found.try_get("is_filled")? { Identity::Foreign } else { Identity::Empty })
}

/// The outbox rests on 64-bit transaction numbers.
fn check_server(session: &Session, place: &Place) -> Result<(), StoreError> {
    let sql = "SELECT current_setting('server_version_num')::int8, current_setting('server_version')";
    let row = session.query_one(sql, &[]).map_err(|failure| place.error(failure))?;
    let get = || Ok((row.try_get::<_, i64>(0)?, row.try_get::<_, String>(1)?));
    let (number, name) = get().map_err(|failure| place.error(Failure::Postgres(failure)))?;
    if number < SERVER_VERSION_MIN {
        return Err(StoreError::ServerVersion { store: place.describe(), found: name });
    }
    Ok(())
}

fn refusal(identity: &Identity, place: &Place) -> StoreError {
    let store = place.describe();
    let version =
        |found, remedy| StoreError::Version { store: place.describe(), found, wanted: VERSION, remedy };
    match *identity {
        Identity::Foreign => StoreError::Foreign { store },
        Identity::Empty => version(0, "`sluicegate store init` fills it"),
        Identity::Store { version: found } if found < VERSION => {
            version(found, "`sluicegate store init` brings it up to date")
        }
        Identity::Store { version: found } => {
            version(found, "use the sluicegate that brought it to that version, or a newer one")
        }
    }
}

/// In their order; the first brings a store to version 1.
const MIGRATIONS: [&str; 2] = [
    include_str!("../schema/postgres/0001_reference.sql"),
    include_str!("../schema/postgres/0002_what_nodes_hold.sql"),
];

const VERSION: i64 = MIGRATIONS.len() as i64;

/// Removes what a dump brought along from another cluster, whose transaction numbers mean nothing here.
const FIT_OUTBOX: &str = "
    DELETE FROM sluicegate.changes WHERE xid >= pg_snapshot_xmax(pg_current_snapshot())";

/// The first with `xid8`, as `server_version_num` says it.
const SERVER_VERSION_MIN: i64 = 130_000;

/// "SLGT", the first half of the advisory locks that this program takes.
const LOCK_NAME: i32 = 0x534c_4754;
