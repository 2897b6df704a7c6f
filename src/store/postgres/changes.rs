//! Rows that the outbox names, as they are now.

use std::collections::{HashMap, HashSet};

use tokio_postgres::{Row, Statement};

use super::outbox::ChangedRow;
use super::relations::{CREDENTIALS, DEVICES, GRANTS};
use super::session::{Failure, Session};
use crate::authz::{Change, DeviceId, GrantId, PrincipalId};
use crate::store::RowKey;
use crate::store::decode::{self, BadRow};

/// The relations' queries by key, prepared on a session.
pub(super) struct RowsByKey {
    principals: Statement,
    credentials: Statement,
    grants: Statement,
    devices: Statement,
}

type Found = HashMap<ChangedRow, Vec<Result<Change, BadRow>>>;

impl RowsByKey {
    pub(super) fn prepare(session: &Session) -> Result<Self, Failure> {
        let by = |query: &str, key: &str| {
            session.prepare(&format!("SELECT * FROM ({query}) AS relation WHERE {key} = ANY ($1)"))
        };
        Ok(Self {
            principals: by("SELECT id FROM sluicegate.principals WHERE removed_at IS NULL", "id")?,
            credentials: by(CREDENTIALS, "key_sha256")?,
            grants: by(GRANTS, "grant_id")?,
            devices: by(DEVICES, "device")?,
        })
    }

    /// What has become of each of `changed`, in their order: the row, or its absence. One query for each
    /// relation, however many rows.
    pub(super) fn read(
        &self,
        session: &Session,
        changed: &[ChangedRow],
    ) -> Result<Vec<Result<Change, BadRow>>, Failure> {
        let mut found = Found::new();
        let ids = |id: fn(&ChangedRow) -> Option<i64>| changed.iter().filter_map(id).collect::<Vec<_>>();

        let principals = ids(|row| match row {
            ChangedRow::Principal(id) => Some(id.0),
            _ => None,
        });
        let mut live = HashSet::new();
        read(session, &self.principals, &principals, |row| live.extend(row.try_get::<_, i64>(0)))?;

        let keys: Vec<&[u8]> = changed
            .iter()
            .filter_map(|row| match row {
                ChangedRow::Credential(key) => Some(key.as_bytes().as_slice()),
                _ => None,
            })
            .collect();
        if !keys.is_empty() {
            session.for_each(&self.credentials, &[&keys], |row| {
                note(&mut found, decode::credential(row).map(Change::Credential));
            })?;
        }
        let grants = ids(|row| match row {
            ChangedRow::Grant(id) => Some(id.0),
            _ => None,
        });
        read(session, &self.grants, &grants, |row| {
            note(&mut found, decode::grant(row).map(Change::Grant));
        })?;
        let devices = ids(|row| match row {
            ChangedRow::Device(id) => Some(id.0),
            _ => None,
        });
        read(session, &self.devices, &devices, |row| {
            note(&mut found, decode::device(row).map(Change::Device));
        })?;

        let mut rows = Vec::with_capacity(changed.len());
        for key in changed {
            match (found.remove(key), key) {
                (Some(found), _) => rows.extend(found),
                (None, ChangedRow::Principal(id)) if live.contains(&id.0) => {}
                (None, ChangedRow::Principal(id)) => rows.push(Ok(Change::PrincipalGone(PrincipalId(id.0)))),
                (None, ChangedRow::Credential(key)) => rows.push(Ok(Change::CredentialGone(*key))),
                (None, ChangedRow::Grant(id)) => rows.push(Ok(Change::GrantGone(GrantId(id.0)))),
                (None, ChangedRow::Device(id)) => rows.push(Ok(Change::DeviceGone(DeviceId(id.0)))),
            }
        }
        Ok(rows)
    }
}

fn read(
    session: &Session,
    statement: &Statement,
    ids: &[i64],
    take: impl FnMut(&Row),
) -> Result<(), Failure> {
    if ids.is_empty() {
        return Ok(());
    }
    session.for_each(statement, &[&ids], take)
}

/// Files a row under the key that the outbox names it by. A row was asked for by its key, so it has one.
fn note(found: &mut Found, row: Result<Change, BadRow>) {
    let key = match &row {
        Ok(Change::Credential(row)) => Some(ChangedRow::Credential(row.key)),
        Ok(Change::Grant(row)) => Some(ChangedRow::Grant(row.id)),
        Ok(Change::Device(row)) => Some(ChangedRow::Device(row.id)),
        Ok(_) => None,
        Err(bad) => match bad.quarantined.key {
            RowKey::Credential(key) => Some(ChangedRow::Credential(key)),
            RowKey::Grant(id) => Some(ChangedRow::Grant(id)),
            RowKey::Device(id) => Some(ChangedRow::Device(id)),
            RowKey::Unreadable { .. } => None,
        },
    };
    if let Some(key) = key {
        found.entry(key).or_default().push(row);
    }
}
