//! What is told of clients: tunnels that ended, and sessions that never became one.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;

use ipnet::IpNet;
use serde::Serialize;

use crate::authz::{CredentialId, DeviceId, DeviceUuid, Generation, GrantId, PrincipalId};
use crate::telemetry::Cause;

/// Who and what a session was about, as far as it got.
#[derive(Clone, Debug, Default, Serialize)]
pub struct SessionFacts {
    pub session: u64,
    pub client: Option<SocketAddr>,
    pub principal: Option<PrincipalId>,
    pub credential: Option<CredentialId>,
    pub grant: Option<GrantId>,
    pub device: Option<DeviceId>,
    pub uuid: Option<DeviceUuid>,
    pub port: Option<u16>,
    /// The snapshot that decided.
    pub generation: Option<Generation>,
}

/// A tunnel that was open has ended.
#[derive(Clone, Debug, Serialize)]
pub struct SessionEnd {
    #[serde(flatten)]
    pub facts: SessionFacts,
    pub cause: Cause,
    /// Client to device.
    pub bytes_up: u64,
    /// Device to client.
    pub bytes_down: u64,
    /// From accept to the reply.
    pub handshake_us: u64,
    /// From accept to close.
    pub duration_ms: u64,
}

/// A session that never became a tunnel.
#[derive(Clone, Debug, Serialize)]
pub struct SessionRefusal {
    #[serde(flatten)]
    pub facts: SessionFacts,
    /// Absent where the client was gone before it could be told anything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    pub slug: Option<&'static str>,
    /// The true cause, which the reply may hide.
    pub cause: Cause,
    /// The operating system's word for it, where it said one.
    pub detail: Option<String>,
    /// From accept to the reply.
    pub duration_us: u64,
}

/// Refusals that were not written one by one, because their source had many.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct MoreRefusals {
    /// `None` for all those together that no source is kept for.
    pub source: Option<IpNet>,
    pub refusals: u64,
    /// In which they came.
    pub seconds: u64,
    /// How many by which cause.
    pub causes: BTreeMap<Cause, u64>,
}

impl fmt::Display for SessionEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { facts, cause, bytes_up, bytes_down, duration_ms, .. } = self;
        write!(
            f,
            "session {} ended ({cause}) after {duration_ms} ms, {bytes_up} bytes up and {bytes_down} down",
            facts.session
        )
    }
}

impl fmt::Display for SessionRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "session {} refused ({})", self.facts.session, self.cause)?;
        self.detail.as_ref().map_or(Ok(()), |detail| write!(f, ": {detail}"))
    }
}

impl fmt::Display for MoreRefusals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { source, refusals, seconds, .. } = self;
        match source {
            Some(source) => write!(f, "{refusals} more refusals from {source} in the last {seconds} s"),
            None => write!(f, "{refusals} more refusals from other sources in the last {seconds} s"),
        }
    }
}
