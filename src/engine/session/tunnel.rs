//! An open tunnel: both directions, its timeouts, and every way in which it ends.

mod moving;

use std::io;
use std::time::Duration;

use super::State;
use super::core::{Rights, SessionCore};
use super::reply::{AfterReply, send_reply};
use super::request::ClientRequest;
use crate::authz::{Decision, KeyHash, Refusal, Subject, UnixMillis};
use crate::engine::forward::{Direction, Flow, FlowEnd, FlowError, FlowOperation, FlowSockets};
use crate::engine::kernel::Kernel;
use crate::engine::kernel::io::{Io, Outcome, errno};
use crate::engine::limits::TunnelPermit;
use crate::engine::session_view::TunnelRow;
use crate::engine::timers::Tick;
use crate::engine::tls::ktls::give_to_kernel;
use crate::engine::tls::scratch::ScratchMemory;
use crate::engine::tls::transport::Endpoint;
use crate::engine::turn::TurnCx;
use crate::engine::usage::{TunnelState, TunnelUse, UsageMark};
use crate::engine::user_data::Purpose;
use crate::sys::silence::Delivery;
use crate::telemetry::{AuditEvent, Cause, SessionEnd, TlsRecordsBy, UsageKey, UsageRow};
use crate::wire::Reply;
use moving::Motion;

pub(super) use moving::rights_of;

/// The parts of a tunnel that opens.
pub(super) struct TunnelParts<K: Kernel> {
    pub request: ClientRequest<K>,
    pub device: Endpoint<K>,
    pub permit: Option<TunnelPermit>,
    pub expires_at: Option<UnixMillis>,
    /// Bytes of the device that came before the tunnel was open.
    pub early_down: Vec<u8>,
}

pub(super) struct Tunnel<K: Kernel> {
    client: Endpoint<K>,
    /// The device, or the peer that holds it.
    device: Endpoint<K>,
    up: Flow<K::Pipe>,
    down: Flow<K::Pipe>,
    /// Given back when the tunnel closes; absent for the node's own probe.
    permit: Option<TunnelPermit>,
    /// Time of the last byte in either direction.
    active_at: Tick,
    /// Time since which a direction stands still: it has bytes, and its reader has no room; [`Tick::NEVER`] while both
    /// move.
    stalled_at: Tick,
    /// Bytes were sent, to either side, of which it is not known that they have arrived.
    pub(super) has_sent: bool,
    /// Time for what only a tunnel that lasts is worth; [`Tick::NEVER`] once it is done.
    settle_at: Tick,
    /// End of the right; [`NO_END`] where it has none.
    pub(super) expires_at: UnixMillis,
    /// The right to the tunnel is gone, which may be a mistake of the snapshot in force. The tunnel ends at this
    /// time, unless the right comes back.
    reprieved_until: Tick,
    /// Time from accept to the reply. Half of a number, since every open tunnel has one.
    handshake_us: u32,
    /// The part of it that is in the thread's sums of use.
    counted: UsageMark,
    motion: Motion,
}

/// The end of a tunnel: its cause, and the sides whose close is to be a reset.
pub(super) struct TunnelExit {
    cause: Cause,
    resets_client: bool,
    resets_device: bool,
}

impl<K: Kernel> Tunnel<K> {
    /// The device has answered: replies to the client and starts to forward.
    pub fn open(parts: TunnelParts<K>, core: &mut SessionCore, cx: &mut TurnCx<'_, K>) -> State<K> {
        let TunnelParts { request, mut device, permit, expires_at, early_down } = parts;
        let ClientRequest { mut client, version, early, .. } = request;
        let reply = Reply::Established.bytes(version);
        let failed = match send_reply(&mut client, reply, AfterReply::Tunnel, cx.kernel) {
            Ok(true) => None,
            Ok(false) => Some((Cause::ClientStalled, None)),
            Err(error) => Some((Cause::ClientError, Some(error))),
        };
        if let Some((cause, error)) = failed {
            core.record_lost_client(cause, error, cx);
            return State::close_sockets(client.socket, Some(device.socket), core, cx);
        }
        cx.counters.sessions.tunnels_opened.add(1);
        cx.count_at(core.listener, |counters| counters.tunnels_opened.add(1));
        let handshake_us = cx.now.us_since(core.accepted_at_us);
        core.record_reply(None, cx);
        if let Err(error) = leave_tls_to_kernel(&mut client, &mut device, cx) {
            core.record_lost_client(Cause::KernelTls, Some(error), cx);
            return State::close_sockets(client.socket, Some(device.socket), core, cx);
        }
        let forwarding = cx.config.engine.forwarding;
        let has_user_tls = client.transport.is_user_tls() || device.transport.is_user_tls();
        let flow = |direction| {
            if has_user_tls { Flow::of_records(direction) } else { Flow::new(direction, forwarding) }
        };
        let mut tunnel = Box::new(Self {
            client,
            device,
            up: flow(Direction::Up),
            down: flow(Direction::Down),
            permit,
            active_at: cx.now.tick(),
            stalled_at: Tick::NEVER,
            // The reply.
            has_sent: true,
            settle_at: cx.now.after(LASTS_AFTER),
            expires_at: expires_at.unwrap_or(NO_END),
            reprieved_until: Tick::NEVER,
            handshake_us: u32::try_from(handshake_us).unwrap_or(u32::MAX),
            counted: UsageMark::default(),
            motion: Motion::Forwards,
        });
        // The deadline of the connect is over; `drive` sets the tunnel's own.
        core.deadline = None;
        let started = tunnel.drive(core, cx, |up, down, sockets, io| {
            up.start(&early, &mut sockets.up(down.is_finished()), io).map_err(in_up)?;
            down.start(&early_down, &mut sockets.down(up.is_finished()), io).map_err(in_down)
        });
        match started {
            Ok(()) => State::Tunnel(tunnel),
            Err(end) => tunnel.close(end, core, cx),
        }
    }

    /// Takes the result of an operation of one direction.
    pub fn complete(
        &mut self,
        direction: Direction,
        operation: FlowOperation,
        outcome: Outcome,
        core: &mut SessionCore,
        cx: &mut TurnCx<'_, K>,
    ) -> Result<(), TunnelExit> {
        let step = match self.motion {
            Motion::Forwards => Flow::complete,
            Motion::ComesToRest => Flow::absorb,
        };
        self.drive(core, cx, |up, down, sockets, io| match direction {
            Direction::Up => {
                let mut sockets = sockets.up(down.is_finished());
                step(up, operation, outcome, &mut sockets, io).map_err(in_up)
            }
            Direction::Down => {
                let mut sockets = sockets.down(up.is_finished());
                step(down, operation, outcome, &mut sockets, io).map_err(in_down)
            }
        })
    }

    /// Moves more bytes, where a direction [wants a turn](Self::wants_turn).
    pub fn resume(&mut self, core: &mut SessionCore, cx: &mut TurnCx<'_, K>) -> Result<(), TunnelExit> {
        if self.motion == Motion::ComesToRest {
            return Ok(());
        }
        self.drive(core, cx, |up, down, sockets, io| {
            if up.wants_turn() {
                up.resume(&mut sockets.up(down.is_finished()), io).map_err(in_up)?;
            }
            if down.wants_turn() {
                down.resume(&mut sockets.down(up.is_finished()), io).map_err(in_down)?;
            }
            Ok(())
        })
    }

    pub fn wants_turn(&self) -> bool {
        self.motion == Motion::Forwards && (self.up.wants_turn() || self.down.wants_turn())
    }

    /// A right expires, or nothing has moved for too long.
    pub fn on_deadline(&mut self, core: &mut SessionCore, cx: &mut TurnCx<'_, K>) -> Result<(), TunnelExit> {
        if self.has_expired(cx) || self.is_reprieve_over(cx) {
            self.recheck(core.decide(cx), core, cx)?;
        }
        if self.has_expired(cx) {
            // Nobody says that the right lasts longer.
            return Err(TunnelExit::reset(Cause::RightExpired));
        }
        if self.settle_at <= cx.now.tick() && self.motion == Motion::Forwards {
            self.settle(core, cx)?;
        }
        if self.quiet_until(cx) > cx.now.tick() {
            core.deadline = Some(self.deadline(cx));
            return Ok(());
        }
        if self.is_half_closed() && self.idle_until(cx) > cx.now.tick() {
            self.check_delivery(cx)?;
            if self.has_sent {
                // A side answers and has no room: it is slow, and a slow one has the time of an idle tunnel.
                let next_look = cx.now.after(cx.config.timeouts.half_closed);
                core.deadline = Some(next_look.min(self.idle_until(cx)));
                return Ok(());
            }
        }
        let cause = if self.is_half_closed() { Cause::HalfClosedTimeout } else { Cause::IdleTimeout };
        Err(TunnelExit::reset(cause))
    }

    /// Looks whether both sides have taken what was sent to them. Ends the tunnel where one answers nothing any more.
    pub fn check_delivery(&mut self, cx: &TurnCx<'_, K>) -> Result<(), TunnelExit> {
        self.has_sent = false;
        for (side, socket) in [(Side::Client, &self.client.socket), (Side::Device, &self.device.socket)] {
            match cx.kernel.delivery(socket) {
                Delivery::Complete => {}
                Delivery::Pending => self.has_sent = true,
                Delivery::Unanswered => return Err(side.broken(&errno(-libc::ETIMEDOUT))),
            }
        }
        Ok(())
    }

    /// The view has changed, or a right has expired.
    pub fn recheck(
        &mut self,
        decision: Decision,
        core: &mut SessionCore,
        cx: &mut TurnCx<'_, K>,
    ) -> Result<(), TunnelExit> {
        match decision {
            Decision::Allow(route) => {
                core.rights = Some(Rights::of(&route));
                self.renew(route.expires_at, core, cx);
            }
            // The place of the device says nothing about the right to reach it. The connection stays, of a device whose
            // address is disputed as well: its bytes go to the device that answered when it was dialled. The right may
            // end earlier than before all the same.
            Decision::Refuse(refusal) if refusal.is_of_location() => {
                let right = core.query.as_ref().and_then(|query| cx.view.right(query, cx.now.latest));
                if let Some(right) = right {
                    core.rights = Some(Rights::from(right));
                    self.renew(right.expires_at, core, cx);
                }
            }
            Decision::Refuse(refusal) => return self.end_right(refusal, core, cx),
            // Nothing can be decided now, and the right that opened the tunnel is over.
            Decision::Undecided(_) if self.has_expired(cx) => {
                return Err(TunnelExit::reset(Cause::RightExpired));
            }
            // The clock may have been set forward since the deadline was.
            Decision::Undecided(_) => core.deadline = Some(self.deadline(cx)),
        }
        Ok(())
    }

    /// The right stands; it may last longer, or shorter, than before.
    fn renew(&mut self, expires_at: Option<UnixMillis>, core: &mut SessionCore, cx: &TurnCx<'_, K>) {
        self.expires_at = expires_at.unwrap_or(NO_END);
        self.reprieved_until = Tick::NEVER;
        core.deadline = Some(self.deadline(cx));
    }

    /// The right to this tunnel is gone. Where nothing explains that, the node gets the time to find out whether it
    /// was a mistake.
    fn end_right(
        &mut self,
        refusal: Refusal,
        core: &mut SessionCore,
        cx: &mut TurnCx<'_, K>,
    ) -> Result<(), TunnelExit> {
        let is_reprieved = match self.reprieved_until {
            Tick::NEVER => core.note_regression(refusal, cx),
            until => cx.now.tick() < until && core.was_allowed_before(cx),
        };
        if !is_reprieved {
            if refusal.is_revocation() {
                let took_us = cx.shared.authority.us_since(cx.ended_at_us);
                cx.counters.revoked_to_closed.record_us(took_us);
            }
            return Err(TunnelExit::reset(Cause::of_ended_right(refusal)));
        }
        self.reprieved_until = self.reprieved_until.min(cx.now.after(REPRIEVE));
        core.deadline = Some(self.deadline(cx));
        Ok(())
    }

    /// The tunnel has lasted, open or half-closed, and gets what shorter ones are spared: a watch for a device that
    /// goes away silently, and one for a source that has ended and may still fail.
    fn settle(&mut self, core: &mut SessionCore, cx: &mut TurnCx<'_, K>) -> Result<(), TunnelExit> {
        self.settle_at = Tick::NEVER;
        self.drive(core, cx, |up, down, sockets, io| {
            io.kernel.watch_for_silence(&sockets.device.socket);
            if up.is_finished() {
                up.watch_source(&sockets.up(false), io);
            } else if down.is_finished() {
                down.watch_source(&sockets.down(false), io);
            }
            Ok(())
        })
    }

    /// Runs `step` on both directions, then acts on what it led to.
    fn drive(
        &mut self,
        core: &mut SessionCore,
        cx: &mut TurnCx<'_, K>,
        step: impl FnOnce(
            &mut Flow<K::Pipe>,
            &mut Flow<K::Pipe>,
            &mut TunnelSockets<'_, K>,
            &mut Io<'_, K>,
        ) -> Result<(), (Side, io::Error)>,
    ) -> Result<(), TunnelExit> {
        let (up_before, down_before) = (self.up.bytes, self.down.bytes);
        let was_half_closed = self.is_half_closed();
        let SessionCore { in_flight, slot, .. } = core;
        let mut io = Io { kernel: cx.kernel, slot: *slot, in_flight, counters: &cx.counters.hot };
        let mut sockets =
            TunnelSockets { client: &mut self.client, device: &mut self.device, scratch: cx.scratch };
        let stepped = step(&mut self.up, &mut self.down, &mut sockets, &mut io);
        let (up_moved, down_moved) = (self.up.bytes != up_before, self.down.bytes != down_before);
        if up_moved || down_moved {
            self.active_at = cx.now.tick();
            self.has_sent = true;
        }
        let waits = |purpose, has_moved| match core.in_flight.has(purpose) {
            false => Room::Enough,
            true if has_moved => Room::Some,
            true => Room::None,
        };
        let room = waits(Purpose::UpWritable, up_moved).max(waits(Purpose::DownWritable, down_moved));
        self.stalled_at = match room {
            Room::Enough => Tick::NEVER,
            Room::Some => cx.now.tick(),
            Room::None => self.stalled_at.min(cx.now.tick()),
        };
        if let Err((side, error)) = stepped {
            return Err(side.broken(&error));
        }
        if self.up.is_finished() && self.down.is_finished() {
            return Err(TunnelExit { cause: Cause::Closed, resets_client: false, resets_device: false });
        }
        // A half-closed tunnel has less time; all else only ever moves the deadline later.
        if core.deadline.is_none() || self.is_half_closed() != was_half_closed {
            if self.is_half_closed() != was_half_closed {
                self.active_at = cx.now.tick();
                self.settle_at = cx.now.after(HALF_CLOSED_LASTS_AFTER);
            }
            core.deadline = Some(self.deadline(cx));
        }
        Ok(())
    }

    /// Ends the tunnel: records its end, and gives its permit back.
    pub fn close(
        mut self: Box<Self>,
        end: TunnelExit,
        core: &mut SessionCore,
        cx: &mut TurnCx<'_, K>,
    ) -> State<K> {
        if end.resets_client {
            cx.kernel.reset_on_close(&self.client.socket);
        }
        if end.resets_device {
            cx.kernel.reset_on_close(&self.device.socket);
        }
        let event = AuditEvent::SessionEnd(SessionEnd {
            facts: core.facts(),
            cause: end.cause,
            bytes_up: self.up.bytes,
            bytes_down: self.down.bytes,
            handshake_us: self.handshake_us.into(),
            duration_ms: cx.now.us_since(core.accepted_at_us) / 1000,
        });
        self.count_use(TunnelState::Ended, core, cx);
        cx.counters.sessions.tunnels_closed.add(1);
        cx.counters.ends.add(end.cause);
        if !cx.shared.audit.send(event) {
            cx.counters.sessions.audit_dropped.add(1);
        }
        self.permit = None;
        State::Tunnel(self).close(core, cx)
    }

    /// Gives pipes back to the thread. Only once nothing is in flight.
    pub fn release(&mut self, kernel: &mut K) {
        self.up.release(kernel);
        self.down.release(kernel);
    }

    /// The tunnel as an operator sees it.
    pub fn row(&self) -> TunnelRow {
        TunnelRow { up: self.up.row(), down: self.down.row(), handshake_us: self.handshake_us.into() }
    }

    /// Adds what was used since the last count to the thread's sums. A tunnel that another node handed over counts there.
    pub fn count_use(&mut self, state: TunnelState, core: &SessionCore, cx: &mut TurnCx<'_, K>) {
        let Some(rights) = core.rights.filter(|_| cx.counts_usage() && core.via().is_none()) else { return };
        let subject = core.query.as_ref().and_then(|query| query.subject.as_ref());
        // A session token is no row of the store, and each login has another one.
        let credential = subject.and_then(Subject::credential).map(KeyHash::credential_id);
        let key = UsageKey { principal: rights.principal, credential, device: rights.device };
        let sums = self.counted.advance(self.used(state, core.accepted_at_us, cx));
        cx.usage.add(&UsageRow { key, uuid: core.query.and_then(|query| query.device), sums });
    }

    /// Returns the use of the tunnel so far.
    fn used(&self, state: TunnelState, accepted_at_us: u64, cx: &TurnCx<'_, K>) -> TunnelUse {
        let open_us = cx.now.us_since(accepted_at_us).saturating_sub(self.handshake_us.into());
        TunnelUse { bytes_up: self.up.bytes, bytes_down: self.down.bytes, open_us, state }
    }

    /// The right ends at a time.
    pub fn expires(&self) -> bool {
        self.expires_at != NO_END
    }

    pub fn is_half_closed(&self) -> bool {
        self.up.is_finished() || self.down.is_finished()
    }

    /// Time since which a direction has stood still, because its reader does not read.
    pub fn stalled_since(&self) -> Option<Tick> {
        Some(self.stalled_at).filter(|since| *since != Tick::NEVER)
    }

    fn has_expired(&self, cx: &TurnCx<'_, K>) -> bool {
        self.expires() && self.expires_at <= cx.now.latest
    }

    fn is_reprieve_over(&self, cx: &TurnCx<'_, K>) -> bool {
        self.reprieved_until <= cx.now.tick()
    }

    /// Time at which the tunnel has been quiet for too long, if nothing moves before.
    fn quiet_until(&self, cx: &TurnCx<'_, K>) -> Tick {
        if self.is_half_closed() {
            self.active_at.after(cx.config.timeouts.half_closed)
        } else {
            self.idle_until(cx)
        }
    }

    /// Time at which even a tunnel with a slow side has been quiet for too long.
    fn idle_until(&self, cx: &TurnCx<'_, K>) -> Tick {
        self.active_at.after(cx.config.timeouts.idle)
    }

    fn deadline(&self, cx: &TurnCx<'_, K>) -> Tick {
        let next = self.quiet_until(cx).min(self.settle_at).min(self.reprieved_until);
        if !self.expires() {
            return next;
        }
        // By the wall clock: one that was set back reaches the end later. One that is set forward has every session
        // checked again.
        let left_ms = u64::try_from(self.expires_at.0.saturating_sub(cx.now.wall.0)).unwrap_or(0);
        next.min(Tick(cx.now.tick().0.saturating_add(left_ms).saturating_add(1)))
    }
}

impl TunnelExit {
    /// Ends a tunnel that has not come to its own end. Both sides get a reset, so that neither takes the bytes that
    /// it has for all of them.
    pub fn reset(cause: Cause) -> Self {
        Self { cause, resets_client: true, resets_device: true }
    }
}

/// Leaves TLS to the kernel, where it has TLS: from here on only bytes cross.
fn leave_tls_to_kernel<K: Kernel>(
    client: &mut Endpoint<K>,
    device: &mut Endpoint<K>,
    cx: &TurnCx<'_, K>,
) -> io::Result<()> {
    if client.transport.is_user_tls() || device.transport.is_user_tls() {
        let is_given = give_to_kernel([client, device], cx.kernel)?;
        cx.counters.tls_tunnels.add(if is_given { TlsRecordsBy::Kernel } else { TlsRecordsBy::Process });
    }
    Ok(())
}

/// Both ends of a tunnel, lent for one step.
struct TunnelSockets<'a, K: Kernel> {
    client: &'a mut Endpoint<K>,
    device: &'a mut Endpoint<K>,
    scratch: &'a mut ScratchMemory,
}

impl<K: Kernel> TunnelSockets<'_, K> {
    /// The ends of the direction up; `is_last` where the other direction is finished.
    fn up(&mut self, is_last: bool) -> FlowSockets<'_, K> {
        sockets(self.client, self.device, self.scratch, is_last)
    }

    fn down(&mut self, is_last: bool) -> FlowSockets<'_, K> {
        sockets(self.device, self.client, self.scratch, is_last)
    }
}

fn sockets<'a, K: Kernel>(
    source: &'a mut Endpoint<K>,
    sink: &'a mut Endpoint<K>,
    scratch: &'a mut ScratchMemory,
    is_last: bool,
) -> FlowSockets<'a, K> {
    FlowSockets {
        source: &source.socket,
        sink: &sink.socket,
        source_transport: &mut source.transport,
        sink_transport: &mut sink.transport,
        scratch,
        is_last,
    }
}

/// Room that the sink of a direction has for its bytes, the most first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Room {
    Enough,
    /// It took some bytes, and not all.
    Some,
    None,
}

/// The side whose connection failed.
#[derive(Clone, Copy)]
enum Side {
    Client,
    Device,
}

impl Side {
    /// The end of a tunnel whose connection on this side failed. A side that was reset itself needs no reset.
    fn broken(self, error: &io::Error) -> TunnelExit {
        let cause = self.broken_cause(error);
        if !is_reset(error) {
            return TunnelExit::reset(cause);
        }
        let resets_client = matches!(self, Self::Device);
        TunnelExit { cause, resets_client, resets_device: !resets_client }
    }

    fn broken_cause(self, error: &io::Error) -> Cause {
        let is_reset = is_reset(error);
        let is_timeout = error.raw_os_error() == Some(libc::ETIMEDOUT);
        // No socket returns these two, only TLS.
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
            // On this side only a peer uses TLS.
            Self::Device if is_truncated => Cause::NodeTruncated,
            Self::Device if is_bad_record => Cause::NodeTls,
            Self::Device => Cause::DeviceError,
        }
    }
}

/// The other side has reset the connection, and the kernel has let go of it.
fn is_reset(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ECONNRESET | libc::EPIPE))
}

fn in_up(broken: FlowError) -> (Side, io::Error) {
    match broken.end {
        FlowEnd::Source => (Side::Client, broken.error),
        FlowEnd::Sink => (Side::Device, broken.error),
    }
}

fn in_down(broken: FlowError) -> (Side, io::Error) {
    match broken.end {
        FlowEnd::Source => (Side::Device, broken.error),
        FlowEnd::Sink => (Side::Client, broken.error),
    }
}

/// Stands for a right without an end; an option would take more memory, and every open tunnel has one.
const NO_END: UnixMillis = UnixMillis(i64::MAX);

/// Age from which an open tunnel counts as one that lasts. Soon enough for what takes a minute to notice, late enough
/// that the many short ones are over, and that the timer of the connect can be used again.
const LASTS_AFTER: Duration = Duration::from_secs(5);

/// Age from which a half-closed tunnel counts as one that lasts; most are over at once.
const HALF_CLOSED_LASTS_AFTER: Duration = Duration::from_millis(100);

/// Time that a tunnel outlives its right where no revocation explains the end. A rollback takes less.
const REPRIEVE: Duration = Duration::from_secs(5);
