//! Verifies session tokens: checks that a JWT is genuine and valid now, and reads its subject.
//!
//! Only one form is accepted: a JWS in its compact form (RFC 7515), signed by a key whose algorithm the
//! configuration names. The caller passes the time.

mod claims;
mod compact;
mod numbers;
mod openbalena;
#[cfg(test)]
mod tests;

use crate::config::TokenSigner;
use compact::Compact;

pub use claims::{Claims, TokenSubject};
pub use openbalena::{LoginRights, OpenBalenaLogin};

/// The signers whose tokens are accepted.
pub struct Verifier {
    signers: Vec<TokenSigner>,
}

/// The reason why a session token is refused. It never repeats the token's content, which may hold secrets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SessionTokenError {
    #[error("it is not a valid JWT")]
    Malformed,
    #[error("its algorithm is not that of any key in authz.tokens")]
    Algorithm,
    #[error("the key that it names is none in authz.tokens")]
    Key,
    #[error("no key in authz.tokens has signed it")]
    Signature,
    #[error("its issuer is not the one in authz.tokens")]
    Issuer,
    #[error("it is meant for another audience than the one in authz.tokens")]
    Audience,
    #[error("it has no `exp`, or one that is no number")]
    NoExpiry,
    #[error("its time is over")]
    Expired,
    #[error("its time has not come, by more than authz.tokens.leeway")]
    NotYetValid,
    #[error("the claims that authz.tokens names do not say who asks")]
    Nobody,
}

impl Verifier {
    pub fn new(signers: Vec<TokenSigner>) -> Self {
        Self { signers }
    }

    /// Verifies `token` at `now_ms` (since the epoch). `None` where it is an opaque token: it is not three parts of
    /// base64url that begin with a JOSE header, or no signer is configured.
    pub fn verify(&self, token: &[u8], now_ms: i64) -> Option<Result<Claims, SessionTokenError>> {
        if self.signers.is_empty() {
            return None;
        }
        let token = Compact::parse(token)?;
        Some(self.judge(&token, now_ms))
    }

    /// Returns the claims by the first signer that accepts the token. Where none does, returns the error of the
    /// signer that accepted most of it.
    fn judge(&self, token: &Compact<'_>, now_ms: i64) -> Result<Claims, SessionTokenError> {
        let mut refused = SessionTokenError::Algorithm;
        for signer in &self.signers {
            match judge_by(signer, token, now_ms) {
                Ok(claims) => return Ok(claims),
                Err(error) if error.progress() > refused.progress() => refused = error,
                Err(_) => {}
            }
        }
        Err(refused)
    }
}

impl SessionTokenError {
    /// True where nothing proves that a signer made the token.
    pub const fn is_unproven(self) -> bool {
        self.progress() <= Self::Signature.progress()
    }

    /// Number of checks that the token passed before it was refused.
    const fn progress(self) -> u8 {
        match self {
            Self::Algorithm => 0,
            Self::Key => 1,
            Self::Signature => 2,
            Self::Malformed => 3,
            Self::Issuer => 4,
            Self::Audience => 5,
            Self::NoExpiry => 6,
            Self::Expired => 7,
            Self::NotYetValid => 8,
            Self::Nobody => 9,
        }
    }
}

fn judge_by(signer: &TokenSigner, token: &Compact<'_>, now_ms: i64) -> Result<Claims, SessionTokenError> {
    if token.header.alg != signer.key.algorithm().name() {
        return Err(SessionTokenError::Algorithm);
    }
    if let (Some(named), Some(ours)) = (&token.header.kid, &signer.key_id)
        && named != ours
    {
        return Err(SessionTokenError::Key);
    }
    if !signer.key.has_signed(token.signed, &token.signature) {
        return Err(SessionTokenError::Signature);
    }
    if token.header.crit.is_some() {
        // A required extension must not be ignored (RFC 7515, section 4.1.11).
        return Err(SessionTokenError::Malformed);
    }
    // The payload is parsed only after its signature was verified.
    let payload = serde_json::from_slice(&token.payload).map_err(|_| SessionTokenError::Malformed)?;
    Claims::read(&payload, signer, now_ms)
}
