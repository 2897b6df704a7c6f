//! The rows that the outbox names, as they are now.

use std::collections::{HashMap, HashSet};

use tokio_postgres::{Row, Statement};

use super::session::{PostgresSession, SessionError};
use crate::authz::{Change, PrincipalId};
use crate::store::RowKey;
use crate::store::changed_key::ChangedKey;
use crate::store::decode::{self, BadRow};
use crate::store::dialect::POSTGRES;
use crate::store::relations::{LIVE_PRINCIPALS, PerRelation};

/// The relations' queries by key, prepared on a session.
pub(super) struct QueriesByKey {
    principals: Statement,
    relations: PerRelation<Statement>,
}

type FoundRows = HashMap<ChangedKey, Vec<Result<Change, BadRow>>>;

/// The rows that were found by their keys.
pub(super) struct RowsByKey {
    /// Rows of relations; a key without an entry has no row.
    pub(super) rows: FoundRows,
    /// Principals that were not removed.
    pub(super) live: HashSet<PrincipalId>,
}

impl QueriesByKey {
    pub(super) fn prepare(session: &PostgresSession) -> Result<Self, SessionError> {
        let by = |query: &str, key: &str| {
            session.prepare(&format!("SELECT * FROM ({query}) AS relation WHERE {key} = ANY ($1)"))
        };
        let queries = PerRelation::of_reference_schema(&POSTGRES);
        Ok(Self {
            principals: by(&POSTGRES.sql(LIVE_PRINCIPALS), "id")?,
            relations: PerRelation {
                credentials: by(&queries.credentials, "key_sha256")?,
                grants: by(&queries.grants, "grant_id")?,
                devices: by(&queries.devices, "device")?,
            },
        })
    }

    /// Finds the rows of `changed`. Runs one query for each relation, for any number of rows.
    pub(super) fn find(
        &self,
        session: &PostgresSession,
        changed: &[ChangedKey],
    ) -> Result<RowsByKey, SessionError> {
        let Self { principals, relations: PerRelation { credentials, grants, devices } } = self;
        let (mut found, mut live) = (FoundRows::new(), HashSet::new());
        let ids = |id: fn(&ChangedKey) -> Option<i64>| changed.iter().filter_map(id).collect::<Vec<_>>();

        let keys = ids(|key| if let ChangedKey::Principal(id) = key { Some(id.0) } else { None });
        read(session, principals, &keys, |row| live.extend(row.try_get(0).map(PrincipalId)))?;

        let keys: Vec<&[u8]> = changed
            .iter()
            .filter_map(|key| match key {
                ChangedKey::Credential(key) => Some(key.as_bytes().as_slice()),
                _ => None,
            })
            .collect();
        if !keys.is_empty() {
            session.for_each(credentials, &[&keys], |row| {
                file(&mut found, decode::credential(row).map(Change::Credential));
            })?;
        }

        let keys = ids(|key| if let ChangedKey::Grant(id) = key { Some(id.0) } else { None });
        read(session, grants, &keys, |row| file(&mut found, decode::grant(row).map(Change::Grant)))?;

        let keys = ids(|key| if let ChangedKey::Device(id) = key { Some(id.0) } else { None });
        read(session, devices, &keys, |row| file(&mut found, decode::device(row).map(Change::Device)))?;

        Ok(RowsByKey { rows: found, live })
    }
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
