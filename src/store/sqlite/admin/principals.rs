//! Principals: who holds tokens and grants.

use rusqlite::{OptionalExtension, Transaction};

use super::{Admin, Failure, nearest};
use crate::authz::{PrincipalId, UnixMillis};
use crate::store::admin::{AdminError, PrincipalRow, names};

impl Admin {
    pub fn add_principal(&mut self, name: &str) -> Result<PrincipalId, AdminError> {
        names::check(name)?;
        self.write(|transaction| {
            if find_principal(transaction, name)?.is_some() {
                return Err(AdminError::PrincipalExists { name: name.to_owned() }.into());
            }
            let sql = "INSERT INTO principals (name, created_at) VALUES (?1, ?2)";
            transaction.execute(sql, (name, UnixMillis::now().0))?;
            Ok(PrincipalId(transaction.last_insert_rowid()))
        })
    }

    pub fn principals(&mut self) -> Result<Vec<PrincipalRow>, AdminError> {
        self.read(|transaction| {
            let mut statement = transaction.prepare(
                "SELECT id, name, created_at,
                    (SELECT count(*) FROM credentials WHERE principal = principals.id
                        AND revoked_at IS NULL AND coalesce(expires_at > ?1, true)),
                    (SELECT count(*) FROM grants WHERE principal = principals.id
                        AND revoked_at IS NULL AND coalesce(expires_at > ?1, true))
                FROM principals WHERE removed_at IS NULL ORDER BY name",
            )?;
            let rows = statement.query_map([UnixMillis::now().0], |row| {
                Ok(PrincipalRow {
                    id: PrincipalId(row.get(0)?),
                    name: row.get(1)?,
                    created_at: UnixMillis(row.get(2)?),
                    live_credentials: row.get(3)?,
                    live_grants: row.get(4)?,
                })
            })?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }

    /// Ends the principal and everything that it holds. Its name is free again, its number is not.
    pub fn remove_principal(&mut self, name: &str) -> Result<PrincipalId, AdminError> {
        self.write(|transaction| {
            let id = principal_named(transaction, name)?;
            let sql = "UPDATE principals SET removed_at = ?2 WHERE id = ?1";
            transaction.execute(sql, (id.0, UnixMillis::now().0))?;
            Ok(id)
        })
    }
}

pub(super) fn principal_named(transaction: &Transaction<'_>, name: &str) -> Result<PrincipalId, Failure> {
    if let Some(id) = find_principal(transaction, name)? {
        return Ok(id);
    }
    let sql = "SELECT name FROM principals WHERE removed_at IS NULL";
    let nearest = nearest(transaction, sql, name, "`sluicegate principal add` makes one")?;
    Err(AdminError::PrincipalUnknown { name: name.to_owned(), nearest }.into())
}

fn find_principal(transaction: &Transaction<'_>, name: &str) -> Result<Option<PrincipalId>, Failure> {
    let sql = "SELECT id FROM principals WHERE name = ?1 AND removed_at IS NULL";
    let id = transaction.query_row(sql, [name], |row| row.get(0)).optional()?;
    Ok(id.map(PrincipalId))
}
