//! A device that a peer holds: this node hands the request over to the peer, and forwards the tunnel that it opens.
//!
//! The peer decides again by itself. The client gets the peer's refusal unchanged.

#[cfg(test)]
mod tests;

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use rustls::pki_types::ServerName;
use zeroize::Zeroizing;

use super::State;
use super::await_peer::AwaitingPeer;
use super::core::{Rights, SessionCore};
use super::reject::Rejection;
use super::request::ClientRequest;
use super::tunnel::TunnelParts;
use crate::authz::{Decision, Freshness, PeerRoute, Query, Refusal, UnixMillis};
use crate::engine::kernel::io::{Outcome, errno, give_back, is_transient};
use crate::engine::kernel::{Kernel, SocketOperation};
use crate::engine::limits::TunnelPermit;
use crate::engine::peer_health::Admittance;
use crate::engine::peer_pool::ReadyConnection;
use crate::engine::timers::Tick;
use crate::engine::tls::handshake_pool::{HandshakeDone, HandshakeOwner};
use crate::engine::tls::stream::TlsStream;
use crate::engine::tls::transport::Endpoint;
use crate::engine::turn::TurnCx;
use crate::engine::user_data::Purpose;
use crate::sys::silence::Delivery;
use crate::telemetry::Cause;
use crate::wire::{PeerRequest, Reply, Sealed, TlsConnection, parse_peer_reply};

/// A request on its way to a peer.
pub(super) struct AskingPeer<K: Kernel> {
    pub attempt: PeerAttempt<K>,
    progress: PeerProgress,
}

/// The request, and the connection by which a peer is asked.
pub(super) struct PeerAttempt<K: Kernel> {
    pub request: ClientRequest<K>,
    pub socket: K::Socket,
    name: Box<str>,
    /// The connection came from the pool, and may have ended unnoticed.
    is_pooled: bool,
    /// `None` for the node's own probe, which has no rights.
    permit: Option<TunnelPermit>,
    expires_at: Option<UnixMillis>,
    /// Time at which the peer was chosen, by the thread's clock.
    began_us: u64,
    trust: PeerTrust,
}

/// How far a peer is trusted to answer.
#[derive(Clone, Copy)]
struct PeerTrust {
    freshness: Freshness,
    admitted: Admittance,
    /// Time until which its reply is waited for.
    until: Tick,
}

/// The progress with a peer. Each step has the connection's TLS stream, where this thread has it.
enum PeerProgress {
    Connecting(Box<TlsStream>),
    /// A handshake thread has the stream.
    Computing,
    /// The next records of the handshake are to come from the peer.
    Handshaking(Box<TlsStream>),
    /// The peer has the request; `reply` is what it has sent so far.
    Asked {
        stream: Box<TlsStream>,
        reply: Vec<u8>,
    },
}

impl<K: Kernel> AskingPeer<K> {
    /// The client may reach the device, which a peer holds: asks that peer.
    pub fn start(request: ClientRequest<K>, core: &mut SessionCore, cx: &mut TurnCx<'_, K>) -> State<K> {
        let (view, query) = (cx.view, core.query);
        let route = query.as_ref().and_then(|query| view.elsewhere(query, cx.now.latest));
        match route {
            Some(PeerRoute { node, right }) => {
                core.rights = Some(Rights::from(right));
                Self::ask(request, node, right.expires_at, core, cx)
            }
            None => request.reject(Rejection::refused(Refusal::DeviceOffline), core, cx),
        }
    }

    /// Asks the peer `name`, by the rights in `core`, if there are any.
    pub fn ask(
        mut request: ClientRequest<K>,
        name: &str,
        expires_at: Option<UnixMillis>,
        core: &mut SessionCore,
        cx: &mut TurnCx<'_, K>,
    ) -> State<K> {
        let config = &cx.config.forward;
        let Some(tls) = cx.shared.peer_tls() else {
            return request.reject(Rejection::refused(Refusal::DeviceElsewhere), core, cx);
        };
        if request.hops.iter().any(|hop| **hop == *name) || request.hops.len() >= config.hops_max {
            let detail = format!("it came by {} and was to go to {name}", request.hops.join(", "));
            let rejection = Rejection { reply: Reply::Loop, cause: Cause::Loop, detail: Some(detail) };
            return request.reject(rejection, core, cx);
        }
        let directory = cx.shared.authority.directory().get();
        let until = cx.now.after(cx.config.timeouts.forward);
        let until = *request.ask_peers_until.get_or_insert(until);
        let Some((entry, freshness)) = directory.find(name, config.max_age) else {
            let rejection = no_way_to(name, Cause::NodeUnknown, None);
            return match directory.is_known() {
                true => request.reject(rejection, core, cx),
                // It is about to be read.
                false => AwaitingPeer::start(request, rejection, core, cx),
            };
        };
        if !config.allows(name, entry.forward.ip()) {
            return request.reject(no_way_to(name, Cause::NodeRefused, None), core, cx);
        }
        let admitted = match core.is_probe(cx) {
            true => Admittance::Trial,
            false => cx.shared.peer_health.admit(name, std::time::Instant::now()),
        };
        if admitted == Admittance::No {
            return request.reject(no_way_to(name, Cause::NodeHangs, None), core, cx);
        }
        let until = match freshness {
            Freshness::Fresh => until,
            Freshness::Stale => until.min(cx.now.after(STALE_TIME)),
        };
        let trust = PeerTrust { freshness, admitted, until };
        let permit = match core.rights.map(|rights| cx.shared.limits.permit(rights.principal, rights.device))
        {
            None => None,
            Some(Ok(permit)) => Some(permit),
            Some(Err(hit)) => {
                let rejection = Rejection { reply: Reply::Limit, cause: hit.into(), detail: None };
                return request.reject(rejection, core, cx);
            }
        };
        let pooled = match request.skips_pool {
            true => None,
            false => cx.with_peer_pool(|peers, pool| peers.take(name, entry.forward, &tls, pool)).flatten(),
        };
        let began_us = cx.now.monotonic_us;
        core.deadline = Some(trust.next_look(cx));
        if let Some(ReadyConnection { socket, stream }) = pooled {
            cx.counters.sessions.pooled_connections_used.add(1);
            let attempt = PeerAttempt {
                request,
                socket,
                name: name.into(),
                is_pooled: true,
                permit,
                expires_at,
                began_us,
                trust,
            };
            return attempt.send_request(stream, Vec::new(), core, cx);
        }
        let server = ServerName::try_from(name.to_owned()).map_err(io::Error::other);
        let tls = server.and_then(|server| TlsConnection::connect(tls, server).map_err(io::Error::other));
        let opened = tls.and_then(|tls| Ok((tls, cx.kernel.open_peer_socket(entry.forward)?)));
        let (tls, socket) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                drop(permit);
                return request.reject(no_way_to(name, Cause::NodeSocket, Some(&error)), core, cx);
            }
        };
        core.io(cx).submit(Purpose::Connect, SocketOperation::Connect(&socket, entry.forward));
        let attempt = PeerAttempt {
            request,
            socket,
            name: name.into(),
            is_pooled: false,
            permit,
            expires_at,
            began_us,
            trust,
        };
        attempt.wait(PeerProgress::Connecting(Box::new(TlsStream::new(tls))))
    }

    /// Takes the result of the connect.
    pub fn on_connected(self, result: i32, core: &mut SessionCore, cx: &mut TurnCx<'_, K>) -> State<K> {
        let Self { attempt, progress } = self;
        match progress {
            PeerProgress::Connecting(_) if result != 0 => {
                attempt.fail(Cause::NodeUnreachable, Some(&errno(result)), core, cx)
            }
            PeerProgress::Connecting(stream) => attempt.go_on(stream, Vec::new(), core, cx),
            other => attempt.wait(other),
        }
    }

    /// A handshake thread has taken a step.
    pub fn on_handshake(
        self,
        done: HandshakeDone,
        core: &mut SessionCore,
        cx: &mut TurnCx<'_, K>,
    ) -> State<K> {
        let attempt = self.attempt;
        let HandshakeDone { mut stream, plain, outcome, .. } = done;
        let flushed = stream.outgoing().flush(cx.kernel, &attempt.socket).outcome;
        if let Err(error) = outcome {
            return attempt.fail(Cause::NodeTls, Some(&io::Error::other(error)), core, cx);
        }
        match flushed {
            Err(error) => return attempt.fail(Cause::NodeLost, Some(&error), core, cx),
            Ok(_) if !stream.outgoing().is_empty() => {
                return attempt.fail(Cause::NodeStalled, None, core, cx);
            }
            Ok(_) => {}
        }
        if stream.is_open() {
            attempt.send_request(stream, plain, core, cx)
        } else {
            attempt.receive(PeerProgress::Handshaking(stream), core, cx)
        }
    }

    /// Takes bytes of the peer: a step of the handshake, or its reply.
    pub fn on_received(self, outcome: Outcome, core: &mut SessionCore, cx: &mut TurnCx<'_, K>) -> State<K> {
        let Self { attempt, progress } = self;
        let Outcome { result, buffer, .. } = outcome;
        match (result, buffer) {
            (len @ 1.., Some(buffer)) => {
                let records = cx.kernel.received(&buffer, len as usize).to_vec();
                cx.kernel.give_back(buffer);
                match progress {
                    PeerProgress::Connecting(stream) | PeerProgress::Handshaking(stream) => {
                        attempt.go_on(stream, records, core, cx)
                    }
                    PeerProgress::Computing => attempt.wait(PeerProgress::Computing),
                    PeerProgress::Asked { mut stream, mut reply } => {
                        match stream.receive(&records, &mut reply) {
                            Ok(()) => attempt.read_reply(stream, reply, core, cx),
                            Err(error) => {
                                attempt.fail(Cause::NodeTls, Some(&io::Error::other(error)), core, cx)
                            }
                        }
                    }
                }
            }
            (result, buffer) => {
                give_back(buffer, cx.kernel);
                match errno(result) {
                    _ if result >= 0 => attempt.fail(Cause::NodeClosed, None, core, cx),
                    error if is_transient(&error) => attempt.receive(progress, core, cx),
                    error => attempt.fail(Cause::NodeLost, Some(&error), core, cx),
                }
            }
        }
    }

    /// A part of the time for the reply has passed, or all of it.
    pub fn on_deadline(self, core: &mut SessionCore, cx: &mut TurnCx<'_, K>) -> State<K> {
        let Self { attempt, progress } = self;
        // A handshake thread of this node may be what is late.
        let is_opening = matches!(progress, PeerProgress::Connecting(_) | PeerProgress::Handshaking(_));
        if attempt.is_pooled && cx.kernel.delivery(&attempt.socket) != Delivery::Complete {
            // The path died while nobody used it. The others lead the same way. A new connection begins once the receive
            // of this one has ended.
            cx.with_peer_pool(|peers, pool| peers.distrust(&attempt.name, pool));
            core.io(cx).cancel(Purpose::DownReceive);
            core.deadline = Some(attempt.trust.next_look(cx));
            return attempt.wait(progress);
        }
        let waited_us = cx.now.us_since(attempt.began_us);
        let is_over = cx.now.tick() >= attempt.trust.until;
        let hangs = is_over || is_opening && waited_us >= OPENING_TIME.as_micros() as u64;
        if hangs {
            let health = &cx.shared.peer_health;
            health.record_hang(&attempt.name, attempt.trust.admitted, std::time::Instant::now());
        } else if attempt.trust.admitted == Admittance::Trial
            || !cx.shared.peer_health.is_hanging(&attempt.name)
        {
            core.deadline = Some(attempt.trust.next_look(cx));
            return attempt.wait(progress);
        }
        let rejection = match attempt.trust.freshness {
            Freshness::Stale => no_way_to(&attempt.name, Cause::NodeStale, None),
            Freshness::Fresh => Rejection {
                reply: Reply::DeviceTimeout,
                cause: Cause::NodeTimeout,
                detail: Some(attempt.name.to_string()),
            },
        };
        attempt.reject(rejection, core, cx)
    }

    /// The view has changed meanwhile.
    pub fn recheck(
        mut self: Box<Self>,
        decision: Decision,
        core: &mut SessionCore,
        cx: &mut TurnCx<'_, K>,
    ) -> State<K> {
        match decision {
            // The peer knows where the device is. The right may end earlier, or later, than before.
            Decision::Refuse(Refusal::DeviceElsewhere | Refusal::DeviceOffline) | Decision::Allow(_) => {
                if let Some(right) = core.query.as_ref().and_then(|query| cx.view.right(query, cx.now.latest))
                {
                    core.rights = Some(Rights::from(right));
                    self.attempt.expires_at = right.expires_at;
                }
                State::ViaPeer(self)
            }
            Decision::Undecided(_) => State::ViaPeer(self),
            // The probe is to be refused by the peer.
            Decision::Refuse(_) if core.is_probe(cx) => State::ViaPeer(self),
            Decision::Refuse(refusal) => {
                core.note_regression(refusal, cx);
                self.attempt.reject(Rejection::refused(refusal), core, cx)
            }
        }
    }
}

impl<K: Kernel> PeerAttempt<K> {
    /// Has a handshake thread take the next step.
    fn go_on(
        self,
        stream: Box<TlsStream>,
        records: Vec<u8>,
        core: &mut SessionCore,
        cx: &mut TurnCx<'_, K>,
    ) -> State<K> {
        match cx.handshakes.start(HandshakeOwner::Session(core.slot), stream, records) {
            Ok(()) => {
                core.in_flight.begin(Purpose::TlsHandshake);
                self.wait(PeerProgress::Computing)
            }
            Err(_full) => self.fail(Cause::NodeHandshakesFull, None, core, cx),
        }
    }

    /// The connection is ready: sends the request. `reply` is what came behind the handshake.
    fn send_request(
        self,
        mut stream: Box<TlsStream>,
        reply: Vec<u8>,
        core: &mut SessionCore,
        cx: &mut TurnCx<'_, K>,
    ) -> State<K> {
        // A node's own probe names no client.
        let client = core.client_address.filter(|_| !core.is_probe(cx));
        let request = self.request.handover(core.query, client, cx);
        let mut sealed = Sealed::default();
        let sent = stream
            .seal(&request, &mut sealed)
            .map_err(io::Error::other)
            .and_then(|()| stream.outgoing().send(sealed.bytes(), cx.kernel, &self.socket).outcome);
        match sent {
            Err(error) => self.fail(Cause::NodeLost, Some(&error), core, cx),
            // A peer without room for a request is not worth waiting for.
            Ok(_) if !stream.outgoing().is_empty() => self.fail(Cause::NodeStalled, None, core, cx),
            Ok(_) => self.receive(PeerProgress::Asked { stream, reply }, core, cx),
        }
    }

    /// Reads the reply so far: waits for more, opens the tunnel, or passes the refusal on.
    fn read_reply(
        self,
        stream: Box<TlsStream>,
        mut reply: Vec<u8>,
        core: &mut SessionCore,
        cx: &mut TurnCx<'_, K>,
    ) -> State<K> {
        let head = match parse_peer_reply(&reply) {
            Ok(Some(head)) => head,
            Ok(None) if stream.has_ended() => return self.fail(Cause::NodeClosed, None, core, cx),
            Ok(None) => return self.receive(PeerProgress::Asked { stream, reply }, core, cx),
            Err(error) => return self.fail(Cause::NodeReply, Some(&io::Error::other(error)), core, cx),
        };
        cx.shared.peer_health.record_answer(&self.name);
        if !core.is_probe(cx) {
            cx.counters.handover.record_us(cx.now.us_since(self.began_us));
        }
        match head.reply {
            Reply::Established => {
                cx.counters.sessions.tunnels_forwarded.add(1);
                let early_down = reply.split_off(head.len);
                let Self { request, socket, permit, expires_at, .. } = self;
                let device = Endpoint::tls(socket, stream);
                State::open_tunnel(TunnelParts { request, device, permit, expires_at, early_down }, core, cx)
            }
            refused => {
                let detail = Some(format!("{} says {}", self.name, refused.slug().unwrap_or_default()));
                let rejection = Rejection { reply: refused, cause: Cause::RefusedByNode, detail };
                // This node has the client: it looks the device up again, and the nodes between leave that to it.
                let is_first = self.request.hops.is_empty();
                match refused {
                    Reply::Draining => self.pause(rejection, core, cx),
                    Reply::DeviceOffline if is_first => self.await_device(rejection, core, cx),
                    Reply::Loop if is_first => {
                        let rejection =
                            Rejection { reply: Reply::DeviceOffline, cause: Cause::Loop, ..rejection };
                        self.pause(rejection, core, cx)
                    }
                    _ => self.reject(rejection, core, cx),
                }
            }
        }
    }

    /// The peer does not hold the device any more. It may be on its way to another node: looks it up for a short time.
    fn await_device(
        mut self,
        rejection: Rejection,
        core: &mut SessionCore,
        cx: &mut TurnCx<'_, K>,
    ) -> State<K> {
        if !std::mem::replace(&mut self.request.has_asked_peer, true) {
            let until = cx.now.after(TRANSIT_TIME);
            self.request.ask_peers_until = self.request.ask_peers_until.map(|asked| asked.min(until));
        }
        self.pause(rejection, core, cx)
    }

    /// No reply comes by this connection. A pooled one says nothing of the peer: asks again by a new one.
    fn fail(
        self,
        cause: Cause,
        error: Option<&io::Error>,
        core: &mut SessionCore,
        cx: &mut TurnCx<'_, K>,
    ) -> State<K> {
        if self.is_pooled {
            let Self { request, socket, permit, .. } = self;
            drop((socket, permit));
            return State::ask_peer(ClientRequest { skips_pool: true, ..request }, core, cx);
        }
        if self.trust.freshness == Freshness::Stale {
            let rejection = no_way_to(&self.name, Cause::NodeStale, error);
            return self.reject(rejection, core, cx);
        }
        let rejection = no_way_to(&self.name, cause, error);
        if is_of_restart(cause, error) {
            self.pause(rejection, core, cx)
        } else {
            self.reject(rejection, core, cx)
        }
    }

    /// The peer is about to end, or not back yet: asks again a little later.
    fn pause(self, rejection: Rejection, core: &mut SessionCore, cx: &mut TurnCx<'_, K>) -> State<K> {
        let Self { request, socket, permit, .. } = self;
        drop((socket, permit));
        AwaitingPeer::start(request, rejection, core, cx)
    }

    pub fn reject(self, rejection: Rejection, core: &mut SessionCore, cx: &mut TurnCx<'_, K>) -> State<K> {
        let Self { request, socket, permit, .. } = self;
        // Before the reply, since a client that reads it may ask again at once.
        drop(permit);
        State::reject_with(request, socket, rejection, core, cx)
    }

    fn receive(self, progress: PeerProgress, core: &mut SessionCore, cx: &mut TurnCx<'_, K>) -> State<K> {
        core.io(cx).submit(Purpose::DownReceive, SocketOperation::Receive(&self.socket));
        self.wait(progress)
    }

    fn wait(self, progress: PeerProgress) -> State<K> {
        State::ViaPeer(Box::new(AskingPeer { attempt: self, progress }))
    }
}

impl<K: Kernel> ClientRequest<K> {
    /// The request to the peer: everything that this node decided from, and the nodes that it has come by.
    fn handover(
        &self,
        query: Option<Query>,
        client: Option<SocketAddr>,
        cx: &TurnCx<'_, K>,
    ) -> Zeroizing<Vec<u8>> {
        let own = cx.config.vpn.node.as_deref().unwrap_or_default();
        let hops: Vec<Box<str>> = self.hops.iter().cloned().chain([own.into()]).collect();
        let (device, port) = query.map_or((None, 0), |query| (query.device, query.port));
        let uuid = device.map(|device| device.to_string()).unwrap_or_default();
        PeerRequest { client, uuid: &uuid, port, token: self.token.as_ref(), hops: &hops }.bytes()
    }
}

impl PeerTrust {
    /// Time of the next look at a peer that has not answered.
    fn next_look<K: Kernel>(&self, cx: &TurnCx<'_, K>) -> Tick {
        self.until.min(cx.now.after(LOOK_EVERY))
    }
}

/// True where a peer that is being restarted fails in this way: it closes its connections, and does not listen for a
/// moment.
fn is_of_restart(cause: Cause, error: Option<&io::Error>) -> bool {
    match cause {
        Cause::NodeClosed | Cause::NodeLost => true,
        Cause::NodeUnreachable => error.is_some_and(|error| error.raw_os_error() == Some(libc::ECONNREFUSED)),
        _ => false,
    }
}

/// Time after which a peer that has not answered is looked at: a connection that was ready and whose bytes are not
/// acknowledged has died by then.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Time for a new connection to a peer, with its handshake. A peer that takes longer hangs.
const OPENING_TIME: Duration = Duration::from_secs(2);

/// Time for a peer without a recent heartbeat. It may be alone in not reaching the store, and is dead otherwise.
const STALE_TIME: Duration = Duration::from_secs(1);

/// Time in which a device that has left a peer is looked up elsewhere: longer than a node takes to claim it.
const TRANSIT_TIME: Duration = Duration::from_secs(2);

/// The rejection where the peer that holds the device cannot be asked.
fn no_way_to(name: &str, cause: Cause, error: Option<&io::Error>) -> Rejection {
    let detail = match error {
        Some(error) => format!("{name}: {error}"),
        None => name.to_owned(),
    };
    Rejection { reply: Reply::DeviceOffline, cause, detail: Some(detail) }
}
