//! The request that a node sends to a peer for its client, and the peer's reply.
//!
//! Inside the TLS connection between them, the node sends a PROXY header (version 2) with the client's address and
//! then the client's request with the list of nodes that it has passed. The peer decides by itself.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ppp::v2;

use zeroize::Zeroizing;

use super::{HEAD_BYTES_MAX, PROXY_HEADER_BYTES_MAX, Reply, Token};

/// A client's request on its way to a peer.
#[derive(Clone, Copy, Debug)]
pub struct PeerRequest<'a> {
    pub client: Option<SocketAddr>,
    /// The device's uuid in hex digits, without a suffix.
    pub uuid: &'a str,
    pub port: u16,
    pub token: Option<&'a Token>,
    /// Names of the nodes that the request has passed, this one last.
    pub hops: &'a [Box<str>],
}

/// The peer's reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerReply {
    pub reply: Reply,
    /// Bytes of the reply's head. The bytes after it are the device's, or a refusal's text for a person.
    pub len: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerReplyError {
    #[error("the next node's reply is not HTTP ({0})")]
    Malformed(String),
    #[error("the next node's reply is longer than {HEAD_BYTES_MAX} bytes")]
    TooLong,
    #[error("the next node replied {status} {slug}, which this version does not know")]
    Unknown { status: u16, slug: String },
}

impl PeerRequest<'_> {
    /// The bytes to send: PROXY header and head.
    pub fn bytes(&self) -> Zeroizing<Vec<u8>> {
        // With room for all of it, so that the token is in one place of the memory.
        let mut bytes = Zeroizing::new(Vec::with_capacity(HEAD_BYTES_MAX + PROXY_HEADER_BYTES_MAX));
        bytes.extend_from_slice(&self.proxy_header());
        let Self { uuid, port, token, hops, .. } = self;
        let head = format!("CONNECT {uuid}:{port} HTTP/1.1\r\n{HOPS}: {}\r\n", hops.join(", "));
        bytes.extend_from_slice(head.as_bytes());
        if let Some(token) = token {
            bytes.extend_from_slice(b"Proxy-Authorization: ");
            bytes.extend_from_slice(&token.basic());
            bytes.extend_from_slice(b"\r\n");
        }
        bytes.extend_from_slice(b"\r\n");
        bytes
    }

    fn proxy_header(&self) -> Vec<u8> {
        let nowhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        let (command, client) = match self.client {
            Some(client) => (v2::Command::Proxy, client),
            None => (v2::Command::Local, nowhere),
        };
        // The destination is not used, but it must be of the client's address family.
        let to = match client.ip() {
            IpAddr::V4(_) => nowhere,
            IpAddr::V6(_) => SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, 0)),
        };
        let header =
            v2::Builder::with_addresses(v2::Version::Two | command, v2::Protocol::Stream, (client, to));
        header.build().expect("two addresses are shorter than any bound")
    }
}

/// Names of the nodes that a request has passed, the first one first. Pass a head that [`super::parse_head`] has
/// accepted.
pub fn parse_hops(head: &[u8]) -> Vec<Box<str>> {
    let mut headers = [httparse::EMPTY_HEADER; super::head::HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    if !matches!(request.parse(head), Ok(httparse::Status::Complete(_))) {
        return Vec::new();
    }
    let values = request.headers.iter().filter(|header| header.name.eq_ignore_ascii_case(HOPS));
    values
        .filter_map(|header| std::str::from_utf8(header.value).ok())
        .flat_map(|value| value.split(','))
        .map(|name| name.trim().into())
        .collect()
}

/// Reads a peer's reply; `None` while it is not complete.
pub fn parse_peer_reply(bytes: &[u8]) -> Result<Option<PeerReply>, PeerReplyError> {
    let mut headers = [httparse::EMPTY_HEADER; super::head::HEADERS_MAX];
    let mut response = httparse::Response::new(&mut headers);
    let len = match response.parse(&bytes[..bytes.len().min(HEAD_BYTES_MAX)]) {
        Ok(httparse::Status::Complete(len)) => len,
        Ok(httparse::Status::Partial) if bytes.len() >= HEAD_BYTES_MAX => {
            return Err(PeerReplyError::TooLong);
        }
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(error) => return Err(PeerReplyError::Malformed(error.to_string())),
    };
    let status = response.code.unwrap_or_default();
    let slug = response
        .headers
        .iter()
        .find(|header| header.name.eq_ignore_ascii_case("Sluicegate-Reason"))
        .map(|header| String::from_utf8_lossy(header.value).into_owned());
    let known =
        Reply::ALL.into_iter().find(|reply| reply.status() == status && reply.slug() == slug.as_deref());
    match known {
        Some(reply) => Ok(Some(PeerReply { reply, len })),
        None => Err(PeerReplyError::Unknown { status, slug: slug.unwrap_or_default() }),
    }
}

/// The header with the names of the nodes.
const HOPS: &str = "Sluicegate-Hops";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::{HttpVersion, parse_head, parse_proxy_header};

    fn request<'a>(
        client: Option<&str>,
        token: Option<&'a Token>,
        hops: &'a [Box<str>],
    ) -> Zeroizing<Vec<u8>> {
        let client = client.map(|client| client.parse().unwrap());
        PeerRequest { client, uuid: "00ff", port: 22, token, hops }.bytes()
    }

    #[test]
    fn a_peer_reads_the_request_that_this_node_wrote() {
        let hops: [Box<str>; 2] = ["node-a".into(), "node-b".into()];
        for client in [Some("192.0.2.7:51000"), Some("[2001:db8::1]:51000"), None] {
            // A token may hold any bytes that a client can send.
            for secret in [&b"plain"[..], b"with:colon and space", b"\xff\x00\n"] {
                let token = Token::new(secret.to_vec());
                let bytes = request(client, Some(&token), &hops);
                let header = parse_proxy_header(&bytes).unwrap().unwrap();
                assert_eq!(header.client.map(|client| client.to_string()).as_deref(), client);
                let head = parse_head(&bytes[header.len..], &[]).unwrap().unwrap();
                assert_eq!((head.uuid, head.port, head.token), ("00ff", 22, Some(token)));
                assert_eq!((head.version, header.len + head.len), (HttpVersion::Http11, bytes.len()));
                assert_eq!(parse_hops(&bytes[header.len..]), hops);
            }
        }
    }

    #[test]
    fn the_longest_token_that_a_client_may_show_fits_into_the_request_to_a_peer() {
        use crate::wire::{HEAD_BYTES_MAX, TOKEN_BYTES_MAX};
        let hops: Vec<Box<str>> = (0..8).map(|_| "n".repeat(253).into()).collect();
        let token = Token::new(vec![b'x'; TOKEN_BYTES_MAX]);
        let uuid = "0".repeat(62);
        let client = Some("[2001:db8::1]:51000".parse().unwrap());
        let bytes =
            PeerRequest { client, uuid: &uuid, port: 65535, token: Some(&token), hops: &hops }.bytes();
        let header = parse_proxy_header(&bytes).unwrap().unwrap();
        let head = parse_head(&bytes[header.len..], &[]).unwrap().unwrap();
        assert!(head.len <= HEAD_BYTES_MAX);
        assert_eq!(head.token, Some(token));
    }

    #[test]
    fn a_node_understands_every_reply_of_its_peer() {
        for reply in Reply::ALL {
            let bytes = [reply.bytes(HttpVersion::Http11), b"device's own"].concat();
            let len = bytes.windows(4).position(|end| end == b"\r\n\r\n").unwrap() + 4;
            assert_eq!(parse_peer_reply(&bytes), Ok(Some(PeerReply { reply, len })));
            assert_eq!(
                parse_peer_reply(&bytes[..len]),
                Ok(Some(PeerReply { reply, len })),
                "without its text"
            );
            assert_eq!(parse_peer_reply(&bytes[..len - 1]), Ok(None));
        }
    }

    #[test]
    fn a_reply_that_no_node_sends_is_an_error() {
        let unknown = parse_peer_reply(b"HTTP/1.1 418 Teapot\r\nSluicegate-Reason: tea\r\n\r\n").unwrap_err();
        assert_eq!(unknown, PeerReplyError::Unknown { status: 418, slug: "tea".to_owned() });
        let refused = parse_peer_reply(b"HTTP/1.1 503 Nobody Home\r\n\r\n").unwrap_err();
        assert_eq!(refused, PeerReplyError::Unknown { status: 503, slug: String::new() });
        assert!(matches!(parse_peer_reply(b"SSH-2.0-x\r\n"), Err(PeerReplyError::Malformed(_))));
        let endless = [b"HTTP/1.1 200 OK\r\nX: ".as_slice(), &[b'x'; HEAD_BYTES_MAX]].concat();
        assert_eq!(parse_peer_reply(&endless), Err(PeerReplyError::TooLong));
    }

    proptest! {
        #[test]
        fn no_reply_is_too_wild(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(Some(reply)) = parse_peer_reply(&bytes) {
                prop_assert!(reply.len <= bytes.len());
            }
            prop_assert!(parse_hops(&bytes).len() <= bytes.len() + 1);
        }
    }
}
