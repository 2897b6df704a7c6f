//! Tokens: made here, told once, kept as their SHA-256.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::principals::principal_named;
use super::{Admin, AdminError, Revoked, names};
use crate::authz::{CredentialId, KeyHash, UnixMillis};

/// A token that nobody can be told again.
pub struct IssuedToken {
    /// The secret itself; this type has no `Debug` for its sake.
    pub token: String,
    pub credential: CredentialId,
}

/// A credential as listings show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CredentialRow {
    pub credential: CredentialId,
    pub principal: String,
    pub label: Option<String>,
    pub created_at: UnixMillis,
    pub expires_at: Option<UnixMillis>,
    pub revoked_at: Option<UnixMillis>,
}

impl Admin {
    pub fn issue_token(
        &mut self,
        principal: &str,
        label: Option<&str>,
        expires_at: Option<UnixMillis>,
    ) -> Result<IssuedToken, AdminError> {
        label.map_or(Ok(()), names::check)?;
        let mut secret = [0; TOKEN_BYTES];
        getrandom::fill(&mut secret).map_err(AdminError::Random)?;
        let token = format!("{TOKEN_PREFIX}{}", URL_SAFE_NO_PAD.encode(secret));
        let key = KeyHash::of_token(token.as_bytes());
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
        let unknown = || AdminError::CredentialUnknown { id: id.escape_debug().to_string() };
        let mut head = [0; 8];
        hex::decode_to_slice(id, &mut head).map_err(|_| unknown())?;
        self.write(|transaction| {
            let sql = "UPDATE credentials SET revoked_at = ?2
                WHERE substr(key_sha256, 1, 8) = ?1 AND revoked_at IS NULL";
            if transaction.execute(sql, (head, UnixMillis::now().0))? > 0 {
                return Ok(Revoked::Now);
            }
            let sql = "SELECT max(revoked_at) FROM credentials WHERE substr(key_sha256, 1, 8) = ?1";
            let before: Option<i64> = transaction.query_row(sql, [head], |row| row.get(0))?;
            Ok(before.map(|at| Revoked::Before(UnixMillis(at))).ok_or_else(unknown)?)
        })
    }
}

/// Tells our tokens from other secrets, for people and for scanners of leaked ones.
const TOKEN_PREFIX: &str = "sg_";

const TOKEN_BYTES: usize = 32;
