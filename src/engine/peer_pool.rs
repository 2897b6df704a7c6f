//! Connections to other nodes that are made before they are needed, so that handing a request on takes one round
//! trip and not three.
//!
//! Each engine thread has its own, for the nodes that it has handed requests to of late. One is used once: a
//! tunnel takes all of it. The worker brings completions and calls [`PeerPool::tend`] in its turns.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;

use super::timers::Tick;
use crate::engine::tls::handshake_pool::{HandshakeDone, HandshakePool, Owner};
use crate::engine::tls::stream::TlsStream;
use crate::engine::user_data::{PeerStep, UserData};
use crate::sys::ring::{Operation, Ring};
use crate::sys::socket;
use crate::wire::TlsConnection;

pub(super) struct PeerPool {
    /// Ready ones for each node.
    wanted_each: usize,
    nodes: HashMap<Box<str>, Peer>,
    places: Vec<Place>,
    free: Vec<u32>,
}

/// A node that was handed a request.
struct Peer {
    address: SocketAddr,
    tls: Arc<ClientConfig>,
    /// When it last was.
    asked_at: Tick,
    /// No new connection before that; the last did not come about.
    not_before: Tick,
    /// Places of its spares, the oldest first.
    spares: VecDeque<u32>,
}

/// What a spare's operations know it by. Taken again only once nothing of its last spare is in flight.
#[derive(Default)]
struct Place {
    spare: Option<Spare>,
    in_flight: usize,
}

struct Spare {
    node: Box<str>,
    socket: OwnedFd,
    /// `None` while a step of its handshake is being taken.
    secured: Option<Box<TlsStream>>,
    made_at: Tick,
}

/// What a spare needs of the thread to go on.
pub(super) struct Means<'a> {
    pub ring: &'a mut Ring,
    pub desk: &'a mut HandshakePool,
    pub now: Tick,
}

impl PeerPool {
    pub fn new(wanted_each: usize) -> Self {
        Self { wanted_each, nodes: HashMap::new(), places: Vec::new(), free: Vec::new() }
    }

    /// A ready connection to the node at `address`; from now on there are to be some.
    pub fn take(
        &mut self,
        node: &str,
        address: SocketAddr,
        tls: &Arc<ClientConfig>,
        means: &mut Means<'_>,
    ) -> Option<(OwnedFd, Box<TlsStream>)> {
        if self.wanted_each == 0 {
            return None;
        }
        let known =
            self.nodes.get_mut(node).filter(|known| known.address == address && Arc::ptr_eq(&known.tls, tls));
        let Some(known) = known else {
            self.forget(node, means);
            if self.nodes.len() < NEIGHBOURS_MAX {
                let (address, tls) = (address, Arc::clone(tls));
                let (asked_at, not_before) = (means.now, means.now);
                let neighbour = Peer { address, tls, asked_at, not_before, spares: VecDeque::new() };
                self.nodes.insert(node.into(), neighbour);
            }
            return None;
        };
        known.asked_at = means.now;
        let is_ready = |place: &&u32| {
            let spare = self.places[**place as usize].spare.as_ref();
            spare.and_then(|spare| spare.secured.as_ref()).is_some_and(|secured| secured.is_open())
        };
        let place = known.spares.iter().find(is_ready).copied()?;
        let spare = self.remove(place, means)?;
        Some((spare.socket, spare.secured?))
    }

    /// Makes what is missing, and lets go of what is old. When to look again, where nothing happens before.
    pub fn tend(&mut self, means: &mut Means<'_>) -> Option<Tick> {
        let now = means.now;
        let gone: Vec<Box<str>> = self
            .nodes
            .iter()
            .filter(|(_, node)| now.0 >= node.asked_at.0 + millis(WANTED_FOR))
            .map(|(name, _)| name.clone())
            .collect();
        for name in gone {
            self.forget(&name, means);
        }
        let mut old = Vec::new();
        let mut missing = Vec::new();
        for (name, node) in &self.nodes {
            let is_old = |place: &&u32| {
                let spare = self.places[**place as usize].spare.as_ref();
                spare.is_some_and(|spare| now.0 >= spare.made_at.0 + millis(KEPT_FOR))
            };
            old.extend(node.spares.iter().filter(is_old).copied());
            if now >= node.not_before {
                let count = self.wanted_each.saturating_sub(node.spares.len());
                missing.extend(std::iter::repeat_n(name.clone(), count));
            }
        }
        for place in old {
            drop(self.remove(place, means));
        }
        for name in missing {
            self.make(&name, means);
        }
        (!self.nodes.is_empty()).then_some(Tick(now.0 + millis(LOOK_EVERY)))
    }

    /// An operation of the spare at `place` has completed.
    pub fn complete(&mut self, place: u32, step: PeerStep, result: i32, means: &mut Means<'_>) {
        let Some(held) = self.places.get_mut(place as usize) else { return };
        held.in_flight = held.in_flight.saturating_sub(1);
        let Some(spare) = &mut held.spare else { return self.release(place) };
        match step {
            PeerStep::Connect if result == 0 => {
                let first = spare.secured.take().map(|secured| (secured, Vec::new()));
                self.shake(place, first, means);
            }
            // The node has something to say: a step of the handshake, or, once that is over, its end.
            PeerStep::Readable if result > 0 => {
                let mut records = vec![0; RECORDS_BYTES];
                let received = socket::receive_now(spare.socket.as_fd(), &mut records).unwrap_or(0);
                let is_open = spare.secured.as_ref().is_some_and(|secured| secured.is_open());
                if received == 0 || is_open && !spare.tell(&records[..received]) {
                    return self.fail(place, means);
                }
                if is_open {
                    return self.watch(place, means);
                }
                records.truncate(received);
                let step = spare.secured.take().map(|secured| (secured, records));
                self.shake(place, step, means);
            }
            _ => self.fail(place, means),
        }
    }

    /// A step of a spare's handshake was taken.
    pub fn on_shaken(&mut self, place: u32, shaken: HandshakeDone, means: &mut Means<'_>) {
        let Some(held) = self.places.get_mut(place as usize) else { return };
        held.in_flight = held.in_flight.saturating_sub(1);
        let Some(spare) = &mut held.spare else { return self.release(place) };
        let HandshakeDone { mut secured, outcome, .. } = shaken;
        let is_sent = secured.outgoing().flush_to(&spare.socket).is_ok() && secured.outgoing().is_empty();
        spare.secured = Some(secured);
        if outcome.is_err() || !is_sent { self.fail(place, means) } else { self.watch(place, means) }
    }

    fn make(&mut self, name: &str, means: &mut Means<'_>) {
        let Some(node) = self.nodes.get_mut(name) else { return };
        let server = ServerName::try_from(name.to_owned()).ok();
        let tls = server.and_then(|server| TlsConnection::connect(Arc::clone(&node.tls), server).ok());
        let (Some(tls), Ok(socket)) = (tls, socket::open(node.address, None)) else {
            node.not_before = Tick(means.now.0 + millis(RETRY_AFTER));
            return;
        };
        let place = self.free.pop().unwrap_or_else(|| {
            self.places.push(Place::default());
            self.places.len() as u32 - 1
        });
        let token = UserData::PeerConnection { place, step: PeerStep::Connect };
        means
            .ring
            .push(token.into_bits(), Operation::Connect { socket: socket.as_fd(), address: node.address });
        node.spares.push_back(place);
        let secured = Some(Box::new(TlsStream::new(tls)));
        let spare = Spare { node: name.into(), socket, secured, made_at: means.now };
        self.places[place as usize] = Place { spare: Some(spare), in_flight: 1 };
    }

    fn shake(&mut self, place: u32, step: Option<(Box<TlsStream>, Vec<u8>)>, means: &mut Means<'_>) {
        let handed = step
            .map(|(secured, records)| means.desk.hand_over(Owner::PeerConnection(place), secured, records));
        match handed {
            Some(Ok(())) => self.places[place as usize].in_flight += 1,
            _ => self.fail(place, means),
        }
    }

    fn watch(&mut self, place: u32, means: &mut Means<'_>) {
        let held = &mut self.places[place as usize];
        let Some(spare) = &held.spare else { return };
        let token = UserData::PeerConnection { place, step: PeerStep::Readable };
        means.ring.push(token.into_bits(), Operation::PollReadable { fd: spare.socket.as_fd() });
        held.in_flight += 1;
    }

    /// It came to nothing, or to its end: the next try is not at once.
    fn fail(&mut self, place: u32, means: &mut Means<'_>) {
        if let Some(spare) = self.remove(place, means)
            && let Some(node) = self.nodes.get_mut(&spare.node)
        {
            node.not_before = Tick(means.now.0 + millis(RETRY_AFTER));
        }
    }

    fn forget(&mut self, name: &str, means: &mut Means<'_>) {
        let Some(node) = self.nodes.get(name) else { return };
        for place in node.spares.clone() {
            drop(self.remove(place, means));
        }
        self.nodes.remove(name);
    }

    /// Takes the spare out of its place, which is free once what it waits for has ended.
    fn remove(&mut self, place: u32, means: &mut Means<'_>) -> Option<Spare> {
        let held = self.places.get_mut(place as usize)?;
        let spare = held.spare.take()?;
        if held.in_flight > 0 {
            for step in [PeerStep::Connect, PeerStep::Readable] {
                let user_data = UserData::PeerConnection { place, step }.into_bits();
                means.ring.push(UserData::CancelOwn.into_bits(), Operation::Cancel { user_data });
            }
        }
        if let Some(node) = self.nodes.get_mut(&spare.node) {
            node.spares.retain(|other| *other != place);
        }
        self.release(place);
        Some(spare)
    }

    fn release(&mut self, place: u32) {
        let held = &self.places[place as usize];
        if held.spare.is_none() && held.in_flight == 0 && !self.free.contains(&place) {
            self.free.push(place);
        }
    }
}

impl Spare {
    /// What a node says of itself once the handshake is over: tickets. Whether the connection can still be used.
    fn tell(&mut self, records: &[u8]) -> bool {
        let mut plain = Vec::new();
        let Some(secured) = &mut self.secured else { return false };
        secured.receive(records, &mut plain).is_ok() && plain.is_empty() && !secured.has_ended()
    }
}

fn millis(duration: Duration) -> u64 {
    duration.as_millis() as u64
}

/// Nodes that one thread keeps connections to.
const NEIGHBOURS_MAX: usize = 256;

/// How long after the last request to a node there are connections to it.
const WANTED_FOR: Duration = Duration::from_secs(300);

/// How long one is kept: less than the other node waits for a request.
const KEPT_FOR: Duration = Duration::from_secs(40);

/// After one that came to nothing.
const RETRY_AFTER: Duration = Duration::from_secs(1);

const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What one read takes of a handshake; a chain of certificates has a few thousand bytes.
const RECORDS_BYTES: usize = 16 * 1024;
