//! Asks peers for their summaries, over TLS as requests are handed to them.
//!
//! Each peer has a thread and one deadline for everything; a slow one costs no more than that. At most
//! [`PEERS_ASKED_MAX`] are asked.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};

use super::{NodeSummary, PeerSummaries, SUMMARY_BYTES_MAX};
use crate::wire::{SUMMARY_HEAD_BYTES_MAX, explain_io, parse_summary_reply, summary_request};

/// A peer of the directory.
#[derive(Clone, Debug)]
pub(in crate::control) struct PeerAddress {
    /// Name in the directory and in the peer's certificate.
    pub name: Box<str>,
    pub address: SocketAddr,
}

/// Asks `peers` for their summaries, all at once, and waits for at most `time_limit`. Call it on a thread that may wait.
pub(in crate::control) fn ask_peers(
    peers: &[PeerAddress],
    tls: &Arc<ClientConfig>,
    time_limit: Duration,
) -> PeerSummaries {
    let deadline = Instant::now() + time_limit;
    let (sender, answers) = channel::bounded(PEERS_ASKED_MAX);
    let mut waiting = Vec::new();
    let mut result = PeerSummaries::default();
    for peer in peers.iter().take(PEERS_ASKED_MAX) {
        let (asked, tls, sender) = (peer.clone(), Arc::clone(tls), sender.clone());
        // Each thread ends at the deadline, give or take one read.
        let started = std::thread::Builder::new().name("ask-peer".to_owned()).spawn(move || {
            let answer = ask(&asked, tls, deadline).map_err(|error| failure_text(&error));
            drop(sender.send((asked.name, answer)));
        });
        match started {
            Ok(_thread) => waiting.push(peer.name.clone()),
            Err(error) => result.silent.push((peer.name.clone(), error.to_string())),
        }
    }
    drop(sender);
    while let Ok((name, answer)) = answers.recv_deadline(deadline) {
        waiting.retain(|other| *other != name);
        match answer {
            Ok(summary) => result.summaries.push((name, summary)),
            Err(error) => result.silent.push((name, error)),
        }
    }
    result.silent.extend(waiting.into_iter().map(|name| (name, NO_ANSWER.to_owned())));
    result
}

fn ask(peer: &PeerAddress, tls: Arc<ClientConfig>, deadline: Instant) -> io::Result<NodeSummary> {
    let stream = TcpStream::connect_timeout(&peer.address, left(deadline)?)?;
    let name = ServerName::try_from(peer.name.to_string()).map_err(io::Error::other)?;
    let connection = ClientConnection::new(tls, name).map_err(io::Error::other)?;
    let mut stream = StreamOwned::new(connection, DeadlineSocket { stream, deadline });
    stream.write_all(&summary_request())?;
    let mut received = Vec::new();
    let mut part = [0; 4096];
    loop {
        let len = stream.read(&mut part)?;
        received.extend_from_slice(&part[..len]);
        match parse_summary_reply(&received).map_err(io::Error::other)? {
            Some(body) => {
                return NodeSummary::decode(body)
                    .ok_or_else(|| io::Error::other("its summary is not one that this version knows"));
            }
            None if len == 0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            None if received.len() > SUMMARY_HEAD_BYTES_MAX + SUMMARY_BYTES_MAX => {
                return Err(io::Error::other("its summary is too long"));
            }
            None => {}
        }
    }
}

/// A socket of which all reads and writes together end at a deadline.
struct DeadlineSocket {
    stream: TcpStream,
    deadline: Instant,
}

impl Read for DeadlineSocket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(Some(left(self.deadline)?))?;
        self.stream.read(buffer)
    }
}

impl Write for DeadlineSocket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(Some(left(self.deadline)?))?;
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

/// Words of a failure. A socket's time limit shows as an operation that would block.
fn failure_text(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => NO_ANSWER.to_owned(),
        _ => explain_io(error),
    }
}

const NO_ANSWER: &str = "no answer in time";

/// Peers that are asked. More say no more.
const PEERS_ASKED_MAX: usize = 16;

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use rustls::crypto::ring::default_provider;
    use rustls::pki_types::PrivatePkcs8KeyDer;
    use rustls::{RootCertStore, ServerConfig, ServerConnection};

    use super::*;
    use crate::wire::{parse_proxy_header, summary_reply};

    const NAME: &str = "node-b";

    /// Settings of both ends, of which the client trusts the server's certificate alone.
    fn tls() -> (Arc<ServerConfig>, Arc<ClientConfig>) {
        let made = rcgen::generate_simple_self_signed([NAME.to_owned()]).unwrap();
        let certificate = made.cert.der().clone();
        let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
        let provider = Arc::new(default_provider());
        let server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.clone()], key.into())
            .unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(certificate).unwrap();
        let client = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        (Arc::new(server), Arc::new(client))
    }

    /// Listens as a peer that sends `reply` once it has the request, in two parts.
    fn peer(server: Arc<ServerConfig>, reply: Vec<u8>) -> PeerAddress {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut stream = StreamOwned::new(ServerConnection::new(server).unwrap(), stream);
            let mut request = [0; 256];
            let len = stream.read(&mut request).unwrap();
            assert!(parse_proxy_header(&request[..len]).unwrap().is_some());
            let (first, second) = reply.split_at(reply.len() / 2);
            for part in [first, second] {
                stream.write_all(part).unwrap();
                stream.flush().unwrap();
            }
            stream.conn.send_close_notify();
            drop(stream.flush());
            drop(stream.read(&mut request));
        });
        PeerAddress { name: NAME.into(), address }
    }

    #[test]
    fn each_peer_answers_or_is_named_with_the_reason_and_the_time_is_bounded() {
        let (server, client) = tls();
        let summary =
            NodeSummary { relations: Default::default(), held: vec![("grants.gained".to_owned(), 7)] };
        let answers = peer(Arc::clone(&server), summary_reply(&summary.encode()));
        let broken = PeerAddress {
            name: "broken".into(),
            ..peer(Arc::clone(&server), b"HTTP/1.1 405 No\r\n\r\n".to_vec())
        };
        let older = peer(Arc::clone(&server), b"HTTP/1.1 405 Method Not Allowed\r\n\r\n".to_vec());
        let endless = peer(server, [summary_reply(&vec![0; 40_000]), vec![0; 40_000]].concat());
        // Accepts a connection, and says nothing.
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let silent = PeerAddress { name: "silent".into(), address: listener.local_addr().unwrap() };
        let began = Instant::now();

        let result = ask_peers(&[answers, broken, older, endless, silent], &client, Duration::from_secs(3));

        assert!(began.elapsed() < Duration::from_secs(4));
        assert_eq!(result.summaries, [(NAME.into(), summary)]);
        let mut reasons: Vec<String> =
            result.silent.iter().map(|(name, reason)| format!("{name}: {reason}")).collect();
        reasons.sort_unstable();
        assert_eq!(reasons.len(), 4, "{reasons:?}");
        assert!(reasons[0].starts_with("broken: the other side's certificate is not"), "{reasons:?}");
        assert!(reasons[1].contains("405") && reasons[2].contains("too long"), "{reasons:?}");
        assert_eq!(reasons[3], "silent: no answer in time");
    }
}
