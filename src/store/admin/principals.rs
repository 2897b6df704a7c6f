//! Principals, which hold tokens and grants.

use super::{Admin, AdminError, PrincipalRow, id, names, nearest};
use crate::authz::PrincipalId;
use crate::store::sql::SqlTransaction;
use crate::store::value::ColumnValue;

impl Admin {
    pub fn add_principal(&mut self, name: &str) -> Result<PrincipalId, AdminError> {
        names::check(name)?;
        self.write(|store| {
            let insert = "INSERT INTO {schema}principals (name, created_at) VALUES ($1, {now})
                ON CONFLICT (name) WHERE removed_at IS NULL DO NOTHING RETURNING id";
            let added = store.first_row(insert, &[name.into()], id)?;
            added.map(PrincipalId).ok_or_else(|| AdminError::PrincipalExists { name: name.to_owned() })
        })
    }

    pub fn principals(&mut self) -> Result<Vec<PrincipalRow>, AdminError> {
        let query = "SELECT id, name, created_at,
                (SELECT count(*) FROM {schema}credentials WHERE principal = principals.id
                    AND revoked_at IS NULL AND coalesce(expires_at > {now}, true)),
                (SELECT count(*) FROM {schema}grants WHERE principal = principals.id
                    AND revoked_at IS NULL AND coalesce(expires_at > {now}, true))
            FROM {schema}principals WHERE removed_at IS NULL ORDER BY name {by_bytes}";
        self.list(query, |row| {
            Ok(PrincipalRow {
                id: PrincipalId(ColumnValue::of(row, 0, "id").integer()?),
                name: ColumnValue::of(row, 1, "name").text()?.to_owned(),
                created_at: ColumnValue::of(row, 2, "created_at").time()?,
                live_credentials: ColumnValue::of(row, 3, "credentials").integer()?,
                live_grants: ColumnValue::of(row, 4, "grants").integer()?,
            })
        })
    }

    /// The names of all principals. Counts nothing, so it is quick where there are many grants.
    pub fn principal_names(&mut self) -> Result<Vec<(PrincipalId, String)>, AdminError> {
        let query = "SELECT id, name FROM {schema}principals WHERE removed_at IS NULL";
        self.list(query, |row| {
            let id = PrincipalId(ColumnValue::of(row, 0, "id").integer()?);
            Ok((id, ColumnValue::of(row, 1, "name").text()?.to_owned()))
        })
    }

    /// Ends the principal and everything that it holds. Its name may be used again, its number is not.
    pub fn remove_principal(&mut self, name: &str) -> Result<PrincipalId, AdminError> {
        self.write(|store| {
            let id = principal_named(store, name)?;
            let update = "UPDATE {schema}principals SET removed_at = {now} WHERE id = $1";
            store.execute(update, &[id.0.into()])?;
            Ok(id)
        })
    }
}

pub(super) fn principal_named(store: &dyn SqlTransaction, name: &str) -> Result<PrincipalId, AdminError> {
    let query = "SELECT id FROM {schema}principals WHERE name = $1 AND removed_at IS NULL";
    if let Some(found) = store.first_row(query, &[name.into()], id)? {
        return Ok(PrincipalId(found));
    }
    let query = "SELECT name FROM {schema}principals WHERE removed_at IS NULL";
    let nearest = nearest(store, query, name, "`sluicegate principal add` makes one")?;
    Err(AdminError::PrincipalUnknown { name: name.to_owned(), nearest })
}
