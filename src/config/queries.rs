//! Queries that an operator put in the place of ours, each in a file of SQL.

use std::path::PathBuf;

use serde::Deserialize;

use super::ConfigError;

/// By which queries the relations are read, where not by those on the reference schema.
#[derive(Clone, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Queries {
    pub credentials: Option<Query>,
    pub grants: Option<Query>,
    pub devices: Option<Query>,
}

/// A SELECT, as its file said when the configuration was read: a file that changes later counts from when
/// the configuration is read again.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "PathBuf")]
pub struct Query {
    pub file: PathBuf,
    /// Without the semicolon that may end it.
    pub sql: String,
}

impl Queries {
    pub fn are_replaced(&self) -> bool {
        self.credentials.is_some() || self.grants.is_some() || self.devices.is_some()
    }

    /// These queries, but for those that `others` has in their place.
    pub fn replaced_by(&self, others: &Self) -> Self {
        let either = |ours: &Option<Query>, other: &Option<Query>| other.as_ref().or(ours.as_ref()).cloned();
        Self {
            credentials: either(&self.credentials, &others.credentials),
            grants: either(&self.grants, &others.grants),
            devices: either(&self.devices, &others.devices),
        }
    }
}

impl TryFrom<PathBuf> for Query {
    type Error = ConfigError;

    fn try_from(file: PathBuf) -> Result<Self, ConfigError> {
        let wrong = |detail: String| ConfigError::Query { file: file.display().to_string(), detail };
        let text = std::fs::read_to_string(&file).map_err(|error| wrong(error.to_string()))?;
        let sql = text.trim_end().trim_end_matches(';').trim_end();
        if sql.is_empty() {
            return Err(wrong("there is no query in it".to_owned()));
        }
        Ok(Self { sql: sql.to_owned(), file })
    }
}
