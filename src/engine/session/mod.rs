//! One client connection, from accept to close, as a state machine.
//!
//! ```text
//! accept -> TlsHandshake -> Request -> Connect --> Tunnel -> Closing
//!       \________________/       \---> ViaPeer -/
//!                                    AwaitPeer, and ask again
//! ```
//!
//! Each state has a file of its own, and owns the sockets, TLS streams, permits and buffers that it needs. An event
//! takes the state by value and returns the next one, by one of the transitions of [`State`]. Any state before the
//! tunnel may also go to `Reject`, which replies to the client, and every state to `Closing`. Nothing here waits, and
//! nothing is closed while an operation on it is in flight.

mod await_peer;
mod closing;
mod connect;
mod core;
mod identity;
mod moving;
mod peer_identity;
mod reject;
mod reply;
mod request;
#[cfg(test)]
mod tests;
mod tls_handshake;
mod tunnel;
mod via_peer;
mod view;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use ipnet::IpNet;
use rustls::ServerConfig;

use self::core::{ProxyHeader, RareParts, SessionCore};
use super::forward::Direction;
use super::kernel::Kernel;
use super::kernel::io::Outcome;
use super::limits::{HeadPermit, NoPlace, SessionPermit};
use super::timers::Tick;
use super::tls::handshake_pool::HandshakeDone;
use super::tls::transport::Endpoint;
use super::turn::TurnCx;
use super::user_data::{InFlight, Purpose, Slot};
use crate::authz::{Decision, Query, Route};
use crate::telemetry::Cause;
use crate::wire::{HttpVersion, Reply, TlsError};
use await_peer::AwaitingPeer;
use closing::Closing;
use connect::Connecting;
use reject::{Rejecting, Rejection};
use request::{ClientRequest, ReadingRequest};
use tls_handshake::TlsHandshake;
use tunnel::{Tunnel, TunnelExit, TunnelParts};
use via_peer::AskingPeer;

pub(super) struct Session<K: Kernel> {
    core: SessionCore,
    state: State<K>,
}

/// The state of a session. Each is boxed, so that an idle session is small.
enum State<K: Kernel> {
    /// The client's TLS handshake is under way.
    TlsHandshake(Box<TlsHandshake<K>>),
    /// The head of the request is being read.
    Request(Box<ReadingRequest<K>>),
    /// The device is being connected to.
    Connect(Box<Connecting<K>>),
    /// A peer, which holds the device, is asked for the tunnel.
    ViaPeer(Box<AskingPeer<K>>),
    /// A peer is asked again after a pause.
    AwaitPeer(Box<AwaitingPeer<K>>),
    /// Bytes are forwarded.
    Tunnel(Box<Tunnel<K>>),
    /// The client got a refusal, and has time to read it.
    Reject(Box<Rejecting<K>>),
    /// The session is over; operations of it are still in flight.
    Closing(Closing<K>),
}

/// A connection as it comes from a listener.
pub(super) struct Accepted<S> {
    pub client: S,
    /// `None` where the client has gone already.
    pub address: Option<SocketAddr>,
    /// The client's network, where `address` is the client's own.
    pub network: Option<IpNet>,
    /// Index of the listener in the config.
    pub listener: usize,
    /// An error where the client is over a limit, and only gets the reply that says so.
    pub place: Result<(SessionPermit, HeadPermit), NoPlace>,
    /// Time of the accept, by the thread's clock.
    pub at_us: u64,
}

/// The transitions. Each returns the state that it leads to, or the one that follows where that fails at once.
impl<K: Kernel> State<K> {
    /// Accept → Request, TlsHandshake or Reject.
    fn begin(client: K::Socket, core: &mut SessionCore, cx: &mut TurnCx<'_, K>) -> Self {
        if core.listener(cx).has_proxy_header() {
            core.proxy_header = ProxyHeader::Expected;
        }
        let tls = cx.shared.tls(core.listener as usize, cx.config);
        if let (Some(reason), None) = (core.no_place, &tls) {
            let (client, rejection) = (Endpoint::plain(client), Rejection::no_place(reason));
            return Self::reject(client, HttpVersion::default(), rejection, core, cx);
        }
        if !core.comes_past_proxy(cx) {
            return ReadingRequest::start(client, tls, core, cx);
        }
        if core.client_address.is_none() {
            core.record_lost_client(Cause::ClientClosed, None, cx);
            return Self::close_sockets(client, None, core, cx);
        }
        let detail = Some("it comes from outside the listener's proxy_from".to_owned());
        let rejection = Rejection { reply: Reply::Malformed, cause: Cause::ProxyUntrusted, detail };
        Self::reject(Endpoint::plain(client), HttpVersion::default(), rejection, core, cx)
    }

    /// Accept or Request (behind a PROXY header) → TlsHandshake. `records` are the client's first bytes.
    fn start_tls(
        client: K::Socket,
        tls: Arc<ServerConfig>,
        records: Vec<u8>,
        core: &mut SessionCore,
        cx: &mut TurnCx<'_, K>,
    ) -> Self {
        TlsHandshake::start(client, tls, records, core, cx)
    }

    /// TlsHandshake → Request, with the bytes that came behind the handshake.
    fn read_request(
        client: Endpoint<K>,
        bytes: Vec<u8>,
        core: &mut SessionCore,
        cx: &mut TurnCx<'_, K>,
    ) -> Self {
        ReadingRequest::go_on(client, bytes, core, cx)
    }

    /// Request, ViaPeer where the device has moved, or AwaitPeer → Connect, ViaPeer or Reject, by the view in force.
    fn decide(request: ClientRequest<K>, core: &mut SessionCore, cx: &mut TurnCx<'_, K>) -> Self {
        request.decide(core, cx)
    }

    /// Request → Connect.
    fn connect(
        request: ClientRequest<K>,
        route: &Route,
        core: &mut SessionCore,
        cx: &mut TurnCx<'_, K>,
    ) -> Self {
        Connecting::start(request, route, core, cx)
    }

    /// Request, or ViaPeer where a pooled connection failed → ViaPeer.
    fn ask_peer(request: ClientRequest<K>, core: &mut SessionCore, cx: &mut TurnCx<'_, K>) -> Self {
        AskingPeer::start(request, core, cx)
    }

    /// Request → ViaPeer, for the node's own probe: the peer that it names is asked, without any right.
    fn probe_peer(
        request: ClientRequest<K>,
        peer: &str,
        core: &mut SessionCore,
        cx: &mut TurnCx<'_, K>,
    ) -> Self {
        AskingPeer::ask(request, peer, None, core, cx)
    }

    /// Connect or ViaPeer → Tunnel.
    fn open_tunnel(parts: TunnelParts<K>, core: &mut SessionCore, cx: &mut TurnCx<'_, K>) -> Self {
        Tunnel::open(parts, core, cx)
    }

    /// TlsHandshake or Request → Reject.
    fn reject(
        client: Endpoint<K>,
        version: HttpVersion,
        rejection: Rejection,
        core: &mut SessionCore,
        cx: &mut TurnCx<'_, K>,
    ) -> Self {
        Rejecting::start(client, None, version, rejection, core, cx)
    }

    /// Connect or ViaPeer → Reject. `other` is the socket of the device or the peer, which gets a reset: it may be
    /// connected already, and must not take the end for that of a whole stream.
    fn reject_with(
        request: ClientRequest<K>,
        other: K::Socket,
        rejection: Rejection,
        core: &mut SessionCore,
        cx: &mut TurnCx<'_, K>,
    ) -> Self {
        cx.kernel.reset_on_close(&other);
        Rejecting::start(request.client, Some(other), request.version, rejection, core, cx)
    }

    /// TlsHandshake or Request → Reject, where TLS fails: the client gets an alert instead of a reply.
    fn fail_tls(
        client: Endpoint<K>,
        error: &TlsError,
        core: &mut SessionCore,
        cx: &mut TurnCx<'_, K>,
    ) -> Self {
        tls_handshake::record_tls_failure(error, core, cx);
        Rejecting::linger(client, None, core, cx)
    }

    /// Any state before Tunnel → Closing, because the client is gone.
    fn lose_client(
        self,
        cause: Cause,
        error: Option<io::Error>,
        core: &mut SessionCore,
        cx: &mut TurnCx<'_, K>,
    ) -> Self {
        // A load balancer without a PROXY header checks that the node answers, every second or so.
        let is_check = matches!(cause, Cause::ClientClosed | Cause::ClientError)
            && !core.listener(cx).has_proxy_header()
            && self.has_no_word();
        if is_check {
            cx.counters.sessions.balancer_checks.add(1);
        } else {
            core.record_lost_client(cause, error, cx);
        }
        self.close(core, cx)
    }

    /// The client has sent no byte of a request, nor of a TLS handshake that is under way.
    fn has_no_word(&self) -> bool {
        match self {
            Self::TlsHandshake(state) => state.has_no_word(),
            Self::Request(state) => state.has_no_word(),
            _ => false,
        }
    }

    /// Any state → Closing. Permits are given back at once. A tunnel comes by [`Tunnel::close`], which records its end.
    fn close(self, core: &mut SessionCore, cx: &mut TurnCx<'_, K>) -> Self {
        match self {
            Self::TlsHandshake(state) => Self::close_sockets(state.client, None, core, cx),
            Self::Request(state) => Self::close_sockets(state.client.socket, None, core, cx),
            Self::Connect(state) => {
                Self::close_sockets(state.request.client.socket, Some(state.device), core, cx)
            }
            Self::ViaPeer(state) => {
                let attempt = state.attempt;
                Self::close_sockets(attempt.request.client.socket, Some(attempt.socket), core, cx)
            }
            Self::AwaitPeer(state) => Self::close_sockets(state.request.client.socket, None, core, cx),
            Self::Reject(state) => Self::close_sockets(state.client.socket, state.leaving, core, cx),
            Self::Tunnel(tunnel) => Self::Closing(Closing::keep_tunnel(tunnel, core, cx)),
            Self::Closing(closing) => Self::Closing(closing.keep_on(core, cx)),
        }
    }

    /// Any state without a tunnel → Closing. `other`, of a device or a peer, gets a reset as in
    /// [`reject_with`](Self::reject_with).
    fn close_sockets(
        client: K::Socket,
        other: Option<K::Socket>,
        core: &mut SessionCore,
        cx: &mut TurnCx<'_, K>,
    ) -> Self {
        if let Some(other) = &other {
            cx.kernel.reset_on_close(other);
        }
        Self::Closing(Closing::keep_sockets(client, other, core, cx))
    }
}

/// The events.
impl<K: Kernel> Session<K> {
    /// Begins with a client that was just accepted.
    pub fn begin(id: u64, slot: Slot, accepted: Accepted<K::Socket>, cx: &mut TurnCx<'_, K>) -> Self {
        let Accepted { client, address, network: _, listener, place, at_us } = accepted;
        let no_place = place.as_ref().err().copied();
        let (permit, head) = place.ok().unzip();
        let core = SessionCore {
            id,
            slot,
            in_flight: InFlight::default(),
            listener: listener as u32,
            proxy_header: ProxyHeader::NotExpected,
            client_address: address,
            accepted_at_us: at_us,
            deadline: None,
            no_place,
            permit,
            rare: RareParts::with_head(head),
            query: None,
            rights: None,
            generation: None,
        };
        cx.counters.sessions.accepted.add(1);
        cx.count_begin(core.listener);
        let mut session = Self { core, state: State::Closing(Closing::Nothing) };
        session.guarded(cx, |session, cx| {
            session.transition(cx, |_, core, cx| State::begin(client, core, cx));
        });
        session
    }

    /// Runs `act` so that a defect in it ends this session alone, and not the thread with all its tunnels.
    pub fn guarded(&mut self, cx: &mut TurnCx<'_, K>, act: impl FnOnce(&mut Self, &mut TurnCx<'_, K>)) {
        let acted = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| act(self, cx)));
        if acted.is_err() {
            tracing::error!(session = self.core.id, "a session ended by a panic; please report it");
            self.end_after_panic(cx);
        }
    }

    /// An operation of this session has completed.
    pub fn complete(&mut self, purpose: Purpose, outcome: Outcome, cx: &mut TurnCx<'_, K>) {
        if !outcome.more {
            self.core.in_flight.end(purpose);
        }
        if let State::Tunnel(tunnel) = &mut self.state
            && let Some((direction, operation)) = Direction::of(purpose)
        {
            let forwarded = tunnel.complete(direction, operation, outcome, &mut self.core, cx);
            return self.close_tunnel(forwarded, cx);
        }
        self.transition(cx, |state, core, cx| match (state, purpose) {
            (State::TlsHandshake(state), Purpose::Head) => state.on_received(outcome, core, cx),
            (State::Request(state), Purpose::Head) => state.on_received(outcome, core, cx),
            (State::Connect(state), Purpose::Connect) => state.on_connected(outcome.result, core, cx),
            (State::ViaPeer(state), Purpose::Connect) => state.on_connected(outcome.result, core, cx),
            (State::ViaPeer(state), Purpose::DownReceive) => state.on_received(outcome, core, cx),
            (State::Reject(state), Purpose::Head) => state.on_received(outcome, core, cx),
            // The end of an operation that the state does not wait for any more, or of a cancellation.
            (state, _) => {
                outcome.give_back(cx.kernel);
                state.drop_unused(core)
            }
        });
    }

    /// A handshake thread has taken a step for this session.
    pub fn on_handshake(&mut self, done: HandshakeDone, cx: &mut TurnCx<'_, K>) {
        self.core.in_flight.end(Purpose::TlsHandshake);
        self.transition(cx, |state, core, cx| match state {
            State::TlsHandshake(state) => state.on_step(done, core, cx),
            State::ViaPeer(state) => state.on_handshake(done, core, cx),
            // The session has come to another state meanwhile.
            state => state,
        });
    }

    /// The time of [`Session::deadline`] has come.
    pub fn on_deadline(&mut self, cx: &mut TurnCx<'_, K>) {
        self.core.deadline = None;
        if let State::Tunnel(tunnel) = &mut self.state {
            let lasted = tunnel.on_deadline(&mut self.core, cx);
            return self.close_tunnel(lasted, cx);
        }
        self.transition(cx, |state, core, cx| match state {
            // Without TLS there is no way to reply.
            state @ State::TlsHandshake(_) => state.lose_client(Cause::TlsTimeout, None, core, cx),
            State::Request(state) => state.on_deadline(core, cx),
            State::Connect(state) => state.on_deadline(core, cx),
            State::ViaPeer(state) => state.on_deadline(core, cx),
            State::AwaitPeer(state) => state.on_deadline(core, cx),
            state @ State::Reject(_) => state.close(core, cx),
            state @ (State::Tunnel(_) | State::Closing(_)) => state,
        });
    }

    /// The query whose answer this session rests on.
    pub fn standing_query(&self) -> Option<Query> {
        match &self.state {
            State::Connect(_) | State::ViaPeer(_) | State::AwaitPeer(_) | State::Tunnel(_) => self.core.query,
            State::TlsHandshake(_) | State::Request(_) | State::Reject(_) | State::Closing(_) => None,
        }
    }

    /// Takes the view's present answer to [`Session::standing_query`].
    pub fn recheck(&mut self, decision: Decision, cx: &mut TurnCx<'_, K>) {
        if let State::Tunnel(tunnel) = &mut self.state {
            let stands = tunnel.recheck(decision, &mut self.core, cx);
            return self.close_tunnel(stands, cx);
        }
        self.transition(cx, |state, core, cx| match state {
            State::Connect(state) => state.recheck(decision, core, cx),
            State::ViaPeer(state) => state.recheck(decision, core, cx),
            State::AwaitPeer(state) => state.recheck(decision, core, cx),
            state => state,
        });
    }

    /// Looks whether the peers of a tunnel have taken what was sent to them, and are still there.
    pub fn check_delivery(&mut self, cx: &mut TurnCx<'_, K>) {
        if let State::Tunnel(tunnel) = &mut self.state {
            let answered = tunnel.check_delivery(cx);
            self.close_tunnel(answered, cx);
        }
    }

    /// Goes on moving bytes, where the session [wants a turn](Session::wants_turn).
    pub fn resume(&mut self, cx: &mut TurnCx<'_, K>) {
        if let State::Tunnel(tunnel) = &mut self.state {
            let forwarded = tunnel.resume(&mut self.core, cx);
            self.close_tunnel(forwarded, cx);
        }
    }

    /// The node drains: a connection that a peer keeps idle ends.
    pub fn end_idle_peer(&mut self, cx: &mut TurnCx<'_, K>) {
        self.transition(cx, |state, core, cx| match state {
            State::Request(state) if state.is_idle_peer(core, cx) => State::Request(state).close(core, cx),
            state => state,
        });
    }

    /// The node stops: the session ends, whatever its state.
    pub fn stop(&mut self, cx: &mut TurnCx<'_, K>) {
        if let State::Tunnel(_) = self.state {
            return self.close_tunnel(Err(TunnelExit::reset(Cause::NodeStopped)), cx);
        }
        self.transition(cx, |state, core, cx| match state {
            state @ State::TlsHandshake(_) => state.lose_client(Cause::NodeStopped, None, core, cx),
            // A connection that a peer keeps ready has nobody to reply to.
            State::Request(state) if state.is_idle_peer(core, cx) => State::Request(state).close(core, cx),
            State::Request(state) => state.reject(Rejection::draining(), core, cx),
            State::Connect(state) => state.reject(Rejection::draining(), core, cx),
            State::ViaPeer(state) => state.attempt.reject(Rejection::draining(), core, cx),
            State::AwaitPeer(state) => state.request.reject(Rejection::draining(), core, cx),
            state @ (State::Tunnel(_) | State::Reject(_) | State::Closing(_)) => state,
        });
    }

    /// The session, which awaits its head, ends at once, and leaves its place to another client.
    pub fn give_way(&mut self, cx: &mut TurnCx<'_, K>) -> Option<SessionPermit> {
        let permit = self.core.permit.take();
        self.transition(cx, |state, core, cx| match state {
            State::Request(state) => state.reject(Rejection::gives_way(), core, cx).close(core, cx),
            state => state.lose_client(Cause::HeadDropped, None, core, cx),
        });
        permit
    }

    /// The thread has lost its ring, or a part of it has panicked: the session ends by resets. Drop it afterwards, once
    /// the ring is dropped.
    pub fn abandon(&mut self, cx: &mut TurnCx<'_, K>) {
        for socket in self.state.sockets().into_iter().flatten() {
            cx.kernel.reset_on_close(socket);
        }
        match self.state {
            State::Tunnel(_) => self.close_tunnel(Err(TunnelExit::reset(Cause::NodeThread)), cx),
            // Recorded already.
            State::Reject(_) | State::Closing(_) => {}
            _ => self.core.record_lost_client(Cause::NodeThread, None, cx),
        }
        cx.count_end(self.core.listener);
    }

    /// The tunnel has stalled, and memory for TCP runs short.
    pub fn end_stalled(&mut self, cx: &mut TurnCx<'_, K>) {
        if let State::Tunnel(_) = self.state {
            self.close_tunnel(Err(TunnelExit::reset(Cause::TcpMemory)), cx);
        }
    }

    /// An operator ends this session. There is no reply for that, so the client gets none.
    pub fn end_by_admin(&mut self, cx: &mut TurnCx<'_, K>) {
        if let State::Tunnel(_) = self.state {
            return self.close_tunnel(Err(TunnelExit::reset(Cause::EndedByAdmin)), cx);
        }
        self.transition(cx, |state, core, cx| match state {
            state @ (State::Tunnel(_) | State::Closing(_)) => state,
            state @ State::Reject(_) => state.close(core, cx),
            state => state.lose_client(Cause::EndedByAdmin, None, core, cx),
        });
    }

    /// Gives back what the session holds. Only once [`Session::is_over`].
    pub fn release(self, cx: &mut TurnCx<'_, K>) {
        debug_assert!(self.is_over());
        cx.count_end(self.core.listener);
        if let State::Closing(closing) = self.state {
            closing.release(cx);
        }
    }

    /// Replaces the state by the one that `act` makes of it. A panic in `act` loses the state.
    fn transition(
        &mut self,
        cx: &mut TurnCx<'_, K>,
        act: impl FnOnce(State<K>, &mut SessionCore, &mut TurnCx<'_, K>) -> State<K>,
    ) {
        let state = std::mem::replace(&mut self.state, State::Closing(Closing::Nothing));
        self.state = act(state, &mut self.core, cx);
        if !matches!(self.state, State::TlsHandshake(_) | State::Request(_)) {
            self.core.release_head();
        }
    }

    /// Closes the tunnel, where it has come to its end. Until then a tunnel acts in place.
    fn close_tunnel(&mut self, result: Result<(), TunnelExit>, cx: &mut TurnCx<'_, K>) {
        if let Err(end) = result {
            self.transition(cx, |state, core, cx| match state {
                State::Tunnel(tunnel) => tunnel.close(end, core, cx),
                state => state,
            });
        }
    }

    /// Ends the session with a reset of its connections. Where the panic lost the state, it has dropped the sockets:
    /// they reset, and the kernel closes them once no operation names them.
    fn end_after_panic(&mut self, cx: &mut TurnCx<'_, K>) {
        if let State::Tunnel(_) = self.state {
            return self.close_tunnel(Err(TunnelExit::reset(Cause::NodePanic)), cx);
        }
        self.transition(cx, |state, core, cx| {
            for socket in state.sockets().into_iter().flatten() {
                cx.kernel.reset_on_close(socket);
            }
            state.close(core, cx)
        });
    }
}

/// The questions of the worker.
impl<K: Kernel> Session<K> {
    pub fn id(&self) -> u64 {
        self.core.id
    }

    /// The session has not ended yet.
    pub fn is_live(&self) -> bool {
        !matches!(self.state, State::Closing(_))
    }

    /// Nothing is left to do, and nothing is in flight: the slot can be given to another session.
    pub fn is_over(&self) -> bool {
        !self.is_live() && self.core.in_flight.is_empty()
    }

    /// The session waits for its head, since this time by the thread's clock.
    pub fn awaits_head_since_us(&self) -> Option<u64> {
        self.core.head().map(|_| self.core.accepted_at_us)
    }

    /// The network of a client whose head has not come, where it is known.
    pub fn heads_network(&self) -> Option<IpNet> {
        self.core.head()?.network()
    }

    /// The session is a connection that a peer keeps ready, and has no request.
    pub fn is_idle_peer(&self, cx: &TurnCx<'_, K>) -> bool {
        matches!(&self.state, State::Request(state) if state.is_idle_peer(&self.core, cx))
    }

    /// Time to call [`Session::on_deadline`], unless something happens before.
    pub fn deadline(&self) -> Option<Tick> {
        self.core.deadline
    }

    /// The session is a tunnel whose right ends at a time.
    pub fn expires(&self) -> bool {
        matches!(&self.state, State::Tunnel(tunnel) if tunnel.expires())
    }

    /// The session is a tunnel that has sent bytes of which [`Session::check_delivery`] does not know yet that they
    /// have arrived.
    pub fn has_sent(&self) -> bool {
        matches!(&self.state, State::Tunnel(tunnel) if tunnel.has_sent)
    }

    /// Time since which a direction of the tunnel has stood still, because its reader does not read.
    pub fn stalled_since(&self) -> Option<Tick> {
        match &self.state {
            State::Tunnel(tunnel) => tunnel.stalled_since(),
            _ => None,
        }
    }

    /// True where there are bytes to move that no completion announces.
    pub fn wants_turn(&self) -> bool {
        matches!(&self.state, State::Tunnel(tunnel) if tunnel.wants_turn())
    }
}

impl<K: Kernel> State<K> {
    /// Drops a socket of a rejected session that no operation uses any more.
    fn drop_unused(self, core: &SessionCore) -> Self {
        match self {
            Self::Reject(state) => Self::Reject(state.drop_unused(core)),
            state => state,
        }
    }

    /// The sockets of a state that has no tunnel.
    fn sockets(&self) -> [Option<&K::Socket>; 2] {
        match self {
            Self::TlsHandshake(state) => [Some(&state.client), None],
            Self::Request(state) => [Some(&state.client.socket), None],
            Self::Connect(state) => [Some(&state.request.client.socket), Some(&state.device)],
            Self::ViaPeer(state) => [Some(&state.attempt.request.client.socket), Some(&state.attempt.socket)],
            Self::AwaitPeer(state) => [Some(&state.request.client.socket), None],
            Self::Reject(state) => [Some(&state.client.socket), state.leaving.as_ref()],
            Self::Tunnel(_) | Self::Closing(_) => [None, None],
        }
    }
}
