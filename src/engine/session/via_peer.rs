//! A device that another node holds: this node hands the request over, and forwards what comes of it.
//!
//! The other node decides again by itself. What it says no with is what the client is told.

use std::io;
use std::net::SocketAddr;

use rustls::pki_types::ServerName;

use super::reject::Rejection;
use super::{Dial, Outcome, Rights, Session, Stage, Turn, give_back};
use crate::authz::{Decision, PeerRoute, Query, Refusal};
use crate::engine::kernel::{Kernel, SocketOperation};
use crate::engine::peer_pool::ReadyConnection;
use crate::engine::tls::handshake_pool::{HandshakeDone, HandshakeOwner};
use crate::engine::tls::stream::TlsStream;
use crate::engine::user_data::Purpose;
use crate::telemetry::Cause;
use crate::wire::{PeerRequest, Reply, Sealed, TlsConnection, TlsError, parse_peer_reply};

/// A request on its way to another node.
pub(super) struct Handing {
    dial: Dial,
    node: Box<str>,
    step: Step,
    /// The connection was there before the request, and may have ended unnoticed.
    is_spare: bool,
}

enum Step {
    Connecting,
    Shaking,
    /// The node has the request; what it has said so far.
    Asked(Vec<u8>),
}

impl Handing {
    pub fn dial(&self) -> &Dial {
        &self.dial
    }
}

impl<K: Kernel> Session<K> {
    /// The device may be reached, and is elsewhere.
    pub(super) fn hand_over(&mut self, dial: Dial, turn: &mut Turn<'_, K>) {
        let version = dial.version;
        let (view, query) = (turn.view, self.query);
        let elsewhere = query.as_ref().and_then(|query| view.elsewhere(query, turn.now.wall));
        let Some(PeerRoute { node, principal, grant, device, expires_at }) = elsewhere else {
            return self.refuse(version, Rejection::refused(Refusal::DeviceOffline), turn);
        };
        self.rights = Some(Rights { principal, grant, device });
        self.go_by_node(node, Dial { expires_at, ..dial }, turn);
    }

    /// By the rights that there are, if any: the node as its own client has none.
    pub(super) fn go_by_node(&mut self, node: &str, dial: Dial, turn: &mut Turn<'_, K>) {
        let version = dial.version;
        let Some(tls) = turn.shared.node_tls() else {
            return self.refuse(version, Rejection::refused(Refusal::DeviceElsewhere), turn);
        };
        let hops_max = turn.shared.config.forward.hops_max;
        if dial.hops.iter().any(|hop| **hop == *node) || dial.hops.len() >= hops_max {
            let detail = format!("it came by {} and was to go to {node}", dial.hops.join(", "));
            return self.refuse(
                version,
                Rejection { reply: Reply::Loop, cause: Cause::Loop, detail: Some(detail) },
                turn,
            );
        }
        let directory = turn.shared.authority.directory().get();
        let entry = match directory.find(node, turn.shared.config.forward.max_age) {
            Ok(entry) => entry,
            Err(trouble) => return self.refuse(version, no_node(node, trouble.into(), None), turn),
        };
        if let Some(Rights { principal, device, .. }) = self.rights {
            match turn.shared.limits.permit(principal, device) {
                Ok(permit) => self.permit = Some(permit),
                Err(hit) => {
                    let no = Rejection { reply: Reply::Limit, cause: hit.into(), detail: None };
                    return self.refuse(version, no, turn);
                }
            }
        }
        let deadline = Some(turn.now.after(turn.shared.config.timeouts.forward));
        let dial = Dial { began_us: turn.now.monotonic_us, ..dial };
        let spare = match dial.is_past_spares {
            false => {
                let (peers, mut cx) = turn.peer_pool();
                peers.take(node, entry.forward, &tls, &mut cx)
            }
            true => None,
        };
        if let Some(ReadyConnection { socket, stream: secured }) = spare {
            turn.counters.sessions.spares_used.add(1);
            (self.device, self.device_tls, self.deadline) = (Some(socket), Some(secured), deadline);
            let step = Step::Asked(Vec::new());
            self.stage = Stage::Handing(Box::new(Handing { dial, node: node.into(), step, is_spare: true }));
            return self.ask_node(turn);
        }
        let name = ServerName::try_from(node.to_owned()).map_err(io::Error::other);
        let tls = name.and_then(|name| TlsConnection::connect(tls, name).map_err(io::Error::other));
        let opened = tls.and_then(|tls| Ok((tls, turn.kernel.open_peer_socket(entry.forward)?)));
        let (tls, socket) = match opened {
            Ok(opened) => opened,
            Err(error) => return self.refuse(version, no_node(node, Cause::NodeSocket, Some(&error)), turn),
        };
        self.device_tls = Some(Box::new(TlsStream::new(tls)));
        let socket = self.device.insert(socket);
        let mut io = super::io(&mut self.in_flight, self.slot, turn);
        io.submit(Purpose::Connect, SocketOperation::Connect(socket, entry.forward));
        self.deadline = deadline;
        let step = Step::Connecting;
        self.stage = Stage::Handing(Box::new(Handing { dial, node: node.into(), step, is_spare: false }));
    }

    /// The connection to the node is there, or is not to be had.
    pub(super) fn on_node_connected(&mut self, result: i32, turn: &mut Turn<'_, K>) {
        let Stage::Handing(handing) = &mut self.stage else { return };
        if result != 0 {
            let error = io::Error::from_raw_os_error(-result);
            return self.refuse_by_node(Cause::NodeUnreachable, Some(&error), turn);
        }
        handing.step = Step::Shaking;
        self.shake_with_node(Vec::new(), turn);
    }

    fn shake_with_node(&mut self, records: Vec<u8>, turn: &mut Turn<'_, K>) {
        let Some(secured) = self.device_tls.take() else { return };
        match turn.handshakes.start(HandshakeOwner::Session(self.slot), secured, records) {
            Ok(()) => self.in_flight.begin(Purpose::TlsHandshake),
            Err(_full) => self.refuse_by_node(Cause::NodeHandshakesFull, None, turn),
        }
    }

    /// A step of the handshake with the node was taken.
    pub(super) fn on_shaken_with_node(&mut self, shaken: HandshakeDone, turn: &mut Turn<'_, K>) {
        let (Stage::Handing(handing), Some(socket)) = (&mut self.stage, &self.device) else { return };
        let HandshakeDone { stream: mut secured, plain, outcome, .. } = shaken;
        let flushed = secured.outgoing().flush(turn.kernel, socket);
        let (is_open, is_all_sent) = (secured.is_open(), secured.outgoing().is_empty());
        self.device_tls = Some(secured);
        match outcome.map_err(io::Error::other).and(flushed) {
            Err(error) => return self.refuse_by_node(Cause::NodeTls, Some(&error), turn),
            Ok(_) if !is_all_sent => return self.refuse_by_node(Cause::NodeStalled, None, turn),
            Ok(_) => {}
        }
        if !is_open {
            return self.receive_from_node(turn);
        }
        handing.step = Step::Asked(plain);
        self.ask_node(turn);
    }

    /// The connection is there: gives the node the request.
    fn ask_node(&mut self, turn: &mut Turn<'_, K>) {
        // For itself, a node names no client.
        let client = self.client_address.filter(|_| !self.is_probe(turn));
        let (Stage::Handing(handing), Some(socket), Some(secured)) =
            (&self.stage, &self.device, &mut self.device_tls)
        else {
            return;
        };
        let request = handing.dial.request(self.query, client, turn);
        let mut sealed = Sealed::default();
        let sent = secured
            .seal(&request, &mut sealed)
            .map_err(io::Error::other)
            .and_then(|()| secured.outgoing().send(sealed.bytes(), turn.kernel, socket));
        let is_all_sent = secured.outgoing().is_empty();
        match sent {
            Err(error) => self.refuse_by_node(Cause::NodeLost, Some(&error), turn),
            // It has room for a request, or is not worth waiting for.
            Ok(_) if !is_all_sent => self.refuse_by_node(Cause::NodeStalled, None, turn),
            Ok(_) => self.receive_from_node(turn),
        }
    }

    pub(super) fn on_node_bytes(&mut self, outcome: Outcome, turn: &mut Turn<'_, K>) {
        let (len, buffer) = match (outcome.result, outcome.buffer) {
            (len @ 1.., Some(buffer)) => (len as usize, buffer),
            (result, _) => {
                give_back(outcome, turn.kernel);
                return match -result {
                    libc::ENOBUFS | libc::EINTR | libc::EAGAIN => self.receive_from_node(turn),
                    0.. => self.refuse_by_node(Cause::NodeClosed, None, turn),
                    _ => {
                        let error = io::Error::from_raw_os_error(-result);
                        self.refuse_by_node(Cause::NodeLost, Some(&error), turn);
                    }
                };
            }
        };
        let records = turn.kernel.received(buffer, len).to_vec();
        turn.kernel.give_back(buffer);
        let Stage::Handing(handing) = &mut self.stage else { return };
        match (&mut handing.step, &mut self.device_tls) {
            (Step::Asked(said), Some(secured)) => {
                let opened = secured.receive(&records, said);
                self.on_node_reply(opened, turn);
            }
            _ => self.shake_with_node(records, turn),
        }
    }

    /// The node may have said all by now.
    fn on_node_reply(&mut self, opened: Result<(), TlsError>, turn: &mut Turn<'_, K>) {
        if let Err(error) = opened {
            return self.refuse_by_node(Cause::NodeTls, Some(&io::Error::other(error)), turn);
        }
        let Stage::Handing(handing) = &mut self.stage else { return };
        let Step::Asked(said) = &mut handing.step else { return };
        let reply = match parse_peer_reply(said) {
            Ok(Some(reply)) => reply,
            Ok(None) if self.device_tls.as_ref().is_some_and(|node| node.has_ended()) => {
                return self.refuse_by_node(Cause::NodeClosed, None, turn);
            }
            Ok(None) => return self.receive_from_node(turn),
            Err(error) => return self.refuse_by_node(Cause::NodeReply, Some(&io::Error::other(error)), turn),
        };
        let early_down = said.split_off(reply.len);
        let Stage::Handing(handing) = std::mem::replace(&mut self.stage, Stage::Ended(None)) else { return };
        let Handing { dial, node, .. } = *handing;
        if !self.is_probe(turn) {
            turn.counters.handover.record_us(turn.now.us_since(dial.began_us));
        }
        match reply.reply {
            Reply::Established => {
                turn.counters.sessions.tunnels_forwarded.add(1);
                self.open_tunnel(dial, &early_down, turn);
            }
            Reply::DeviceOffline if !dial.is_second_look => self.look_again(dial, turn),
            reply => {
                let detail = Some(format!("{node} says {}", reply.slug().unwrap_or_default()));
                self.refuse(dial.version, Rejection { reply, cause: Cause::RefusedByNode, detail }, turn);
            }
        }
    }

    /// The node that should hold the device does not: it may have moved since.
    fn look_again(&mut self, dial: Dial, turn: &mut Turn<'_, K>) {
        (self.device, self.device_tls, self.permit) = (None, None, None);
        self.act_on_decision(Dial { is_second_look: true, ..dial }, turn);
    }

    /// The view has changed while the request was on its way.
    pub(super) fn recheck_handing(&mut self, decision: Decision, turn: &mut Turn<'_, K>) {
        let Stage::Handing(handing) = &self.stage else { return };
        let version = handing.dial.version;
        match decision {
            Decision::Refuse(Refusal::DeviceElsewhere | Refusal::DeviceOffline)
            | Decision::Allow(_)
            | Decision::Undecided(_) => {}
            // It is the next node that it wants to be refused by.
            Decision::Refuse(_) if self.is_probe(turn) => {}
            Decision::Refuse(refusal) => {
                self.is_regression(refusal, turn);
                self.refuse(version, Rejection::refused(refusal), turn);
            }
        }
    }

    /// `timeouts.forward` has passed.
    pub(super) fn refuse_silent_node(&mut self, turn: &mut Turn<'_, K>) {
        let Stage::Handing(handing) = &self.stage else { return };
        let (version, detail) = (handing.dial.version, Some(handing.node.to_string()));
        self.refuse(
            version,
            Rejection { reply: Reply::DeviceTimeout, cause: Cause::NodeTimeout, detail },
            turn,
        );
    }

    /// No reply comes of this connection: by one that was made before, that says nothing of the node.
    fn refuse_by_node(&mut self, cause: Cause, error: Option<&io::Error>, turn: &mut Turn<'_, K>) {
        let Stage::Handing(handing) = &self.stage else { return };
        if handing.is_spare {
            let Stage::Handing(handing) = std::mem::replace(&mut self.stage, Stage::Ended(None)) else {
                return;
            };
            (self.device, self.device_tls, self.permit) = (None, None, None);
            return self.hand_over(Dial { is_past_spares: true, ..handing.dial }, turn);
        }
        let (version, no) = (handing.dial.version, no_node(&handing.node, cause, error));
        self.refuse(version, no, turn);
    }

    fn receive_from_node(&mut self, turn: &mut Turn<'_, K>) {
        let Some(socket) = &self.device else { return };
        let mut io = super::io(&mut self.in_flight, self.slot, turn);
        io.submit(Purpose::DownReceive, SocketOperation::Receive(socket));
    }
}

impl Dial {
    /// What the next node is to know: all that this one decided from, and where it has been.
    fn request<K: Kernel>(
        &self,
        query: Option<Query>,
        client: Option<SocketAddr>,
        turn: &Turn<'_, K>,
    ) -> Vec<u8> {
        let own = turn.shared.config.vpn.node.as_deref().unwrap_or_default();
        let hops: Vec<Box<str>> = self.hops.iter().cloned().chain([own.into()]).collect();
        let (device, port) = query.map_or((None, 0), |query| (query.device, query.port));
        let uuid = device.map(|device| device.to_string()).unwrap_or_default();
        PeerRequest { client, uuid: &uuid, port, token: self.token.as_ref(), hops: &hops }.bytes()
    }
}

/// No way to the node that holds the device.
fn no_node(node: &str, cause: Cause, error: Option<&io::Error>) -> Rejection {
    let detail = match error {
        Some(error) => format!("{node}: {error}"),
        None => node.to_owned(),
    };
    Rejection { reply: Reply::DeviceOffline, cause, detail: Some(detail) }
}
