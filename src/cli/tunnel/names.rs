//! The target of a client: a port of a device, and the relay in front of it.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::str::FromStr;

use crate::authz::DeviceUuid;

/// Host as typed, and port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunnelTarget {
    pub(super) host: String,
    pub(super) port: u16,
}

/// Address of a relay, unresolved: the addresses of a name may change while the client listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelayName(String);

impl RelayName {
    /// Resolves the name. `localhost` is this machine, whatever a name server says of it (RFC 6761, section 6.3).
    pub fn resolve(&self) -> io::Result<Vec<SocketAddr>> {
        let addresses = self.0.to_socket_addrs()?;
        if self.is_localhost() {
            return Ok(addresses.filter(|address| address.ip().to_canonical().is_loopback()).collect());
        }
        Ok(addresses.collect())
    }

    /// True for a loopback address and for `localhost`: what is sent there stays on this machine. Another name is none,
    /// wherever it leads, since a name server must not decide whether a token is sent in the clear.
    pub fn is_loopback(&self) -> bool {
        let address = self.host().parse::<IpAddr>();
        self.is_localhost() || address.is_ok_and(|address| address.to_canonical().is_loopback())
    }

    fn is_localhost(&self) -> bool {
        let host = self.host().to_ascii_lowercase();
        let host = host.trim_end_matches('.');
        host == "localhost" || host.ends_with(".localhost")
    }

    /// Host without port and brackets.
    pub fn host(&self) -> &str {
        let host = self.0.rsplit_once(':').map_or(self.0.as_str(), |(host, _)| host);
        host.trim_start_matches('[').trim_end_matches(']')
    }
}

impl FromStr for TunnelTarget {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (host, port) = text.rsplit_once(':').ok_or("write UUID:PORT, for example UUID:22")?;
        let port =
            port.parse().ok().filter(|port| *port != 0).ok_or("the port is a number from 1 to 65535")?;
        let (uuid, suffix) = host.split_once('.').unwrap_or((host, "any"));
        if DeviceUuid::parse(uuid).is_none() {
            return Err("a device's uuid has 32 or 62 hex digits");
        }
        if suffix.is_empty()
            || !suffix.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
        {
            return Err("what follows the uuid is not a host name's suffix");
        }
        Ok(Self { host: host.to_owned(), port })
    }
}

impl fmt::Display for TunnelTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

impl FromStr for RelayName {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (host, port) = text.rsplit_once(':').ok_or("write HOST:PORT, for example relay.example:3128")?;
        let is_bracketed = host.starts_with('[') && host.ends_with(']');
        if host.is_empty() || (host.contains(':') && !is_bracketed) {
            return Err("write HOST:PORT, or [IPV6]:PORT with the brackets");
        }
        if port.parse::<u16>().map_or(true, |port| port == 0) {
            return Err("the port is a number from 1 to 65535");
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for RelayName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UUID: &str = "0123456789abcdef0123456789abcdef";

    #[test]
    fn a_target_is_a_uuid_and_a_port() {
        let target: TunnelTarget = format!("{UUID}:22").parse().unwrap();
        assert_eq!(target.to_string(), format!("{UUID}:22"));
        assert_eq!(
            format!("{UUID}.balena:22").parse::<TunnelTarget>().unwrap().host,
            format!("{UUID}.balena")
        );
    }

    #[test]
    fn a_target_that_no_relay_could_take_is_refused_before_any_connection() {
        for (text, expected) in [
            (UUID.to_owned(), "write UUID:PORT"),
            (format!("{UUID}:0"), "1 to 65535"),
            (format!("{UUID}:70000"), "1 to 65535"),
            ("abc:22".to_owned(), "32 or 62 hex digits"),
            (format!("{UUID}.:22"), "suffix"),
            (format!("{UUID}.a\r\nX: y:22"), "suffix"),
        ] {
            let error = text.parse::<TunnelTarget>().unwrap_err();
            assert!(error.contains(expected), "{text:?}: {error}");
        }
    }

    #[test]
    fn a_relay_is_named_by_host_and_port_in_either_family() {
        for text in ["localhost:3128", "127.0.0.1:3128", "[::1]:3128", "relay.example:443"] {
            assert!(text.parse::<RelayName>().is_ok(), "{text}");
        }
        for text in ["localhost", "::1:3128", "localhost:0", ":3128", "localhost:http"] {
            assert!(text.parse::<RelayName>().is_err(), "{text}");
        }
    }

    #[test]
    fn only_this_machine_is_loopback() {
        let is_loopback = |text: &str| text.parse::<RelayName>().unwrap().is_loopback();
        for text in
            ["localhost:1", "LocalHost.:1", "a.localhost:1", "127.8.9.1:1", "[::1]:1", "[::ffff:127.0.0.1]:1"]
        {
            assert!(is_loopback(text), "{text}");
        }
        for text in
            ["relay.example:1", "localhost.example:1", "192.0.2.1:1", "[::2]:1", "127.0.0.1.example:1"]
        {
            assert!(!is_loopback(text), "{text}");
        }
    }
}
