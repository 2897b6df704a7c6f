//! The schema's migrations, and the check that a file is a store.

use rusqlite::{Connection, TransactionBehavior};

use super::SqlitePath;
use crate::store::migration::{ADDITIONS, MigrationPlan, SchemaVersion, StoreIdentity};
use crate::store::{Initialised, StoreError};

/// Applies the migrations that `connection`'s database lacks, all or none.
pub(super) fn initialise(connection: &mut Connection, path: &SqlitePath) -> Result<Initialised, StoreError> {
    let error = |error| path.error(error);
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(error)?;
    let identity = identify(&transaction).map_err(error)?;
    let MigrationPlan { applied, outcome } = identity.plan(VERSION, path.describe())?;
    if outcome == Initialised::UpToDate {
        return Ok(outcome);
    }
    for (version, migration) in (1..).zip(MIGRATIONS) {
        if version > applied {
            transaction.execute_batch(migration).map_err(error)?;
            if ADDITIONS.contains(&version) {
                transaction.execute(RECORD_ADDITION, [version]).map_err(error)?;
            } else {
                transaction.pragma_update(None, "user_version", version).map_err(error)?;
            }
        }
    }
    transaction.pragma_update(None, "application_id", APPLICATION_ID).map_err(error)?;
    transaction.commit().map_err(error)?;
    Ok(outcome)
}

/// Succeeds if `connection` leads to a store of this program's schema.
pub(super) fn check(connection: &Connection, path: &SqlitePath) -> Result<(), StoreError> {
    identify(connection).map_err(|error| path.error(error))?.check(VERSION, path.describe())
}

/// True if `connection` leads to a store of this program's schema, false for a file of another program. Fails for a
/// store of another version, whose outbox this program does not know.
pub(super) fn is_ours(connection: &Connection, path: &SqlitePath) -> Result<bool, StoreError> {
    match identify(connection).map_err(|error| path.error(error))? {
        StoreIdentity::Empty | StoreIdentity::Foreign => Ok(false),
        store @ StoreIdentity::Store { .. } => store.check(VERSION, path.describe()).map(|()| true),
    }
}

/// Succeeds if [`initialise`] may change `connection`'s database.
pub(super) fn check_initialisable(connection: &Connection, path: &SqlitePath) -> Result<(), StoreError> {
    let identity = identify(connection).map_err(|error| path.error(error))?;
    identity.plan(VERSION, path.describe()).map(drop)
}

fn identify(connection: &Connection) -> rusqlite::Result<StoreIdentity> {
    let pragma = |name| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let required = pragma("user_version")?;
    match pragma("application_id")? {
        APPLICATION_ID => {
            let newest =
                newest_addition(connection, required)?.map_or(required, |addition| addition.max(required));
            Ok(StoreIdentity::Store(SchemaVersion { required, newest }))
        }
        0 if required == 0 => {
            let tables: i64 =
                connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
            Ok(if tables == 0 { StoreIdentity::Empty } else { StoreIdentity::Foreign })
        }
        _ => Ok(StoreIdentity::Foreign),
    }
}

/// The newest version that only added to version `required`, if the store has one.
fn newest_addition(connection: &Connection, required: i64) -> rusqlite::Result<Option<i64>> {
    let has_additions = "SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE name = 'schema_additions')";
    if !connection.query_row(has_additions, [], |row| row.get(0))? {
        return Ok(None);
    }
    let newest = "SELECT max(version) FROM schema_additions WHERE adds_to = ?1";
    connection.query_row(newest, [required], |row| row.get(0))
}

/// Migrations in their order. The first brings a store to version 1.
const MIGRATIONS: [&str; 5] = [
    include_str!("../schema/sqlite/0001_reference.sql"),
    include_str!("../schema/sqlite/0002_what_nodes_hold.sql"),
    include_str!("../schema/sqlite/0003_identity_and_bounded_outbox.sql"),
    include_str!("../schema/sqlite/0004_what_was_written_is_recorded.sql"),
    include_str!("../schema/sqlite/0005_claims_need_more_than_a_row.sql"),
];

/// Leaves the version that programs must know, which is in `user_version`.
const RECORD_ADDITION: &str =
    "INSERT INTO schema_additions (version, adds_to) SELECT ?1, user_version FROM pragma_user_version";

/// Version of this program's schema.
const VERSION: i64 = MIGRATIONS.len() as i64;

/// "SLGT". Databases of other programs have another one.
const APPLICATION_ID: i64 = 0x534c_4754;
