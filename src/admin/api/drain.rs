//! Drains by command, as an operator asks for them and gets them.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::authz::UnixMillis;

/// A request to drain the node.
#[derive(Clone, Copy, Default, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DrainRequest {
    /// Time after which the node serves new clients again; without it, when it is told to.
    #[serde(default, with = "humantime_serde", skip_serializing_if = "Option::is_none")]
    pub lasts: Option<Duration>,
}

/// The answer to a [`DrainRequest`].
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct DrainBegun {
    /// Time for which new clients are still served.
    #[serde(with = "humantime_serde")]
    pub lame_duck: Duration,
    /// Time from which all are served again; `None` where the node waits for a command.
    pub until: Option<UnixMillis>,
}

/// The answer to a request to serve again.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct DrainEnded {
    /// False where the node did not drain.
    pub was_draining: bool,
}
