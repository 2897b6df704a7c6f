//! `[usage]`: the counting of who used how much.

use std::time::Duration;

use serde::Deserialize;

/// The section `[usage]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UsageConfig {
    /// Length of an interval, which ends at a multiple of it since 1970; 0 counts nothing.
    #[serde(with = "humantime_serde")]
    pub interval: Duration,
}

impl Default for UsageConfig {
    fn default() -> Self {
        Self { interval: Duration::from_secs(15 * 60) }
    }
}
