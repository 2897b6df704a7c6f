//! The form of a session token: what tells it from an opaque token, and the names in its header.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;

/// The names in the header of a token that has the form of a JWS in its compact form (RFC 7515, section 3.1).
#[derive(Deserialize)]
pub(super) struct Form {
    pub alg: String,
    pub kid: Option<String>,
}

impl Form {
    /// Reads the form of a token; `None` for an opaque one. What else is in the header, the library judges.
    pub fn of(token: &[u8]) -> Option<Self> {
        let mut parts = token.split(|byte| *byte == b'.').map(|part| URL_SAFE_NO_PAD.decode(part).ok());
        let (header, _payload, _signature) = (parts.next()??, parts.next()??, parts.next()??);
        if parts.next().is_some() {
            return None;
        }
        serde_json::from_slice(&header).ok()
    }
}
