//! One client connection, from accept to close: what it waits for, and what a completion means to it.
//!
//! The stages live in files of their own: `handshake` reads the head and decides, `dial` reaches the
//! device, `tunnel` forwards, `refusal` tells a client no. Nothing here waits, and nothing is closed
//! while an operation on it is in flight.

mod connect;
mod identity;
mod reject;
mod request;
#[cfg(test)]
mod tests;
mod tls_handshake;
mod tunnel;
mod via_peer;
mod view;

use std::net::SocketAddr;
use std::sync::Arc;

use super::forward::{Direction, Flow};
use super::kernel::io::{Io, Outcome};
use super::kernel::{Kernel, SocketOperation};
use super::limits::{SessionPermit, TunnelPermit};
use super::timers::Tick;
use crate::authz::{Decision, DeviceId, Generation, GrantId, PrincipalId, Query, Refusal, Route, UnixMillis};
use crate::engine::tls::ktls::KeptBy;
use crate::engine::tls::stream::TlsStream;
use crate::engine::turn::TurnCx as Turn;
use crate::engine::user_data::{InFlight, Purpose, Slot};
use crate::telemetry::{Cause, SessionFacts};
use crate::wire::{HttpVersion, Token};
use tls_handshake::Securing;
use via_peer::Handing;

pub(super) struct Session<K: Kernel> {
    /// Unique on this node as long as it runs.
    pub id: u64,
    slot: Slot,
    /// Which of the node's listeners it came in by.
    listener: usize,
    client: K::Socket,
    /// Present once the handshake of a client that speaks TLS is over.
    client_tls: Option<Box<TlsStream>>,
    /// Present from the dial on: of the device, or of the node that holds it.
    device: Option<K::Socket>,
    /// Present where that is a node.
    device_tls: Option<Box<TlsStream>>,
    stage: Stage<K::Pipe>,
    in_flight: InFlight,
    client_address: Option<SocketAddr>,
    accepted_at_us: u64,
    proxy_header: ProxyHeader,
    /// What the client asked for; present once its head was read.
    query: Option<Query>,
    /// What allowed it; present from the decision on.
    rights: Option<Rights>,
    /// The snapshot that decided.
    generation: Option<Generation>,
    deadline: Option<Tick>,
    /// The node's place for it; `None` for a client that is only told that the node is full.
    place: Option<SessionPermit>,
    permit: Option<TunnelPermit>,
}

/// State of the PROXY header in front of a session's first bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ProxyHeader {
    /// The client speaks: it needs no header, or its header was read.
    NotExpected,
    /// The session waits for the header.
    Expected,
    /// The header had the command LOCAL: a load balancer, or another node, speaks for itself.
    LocalCommand,
}

/// The rows that a permission rests on.
#[derive(Clone, Copy)]
struct Rights {
    principal: PrincipalId,
    grant: GrantId,
    device: DeviceId,
}

impl Rights {
    fn of(route: &Route) -> Self {
        Self { principal: route.principal, grant: route.grant, device: route.device }
    }
}

/// A connection as it comes from a listener.
pub(super) struct Accepted<S> {
    pub client: S,
    /// `None` where the client is gone already.
    pub address: Option<SocketAddr>,
    /// The listener's place in the config.
    pub listener: usize,
    /// `None` where the node is full, and the client is only to be told so.
    pub place: Option<SessionPermit>,
    /// When, by the thread's clock.
    pub at_us: u64,
}

/// What the session is doing.
enum Stage<P> {
    /// Shaking hands for TLS.
    Securing(Securing),
    /// Collecting the request's head.
    Head(Vec<u8>),
    /// Connecting to the device.
    Dial(Box<Dial>),
    /// Handing the request to the node that holds the device.
    Handing(Box<Handing>),
    Tunnel(Box<Tunnel<P>>),
    /// Told no; waiting for the client to read it, so that closing does not destroy the reply.
    Refused {
        discarded_bytes: usize,
    },
    /// Over; waiting for what is still in flight.
    Ended(Option<Box<Tunnel<P>>>),
}

/// A decided request, and what the client sent behind it.
struct Dial {
    version: HttpVersion,
    early: Vec<u8>,
    /// For a node that the request may be handed to.
    token: Option<Token>,
    /// The nodes that it has come by.
    hops: Vec<Box<str>>,
    /// The node that held the device by the first look does not.
    is_second_look: bool,
    /// A connection that was made before has failed.
    is_past_spares: bool,
    expires_at: Option<UnixMillis>,
    /// By the thread's clock.
    began_us: u64,
}

struct Tunnel<P> {
    up: Flow<P>,
    down: Flow<P>,
    kept_by: KeptBy,
    /// Of the last byte in either direction.
    active_at: Tick,
    /// When to do what only a tunnel that lasts is worth; absent once it is done.
    settle_at: Option<Tick>,
    expires_at: Option<UnixMillis>,
    /// The right to it is gone, which may be a mistake of the snapshot in force: it ends at this time,
    /// unless that is undone.
    reprieved_until: Option<Tick>,
    handshake_us: u64,
}

impl<K: Kernel> Session<K> {
    /// Begins with a client that was just accepted; its head is asked for.
    pub fn begin(id: u64, slot: Slot, accepted: Accepted<K::Socket>, turn: &mut Turn<'_, K>) -> Self {
        let Accepted { client, address, listener, place, at_us } = accepted;
        let mut session = Self {
            id,
            slot,
            listener,
            client,
            client_tls: None,
            device: None,
            device_tls: None,
            stage: Stage::Head(Vec::new()),
            in_flight: InFlight::default(),
            client_address: address,
            accepted_at_us: at_us,
            proxy_header: match turn.shared.config.listen[listener].has_proxy_header() {
                true => ProxyHeader::Expected,
                false => ProxyHeader::NotExpected,
            },
            query: None,
            rights: None,
            generation: None,
            deadline: None,
            place,
            permit: None,
        };
        turn.counters.sessions.accepted.add(1);
        turn.counters.sessions.active.add(1);
        let tls = turn.shared.tls(listener);
        if session.is_told_full() && tls.is_none() {
            session.refuse_full_node(turn);
        } else if session.comes_past_proxy(turn) {
            session.refuse_stranger(turn);
        } else {
            session.expect_client(tls, turn);
        }
        session
    }

    /// Runs `act` so that a defect in it ends this session alone, and not the thread with all its tunnels.
    pub fn guarded(&mut self, turn: &mut Turn<'_, K>, act: impl FnOnce(&mut Self, &mut Turn<'_, K>)) {
        let acted = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| act(self, turn)));
        if acted.is_err() {
            tracing::error!(session = self.id, "a session ended by a panic; please report it");
            self.break_tunnel(Cause::NodePanic, turn);
            self.end(turn);
        }
    }

    /// An operation of this session has completed.
    pub fn complete(&mut self, purpose: Purpose, outcome: Outcome, turn: &mut Turn<'_, K>) {
        if !outcome.more {
            self.in_flight.end(purpose);
        }
        match (&self.stage, purpose) {
            (Stage::Securing(_), Purpose::Head) => self.on_handshake_bytes(outcome, turn),
            (Stage::Head(_), Purpose::Head) => self.on_head_bytes(outcome, turn),
            (Stage::Dial(_), Purpose::Connect) => self.on_connected(outcome.result, turn),
            (Stage::Handing(_), Purpose::Connect) => self.on_node_connected(outcome.result, turn),
            (Stage::Handing(_), Purpose::DownReceive) => self.on_node_bytes(outcome, turn),
            (Stage::Tunnel(_), purpose) if Direction::of(purpose).is_some() => {
                self.on_forwarding(purpose, outcome, turn);
            }
            (Stage::Refused { .. }, Purpose::Head) => self.on_discarded(outcome, turn),
            // A refused session has no use for the device that answered late.
            (Stage::Refused { .. }, Purpose::Connect) => self.device = None,
            // A cancellation's own result, or the end of something that no stage waits for any more.
            _ => give_back(outcome, turn.kernel),
        }
    }

    /// The deadline that [`Session::deadline`] told has passed.
    pub fn on_deadline(&mut self, turn: &mut Turn<'_, K>) {
        self.deadline = None;
        match &self.stage {
            // There is nothing yet by which it could be told.
            Stage::Securing(_) => self.note_lost_client(Cause::TlsTimeout, None, turn),
            Stage::Head(_) if self.is_spare_of_node(turn) => self.end(turn),
            Stage::Head(_) => self.refuse_late_head(turn),
            Stage::Dial(_) => self.refuse_silent_device(turn),
            Stage::Handing(_) => self.refuse_silent_node(turn),
            Stage::Tunnel(_) => self.on_tunnel_deadline(turn),
            Stage::Refused { .. } => self.end(turn),
            Stage::Ended(_) => {}
        }
    }

    /// The question whose answer this session rests on.
    pub fn standing_question(&self) -> Option<Query> {
        match &self.stage {
            Stage::Dial(_) | Stage::Handing(_) | Stage::Tunnel(_) => self.query,
            Stage::Securing(_) | Stage::Head(_) | Stage::Refused { .. } | Stage::Ended(_) => None,
        }
    }

    /// By the view in force, `decision` is the answer to [`Session::standing_question`].
    pub fn recheck(&mut self, decision: Decision, turn: &mut Turn<'_, K>) {
        match &self.stage {
            Stage::Dial(_) => self.recheck_dial(decision, turn),
            Stage::Handing(_) => self.recheck_handing(decision, turn),
            Stage::Tunnel(_) => self.recheck_tunnel(decision, turn),
            Stage::Securing(_) | Stage::Head(_) | Stage::Refused { .. } | Stage::Ended(_) => {}
        }
    }

    /// Goes on with what [`Session::wants_turn`] told.
    pub fn resume(&mut self, turn: &mut Turn<'_, K>) {
        if let Stage::Tunnel(_) = self.stage {
            self.resume_forwarding(turn);
        }
    }

    /// The node drains: nobody is to wait for a connection that nobody uses.
    pub fn end_spare(&mut self, turn: &mut Turn<'_, K>) {
        if self.is_spare_of_node(turn) {
            self.end(turn);
        }
    }

    /// The node stops: ends whatever this session is doing.
    pub fn stop(&mut self, turn: &mut Turn<'_, K>) {
        match &self.stage {
            Stage::Securing(_) => self.note_lost_client(Cause::NodeStopped, None, turn),
            Stage::Head(_) => self.refuse_draining(HttpVersion::default(), turn),
            Stage::Dial(dial) => {
                let version = dial.version;
                self.refuse_draining(version, turn);
            }
            Stage::Handing(handing) => {
                let version = handing.dial().version;
                self.refuse_draining(version, turn);
            }
            Stage::Tunnel(_) => self.break_tunnel(Cause::NodeStopped, turn),
            Stage::Refused { .. } | Stage::Ended(_) => {}
        }
    }

    /// Gives back what the session holds. Only once [`Session::is_over`].
    pub fn release(mut self, turn: &mut Turn<'_, K>) {
        debug_assert!(self.is_over());
        if let Stage::Ended(Some(tunnel)) = &mut self.stage {
            tunnel.up.release(turn.kernel);
            tunnel.down.release(turn.kernel);
        }
        turn.counters.sessions.active.sub(1);
    }

    /// Nothing is left to do, and nothing is in flight: the slot can be given to another session.
    pub fn is_over(&self) -> bool {
        matches!(self.stage, Stage::Ended(_)) && self.in_flight.is_empty()
    }

    /// It has no place of its own and is only told that the node is full.
    pub fn is_told_full(&self) -> bool {
        self.place.is_none()
    }

    /// When to call [`Session::on_deadline`], unless something happens before.
    pub fn deadline(&self) -> Option<Tick> {
        self.deadline
    }

    pub fn wants_turn(&self) -> bool {
        matches!(&self.stage, Stage::Tunnel(tunnel) if tunnel.up.wants_turn() || tunnel.down.wants_turn())
    }

    /// Nothing more is done for this session; its sockets close once nothing is in flight on them.
    fn end(&mut self, turn: &mut Turn<'_, K>) {
        let tunnel = match std::mem::replace(&mut self.stage, Stage::Ended(None)) {
            Stage::Tunnel(tunnel) | Stage::Ended(Some(tunnel)) => Some(tunnel),
            _ => None,
        };
        self.stage = Stage::Ended(tunnel);
        self.deadline = None;
        self.permit = None;
        let mut io = io(&mut self.in_flight, self.slot, turn);
        for purpose in io.in_flight.iter() {
            io.cancel(purpose);
        }
    }

    /// Puts the session's question to the view in force.
    fn decide(&self, turn: &Turn<'_, K>) -> Decision {
        let nothing_asked = Query { subject: None, device: None, port: 0 };
        turn.view.decide(self.query.as_ref().unwrap_or(&nothing_asked), turn.now.wall)
    }

    /// The node itself asks, or another node for itself, with a token that nobody holds.
    fn is_probe(&self, turn: &Turn<'_, K>) -> bool {
        let is_nodes_own = self.proxy_header == ProxyHeader::LocalCommand && self.comes_from_node(turn);
        is_nodes_own || turn.shared.self_probe.asks(self.query.and_then(|query| query.subject))
    }

    /// Where the node as its own client wants to be handed to.
    fn probed_node(&self, turn: &Turn<'_, K>) -> Option<Arc<str>> {
        turn.shared.self_probe.node(self.query?.subject)
    }

    /// Whether what was in force before would allow what `refusal` refuses, with no revocation to explain it.
    fn is_regression(&self, refusal: Refusal, turn: &Turn<'_, K>) -> bool {
        let query = self.query.as_ref();
        query.is_some_and(|query| turn.decision_log.note_regression(turn.view, query, refusal, turn.now.wall))
    }

    fn was_allowed_before(&self, turn: &Turn<'_, K>) -> bool {
        self.query.as_ref().is_some_and(|query| turn.view.allowed_before(query, turn.now.wall).is_some())
    }

    /// What the audit log says of this session.
    fn facts(&self) -> SessionFacts {
        SessionFacts {
            session: self.id,
            client: self.client_address,
            principal: self.rights.map(|rights| rights.principal),
            credential: self
                .query
                .and_then(|query| query.subject)
                .map(|subject| subject.key().credential_id()),
            grant: self.rights.map(|rights| rights.grant),
            device: self.rights.map(|rights| rights.device),
            uuid: self.query.and_then(|query| query.device),
            port: self.query.map(|query| query.port),
            generation: self.generation,
        }
    }

    fn submit_on_client(&mut self, purpose: Purpose, turn: &mut Turn<'_, K>) {
        let mut io = io(&mut self.in_flight, self.slot, turn);
        io.submit(purpose, SocketOperation::Receive(&self.client));
    }
}

/// What the session in `slot` may queue in this turn.
fn io<'a, K: Kernel>(in_flight: &'a mut InFlight, slot: Slot, turn: &'a mut Turn<'_, K>) -> Io<'a, K> {
    turn.io(in_flight, slot)
}

/// Returns the buffer of a completion that nobody reads.
fn give_back<K: Kernel>(outcome: Outcome, kernel: &mut K) {
    outcome.give_back(kernel);
}
