//! Rejecting a client: one reply, then a close that leaves the client time to read it.
//!
//! A close at once would answer the client's next bytes with a reset, and a reset can destroy the reply before the
//! client reads it. So the sending side is shut, and arriving bytes are discarded for a while.

use std::io;
use std::time::Duration;

use super::State;
use super::core::{ProxyHeader, SessionCore};
use super::reply::{AfterReply, send_reply};
use crate::authz::{PrincipalId, Refusal, Subject, Undecided};
use crate::engine::kernel::Kernel;
use crate::engine::kernel::io::{Outcome, errno, is_transient};
use crate::engine::limits::NoPlace;
use crate::engine::tls::transport::Endpoint;
use crate::engine::turn::TurnCx;
use crate::engine::user_data::Purpose;
use crate::telemetry::{AuditEvent, Cause, RefusalLabel, SessionFacts, SessionRefusal};
use crate::wire::{HttpVersion, Reply};

/// The reply that the client gets, and the true cause that the audit log keeps.
pub(super) struct Rejection {
    pub reply: Reply,
    pub cause: Cause,
    /// The error text of the operating system or of the parser.
    pub detail: Option<String>,
}

/// The client got its reply; the session waits for it to close.
pub(super) struct Rejecting<K: Kernel> {
    pub(super) client: Endpoint<K>,
    /// The socket of a device or a peer, kept while its cancelled operation is in flight.
    pub(super) leaving: Option<K::Socket>,
    discarded_bytes: usize,
}

impl Rejection {
    pub fn refused(refusal: Refusal) -> Self {
        Self { reply: refusal.reply(), cause: refusal.into(), detail: None }
    }

    pub fn undecided(undecided: Undecided) -> Self {
        Self { reply: Reply::Undecided, cause: undecided.into(), detail: None }
    }

    pub fn draining() -> Self {
        Self { reply: Reply::Draining, cause: Cause::Draining, detail: None }
    }

    /// Another process has this node's name.
    pub fn stand_by() -> Self {
        Self { reply: Reply::Undecided, cause: Cause::NodeStandBy, detail: None }
    }

    /// The client is over a limit that counts before its head.
    pub fn no_place(reason: NoPlace) -> Self {
        Self { reply: Reply::Limit, cause: reason.into(), detail: None }
    }

    /// The client has not sent its head, and the node needs the place.
    pub fn gives_way() -> Self {
        Self { reply: Reply::Limit, cause: Cause::HeadDropped, detail: None }
    }
}

impl<K: Kernel> Rejecting<K> {
    /// Sends the reply. The caller has dropped the session's permit for a tunnel, since a client that reads the
    /// reply may ask again at once.
    pub fn start(
        mut client: Endpoint<K>,
        leaving: Option<K::Socket>,
        version: HttpVersion,
        rejection: Rejection,
        core: &mut SessionCore,
        cx: &mut TurnCx<'_, K>,
    ) -> State<K> {
        let Rejection { reply, cause, .. } = rejection;
        // Before the reply, since the node's own probe reads it once it has that.
        let subject = core.query.and_then(|query| query.subject);
        cx.shared.self_probe.note_refusal(subject, cause, rejection.detail.as_deref());
        // A new connection has room for a reply. Where it has none, the client cannot get one.
        let bytes = reply.bytes_for(version, core.id);
        let is_sent = matches!(send_reply(&mut client, &bytes, AfterReply::End, cx.kernel), Ok(true));
        core.record_reply(Some(cause), cx);
        core.record_refusal(rejection, cx);
        let mut io = core.io(cx);
        io.cancel(Purpose::Connect);
        io.cancel(Purpose::DownReceive);
        if is_sent {
            Self::linger(client, leaving, core, cx)
        } else {
            State::close_sockets(client.socket, leaving, core, cx)
        }
    }

    /// Sends nothing more, and gives the client the time to read what was sent.
    pub fn linger(
        client: Endpoint<K>,
        leaving: Option<K::Socket>,
        core: &mut SessionCore,
        cx: &mut TurnCx<'_, K>,
    ) -> State<K> {
        cx.kernel.shut_write(&client.socket);
        core.deadline = Some(cx.now.after(LINGER));
        if !core.in_flight.has(Purpose::Head) {
            core.receive_from_client(&client.socket, cx);
        }
        let rejecting = Box::new(Self { client, leaving, discarded_bytes: 0 });
        State::Reject(rejecting.drop_unused(core))
    }

    /// The client has sent more bytes, or has closed.
    pub fn on_received(
        mut self: Box<Self>,
        outcome: Outcome,
        core: &mut SessionCore,
        cx: &mut TurnCx<'_, K>,
    ) -> State<K> {
        let result = outcome.result;
        outcome.give_back(cx.kernel);
        let is_over = match result {
            len @ 1.. => {
                self.discarded_bytes += len as usize;
                self.discarded_bytes > DISCARDED_BYTES_MAX
            }
            error => !is_transient(&errno(error)),
        };
        if is_over {
            return State::Reject(self).close(core, cx);
        }
        core.receive_from_client(&self.client.socket, cx);
        State::Reject(self)
    }

    /// Closes the device's or the peer's socket, once no operation uses it.
    pub fn drop_unused(mut self: Box<Self>, core: &SessionCore) -> Box<Self> {
        if !core.in_flight.has(Purpose::Connect) && !core.in_flight.has(Purpose::DownReceive) {
            self.leaving = None;
        }
        self
    }
}

impl SessionCore {
    /// Records that the client went away before it could get a reply.
    pub fn record_lost_client<K: Kernel>(&self, cause: Cause, error: Option<io::Error>, cx: &TurnCx<'_, K>) {
        if self.is_balancers_check() {
            cx.counters.sessions.balancer_checks.add(1);
        } else {
            self.audit_refusal(None, cause, error.map(|error| error.to_string()), cx);
        }
    }

    /// A load balancer checked that the node answers, and asked for nothing. Each does so every second or so,
    /// which would fill the audit log.
    fn is_balancers_check(&self) -> bool {
        self.proxy_header != ProxyHeader::NotExpected && self.query.is_none()
    }

    fn record_refusal<K: Kernel>(&self, rejection: Rejection, cx: &TurnCx<'_, K>) {
        if self.is_probe(cx) {
            return;
        }
        let Rejection { reply, cause, detail } = rejection;
        cx.counters.sessions.refused.add(1);
        cx.count_at(self.listener, |counters| counters.refused.add(1));
        cx.counters.refusals.add(RefusalLabel { reply, cause });
        self.audit_refusal(Some(reply), cause, detail, cx);
    }

    /// Writes the refusal to the audit log; `reply` is `None` where the client got none.
    pub fn audit_refusal<K: Kernel>(
        &self,
        reply: Option<Reply>,
        cause: Cause,
        detail: Option<String>,
        cx: &TurnCx<'_, K>,
    ) {
        let refusal = SessionRefusal {
            facts: SessionFacts { principal: self.claimed_principal(cx), ..self.facts() },
            status: reply.map(Reply::status),
            slug: reply.and_then(Reply::slug),
            cause,
            detail,
            duration_us: cx.now.us_since(self.accepted_at_us),
        };
        if !cx.shared.audit.send(AuditEvent::Refusal(refusal)) {
            cx.counters.sessions.audit_dropped.add(1);
        }
    }

    /// The principal of the credential, whether it is valid or not.
    fn claimed_principal<K: Kernel>(&self, cx: &TurnCx<'_, K>) -> Option<PrincipalId> {
        match self.query.as_ref()?.subject? {
            Subject::Principal { id, .. } | Subject::Bearer { id, .. } => Some(id),
            Subject::Key(key) | Subject::Secret { key, .. } | Subject::Login { key, .. } => {
                cx.view.get()?.snapshot.credential(&key).map(|row| row.principal)
            }
        }
    }
}

/// Time that a rejected client has to read its reply and close.
const LINGER: Duration = Duration::from_secs(2);

/// Bytes that a rejected client may still send before it is cut off.
const DISCARDED_BYTES_MAX: usize = 256 * 1024;
