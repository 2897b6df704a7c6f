//! From accept to the decision: collects the head, parses it, asks the view.

use std::net::SocketAddr;

use super::{Dial, Outcome, Rights, Session, Stage, Turn, give_back};
use crate::authz::{Decision, DeviceUuid, KeyHash, Query};
use crate::engine::kernel::Kernel;
use crate::engine::session::refusal::No;
use crate::engine::token::Purpose;
use crate::telemetry::Handshake;
use crate::wire::{HeadError, HttpVersion, ProxyHeaderError, Reply, parse_head, parse_proxy_header};

impl<K: Kernel> Session<K> {
    pub(super) fn expect_head(&mut self, turn: &mut Turn<'_, K>) {
        self.deadline = Some(turn.now.after(turn.shared.config.timeouts.head));
        self.submit_on_client(Purpose::Head, turn);
    }

    pub(super) fn on_head_bytes(&mut self, outcome: Outcome, turn: &mut Turn<'_, K>) {
        let Stage::Head(head) = &mut self.stage else { return };
        match (outcome.result, outcome.buffer) {
            (len @ 1.., Some(buffer)) => {
                head.extend_from_slice(turn.kernel.received(buffer, len as usize));
                turn.kernel.give_back(buffer);
                let head = std::mem::take(head);
                self.on_head(head, turn);
            }
            (0.., _) => self.on_head_end(turn),
            (error, _) => {
                give_back(outcome, turn.kernel);
                match -error {
                    libc::ENOBUFS | libc::EINTR | libc::EAGAIN => self.submit_on_client(Purpose::Head, turn),
                    errno => {
                        let error = std::io::Error::from_raw_os_error(errno);
                        self.note_lost_client("client-error", Some(error), turn);
                    }
                }
            }
        }
    }

    /// The client has ended before its head did.
    fn on_head_end(&mut self, turn: &mut Turn<'_, K>) {
        if matches!(&self.stage, Stage::Head(head) if head.is_empty()) {
            return self.note_lost_client("client-closed", None, turn);
        }
        let no = No { reply: Reply::Malformed, cause: "head-truncated", detail: None };
        self.refuse(HttpVersion::default(), no, turn);
    }

    /// All bytes so far: wait for more, or decide.
    fn on_head(&mut self, mut bytes: Vec<u8>, turn: &mut Turn<'_, K>) {
        if self.awaits_proxy_header {
            match parse_proxy_header(&bytes) {
                Ok(Some(header)) => {
                    self.awaits_proxy_header = false;
                    // A load balancer that looks whether the node lives speaks for itself.
                    self.client_address = header.client.or(self.client_address);
                    bytes.drain(..header.len);
                }
                Ok(None) => return self.expect_more(bytes, turn),
                Err(error) => return self.refuse_proxy_header(&error, turn),
            }
        }
        let listen = &turn.shared.config.listen[self.listener];
        let head = match parse_head(&bytes, &listen.suffixes) {
            Ok(Some(head)) => head,
            Ok(None) => return self.expect_more(bytes, turn),
            Err(error) => return self.refuse_head(error, turn),
        };
        let query = Query {
            key: head.token.as_ref().map(|token| KeyHash::of_token(token.as_bytes())),
            device: DeviceUuid::parse(head.uuid),
            port: head.port,
        };
        let version = head.version;
        let early = bytes.split_off(head.len);
        self.query = Some(query);
        self.act_on_decision(Dial { version, early, expires_at: None, began_us: 0 }, turn);
    }

    fn expect_more(&mut self, bytes: Vec<u8>, turn: &mut Turn<'_, K>) {
        self.stage = Stage::Head(bytes);
        self.submit_on_client(Purpose::Head, turn);
    }

    fn act_on_decision(&mut self, dial: Dial, turn: &mut Turn<'_, K>) {
        let version = dial.version;
        if turn.shared.is_draining() {
            return self.refuse_draining(version, turn);
        }
        self.generation = turn.view.get().map(|view| view.snapshot.generation());
        let began = std::time::Instant::now();
        let decision = self.decide(turn);
        turn.counters.decision_ns.record(began.elapsed().as_nanos() as u64);
        if let Some(query) = &self.query {
            turn.witness.note(turn.view, query, &decision, turn.now.wall);
        }
        match decision {
            Decision::Allow(route) => {
                self.rights = Some(Rights::of(&route));
                self.dial(&route, dial, turn);
            }
            Decision::Refuse(refusal) => {
                self.refuse(version, No::refused(refusal), turn);
            }
            Decision::Undecided(undecided) => {
                turn.counters.sessions.undecided.add(u64::from(!self.is_probe(turn)));
                self.refuse(version, No::undecided(undecided), turn);
            }
        }
    }

    /// The client has its reply.
    pub(super) fn note_handshake(&self, outcome: &'static str, turn: &Turn<'_, K>) {
        let us = turn.now.us_since(self.accepted_at_us);
        turn.counters.accept_to_reply.record_us(us);
        turn.counters.slowest_handshakes.record(Handshake {
            at: turn.now.wall,
            us,
            session: self.id,
            outcome,
            uuid: self.query.and_then(|query| query.device),
            port: self.query.map(|query| query.port),
        });
    }

    /// A load balancer should have come, and did not.
    pub(super) fn comes_past_proxy(&self, turn: &Turn<'_, K>) -> bool {
        let listen = &turn.shared.config.listen[self.listener];
        let is_trusted = |address: SocketAddr| listen.trusts_proxy(address.ip());
        self.awaits_proxy_header && !self.client_address.is_some_and(is_trusted)
    }

    pub(super) fn refuse_stranger(&mut self, turn: &mut Turn<'_, K>) {
        if self.client_address.is_none() {
            // Gone already, as a load balancer is that only looks whether anybody listens.
            return self.note_lost_client("client-closed", None, turn);
        }
        let detail = Some("it comes from outside the listener's proxy_from".to_owned());
        self.refuse(
            HttpVersion::default(),
            No { reply: Reply::Malformed, cause: "proxy-untrusted", detail },
            turn,
        );
    }

    fn refuse_proxy_header(&mut self, error: &ProxyHeaderError, turn: &mut Turn<'_, K>) {
        let cause = match error {
            ProxyHeaderError::Missing => "proxy-header-missing",
            ProxyHeaderError::TooLong | ProxyHeaderError::Malformed(_) => "proxy-header-malformed",
        };
        let no = No { reply: Reply::Malformed, cause, detail: Some(error.to_string()) };
        self.refuse(HttpVersion::default(), no, turn);
    }

    fn refuse_head(&mut self, error: HeadError, turn: &mut Turn<'_, K>) {
        let reply = error.reply();
        let cause = reply.slug().unwrap_or("malformed");
        self.refuse(error.version(), No { reply, cause, detail: Some(error.to_string()) }, turn);
    }
}
