//! The client protocol: bytes in, values out. No I/O.

mod head;
mod reply;

pub use head::{ConnectHead, HEAD_BYTES_MAX, HeadError, Token, parse_head};
pub use reply::{HttpVersion, Reply};
