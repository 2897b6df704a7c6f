//! TLS on client and peer connections: the stream, the handshake pool, and the kernel where it takes the records.

pub(super) mod handshake_pool;
pub(super) mod ktls;
pub(super) mod stream;
