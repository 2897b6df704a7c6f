//! Principals: who holds tokens and grants.

use super::{Admin, Failure, Session, nearest};
use crate::authz::PrincipalId;
use crate::store::admin::{AdminError, PrincipalRow, names};

impl Admin {
    pub fn add_principal(&mut self, name: &str) -> Result<PrincipalId, AdminError> {
        names::check(name)?;
        self.write(|session| {
            let sql = "INSERT INTO sluicegate.principals (name) VALUES ($1)
                ON CONFLICT (name) WHERE removed_at IS NULL DO NOTHING RETURNING id";
            match session.query_opt(sql, &[&name])? {
                Some(row) => Ok(PrincipalId(row.try_get(0)?)),
                None => Err(AdminError::PrincipalExists { name: name.to_owned() }.into()),
            }
        })
    }

    pub fn principals(&mut self) -> Result<Vec<PrincipalRow>, AdminError> {
        self.read(|session| {
            let rows = session.query(
                "SELECT id, name, created_at,
                    (SELECT count(*) FROM sluicegate.credentials WHERE principal = principals.id
                        AND revoked_at IS NULL AND coalesce(expires_at > now(), true)),
                    (SELECT count(*) FROM sluicegate.grants WHERE principal = principals.id
                        AND revoked_at IS NULL AND coalesce(expires_at > now(), true))
                FROM sluicegate.principals WHERE removed_at IS NULL ORDER BY name COLLATE \"C\"",
                &[],
            )?;
            let rows = rows.iter().map(|row| {
                Ok(PrincipalRow {
                    id: PrincipalId(row.try_get(0)?),
                    name: row.try_get(1)?,
                    created_at: row.try_get(2)?,
                    live_credentials: row.try_get(3)?,
                    live_grants: row.try_get(4)?,
                })
            });
            rows.collect()
        })
    }

    /// Ends the principal and everything that it holds. Its name is free again, its number is not.
    pub fn remove_principal(&mut self, name: &str) -> Result<PrincipalId, AdminError> {
        self.write(|session| {
            let id = principal_named(session, name)?;
            session.execute("UPDATE sluicegate.principals SET removed_at = now() WHERE id = $1", &[&id.0])?;
            Ok(id)
        })
    }
}

pub(super) fn principal_named(session: &Session, name: &str) -> Result<PrincipalId, Failure> {
    let sql = "SELECT id FROM sluicegate.principals WHERE name = $1 AND removed_at IS NULL";
    if let Some(row) = session.query_opt(sql, &[&name])? {
        return Ok(PrincipalId(row.try_get(0)?));
    }
    let sql = "SELECT name FROM sluicegate.principals WHERE removed_at IS NULL";
    let nearest = nearest(session, sql, name, "`sluicegate principal add` makes one")?;
    Err(AdminError::PrincipalUnknown { name: name.to_owned(), nearest }.into())
}
