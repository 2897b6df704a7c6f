//! `[security]`: what the relay's process may do, whatever code runs in it.

use serde::Deserialize;

/// The section `[security]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Security {
    pub confine: Confine,
}

/// The choice whether the process gives up what it does not need, before it accepts clients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Confine {
    /// System calls, files and privileges that it does not need are refused to it.
    #[default]
    On,
    /// System calls that it does not need are written to the kernel's log and served.
    Log,
    Off,
}
