//! Splits a token into its three parts.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde::de::IgnoredAny;

/// A JWS in its compact form (RFC 7515, section 3.1).
pub(super) struct Compact<'a> {
    pub header: JoseHeader,
    /// The signed bytes: header and payload as they arrived.
    pub signed: &'a [u8],
    pub payload: Vec<u8>,
    pub signature: Vec<u8>,
}

/// The members of a JOSE header that the relay reads.
#[derive(Deserialize)]
pub(super) struct JoseHeader {
    pub alg: String,
    pub kid: Option<String>,
    /// Extensions that a reader must understand (RFC 7515, section 4.1.11).
    pub crit: Option<IgnoredAny>,
}

impl<'a> Compact<'a> {
    /// Parses a token; `None` where it does not have this form.
    pub fn parse(token: &'a [u8]) -> Option<Self> {
        let mut dots = token.iter().enumerate().filter(|(_, byte)| **byte == b'.').map(|(place, _)| place);
        let (first, second) = (dots.next()?, dots.next()?);
        if dots.next().is_some() {
            return None;
        }
        let decode = |part: &[u8]| URL_SAFE_NO_PAD.decode(part).ok();
        let header = serde_json::from_slice(&decode(&token[..first])?).ok()?;
        Some(Self {
            header,
            signed: &token[..second],
            payload: decode(&token[first + 1..second])?,
            signature: decode(&token[second + 1..])?,
        })
    }
}
