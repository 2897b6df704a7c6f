//! Tokens: made here, shown once, kept as their SHA-256.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::AdminError;
use crate::authz::KeyHash;

/// A secret, and the hash that the store keeps of it.
pub(super) struct NewToken {
    pub(super) token: String,
    pub(super) key: KeyHash,
}

impl NewToken {
    pub(super) fn generate() -> Result<Self, AdminError> {
        let mut secret = [0; TOKEN_BYTES];
        getrandom::fill(&mut secret).map_err(AdminError::Random)?;
        let token = format!("{TOKEN_PREFIX}{}", URL_SAFE_NO_PAD.encode(secret));
        Ok(Self { key: KeyHash::of_token(token.as_bytes()), token })
    }
}

/// Decodes the first eight bytes of a credential's key, which listings show in hex.
pub(super) fn credential_head(id: &str) -> Result<[u8; 8], AdminError> {
    let mut head = [0; 8];
    let unknown = || AdminError::CredentialUnknown { id: id.escape_debug().to_string() };
    hex::decode_to_slice(id, &mut head).map_err(|_| unknown())?;
    Ok(head)
}

/// Start of each of our tokens. People and scanners for leaked secrets recognise them by it.
const TOKEN_PREFIX: &str = "sg_";

const TOKEN_BYTES: usize = 32;
