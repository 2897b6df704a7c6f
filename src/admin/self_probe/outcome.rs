//! The outcome of one probe.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use crate::wire::explain_io;

pub(super) struct ProbeOutcome {
    pub took: Duration,
    pub result: Result<(), ProbeError>,
}

/// Reason why a probe failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProbeError {
    #[error("probe.token_file {path} cannot be read: {error}")]
    Token { path: String, error: io::Error },
    #[error("its own listener at {address} cannot be reached: {}", explain_io(error))]
    Listener { address: SocketAddr, error: io::Error },
    #[error("no reply came from its own listener at {address}: {}", explain_io(error))]
    Reply { address: SocketAddr, error: io::Error },
    #[error("the reply was `{found}`{why}, and should be {wanted}")]
    Refused { found: String, why: String, wanted: &'static str },
}
