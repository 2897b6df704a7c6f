//! A token's three parts.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde::de::IgnoredAny;

/// JWS in its compact form (RFC 7515, section 3.1).
pub(super) struct Compact<'a> {
    pub header: JoseHeader,
    /// What the signature is over: header and payload as they came.
    pub signed: &'a [u8],
    pub payload: Vec<u8>,
    pub signature: Vec<u8>,
}

/// Of a JOSE header, what matters here.
#[derive(Deserialize)]
pub(super) struct JoseHeader {
    pub alg: String,
    pub kid: Option<String>,
    /// What whoever reads the token has to understand beside.
    pub crit: Option<IgnoredAny>,
}

impl<'a> Compact<'a> {
    /// `None` for what is no token of this form.
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
