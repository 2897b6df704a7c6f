//! What one node sends to another: the request that it hands on, and the replies.

use sluicegate::wire::{
    HEAD_BYTES_MAX, HttpVersion, PeerReplyError, PeerRequest, Reply, SUMMARY_HEAD_BYTES_MAX, Token,
    parse_head, parse_hops, parse_peer_reply, parse_proxy_header, parse_summary_reply, summary_reply,
};

use super::{KIB, Memory, Target};
use crate::input::Input;

pub const PEER_REQUEST: Target = Target {
    name: "peer_request",
    run: peer_request,
    seeds: request_seeds,
    words: &["Sluicegate-Hops: ", "node-1, node-2", "\r\n", "CONNECT ab:22 HTTP/1.1\r\n"],
    bytes_max: 4 * KIB,
    // The request has room for the longest head at once.
    memory: Memory { fixed: 40 * KIB, per_byte: 12 },
};

pub const PEER_REPLY: Target = Target {
    name: "peer_reply",
    run: peer_reply,
    seeds: reply_seeds,
    words: &[
        "HTTP/1.1 ",
        "200 ",
        "403 ",
        "503 ",
        "Sluicegate-Reason: ",
        "not-permitted",
        "Content-Length: ",
        "18446744073709551615",
        "\r\n\r\n",
        "X: ",
    ],
    bytes_max: 12 * KIB,
    memory: Memory { fixed: 2 * KIB, per_byte: 4 },
};

fn request_seeds() -> Vec<Vec<u8>> {
    vec![
        [&[0, 10, 0, 0, 1, 0, 9, 22, 0, 5][..], b"token", &[6], b"node-1", &[6], b"node-2"].concat(),
        [&[1][..], &[0x20; 16], &[1, 2, 80, 0, 0, 3], b"vpn"].concat(),
    ]
}

/// A request that a node writes is what its peer reads, and any head has hops without a fault.
fn peer_request(input: &[u8]) {
    let _whatever = parse_hops(input);
    let mut input = Input(input);
    let client = input.socket();
    let client = (client.port() != 7).then(|| sluicegate::sys::address::canonical(client));
    let port = input.u16().max(1);
    let token = Some(input.short()).filter(|token| !token.is_empty()).map(|token| Token::new(token.to_vec()));
    let mut hops: Vec<Box<str>> = Vec::new();
    while !input.is_empty() && hops.len() < 16 {
        let name: String = input.short().iter().map(|byte| char::from(b'a' + byte % 26)).collect();
        hops.push(name.into());
    }
    let uuid = "0123456789abcdef0123456789abcdef";
    let request = PeerRequest { client, uuid, port, token: token.as_ref(), hops: &hops };
    let bytes = request.bytes();
    let header = parse_proxy_header(&bytes).expect("a PROXY header").expect("a whole one");
    assert_eq!(header.client, client);
    let head_bytes = &bytes[header.len..];
    if head_bytes.len() > HEAD_BYTES_MAX {
        return;
    }
    let head = parse_head(head_bytes, &[]).expect("a head").expect("a whole one");
    assert_eq!((head.uuid, head.port, head.len), (uuid, port, head_bytes.len()));
    assert_eq!(head.token, token);
    let expected = if hops.is_empty() { vec!["".into()] } else { hops };
    assert_eq!(parse_hops(&head_bytes[..head.len]), expected);
}

fn reply_seeds() -> Vec<Vec<u8>> {
    let versions = [HttpVersion::Http10, HttpVersion::Http11];
    let mut seeds: Vec<Vec<u8>> =
        Reply::ALL.iter().flat_map(|reply| versions.map(|version| reply.bytes_for(version, 7))).collect();
    seeds.push(summary_reply(b"summary"));
    seeds
}

fn peer_reply(input: &[u8]) {
    let whole = parse_peer_reply(input);
    let cut = usize::from(input.last().copied().unwrap_or(0)) * input.len() / 255;
    let part = parse_peer_reply(&input[..cut]);
    assert!(part == Ok(None) || part == whole, "{cut} bytes: {part:?}, all: {whole:?}");
    match whole {
        Ok(None) => assert!(input.len() < HEAD_BYTES_MAX, "the bound ends the wait"),
        Ok(Some(reply)) => {
            // A node that replies so is understood in the same way.
            let written = reply.reply.bytes(HttpVersion::Http11);
            let again = parse_peer_reply(written).expect("our own reply").expect("a whole one");
            assert_eq!(again.reply, reply.reply);
            assert!(input[..reply.len].ends_with(b"\n"));
        }
        Err(PeerReplyError::Unknown { status, .. }) => {
            let mut headers = [httparse::EMPTY_HEADER; 64];
            let mut response = httparse::Response::new(&mut headers);
            assert!(response.parse(input).is_ok_and(|parsed| parsed.is_complete()));
            assert_eq!(response.code, Some(status));
        }
        Err(PeerReplyError::Malformed(_) | PeerReplyError::TooLong) => {}
    }
    check_summary(input);
}

fn check_summary(input: &[u8]) {
    match parse_summary_reply(input) {
        Ok(Some(summary)) => {
            let written = summary_reply(summary);
            assert_eq!(parse_summary_reply(&written), Ok(Some(summary)));
        }
        Ok(None) => {
            let has_head = input.windows(4).any(|bytes| bytes == b"\r\n\r\n");
            assert!(
                has_head
                    || input.len() <= SUMMARY_HEAD_BYTES_MAX
                    || input.windows(2).any(|b| b == b"\n\n" || b == b"\n\r")
            );
        }
        Err(reason) => assert!(!reason.is_empty()),
    }
}
