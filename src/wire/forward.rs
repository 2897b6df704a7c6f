//! What one node says to the next when it hands a request on, and what it is told.
//!
//! Inside the TLS connection between them: a PROXY header (version 2) with the true client, and then the
//! request as that client made it, with the nodes that it has come by. The next node decides by itself.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ppp::v2;

use super::{HEAD_BYTES_MAX, Reply, Token};

/// A request for the next node.
#[derive(Clone, Copy, Debug)]
pub struct Handover<'a> {
    pub client: Option<SocketAddr>,
    /// Hex digits.
    pub uuid: &'a str,
    pub port: u16,
    pub token: Option<&'a Token>,
    /// The nodes that it has come by, this one last.
    pub hops: &'a [Box<str>],
}

/// What the next node said, and how many bytes of it that was; what follows is the device's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HandoverReply {
    pub reply: Reply,
    pub len: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HandoverError {
    #[error("the next node's reply is no HTTP ({0})")]
    Malformed(String),
    #[error("the next node's reply is longer than {HEAD_BYTES_MAX} bytes")]
    TooLong,
    #[error("the next node said {status} {slug}, which this version does not know")]
    Unknown { status: u16, slug: String },
}

impl Handover<'_> {
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.proxy_header();
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
            Some(client) => (v2::Command::Proxy, SocketAddr::new(client.ip().to_canonical(), client.port())),
            None => (v2::Command::Local, nowhere),
        };
        // Where the client came to says nothing here, but it has to be of the same family.
        let to = match client.ip() {
            IpAddr::V4(_) => nowhere,
            IpAddr::V6(_) => SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, 0)),
        };
        let header =
            v2::Builder::with_addresses(v2::Version::Two | command, v2::Protocol::Stream, (client, to));
        header.build().expect("two addresses are shorter than any bound")
    }
}

/// The nodes that a request has come by, in their order. `head` was parsed before.
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

/// Reads the reply of the next node; `None` while more of it has to come.
pub fn parse_handover_reply(bytes: &[u8]) -> Result<Option<HandoverReply>, HandoverError> {
    let mut headers = [httparse::EMPTY_HEADER; super::head::HEADERS_MAX];
    let mut response = httparse::Response::new(&mut headers);
    let len = match response.parse(&bytes[..bytes.len().min(HEAD_BYTES_MAX)]) {
        Ok(httparse::Status::Complete(len)) => len,
        Ok(httparse::Status::Partial) if bytes.len() >= HEAD_BYTES_MAX => return Err(HandoverError::TooLong),
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(error) => return Err(HandoverError::Malformed(error.to_string())),
    };
    let status = response.code.unwrap_or_default();
    let slug = response
        .headers
        .iter()
        .find(|header| header.name.eq_ignore_ascii_case("Sluicegate-Reason"))
        .map(|header| String::from_utf8_lossy(header.value).into_owned());
    let said =
        Reply::ALL.into_iter().find(|reply| reply.status() == status && reply.slug() == slug.as_deref());
    match said {
        Some(reply) => Ok(Some(HandoverReply { reply, len })),
        None => Err(HandoverError::Unknown { status, slug: slug.unwrap_or_default() }),
    }
}

/// The header that names the nodes.
const HOPS: &str = "Sluicegate-Hops";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::{HttpVersion, parse_head, parse_proxy_header};

    fn handover<'a>(client: Option<&str>, token: Option<&'a Token>, hops: &'a [Box<str>]) -> Vec<u8> {
        let client = client.map(|client| client.parse().unwrap());
        Handover { client, uuid: "00ff", port: 22, token, hops }.bytes()
    }

    #[test]
    fn the_next_node_reads_what_this_one_wrote() {
        let hops: [Box<str>; 2] = ["node-a".into(), "node-b".into()];
        for client in [Some("192.0.2.7:51000"), Some("[2001:db8::1]:51000"), None] {
            // Any bytes may be in a token, but for those that no client can send.
            for secret in [&b"plain"[..], b"with:colon and space", b"\xff\x00\n"] {
                let token = Token::new(secret.to_vec());
                let bytes = handover(client, Some(&token), &hops);
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
    fn every_reply_of_a_node_is_understood_by_the_one_before() {
        for reply in Reply::ALL {
            let bytes = [reply.bytes(HttpVersion::Http11), b"device's own"].concat();
            let len = bytes.len() - b"device's own".len();
            assert_eq!(parse_handover_reply(&bytes), Ok(Some(HandoverReply { reply, len })));
            assert_eq!(parse_handover_reply(&bytes[..len - 1]), Ok(None));
        }
    }

    #[test]
    fn what_no_node_says_is_an_error() {
        let unknown =
            parse_handover_reply(b"HTTP/1.1 418 Teapot\r\nSluicegate-Reason: tea\r\n\r\n").unwrap_err();
        assert_eq!(unknown, HandoverError::Unknown { status: 418, slug: "tea".to_owned() });
        let refused = parse_handover_reply(b"HTTP/1.1 503 Nobody Home\r\n\r\n").unwrap_err();
        assert_eq!(refused, HandoverError::Unknown { status: 503, slug: String::new() });
        assert!(matches!(parse_handover_reply(b"SSH-2.0-x\r\n"), Err(HandoverError::Malformed(_))));
        let endless = [b"HTTP/1.1 200 OK\r\nX: ".as_slice(), &[b'x'; HEAD_BYTES_MAX]].concat();
        assert_eq!(parse_handover_reply(&endless), Err(HandoverError::TooLong));
    }

    proptest! {
        #[test]
        fn no_reply_is_too_wild(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(Some(reply)) = parse_handover_reply(&bytes) {
                prop_assert!(reply.len <= bytes.len());
            }
            prop_assert!(parse_hops(&bytes).len() <= bytes.len() + 1);
        }
    }
}
