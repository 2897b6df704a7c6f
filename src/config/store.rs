//! `[store]`: the database with the rights, the devices and the nodes.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use super::{ConfigError, PostgresUrl, state_folder};

/// The section `[store]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Store {
    pub url: StoreUrl,
    /// The schema of the database.
    pub profile: Profile,
    /// A file with the password of a PostgreSQL store, read for each connection. Without it, the password in the URL
    /// or in the environment's PGPASSWORD is used.
    pub password_file: Option<PathBuf>,
    /// Time that one host of a PostgreSQL store has to accept a connection.
    #[serde(with = "humantime_serde")]
    pub connect_timeout: Duration,
    /// Time that a PostgreSQL store has to begin an answer, or to continue it.
    #[serde(with = "humantime_serde")]
    pub statement_timeout: Duration,
}

/// A database schema that sluicegate has queries for. `authz.queries` replaces them for any other schema.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// Sluicegate's own.
    #[default]
    Reference,
    OpenBalena,
}

/// The store's address: `sqlite:PATH` or `postgres://…`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum StoreUrl {
    Sqlite(PathBuf),
    Postgres(Box<PostgresUrl>),
}

impl Default for Store {
    fn default() -> Self {
        Self {
            url: StoreUrl::Sqlite(state_folder().join("sluicegate.db")),
            profile: Profile::Reference,
            password_file: None,
            connect_timeout: Duration::from_secs(5),
            statement_timeout: Duration::from_secs(10),
        }
    }
}

impl TryFrom<String> for StoreUrl {
    type Error = ConfigError;

    fn try_from(url: String) -> Result<Self, ConfigError> {
        match url.split_once(':') {
            Some(("sqlite", path)) if !path.is_empty() => Ok(Self::Sqlite(path.into())),
            Some(("postgres" | "postgresql", _)) => Ok(Self::Postgres(Box::new(PostgresUrl::parse(&url)?))),
            // The rest is not repeated: a URL can hold a password.
            Some((scheme, _)) => Err(ConfigError::StoreUrl { scheme: format!("{scheme}:") }),
            None => Err(ConfigError::StoreUrl { scheme: url }),
        }
    }
}
