//! The steps of a canary run.

use std::fmt;

/// One step of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CanaryStep {
    /// Resolves the name and connects.
    Connect,
    /// Runs the TLS handshake and checks the certificate.
    Tls,
    /// Opens a tunnel and reads the device's first bytes.
    Device,
    /// Does the same with a device of another node, on a connection of its own.
    Forwarded,
    /// Shows a token that nobody holds, which the relay must refuse.
    Token,
    /// Asks for a device that the token may not reach, which the relay must refuse.
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
