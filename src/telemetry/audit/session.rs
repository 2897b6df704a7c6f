//! Audit events of clients: tunnels that ended, and sessions that never became one.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::authz::{CredentialId, DeviceId, DeviceUuid, Generation, GrantId, PrincipalId};
use crate::telemetry::Cause;

/// Facts about a session, as far as it came.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct SessionFacts {
    pub session: u64,
    pub client: Option<SocketAddr>,
    /// The node that handed the request over; absent for a client of this node's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub via: Option<Box<str>>,
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
    /// Bytes from client to device.
    pub bytes_up: u64,
    /// Bytes from device to client.
    pub bytes_down: u64,
    /// Time from accept to the reply.
    pub handshake_us: u64,
    /// Time from accept to close.
    pub duration_ms: u64,
}

/// A session that never became a tunnel.
#[derive(Clone, Debug, Serialize)]
pub struct SessionRefusal {
    #[serde(flatten)]
    pub facts: SessionFacts,
    /// Status of the reply; absent where the client got none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    pub slug: Option<&'static str>,
    /// The true cause, which the reply may hide.
    pub cause: Cause,
    /// Words of the operating system or of the parser, where there are any.
    pub detail: Option<String>,
    /// Time from accept to the reply.
    pub duration_us: u64,
}

/// Refusals that were not written one by one, because their source had many.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct MoreRefusals {
    /// Network of the source; `None` for all sources beyond the table together.
    pub source: Option<IpNet>,
    pub refusals: u64,
    /// Time in which they came.
    pub seconds: u64,
    /// Number of refusals by cause.
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
