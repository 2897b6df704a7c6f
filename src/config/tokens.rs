//! Whose session tokens are taken, and what these say of who asks: `[[authz.tokens]]`.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use super::ConfigError;
use super::token_key::{TokenAlgorithm, TokenKey};

/// One key, and what a token must say that was signed by it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Written")]
pub struct TokenSigner {
    /// As its file said when the configuration was read.
    pub key: TokenKey,
    /// A token that names a key (`kid`) must name this one.
    pub key_id: Option<String>,
    pub issuer: Option<String>,
    pub audience: Option<String>,
    /// By how much the signer's clock may differ from ours.
    pub leeway: Duration,
    pub who: SubjectClaims,
}

/// Which claims say who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SubjectClaims {
    /// The one that holds the principal's number.
    Principal(String),
    /// The one that holds a secret by which the store knows the principal; and one with its number, where that
    /// must agree.
    Secret { secret: String, principal: Option<String> },
}

/// As it stands in the file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    algorithm: TokenAlgorithm,
    key_file: PathBuf,
    key_id: Option<String>,
    issuer: Option<String>,
    audience: Option<String>,
    #[serde(with = "humantime_serde", default = "default_leeway")]
    leeway: Duration,
    principal_claim: Option<String>,
    secret_claim: Option<String>,
}

impl TryFrom<Written> for TokenSigner {
    type Error = ConfigError;

    fn try_from(written: Written) -> Result<Self, ConfigError> {
        let Written {
            algorithm,
            key_file,
            key_id,
            issuer,
            audience,
            leeway,
            principal_claim: principal,
            secret_claim,
        } = written;
        let key = TokenKey::read(algorithm, &key_file).map_err(|error| ConfigError::TokenKey {
            file: key_file.display().to_string(),
            detail: error.to_string(),
        })?;
        let who = match secret_claim {
            Some(secret) => SubjectClaims::Secret { secret, principal },
            None => SubjectClaims::Principal(principal.unwrap_or_else(|| SUBJECT.to_owned())),
        };
        Ok(Self { key, key_id, issuer, audience, leeway, who })
    }
}

fn default_leeway() -> Duration {
    Duration::from_secs(30)
}

/// Of whom a token speaks (RFC 7519, section 4.1.2).
const SUBJECT: &str = "sub";
