//! Requests that are handed to a peer, against a simulated kernel.

use std::sync::Arc;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::{ClientConfig, ServerConfig};

use super::super::tests::{Bench, HEAD, device, view_of};
use super::super::{Session, State};
use super::*;
use crate::authz::{Device, Directory, NodeEntry};
use crate::config::{Config, ForwardTls, Listen, ListenTls, Vpn};
use crate::engine::kernel::simulated::{SimulatedKernel, Socket};
use crate::telemetry::RefusalLabel;
use crate::wire::{HttpVersion, TlsConfigs};

const OWN: &str = "own-node";
const PEER: &str = "other-node";
const ESTABLISHED: &[u8] = b"HTTP/1.1 200 Connection Established\r\n\r\n";

/// A session's bench, whose device is at a peer, and the TLS settings of both nodes.
struct PeerBench {
    bench: Bench,
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
}

/// The peer's end of a connection.
struct PeerEnd {
    tls: TlsConnection,
    socket: Socket,
    request: Vec<u8>,
}

impl PeerBench {
    fn new(seed: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        // One certificate serves as both nodes'.
        let params = CertificateParams::new([OWN.to_owned(), PEER.to_owned()]).unwrap();
        let chain = params.signed_by(&key, &issuer).unwrap().pem();
        let file = |name: &str, text: String| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let tls = ForwardTls {
            chain: file("chain", chain),
            key: file("key", key.serialize_pem()),
            ca: file("ca", issuer.pem()),
        };
        let mut config =
            Config { vpn: Vpn::loopback(), listen: vec![Listen::default()], ..Config::default() };
        config.vpn.node = Some(OWN.to_owned());
        config.forward.tls = Some(tls);
        let configs = TlsConfigs::load(&config).unwrap();
        let peers = Listen { tls: Some(ListenTls::Peers), ..Listen::default() };
        let (server, client) = (configs.server(0, &peers).unwrap(), configs.peer_client().unwrap());
        let at_peer = Device { node: Some(PEER.into()), ..device() };
        let bench = Bench::with(seed, config, configs, view_of(true, at_peer));
        let entry = NodeEntry { forward: address(), age: Duration::ZERO, holds: None };
        bench.shared.authority.directory().replace(Directory::new([(PEER.into(), entry)]));
        Self { bench, server, client }
    }

    /// A session whose client has sent its head.
    fn begin(&mut self) -> Session<SimulatedKernel> {
        let session = self.bench.begin();
        self.bench.client_sends(HEAD.as_bytes());
        session
    }

    /// Puts a ready connection into the pool. Returns the peer's end of it.
    fn pool_connection(&mut self) -> PeerEnd {
        let mut peer = PeerEnd::new(&self.server, Socket::default());
        let state = peer.socket.clone();
        state.state().room.set(usize::MAX / 2);
        let name = ServerName::try_from(PEER).unwrap();
        let tls = TlsConnection::connect(Arc::clone(&self.client), name).unwrap();
        let mut stream = Box::new(TlsStream::new(tls));
        while !stream.is_open() || !peer.tls.is_open() {
            let records: Vec<u8> = state.state().incoming.borrow_mut().drain(..).collect();
            stream.receive(&records, &mut Vec::new()).unwrap();
            stream.outgoing().flush(&self.bench.kernel, &state).outcome.unwrap();
            peer.exchange();
        }
        self.bench.peers.add_ready(PEER, address(), &self.client, ReadyConnection { socket: state, stream });
        peer
    }

    /// Lets things happen until `is_enough`, with `peer` as the node at the other end.
    fn run_until(
        &mut self,
        session: &mut Session<SimulatedKernel>,
        peer: &mut PeerEnd,
        is_enough: impl Fn(&Session<SimulatedKernel>, &PeerEnd) -> bool,
    ) {
        for _ in 0..10_000 {
            if is_enough(session, peer) {
                return;
            }
            self.bench.run(session, 1);
            if let Some(done) = self.bench.next_handshake() {
                self.bench.turn(|cx| session.on_handshake(done, cx));
            }
            peer.exchange();
        }
        panic!("it never comes to that");
    }
}

impl PeerEnd {
    fn new(config: &Arc<ServerConfig>, socket: Socket) -> Self {
        let tls = TlsConnection::accept(Arc::clone(config)).unwrap();
        Self { tls, socket, request: Vec::new() }
    }

    /// Reads the bytes of the relay, and answers its handshake.
    fn exchange(&mut self) {
        let records = std::mem::take(&mut *self.socket.state().sent.borrow_mut());
        let mut answer = Sealed::default();
        self.tls.receive(&records, &mut self.request, &mut answer).unwrap();
        self.socket.state().incoming.borrow_mut().extend(answer.bytes());
    }

    fn send(&mut self, bytes: &[u8]) {
        let mut sealed = Sealed::default();
        self.tls.write(bytes, &mut sealed).unwrap();
        self.socket.state().incoming.borrow_mut().extend(sealed.bytes());
    }

    fn has_request(&self) -> bool {
        self.request.ends_with(b"\r\n\r\n")
    }
}

fn address() -> SocketAddr {
    "127.0.0.1:7".parse().unwrap()
}

fn is_rejected(session: &Session<SimulatedKernel>) -> bool {
    matches!(session.state, State::Reject(_))
}

fn is_tunnel(session: &Session<SimulatedKernel>) -> bool {
    matches!(session.state, State::Tunnel(_))
}

#[test]
fn a_request_reaches_the_peer_by_a_pooled_connection() {
    let mut bench = PeerBench::new(5);
    let mut peer = bench.pool_connection();
    let mut session = bench.begin();
    bench.run_until(&mut session, &mut peer, |_, peer| peer.has_request());
    peer.send(ESTABLISHED);
    bench.run_until(&mut session, &mut peer, |session, _| is_tunnel(session));
    assert!(bench.bench.client_got().starts_with("HTTP/1.1 200"), "{}", bench.bench.client_got());
}

#[test]
fn a_pooled_connection_that_fails_gives_way_to_a_new_one_and_the_client_notices_nothing() {
    for (seed, errno) in [(1, None), (2, Some(libc::ECONNRESET)), (3, None), (4, Some(libc::EPIPE))] {
        let mut bench = PeerBench::new(seed);
        let pooled = bench.pool_connection();
        pooled.socket.state().peer_ended.set(true);
        pooled.socket.state().broken.set(errno);
        let mut peer = PeerEnd::new(&bench.server, bench.bench.kernel.device.clone());
        let mut session = bench.begin();
        bench.run_until(&mut session, &mut peer, |_, peer| peer.has_request());
        assert_eq!(pooled.socket.holders(), 1, "the relay has closed its end");
        peer.send(ESTABLISHED);
        bench.run_until(&mut session, &mut peer, |session, _| is_tunnel(session));
        assert!(bench.bench.client_got().starts_with("HTTP/1.1 200"), "{}", bench.bench.client_got());
        let counters = &bench.bench.shared.threads[0].counters.sessions;
        assert_eq!((counters.pooled_connections_used.get(), counters.tunnels_forwarded.get()), (1, 1));
    }
}

#[test]
fn a_silent_peers_socket_stays_open_until_its_cancelled_receive_has_ended() {
    let mut bench = PeerBench::new(5);
    let mut peer = bench.pool_connection();
    let mut session = bench.begin();
    bench.run_until(&mut session, &mut peer, |_, peer| peer.has_request());
    bench.bench.pass(LOOK_EVERY);
    bench.bench.turn(|cx| session.on_deadline(cx));
    assert_eq!(bench.bench.client_got(), "", "its kernel has taken the request, so that it is waited for");
    let forward = bench.bench.shared.config().timeouts.forward;
    bench.bench.pass(forward);
    bench.bench.turn(|cx| session.on_deadline(cx));
    assert!(bench.bench.client_got().starts_with("HTTP/1.1 504"), "{}", bench.bench.client_got());
    assert!(session.core.in_flight.has(Purpose::DownReceive));
    let is_kept =
        |session: &Session<_>| matches!(&session.state, State::Reject(state) if state.leaving.is_some());
    assert!(is_kept(&session));

    bench.run_until(&mut session, &mut peer, |session, _| !session.core.in_flight.has(Purpose::DownReceive));
    assert!(!is_kept(&session));
    assert_eq!(peer.socket.holders(), 1, "the relay has closed its end");
}

#[test]
fn a_pooled_connection_whose_path_died_costs_a_second_and_the_client_notices_nothing() {
    let mut bench = PeerBench::new(5);
    let mut pooled = bench.pool_connection();
    let mut session = bench.begin();
    bench.run_until(&mut session, &mut pooled, |_, peer| peer.has_request());
    pooled.socket.state().delivery.set(Delivery::Pending);
    assert_eq!(session.core.deadline, Some(bench.bench.turn(|cx| cx.now.after(LOOK_EVERY))));
    bench.bench.pass(LOOK_EVERY);
    let mut peer = PeerEnd::new(&bench.server, bench.bench.kernel.device.clone());
    bench.bench.turn(|cx| session.on_deadline(cx));
    bench.run_until(&mut session, &mut peer, |_, peer| peer.has_request());
    peer.send(ESTABLISHED);
    bench.run_until(&mut session, &mut peer, |session, _| is_tunnel(session));
    assert!(bench.bench.client_got().starts_with("HTTP/1.1 200"), "{}", bench.bench.client_got());
    assert_eq!(bench.bench.shared.peer_health.hanging(), 0, "the peer is well");
}

#[test]
fn a_peer_that_does_not_finish_a_handshake_is_left_out_for_others() {
    let mut bench = PeerBench::new(5);
    let mut session = bench.begin();
    for _ in 0..2 {
        bench.bench.run(&mut session, 5);
        bench.bench.pass(LOOK_EVERY);
        bench.bench.turn(|cx| session.on_deadline(cx));
    }
    while let Some(done) = bench.bench.next_handshake() {
        bench.bench.turn(|cx| session.on_handshake(done, cx));
    }
    bench.bench.pass(OPENING_TIME);
    bench.bench.turn(|cx| session.on_deadline(cx));
    assert!(bench.bench.client_got().starts_with("HTTP/1.1 504"), "{}", bench.bench.client_got());
    assert!(bench.bench.shared.peer_health.is_hanging(PEER));
}

#[test]
fn a_peers_word_that_the_device_is_disputed_reaches_the_client_unchanged() {
    let mut bench = PeerBench::new(5);
    let mut peer = bench.pool_connection();
    let mut session = bench.begin();
    bench.run_until(&mut session, &mut peer, |_, peer| peer.has_request());
    peer.send(Reply::DeviceDisputed.bytes(HttpVersion::Http11));
    bench.run_until(&mut session, &mut peer, |session, _| is_rejected(session));
    let reply = bench.bench.client_got();
    assert!(reply.contains("Sluicegate-Reason: device-disputed\r\nRetry-After: 5\r\n"), "{reply}");
    let refusals = &bench.bench.shared.threads[0].counters.refusals;
    let label = RefusalLabel { reply: Reply::DeviceDisputed, cause: Cause::RefusedByNode };
    assert_eq!(refusals.get(label), 1);
}

#[test]
fn a_device_that_becomes_disputed_while_its_peer_is_asked_is_refused() {
    let mut bench = PeerBench::new(5);
    let mut peer = bench.pool_connection();
    let mut session = bench.begin();
    bench.run_until(&mut session, &mut peer, |_, peer| peer.has_request());
    let at_peer = Device { node: Some(PEER.into()), disputed: true, ..device() };
    bench.bench.shared.authority.publish(view_of(true, at_peer));
    bench.bench.recheck(&mut session);
    let reply = bench.bench.client_got();
    assert!(reply.contains("Sluicegate-Reason: device-disputed"), "{reply}");
}
