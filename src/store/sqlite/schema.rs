//! The schema's migrations, and how a store is told from any other file.

use rusqlite::{Connection, TransactionBehavior};

use super::Place;
use crate::store::{Initialised, StoreError};

/// Applies the migrations that `connection`'s database lacks, all or none.
pub(super) fn initialise(connection: &mut Connection, place: &Place) -> Result<Initialised, StoreError> {
    let error = |error| place.error(error);
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(error)?;
    let (applied, outcome) = match identify(&transaction).map_err(error)? {
        Identity::Empty => (0, Initialised::Created),
        Identity::Store { version: VERSION } => return Ok(Initialised::UpToDate),
        Identity::Store { version } if version < VERSION => {
            (version, Initialised::Migrated { from: version })
        }
        identity => return Err(refusal(&identity, place)),
    };
    for (version, migration) in (1..).zip(MIGRATIONS) {
        if version > applied {
            transaction.execute_batch(migration).map_err(error)?;
        }
    }
    transaction.pragma_update(None, "application_id", APPLICATION_ID).map_err(error)?;
    transaction.pragma_update(None, "user_version", VERSION).map_err(error)?;
    transaction.commit().map_err(error)?;
    Ok(outcome)
}

/// Whether `connection` leads to a store whose schema this program knows.
pub(super) fn check(connection: &Connection, place: &Place) -> Result<(), StoreError> {
    match identify(connection).map_err(|error| place.error(error))? {
        Identity::Store { version: VERSION } => Ok(()),
        identity => Err(refusal(&identity, place)),
    }
}

/// Whether [`initialise`] may touch `connection`'s database at all.
pub(super) fn check_initialisable(connection: &Connection, place: &Place) -> Result<(), StoreError> {
    match identify(connection).map_err(|error| place.error(error))? {
        Identity::Empty | Identity::Store { version: ..=VERSION } => Ok(()),
        identity => Err(refusal(&identity, place)),
    }
}

enum Identity {
    /// A database that nobody has put anything in.
    Empty,
    Store {
        version: i64,
    },
    Foreign,
}

fn identify(connection: &Connection) -> rusqlite::Result<Identity> {
    let pragma = |name| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let version = pragma("user_version")?;
    match pragma("application_id")? {
        APPLICATION_ID => Ok(Identity::Store { version }),
        0 if version == 0 => {
            let tables: i64 =
                connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
            Ok(if tables == 0 { Identity::Empty } else { Identity::Foreign })
        }
        _ => Ok(Identity::Foreign),
    }
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
    include_str!("../schema/sqlite/0001_reference.sql"),
    include_str!("../schema/sqlite/0002_what_nodes_hold.sql"),
];

/// Kept in `user_version`.
const VERSION: i64 = MIGRATIONS.len() as i64;

/// "SLGT", by which a store is told from another program's database.
const APPLICATION_ID: i64 = 0x534c_4754;
