//! An open tunnel: both directions, its timeouts, and every way in which it ends.

use std::io;
use std::time::Duration;

use super::tls_handshake::Then;
use super::{Dial, Outcome, Rights, Session, Stage, Tunnel, Turn, give_back};
use crate::authz::{Decision, Refusal};
use crate::engine::forward::{Direction, Flow, FlowEnd, FlowError, FlowSockets};
use crate::engine::kernel::Kernel;
use crate::engine::kernel::io::Io;
use crate::engine::timers::Tick;
use crate::engine::tls::ktls::{KeptBy, Records, Speech, give_to_kernel};
use crate::engine::tls::scratch::ScratchMemory;
use crate::engine::user_data::Purpose;
use crate::telemetry::{AuditEvent, Cause, SessionEnd, TlsRecordsBy};
use crate::wire::Reply;

impl<K: Kernel> Session<K> {
    /// The device has answered, and `early_down` is what came with that: tell the client, in one write, and
    /// forward.
    pub(super) fn open_tunnel(&mut self, dial: Dial, early_down: &[u8], turn: &mut Turn<'_, K>) {
        let reply = Reply::Established.bytes(dial.version);
        match self.tell_client(reply, Then::Tunnel, turn) {
            Ok(true) => {}
            Ok(false) => return self.note_lost_client(Cause::ClientStalled, None, turn),
            Err(error) => return self.note_lost_client(Cause::ClientError, Some(error), turn),
        }
        turn.counters.sessions.tunnels_opened.add(1);
        let handshake_us = turn.now.us_since(self.accepted_at_us);
        self.note_handshake(None, turn);
        let kept_by = match self.leave_tls_to_kernel(turn) {
            Ok(kept_by) => kept_by,
            Err(error) => return self.note_lost_client(Cause::KernelTls, Some(error), turn),
        };
        let forwarding = turn.shared.config.engine.forwarding;
        let has_records_of_ours = self.client_tls.is_some() || self.device_tls.is_some();
        let flow = |direction| {
            if has_records_of_ours { Flow::of_records(direction) } else { Flow::new(direction, forwarding) }
        };
        self.stage = Stage::Tunnel(Box::new(Tunnel {
            up: flow(Direction::Up),
            down: flow(Direction::Down),
            kept_by,
            active_at: turn.now.tick(),
            settle_at: Some(turn.now.after(LASTS_AFTER)),
            expires_at: dial.expires_at,
            reprieved_until: None,
            handshake_us,
        }));
        // That of the dial is over; the tunnel's own is set as it is driven.
        self.deadline = None;
        self.drive(turn, |tunnel, peers, io| {
            tunnel.up.start(&dial.early, &mut peers.up(tunnel.down.is_finished()), io).map_err(up)?;
            tunnel.down.start(early_down, &mut peers.down(tunnel.up.is_finished()), io).map_err(down)
        });
    }

    /// From here on only bytes go by, so the kernel can do all of it, where it can at all.
    fn leave_tls_to_kernel(&mut self, turn: &mut Turn<'_, K>) -> io::Result<KeptBy> {
        let had = [self.client_tls.is_some(), self.device_tls.is_some()];
        let Some(device) = self.device.as_ref().filter(|_| had != [false; 2]) else {
            return Ok(KeptBy::default());
        };
        let ends = [(&self.client, &mut self.client_tls), (device, &mut self.device_tls)];
        let is_given = give_to_kernel(ends, turn.kernel)?;
        let by = if is_given { TlsRecordsBy::Kernel } else { TlsRecordsBy::Process };
        turn.counters.tls_tunnels.add(by);
        let kept_by = |had| if had && is_given { Records::Kernel } else { Records::Ours };
        Ok(KeptBy { client: kept_by(had[0]), device: kept_by(had[1]) })
    }

    pub(super) fn on_forwarding(&mut self, purpose: Purpose, outcome: Outcome, turn: &mut Turn<'_, K>) {
        let Some((direction, task)) = Direction::of(purpose) else {
            return give_back(outcome, turn.kernel);
        };
        self.drive(turn, |tunnel, peers, io| match direction {
            Direction::Up => {
                let mut ends = peers.up(tunnel.down.is_finished());
                tunnel.up.complete(task, outcome, &mut ends, io).map_err(up)
            }
            Direction::Down => {
                let mut ends = peers.down(tunnel.up.is_finished());
                tunnel.down.complete(task, outcome, &mut ends, io).map_err(down)
            }
        });
    }

    pub(super) fn resume_forwarding(&mut self, turn: &mut Turn<'_, K>) {
        self.drive(turn, |tunnel, peers, io| {
            if tunnel.up.wants_turn() {
                tunnel.up.resume(&mut peers.up(tunnel.down.is_finished()), io).map_err(up)?;
            }
            if tunnel.down.wants_turn() {
                tunnel.down.resume(&mut peers.down(tunnel.up.is_finished()), io).map_err(down)?;
            }
            Ok(())
        });
    }

    /// A right expires, or nothing has moved for too long.
    pub(super) fn on_tunnel_deadline(&mut self, turn: &mut Turn<'_, K>) {
        let Stage::Tunnel(tunnel) = &self.stage else { return };
        if tunnel.has_expired(turn) || tunnel.is_reprieve_over(turn) {
            self.recheck_tunnel(self.decide(turn), turn);
        }
        let Stage::Tunnel(tunnel) = &self.stage else { return };
        if tunnel.has_expired(turn) {
            // Nothing can be decided now, and the right that it was opened by is over.
            return self.break_tunnel(Cause::RightExpired, turn);
        }
        if tunnel.settle_at.is_some_and(|settle_at| settle_at <= turn.now.tick()) {
            self.settle(turn);
        }
        let Stage::Tunnel(tunnel) = &self.stage else { return };
        if tunnel.quiet_until(turn) > turn.now.tick() {
            self.deadline = Some(tunnel.deadline(turn));
            return;
        }
        let cause = if tunnel.is_half_closed() { Cause::HalfClosedTimeout } else { Cause::IdleTimeout };
        self.break_tunnel(cause, turn);
    }

    /// The view has changed, or a right has expired.
    pub(super) fn recheck_tunnel(&mut self, decision: Decision, turn: &mut Turn<'_, K>) {
        let Stage::Tunnel(tunnel) = &mut self.stage else { return };
        match decision {
            Decision::Allow(route) => {
                tunnel.expires_at = route.expires_at;
                tunnel.reprieved_until = None;
                self.rights = Some(Rights::of(&route));
                self.deadline = Some(tunnel.deadline(turn));
            }
            // Where the device is says nothing about the right to reach it: a connection that stands may
            // stand.
            Decision::Refuse(Refusal::DeviceOffline | Refusal::DeviceElsewhere) => self.note_elsewhere(turn),
            Decision::Refuse(refusal) => self.end_right(refusal, turn),
            Decision::Undecided(_) => {}
        }
    }

    /// The right to a tunnel by another node may last longer, or shorter, than it did.
    fn note_elsewhere(&mut self, turn: &Turn<'_, K>) {
        let Stage::Tunnel(tunnel) = &mut self.stage else { return };
        let elsewhere = self.query.as_ref().and_then(|query| turn.view.elsewhere(query, turn.now.wall));
        if let Some(elsewhere) = elsewhere {
            tunnel.expires_at = elsewhere.expires_at;
            tunnel.reprieved_until = None;
            self.deadline = Some(tunnel.deadline(turn));
        }
    }

    /// The right to this tunnel is gone. Where nothing explains that, the node is given the time to find
    /// out whether it was a mistake.
    fn end_right(&mut self, refusal: Refusal, turn: &mut Turn<'_, K>) {
        let Stage::Tunnel(tunnel) = &self.stage else { return };
        let is_reprieved = match tunnel.reprieved_until {
            Some(until) => turn.now.tick() < until && self.was_allowed_before(turn),
            None => self.is_regression(refusal, turn),
        };
        let Stage::Tunnel(tunnel) = &mut self.stage else { return };
        if !is_reprieved {
            if refusal.is_revocation() {
                let took_us = turn.shared.authority.us_since(turn.ended_at_us);
                turn.counters.revoked_to_closed.record_us(took_us);
            }
            return self.break_tunnel(Cause::of_ended_right(refusal), turn);
        }
        tunnel.reprieved_until.get_or_insert(turn.now.after(REPRIEVE));
        self.deadline = Some(tunnel.deadline(turn));
    }

    /// Ends a tunnel that has not come to its own end. Both sides get a reset, so that neither takes what
    /// it has for the whole.
    pub(super) fn break_tunnel(&mut self, cause: Cause, turn: &mut Turn<'_, K>) {
        self.reset_on_close(Side::Client, turn);
        self.reset_on_close(Side::Device, turn);
        self.close_tunnel(cause, turn);
    }

    fn reset_on_close(&self, side: Side, turn: &mut Turn<'_, K>) {
        let socket = match side {
            Side::Client => Some(&self.client),
            Side::Device => self.device.as_ref(),
        };
        if let Some(socket) = socket {
            turn.kernel.reset_on_close(socket);
        }
    }

    /// The tunnel has lasted, open or half-closed, and gets what shorter ones are spared: a watch for a
    /// device that goes without a word, and one for a source that has ended and may still fail.
    fn settle(&mut self, turn: &mut Turn<'_, K>) {
        self.drive(turn, |tunnel, peers, io| {
            tunnel.settle_at = None;
            io.kernel.watch_for_silence(peers.device);
            if !tunnel.is_half_closed() {
                return Ok(());
            }
            if tunnel.up.is_finished() {
                tunnel.up.watch_source(&peers.up(false), io);
            } else {
                tunnel.down.watch_source(&peers.down(false), io);
            }
            Ok(())
        });
    }

    /// Runs `step` on the tunnel with both sockets, then looks at what it led to.
    fn drive(
        &mut self,
        turn: &mut Turn<'_, K>,
        step: impl FnOnce(
            &mut Tunnel<K::Pipe>,
            &mut TunnelSockets<'_, K>,
            &mut Io<'_, K>,
        ) -> Result<(), (Side, io::Error)>,
    ) {
        let (Stage::Tunnel(tunnel), Some(device)) = (&mut self.stage, &self.device) else { return };
        let bytes_before = tunnel.bytes();
        let was_half_closed = tunnel.is_half_closed();
        let counters = &turn.counters.hot;
        let mut io = Io { kernel: turn.kernel, slot: self.slot, in_flight: &mut self.in_flight, counters };
        let mut peers = TunnelSockets {
            scratch: turn.scratch,
            client: &self.client,
            client_speech: Speech::of(self.client_tls.as_deref_mut(), tunnel.kept_by.client),
            device,
            device_speech: Speech::of(self.device_tls.as_deref_mut(), tunnel.kept_by.device),
        };
        let stepped = step(tunnel, &mut peers, &mut io);
        if tunnel.bytes() != bytes_before {
            tunnel.active_at = turn.now.tick();
        }
        match stepped {
            Ok(()) => {}
            Err((side, error)) if is_reset(&error) => {
                // Its own side is past being reset.
                self.reset_on_close(side.other(), turn);
                return self.close_tunnel(side.broken_cause(&error), turn);
            }
            Err((side, error)) => return self.break_tunnel(side.broken_cause(&error), turn),
        }
        if tunnel.up.is_finished() && tunnel.down.is_finished() {
            return self.close_tunnel(Cause::Closed, turn);
        }
        // A half-closed tunnel has less time; all else only ever moves the deadline later.
        if self.deadline.is_none() || tunnel.is_half_closed() != was_half_closed {
            if tunnel.is_half_closed() != was_half_closed {
                tunnel.active_at = turn.now.tick();
                tunnel.settle_at = Some(turn.now.after(HALF_CLOSED_LASTS_AFTER));
            }
            self.deadline = Some(tunnel.deadline(turn));
        }
    }

    fn close_tunnel(&mut self, cause: Cause, turn: &mut Turn<'_, K>) {
        let Stage::Tunnel(tunnel) = &self.stage else { return };
        let event = AuditEvent::SessionEnd(SessionEnd {
            facts: self.facts(),
            cause,
            bytes_up: tunnel.up.bytes,
            bytes_down: tunnel.down.bytes,
            handshake_us: tunnel.handshake_us,
            duration_ms: turn.now.us_since(self.accepted_at_us) / 1000,
        });
        turn.counters.sessions.tunnels_closed.add(1);
        turn.counters.ends.add(cause);
        if !turn.shared.audit.send(event) {
            turn.counters.sessions.audit_dropped.add(1);
        }
        self.end(turn);
    }
}

impl<P> Tunnel<P> {
    fn bytes(&self) -> u64 {
        self.up.bytes + self.down.bytes
    }

    pub(super) fn is_half_closed(&self) -> bool {
        self.up.is_finished() || self.down.is_finished()
    }

    fn has_expired<K: Kernel>(&self, turn: &Turn<'_, K>) -> bool {
        self.expires_at.is_some_and(|expires_at| expires_at <= turn.now.wall)
    }

    /// When it will have been quiet for too long, if nothing moves.
    fn quiet_until<K: Kernel>(&self, turn: &Turn<'_, K>) -> Tick {
        let timeouts = &turn.shared.config.timeouts;
        let patience = if self.is_half_closed() { timeouts.half_closed } else { timeouts.idle };
        let patience_ms = u64::try_from(patience.as_millis()).unwrap_or(u64::MAX);
        Tick(self.active_at.0.saturating_add(patience_ms))
    }

    fn is_reprieve_over<K: Kernel>(&self, turn: &Turn<'_, K>) -> bool {
        self.reprieved_until.is_some_and(|until| until <= turn.now.tick())
    }

    fn deadline<K: Kernel>(&self, turn: &Turn<'_, K>) -> Tick {
        let quiet_until = self.quiet_until(turn);
        let last = Tick(u64::MAX);
        let next = quiet_until.min(self.settle_at.unwrap_or(last)).min(self.reprieved_until.unwrap_or(last));
        let Some(expires_at) = self.expires_at else { return next };
        let left_ms = u64::try_from(expires_at.0.saturating_sub(turn.now.wall.0)).unwrap_or(0);
        next.min(Tick(turn.now.tick().0.saturating_add(left_ms).saturating_add(1)))
    }
}

/// Both sides of a tunnel, lent for one step.
struct TunnelSockets<'a, K: Kernel> {
    scratch: &'a mut ScratchMemory,
    client: &'a K::Socket,
    client_speech: Speech<'a>,
    device: &'a K::Socket,
    device_speech: Speech<'a>,
}

impl<K: Kernel> TunnelSockets<'_, K> {
    /// Where the other direction is finished, `is_last`.
    fn up(&mut self, is_last: bool) -> FlowSockets<'_, K> {
        let (source_speech, sink_speech) = (self.client_speech.lend(), self.device_speech.lend());
        FlowSockets {
            source: self.client,
            sink: self.device,
            source_speech,
            sink_speech,
            scratch: self.scratch,
            is_last,
        }
    }

    fn down(&mut self, is_last: bool) -> FlowSockets<'_, K> {
        let (source_speech, sink_speech) = (self.device_speech.lend(), self.client_speech.lend());
        FlowSockets {
            source: self.device,
            sink: self.client,
            source_speech,
            sink_speech,
            scratch: self.scratch,
            is_last,
        }
    }
}

/// Whose connection failed.
#[derive(Clone, Copy)]
enum Side {
    Client,
    Device,
}

impl Side {
    const fn other(self) -> Self {
        match self {
            Self::Client => Self::Device,
            Self::Device => Self::Client,
        }
    }

    fn broken_cause(self, error: &io::Error) -> Cause {
        let is_reset = is_reset(error);
        let is_timeout = error.raw_os_error() == Some(libc::ETIMEDOUT);
        // Neither comes of a socket, only of TLS.
        let is_truncated = error.kind() == io::ErrorKind::UnexpectedEof;
        let is_bad_record = error.kind() == io::ErrorKind::InvalidData;
        match self {
            Self::Client if is_reset => Cause::ClientReset,
            Self::Client if is_timeout => Cause::ClientTimeout,
            Self::Client if is_truncated => Cause::ClientTruncated,
            Self::Client if is_bad_record => Cause::ClientTls,
            Self::Client => Cause::ClientError,
            Self::Device if is_reset => Cause::DeviceReset,
            Self::Device if is_timeout => Cause::DeviceTimeout,
            // Only another node speaks TLS on this side.
            Self::Device if is_truncated => Cause::NodeTruncated,
            Self::Device if is_bad_record => Cause::NodeTls,
            Self::Device => Cause::DeviceError,
        }
    }
}

/// Its peer has ended the connection, and the kernel has let go of it.
fn is_reset(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ECONNRESET | libc::EPIPE))
}

fn up(broken: FlowError) -> (Side, io::Error) {
    match broken.end {
        FlowEnd::Source => (Side::Client, broken.error),
        FlowEnd::Sink => (Side::Device, broken.error),
    }
}

fn down(broken: FlowError) -> (Side, io::Error) {
    match broken.end {
        FlowEnd::Source => (Side::Device, broken.error),
        FlowEnd::Sink => (Side::Client, broken.error),
    }
}

/// After how long an open tunnel is one that lasts. Soon enough for what takes a minute to notice, late enough
/// that the many short ones are over, and that the dial's timer is there to be used again.
const LASTS_AFTER: Duration = Duration::from_secs(5);

/// The same for a half-closed one; most are over at once.
const HALF_CLOSED_LASTS_AFTER: Duration = Duration::from_millis(100);

/// How long a tunnel outlives its right where no revocation explains the end. A rollback takes less.
const REPRIEVE: Duration = Duration::from_secs(5);
