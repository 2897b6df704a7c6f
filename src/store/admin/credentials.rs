//! Credentials: their principal, their expiry, and their revocation.

use super::principals::principal_named;
use super::token::{NewToken, credential_head};
use super::{Admin, AdminError, CredentialRow, IssuedToken, Revoked, names};
use crate::authz::UnixMillis;
use crate::store::value::ColumnValue;

impl Admin {
    /// Makes a token for `principal`. The store keeps its SHA-256 alone.
    pub fn issue_token(
        &mut self,
        principal: &str,
        label: Option<&str>,
        expires_at: Option<UnixMillis>,
    ) -> Result<IssuedToken, AdminError> {
        label.map_or(Ok(()), names::check)?;
        let NewToken { token, key } = NewToken::generate()?;
        self.write(|store| {
            let principal = principal_named(store, principal)?;
            let insert =
                "INSERT INTO {schema}credentials (key_sha256, principal, label, created_at, expires_at)
                VALUES ($1, $2, $3, {now}, $4)";
            let key = key.as_bytes().as_slice();
            store.execute(insert, &[key.into(), principal.0.into(), label.into(), expires_at.into()])?;
            Ok(())
        })?;
        Ok(IssuedToken { token, credential: key.credential_id() })
    }

    pub fn credentials(&mut self) -> Result<Vec<CredentialRow>, AdminError> {
        let query = "SELECT key_sha256, name, label, credentials.created_at, expires_at, revoked_at
            FROM {schema}credentials JOIN {schema}principals ON principals.id = principal
            ORDER BY credentials.id";
        self.list(query, |row| {
            Ok(CredentialRow {
                credential: ColumnValue::secret(row, 0, "key_sha256").sha256()?.credential_id(),
                principal: ColumnValue::of(row, 1, "name").text()?.to_owned(),
                label: ColumnValue::of(row, 2, "label").nullable_text()?,
                created_at: ColumnValue::of(row, 3, "created_at").time()?,
                expires_at: ColumnValue::of(row, 4, "expires_at").nullable(ColumnValue::time)?,
                revoked_at: ColumnValue::of(row, 5, "revoked_at").nullable(ColumnValue::time)?,
            })
        })
    }

    /// Revokes the credential that listings show as `id`: the first 16 hex digits of its key.
    pub fn revoke_credential(&mut self, id: &str) -> Result<Revoked, AdminError> {
        let head = credential_head(id)?;
        self.write(|store| {
            let update = "UPDATE {schema}credentials SET revoked_at = {now}
                WHERE substr(key_sha256, 1, 8) = $1 AND revoked_at IS NULL";
            let query = "SELECT max(revoked_at) FROM {schema}credentials WHERE substr(key_sha256, 1, 8) = $1";
            let revoked = Revoked::by(store, update, query, head.as_slice().into())?;
            revoked.ok_or_else(|| AdminError::CredentialUnknown { id: id.to_owned() })
        })
    }
}
