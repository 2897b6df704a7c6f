//! Idle connections to peers, made before they are needed: handing a request on then takes one round trip
//! instead of three.
//!
//! Each engine thread has a pool of its own, for the peers that it handed requests to recently. A connection
//! is used once, since a tunnel takes all of it. The worker brings completions and calls [`PeerPool::tend`] in
//! its turns.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;

use super::kernel::io::retrying;
use super::kernel::{Kernel, SocketOperation};
use super::timers::Tick;
use super::tls::handshake_pool::{HandshakeDone, HandshakeOwner, HandshakePool};
use super::tls::stream::TlsStream;
use super::user_data::{PeerStep, UserData};
use crate::wire::TlsConnection;

pub(super) struct PeerPool<K: Kernel> {
    /// Connections to keep ready for each peer.
    wanted_each: usize,
    peers: HashMap<Box<str>, PooledPeer>,
    places: Vec<PoolPlace<K>>,
    free: Vec<u32>,
}

/// A connection whose handshake is over.
pub(super) struct ReadyConnection<K: Kernel> {
    pub socket: K::Socket,
    pub stream: Box<TlsStream>,
}

/// The parts of its thread that the pool needs to go on.
pub(super) struct PoolCx<'a, K> {
    pub kernel: &'a mut K,
    pub handshakes: &'a mut HandshakePool,
    pub now: Tick,
}

/// A peer that a request was handed to.
struct PooledPeer {
    address: SocketAddr,
    tls: Arc<ClientConfig>,
    /// Time of the last request.
    asked_at: Tick,
    /// No new connection is made before this time, because the last one failed.
    not_before: Tick,
    /// Places of its connections, the oldest first.
    connections: VecDeque<u32>,
}

/// A place for one connection, whose number is in the user data of its operations. It is used again only once
/// nothing of its last connection is in flight.
struct PoolPlace<K: Kernel> {
    connection: Option<IdleConnection<K>>,
    /// The socket of a connection that is gone, while an operation of it may still name its descriptor.
    leaving: Option<K::Socket>,
    in_flight: usize,
}

/// A connection that was taken out of its place. The place keeps the socket.
struct Removed {
    peer: Box<str>,
    stream: Option<Box<TlsStream>>,
}

struct IdleConnection<K: Kernel> {
    peer: Box<str>,
    socket: K::Socket,
    /// `None` while a handshake thread has it.
    stream: Option<Box<TlsStream>>,
    made_at: Tick,
}

impl<K: Kernel> PeerPool<K> {
    pub fn new(wanted_each: usize) -> Self {
        Self { wanted_each, peers: HashMap::new(), places: Vec::new(), free: Vec::new() }
    }

    /// Keeps `wanted_each` connections ready for each peer from now on.
    pub fn set_wanted_each(&mut self, wanted_each: usize) {
        self.wanted_each = wanted_each;
    }

    /// Takes a ready connection to the peer at `address`, where there is one. From now on the pool keeps some
    /// ready for this peer.
    pub fn take(
        &mut self,
        name: &str,
        address: SocketAddr,
        tls: &Arc<ClientConfig>,
        cx: &mut PoolCx<'_, K>,
    ) -> Option<ReadyConnection<K>> {
        if self.wanted_each == 0 {
            return None;
        }
        let known =
            self.peers.get_mut(name).filter(|known| known.address == address && Arc::ptr_eq(&known.tls, tls));
        let Some(known) = known else {
            self.forget(name, cx);
            if self.peers.len() < PEERS_MAX {
                let (address, tls) = (address, Arc::clone(tls));
                let (asked_at, not_before) = (cx.now, cx.now);
                let peer = PooledPeer { address, tls, asked_at, not_before, connections: VecDeque::new() };
                self.peers.insert(name.into(), peer);
            }
            return None;
        };
        known.asked_at = cx.now;
        let is_ready = |place: &&u32| {
            let connection = self.places[**place as usize].connection.as_ref();
            connection
                .and_then(|connection| connection.stream.as_ref())
                .is_some_and(|stream| stream.is_open())
        };
        let place = known.connections.iter().find(is_ready).copied()?;
        let pooled = &self.places[place as usize].connection.as_ref()?.socket;
        // Its watch may still be queued under the pooled descriptor, which the session must not close.
        let socket = cx.kernel.duplicate(pooled).ok()?;
        let stream = self.remove(place, cx)?.stream?;
        Some(ReadyConnection { socket, stream })
    }

    /// Runs `act`. A panic in it drops every connection of the pool, and is nobody else's.
    pub fn guarded<T>(
        &mut self,
        cx: &mut PoolCx<'_, K>,
        act: impl FnOnce(&mut Self, &mut PoolCx<'_, K>) -> T,
    ) -> Option<T> {
        let acted = catch_unwind(AssertUnwindSafe(|| act(self, cx)));
        if acted.is_err() {
            tracing::error!(
                "the pool of connections to peers has panicked, and begins anew; please report it"
            );
            self.clear(cx);
        }
        acted.ok()
    }

    /// Drops the ready connections to a peer: the path of one has died, and the others lead the same way.
    pub fn distrust(&mut self, name: &str, cx: &mut PoolCx<'_, K>) {
        let Some(peer) = self.peers.get(name) else { return };
        for place in peer.connections.clone() {
            self.remove(place, cx);
        }
    }

    fn clear(&mut self, cx: &mut PoolCx<'_, K>) {
        for place in 0..self.places.len() as u32 {
            self.remove(place, cx);
        }
        self.peers.clear();
    }

    /// Adds a ready connection, as if the pool had made it.
    #[cfg(test)]
    pub fn add_ready(
        &mut self,
        name: &str,
        address: SocketAddr,
        tls: &Arc<ClientConfig>,
        ready: ReadyConnection<K>,
    ) {
        let place = self.places.len() as u32;
        let ReadyConnection { socket, stream } = ready;
        let (stream, made_at) = (Some(stream), Tick(0));
        let connection = Some(IdleConnection { peer: name.into(), socket, stream, made_at });
        self.places.push(PoolPlace { connection, leaving: None, in_flight: 0 });
        let (tls, connections) = (Arc::clone(tls), VecDeque::from([place]));
        let peer = PooledPeer { address, tls, asked_at: Tick(0), not_before: Tick(0), connections };
        self.peers.insert(name.into(), peer);
    }

    /// Makes missing connections and drops old ones. Returns the time of the next call, where nothing happens
    /// before.
    pub fn tend(&mut self, cx: &mut PoolCx<'_, K>) -> Option<Tick> {
        let now = cx.now;
        let gone: Vec<Box<str>> = self
            .peers
            .iter()
            .filter(|(_, peer)| now.0 >= peer.asked_at.0 + millis(WANTED_FOR))
            .map(|(name, _)| name.clone())
            .collect();
        for name in gone {
            self.forget(&name, cx);
        }
        let mut old = Vec::new();
        let mut missing = Vec::new();
        for (name, peer) in &self.peers {
            let is_old = |place: &&u32| {
                let connection = self.places[**place as usize].connection.as_ref();
                connection.is_some_and(|connection| now.0 >= connection.made_at.0 + millis(KEPT_FOR))
            };
            old.extend(peer.connections.iter().filter(is_old).copied());
            if now >= peer.not_before {
                let count = self.wanted_each.saturating_sub(peer.connections.len());
                missing.extend(std::iter::repeat_n(name.clone(), count));
            }
        }
        for place in old {
            self.remove(place, cx);
        }
        for name in missing {
            self.make(&name, cx);
        }
        (!self.peers.is_empty()).then_some(Tick(now.0 + millis(TEND_EVERY)))
    }

    /// Takes the result of an operation of the connection at `place`.
    pub fn complete(&mut self, place: u32, step: PeerStep, result: i32, cx: &mut PoolCx<'_, K>) {
        let Some(held) = self.places.get_mut(place as usize) else { return };
        held.in_flight = held.in_flight.saturating_sub(1);
        let Some(connection) = &mut held.connection else { return self.release(place) };
        match step {
            PeerStep::Connect if result == 0 => {
                let first = connection.stream.take().map(|stream| (stream, Vec::new()));
                self.start_handshake(place, first, cx);
            }
            // The peer has sent something: a step of the handshake, or, once that is over, its end.
            PeerStep::Readable if result > 0 => {
                let mut records = vec![0; RECORDS_BYTES];
                let received = retrying(|| cx.kernel.receive(&connection.socket, &mut records));
                let received = received.ok().flatten().unwrap_or(0);
                let is_open = connection.stream.as_ref().is_some_and(|stream| stream.is_open());
                if received == 0 || is_open && !connection.accept_tickets(&records[..received]) {
                    return self.fail(place, cx);
                }
                if is_open {
                    return self.watch(place, cx);
                }
                records.truncate(received);
                let step = connection.stream.take().map(|stream| (stream, records));
                self.start_handshake(place, step, cx);
            }
            _ => self.fail(place, cx),
        }
    }

    /// Takes the result of a step of the handshake of the connection at `place`.
    pub fn on_handshake(&mut self, place: u32, done: HandshakeDone, cx: &mut PoolCx<'_, K>) {
        let Some(held) = self.places.get_mut(place as usize) else { return };
        held.in_flight = held.in_flight.saturating_sub(1);
        let Some(connection) = &mut held.connection else { return self.release(place) };
        let HandshakeDone { mut stream, outcome, .. } = done;
        let is_sent = stream.outgoing().flush(cx.kernel, &connection.socket).outcome.is_ok();
        let is_sent = is_sent && stream.outgoing().is_empty();
        connection.stream = Some(stream);
        if outcome.is_err() || !is_sent { self.fail(place, cx) } else { self.watch(place, cx) }
    }

    fn make(&mut self, name: &str, cx: &mut PoolCx<'_, K>) {
        let Some(peer) = self.peers.get_mut(name) else { return };
        let server = ServerName::try_from(name.to_owned()).ok();
        let tls = server.and_then(|server| TlsConnection::connect(Arc::clone(&peer.tls), server).ok());
        let (Some(tls), Ok(socket)) = (tls, cx.kernel.open_peer_socket(peer.address)) else {
            peer.not_before = Tick(cx.now.0 + millis(RETRY_AFTER));
            return;
        };
        let place = self.free.pop().unwrap_or_else(|| {
            self.places.push(PoolPlace { connection: None, leaving: None, in_flight: 0 });
            self.places.len() as u32 - 1
        });
        let user_data = UserData::PeerConnection { place, step: PeerStep::Connect };
        cx.kernel.submit(user_data, SocketOperation::Connect(&socket, peer.address));
        peer.connections.push_back(place);
        let stream = Some(Box::new(TlsStream::new(tls)));
        let connection = IdleConnection { peer: name.into(), socket, stream, made_at: cx.now };
        self.places[place as usize] = PoolPlace { connection: Some(connection), leaving: None, in_flight: 1 };
    }

    fn start_handshake(
        &mut self,
        place: u32,
        step: Option<(Box<TlsStream>, Vec<u8>)>,
        cx: &mut PoolCx<'_, K>,
    ) {
        let owner = HandshakeOwner::PeerConnection(place);
        let started = step.map(|(stream, records)| cx.handshakes.start(owner, stream, records));
        match started {
            Some(Ok(())) => self.places[place as usize].in_flight += 1,
            _ => self.fail(place, cx),
        }
    }

    fn watch(&mut self, place: u32, cx: &mut PoolCx<'_, K>) {
        let held = &mut self.places[place as usize];
        let Some(connection) = &held.connection else { return };
        let user_data = UserData::PeerConnection { place, step: PeerStep::Readable };
        cx.kernel.submit(user_data, SocketOperation::PollReadable(&connection.socket));
        held.in_flight += 1;
    }

    /// Drops a connection that failed or ended; the next is not made at once.
    fn fail(&mut self, place: u32, cx: &mut PoolCx<'_, K>) {
        if let Some(removed) = self.remove(place, cx)
            && let Some(peer) = self.peers.get_mut(&removed.peer)
        {
            peer.not_before = Tick(cx.now.0 + millis(RETRY_AFTER));
        }
    }

    fn forget(&mut self, name: &str, cx: &mut PoolCx<'_, K>) {
        let Some(peer) = self.peers.get(name) else { return };
        for place in peer.connections.clone() {
            self.remove(place, cx);
        }
        self.peers.remove(name);
    }

    /// Takes the connection out of its place. The place is free, and the socket closed, once nothing of it is in flight.
    fn remove(&mut self, place: u32, cx: &mut PoolCx<'_, K>) -> Option<Removed> {
        let held = self.places.get_mut(place as usize)?;
        let IdleConnection { peer, socket, stream, .. } = held.connection.take()?;
        if held.in_flight > 0 {
            held.leaving = Some(socket);
            for step in [PeerStep::Connect, PeerStep::Readable] {
                cx.kernel.cancel(UserData::CancelOwn, UserData::PeerConnection { place, step });
            }
        }
        if let Some(pooled) = self.peers.get_mut(&peer) {
            pooled.connections.retain(|other| *other != place);
        }
        self.release(place);
        Some(Removed { peer, stream })
    }

    fn release(&mut self, place: u32) {
        let held = &mut self.places[place as usize];
        if held.connection.is_none() && held.in_flight == 0 {
            held.leaving = None;
            if !self.free.contains(&place) {
                self.free.push(place);
            }
        }
    }
}

impl<K: Kernel> IdleConnection<K> {
    /// Reads `records` that came after the handshake: session tickets. Returns whether the connection can still
    /// be used.
    fn accept_tickets(&mut self, records: &[u8]) -> bool {
        let mut plain = Vec::new();
        let Some(stream) = &mut self.stream else { return false };
        stream.receive(records, &mut plain).is_ok() && plain.is_empty() && !stream.has_ended()
    }
}

fn millis(duration: Duration) -> u64 {
    duration.as_millis() as u64
}

/// Peers that one thread keeps connections to.
const PEERS_MAX: usize = 256;

/// Time after the last request to a peer during which the pool keeps connections to it.
const WANTED_FOR: Duration = Duration::from_secs(300);

/// Age at which a connection is dropped: less than the peer waits for a request.
const KEPT_FOR: Duration = Duration::from_secs(40);

/// Pause after a connection that failed.
const RETRY_AFTER: Duration = Duration::from_secs(1);

const TEND_EVERY: Duration = Duration::from_secs(1);

/// Bytes that one read takes of a handshake; a chain of certificates has a few thousand.
const RECORDS_BYTES: usize = 16 * 1024;

#[cfg(test)]
mod tests {
    use rustls::RootCertStore;
    use rustls::crypto::ring::default_provider;

    use super::*;
    use crate::engine::kernel::simulated::SimulatedKernel;

    const PEER: &str = "other-node";

    /// A pool with its thread, and connections that do not come about by themselves.
    struct PoolBench {
        pool: PeerPool<SimulatedKernel>,
        kernel: SimulatedKernel,
        handshakes: HandshakePool,
        tls: Arc<ClientConfig>,
    }

    impl PoolBench {
        fn new() -> Self {
            let tls = ClientConfig::builder_with_provider(Arc::new(default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_root_certificates(RootCertStore::empty())
                .with_no_client_auth();
            let (handshakes, _jobs) = HandshakePool::for_tests();
            let (pool, kernel) = (PeerPool::new(2), SimulatedKernel::new(5));
            Self { pool, kernel, handshakes, tls: Arc::new(tls) }
        }

        fn act<T>(
            &mut self,
            now: Duration,
            act: impl FnOnce(&mut PeerPool<SimulatedKernel>, &mut PoolCx<'_, SimulatedKernel>) -> T,
        ) -> T {
            let now = Tick(millis(now));
            let mut cx = PoolCx { kernel: &mut self.kernel, handshakes: &mut self.handshakes, now };
            act(&mut self.pool, &mut cx)
        }

        /// A request for the peer at `now`; whether a connection was ready.
        fn request(&mut self, now: Duration) -> bool {
            let (address, tls) = ("127.0.0.1:7".parse().unwrap(), Arc::clone(&self.tls));
            self.act(now, |pool, cx| pool.take(PEER, address, &tls, cx)).is_some()
        }

        /// Has the connects of these places end, after they were cancelled.
        fn end_connects(&mut self, places: [u32; 2]) {
            for place in places {
                let cancelled = -libc::ECANCELED;
                self.act(Duration::ZERO, |pool, cx| pool.complete(place, PeerStep::Connect, cancelled, cx));
            }
        }

        /// Sockets that the pool has open.
        fn sockets(&self) -> usize {
            self.kernel.device.holders() - 1
        }
    }

    #[test]
    fn connections_are_made_after_the_first_request_and_kept_until_none_has_come_for_a_while() {
        let mut bench = PoolBench::new();
        assert_eq!(bench.act(Duration::ZERO, |pool, cx| pool.tend(cx)), None);
        assert!(!bench.request(Duration::ZERO), "nothing is ready yet");
        assert!(bench.act(Duration::ZERO, |pool, cx| pool.tend(cx)).is_some());
        assert_eq!(bench.sockets(), 2);

        bench.act(KEPT_FOR, |pool, cx| pool.tend(cx));
        bench.end_connects([0, 1]);
        assert_eq!(bench.sockets(), 0, "both are too old");
        bench.act(KEPT_FOR, |pool, cx| pool.tend(cx));
        assert_eq!(bench.sockets(), 2, "and replaced");

        assert_eq!(bench.act(WANTED_FOR, |pool, cx| pool.tend(cx)), None);
        bench.end_connects([0, 1]);
        assert_eq!(bench.sockets(), 0);
    }

    #[test]
    fn connections_are_kept_to_so_many_peers_and_no_more_however_many_are_named() {
        let mut bench = PoolBench::new();
        let (address, tls) = ("127.0.0.1:7".parse().unwrap(), Arc::clone(&bench.tls));
        for number in 0..2 * PEERS_MAX {
            let name = format!("node-{number}");
            bench.act(Duration::ZERO, |pool, cx| assert!(pool.take(&name, address, &tls, cx).is_none()));
        }
        assert_eq!(bench.pool.peers.len(), PEERS_MAX);
    }

    #[test]
    fn a_socket_stays_open_until_nothing_of_its_connection_is_in_flight() {
        let mut bench = PoolBench::new();
        bench.request(Duration::ZERO);
        bench.act(Duration::ZERO, |pool, cx| pool.tend(cx));
        assert_eq!(bench.sockets(), 2);
        bench.act(Duration::ZERO, |pool, cx| pool.clear(cx));
        assert_eq!(bench.sockets(), 2, "their connects may still be queued under these descriptors");
        bench.end_connects([0, 1]);
        assert_eq!(bench.sockets(), 0);
    }

    #[test]
    fn a_panic_in_the_pool_ends_its_connections_and_the_next_request_begins_anew() {
        let mut bench = PoolBench::new();
        bench.request(Duration::ZERO);
        bench.act(Duration::ZERO, |pool, cx| pool.tend(cx));
        let panicked = bench.act(Duration::ZERO, |pool, cx| pool.guarded(cx, |_, _| panic!("a defect")));
        assert_eq!(panicked, None::<()>);
        assert!(!bench.request(Duration::ZERO));
        bench.act(Duration::ZERO, |pool, cx| pool.tend(cx));
        assert_eq!(bench.sockets(), 2 + 2, "two that leave, and two new ones");
    }

    #[test]
    fn a_connection_that_fails_is_not_made_again_at_once_and_its_place_waits_for_its_operation() {
        let mut bench = PoolBench::new();
        bench.request(Duration::ZERO);
        bench.act(Duration::ZERO, |pool, cx| pool.tend(cx));
        let refused = -libc::ECONNREFUSED;
        bench.act(Duration::ZERO, |pool, cx| pool.complete(0, PeerStep::Connect, refused, cx));
        bench.act(Duration::ZERO, |pool, cx| pool.tend(cx));
        assert_eq!(bench.sockets(), 1, "the peer has a pause");
        assert_eq!(bench.pool.free, [0]);

        bench.act(RETRY_AFTER, |pool, cx| pool.tend(cx));
        assert_eq!(bench.sockets(), 2);
        bench.act(WANTED_FOR, |pool, cx| pool.tend(cx));
        assert_eq!((bench.sockets(), bench.pool.free.len()), (2, 0), "both connects are in flight");
        bench.end_connects([0, 1]);
        assert_eq!((bench.sockets(), bench.pool.free.len()), (0, 2));
    }
}
