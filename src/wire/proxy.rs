//! Parses the header of the PROXY protocol, versions 1 and 2, by which a load balancer names its client.
//!
//! <https://www.haproxy.org/download/2.8/doc/proxy-protocol.txt>. The `ppp` crate parses a complete header; the
//! length is found here, since the crate cannot distinguish a wrong address from one that is cut off.

use std::net::{IpAddr, SocketAddr};

use ppp::{v1, v2};

use crate::sys::address::canonical;

/// Bytes of a header at most. Version 2 could announce more, which the relay does not need.
pub const PROXY_HEADER_BYTES_MAX: usize = 2 * 1024;

/// A complete, valid header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParsedProxyHeader {
    /// The client's address; `None` where the sender speaks for itself (LOCAL) or does not know it (UNKNOWN).
    pub client: Option<SocketAddr>,
    /// Bytes of the header; the bytes after it are the client's.
    pub len: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProxyHeaderError {
    #[error("there is no PROXY header; have the load balancer send one, or take proxy_from off the listener")]
    Missing,
    #[error("the PROXY header is longer than {PROXY_HEADER_BYTES_MAX} bytes")]
    TooLong,
    #[error("the PROXY header does not parse: {0}")]
    Malformed(String),
}

/// Parses the header that `bytes` begin with; `None` while it is not complete.
pub fn parse_proxy_header(bytes: &[u8]) -> Result<Option<ParsedProxyHeader>, ProxyHeaderError> {
    if begins(bytes, v2::PROTOCOL_PREFIX) {
        binary(bytes)
    } else if begins(bytes, TEXT_PREFIX) {
        text(bytes)
    } else {
        Err(ProxyHeaderError::Missing)
    }
}

fn binary(bytes: &[u8]) -> Result<Option<ParsedProxyHeader>, ProxyHeaderError> {
    let Some(length) = bytes.get(BINARY_LENGTH_AT..BINARY_LENGTH_AT + 2) else { return Ok(None) };
    let len = BINARY_LENGTH_AT + 2 + usize::from(u16::from_be_bytes([length[0], length[1]]));
    if len > PROXY_HEADER_BYTES_MAX {
        return Err(ProxyHeaderError::TooLong);
    }
    let Some(header) = bytes.get(..len) else { return Ok(None) };
    let header =
        v2::Header::try_from(header).map_err(|error| ProxyHeaderError::Malformed(error.to_string()))?;
    let client = match (header.command, header.addresses) {
        (v2::Command::Local, _) => None,
        (_, v2::Addresses::IPv4(pair)) => Some(socket(pair.source_address, pair.source_port)),
        (_, v2::Addresses::IPv6(pair)) => Some(socket(pair.source_address, pair.source_port)),
        (_, v2::Addresses::Unspecified | v2::Addresses::Unix(_)) => None,
    };
    Ok(Some(ParsedProxyHeader { client, len }))
}

fn text(bytes: &[u8]) -> Result<Option<ParsedProxyHeader>, ProxyHeaderError> {
    let Some(end) = bytes.iter().take(TEXT_BYTES_MAX).position(|byte| *byte == b'\n') else {
        return if bytes.len() >= TEXT_BYTES_MAX { Err(ProxyHeaderError::TooLong) } else { Ok(None) };
    };
    let len = end + 1;
    // The crate takes a carriage return for a space, and a space for the carriage return.
    if bytes[..end].iter().position(|byte| *byte == b'\r') != end.checked_sub(1) {
        return Err(ProxyHeaderError::Malformed("its line does not end in CR LF".to_owned()));
    }
    let header = v1::Header::try_from(&bytes[..len])
        .map_err(|error| ProxyHeaderError::Malformed(error.to_string()))?;
    let client = match header.addresses {
        v1::Addresses::Tcp4(pair) => Some(socket(pair.source_address, pair.source_port)),
        v1::Addresses::Tcp6(pair) => Some(socket(pair.source_address, pair.source_port)),
        v1::Addresses::Unknown => None,
    };
    Ok(Some(ParsedProxyHeader { client, len }))
}

/// The client's address in its one form: a load balancer with a dual-stack socket writes IPv4 clients as IPv6.
fn socket(ip: impl Into<IpAddr>, port: u16) -> SocketAddr {
    canonical(SocketAddr::new(ip.into(), port))
}

/// True where `bytes` begin with `prefix` or are a beginning of it.
fn begins(bytes: &[u8], prefix: &[u8]) -> bool {
    bytes.iter().zip(prefix).all(|(one, other)| one == other)
}

const TEXT_PREFIX: &[u8] = b"PROXY ";

/// Bytes of a version 1 header at most, by the specification, its line end included.
const TEXT_BYTES_MAX: usize = 107;

/// Offset of a version 2 header's length field: two bytes after the signature, the version and the family.
const BINARY_LENGTH_AT: usize = 14;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TEXT: &[u8] = b"PROXY TCP4 192.0.2.7 203.0.113.1 51000 443\r\n";

    fn binary_of(command: v2::Command, address: &str) -> Vec<u8> {
        let source: SocketAddr = address.parse().unwrap();
        let to: SocketAddr =
            if source.is_ipv4() { "203.0.113.1:443" } else { "[2001:db8::2]:443" }.parse().unwrap();
        v2::Builder::with_addresses(v2::Version::Two | command, v2::Protocol::Stream, (source, to))
            .build()
            .unwrap()
    }

    fn client(bytes: &[u8]) -> Option<String> {
        parse_proxy_header(bytes).unwrap().unwrap().client.map(|client| client.to_string())
    }

    #[test]
    fn both_versions_name_the_client_and_leave_the_bytes_after_the_header() {
        let proxy = |address| binary_of(v2::Command::Proxy, address);
        for (header, wanted) in [
            (TEXT.to_vec(), Some("192.0.2.7:51000")),
            (b"PROXY TCP6 2001:db8::1 2001:db8::2 51000 443\r\n".to_vec(), Some("[2001:db8::1]:51000")),
            (b"PROXY TCP6 ::ffff:192.0.2.9 ::ffff:203.0.113.1 1 443\r\n".to_vec(), Some("192.0.2.9:1")),
            (proxy("[::ffff:192.0.2.9]:1"), Some("192.0.2.9:1")),
            (b"PROXY UNKNOWN\r\n".to_vec(), None),
            (b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n".to_vec(), None),
            (proxy("192.0.2.7:51000"), Some("192.0.2.7:51000")),
            (proxy("[2001:db8::1]:51000"), Some("[2001:db8::1]:51000")),
            (binary_of(v2::Command::Local, "192.0.2.7:51000"), None),
        ] {
            let bytes = [&header[..], b"CONNECT \xff\xfe\r\n\r\n"].concat();
            assert_eq!(client(&bytes).as_deref(), wanted);
            assert_eq!(parse_proxy_header(&bytes).unwrap().unwrap().len, header.len());
            for cut in 0..header.len() {
                assert_eq!(parse_proxy_header(&header[..cut]), Ok(None), "{cut} bytes of {header:?}");
            }
        }
    }

    #[test]
    fn bytes_that_are_no_header_are_refused_at_the_first_one() {
        for bytes in
            [&b"C"[..], b"CONNECT x:1 HTTP/1.1\r\n", b"PROXIES", b"\r\n\r\n\0\r\nQUIX", b"\x16\x03\x01"]
        {
            assert_eq!(parse_proxy_header(bytes), Err(ProxyHeaderError::Missing), "{bytes:?}");
        }
    }

    #[test]
    fn wrong_and_endless_headers_are_refused() {
        for bytes in [
            &b"PROXY TCP4 192.0.2.777 203.0.113.1 51000 443\r\n"[..],
            b"PROXY TCP4 192.0.2.7 203.0.113.1 51000 443\n",
            b"PROXY TCP4 192.0.2.7 203.0.113.1 51000\r\n",
            b"PROXY TCP4 192.0.2.7 203.0.113.1 51000 443 \n",
            b"PROXY TCP4\r192.0.2.7 203.0.113.1 51000 443\r\n",
            b"PROXY UNKNOWN\n",
            b"PROXY UDP4 192.0.2.7 203.0.113.1 51000 443\r\n",
            b"PROXY TCP4 192.0.2.7 203.0.113.1 70000 443\r\n",
        ] {
            let parsed = parse_proxy_header(bytes);
            assert!(matches!(parsed, Err(ProxyHeaderError::Malformed(_))), "{parsed:?}");
        }
        let endless = [b"PROXY TCP4 ", &[b'1'; 200][..]].concat();
        assert_eq!(parse_proxy_header(&endless), Err(ProxyHeaderError::TooLong));
        let mut large = binary_of(v2::Command::Proxy, "192.0.2.7:51000");
        large[BINARY_LENGTH_AT] = 0xff;
        assert_eq!(parse_proxy_header(&large[..16]), Err(ProxyHeaderError::TooLong));
        let mut version_three = binary_of(v2::Command::Proxy, "192.0.2.7:51000");
        version_three[12] = 0x31;
        assert!(matches!(parse_proxy_header(&version_three), Err(ProxyHeaderError::Malformed(_))));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), version in 0..3u8) {
            let prefix: &[u8] = match version {
                0 => b"",
                1 => TEXT_PREFIX,
                _ => v2::PROTOCOL_PREFIX,
            };
            let bytes = [prefix, &bytes].concat();
            if let Ok(Some(header)) = parse_proxy_header(&bytes) {
                prop_assert!(header.len <= bytes.len());
            }
        }
    }
}
