//! Telling a client no: one write, then a close that leaves the client time to read it.
//!
//! Closing at once would answer whatever the client still sends with a reset, and a reset can destroy the
//! reply before it is read. So the sending side is shut, and what arrives is discarded for a while.

use std::io;
use std::time::Duration;

use super::tls_handshake::Then;
use super::{Outcome, ProxyHeader, Session, Stage, Turn, give_back};
use crate::authz::{PrincipalId, Refusal, Subject, Undecided};
use crate::engine::kernel::Kernel;
use crate::engine::user_data::Purpose;
use crate::telemetry::{AuditEvent, Cause, RefusalLabel, SessionFacts, SessionRefusal};
use crate::wire::{HttpVersion, Reply};

/// What the client is told, and the true cause that the audit log keeps.
pub(super) struct Rejection {
    pub reply: Reply,
    pub cause: Cause,
    /// The operating system's or the parser's word for it.
    pub detail: Option<String>,
}

impl Rejection {
    pub fn refused(refusal: Refusal) -> Self {
        Self { reply: refusal.reply(), cause: refusal.into(), detail: None }
    }

    pub fn undecided(undecided: Undecided) -> Self {
        Self { reply: Reply::Undecided, cause: undecided.into(), detail: None }
    }
}

impl<K: Kernel> Session<K> {
    pub(super) fn refuse(&mut self, version: HttpVersion, no: Rejection, turn: &mut Turn<'_, K>) {
        // Before the reply, since the node asks for it once it has that.
        let subject = self.query.and_then(|query| query.subject);
        turn.shared.self_probe.note_refusal(subject, no.cause, no.detail.as_deref());
        // As well before it, since a client that reads it may ask again at once.
        self.permit = None;
        let bytes = no.reply.bytes(version);
        // A new connection has room for a reply; where it has not, the client is beyond being told.
        let told = matches!(self.tell_client(bytes, Then::End, turn), Ok(true));
        self.note_handshake(Some(no.cause), turn);
        self.note_refusal(no, turn);
        let mut io = super::io(&mut self.in_flight, self.slot, turn);
        io.cancel(Purpose::Connect);
        io.cancel(Purpose::DownReceive);
        if !told {
            return self.end(turn);
        }
        self.linger(turn);
    }

    /// Nothing more is sent; the client is given the time to read what was.
    pub(super) fn linger(&mut self, turn: &mut Turn<'_, K>) {
        turn.kernel.shut_write(&self.client);
        self.stage = Stage::Refused { discarded_bytes: 0 };
        self.deadline = Some(turn.now.after(LINGER));
        if !self.in_flight.has(Purpose::Head) {
            self.submit_on_client(Purpose::Head, turn);
        }
    }

    pub(super) fn refuse_draining(&mut self, version: HttpVersion, turn: &mut Turn<'_, K>) {
        self.refuse(
            version,
            Rejection { reply: Reply::Draining, cause: Cause::Draining, detail: None },
            turn,
        );
    }

    pub(super) fn refuse_late_head(&mut self, turn: &mut Turn<'_, K>) {
        let no = Rejection { reply: Reply::HeadTimeout, cause: Cause::HeadTimeout, detail: None };
        self.refuse(HttpVersion::default(), no, turn);
    }

    /// The node has no place for this session.
    pub(super) fn refuse_full_node(&mut self, turn: &mut Turn<'_, K>) {
        let no = Rejection { reply: Reply::Limit, cause: Cause::LimitNode, detail: None };
        self.refuse(HttpVersion::default(), no, turn);
    }

    /// The client went away before it could be told anything.
    pub(super) fn note_lost_client(
        &mut self,
        cause: Cause,
        error: Option<io::Error>,
        turn: &mut Turn<'_, K>,
    ) {
        if self.is_balancers_check() {
            turn.counters.sessions.balancer_checks.add(1);
        } else {
            self.note(None, cause, error.map(|error| error.to_string()), turn);
        }
        self.end(turn);
    }

    /// A load balancer has looked whether the node lives, and asked for nothing: every second or so, from each
    /// of them, which would fill the audit log with nothing.
    fn is_balancers_check(&self) -> bool {
        self.proxy_header != ProxyHeader::NotExpected && self.query.is_none()
    }

    /// What a refused client still sends.
    pub(super) fn on_discarded(&mut self, outcome: Outcome, turn: &mut Turn<'_, K>) {
        give_back(outcome, turn.kernel);
        let Stage::Refused { discarded_bytes } = &mut self.stage else { return };
        match outcome.result {
            len @ 1.. => *discarded_bytes += len as usize,
            error if matches!(-error, libc::ENOBUFS | libc::EINTR | libc::EAGAIN) => {}
            _closed => return self.end(turn),
        }
        if *discarded_bytes > DISCARDED_BYTES_MAX {
            self.end(turn);
        } else {
            self.submit_on_client(Purpose::Head, turn);
        }
    }

    fn note_refusal(&mut self, no: Rejection, turn: &mut Turn<'_, K>) {
        if self.is_probe(turn) {
            return;
        }
        turn.counters.sessions.refused.add(1);
        turn.counters.refusals.add(RefusalLabel { reply: no.reply, cause: no.cause });
        self.note(Some(no.reply), no.cause, no.detail, turn);
    }

    pub(super) fn note(
        &mut self,
        reply: Option<Reply>,
        cause: Cause,
        detail: Option<String>,
        turn: &mut Turn<'_, K>,
    ) {
        let refusal = SessionRefusal {
            facts: SessionFacts { principal: self.who_asks(turn), ..self.facts() },
            status: reply.map(Reply::status),
            slug: reply.and_then(Reply::slug),
            cause,
            detail,
            duration_us: turn.now.us_since(self.accepted_at_us),
        };
        if !turn.shared.audit.send(AuditEvent::Refusal(refusal)) {
            turn.counters.sessions.audit_dropped.add(1);
        }
    }

    /// Whose credential it is, whatever it is worth by now.
    fn who_asks(&self, turn: &Turn<'_, K>) -> Option<PrincipalId> {
        match self.query.as_ref()?.subject? {
            Subject::Principal { id, .. } => Some(id),
            Subject::Key(key) | Subject::Secret { key, .. } => {
                turn.view.get()?.snapshot.credential(&key).map(|row| row.principal)
            }
        }
    }
}

/// How long a refused client may take to read its reply and close.
const LINGER: Duration = Duration::from_secs(2);

/// Bytes that a refused client may still send before it is cut off.
const DISCARDED_BYTES_MAX: usize = 256 * 1024;
