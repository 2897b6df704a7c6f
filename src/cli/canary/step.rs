//! The steps of a canary run.

use std::fmt;

/// One thing that has to work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CanaryStep {
    /// The name is resolved and the port open.
    Connect,
    /// A handshake, with a certificate that holds.
    Tls,
    /// A tunnel, and its device's first bytes.
    Device,
    /// The same to a device of another node, by a connection of its own.
    Forwarded,
    /// A token that nobody holds is turned away.
    Token,
    /// The token may not reach what it may not.
    Refused,
}

impl CanaryStep {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Tls => "tls",
            Self::Device => "device",
            Self::Forwarded => "forwarded",
            Self::Token => "token",
            Self::Refused => "refused",
        }
    }
}

impl fmt::Display for CanaryStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
