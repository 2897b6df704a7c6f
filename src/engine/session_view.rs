//! Sessions as an operator sees them: the rows of `sluicegate sessions`.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::authz::{Query, UnixMillis};
use crate::telemetry::SessionFacts;

/// A session at the time when its thread listed it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SessionRow {
    pub facts: SessionFacts,
    pub state: SessionState,
    /// Time when it was accepted.
    pub since: UnixMillis,
    /// The tunnel; `None` before there is one.
    pub tunnel: Option<TunnelRow>,
    /// The query whose answer the session rests on, where there is one.
    pub query: Option<Query>,
    /// The client's network, while the head is awaited and counts for it.
    #[serde(default)]
    pub awaited_from: Option<IpNet>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SessionState {
    /// The TLS handshake is under way.
    Securing,
    /// The head is being read.
    Head,
    /// The device is being dialled.
    Dialling,
    Open,
    /// One direction has ended.
    HalfClosed,
    /// The client was refused.
    Refused,
    /// The session is over; operations are still in flight.
    Closing,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct TunnelRow {
    /// Client to device.
    pub up: DirectionRow,
    /// Device to client.
    pub down: DirectionRow,
    /// Time from accept to the reply, in µs.
    pub handshake_us: u64,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct DirectionRow {
    pub bytes: u64,
    pub path: PathKind,
}

/// The path by which a direction moves its bytes now.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PathKind {
    Copy,
    Splice,
    /// Records are opened or sealed, since an end speaks TLS.
    Tls,
}

/// The node's sessions, as many as there was room for.
#[derive(Debug, Default)]
pub struct SessionList {
    pub rows: Vec<SessionRow>,
    /// Sessions that began while the list was made and found no room in it.
    pub left_out: usize,
}
