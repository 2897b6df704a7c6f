//! Sends the request to the relay, and reads its reply up to the last byte of the head.

use std::io::{self, Read, Write};

use super::connection::{DeadlineStream, RelayConnection};
use super::names::TunnelTarget;
use super::refusal::TunnelRefusal;
use crate::wire::Token;

/// Status line of a reply, and the value of `Sluicegate-Reason`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ReplyHead {
    status: u16,
    reason: String,
    slug: Option<String>,
}

/// Sends the request for `target`.
pub(super) fn send_request(
    relay: &mut RelayConnection,
    target: &TunnelTarget,
    token: &Token,
) -> io::Result<()> {
    let mut head =
        format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\nProxy-Authorization: Bearer ").into_bytes();
    head.extend_from_slice(token.as_bytes());
    head.extend_from_slice(b"\r\n\r\n");
    relay.write_all(&head)?;
    relay.flush()
}

/// Reads the head of the reply from `relay`, and leaves everything after it there.
pub(super) fn read_head(relay: &mut RelayConnection) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    while end_of_head(&head).is_none() {
        if head.len() == HEAD_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the reply's head has no end"));
        }
        let more = match relay {
            RelayConnection::Plain(socket) => read_up_to_end(socket, &head),
            // Decrypted bytes stay in the connection, where reading one byte needs no system call.
            RelayConnection::Tls(stream) => {
                let mut byte = [0];
                stream.read(&mut byte).map(|len| byte[..len].to_vec())
            }
        };
        let closed = || io::Error::new(io::ErrorKind::UnexpectedEof, "the relay closed the connection");
        match more {
            Ok(more) if more.is_empty() => return Err(closed()),
            Ok(more) => head.extend(more),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(closed()),
            Err(error) => return Err(error),
        }
    }
    Ok(head)
}

/// Reads more of a head that begins with `known`, up to its end. Returns no bytes where the socket has ended.
///
/// It peeks before it reads, since the device's first bytes may be in the same segment.
fn read_up_to_end(socket: &mut DeadlineStream, known: &[u8]) -> io::Result<Vec<u8>> {
    let mut ahead = [0; HEAD_BYTES_MAX];
    let seen = socket.peek(&mut ahead[..HEAD_BYTES_MAX - known.len()])?;
    let end = end_of_head(&[known, &ahead[..seen]].concat());
    let ours = end.map_or(seen, |end| end - known.len());
    socket.read_exact(&mut ahead[..ours])?;
    Ok(ahead[..ours].to_vec())
}

/// Parses the head. `None` where it is not an HTTP reply.
pub(super) fn parse(head: &[u8]) -> Option<ReplyHead> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut response = httparse::Response::new(&mut headers);
    response.parse(head).ok()?;
    let slug = response
        .headers
        .iter()
        .find(|header| header.name.eq_ignore_ascii_case("Sluicegate-Reason"))
        .map(|header| String::from_utf8_lossy(header.value).trim().to_owned());
    Some(ReplyHead { status: response.code?, reason: response.reason?.to_owned(), slug })
}

impl ReplyHead {
    /// Converts the reply to a refusal. `None` where the tunnel is open.
    pub(super) fn into_refusal(self, target: &TunnelTarget) -> Option<TunnelRefusal> {
        if (200..300).contains(&self.status) {
            return None;
        }
        Some(TunnelRefusal::new(target, self.status, self.reason, self.slug.as_deref()))
    }
}

/// Length of the head with its empty line, if it is complete.
fn end_of_head(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|window| window == b"\r\n\r\n").map(|start| start + 4)
}

/// Longest head that is read. Ours are a tenth of this; proxies in between may add fields.
const HEAD_BYTES_MAX: usize = 8 * 1024;

const HEADERS_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::time::{Duration, Instant};

    use super::*;
    use crate::wire::{HttpVersion, Reply};

    fn target() -> TunnelTarget {
        "0123456789abcdef0123456789abcdef:2222".parse().unwrap()
    }

    /// A relay that sends `chunks`, one segment each, and then closes.
    fn relay(chunks: Vec<Vec<u8>>) -> (RelayConnection, std::thread::JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut socket, _) = listener.accept().unwrap();
        socket.set_nodelay(true).unwrap();
        let sender = std::thread::spawn(move || {
            for chunk in chunks {
                socket.write_all(&chunk).unwrap();
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        (
            RelayConnection::Plain(DeadlineStream::new(client, Instant::now() + Duration::from_secs(30))),
            sender,
        )
    }

    #[test]
    fn no_byte_of_the_device_is_lost_wherever_the_reply_is_cut() {
        let reply = b"HTTP/1.1 200 Connection Established\r\n\r\n";
        let whole = [reply.as_slice(), b"SSH-2.0-dropbear\r\n\r\nmore"].concat();
        for cut in 1..whole.len() {
            let (mut client, sender) = relay(vec![whole[..cut].to_vec(), whole[cut..].to_vec()]);
            assert_eq!(read_head(&mut client).unwrap(), reply, "cut at {cut}");
            sender.join().unwrap();
            let mut rest = Vec::new();
            client.read_to_end(&mut rest).unwrap();
            assert_eq!(rest, b"SSH-2.0-dropbear\r\n\r\nmore", "cut at {cut}");
        }
    }

    #[test]
    fn a_head_without_end_is_given_up_at_its_bound() {
        let (mut client, sender) = relay(vec![vec![b'x'; HEAD_BYTES_MAX + 1]]);
        let error = read_head(&mut client).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        drop(client);
        sender.join().unwrap();
    }

    #[test]
    fn a_relay_that_closes_without_a_reply_is_an_error() {
        let (mut client, sender) = relay(vec![b"HTTP/1.1 200".to_vec()]);
        assert_eq!(read_head(&mut client).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        sender.join().unwrap();
    }

    #[test]
    fn every_refusal_of_ours_has_a_text_of_its_own() {
        let mut texts = std::collections::HashSet::new();
        for reply in Reply::ALL.into_iter().filter(|reply| reply.slug().is_some()) {
            let answer = parse(reply.bytes(HttpVersion::Http10)).unwrap();
            let refusal = answer.into_refusal(&target()).unwrap();
            assert_eq!(refusal.reply(), Some(reply));
            let text = refusal.to_string();
            assert!(text.contains(reply.reason()), "{text}");
            assert!(text.contains("; "), "no remedy: {text}");
            assert!(texts.insert(text));
        }
    }

    #[test]
    fn a_refusal_without_a_slug_is_known_by_its_status_line() {
        let answer = parse(b"HTTP/1.0 503 Device Offline\r\n\r\n").unwrap();
        assert_eq!(answer.into_refusal(&target()).unwrap().reply(), Some(Reply::DeviceOffline));
    }

    #[test]
    fn a_strangers_refusal_is_shown_as_it_is() {
        let answer = parse(b"HTTP/1.1 502 Bad Gateway\r\nServer: other\r\n\r\n").unwrap();
        let text = answer.into_refusal(&target()).unwrap().to_string();
        assert!(text.contains("502 Bad Gateway") && text.contains("--relay"), "{text}");
    }

    #[test]
    fn an_open_tunnel_is_no_refusal() {
        let answer = parse(Reply::Established.bytes(HttpVersion::Http11)).unwrap();
        assert!(answer.into_refusal(&target()).is_none());
        assert_eq!(parse(b"SSH-2.0-OpenSSH\r\n\r\n"), None);
    }
}
