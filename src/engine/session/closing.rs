//! The last state of a session: it keeps what its operations use until the last of them has completed.

use super::core::SessionCore;
use super::tunnel::Tunnel;
use crate::engine::kernel::Kernel;
use crate::engine::turn::TurnCx;

/// The things that the operations in flight use.
pub(super) enum Closing<K: Kernel> {
    /// Nothing is in flight, or a panic lost the state; the kernel keeps the sockets of operations open.
    Nothing,
    Sockets(Box<ClosingSockets<K>>),
    Tunnel(Box<Tunnel<K>>),
}

/// Sockets of a session that had no tunnel. They close when this is dropped.
pub(super) struct ClosingSockets<K: Kernel> {
    _client: K::Socket,
    _other: Option<K::Socket>,
}

impl<K: Kernel> Closing<K> {
    /// Cancels what is in flight, and keeps the sockets until it has completed.
    pub fn keep_sockets(
        client: K::Socket,
        other: Option<K::Socket>,
        core: &mut SessionCore,
        cx: &mut TurnCx<'_, K>,
    ) -> Self {
        cancel_all(core, cx);
        if core.in_flight.is_empty() {
            return Self::Nothing;
        }
        Self::Sockets(Box::new(ClosingSockets { _client: client, _other: other }))
    }

    /// Cancels what is in flight, and keeps the tunnel's sockets, pipes and buffers until it has completed.
    pub fn keep_tunnel(tunnel: Box<Tunnel<K>>, core: &mut SessionCore, cx: &mut TurnCx<'_, K>) -> Self {
        cancel_all(core, cx);
        Self::Tunnel(tunnel)
    }

    /// Cancels what is in flight again.
    pub fn keep_on(self, core: &mut SessionCore, cx: &mut TurnCx<'_, K>) -> Self {
        cancel_all(core, cx);
        self
    }

    /// Gives pipes back to the thread. Only once nothing is in flight.
    pub fn release(self, cx: &mut TurnCx<'_, K>) {
        match self {
            Self::Tunnel(mut tunnel) => tunnel.release(cx.kernel),
            Self::Sockets(sockets) => drop(sockets),
            Self::Nothing => {}
        }
    }
}

fn cancel_all<K: Kernel>(core: &mut SessionCore, cx: &mut TurnCx<'_, K>) {
    core.deadline = None;
    let mut io = core.io(cx);
    for purpose in io.in_flight.iter() {
        io.cancel(purpose);
    }
}
