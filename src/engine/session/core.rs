//! The part of a session that every state needs: its identity, its times, and the facts that the audit log gets.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::authz::{
    Decision, DeviceId, DeviceRight, Generation, GrantId, PrincipalId, Query, Refusal, Route,
};
use crate::config::{Listen, ListenerKind};
use crate::engine::kernel::io::Io;
use crate::engine::kernel::{Kernel, SocketOperation};
use crate::engine::limits::{HeadPermit, NoPlace, SessionPermit};
use crate::engine::timers::Tick;
use crate::engine::turn::TurnCx;
use crate::engine::user_data::{InFlight, Purpose, Slot};
use crate::telemetry::SessionFacts;

pub(super) struct SessionCore {
    /// Unique on this node as long as it runs.
    pub id: u64,
    pub slot: Slot,
    pub in_flight: InFlight,
    /// Index of the node's listener that accepted the client.
    pub listener: u32,
    pub proxy_header: ProxyHeader,
    pub client_address: Option<SocketAddr>,
    pub accepted_at_us: u64,
    /// Time to call [`Session::on_deadline`](super::Session::on_deadline), unless something happens before.
    pub deadline: Option<Tick>,
    /// `None` for a client over a limit, which only gets the reply that says so.
    pub permit: Option<SessionPermit>,
    /// The reason why it has none.
    pub no_place: Option<NoPlace>,
    /// What few sessions have for long; apart, since every session has the space for the rest.
    pub rare: Option<Box<RareParts>>,
    /// The client's query; present once its head was read.
    pub query: Option<Query>,
    /// The rows that allowed the query; present from the decision on.
    pub rights: Option<Rights>,
    /// The snapshot that decided.
    pub generation: Option<Generation>,
}

/// State of the PROXY header in front of a session's first bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum ProxyHeader {
    /// The client speaks: it needs no header, or its header was read.
    NotExpected,
    /// The session waits for the header.
    Expected,
    /// The header had the command LOCAL: a load balancer, or a peer, speaks for itself.
    LocalCommand,
}

/// The rows that a permission rests on.
#[derive(Clone, Copy)]
pub(super) struct Rights {
    pub principal: PrincipalId,
    pub grant: GrantId,
    pub device: DeviceId,
}

impl Rights {
    pub fn of(route: &Route) -> Self {
        Self { principal: route.principal, grant: route.grant, device: route.device }
    }
}

impl From<DeviceRight> for Rights {
    fn from(right: DeviceRight) -> Self {
        Self { principal: right.principal, grant: right.grant, device: right.device }
    }
}

/// Parts that a session has only until its head has come, or only where a node has handed it over.
#[derive(Default)]
pub(super) struct RareParts {
    /// Present until the head has come.
    pub head: Option<HeadPermit>,
    /// The node that handed the request over, by its certificate and the directory.
    pub via: Option<Box<str>>,
}

impl RareParts {
    pub fn with_head(head: Option<HeadPermit>) -> Option<Box<Self>> {
        head.map(|head| Box::new(Self { head: Some(head), via: None }))
    }
}

impl SessionCore {
    /// The place among sessions whose heads have not come, while this one is among them.
    pub fn head(&self) -> Option<&HeadPermit> {
        self.rare.as_ref()?.head.as_ref()
    }

    /// The head has come, or is not waited for.
    pub fn release_head(&mut self) {
        if let Some(rare) = &mut self.rare {
            rare.head = None;
            if rare.via.is_none() {
                self.rare = None;
            }
        }
    }

    /// The node that handed the request over.
    pub fn via(&self) -> Option<&str> {
        self.rare.as_ref()?.via.as_deref()
    }

    /// The kernel, for operations of this session.
    pub fn io<'a, K: Kernel>(&'a mut self, cx: &'a mut TurnCx<'_, K>) -> Io<'a, K> {
        cx.io(&mut self.in_flight, self.slot)
    }

    /// Queues a receive on the client's socket, outside of a tunnel.
    pub fn receive_from_client<K: Kernel>(&mut self, client: &K::Socket, cx: &mut TurnCx<'_, K>) {
        self.io(cx).submit(Purpose::Head, SocketOperation::Receive(client));
    }

    /// Puts the session's query to the view in force.
    pub fn decide<K: Kernel>(&self, cx: &TurnCx<'_, K>) -> Decision {
        let nothing_asked = Query { subject: None, device: None, port: 0 };
        cx.view.decide(self.query.as_ref().unwrap_or(&nothing_asked), cx.now.latest)
    }

    /// The client is a peer: its certificate says so, and the listener takes none without one.
    pub fn comes_from_peer<K: Kernel>(&self, cx: &TurnCx<'_, K>) -> bool {
        self.listener(cx).from == ListenerKind::Peer
    }

    /// The configuration of the listener that accepted the client.
    pub fn listener<'a, K: Kernel>(&self, cx: &TurnCx<'a, K>) -> &'a Listen {
        &cx.config.listen[self.listener as usize]
    }

    /// The node probes itself, or a peer probes this node, with a token that belongs to nobody.
    pub fn is_probe<K: Kernel>(&self, cx: &TurnCx<'_, K>) -> bool {
        let is_peers_own = self.proxy_header == ProxyHeader::LocalCommand && self.comes_from_peer(cx);
        is_peers_own || cx.shared.self_probe.asks(self.query.and_then(|query| query.subject))
    }

    /// The peer that the node's own probe is to be handed to.
    pub fn probed_peer<K: Kernel>(&self, cx: &TurnCx<'_, K>) -> Option<Arc<str>> {
        cx.shared.self_probe.node(self.query?.subject)
    }

    /// Records a regression: the view before this one would allow what `refusal` refuses, and no revocation
    /// explains it. Returns whether it is one.
    pub fn note_regression<K: Kernel>(&self, refusal: Refusal, cx: &TurnCx<'_, K>) -> bool {
        let query = self.query.as_ref();
        query.is_some_and(|query| cx.decision_log.record_regression(cx.view, query, refusal, cx.now.latest))
    }

    pub fn was_allowed_before<K: Kernel>(&self, cx: &TurnCx<'_, K>) -> bool {
        self.query.as_ref().is_some_and(|query| cx.view.allowed_before(query, cx.now.latest).is_some())
    }

    /// The facts that the audit log gets.
    pub fn facts(&self) -> SessionFacts {
        let subject = self.query.and_then(|query| query.subject);
        SessionFacts {
            session: self.id,
            client: self.client_address,
            via: self.via().map(Box::from),
            principal: self.rights.map(|rights| rights.principal),
            credential: subject.map(|subject| subject.key().credential_id()),
            grant: self.rights.map(|rights| rights.grant),
            device: self.rights.map(|rights| rights.device),
            uuid: self.query.and_then(|query| query.device),
            port: self.query.map(|query| query.port),
            generation: self.generation,
        }
    }
}
