//! The errors of a configuration: each with its position and the remedy, and all of them together.

use std::fmt;

/// An error in a configuration, its position, and the remedy.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("{path} cannot be read: {detail}")]
    Unreadable { path: String, detail: String },
    #[error("{position}{problem}")]
    Wrong { position: FilePosition, problem: String },
    #[error("the environment's {variable}: {problem}")]
    Override { variable: String, problem: String },
    #[error("`{scheme}` is not a store; use `sqlite:PATH` or `postgres://USER@HOST/DATABASE`")]
    StoreUrl { scheme: String },
    #[error(
        "this is not a PostgreSQL URL ({detail}); write `postgres://USER@HOST[:PORT],…/DATABASE?OPTION=VALUE&…`"
    )]
    StorePostgresUrl { detail: String },
    #[error(
        "`{name}` is not a source of device addresses; use `store`, `file:PATH`, `openvpn:PATH`, \
         `openvpn:HOST:PORT` (an IPv6 address in brackets) or `wireguard:INTERFACE`"
    )]
    AddressSource { name: String },
    #[error("the key in {file} cannot be used: {detail}")]
    TokenKey { file: String, detail: String },
    #[error("the set of keys in {file} cannot be used: {detail}")]
    TokenKeySet { file: String, detail: String },
    #[error(
        "a signer has one source of keys; write exactly one of `key_file`, `keys_file`, `keys_url` and `discover = true`"
    )]
    TokenKeys,
    #[error("`key_file` has one key; name its `algorithm`, such as `algorithm = \"ES256\"`")]
    TokenAlgorithm,
    #[error("`{option}` goes with {of}; leave it out here")]
    TokenKeyOption { option: &'static str, of: &'static str },
    #[error("`discover` asks the issuer; name it in `issuer`, such as `issuer = \"https://login.example\"`")]
    TokenIssuer,
    #[error("`{url}` is no URL that keys are fetched from; write `https://HOST[:PORT]/PATH`, without a user")]
    TokenUrl { url: String },
    #[error("HS256 has a secret, which is in no set of public keys; name its file in `key_file`")]
    TokenSecretInSet,
    #[error("`claims` names every claim of these tokens; leave out `secret_claim` and `principal_claim`")]
    TokenClaims,
    #[error("the query in {file} cannot be used ({detail}); name a file that holds one SELECT")]
    Query { file: String, detail: String },
}

/// All errors of a configuration, in the order of the file; shown as one line for each.
#[derive(Debug, PartialEq, Eq)]
pub struct ConfigErrors(Vec<ConfigError>);

/// A position in a configuration file; shown as `FILE:LINE:COLUMN: KEY: `, as far as it is known.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct FilePosition {
    pub file: Option<String>,
    /// Line and column, from 1.
    pub position: Option<(usize, usize)>,
    pub key: Option<String>,
}

impl ConfigError {
    /// Its order among others: errors of the file by their position, then those without one.
    fn order(&self) -> (bool, Option<(usize, usize)>) {
        match self {
            Self::Wrong { position, .. } => (position.position.is_none(), position.position),
            _ => (true, None),
        }
    }
}

impl ConfigErrors {
    /// `None` where nothing is wrong.
    pub(super) fn new(mut errors: Vec<ConfigError>) -> Option<Self> {
        errors.sort_by_key(ConfigError::order);
        (!errors.is_empty()).then_some(Self(errors))
    }

    /// The errors, one line each, though a value or a variable that one quotes may have line breaks.
    pub fn lines(&self) -> impl Iterator<Item = String> {
        self.0.iter().map(|error| one_line(&error.to_string()))
    }
}

impl std::error::Error for ConfigErrors {}

impl From<ConfigError> for ConfigErrors {
    fn from(error: ConfigError) -> Self {
        Self(vec![error])
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, line) in self.lines().enumerate() {
            write!(f, "{}{line}", if place > 0 { "\n" } else { "" })?;
        }
        Ok(())
    }
}

/// The text with its control characters escaped.
fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for each in text.chars() {
        match each.is_control() {
            true => line.extend(each.escape_default()),
            false => line.push(each),
        }
    }
    line
}

impl fmt::Display for FilePosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            write!(f, "{file}:")?;
        }
        if let Some((line, column)) = self.position {
            write!(f, "{line}:{column}:")?;
        }
        if self.file.is_some() {
            f.write_str(" ")?;
        }
        self.key.as_ref().map_or(Ok(()), |key| write!(f, "{key}: "))
    }
}
