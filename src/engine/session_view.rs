//! The sessions as an operator sees them.

use serde::Serialize;

use crate::authz::UnixMillis;
use crate::telemetry::SessionFacts;

/// A session as it was when its thread came by.
#[derive(Clone, Debug)]
pub struct SessionRow {
    pub facts: SessionFacts,
    pub state: SessionState,
    /// When it was accepted.
    pub since: UnixMillis,
    /// Absent until there is a tunnel.
    pub tunnel: Option<TunnelRow>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum SessionState {
    /// Its TLS handshake is under way.
    Securing,
    /// Its head is being read.
    Head,
    /// The device is being dialled.
    Dialling,
    Open,
    /// One direction has ended.
    HalfClosed,
    /// The client has been told no.
    Refused,
    /// Over, with operations in flight.
    Closing,
}

#[derive(Clone, Copy, Debug)]
pub struct TunnelRow {
    /// Client to device.
    pub up: DirectionRow,
    /// Device to client.
    pub down: DirectionRow,
    /// From accept to the reply.
    pub handshake_us: u64,
}

#[derive(Clone, Copy, Debug)]
pub struct DirectionRow {
    pub bytes: u64,
    pub path: PathKind,
}

/// How a direction moves its bytes now.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PathKind {
    Copy,
    Splice,
    /// By records, since either end speaks TLS.
    Tls,
}

/// The node's sessions, or as many as there was room for.
#[derive(Debug, Default)]
pub struct SessionList {
    pub rows: Vec<SessionRow>,
    /// Sessions that came while the list was made, beyond the room for them.
    pub left_out: usize,
}
