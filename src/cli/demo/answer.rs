//! Replies as the client reads them and as the documentation lists them.
//!
//! This table is not taken from the relay's own, so that a mistake there shows here.

use std::fmt;

use super::steps::DemoFailure;

/// Head of the relay's reply.
pub(super) struct RelayReply {
    pub head: String,
}

/// A row of the reply table.
#[derive(Clone, Copy)]
pub(super) struct Expected {
    pub status_line: &'static str,
    pub slug: &'static str,
    /// A header that only this reply has.
    pub header: Option<&'static str>,
}

impl RelayReply {
    pub fn status_line(&self) -> &str {
        self.head.lines().next().unwrap_or_default()
    }

    /// Slug of a refusal. Empty where it is none.
    pub fn slug(&self) -> &str {
        self.header("Sluicegate-Reason")
    }

    /// The head without the number of its session, which differs each time and says nothing of the cause.
    pub fn without_session(&self) -> String {
        let lines = self.head.lines().filter(|line| !line.starts_with("Sluicegate-Session: "));
        lines.collect::<Vec<_>>().join("\n")
    }

    /// Formats the reply for a list of refusals.
    pub fn to_columns(&self) -> String {
        format!("{:<44}  {}", self.status_line(), self.slug())
    }

    /// Value of a header. Empty where the reply lacks it.
    pub fn header(&self, name: &str) -> &str {
        let fields = self.head.lines().filter_map(|line| line.split_once(": "));
        fields.filter(|(field, _)| *field == name).map(|(_, value)| value).next().unwrap_or_default()
    }
}

impl fmt::Display for RelayReply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_reply(f, self.status_line(), self.slug())
    }
}

impl Expected {
    const fn with(self, header: &'static str) -> Self {
        Self { header: Some(header), ..self }
    }

    /// Checks that `answer` is this reply.
    pub fn check(&self, answer: &RelayReply) -> Result<(), DemoFailure> {
        let is_complete = self.header.is_none_or(|header| !answer.header(header).is_empty());
        if answer.status_line() == self.status_line && answer.slug() == self.slug && is_complete {
            return Ok(());
        }
        Err(DemoFailure::new(self, answer))
    }
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_reply(f, self.status_line, self.slug)?;
        self.header.map_or(Ok(()), |header| write!(f, " with {header}"))
    }
}

pub(super) const ESTABLISHED: Expected = row("HTTP/1.1 200 Connection Established", "");
pub(super) const MALFORMED: Expected = row("HTTP/1.1 400 Bad Request", "malformed");
pub(super) const NOT_PERMITTED: Expected = row("HTTP/1.1 403 Tunnel Not Permitted", "not-permitted");
pub(super) const METHOD: Expected = row("HTTP/1.1 405 Method Not Allowed", "method");
pub(super) const CREDENTIALS: Expected =
    row("HTTP/1.1 407 Proxy Authentication Required", "credentials").with("Proxy-Authenticate");
pub(super) const HEAD_TIMEOUT: Expected = row("HTTP/1.1 408 Request Timeout", "head-timeout");
pub(super) const LIMIT: Expected = row("HTTP/1.1 429 Too Many Sessions", "limit");
pub(super) const HEAD_TOO_LARGE: Expected =
    row("HTTP/1.1 431 Request Header Fields Too Large", "head-too-large");
pub(super) const DEVICE_ADDRESS: Expected = row("HTTP/1.1 502 Device Address Not Allowed", "device-address");
pub(super) const DEVICE_PORT_CLOSED: Expected = row("HTTP/1.1 502 Device Port Closed", "device-port-closed");
pub(super) const DEVICE_UNREACHABLE: Expected = row("HTTP/1.1 502 Device Unreachable", "device-unreachable");
pub(super) const DEVICE_OFFLINE: Expected = row("HTTP/1.1 503 Device Offline", "device-offline");
pub(super) const DISPUTED: Expected =
    row("HTTP/1.1 503 Device Address Disputed", "device-disputed").with("Retry-After");
pub(super) const UNDECIDED: Expected =
    row("HTTP/1.1 503 Authorization Unavailable", "undecided").with("Retry-After");
pub(super) const DRAINING: Expected = row("HTTP/1.1 503 Relay Draining", "draining").with("Retry-After");
pub(super) const DEVICE_TIMEOUT: Expected = row("HTTP/1.1 504 Device Timed Out", "device-timeout");

fn write_reply(f: &mut fmt::Formatter<'_>, status_line: &str, slug: &str) -> fmt::Result {
    match slug {
        "" => f.write_str(status_line),
        slug => write!(f, "{status_line} ({slug})"),
    }
}

const fn row(status_line: &'static str, slug: &'static str) -> Expected {
    Expected { status_line, slug, header: None }
}
