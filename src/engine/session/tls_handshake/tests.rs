//! Whole sessions by TLS against a simulated kernel: whatever it does, the bytes arrive and nothing is left.

use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};

use super::super::Session;
use super::super::tests::{Bench, HEAD};
use super::*;
use crate::config::Listen;
use crate::engine::kernel::simulated::SimulatedKernel;
use crate::engine::tls::handshake_pool::HandshakePool;
use crate::sys::wake::Wake;
use crate::wire::Sealed;

const NAME: &str = "relay.example";

/// The client's side, and what it has read.
struct Client {
    tls: TlsConnection,
    read: Vec<u8>,
    /// Holds the files of the listener until its TLS settings are loaded.
    _folder: tempfile::TempDir,
}

/// A listener with a certificate of its own, and a client that trusts it.
fn listener() -> (Listen, Client) {
    let folder = tempfile::tempdir().unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new([NAME.to_owned()]).unwrap().self_signed(&key).unwrap();
    std::fs::write(folder.path().join("chain"), certificate.pem()).unwrap();
    std::fs::write(folder.path().join("key"), key.serialize_pem()).unwrap();
    let text = "address = '127.0.0.1:0'\ntls.certificates = [{ chain = '@/chain', key = '@/key' }]";
    let listen = toml::from_str(&text.replace('@', &folder.path().display().to_string())).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(certificate.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let tls = TlsConnection::connect(Arc::new(config), ServerName::try_from(NAME).unwrap()).unwrap();
    (listen, Client { tls, read: Vec::new(), _folder: folder })
}

impl Client {
    /// Reads what the relay has sent, and answers.
    fn exchange(&mut self, bench: &Bench) {
        let records = std::mem::take(&mut *bench.client.state().sent.borrow_mut());
        let mut answer = Sealed::default();
        self.tls.receive(&records, &mut self.read, &mut answer).unwrap();
        bench.client_sends(answer.bytes());
    }

    fn send(&mut self, bytes: &[u8], bench: &Bench) {
        let mut sealed = Sealed::default();
        self.tls.write(bytes, &mut sealed).unwrap();
        bench.client_sends(sealed.bytes());
    }

    fn end(&mut self, bench: &Bench) {
        let mut sealed = Sealed::default();
        self.tls.end(&mut sealed).unwrap();
        bench.client_sends(sealed.bytes());
    }
}

#[test]
fn every_byte_arrives_once_and_in_order_whatever_the_kernel_does() {
    for seed in 0..60 {
        let (listen, mut client) = listener();
        let mut bench = Bench::listening(seed, listen);
        bench.kernel.device.state().room.set(10_000);
        bench.client.state().room.set(20_000);
        let mut session = bench.begin();
        client.exchange(&bench);
        run_until(&mut bench, &mut session, &mut client, |client, _| client.tls.is_open());
        client.send(&[HEAD.as_bytes(), b"early"].concat(), &bench);
        let sent: Vec<u8> = (0..150_000u32).map(|place| (place / 3) as u8).collect();
        let back: Vec<u8> = (0..90_000u32).map(|place| (place / 5) as u8).collect();
        client.send(&sent, &bench);
        bench.kernel.device.state().incoming.borrow_mut().extend(&back);
        // Room comes in dribbles on both sides.
        for _ in 0..400 {
            for socket in [&bench.client, &bench.kernel.device] {
                let room = &socket.state().room;
                room.set(room.get() + bench.kernel.roll(3_000));
            }
            run_until(&mut bench, &mut session, &mut client, |_, steps| steps > 20);
        }
        run_until(&mut bench, &mut session, &mut client, |_, steps| steps > 3_000);
        let device_got = bench.kernel.device.state().sent.borrow().len();
        assert_eq!(device_got, 150_005, "seed {seed}: all of it, though neither side has ended");
        assert!(client.read.len() > 90_000, "seed {seed}: {}", client.read.len());
        client.end(&bench);
        bench.kernel.device.state().peer_ended.set(true);
        run_until(&mut bench, &mut session, &mut client, |_, steps| steps > 3_000);
        assert!(session.is_over(), "seed {seed}: {:?} in flight", session.core.in_flight);
        let device_got = bench.kernel.device.state().sent.borrow().clone();
        assert!(device_got == [b"early".as_slice(), &sent].concat(), "seed {seed}: {}", device_got.len());
        let reply = b"HTTP/1.1 200 Connection Established\r\n\r\n".as_slice();
        assert!(client.read == [reply, &back].concat(), "seed {seed}: {}", client.read.len());
        assert!(client.tls.has_ended(), "seed {seed}: the end is told by TLS, too");
        assert_eq!(bench.kernel.buffers_out(), 0, "seed {seed}");
        bench.turn(|turn| session.release(turn));
    }
}

/// Lets things happen, the steps of handshakes among them, until it `is_enough` by the client and the steps so far.
fn run_until(
    bench: &mut Bench,
    session: &mut Session<SimulatedKernel>,
    client: &mut Client,
    is_enough: impl Fn(&Client, usize) -> bool,
) {
    for step in 0..20_000 {
        if is_enough(client, step) {
            return;
        }
        bench.run(session, 1);
        if let Some(shaken) = bench.next_handshake() {
            bench.turn(|turn| session.on_handshake(shaken, turn));
        }
        client.exchange(bench);
    }
    panic!("it never comes to that");
}

#[test]
fn a_client_is_turned_away_where_too_many_shake_hands() {
    let (listen, mut client) = listener();
    let mut bench = Bench::listening(3, listen);
    bench.handshakes = HandshakePool::without_threads(Arc::new(Wake::new().unwrap()));
    let mut session = bench.begin();
    client.exchange(&bench);
    bench.run(&mut session, 50);
    assert!(session.is_over());
    let outcomes: Vec<_> = bench.shared.threads[0].counters.tls_handshakes.nonzero().collect();
    assert_eq!(outcomes, [(TlsHandshakeOutcome::TurnedAway, 1)]);
}

#[test]
fn a_session_that_ends_while_its_handshake_is_elsewhere_waits_for_it() {
    let (listen, mut client) = listener();
    let mut bench = Bench::listening(3, listen);
    let mut session = bench.begin();
    client.exchange(&bench);
    bench.run(&mut session, 50);
    bench.turn(|turn| session.stop(turn));
    assert!(!session.is_over(), "its slot is not for another yet");
    let shaken = bench.next_handshake().unwrap();
    bench.turn(|turn| session.on_handshake(shaken, turn));
    bench.run(&mut session, 50);
    assert!(session.is_over());
}
