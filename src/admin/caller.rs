//! The sender of a request, and its permissions.
//!
//! Who may open the local socket may do everything. Over TCP, everybody may read the public status. Sessions name
//! principals and devices: over TCP, a request for them must show the admin token. Where no token is configured,
//! processes on this machine may see sessions without one. A command over TCP always needs the token. A handler
//! states the permission that it needs by the type that it extracts.

use std::net::{IpAddr, SocketAddr};

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::token::{TokenVerdict, WRONG_WINDOW};
use super::{AdminState, response};
use crate::telemetry::{AuditEvent, OperatorCommand, Proof};

/// The other end of a connection. The server attaches it to each request.
#[derive(Clone, Copy, Debug)]
pub(super) enum Caller {
    /// A process on the local socket, with the ids that the kernel gives.
    Local {
        uid: Option<u32>,
        pid: Option<i32>,
    },
    Remote(SocketAddr),
}

/// Proof that the requester may see sessions.
pub(super) struct Viewer;

/// Proof that the requester may run commands.
pub(super) struct Operator(pub Caller);

/// Reason why a request is denied.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(super) enum Denied {
    #[error("this request needs the admin token: `Authorization: Bearer TOKEN`")]
    NoToken,
    #[error("this is not the admin token; it is in the file that admin.token_file names")]
    WrongToken,
    #[error("too many wrong tokens; try again in a minute")]
    TooManyWrong,
    #[error("commands over TCP need an admin token; use the local socket, or configure admin.token_file")]
    ReadOnly,
    #[error("sessions are shown on this machine alone; use the local socket, or configure admin.token_file")]
    NotFromHere,
}

impl Viewer {
    fn admit(caller: Caller, headers: &HeaderMap, state: &AdminState) -> Result<Self, Denied> {
        match caller {
            Caller::Local { .. } => Ok(Self),
            Caller::Remote(_) if state.gate.has_token() => check_token(caller, headers, state).map(|()| Self),
            // A web page from elsewhere could resolve its own name to this machine, and send a request that seems
            // local.
            Caller::Remote(peer) if peer.ip().is_loopback() && names_loopback(headers) => Ok(Self),
            Caller::Remote(_) => Err(Denied::NotFromHere),
        }
    }
}

impl FromRequestParts<AdminState> for Viewer {
    type Rejection = Denied;

    async fn from_request_parts(parts: &mut Parts, state: &AdminState) -> Result<Self, Denied> {
        Self::admit(caller_of(parts)?, &parts.headers, state)
    }
}

impl FromRequestParts<AdminState> for Operator {
    type Rejection = Denied;

    async fn from_request_parts(parts: &mut Parts, state: &AdminState) -> Result<Self, Denied> {
        let caller = caller_of(parts)?;
        match caller {
            Caller::Local { .. } => {}
            Caller::Remote(_) if !state.gate.has_token() => return Err(Denied::ReadOnly),
            Caller::Remote(_) => check_token(caller, &parts.headers, state)?,
        }
        Ok(Self(caller))
    }
}

impl IntoResponse for Denied {
    fn into_response(self) -> Response {
        let status = match self {
            Self::NoToken | Self::WrongToken => StatusCode::UNAUTHORIZED,
            Self::TooManyWrong => StatusCode::TOO_MANY_REQUESTS,
            Self::ReadOnly | Self::NotFromHere => StatusCode::FORBIDDEN,
        };
        let mut response = response::failure(status, self.to_string());
        let hint = match self {
            Self::NoToken | Self::WrongToken => Some((header::WWW_AUTHENTICATE, "Bearer".to_owned())),
            Self::TooManyWrong => Some((header::RETRY_AFTER, WRONG_WINDOW.as_secs().to_string())),
            Self::ReadOnly | Self::NotFromHere => None,
        };
        if let Some((name, value)) = hint {
            let value = HeaderValue::from_str(&value).expect("a word and a number are header values");
            response.headers_mut().insert(name, value);
        }
        response
    }
}

/// Records a command of an operator and its outcome, in the audit log and in the log.
pub(super) fn audit(
    state: &AdminState,
    command: &'static str,
    caller: Caller,
    outcome: Result<String, String>,
) {
    let by = match caller {
        Caller::Local { .. } => Proof::LocalSocket,
        Caller::Remote(_) => Proof::AdminToken,
    };
    audit_by(by, state, command, caller, outcome);
}

fn audit_by(
    by: Proof,
    state: &AdminState,
    command: &'static str,
    caller: Caller,
    outcome: Result<String, String>,
) {
    let (outcome, detail) = match outcome {
        Ok(detail) => ("done", detail),
        Err(detail) => ("refused", detail),
    };
    tracing::warn!(command, ?caller, outcome, "operator command: {detail}");
    let (uid, pid, client) = match caller {
        Caller::Local { uid, pid } => (uid, pid, None),
        Caller::Remote(client) => (None, None, Some(client)),
    };
    let event = OperatorCommand { command, by, uid, pid, client, outcome, detail };
    state.sources.audit.emit(AuditEvent::OperatorCommand(event));
}

/// Returns the caller of a request. A request without one gets no permission.
fn caller_of(parts: &Parts) -> Result<Caller, Denied> {
    parts.extensions.get::<Caller>().copied().ok_or(Denied::ReadOnly)
}

fn check_token(caller: Caller, headers: &HeaderMap, state: &AdminState) -> Result<(), Denied> {
    let Some(token) = bearer(headers) else { return Err(Denied::NoToken) };
    match state.gate.judge(token) {
        TokenVerdict::Right => Ok(()),
        TokenVerdict::Wrong => {
            let outcome = Err("a wrong token was shown".to_owned());
            audit_by(Proof::WrongToken, state, "admin-token", caller, outcome);
            Err(Denied::WrongToken)
        }
        TokenVerdict::WrongAgain => Err(Denied::TooManyWrong),
    }
}

fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let value = headers.get(header::AUTHORIZATION)?.as_bytes();
    let (scheme, token) = value.split_at_checked("Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then(|| token.trim_ascii())
}

/// Tests whether the Host header names this machine by a loopback address or as `localhost`.
fn names_loopback(headers: &HeaderMap) -> bool {
    let Some(host) = headers.get(header::HOST).and_then(|host| host.to_str().ok()) else { return false };
    if let Ok(address) = host.parse::<SocketAddr>() {
        return address.ip().is_loopback();
    }
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    let address = host.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost")
        || [name, address]
            .iter()
            .any(|name| name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: header::HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name, HeaderValue::from_str(value).unwrap())])
    }

    #[test]
    fn this_machine_goes_by_its_addresses_and_one_name() {
        for host in ["127.0.0.1:9128", "127.1.2.3", "localhost", "LocalHost:80", "[::1]", "[::1]:9128"] {
            assert!(names_loopback(&headers(header::HOST, host)), "{host}");
        }
        for host in
            ["relay.example:9128", "192.0.2.1", "127.0.0.1.example", "localhost.example:1", "", "[::2]:1"]
        {
            assert!(!names_loopback(&headers(header::HOST, host)), "{host}");
        }
        assert!(!names_loopback(&HeaderMap::new()));
    }

    #[test]
    fn a_token_is_what_follows_bearer() {
        let token = |value: &str| bearer(&headers(header::AUTHORIZATION, value)).map(<[u8]>::to_vec);
        assert_eq!(token("bearer  abc "), Some(b"abc".to_vec()));
        assert_eq!(token("Bearer "), Some(Vec::new()));
        for other in ["Basic YTpi", "Bearer", "abc", ""] {
            assert_eq!(token(other), None, "{other:?}");
        }
    }
}
