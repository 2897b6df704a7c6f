//! Reloads of the configuration, as an operator gets them.

use serde::{Deserialize, Serialize};

use crate::authz::UnixMillis;
pub use crate::handover::ReloadOutcome;

/// The answer to a request for a reload.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct ReloadRequested {
    pub number: u64,
}

/// The answer to a question for the outcome of a reload.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ReloadAnswer {
    /// `None` while it is not known.
    pub outcome: Option<ReloadOutcome>,
}

/// The configuration in force.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ReloadStatus {
    /// The newest reload; `None` before the first.
    pub last: Option<ReloadOutcome>,
    /// Time of the last reload that was taken over, or of the start.
    pub in_force_since: UnixMillis,
}
