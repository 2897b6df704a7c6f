//! The replies that a client can get, each as the bytes of one write.

use std::fmt::Write;
use std::sync::LazyLock;

/// The version in the status line: the request's, or 1.1 where that could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum HttpVersion {
    Http10,
    #[default]
    Http11,
}

/// A reply, one for each row of the table in docs/protocol.md.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reply {
    Established,
    Malformed,
    NotPermitted,
    Method,
    Credentials,
    HeadTimeout,
    Limit,
    HeadTooLarge,
    DeviceAddress,
    DevicePortClosed,
    DeviceUnreachable,
    DeviceOffline,
    DeviceDisputed,
    Undecided,
    Draining,
    DeviceTimeout,
    Loop,
}

impl Reply {
    /// All replies in the order of declaration, which [`Reply::bytes`] relies on.
    pub const ALL: [Self; 17] = [
        Self::Established,
        Self::Malformed,
        Self::NotPermitted,
        Self::Method,
        Self::Credentials,
        Self::HeadTimeout,
        Self::Limit,
        Self::HeadTooLarge,
        Self::DeviceAddress,
        Self::DevicePortClosed,
        Self::DeviceUnreachable,
        Self::DeviceOffline,
        Self::DeviceDisputed,
        Self::Undecided,
        Self::Draining,
        Self::DeviceTimeout,
        Self::Loop,
    ];

    pub const fn status(self) -> u16 {
        match self {
            Self::Established => 200,
            Self::Malformed => 400,
            Self::NotPermitted => 403,
            Self::Method => 405,
            Self::Credentials => 407,
            Self::HeadTimeout => 408,
            Self::Limit => 429,
            Self::HeadTooLarge => 431,
            Self::DeviceAddress | Self::DevicePortClosed | Self::DeviceUnreachable => 502,
            Self::DeviceOffline | Self::DeviceDisputed | Self::Undecided | Self::Draining => 503,
            Self::DeviceTimeout => 504,
            Self::Loop => 508,
        }
    }

    /// The reason phrase; `balena` shows it to a person as it is.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Established => "Connection Established",
            Self::Malformed => "Bad Request",
            Self::NotPermitted => "Tunnel Not Permitted",
            Self::Method => "Method Not Allowed",
            Self::Credentials => "Proxy Authentication Required",
            Self::HeadTimeout => "Request Timeout",
            Self::Limit => "Too Many Sessions",
            Self::HeadTooLarge => "Request Header Fields Too Large",
            Self::DeviceAddress => "Device Address Not Allowed",
            Self::DevicePortClosed => "Device Port Closed",
            Self::DeviceUnreachable => "Device Unreachable",
            Self::DeviceOffline => "Device Offline",
            Self::DeviceDisputed => "Device Address Disputed",
            Self::Undecided => "Authorization Unavailable",
            Self::Draining => "Relay Draining",
            Self::DeviceTimeout => "Device Timed Out",
            Self::Loop => "Loop Detected",
        }
    }

    /// The value of `Sluicegate-Reason`; `None` for the one reply that is no refusal.
    pub const fn slug(self) -> Option<&'static str> {
        Some(match self {
            Self::Established => return None,
            Self::Malformed => "malformed",
            Self::NotPermitted => "not-permitted",
            Self::Method => "method",
            Self::Credentials => "credentials",
            Self::HeadTimeout => "head-timeout",
            Self::Limit => "limit",
            Self::HeadTooLarge => "head-too-large",
            Self::DeviceAddress => "device-address",
            Self::DevicePortClosed => "device-port-closed",
            Self::DeviceUnreachable => "device-unreachable",
            Self::DeviceOffline => "device-offline",
            Self::DeviceDisputed => "device-disputed",
            Self::Undecided => "undecided",
            Self::Draining => "draining",
            Self::DeviceTimeout => "device-timeout",
            Self::Loop => "loop",
        })
    }

    /// The sentence behind the reason in the body, for a person: what happened, and what to do. It says no more than
    /// the status line does, since the true cause is not for everybody. Empty for the one reply that is no refusal.
    const fn explanation(self) -> &'static str {
        match self {
            Self::Established => "",
            Self::Malformed => {
                "the request, the PROXY header or the first TLS record is not valid; a request begins with CONNECT \
                 <uuid>.balena:<port> HTTP/1.1"
            }
            Self::NotPermitted => {
                "there is no such device, or this token may not reach this port of it; ask the relay's operator for a \
                 grant"
            }
            Self::Method => "the relay opens tunnels and serves no pages; the only method is CONNECT",
            Self::Credentials => {
                "there is no token, or it is unknown, expired, revoked or not valid; send a valid one, by Bearer or as \
                 the password of Basic"
            }
            Self::HeadTimeout => "the request was not complete in time; send it at once",
            Self::Limit => {
                "the principal, the device, the node or the client's network is at a limit; close sessions, or try \
                 again later"
            }
            Self::HeadTooLarge => {
                "the request has more than 8 KiB or more than 64 headers; send fewer headers"
            }
            Self::DeviceAddress => {
                "the device's address is outside the relay's vpn.allow; tell the relay's operator"
            }
            Self::DevicePortClosed => "nothing listens on this port of the device; start the service there",
            Self::DeviceUnreachable => "no way leads to the device now; try again later",
            Self::DeviceOffline => {
                "the device has no VPN connection, or its node cannot be reached; try again later"
            }
            Self::DeviceDisputed => {
                "the relay cannot tell whether the address that it has is still this device's; try again in 5 seconds"
            }
            Self::Undecided => {
                "the relay cannot decide now whether this is permitted; try again in 5 seconds"
            }
            Self::Draining => "the relay is about to stop; try again in 5 seconds, or at another node",
            Self::DeviceTimeout => {
                "the device, or the node that holds it, did not answer in time; try again later"
            }
            Self::Loop => {
                "the relay's nodes pass this request to each other in a circle; tell the relay's operator"
            }
        }
    }

    /// The whole reply, rendered once per process.
    pub fn bytes(self, version: HttpVersion) -> &'static [u8] {
        &RENDERED[self as usize][version as usize]
    }

    /// The whole reply to a session that is refused, with its number, by which the audit log has the true cause.
    pub fn bytes_for(self, version: HttpVersion, session: u64) -> Vec<u8> {
        let bytes = self.bytes(version);
        let status_line_end = bytes.windows(2).position(|two| two == b"\r\n").map_or(0, |at| at + 2);
        let (status_line, rest) = bytes.split_at(status_line_end);
        [status_line, format!("Sluicegate-Session: {session}\r\n").as_bytes(), rest].concat()
    }

    /// The header lines that only this reply has.
    const fn own_headers(self) -> &'static str {
        match self {
            // RFC 9110 requires `Allow` with every 405, and one challenge per scheme with every 407.
            Self::Method => "Allow: CONNECT\r\n",
            Self::Credentials => {
                "Proxy-Authenticate: Basic realm=\"sluicegate\"\r\n\
                 Proxy-Authenticate: Bearer realm=\"sluicegate\"\r\n"
            }
            Self::DeviceDisputed | Self::Undecided | Self::Draining => RETRY_AFTER,
            _ => "",
        }
    }

    fn render(self, version: HttpVersion) -> Box<[u8]> {
        let version = match version {
            HttpVersion::Http10 => "HTTP/1.0",
            HttpVersion::Http11 => "HTTP/1.1",
        };
        let mut text = format!("{version} {} {}\r\n", self.status(), self.reason());
        // A 200 has no header: the bytes after its empty line are the device's, and a Content-Length would make
        // some clients expect a body there.
        let Some(slug) = self.slug() else {
            text.push_str("\r\n");
            return text.into_bytes().into();
        };
        // PuTTY waits for a byte behind the empty line before it believes that the head is complete.
        let body = format!("{}: {}\n", self.reason(), self.explanation());
        write!(
            text,
            "Sluicegate-Reason: {slug}\r\n{}Content-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\n\
             Connection: close\r\n\r\n{body}",
            self.own_headers(),
            body.len()
        )
        .expect("writing to a string cannot fail");
        text.into_bytes().into()
    }
}

/// The rendered replies, by reply and version.
static RENDERED: LazyLock<[[Box<[u8]>; 2]; Reply::ALL.len()]> = LazyLock::new(|| {
    Reply::ALL.map(|reply| [HttpVersion::Http10, HttpVersion::Http11].map(|v| reply.render(v)))
});

/// The wait in seconds: long enough for a store to come back, another node to take over or an owner to be
/// found, short enough for a person.
const RETRY_AFTER: &str = "Retry-After: 5\r\n";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_tunnel_has_a_reply_without_headers() {
        assert_eq!(
            Reply::Established.bytes(HttpVersion::Http10),
            b"HTTP/1.0 200 Connection Established\r\n\r\n"
        );
        assert_eq!(
            Reply::Established.bytes(HttpVersion::Http11),
            b"HTTP/1.1 200 Connection Established\r\n\r\n"
        );
    }

    #[test]
    fn a_refusal_names_its_session_right_behind_the_status_line() {
        let text = String::from_utf8(Reply::Limit.bytes_for(HttpVersion::Http10, 4711)).unwrap();
        let begin =
            "HTTP/1.0 429 Too Many Sessions\r\nSluicegate-Session: 4711\r\nSluicegate-Reason: limit\r\n";
        assert!(text.starts_with(begin) && text.contains("\r\n\r\n"), "{text}");
    }

    #[test]
    fn a_missing_credential_is_refused_with_both_challenges() {
        let text = std::str::from_utf8(Reply::Credentials.bytes(HttpVersion::Http11)).unwrap();
        insta::assert_snapshot!(text.replace("\r\n", "\n"), @r#"
        HTTP/1.1 407 Proxy Authentication Required
        Sluicegate-Reason: credentials
        Proxy-Authenticate: Basic realm="sluicegate"
        Proxy-Authenticate: Bearer realm="sluicegate"
        Content-Type: text/plain; charset=utf-8
        Content-Length: 155
        Connection: close

        Proxy Authentication Required: there is no token, or it is unknown, expired, revoked or not valid; send a valid one, by Bearer or as the password of Basic
        "#);
    }

    /// The table of docs/protocol.md, as a client reads it off the wire.
    #[test]
    fn every_reply_is_as_the_protocol_page_promises() {
        let table = [
            (Reply::Established, "200 Connection Established", ""),
            (Reply::Malformed, "400 Bad Request", "malformed"),
            (Reply::NotPermitted, "403 Tunnel Not Permitted", "not-permitted"),
            (Reply::Method, "405 Method Not Allowed", "method"),
            (Reply::Credentials, "407 Proxy Authentication Required", "credentials"),
            (Reply::HeadTimeout, "408 Request Timeout", "head-timeout"),
            (Reply::Limit, "429 Too Many Sessions", "limit"),
            (Reply::HeadTooLarge, "431 Request Header Fields Too Large", "head-too-large"),
            (Reply::DeviceAddress, "502 Device Address Not Allowed", "device-address"),
            (Reply::DevicePortClosed, "502 Device Port Closed", "device-port-closed"),
            (Reply::DeviceUnreachable, "502 Device Unreachable", "device-unreachable"),
            (Reply::DeviceOffline, "503 Device Offline", "device-offline"),
            (Reply::DeviceDisputed, "503 Device Address Disputed", "device-disputed"),
            (Reply::Undecided, "503 Authorization Unavailable", "undecided"),
            (Reply::Draining, "503 Relay Draining", "draining"),
            (Reply::DeviceTimeout, "504 Device Timed Out", "device-timeout"),
            (Reply::Loop, "508 Loop Detected", "loop"),
        ];
        assert_eq!(table.map(|(reply, ..)| reply), Reply::ALL);
        let mut bodies = std::collections::HashSet::new();
        for (reply, status_line, slug) in table {
            for (version, name) in [(HttpVersion::Http10, "HTTP/1.0"), (HttpVersion::Http11, "HTTP/1.1")] {
                let bytes = reply.bytes(version);
                let mut headers = [httparse::EMPTY_HEADER; 16];
                let mut response = httparse::Response::new(&mut headers);
                let httparse::Status::Complete(head) = response.parse(bytes).unwrap() else {
                    panic!("{reply:?} has a whole head");
                };
                let body = std::str::from_utf8(&bytes[head..]).unwrap();
                assert!(bytes.starts_with(format!("{name} {status_line}\r\n").as_bytes()), "{reply:?}");
                let header = |name: &str| {
                    response
                        .headers
                        .iter()
                        .find(|h| h.name == name)
                        .map_or("", |h| std::str::from_utf8(h.value).unwrap())
                };
                assert_eq!(header("Sluicegate-Reason"), slug);
                let retries = matches!(reply, Reply::DeviceDisputed | Reply::Undecided | Reply::Draining);
                assert_eq!(header("Retry-After"), if retries { "5" } else { "" }, "{reply:?}");
                assert_eq!(header("Allow"), if reply == Reply::Method { "CONNECT" } else { "" });
                if reply == Reply::Established {
                    assert_eq!(body, "", "the bytes behind it are the device's");
                    continue;
                }
                assert_eq!(header("Connection"), "close", "{reply:?}");
                assert_eq!(header("Content-Type"), "text/plain; charset=utf-8", "{reply:?}");
                assert_eq!(header("Content-Length"), body.len().to_string(), "{reply:?}");
                let explanation = body.strip_prefix(&format!("{}: ", reply.reason()));
                assert!(explanation.is_some_and(|text| text.len() > 20 && text.ends_with('\n')), "{body}");
                assert!(bodies.insert((body.to_owned(), name)), "no two replies say the same: {body}");
                assert!(bytes.len() <= 1024, "{reply:?} fits into one segment");
            }
        }
    }
}
