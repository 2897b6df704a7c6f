//! The invariants of a simulated history, checked after each step, at rest and at its end.

use std::net::{IpAddr, SocketAddr};

use super::connection::{Connection, Dial, Side};
use super::rights::Answer;
use super::world::{CLIENT_PORTS_FROM, Tunnel, World, port};
use crate::authz::UnixMillis;
use crate::engine::worker::signals::ServicePhase;
use crate::telemetry::{AuditEvent, Cause, SessionEnd, SessionFacts};

impl World {
    /// A dial is right where, at some time since the turn began, the rights in force allowed it, with this address.
    pub fn check_dial(&mut self, number: usize, address: SocketAddr) {
        let is_right = self.answers(number, self.turn_began).any(|answer| match answer {
            Answer::Allowed(device) => IpAddr::V4(device) == address.ip(),
            _ => false,
        });
        if !is_right {
            self.fail(|| format!("tunnel {number} dials {address}, which no rights in force allow"));
        }
    }

    /// The answers to a tunnel's client since a time.
    fn answers(&self, number: usize, since: (usize, UnixMillis)) -> impl Iterator<Item = Answer> {
        let (version, time) = since;
        let Tunnel { token, device, .. } = self.tunnels[number];
        let times = [time, self.latest];
        self.rights[version..]
            .iter()
            .flat_map(move |rights| times.map(|time| rights.answer(token, device, time)))
            .collect::<Vec<_>>()
            .into_iter()
    }

    /// A remote end saw the relay's FIN. In a tunnel, that says that it has every byte.
    pub fn check_fin(&mut self, id: usize) {
        let connection = &self.connections[id];
        let (number, got) = (connection.tunnel, connection.remote.got);
        if connection.side == Side::Client && connection.remote.status != Some(200) {
            return self.check_refusal(id);
        }
        let Some(other) = self.other_side(id) else {
            return self.fail(|| format!("tunnel {number} is open, and its device was never dialled"));
        };
        let is_whole = other.remote.has_sent_all() && other.remote.sent == got;
        if matches!(other.dial, Dial::Open | Dial::None) && !is_whole {
            let (sent, ended) = (other.remote.sent, other.remote.has_sent_all());
            self.fail(|| {
                format!(
                    "tunnel {number}: a FIN after {got} bytes, and the other side has sent {sent} (its end: {ended})"
                )
            });
        }
    }

    /// A refusal is right where the rights since the client came gave it at some time.
    fn check_refusal(&mut self, id: usize) {
        let connection = &self.connections[id];
        let (number, status) = (connection.tunnel, connection.remote.status);
        let tunnel = &self.tunnels[number];
        let is_right = match status {
            // The relay had no reply for it, and closes: it was ended from outside, or went away itself.
            None => true,
            Some(403) => self.answers(number, tunnel.came).any(|answer| answer == Answer::NotPermitted),
            Some(407) => {
                !tunnel.is_valid
                    || self.answers(number, tunnel.came).any(|answer| answer == Answer::Credentials)
            }
            Some(503) => {
                let is_draining = self.done.phase >= Some(ServicePhase::Draining) || self.done.stops;
                is_draining || self.answers(number, tunnel.came).any(|answer| answer == Answer::Offline)
            }
            Some(400 | 405) => !tunnel.is_valid || connection.remote.head_sent < connection.remote.head.len(),
            Some(429 | 502 | 504 | 408) => true,
            Some(_) => false,
        };
        if !is_right {
            self.fail(|| format!("tunnel {number} was refused by {status:?}, which no rights in force say"));
        }
    }

    /// Nothing can happen by itself now: no session may have work that only it can do.
    pub fn check_rest(&mut self) {
        for number in 0..self.tunnels.len() {
            let tunnel = &self.tunnels[number];
            let client = &self.connections[tunnel.client];
            if client.is_closed || client.descriptors == 0 || tunnel.audits > 0 {
                continue;
            }
            let Some(device) = tunnel.dialled.map(|id| &self.connections[id]) else {
                if !client.arrived.is_empty() {
                    self.fail(|| format!("the head of tunnel {number} is there, and nothing will read it"));
                }
                continue;
            };
            if device.dial != Dial::Open {
                continue;
            }
            let head_bytes = client.remote.head.len() as u64;
            let reply_bytes = REPLY.len() as u64;
            // By TLS, what the client sends and gets is not counted in bytes of the tunnel.
            let (up_held, down_held) = match client.remote.tls {
                Some(_) => (0, 0),
                None => (
                    (client.read_bytes.saturating_sub(head_bytes)).saturating_sub(device.sent_bytes),
                    device.read_bytes.saturating_sub(client.sent_bytes.saturating_sub(reply_bytes)),
                ),
            };
            let up = stuck(client, device, up_held).map(|why| ("up", why));
            let found = up.or_else(|| stuck(device, client, down_held).map(|why| ("down", why)));
            let reset_at_us = client.reset_at_us.into_iter().chain(device.reset_at_us).min();
            if let Some((name, why)) = found {
                return self.fail(|| format!("tunnel {number} {name}: {why}, and nothing will wake it"));
            }
            if reset_at_us.is_some_and(|at_us| self.now_us - at_us > RESET_SEEN_WITHIN_US) {
                let side = |side: &Connection| {
                    let has_arrived = side.arrived.len();
                    let (room, is_reset) = (side.room(), side.reset_at_us.is_some());
                    format!(
                        "reset {is_reset}, fin {}, arrived {has_arrived}, room {room}, ended {}",
                        side.fin,
                        side.has_ended()
                    )
                };
                let (client, device) = (side(client), side(device));
                return self.fail(|| {
                    format!(
                        "tunnel {number}: a reset that nobody sees (client: {client}; device: {device}; held up {up_held}, \
                         down {down_held})"
                    )
                });
            }
            self.check_right(number);
        }
    }

    /// A turn is over: the tunnels that are open have a right by the rights that it knew, or by newer ones. An end by the
    /// clock has its time.
    pub fn check_turn(&mut self) {
        let time = UnixMillis(i64::MIN);
        for number in 0..self.tunnels.len() {
            let Tunnel { token, device, client, dialled, audits, .. } = self.tunnels[number];
            let is_open = audits == 0
                && !self.connections[client].is_closed
                && self.connections[client].sent_bytes > 0
                && dialled.is_some_and(|id| self.connections[id].dial == Dial::Open);
            // By TLS, a client gets bytes before it gets a reply.
            let is_open = is_open && self.connections[client].remote.tls.is_none();
            let known = &self.rights[self.turn_began.0..];
            if is_open && !known.iter().any(|rights| rights.has_right(token, device, time)) {
                return self.fail(|| format!("tunnel {number} is open, and has no right after a turn"));
            }
        }
    }

    /// An open tunnel has a right, apart from the time that the relay has to see an end by the clock.
    fn check_right(&mut self, number: usize) {
        let Tunnel { token, device, .. } = self.tunnels[number];
        let rights = &self.rights[self.version()];
        // A step of the clock needs a turn, and the timer that the turn sets.
        let has_just_stepped = self.now_us - self.stepped_at_us < CLOCK_SEEN_WITHIN_MS as u64 * 1000;
        let time = match has_just_stepped {
            true => UnixMillis(i64::MIN),
            false => UnixMillis(self.latest.0.min(self.wall().0) - CLOCK_SEEN_WITHIN_MS),
        };
        if !rights.has_right(token, device, time) {
            self.fail(|| format!("tunnel {number} is open, and has no right any more"));
        }
    }

    /// Takes the audit events that have come.
    pub fn take_audit(&mut self) {
        let Some(audit) = self.audit.clone() else { return };
        for event in audit.try_iter() {
            self.audited += 1;
            match event {
                AuditEvent::SessionEnd(end) => {
                    self.record("end", end.cause as usize, (end.bytes_up << 24 ^ end.bytes_down) as i64);
                    self.check_end(&end);
                }
                AuditEvent::Refusal(refusal) => {
                    self.record("refusal", refusal.cause as usize, 0);
                    if let Some(number) = self.tunnel_of(&refusal.facts) {
                        self.audit_once(number, refusal.cause);
                    }
                }
                other => self.fail(|| format!("an audit event of no session: {other}")),
            }
        }
    }

    fn tunnel_of(&self, facts: &SessionFacts) -> Option<usize> {
        let client = facts.client.map(|client| client.port().wrapping_sub(CLIENT_PORTS_FROM).into());
        let asked = facts.port.map(|asked| asked.wrapping_sub(port(0)).into());
        client.or(asked).filter(|number: &usize| *number < self.tunnels.len())
    }

    fn audit_once(&mut self, number: usize, cause: Cause) {
        let tunnel = &mut self.tunnels[number];
        tunnel.audits += 1;
        tunnel.end = Some(cause);
        let audits = tunnel.audits;
        self.trace.note(|| format!("                 audit: tunnel {number}: {cause}"));
        if audits > 1 {
            self.fail(|| format!("tunnel {number} is in the audit log {audits} times"));
        }
    }

    fn check_end(&mut self, end: &SessionEnd) {
        let Some(number) = self.tunnel_of(&end.facts) else {
            return self.fail(|| "a tunnel ended that nobody asked for".to_owned());
        };
        self.audit_once(number, end.cause);
        let Some(device) = self.tunnels[number].dialled else {
            return self.fail(|| format!("tunnel {number} ended, and its device was never dialled"));
        };
        let client = &self.connections[self.tunnels[number].client];
        let device = &self.connections[device];
        let sent_down = match client.remote.tls {
            Some(_) if end.cause == Cause::Closed => device.remote.sent,
            Some(_) => end.bytes_down.max(client.remote.got),
            None => client.sent_bytes - REPLY.len() as u64,
        };
        let sent = (device.sent_bytes, sent_down);
        // A drain by the ring that was under way when a tunnel was ended may have sent more: the event is written before.
        let is_drained_by_ring = self.plan.forwarding == crate::config::Forwarding::RingSplice;
        let may_drain_on = is_drained_by_ring && end.cause != Cause::Closed;
        let unknown = if may_drain_on { self.plan.pipe_bytes as u64 } else { 0 };
        let is_right = |counted: u64, sent: u64| counted <= sent && sent <= counted + unknown;
        if !is_right(end.bytes_up, sent.0) || !is_right(end.bytes_down, sent.1) {
            let counted = (end.bytes_up, end.bytes_down);
            return self.fail(|| format!("tunnel {number}: audited bytes {counted:?}, sent {sent:?}"));
        }
        if let Err(why) = self.explain_end(number, end.cause, client, device) {
            self.fail(|| format!("tunnel {number} ended by {}: {why}", end.cause));
        }
    }

    /// Says why a tunnel cannot have ended by this cause.
    fn explain_end(
        &self,
        number: usize,
        cause: Cause,
        client: &Connection,
        device: &Connection,
    ) -> Result<(), String> {
        let since = |at_us: u64| (self.now_us - at_us) / 1_000_000;
        let moved_at_us = client.moved_at_us.max(device.moved_at_us);
        let rights_since =
            |answer: fn(&Answer) -> bool| self.answers(number, self.turn_began).any(|a| answer(&a));
        let is_explained = match cause {
            Cause::Closed => {
                client.remote.has_sent_all()
                    && device.remote.has_sent_all()
                    && client.remote.sent == device.sent_bytes
                    && (client.remote.tls.is_some()
                        || device.remote.sent == client.sent_bytes - REPLY.len() as u64)
            }
            Cause::ClientReset => client.has_been_reset() || client.is_dead,
            Cause::ClientTruncated => client.remote.has_closed && client.remote.tls.is_some(),
            Cause::DeviceReset => device.has_been_reset() || device.is_dead,
            Cause::ClientTimeout => client.remote.silent_since_us.is_some(),
            Cause::DeviceTimeout => device.remote.silent_since_us.is_some(),
            Cause::IdleTimeout => since(moved_at_us) >= 3_600 - 60,
            Cause::HalfClosedTimeout => client.fin || device.fin,
            Cause::CredentialRemoved => rights_since(|answer| *answer == Answer::Credentials),
            Cause::GrantRemoved | Cause::GrantExpired | Cause::RightExpired => {
                rights_since(|answer| *answer == Answer::NotPermitted || *answer == Answer::Credentials)
            }
            Cause::EndedByAdmin => self.done.has_ended_sessions,
            Cause::TcpMemory => self.done.has_shed,
            Cause::NodeStopped => self.done.stops,
            Cause::NodeThread => self.done.ring_losses > 0,
            _ => false,
        };
        if is_explained { Ok(()) } else { Err("nothing that happened explains it".to_owned()) }
    }

    /// Everything that the relay had has come back, and every connection has its end.
    pub fn check_left(&mut self) {
        for id in 0..self.connections.len() {
            let connection = &self.connections[id];
            let waits = self.backlog.contains(&id);
            if !connection.is_closed && !waits {
                let (number, side) = (connection.tunnel, connection.side);
                return self.fail(|| format!("tunnel {number}: the {side:?}'s connection is still open"));
            }
        }
        let open = self.descriptors.iter().flatten().count();
        let pooled = self.pipes.iter().filter(|pipe| pipe.is_open).count();
        if open != 2 * pooled {
            self.fail(|| format!("{open} descriptors are open, and {pooled} pipes"));
        }
    }
}

/// Says what a direction has to do where nothing else can happen; `None` where it waits rightly.
fn stuck(source: &Connection, sink: &Connection, held: u64) -> Option<String> {
    if sink.readiness() & libc::POLLOUT == 0 || sink.is_dead || source.is_dead {
        return None;
    }
    if held > 0 && sink.room() > 0 {
        return Some(format!("{held} bytes are in the relay, and there is room"));
    }
    if !source.arrived.is_empty() && sink.room() > 0 {
        return Some(format!("{} bytes have arrived, and there is room", source.arrived.len()));
    }
    if source.has_ended() && source.arrived.is_empty() && !sink.fin {
        return Some("the end has arrived, and was not passed on".to_owned());
    }
    None
}

/// The reply that opens a tunnel.
pub const REPLY: &str = "HTTP/1.1 200 Connection Established\r\n\r\n";

/// Time in which the relay sees a reset at the latest: a tunnel that is half-closed looks after a while.
const RESET_SEEN_WITHIN_US: u64 = 10_000_000;

/// Time in which the relay sees that the wall clock has reached the end of a right.
const CLOCK_SEEN_WITHIN_MS: i64 = 1_000;
