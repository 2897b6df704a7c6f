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
        self.write(|session| {
            let principal = principal_named(session, principal)?;
            session.execute(
                "INSERT INTO sluicegate.credentials (key_sha256, principal, label, expires_at)
                VALUES ($1, $2, $3, $4)",
                &[&key.as_bytes().as_slice(), &principal.0, &label, &expires_at],
            )?;
            Ok(())
        })?;
        Ok(IssuedToken { token, credential: key.credential_id() })
    }

    pub fn credentials(&mut self) -> Result<Vec<CredentialRow>, AdminError> {
        self.read(|session| {
            let rows = session.query(
                "SELECT key_sha256, name, label, credentials.created_at, expires_at, revoked_at
                FROM sluicegate.credentials JOIN sluicegate.principals ON principals.id = principal
                ORDER BY credentials.id",
                &[],
            )?;
            let rows = rows.iter().map(|row| {
                let key: [u8; 32] = row.try_get::<_, &[u8]>(0)?.try_into().unwrap_or_default();
                Ok(CredentialRow {
                    credential: KeyHash::from_bytes(key).credential_id(),
                    principal: row.try_get(1)?,
                    label: row.try_get(2)?,
                    created_at: row.try_get(3)?,
                    expires_at: row.try_get(4)?,
                    revoked_at: row.try_get(5)?,
                })
            });
            rows.collect()
        })
    }

    /// Revokes the credential that listings show as `id`: the first 16 hex digits of its key.
    pub fn revoke_credential(&mut self, id: &str) -> Result<Revoked, AdminError> {
        let head = credential_head(id)?;
        self.write(|session| {
            let sql = "UPDATE sluicegate.credentials SET revoked_at = now()
                WHERE substr(key_sha256, 1, 8) = $1 AND revoked_at IS NULL";
            if session.execute(sql, &[&head.as_slice()])? > 0 {
                return Ok(Revoked::Now);
            }
            let sql =
                "SELECT max(revoked_at) FROM sluicegate.credentials WHERE substr(key_sha256, 1, 8) = $1";
            let before: Option<UnixMillis> = session.query_one(sql, &[&head.as_slice()])?.try_get(0)?;
            let unknown = || AdminError::CredentialUnknown { id: id.to_owned() };
            Ok(before.map(Revoked::Before).ok_or_else(unknown)?)
        })
    }
}
