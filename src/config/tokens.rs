//! `[[authz.tokens]]`: the signers whose session tokens are accepted, and the claims that name the subject.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use super::ConfigError;
use super::bounded_file::read_bounded;
use super::key_set::{KEY_SET_BYTES_MAX, KeySet};
use super::key_source::{HttpsUrl, KeyPlace, KeySource};
use super::token_key::{TokenAlgorithm, TokenKey};

/// One signer: its keys, and the conditions for tokens that it has signed.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "TokenSignerKeys")]
pub struct TokenSigner {
    pub keys: SignerKeys,
    pub issuer: Option<String>,
    pub audience: Option<String>,
    /// Time by which the signer's clock may differ from ours.
    pub leeway: Duration,
    pub who: SubjectClaims,
}

/// The keys that verify a signer's tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SignerKeys {
    /// One key, read from its file together with the configuration.
    One {
        key: TokenKey,
        file: PathBuf,
        /// A token that names a key (`kid`) must name this one.
        id: Option<String>,
    },
    /// A set of keys, which is read again and again while the relay runs.
    Set(KeySource),
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
    algorithm: Option<TokenAlgorithm>,
    key_file: Option<PathBuf>,
    key_id: Option<String>,
    keys_file: Option<PathBuf>,
    keys_url: Option<String>,
    #[serde(default)]
    discover: bool,
    keys_ca: Option<PathBuf>,
    #[serde(with = "humantime_serde", default)]
    keys_refresh: Option<Duration>,
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

    fn try_from(mut signer: TokenSignerKeys) -> Result<Self, ConfigError> {
        let keys = signer.keys()?;
        let TokenSignerKeys {
            issuer,
            audience,
            leeway,
            principal_claim: principal,
            secret_claim,
            claims,
            ..
        } = signer;
        let who = match (claims, secret_claim) {
            (Some(KnownClaims::OpenBalena), None) if principal.is_none() => SubjectClaims::OpenBalena,
            (Some(_), _) => return Err(ConfigError::TokenClaims),
            (None, Some(secret)) => SubjectClaims::Secret { secret, principal },
            (None, None) => SubjectClaims::Principal(principal.unwrap_or_else(|| SUBJECT.to_owned())),
        };
        Ok(Self { keys, issuer, audience, leeway, who })
    }
}

impl TokenSignerKeys {
    /// The keys of this signer, which exactly one of four keys names.
    fn keys(&mut self) -> Result<SignerKeys, ConfigError> {
        let named =
            [self.key_file.is_some(), self.keys_file.is_some(), self.keys_url.is_some(), self.discover];
        if named.into_iter().filter(|named| *named).count() != 1 {
            return Err(ConfigError::TokenKeys);
        }
        if let Some(file) = self.key_file.take() {
            return self.one_key(file);
        }
        if self.key_id.is_some() {
            return Err(ConfigError::TokenKeyOption { option: "key_id", of: "key_file" });
        }
        let place = match (self.keys_file.take(), self.keys_url.take()) {
            (Some(path), _) => self.file(path)?,
            (None, Some(url)) => KeyPlace::Url(https(&url)?),
            (None, None) => {
                let issuer = self.issuer.as_deref().ok_or(ConfigError::TokenIssuer)?;
                KeyPlace::Issuer(https(issuer)?)
            }
        };
        if self.algorithm == Some(TokenAlgorithm::HS256) {
            return Err(ConfigError::TokenSecretInSet);
        }
        let refresh = self.keys_refresh.unwrap_or(DEFAULT_REFRESH);
        Ok(SignerKeys::Set(KeySource { place, ca: self.keys_ca.take(), refresh, algorithm: self.algorithm }))
    }

    fn one_key(&mut self, file: PathBuf) -> Result<SignerKeys, ConfigError> {
        for (option, is_set) in
            [("keys_ca", self.keys_ca.is_some()), ("keys_refresh", self.keys_refresh.is_some())]
        {
            if is_set {
                return Err(ConfigError::TokenKeyOption { option, of: "a set of keys" });
            }
        }
        let algorithm = self.algorithm.ok_or(ConfigError::TokenAlgorithm)?;
        let key = TokenKey::read(algorithm, &file).map_err(|error| ConfigError::TokenKey {
            file: file.display().to_string(),
            detail: error.to_string(),
        })?;
        Ok(SignerKeys::One { key, file, id: self.key_id.take() })
    }

    fn file(&self, path: PathBuf) -> Result<KeyPlace, ConfigError> {
        if self.keys_ca.is_some() {
            return Err(ConfigError::TokenKeyOption { option: "keys_ca", of: "keys_url or discover" });
        }
        let wrong = |detail: String| ConfigError::TokenKeySet { file: path.display().to_string(), detail };
        let text = read_bounded(&path, KEY_SET_BYTES_MAX)
            .map_err(|error| wrong(format!("it cannot be read: {error}")))?;
        let set = KeySet::parse(&text).map_err(|error| wrong(error.to_string()))?;
        Ok(KeyPlace::File { path, set })
    }
}

fn https(url: &str) -> Result<HttpsUrl, ConfigError> {
    HttpsUrl::parse(url).ok_or_else(|| ConfigError::TokenUrl { url: url.to_owned() })
}

fn default_leeway() -> Duration {
    Duration::from_secs(30)
}

/// The claim of a token's subject (RFC 7519, section 4.1.2).
const SUBJECT: &str = "sub";

/// Time between two reads of a set of keys. Login services announce a new key longer before they sign by it.
const DEFAULT_REFRESH: Duration = Duration::from_secs(10 * 60);
