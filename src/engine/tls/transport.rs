//! One end of a session: a socket, and the way in which bytes cross it.

use super::stream::TlsStream;
use crate::engine::kernel::Kernel;

/// A connection to a client, a device or a peer.
pub(in crate::engine) struct Endpoint<K: Kernel> {
    pub socket: K::Socket,
    pub transport: Transport,
}

/// The way in which bytes cross a connection.
pub(in crate::engine) enum Transport {
    /// Bytes cross as they are.
    Plain,
    /// TLS, whose records this process opens and seals.
    UserTls(Box<TlsStream>),
    /// TLS, whose records the kernel opens and seals.
    KernelTls,
}

impl<K: Kernel> Endpoint<K> {
    pub fn plain(socket: K::Socket) -> Self {
        Self { socket, transport: Transport::Plain }
    }

    pub fn tls(socket: K::Socket, stream: Box<TlsStream>) -> Self {
        Self { socket, transport: Transport::UserTls(stream) }
    }
}

impl Transport {
    /// The TLS stream, where this process opens and seals the records.
    pub fn stream(&mut self) -> Option<&mut TlsStream> {
        match self {
            Self::UserTls(stream) => Some(stream),
            Self::Plain | Self::KernelTls => None,
        }
    }

    pub fn is_user_tls(&self) -> bool {
        matches!(self, Self::UserTls(_))
    }

    /// The other side has sent the TLS message that nothing follows.
    pub fn has_ended(&self) -> bool {
        matches!(self, Self::UserTls(stream) if stream.has_ended())
    }
}
