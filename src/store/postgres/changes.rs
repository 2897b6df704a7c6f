//! The rows that the outbox names, as they were written last.

use std::collections::{HashMap, HashSet};

use tokio_postgres::{Row, Statement};

use super::session::{PostgresSession, SessionError};
use crate::authz::{Change, KeyHash, PrincipalId};
use crate::store::changed_key::{ChangedKey, ChangedRow, Recorded};
use crate::store::decode::{self, BadRow};
use crate::store::dialect::POSTGRES;
use crate::store::relations::{LIVE_PRINCIPALS, PerRelation};
use crate::store::{Relation, RowKey};

/// The queries by which rows are found, prepared on a session.
pub(super) struct RowQueries {
    /// What the outbox recorded, by its numbers.
    written: PerRelation<Statement>,
    /// What the tables have, by key, where the outbox recorded the key alone.
    tables: PerRelation<Statement>,
    principals: Statement,
}

type FoundRows = HashMap<ChangedKey, Vec<Result<Change, BadRow>>>;

/// The rows that were found.
pub(super) struct RowsByKey {
    /// Rows of relations; a key without an entry has no row.
    pub(super) rows: FoundRows,
    /// Principals that were not removed.
    pub(super) live: HashSet<PrincipalId>,
}

impl RowQueries {
    pub(super) fn prepare(session: &PostgresSession) -> Result<Self, SessionError> {
        let by = |query: &str, key: &str| {
            session.prepare(&format!("SELECT * FROM ({query}) AS relation WHERE {key} = ANY ($1)"))
        };
        let tables = PerRelation::of_reference_schema(&POSTGRES);
        Ok(Self {
            written: PerRelation::of_outbox(&POSTGRES).try_map(|_, query| by(query, "id"))?,
            tables: PerRelation {
                credentials: by(&tables.credentials, "key_sha256")?,
                grants: by(&tables.grants, "grant_id")?,
                devices: by(&tables.devices, "device")?,
            },
            principals: by(&POSTGRES.sql(LIVE_PRINCIPALS), "id")?,
        })
    }

    /// Finds the rows of `changed`. Runs at most two queries for each relation, for any number of rows.
    pub(super) fn find(
        &self,
        session: &PostgresSession,
        changed: &[ChangedRow],
    ) -> Result<RowsByKey, SessionError> {
        let (mut found, mut live) = (FoundRows::new(), HashSet::new());
        let mut written: PerRelation<Vec<i64>> = PerRelation::default();
        let mut by_key = KeysOfTables::default();
        for row in changed {
            match (row.key, row.recorded) {
                (_, Recorded::Gone) => {}
                (ChangedKey::Principal(id), Recorded::Row(_)) => {
                    live.insert(id);
                }
                (ChangedKey::Credential(_), Recorded::Row(number)) => written.credentials.push(number),
                (ChangedKey::Grant(_), Recorded::Row(number)) => written.grants.push(number),
                (ChangedKey::Device(_), Recorded::Row(number)) => written.devices.push(number),
                (ChangedKey::Principal(id), Recorded::KeyOnly) => by_key.principals.push(id.0),
                (ChangedKey::Credential(key), Recorded::KeyOnly) => by_key.credentials.push(key),
                (ChangedKey::Grant(id), Recorded::KeyOnly) => by_key.grants.push(id.0),
                (ChangedKey::Device(id), Recorded::KeyOnly) => by_key.devices.push(id.0),
            }
        }
        for (relation, numbers) in written.iter() {
            read(session, self.written.get(relation), numbers, |row| file_row(&mut found, relation, row))?;
        }
        read(session, &self.principals, &by_key.principals, |row| {
            live.extend(row.try_get(0).map(PrincipalId));
        })?;
        let hashes: Vec<&[u8]> = by_key.credentials.iter().map(|key| key.as_bytes().as_slice()).collect();
        if !hashes.is_empty() {
            let on_row = |row: &Row| file_row(&mut found, Relation::Credentials, row);
            session.for_each(&self.tables.credentials, &[&hashes], on_row)?;
        }
        for (relation, ids) in [(Relation::Grants, &by_key.grants), (Relation::Devices, &by_key.devices)] {
            read(session, self.tables.get(relation), ids, |row| file_row(&mut found, relation, row))?;
        }
        Ok(RowsByKey { rows: found, live })
    }
}

/// Keys whose rows the tables are asked for.
#[derive(Default)]
struct KeysOfTables {
    principals: Vec<i64>,
    credentials: Vec<KeyHash>,
    grants: Vec<i64>,
    devices: Vec<i64>,
}

fn read(
    session: &PostgresSession,
    statement: &Statement,
    ids: &[i64],
    on_row: impl FnMut(&Row),
) -> Result<(), SessionError> {
    if ids.is_empty() {
        return Ok(());
    }
    session.for_each(statement, &[&ids], on_row)
}

fn file_row(found: &mut FoundRows, relation: Relation, row: &Row) {
    let row = match relation {
        Relation::Credentials => decode::credential(row).map(Change::Credential),
        Relation::Grants => decode::grant(row).map(Change::Grant),
        Relation::Devices => decode::device(row).map(Change::Device),
    };
    file(found, row);
}

/// Files a row under the key that the outbox names it by. The row was read by its key, so it has one.
fn file(found: &mut FoundRows, row: Result<Change, BadRow>) {
    let key = match &row {
        Ok(Change::Credential(row)) => Some(ChangedKey::Credential(row.key)),
        Ok(Change::Grant(row)) => Some(ChangedKey::Grant(row.id)),
        Ok(Change::Device(row)) => Some(ChangedKey::Device(row.id)),
        Ok(_) => None,
        Err(bad) => match bad.quarantined.key {
            RowKey::Credential(key) => Some(ChangedKey::Credential(key)),
            RowKey::Grant(id) => Some(ChangedKey::Grant(id)),
            RowKey::Device(id) => Some(ChangedKey::Device(id)),
            RowKey::Unreadable { .. } => None,
        },
    };
    if let Some(key) = key {
        found.entry(key).or_default().push(row);
    }
}
