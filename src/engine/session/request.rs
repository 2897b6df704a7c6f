//! From accept to the decision: collects the request's head, parses it, and puts its query to the view.

use std::net::SocketAddr;
use std::sync::Arc;

use rustls::ServerConfig;
use zeroize::Zeroizing;

use super::State;
use super::core::{ProxyHeader, RareParts, Rights, SessionCore};
use super::identity::{Presented, Unusable};
use super::reject::{Rejecting, Rejection};
use super::reply::{AfterReply, send_reply};
use crate::authz::{Decision, DeviceUuid, Query, Refusal};
use crate::engine::kernel::Kernel;
use crate::engine::kernel::io::{Outcome, errno, give_back, is_transient};
use crate::engine::limits::{NoPlace, network_of};
use crate::engine::timers::Tick;
use crate::engine::tls::transport::{Endpoint, Transport};
use crate::engine::token_rate_limit::Budget;
use crate::engine::turn::TurnCx;
use crate::engine::worker::signals::ServicePhase;
use crate::telemetry::Cause;
use crate::wire::{
    ConnectHead, CredentialForm, HeadError, HttpVersion, ProxyHeaderError, Reply, Token, is_summary_request,
    parse_head, parse_hops, parse_proxy_header, summary_reply,
};

/// The head is incomplete.
pub(super) struct ReadingRequest<K: Kernel> {
    pub client: Endpoint<K>,
    /// Holds a token, most often.
    head: Zeroizing<Vec<u8>>,
}

/// A request whose head was read, and its client.
pub(super) struct ClientRequest<K: Kernel> {
    pub client: Endpoint<K>,
    pub version: HttpVersion,
    /// Bytes that the client sent behind the head.
    pub early: Vec<u8>,
    /// The client's token, for a peer that the request may be handed to.
    pub token: Option<Token>,
    pub credential_form: CredentialForm,
    /// The nodes that the request has come by.
    pub hops: Vec<Box<str>>,
    /// A peer was asked, and does not hold the device any more: it is looked up elsewhere for a while.
    pub has_asked_peer: bool,
    /// A pooled connection has failed: the next one is new.
    pub skips_pool: bool,
    /// Time until which peers are asked; `None` before the first.
    pub ask_peers_until: Option<Tick>,
    /// Pauses so far before a peer was asked again.
    pub peer_pauses: u32,
}

impl<K: Kernel> ReadingRequest<K> {
    /// Waits for the client's first bytes. All of them, to the end of the head, have one deadline.
    pub fn start(
        client: K::Socket,
        tls: Option<Arc<ServerConfig>>,
        core: &mut SessionCore,
        cx: &mut TurnCx<'_, K>,
    ) -> State<K> {
        core.deadline = Some(cx.now.after(cx.config.timeouts.head));
        match tls {
            Some(tls) if core.proxy_header != ProxyHeader::Expected || core.comes_from_peer(cx) => {
                State::start_tls(client, tls, Vec::new(), core, cx)
            }
            _ => Self { client: Endpoint::plain(client), head: Zeroizing::default() }.receive(core, cx),
        }
    }

    pub fn on_received(
        mut self: Box<Self>,
        outcome: Outcome,
        core: &mut SessionCore,
        cx: &mut TurnCx<'_, K>,
    ) -> State<K> {
        let Outcome { result, buffer, .. } = outcome;
        match (result, buffer) {
            (len @ 1.., Some(buffer)) => {
                let Self { client, head } = &mut *self;
                let received = cx.kernel.received(&buffer, len as usize);
                let opened = match &mut client.transport {
                    Transport::UserTls(stream) => stream.receive(received, head),
                    Transport::Plain | Transport::KernelTls => {
                        head.extend_from_slice(received);
                        Ok(())
                    }
                };
                cx.kernel.give_back(buffer);
                match opened {
                    Ok(()) => self.read(core, cx),
                    Err(error) => State::fail_tls(self.client, &error, core, cx),
                }
            }
            (result, buffer) => {
                give_back(buffer, cx.kernel);
                match errno(result) {
                    _ if result >= 0 => self.on_end(core, cx),
                    error if is_transient(&error) => self.receive(core, cx),
                    error => State::Request(self).lose_client(Cause::ClientError, Some(error), core, cx),
                }
            }
        }
    }

    /// The client has ended before its head did.
    fn on_end(self, core: &mut SessionCore, cx: &mut TurnCx<'_, K>) -> State<K> {
        if self.is_idle_peer(core, cx) {
            return self.wait().close(core, cx);
        }
        if self.head.is_empty() {
            return self.wait().lose_client(Cause::ClientClosed, None, core, cx);
        }
        let rejection = Rejection { reply: Reply::Malformed, cause: Cause::HeadTruncated, detail: None };
        self.reject(rejection, core, cx)
    }

    /// `timeouts.head` has passed, or a peer has kept its connection idle for too long.
    pub fn on_deadline(self, core: &mut SessionCore, cx: &mut TurnCx<'_, K>) -> State<K> {
        if self.is_idle_peer(core, cx) {
            return self.wait().close(core, cx);
        }
        let rejection = Rejection { reply: Reply::HeadTimeout, cause: Cause::HeadTimeout, detail: None };
        self.reject(rejection, core, cx)
    }

    pub fn reject(self, rejection: Rejection, core: &mut SessionCore, cx: &mut TurnCx<'_, K>) -> State<K> {
        State::reject(self.client, HttpVersion::default(), rejection, core, cx)
    }

    /// Continues with `head`, which the client has sent so far.
    pub fn go_on(
        client: Endpoint<K>,
        head: Vec<u8>,
        core: &mut SessionCore,
        cx: &mut TurnCx<'_, K>,
    ) -> State<K> {
        Self { client, head: Zeroizing::new(head) }.read(core, cx)
    }

    /// Reads the bytes so far: waits for more, or decides.
    fn read(mut self, core: &mut SessionCore, cx: &mut TurnCx<'_, K>) -> State<K> {
        if core.proxy_header == ProxyHeader::Expected {
            match parse_proxy_header(&self.head) {
                Ok(Some(header)) => {
                    if core.comes_from_peer(cx) {
                        core.identify_peer(&self.client.transport, cx);
                    }
                    // Who is no node does not say who the client is, and is nobody's probe.
                    let is_believed = !core.comes_from_peer(cx) || core.via().is_some();
                    core.proxy_header = match header.client {
                        None if is_believed => ProxyHeader::LocalCommand,
                        _ => ProxyHeader::NotExpected,
                    };
                    core.client_address = header.client.filter(|_| is_believed).or(core.client_address);
                    self.head.drain(..header.len);
                    if let Some(client) = header.client
                        && !core.comes_from_peer(cx)
                        && core.head().is_some()
                    {
                        let head = cx.shared.limits.await_head(Some(network_of(client.ip())));
                        core.rare = RareParts::with_head(head);
                        if core.head().is_none() {
                            return self.reject(Rejection::no_place(NoPlace::Network), core, cx);
                        }
                    }
                    if let Transport::Plain = self.client.transport
                        && let Some(tls) = cx.shared.tls(core.listener as usize, cx.config)
                    {
                        let records = std::mem::take(&mut *self.head);
                        return State::start_tls(self.client.socket, tls, records, core, cx);
                    }
                }
                Ok(None) => return self.wait_for_more(core, cx),
                Err(error) => return self.reject_proxy_header(&error, core, cx),
            }
        }
        let listen = &cx.config.listen[core.listener as usize];
        match parse_head(&self.head, &listen.suffixes) {
            Ok(Some(_)) if core.comes_from_peer(cx) && core.via().is_none() => {
                let rejection = Rejection::no_node(&self.client.transport);
                self.reject(rejection, core, cx)
            }
            Ok(Some(head)) => {
                let (query, unusable) = read_query(&head, cx);
                core.query = Some(query);
                let (version, len, credential_form) = (head.version, head.len, head.credential_form);
                let token = head.token.filter(|_| cx.config.forward.tls.is_some());
                let hops = match core.comes_from_peer(cx) {
                    true => parse_hops(&self.head[..len]),
                    false => Vec::new(),
                };
                let Self { client, head: mut bytes } = self;
                let early = bytes.split_off(len);
                let request = ClientRequest {
                    client,
                    version,
                    early,
                    token,
                    credential_form,
                    hops,
                    has_asked_peer: false,
                    skips_pool: false,
                    ask_peers_until: None,
                    peer_pauses: 0,
                };
                match unusable {
                    Some(unusable) if !core.is_turned_away(cx) => request.reject_token(unusable, core, cx),
                    _ => request.decide(core, cx),
                }
            }
            Ok(None) => self.wait_for_more(core, cx),
            Err(error) => self.reject_head(error, core, cx),
        }
    }

    fn wait_for_more(self, core: &mut SessionCore, cx: &mut TurnCx<'_, K>) -> State<K> {
        if self.client.transport.has_ended() { self.on_end(core, cx) } else { self.receive(core, cx) }
    }

    fn receive(self, core: &mut SessionCore, cx: &mut TurnCx<'_, K>) -> State<K> {
        core.receive_from_client(&self.client.socket, cx);
        self.wait()
    }

    fn wait(self) -> State<K> {
        State::Request(Box::new(self))
    }

    /// The client has sent no byte of a head.
    pub fn has_no_word(&self) -> bool {
        self.head.is_empty()
    }

    /// A peer has made the connection for later requests, and has sent none.
    pub fn is_idle_peer(&self, core: &SessionCore, cx: &TurnCx<'_, K>) -> bool {
        self.head.is_empty() && self.client.transport.is_user_tls() && core.comes_from_peer(cx)
    }

    fn reject_proxy_header(
        self,
        error: &ProxyHeaderError,
        core: &mut SessionCore,
        cx: &mut TurnCx<'_, K>,
    ) -> State<K> {
        let (cause, detail) = (error.into(), Some(error.to_string()));
        self.reject(Rejection { reply: Reply::Malformed, cause, detail }, core, cx)
    }

    fn reject_head(self, error: HeadError, core: &mut SessionCore, cx: &mut TurnCx<'_, K>) -> State<K> {
        if core.comes_from_peer(cx)
            && is_summary_request(&self.head)
            && let Some(summary) = cx.shared.authority.summary()
        {
            return self.answer_peer(summary_reply(&summary), core, cx);
        }
        let (reply, cause, detail) = (error.reply(), error.into(), Some(error.to_string()));
        let rejection = Rejection { reply, cause, detail };
        State::reject(self.client, error.version(), rejection, core, cx)
    }

    /// Sends `reply` to a peer, which asked for itself and not for a client. A new connection has room for it.
    fn answer_peer(mut self, reply: Vec<u8>, core: &mut SessionCore, cx: &mut TurnCx<'_, K>) -> State<K> {
        match send_reply(&mut self.client, &reply, AfterReply::End, cx.kernel) {
            Ok(true) => Rejecting::linger(self.client, None, core, cx),
            Ok(false) | Err(_) => self.wait().close(core, cx),
        }
    }
}

impl<K: Kernel> ClientRequest<K> {
    /// Puts the query to the view, and goes on by its answer.
    pub fn decide(self, core: &mut SessionCore, cx: &mut TurnCx<'_, K>) -> State<K> {
        if self.ask_peers_until.is_none() && core.is_turned_away(cx) {
            return self.reject(Rejection::draining(), core, cx);
        }
        if cx.shared.authority.is_stand_by() {
            return self.reject(Rejection::stand_by(), core, cx);
        }
        core.generation = cx.view.get().map(|view| view.snapshot.generation());
        let began = std::time::Instant::now();
        let decision = core.decide(cx);
        cx.counters.decision_ns.record(began.elapsed().as_nanos() as u64);
        if let Some(query) = &core.query {
            cx.decision_log.record(cx.view, query, &decision, cx.now.latest);
        }
        if !matches!(decision, Decision::Allow(_))
            && let Some(peer) = core.probed_peer(cx)
        {
            return State::probe_peer(Self { skips_pool: true, ..self }, &peer, core, cx);
        }
        match decision {
            Decision::Allow(route) => {
                core.rights = Some(Rights::of(&route));
                State::connect(self, &route, core, cx)
            }
            Decision::Refuse(Refusal::DeviceElsewhere) => State::ask_peer(self, core, cx),
            Decision::Refuse(Refusal::CredentialUnknown) => {
                let rejection = self.refused(Refusal::CredentialUnknown);
                self.reject_unknown(rejection, core, cx)
            }
            Decision::Refuse(refusal) => {
                let rejection = self.refused(refusal);
                self.reject(rejection, core, cx)
            }
            Decision::Undecided(undecided) => {
                cx.counters.sessions.undecided.add(u64::from(!core.is_probe(cx)));
                self.reject(Rejection::undecided(undecided), core, cx)
            }
        }
    }

    pub fn reject(self, rejection: Rejection, core: &mut SessionCore, cx: &mut TurnCx<'_, K>) -> State<K> {
        State::reject(self.client, self.version, rejection, core, cx)
    }

    /// The rejection for `refusal`. Where the credentials are refused, it says in which form they came.
    fn refused(&self, refusal: Refusal) -> Rejection {
        let is_of_credentials = refusal.reply() == Reply::Credentials;
        let detail = is_of_credentials.then(|| self.credential_form.to_string());
        Rejection { detail, ..Rejection::refused(refusal) }
    }

    /// The token can be valid in no snapshot.
    fn reject_token(self, unusable: Unusable, core: &mut SessionCore, cx: &mut TurnCx<'_, K>) -> State<K> {
        let (cause, detail) = (unusable.into(), Some(unusable.detail()));
        if unusable.is_undecided() {
            // A made-up name of a key must not count as a client that could not be served.
            cx.counters.sessions.undecided.add(u64::from(unusable.lasts() && !core.is_probe(cx)));
            return self.reject(Rejection { reply: Reply::Undecided, cause, detail }, core, cx);
        }
        let rejection = Rejection { reply: Reply::Credentials, cause, detail };
        if unusable.is_unproven() {
            self.reject_unknown(rejection, core, cx)
        } else {
            self.reject(rejection, core, cx)
        }
    }

    /// The token belongs to nobody. A network that has sent many such gets another reply.
    fn reject_unknown(
        self,
        rejection: Rejection,
        core: &mut SessionCore,
        cx: &mut TurnCx<'_, K>,
    ) -> State<K> {
        let budget = match core.client_address {
            Some(client) if !core.is_probe(cx) => cx.shared.token_rate_limit.record(client.ip(), cx.now.wall),
            _ => Budget::Left,
        };
        let rejection = match budget {
            Budget::Left => rejection,
            Budget::Spent => Rejection {
                reply: Reply::Limit,
                cause: Cause::UnknownTokens,
                detail: Some(format!("it is {}", rejection.cause)),
            },
        };
        self.reject(rejection, core, cx)
    }
}

impl SessionCore {
    /// The node is about to end, and serves no such clients any more.
    pub fn is_turned_away<K: Kernel>(&self, cx: &TurnCx<'_, K>) -> bool {
        match cx.shared.phase() {
            ServicePhase::Serving | ServicePhase::LameDuck => false,
            // Nobody else has the devices of this node.
            ServicePhase::Draining => !self.comes_from_peer(cx),
            ServicePhase::Leaving => true,
        }
    }

    /// The listener expects a load balancer in front of its clients, and this client is not one.
    pub fn comes_past_proxy<K: Kernel>(&self, cx: &TurnCx<'_, K>) -> bool {
        let listen = self.listener(cx);
        let is_trusted = |address: SocketAddr| listen.trusts_proxy(address.ip());
        let expects_proxy = self.proxy_header == ProxyHeader::Expected && !self.comes_from_peer(cx);
        expects_proxy && !self.client_address.is_some_and(is_trusted)
    }
}

/// The query of a head, and the reason why its token cannot be used, if there is one.
fn read_query<K: Kernel>(head: &ConnectHead<'_>, cx: &TurnCx<'_, K>) -> (Query, Option<Unusable>) {
    let presented = head.token.as_ref().map(|token| {
        let verifier = cx.shared.verifier();
        Presented::read(token.as_bytes(), &verifier, cx.now.latest)
    });
    let query = |subject| Query { subject, device: DeviceUuid::parse(head.uuid), port: head.port };
    let permits = |subject| match cx.view.decide(&query(Some(subject)), cx.now.wall) {
        Decision::Allow(_) => true,
        Decision::Refuse(refusal) => refusal.is_of_location(),
        Decision::Undecided(_) => false,
    };
    let query = query(presented.as_ref().map(|presented| presented.choose(permits)));
    (query, presented.and_then(|presented| presented.unusable))
}
