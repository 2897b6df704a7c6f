//! The request by which a node asks a peer for a summary of what it has in force, and the peer's reply.
//!
//! It goes over the connection that requests are handed on by, behind a PROXY header without a client. A peer that does
//! not know it replies 405, as to any other method.

use ppp::v2;

/// The bytes of the request.
pub fn summary_request() -> Vec<u8> {
    let nowhere = std::net::SocketAddr::from((std::net::Ipv4Addr::UNSPECIFIED, 0));
    let header = v2::Builder::with_addresses(
        v2::Version::Two | v2::Command::Local,
        v2::Protocol::Stream,
        (nowhere, nowhere),
    );
    let mut bytes = header.build().expect("two addresses are shorter than any bound");
    bytes.extend_from_slice(REQUEST_LINE);
    bytes.extend_from_slice(b"\r\n");
    bytes
}

/// True if the bytes behind the PROXY header begin the request.
pub fn is_summary_request(head: &[u8]) -> bool {
    head.starts_with(REQUEST_LINE)
}

/// The bytes of the reply with `summary`.
pub fn summary_reply(summary: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", summary.len());
    [head.as_bytes(), summary].concat()
}

/// Reads a reply; `None` while it is not complete.
pub fn parse_summary_reply(bytes: &[u8]) -> Result<Option<&[u8]>, String> {
    let mut headers = [httparse::EMPTY_HEADER; super::head::HEADERS_MAX];
    let mut response = httparse::Response::new(&mut headers);
    let window = &bytes[..bytes.len().min(SUMMARY_HEAD_BYTES_MAX)];
    let len = match response.parse(window) {
        Ok(httparse::Status::Complete(len)) => len,
        Ok(httparse::Status::Partial) if bytes.len() > SUMMARY_HEAD_BYTES_MAX => {
            return Err("its reply has an endless head".to_owned());
        }
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(error) => return Err(format!("its reply is not HTTP ({error})")),
    };
    if response.code != Some(200) {
        return Err(format!(
            "it replied {}; it may be of an older version",
            response.code.unwrap_or_default()
        ));
    }
    let length = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case("Content-Length"));
    let length = length.and_then(|header| std::str::from_utf8(header.value).ok()?.parse::<usize>().ok());
    let length = length.ok_or("its reply has no length")?;
    Ok(bytes[len..].get(..length))
}

/// Bytes of the reply's head.
pub const SUMMARY_HEAD_BYTES_MAX: usize = 1024;

const REQUEST_LINE: &[u8] = b"GET /summary HTTP/1.1\r\n";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{HeadError, parse_head, parse_proxy_header};

    #[test]
    fn a_peer_knows_the_request_and_an_older_one_takes_it_for_another_method() {
        let bytes = summary_request();
        let header = parse_proxy_header(&bytes).unwrap().unwrap();
        assert_eq!(header.client, None);
        let head = &bytes[header.len..];
        assert!(is_summary_request(head) && !is_summary_request(&head[1..]));
        assert!(matches!(parse_head(head, &[]), Err(HeadError::Method { .. })));
    }

    #[test]
    fn a_reply_is_read_once_it_is_complete_and_refused_where_it_is_none() {
        let bytes = summary_reply(b"sketch");
        (0..bytes.len()).for_each(|len| assert_eq!(parse_summary_reply(&bytes[..len]), Ok(None)));
        assert_eq!(parse_summary_reply(&bytes), Ok(Some(&b"sketch"[..])));
        let older = parse_summary_reply(b"HTTP/1.1 405 Method Not Allowed\r\n\r\n").unwrap_err();
        assert!(older.contains("405"), "{older}");
        assert!(parse_summary_reply(b"SSH-2.0-x\r\n").is_err());
        assert!(parse_summary_reply(b"HTTP/1.1 200 OK\r\n\r\n").unwrap_err().contains("no length"));
        let endless = [b"HTTP/1.1 200 OK\r\nX: ".as_slice(), &[b'x'; SUMMARY_HEAD_BYTES_MAX]].concat();
        assert!(parse_summary_reply(&endless).unwrap_err().contains("endless"));
    }
}
