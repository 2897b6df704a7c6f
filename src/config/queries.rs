//! `[authz.queries]`: the operator's queries in place of ours, each in an SQL file.

use std::path::PathBuf;

use serde::Deserialize;

use super::ConfigError;
use super::bounded_file::{TEXT_FILE_BYTES_MAX, read_bounded_text};

/// The queries that replace those of the store's profile.
#[derive(Clone, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Queries {
    pub credentials: Option<RelationQuery>,
    pub grants: Option<RelationQuery>,
    pub devices: Option<RelationQuery>,
    /// Rows that have explicitly ended: a query that adds to the three others what their schema recorded.
    pub ended: Option<RelationQuery>,
}

/// A SELECT, read from its file together with the configuration. A later change of the file counts after a reload.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "PathBuf")]
pub struct RelationQuery {
    pub file: PathBuf,
    /// The query, without a final semicolon.
    pub sql: String,
}

impl Queries {
    /// True where a relation is read by a query of the operator's, so that no outbox names its changes.
    pub fn are_replaced(&self) -> bool {
        self.credentials.is_some() || self.grants.is_some() || self.devices.is_some()
    }

    /// These queries, with those of `others` in their place where there are some.
    pub fn replaced_by(&self, others: &Self) -> Self {
        let either = |ours: &Option<RelationQuery>, other: &Option<RelationQuery>| {
            other.as_ref().or(ours.as_ref()).cloned()
        };
        Self {
            credentials: either(&self.credentials, &others.credentials),
            grants: either(&self.grants, &others.grants),
            devices: either(&self.devices, &others.devices),
            ended: either(&self.ended, &others.ended),
        }
    }
}

impl TryFrom<PathBuf> for RelationQuery {
    type Error = ConfigError;

    fn try_from(file: PathBuf) -> Result<Self, ConfigError> {
        let wrong = |detail: String| ConfigError::Query { file: file.display().to_string(), detail };
        let text = read_bounded_text(&file, TEXT_FILE_BYTES_MAX).map_err(|error| wrong(error.to_string()))?;
        let sql = text.trim_end().trim_end_matches(';').trim_end();
        if sql.is_empty() {
            return Err(wrong("there is no query in it".to_owned()));
        }
        Ok(Self { sql: sql.to_owned(), file })
    }
}
