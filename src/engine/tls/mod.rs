//! TLS on client and peer connections: the stream and its connection, the handshake pool, the memory for records, and the kernel where
//! it takes the records.

pub(super) mod handshake_pool;
pub(super) mod ktls;
pub(super) mod scratch;
pub(super) mod stream;
pub(super) mod transport;
