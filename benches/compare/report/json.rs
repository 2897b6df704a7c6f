//! `report.json`: everything, for programs and for later comparisons.

use super::Report;

#[derive(Debug, thiserror::Error)]
pub enum JsonError {
    #[error("the report cannot be put into JSON: {0}")]
    Write(#[source] serde_json::Error),
    #[error("this is no report of this version: {0}")]
    Read(#[source] serde_json::Error),
}

impl Report {
    pub fn from_json(text: &str) -> Result<Self, JsonError> {
        serde_json::from_str(text).map_err(JsonError::Read)
    }

    pub fn to_json(&self) -> Result<String, JsonError> {
        serde_json::to_string_pretty(self).map_err(JsonError::Write)
    }
}
