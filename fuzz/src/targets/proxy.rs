//! The PROXY header of a load balancer.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use sluicegate::wire::{PROXY_HEADER_BYTES_MAX, parse_proxy_header};

use super::{KIB, Memory, Target};

pub const PROXY_HEADER: Target = Target {
    name: "proxy_header",
    run: proxy_header,
    seeds,
    words: &[
        "PROXY ",
        "TCP4 ",
        "TCP6 ",
        "UNKNOWN",
        "\r\n",
        "127.0.0.1 ",
        "::1 ",
        "::ffff:10.0.0.1 ",
        " 65535",
        "\r",
        "\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c",
        "\x21\x21\0\x24",
    ],
    bytes_max: 4 * KIB,
    memory: Memory { fixed: KIB, per_byte: 1 },
};

fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for (source, destination) in [("10.1.2.3:40000", "10.0.0.1:3128"), ("[2001:db8::1]:1", "[::1]:2")] {
        let pair = [source, destination].map(|address| address.parse::<SocketAddr>().expect("an address"));
        for command in [ppp::v2::Command::Proxy, ppp::v2::Command::Local] {
            let version = ppp::v2::Version::Two | command;
            let header =
                ppp::v2::Builder::with_addresses(version, ppp::v2::Protocol::Stream, (pair[0], pair[1]));
            let header = header.write_tlv(ppp::v2::Type::UniqueId, b"unique").expect("a short value");
            seeds.push([&header.build().expect("a header"), &b"CONNECT"[..]].concat());
        }
    }
    seeds
}

fn proxy_header(input: &[u8]) {
    let whole = parse_proxy_header(input);
    let cut = usize::from(input.last().copied().unwrap_or(0)) * input.len() / 255;
    for len in [cut, input.len().saturating_sub(1)] {
        let part = parse_proxy_header(&input[..len]);
        // A header that is wrong may be wrong in another way with more bytes.
        let is_same = part == whole || matches!((&part, &whole), (Err(_), Err(_)));
        assert!(part == Ok(None) || is_same, "{len} bytes: {part:?}, all: {whole:?}");
    }
    let model = model(input);
    match &whole {
        Ok(None) => assert!(input.len() < PROXY_HEADER_BYTES_MAX, "the bound ends the wait"),
        Ok(Some(header)) => {
            assert!(header.len <= PROXY_HEADER_BYTES_MAX && header.len <= input.len());
            assert_eq!(model, Some((header.client, header.len)), "by the specification");
            header.client.into_iter().for_each(check_round_trip);
        }
        Err(_) => {}
    }
}

/// A client's address goes through each form of the header unchanged.
fn check_round_trip(client: SocketAddr) {
    let kind = if client.is_ipv4() { "TCP4" } else { "TCP6" };
    let text = format!("PROXY {kind} {0} {0} {1} 3128\r\n", client.ip(), client.port());
    let header = parse_proxy_header(text.as_bytes()).expect("a header").expect("a whole one");
    assert_eq!((header.client, header.len), (Some(client), text.len()));
}

/// Reads a header by the letter of the specification; `None` where it is none, or not whole.
fn model(input: &[u8]) -> Option<(Option<SocketAddr>, usize)> {
    if input.starts_with(b"\r\n\r\n\0\r\nQUIT\n") { binary(input) } else { text(input) }
}

fn binary(input: &[u8]) -> Option<(Option<SocketAddr>, usize)> {
    let (command, family) = (*input.get(12)?, *input.get(13)?);
    let length = usize::from(u16::from_be_bytes([*input.get(14)?, *input.get(15)?]));
    let payload = input.get(16..16 + length)?;
    let port = |at: usize| Some(u16::from_be_bytes([*payload.get(at)?, *payload.get(at + 1)?]));
    if command >> 4 != 2 || command & 15 > 1 || family >> 4 > 3 || family & 15 > 2 {
        return None;
    }
    let client = match (command & 15, family >> 4) {
        (0, _) | (_, 0) => None,
        (_, 1) => {
            payload.get(..12)?;
            let bytes: [u8; 4] = payload.get(..4)?.try_into().ok()?;
            Some(SocketAddr::new(Ipv4Addr::from(bytes).into(), port(8)?))
        }
        (_, 2) => {
            payload.get(..36)?;
            let bytes: [u8; 16] = payload.get(..16)?.try_into().ok()?;
            Some(SocketAddr::new(Ipv6Addr::from(bytes).to_canonical(), port(32)?))
        }
        _ => None,
    };
    Some((client, 16 + length))
}

fn text(input: &[u8]) -> Option<(Option<SocketAddr>, usize)> {
    let end = input.iter().take(107).position(|byte| *byte == b'\n')?;
    let line = std::str::from_utf8(&input[..end]).ok()?.strip_suffix('\r')?;
    let line = line.strip_prefix("PROXY ")?;
    if line == "UNKNOWN" || line.starts_with("UNKNOWN ") {
        return (!line.contains('\r')).then_some((None, end + 1));
    }
    let [kind, source, destination, source_port, destination_port] =
        line.split(' ').collect::<Vec<_>>()[..].try_into().ok()?;
    let address = |text: &str| -> Option<IpAddr> {
        match kind {
            "TCP4" => Some(IpAddr::V4(text.parse().ok()?)),
            "TCP6" => Some(IpAddr::V6(text.parse().ok()?)),
            _ => None,
        }
    };
    let port =
        |text: &str| -> Option<u16> { text.parse().ok().filter(|port: &u16| port.to_string() == text) };
    let (_, _) = (address(destination)?, port(destination_port)?);
    Some((Some(SocketAddr::new(address(source)?.to_canonical(), port(source_port)?)), end + 1))
}
