//! From accept to the decision: collects the head, parses it, asks the view.

use std::net::SocketAddr;
use std::sync::Arc;

use rustls::ServerConfig;

use super::{Dial, Outcome, ProxyHeader, Rights, Session, Stage, Turn, give_back};
use crate::authz::{Decision, DeviceUuid, Query, Refusal};
use crate::config::ListenerKind;
use crate::engine::kernel::Kernel;
use crate::engine::session::identity::{Presented, Unusable};
use crate::engine::session::reject::Rejection;
use crate::engine::token_rate_limit::Budget;
use crate::engine::user_data::Purpose;
use crate::telemetry::{Cause, Handshake};
use crate::wire::{
    HeadError, HttpVersion, ProxyHeaderError, Reply, parse_head, parse_hops, parse_proxy_header,
};

impl<K: Kernel> Session<K> {
    /// Waits for what the client says first. All of it, to the end of the head, has one deadline.
    pub(super) fn expect_client(&mut self, tls: Option<Arc<ServerConfig>>, turn: &mut Turn<'_, K>) {
        self.deadline = Some(turn.now.after(turn.shared.config.timeouts.head));
        match tls {
            Some(tls) if self.proxy_header != ProxyHeader::Expected || self.comes_from_node(turn) => {
                self.secure(tls, Vec::new(), turn)
            }
            _ => self.submit_on_client(Purpose::Head, turn),
        }
    }

    pub(super) fn on_head_bytes(&mut self, outcome: Outcome, turn: &mut Turn<'_, K>) {
        let Stage::Head(head) = &mut self.stage else { return };
        match (outcome.result, outcome.buffer) {
            (len @ 1.., Some(buffer)) => {
                let received = turn.kernel.received(buffer, len as usize);
                let opened = match &mut self.client_tls {
                    Some(secured) => secured.receive(received, head),
                    None => {
                        head.extend_from_slice(received);
                        Ok(())
                    }
                };
                turn.kernel.give_back(buffer);
                let head = std::mem::take(head);
                match opened {
                    Ok(()) => self.on_head(head, turn),
                    Err(error) => self.fail_handshake(&error, turn),
                }
            }
            (0.., _) => self.on_head_end(turn),
            (error, _) => {
                give_back(outcome, turn.kernel);
                self.on_receive_error(error, turn);
            }
        }
    }

    /// A receive on the client's socket came to `error`, a negative errno.
    pub(super) fn on_receive_error(&mut self, error: i32, turn: &mut Turn<'_, K>) {
        match -error {
            libc::ENOBUFS | libc::EINTR | libc::EAGAIN => self.submit_on_client(Purpose::Head, turn),
            errno => {
                let error = std::io::Error::from_raw_os_error(errno);
                self.note_lost_client(Cause::ClientError, Some(error), turn);
            }
        }
    }

    /// The client has ended before its head did.
    fn on_head_end(&mut self, turn: &mut Turn<'_, K>) {
        if self.is_spare_of_node(turn) {
            return self.end(turn);
        }
        if matches!(&self.stage, Stage::Head(head) if head.is_empty()) {
            return self.note_lost_client(Cause::ClientClosed, None, turn);
        }
        let no = Rejection { reply: Reply::Malformed, cause: Cause::HeadTruncated, detail: None };
        self.refuse(HttpVersion::default(), no, turn);
    }

    /// All bytes so far: wait for more, or decide.
    pub(super) fn on_head(&mut self, mut bytes: Vec<u8>, turn: &mut Turn<'_, K>) {
        if self.proxy_header == ProxyHeader::Expected {
            match parse_proxy_header(&bytes) {
                Ok(Some(header)) => {
                    self.proxy_header = if header.client.is_some() {
                        ProxyHeader::NotExpected
                    } else {
                        ProxyHeader::LocalCommand
                    };
                    self.client_address = header.client.or(self.client_address);
                    bytes.drain(..header.len);
                    if self.client_tls.is_none()
                        && let Some(tls) = turn.shared.tls(self.listener)
                    {
                        return self.secure(tls, bytes, turn);
                    }
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
        let shown = head.token.as_ref().map(|token| {
            let verifier = turn.shared.verifier();
            Presented::read(token.as_bytes(), &verifier, turn.now.wall)
        });
        let subject = shown.as_ref().map(|shown| shown.subject);
        self.query = Some(Query { subject, device: DeviceUuid::parse(head.uuid), port: head.port });
        let (version, len) = (head.version, head.len);
        let token = head.token.filter(|_| turn.shared.config.forward.tls.is_some());
        let hops = if self.comes_from_node(turn) { parse_hops(&bytes[..len]) } else { Vec::new() };
        match shown.and_then(|shown| shown.unusable) {
            Some(unusable) if !turn.shared.is_draining() => self.refuse_token(version, unusable, turn),
            _ => {
                let early = bytes.split_off(len);
                let dial = Dial {
                    version,
                    early,
                    token,
                    hops,
                    is_second_look: false,
                    is_past_spares: false,
                    expires_at: None,
                    began_us: 0,
                };
                self.act_on_decision(dial, turn);
            }
        }
    }

    /// What the client shows cannot be put to any snapshot.
    fn refuse_token(&mut self, version: HttpVersion, unusable: Unusable, turn: &mut Turn<'_, K>) {
        let (cause, detail) = (Cause::from(unusable), Some(unusable.detail()));
        let no = Rejection { reply: Reply::Credentials, cause, detail };
        if unusable.is_unproven() {
            self.refuse_unknown(version, no, turn);
        } else {
            self.refuse(version, no, turn);
        }
    }

    /// Nobody holds the token. A network that has shown many such is told something else.
    fn refuse_unknown(&mut self, version: HttpVersion, no: Rejection, turn: &mut Turn<'_, K>) {
        let budget = match self.client_address {
            Some(client) if !self.is_probe(turn) => {
                turn.shared.token_rate_limit.record(client.ip(), turn.now.wall)
            }
            _ => Budget::Left,
        };
        let no = match budget {
            Budget::Left => no,
            Budget::Spent => Rejection {
                reply: Reply::Limit,
                cause: Cause::UnknownTokens,
                detail: Some(format!("it is {}", no.cause)),
            },
        };
        self.refuse(version, no, turn);
    }

    fn expect_more(&mut self, bytes: Vec<u8>, turn: &mut Turn<'_, K>) {
        self.stage = Stage::Head(bytes);
        if self.client_tls.as_ref().is_some_and(|client| client.has_ended()) {
            return self.on_head_end(turn);
        }
        self.submit_on_client(Purpose::Head, turn);
    }

    pub(super) fn act_on_decision(&mut self, dial: Dial, turn: &mut Turn<'_, K>) {
        let version = dial.version;
        if turn.shared.is_draining() {
            return self.refuse_draining(version, turn);
        }
        self.generation = turn.view.get().map(|view| view.snapshot.generation());
        let began = std::time::Instant::now();
        let decision = self.decide(turn);
        turn.counters.decision_ns.record(began.elapsed().as_nanos() as u64);
        if let Some(query) = &self.query {
            turn.decision_log.note(turn.view, query, &decision, turn.now.wall);
        }
        if !matches!(decision, Decision::Allow(_))
            && let Some(node) = self.probed_node(turn)
        {
            return self.go_by_node(&node, Dial { is_past_spares: true, ..dial }, turn);
        }
        match decision {
            Decision::Allow(route) => {
                self.rights = Some(Rights::of(&route));
                self.dial(&route, dial, turn);
            }
            Decision::Refuse(Refusal::DeviceElsewhere) => self.hand_over(dial, turn),
            Decision::Refuse(Refusal::CredentialUnknown) => {
                self.refuse_unknown(version, Rejection::refused(Refusal::CredentialUnknown), turn);
            }
            Decision::Refuse(refusal) => {
                self.refuse(version, Rejection::refused(refusal), turn);
            }
            Decision::Undecided(undecided) => {
                turn.counters.sessions.undecided.add(u64::from(!self.is_probe(turn)));
                self.refuse(version, Rejection::undecided(undecided), turn);
            }
        }
    }

    /// The client has its reply.
    pub(super) fn note_handshake(&self, refused: Option<Cause>, turn: &Turn<'_, K>) {
        let us = turn.now.us_since(self.accepted_at_us);
        turn.counters.accept_to_reply.record_us(us);
        turn.counters.slowest_handshakes.record(Handshake {
            at: turn.now.wall,
            us,
            session: self.id,
            refused,
            uuid: self.query.and_then(|query| query.device),
            port: self.query.map(|query| query.port),
        });
    }

    /// A load balancer should have come, and did not.
    pub(super) fn comes_past_proxy(&self, turn: &Turn<'_, K>) -> bool {
        let listen = &turn.shared.config.listen[self.listener];
        let is_trusted = |address: SocketAddr| listen.trusts_proxy(address.ip());
        let is_late = self.proxy_header == ProxyHeader::Expected && !self.comes_from_node(turn);
        is_late && !self.client_address.is_some_and(is_trusted)
    }

    /// Another node has made it for requests to come, and there is none yet.
    pub(super) fn is_spare_of_node(&self, turn: &Turn<'_, K>) -> bool {
        let is_silent = matches!(&self.stage, Stage::Head(head) if head.is_empty());
        is_silent && self.client_tls.is_some() && self.comes_from_node(turn)
    }

    /// Its certificate says so, and nobody without one comes in.
    pub(super) fn comes_from_node(&self, turn: &Turn<'_, K>) -> bool {
        turn.shared.config.listen[self.listener].from == ListenerKind::Peer
    }

    pub(super) fn refuse_stranger(&mut self, turn: &mut Turn<'_, K>) {
        if self.client_address.is_none() {
            // Gone already.
            return self.note_lost_client(Cause::ClientClosed, None, turn);
        }
        let detail = Some("it comes from outside the listener's proxy_from".to_owned());
        self.refuse(
            HttpVersion::default(),
            Rejection { reply: Reply::Malformed, cause: Cause::ProxyUntrusted, detail },
            turn,
        );
    }

    fn refuse_proxy_header(&mut self, error: &ProxyHeaderError, turn: &mut Turn<'_, K>) {
        let (cause, detail) = (error.into(), Some(error.to_string()));
        let no = Rejection { reply: Reply::Malformed, cause, detail };
        self.refuse(HttpVersion::default(), no, turn);
    }

    fn refuse_head(&mut self, error: HeadError, turn: &mut Turn<'_, K>) {
        let (reply, cause, detail) = (error.reply(), error.into(), Some(error.to_string()));
        self.refuse(error.version(), Rejection { reply, cause, detail }, turn);
    }
}
