//! Verifies session tokens: checks that a JWT is genuine and valid now, and reads its subject.
//!
//! Only one form is accepted: a JWS in its compact form (RFC 7515), signed by a key whose algorithm the
//! configuration or the signer's set of keys names. The library `jsonwebtoken` parses the token and checks its header;
//! the signature is checked by the cryptography of TLS. The caller passes the time.

mod claims;
mod form;
mod key_sets;
mod numbers;
mod openbalena;
mod provider;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::sync::Arc;

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Validation, decode, decode_header};
use serde_json::{Map, Value};

use crate::config::{SignerKeys, TokenAlgorithm, TokenKey, TokenSigner};
use form::Form;

pub use claims::{Claims, TokenSubject};
pub use key_sets::{EARLY_PAUSE, KeySetState, KeySets, SharedKeySet};
pub use openbalena::{LoginRights, OpenBalenaLogin};

/// The signers whose tokens are accepted.
pub struct Verifier {
    signers: Vec<(TokenSigner, Option<Arc<SharedKeySet>>)>,
}

/// The reason why a session token is refused. It never repeats the token's content, which may hold secrets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SessionTokenError {
    #[error("it is not a valid JWT")]
    Malformed,
    #[error("its header needs an extension (`crit`) that the relay does not know, or is not that of a JWT")]
    Header,
    #[error("its algorithm is not that of any key in authz.tokens")]
    Algorithm,
    #[error("the key that it names is none in authz.tokens, or it names none of several")]
    Key,
    #[error("the key that it names may be a new one; the keys are read again now")]
    KeyAwaited,
    #[error("the keys of a signer in authz.tokens cannot be read, so nobody can tell whether it is genuine")]
    NoKeys,
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
    /// A verifier of these signers' tokens. `sets` must have the sets of their sources.
    pub fn new(signers: Vec<TokenSigner>, sets: &KeySets) -> Self {
        provider::install();
        let with_set = |signer: TokenSigner| {
            let set = match &signer.keys {
                SignerKeys::Set(source) => sets.of(source),
                SignerKeys::One { .. } => None,
            };
            (signer, set)
        };
        Self { signers: signers.into_iter().map(with_set).collect() }
    }

    /// Verifies `token` at `now_ms` (since the epoch). `None` where it is an opaque token: it is not three parts of
    /// base64url that begin with a JOSE header, or no signer is configured.
    pub fn verify(&self, token: &[u8], now_ms: i64) -> Option<Result<Claims, SessionTokenError>> {
        if self.signers.is_empty() {
            return None;
        }
        let form = Form::of(token)?;
        Some(self.judge(token, &form, now_ms))
    }

    /// Returns the claims by the first signer that accepts the token. Where none does, returns the error of the
    /// signer that accepted most of it.
    fn judge(&self, token: &[u8], form: &Form, now_ms: i64) -> Result<Claims, SessionTokenError> {
        let algorithm = TokenAlgorithm::by_name(&form.alg).ok_or(SessionTokenError::Algorithm)?;
        if decode_header(token).map_or(true, |header| header.crit.is_some()) {
            return Err(SessionTokenError::Header);
        }
        let mut refused = SessionTokenError::Algorithm;
        for (signer, set) in &self.signers {
            match judge_by(signer, set.as_deref(), token, (algorithm, form.kid.as_deref()), now_ms) {
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
        self.progress() <= Self::NoKeys.progress()
    }

    /// True where the token may be good, and nobody can tell now.
    pub const fn is_undecided(self) -> bool {
        matches!(self, Self::NoKeys | Self::KeyAwaited)
    }

    /// Number of checks that the token passed before it was refused.
    const fn progress(self) -> u8 {
        match self {
            Self::Algorithm => 0,
            Self::Header => 1,
            Self::Key => 2,
            Self::Signature => 3,
            // What another signer's keys do not fit may be by one whose keys are missing.
            Self::KeyAwaited => 4,
            Self::NoKeys => 5,
            Self::Malformed => 6,
            Self::Issuer => 7,
            Self::Audience => 8,
            Self::NoExpiry => 9,
            Self::Expired => 10,
            Self::NotYetValid => 11,
            Self::Nobody => 12,
        }
    }
}

fn judge_by(
    signer: &TokenSigner,
    set: Option<&SharedKeySet>,
    token: &[u8],
    (algorithm, kid): (TokenAlgorithm, Option<&str>),
    now_ms: i64,
) -> Result<Claims, SessionTokenError> {
    let payload = match (&signer.keys, set) {
        (SignerKeys::One { key, id, .. }, _) => {
            if key.algorithm() != algorithm {
                return Err(SessionTokenError::Algorithm);
            }
            if let (Some(named), Some(ours)) = (kid, id)
                && named != ours
            {
                return Err(SessionTokenError::Key);
            }
            payload(token, key)?
        }
        (SignerKeys::Set(_), Some(set)) => {
            let keys = set.keys_for(algorithm, kid, now_ms)?;
            let mut by_keys = keys.iter().map(|key| payload(token, key));
            // Keys of one name are few, and those of a set are bounded.
            by_keys
                .find(|by| *by != Err(SessionTokenError::Signature))
                .unwrap_or(Err(SessionTokenError::Signature))?
        }
        (SignerKeys::Set(_), None) => return Err(SessionTokenError::NoKeys),
    };
    Claims::read(&payload, signer, now_ms)
}

/// The payload of a token that `key` has signed. It is parsed only after its signature was verified.
fn payload(token: &[u8], key: &TokenKey) -> Result<Map<String, Value>, SessionTokenError> {
    let mut validation = Validation::new(key.algorithm().of_library());
    // The claims are checked here, each with a reason of its own, at the caller's time and to the millisecond.
    validation.required_spec_claims = HashSet::new();
    (validation.validate_exp, validation.validate_aud) = (false, false);
    match decode::<Map<String, Value>>(token, key.decoding_key(), &validation) {
        Ok(token) => Ok(token.claims),
        Err(error) => Err(match error.kind() {
            ErrorKind::InvalidSignature => SessionTokenError::Signature,
            ErrorKind::InvalidAlgorithm => SessionTokenError::Algorithm,
            // Its header was parsed before, so this is the payload.
            ErrorKind::Json(_) | ErrorKind::Base64(_) => SessionTokenError::Malformed,
            _ => SessionTokenError::Header,
        }),
    }
}
