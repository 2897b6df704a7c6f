//! The client protocol: bytes in, values out. No I/O.

mod forward;
mod head;
mod proxy;
mod reply;
mod session_token;
mod tls;

pub use forward::{Handover, HandoverError, HandoverReply, parse_handover_reply, parse_hops};
pub use head::{ConnectHead, HEAD_BYTES_MAX, HeadError, Token, parse_head};
pub use proxy::{PROXY_HEADER_BYTES_MAX, ParsedProxyHeader, ProxyHeaderError, parse_proxy_header};
pub use reply::{HttpVersion, Reply};
pub use session_token::{Claims, SessionTokenError, TokenSubject, Verifier};
pub use tls::{AnyCertificate, Sealed, TlsConfigs, TlsConnection, TlsError, TlsFileError, TlsLoadError};
