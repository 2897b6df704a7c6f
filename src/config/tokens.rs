//! `[[authz.tokens]]`: the signers whose session tokens are accepted, and the claims that name the subject.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use super::ConfigError;
use super::token_key::{TokenAlgorithm, TokenKey};

/// One key, and the conditions for tokens that it has signed.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "TokenSignerKeys")]
pub struct TokenSigner {
    /// The key, read from its file together with the configuration.
    pub key: TokenKey,
    pub key_file: PathBuf,
    /// A token that names a key (`kid`) must name this one.
    pub key_id: Option<String>,
    pub issuer: Option<String>,
    pub audience: Option<String>,
    /// Time by which the signer's clock may differ from ours.
    pub leeway: Duration,
    pub who: SubjectClaims,
}

/// The claims that name the subject of a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SubjectClaims {
    /// The claim with the principal's number.
    Principal(String),
    /// The claim with a secret by which the store knows the principal. Where `principal` is given, that claim must have
    /// the principal's number.
    Secret { secret: String, principal: Option<String> },
    /// The claims that openBalena's API puts into its tokens.
    OpenBalena,
}

/// The value of `claims`: whose tokens these are, where their claims have a meaning of their own.
#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum KnownClaims {
    OpenBalena,
}

/// The keys of `[[authz.tokens]]`, as they stand in the file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TokenSignerKeys {
    algorithm: TokenAlgorithm,
    key_file: PathBuf,
    key_id: Option<String>,
    issuer: Option<String>,
    audience: Option<String>,
    #[serde(with = "humantime_serde", default = "default_leeway")]
    leeway: Duration,
    principal_claim: Option<String>,
    secret_claim: Option<String>,
    claims: Option<KnownClaims>,
}

impl TryFrom<TokenSignerKeys> for TokenSigner {
    type Error = ConfigError;

    fn try_from(keys: TokenSignerKeys) -> Result<Self, ConfigError> {
        let TokenSignerKeys {
            algorithm,
            key_file,
            key_id,
            issuer,
            audience,
            leeway,
            principal_claim: principal,
            secret_claim,
            claims,
        } = keys;
        let key = TokenKey::read(algorithm, &key_file).map_err(|error| ConfigError::TokenKey {
            file: key_file.display().to_string(),
            detail: error.to_string(),
        })?;
        let who = match (claims, secret_claim) {
            (Some(KnownClaims::OpenBalena), None) if principal.is_none() => SubjectClaims::OpenBalena,
            (Some(_), _) => return Err(ConfigError::TokenClaims),
            (None, Some(secret)) => SubjectClaims::Secret { secret, principal },
            (None, None) => SubjectClaims::Principal(principal.unwrap_or_else(|| SUBJECT.to_owned())),
        };
        Ok(Self { key, key_file, key_id, issuer, audience, leeway, who })
    }
}

fn default_leeway() -> Duration {
    Duration::from_secs(30)
}

/// The claim of a token's subject (RFC 7519, section 4.1.2).
const SUBJECT: &str = "sub";
