//! The claims of a genuine token.

use serde_json::{Map, Value};

use super::SessionTokenError;
use super::numbers::number;
use super::openbalena::OpenBalenaLogin;
use crate::config::{SubjectClaims, TokenSigner};

/// The claims of a token that is genuine and valid now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claims {
    pub who: TokenSubject,
    /// Time at which the token expires, the leeway included, in ms since the epoch.
    pub expires_at_ms: i64,
}

/// The subject that a token names.
#[derive(Clone, PartialEq, Eq)]
pub enum TokenSubject {
    Principal(i64),
    /// The principal to whom the store maps this secret. It must be `principal` where that is given.
    Secret {
        secret: String,
        principal: Option<i64>,
    },
    OpenBalena(OpenBalenaLogin),
}

impl Claims {
    pub(super) fn read(
        payload: &Map<String, Value>,
        signer: &TokenSigner,
        now_ms: i64,
    ) -> Result<Self, SessionTokenError> {
        check_issuer(payload, signer)?;
        check_audience(payload, signer)?;
        let leeway_ms = i64::try_from(signer.leeway.as_millis()).unwrap_or(i64::MAX);
        let exp = payload.get("exp").and_then(numeric_date).ok_or(SessionTokenError::NoExpiry)?;
        let expires_at_ms = exp.saturating_add(leeway_ms);
        if expires_at_ms <= now_ms {
            return Err(SessionTokenError::Expired);
        }
        if let Some(nbf) = payload.get("nbf") {
            let begins_at_ms = numeric_date(nbf).ok_or(SessionTokenError::NotYetValid)?;
            if begins_at_ms > now_ms.saturating_add(leeway_ms) {
                return Err(SessionTokenError::NotYetValid);
            }
        }
        let who = TokenSubject::read(payload, &signer.who).ok_or(SessionTokenError::Nobody)?;
        Ok(Self { who, expires_at_ms })
    }
}

impl TokenSubject {
    fn read(payload: &Map<String, Value>, claims: &SubjectClaims) -> Option<Self> {
        match claims {
            SubjectClaims::Principal(claim) => Some(Self::Principal(number(payload.get(claim)?)?)),
            SubjectClaims::Secret { secret, principal } => Some(Self::Secret {
                secret: payload.get(secret)?.as_str().filter(|secret| !secret.is_empty())?.to_owned(),
                principal: match principal {
                    Some(claim) => Some(number(payload.get(claim)?)?),
                    None => None,
                },
            }),
            SubjectClaims::OpenBalena => OpenBalenaLogin::read(payload).map(Self::OpenBalena),
        }
    }
}

impl std::fmt::Debug for TokenSubject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Principal(id) => write!(f, "Principal({id})"),
            Self::Secret { principal, .. } => write!(f, "Secret(…, {principal:?})"),
            Self::OpenBalena(_) => f.write_str("OpenBalena(…)"),
        }
    }
}

fn check_issuer(payload: &Map<String, Value>, signer: &TokenSigner) -> Result<(), SessionTokenError> {
    match &signer.issuer {
        Some(issuer) if payload.get("iss").and_then(Value::as_str) != Some(issuer) => {
            Err(SessionTokenError::Issuer)
        }
        _ => Ok(()),
    }
}

/// Checks that the token is for this relay. A token with an audience is for that audience only (RFC 7519, section
/// 4.1.3), so a relay without a configured audience refuses it.
fn check_audience(payload: &Map<String, Value>, signer: &TokenSigner) -> Result<(), SessionTokenError> {
    let is_for_us = match (payload.get("aud"), signer.audience.as_deref()) {
        (None, None) => true,
        (Some(Value::String(audience)), Some(ours)) => audience == ours,
        (Some(Value::Array(audiences)), Some(ours)) => {
            audiences.iter().any(|audience| audience.as_str() == Some(ours))
        }
        _ => false,
    };
    if is_for_us { Ok(()) } else { Err(SessionTokenError::Audience) }
}

/// Reads seconds since the epoch, fractions allowed (RFC 7519, section 2), as milliseconds.
fn numeric_date(value: &Value) -> Option<i64> {
    let seconds = value.as_f64()?;
    // The cast saturates: a date outside the range becomes the end of the range.
    Some((seconds * 1000.0) as i64)
}
