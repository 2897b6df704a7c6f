//! The head of a CONNECT request.

use std::fmt;

use super::HttpVersion;

/// A longer head is refused with 431.
pub const HEAD_BYTES_MAX: usize = 8 * 1024;

/// A secret: never shown, not by `Debug` either.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(Vec<u8>);

impl Token {
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// A complete, valid head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectHead<'a> {
    pub version: HttpVersion,
    /// The hex digits before the suffix, as sent.
    pub uuid: &'a str,
    pub port: u16,
    /// `None` where the head carries no usable `Proxy-Authorization`.
    pub token: Option<Token>,
    /// Bytes of the head, its empty line included; what follows belongs to the device.
    pub len: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    #[error("{detail}")]
    Malformed { version: HttpVersion, detail: &'static str },
    #[error("the method is not CONNECT")]
    Method { version: HttpVersion },
    #[error("the head is longer than {HEAD_BYTES_MAX} bytes")]
    TooLarge { version: HttpVersion },
}

/// `Ok(None)` while the head is not complete yet; an error as soon as it cannot become valid any more.
pub fn parse_head<'a>(bytes: &'a [u8], suffixes: &[String]) -> Result<Option<ConnectHead<'a>>, HeadError> {
    let _ = (bytes, suffixes);
    todo!()
}
