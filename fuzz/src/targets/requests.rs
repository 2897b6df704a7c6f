//! The head of a client's request.

use std::cell::OnceCell;

use sluicegate::wire::{ConnectHead, HEAD_BYTES_MAX, HeadError, TOKEN_BYTES_MAX, parse_head};

use super::{KIB, Memory, Target, no_seeds};

pub const CONNECT_HEAD: Target = Target {
    name: "connect_head",
    run: connect_head,
    seeds: no_seeds,
    words: &[
        "CONNECT ",
        "GET ",
        " HTTP/1.0\r\n",
        " HTTP/1.1\r\n",
        "\r\n\r\n",
        "Proxy-Authorization: Basic ",
        "Proxy-Authorization: Bearer ",
        "Host: ",
        "Content-Length: ",
        "Transfer-Encoding: chunked\r\n",
        ".balena",
        ".vpn",
        ":22",
        ":65536",
        "0123456789abcdef",
    ],
    bytes_max: 12 * KIB,
    // The token three times: as it came, decoded, and as a value.
    memory: Memory { fixed: KIB, per_byte: 4 },
};

fn connect_head(input: &[u8]) {
    thread_local!(static SUFFIXES: OnceCell<Vec<String>> = const { OnceCell::new() });
    SUFFIXES
        .with(|suffixes| check(input, suffixes.get_or_init(|| ["balena", "vpn"].map(String::from).to_vec())));
}

fn check(input: &[u8], suffixes: &[String]) {
    let whole = parse_head(input, suffixes);
    // What is settled does not change with more bytes, wherever the network cuts them.
    let cut = usize::from(input.first().copied().unwrap_or(0)) * input.len() / 255;
    for len in [cut, input.len().saturating_sub(1)] {
        let part = parse_head(&input[..len], suffixes);
        assert!(part == Ok(None) || part == whole, "{len} bytes: {part:?}, all: {whole:?}");
    }
    match whole {
        Ok(None) => assert!(input.len() < HEAD_BYTES_MAX, "the bound ends the wait"),
        Ok(Some(head)) => check_complete(&head, input),
        Err(
            error @ (HeadError::Malformed { .. } | HeadError::Method { .. } | HeadError::TooLarge { .. }),
        ) => {
            assert_eq!(error.reply().status() / 100, 4);
        }
    }
}

/// Compares with what httparse and the grammar say.
fn check_complete(head: &ConnectHead<'_>, input: &[u8]) {
    assert!(head.len <= HEAD_BYTES_MAX && input[..head.len].ends_with(b"\n"));
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut request = httparse::Request::new(&mut headers);
    assert_eq!(request.parse(&input[..head.len]), Ok(httparse::Status::Complete(head.len)));
    assert_eq!(request.method, Some("CONNECT"));
    let target = request.path.expect("a target");
    assert!(target.starts_with(head.uuid) && head.uuid.bytes().all(|digit| digit.is_ascii_hexdigit()));
    let port = target.rsplit_once(':').map_or(80, |(_, port)| port.parse::<u32>().expect("a port"));
    assert_eq!(port, u32::from(head.port));
    assert_ne!(head.port, 0);
    if let Some(token) = &head.token {
        assert!((1..=TOKEN_BYTES_MAX).contains(&token.as_bytes().len()));
    }
    let credentials =
        request.headers.iter().filter(|header| header.name.eq_ignore_ascii_case("Proxy-Authorization"));
    assert!(credentials.count() <= 1 && !(head.token.is_some() && request.headers.is_empty()));
}
