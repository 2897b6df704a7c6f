//! Credentials: whose they are, until when, and whether they have been revoked.

use super::Admin;
use super::principals::principal_named;
use crate::authz::{KeyHash, UnixMillis};
use crate::store::admin::token::{NewToken, credential_head};
use crate::store::admin::{AdminError, CredentialRow, IssuedToken, Revoked, names};

impl Admin {
    pub fn issue_token(
        &mut self,
        principal: &str,
        label: Option<&str>,
        expires_at: Option<UnixMillis>,
    ) -> Result<IssuedToken, AdminError> {
        label.map_or(Ok(()), names::check)?;
        let NewToken { token, key } = NewToken::generate()?;
        self.write(|transaction| {
            let principal = principal_named(transaction, principal)?;
            transaction.execute(
                "INSERT INTO credentials (key_sha256, principal, label, created_at, expires_at)
                VALUES (?1, ?2, ?3, ?4, ?5)",
                (key.as_bytes(), principal.0, label, UnixMillis::now().0, expires_at.map(|at| at.0)),
            )?;
            Ok(())
        })?;
        Ok(IssuedToken { token, credential: key.credential_id() })
    }

    pub fn credentials(&mut self) -> Result<Vec<CredentialRow>, AdminError> {
        self.read(|transaction| {
            let mut statement = transaction.prepare(
                "SELECT key_sha256, name, label, credentials.created_at, expires_at, revoked_at
                FROM credentials JOIN principals ON principals.id = principal ORDER BY credentials.id",
            )?;
            let rows = statement.query_map([], |row| {
                Ok(CredentialRow {
                    credential: KeyHash::from_bytes(row.get(0)?).credential_id(),
                    principal: row.get(1)?,
                    label: row.get(2)?,
                    created_at: UnixMillis(row.get(3)?),
                    expires_at: row.get::<_, Option<i64>>(4)?.map(UnixMillis),
                    revoked_at: row.get::<_, Option<i64>>(5)?.map(UnixMillis),
                })
            })?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }

    /// Revokes the credential that listings show as `id`: the first 16 hex digits of its key.
    pub fn revoke_credential(&mut self, id: &str) -> Result<Revoked, AdminError> {
        let head = credential_head(id)?;
        self.write(|transaction| {
            let sql = "UPDATE credentials SET revoked_at = ?2
                WHERE substr(key_sha256, 1, 8) = ?1 AND revoked_at IS NULL";
            if transaction.execute(sql, (head, UnixMillis::now().0))? > 0 {
                return Ok(Revoked::Now);
            }
            let sql = "SELECT max(revoked_at) FROM credentials WHERE substr(key_sha256, 1, 8) = ?1";
            let before: Option<i64> = transaction.query_row(sql, [head], |row| row.get(0))?;
            let before = before.map(|at| Revoked::Before(UnixMillis(at)));
            Ok(before.ok_or_else(|| AdminError::CredentialUnknown { id: id.to_owned() })?)
        })
    }
}
