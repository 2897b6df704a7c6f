//! A live tunnel between two processes, or between two threads: nothing of it is in flight.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};

use super::limits::HeldPlace;
use crate::authz::{DeviceId, Generation, GrantId, PrincipalId, Query, UnixMillis};
use crate::sys::pipe::Pipe;

/// A tunnel that was captured. Whoever has it last goes on with it; dropped, it closes its connections, unless another
/// process has copies of them.
pub struct MovedTunnel<S = OwnedFd, P = Pipe> {
    pub facts: MovedFacts,
    pub client: MovedEnd<S>,
    /// The device, or the peer that holds it.
    pub device: MovedEnd<S>,
    pub up: MovedFlow<P>,
    pub down: MovedFlow<P>,
    /// Its place within the limits, where it was counted before it came.
    pub place: Option<HeldPlace>,
}

/// One connection of a tunnel.
pub struct MovedEnd<S = OwnedFd> {
    pub socket: S,
    /// The kernel opens and seals TLS records on it.
    pub has_kernel_tls: bool,
}

/// One direction of a tunnel.
#[derive(Debug)]
pub struct MovedFlow<P = Pipe> {
    /// Bytes that the sink got.
    pub bytes: u64,
    /// The source has sent its FIN.
    pub source_ended: bool,
    /// The sink got its FIN.
    pub finished: bool,
    pub unsent: Unsent<P>,
}

/// Bytes that left the source and did not reach the sink.
#[derive(Debug)]
pub enum Unsent<P = Pipe> {
    Nothing,
    Bytes(Vec<u8>),
    /// They are in the kernel.
    Pipe(P),
}

/// Everything of a tunnel that is no descriptor and no byte. Times are those of the machine's monotonic clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MovedFacts {
    pub session: u64,
    /// Place of its listener in the configuration's `listen`.
    pub listener: u32,
    pub client_address: Option<SocketAddr>,
    pub accepted_at_us: u64,
    pub query: Query,
    pub principal: PrincipalId,
    pub grant: GrantId,
    pub device: DeviceId,
    pub generation: Option<Generation>,
    pub active_at_ms: u64,
    pub has_sent: bool,
    pub settle_at_ms: u64,
    pub expires_at: Option<UnixMillis>,
    pub stalled_at_ms: u64,
    pub reprieved_until_ms: u64,
    pub handshake_us: u32,
}

impl<S, P> MovedTunnel<S, P> {
    /// The same tunnel with its sockets in another form.
    pub(super) fn map_sockets<T>(self, mut map: impl FnMut(S) -> T) -> MovedTunnel<T, P> {
        let Self { facts, client, device, up, down, place } = self;
        let mut end =
            |end: MovedEnd<S>| MovedEnd { socket: map(end.socket), has_kernel_tls: end.has_kernel_tls };
        MovedTunnel { facts, client: end(client), device: end(device), up, down, place }
    }
}
