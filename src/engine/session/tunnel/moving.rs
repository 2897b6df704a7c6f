//! A tunnel that moves: it comes to rest, is captured, and goes on elsewhere, or here where that fails.

use super::{NO_END, Tunnel, TunnelExit, TunnelSockets, in_down, in_up};
use crate::engine::forward::{Direction, Flow};
use crate::engine::kernel::Kernel;
use crate::engine::kernel::io::Io;
use crate::engine::limits::TunnelPermit;
use crate::engine::moved_tunnel::{MovedEnd, MovedFacts, MovedTunnel};
use crate::engine::requests::Verdict;
use crate::engine::session::core::{Rights, SessionCore};
use crate::engine::timers::Tick;
use crate::engine::tls::transport::{Endpoint, Transport};
use crate::engine::turn::TurnCx;
use crate::engine::usage::{TunnelState, UsageMark};
use crate::telemetry::Cause;

/// Whether a tunnel moves bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Motion {
    Forwards,
    /// It submits nothing any more, and is captured once nothing is in flight.
    ComesToRest,
}

impl<K: Kernel> Tunnel<K> {
    /// Makes the tunnel that [`Tunnel::capture`] took, at rest.
    pub fn of_captured(
        moved: MovedTunnel<K::Socket, K::Pipe>,
        permit: Option<TunnelPermit>,
        cx: &mut TurnCx<'_, K>,
    ) -> Box<Self> {
        let MovedTunnel { facts, client, device, up, down, .. } = moved;
        let forwarding = cx.shared.config().engine.forwarding;
        let mut tunnel = Box::new(Self {
            client: endpoint(client),
            device: endpoint(device),
            up: Flow::of_captured(Direction::Up, forwarding, up, cx.kernel),
            down: Flow::of_captured(Direction::Down, forwarding, down, cx.kernel),
            permit,
            active_at: Tick(facts.active_at_ms),
            has_sent: facts.has_sent,
            settle_at: Tick(facts.settle_at_ms),
            expires_at: facts.expires_at.unwrap_or(NO_END),
            stalled_at: Tick(facts.stalled_at_ms),
            reprieved_until: Tick(facts.reprieved_until_ms),
            handshake_us: facts.handshake_us,
            counted: UsageMark::default(),
            motion: Motion::ComesToRest,
        });
        let so_far = tunnel.used(TunnelState::Moves, facts.accepted_at_us, cx);
        tunnel.counted = UsageMark::of_moved(so_far);
        tunnel
    }

    /// Returns whether it can move: nothing of it is in this process's memory alone, and no other node handed it over.
    pub fn can_move(&self, core: &SessionCore) -> bool {
        let has_user_tls = self.client.transport.is_user_tls() || self.device.transport.is_user_tls();
        self.motion == Motion::Forwards
            && !has_user_tls
            && core.query.is_some()
            && core.rights.is_some()
            && core.via().is_none()
    }

    pub fn comes_to_rest(&self) -> bool {
        self.motion == Motion::ComesToRest
    }

    /// Cancels what is in flight, and submits nothing from now on.
    pub fn come_to_rest(&mut self, core: &mut SessionCore, cx: &mut TurnCx<'_, K>) {
        self.motion = Motion::ComesToRest;
        let mut io = core.io(cx);
        for purpose in io.in_flight.iter() {
            io.cancel(purpose);
        }
    }

    pub fn sockets(&self) -> [&K::Socket; 2] {
        [&self.client.socket, &self.device.socket]
    }

    /// Takes the tunnel at rest, with other descriptors of its sockets.
    pub fn capture<S>(
        &mut self,
        [client, device]: [S; 2],
        core: &SessionCore,
        kernel: &mut K,
    ) -> Option<MovedTunnel<S, K::Pipe>> {
        let (query, rights) = (core.query?, core.rights?);
        let end = |socket, transport: &Transport| MovedEnd {
            socket,
            has_kernel_tls: matches!(transport, Transport::KernelTls),
        };
        let facts = MovedFacts {
            session: core.id,
            listener: core.listener,
            client_address: core.client_address,
            accepted_at_us: core.accepted_at_us,
            query,
            principal: rights.principal,
            grant: rights.grant,
            device: rights.device,
            generation: core.generation,
            active_at_ms: self.active_at.0,
            has_sent: self.has_sent,
            settle_at_ms: self.settle_at.0,
            expires_at: Some(self.expires_at).filter(|_| self.expires()),
            stalled_at_ms: self.stalled_at.0,
            reprieved_until_ms: self.reprieved_until.0,
            handshake_us: self.handshake_us,
        };
        Some(MovedTunnel {
            facts,
            client: end(client, &self.client.transport),
            device: end(device, &self.device.transport),
            up: self.up.capture(kernel),
            down: self.down.capture(kernel),
            place: None,
        })
    }

    /// Goes on from rest.
    pub fn go_on(&mut self, core: &mut SessionCore, cx: &mut TurnCx<'_, K>) -> Result<(), TunnelExit> {
        self.motion = Motion::Forwards;
        if self.is_half_closed() {
            // The watch for a source that has ended and may still fail is to be set again.
            self.settle_at = self.settle_at.min(cx.now.after(super::HALF_CLOSED_LASTS_AFTER));
        }
        core.deadline = Some(self.deadline(cx));
        self.drive(core, cx, |up, down, sockets: &mut TunnelSockets<'_, K>, io: &mut Io<'_, K>| {
            up.go_on(&mut sockets.up(down.is_finished()), io).map_err(in_up)?;
            down.go_on(&mut sockets.down(up.is_finished()), io).map_err(in_down)
        })
    }

    /// The process that has the guard's state has decided again.
    pub fn judge(
        &mut self,
        verdict: Verdict,
        core: &mut SessionCore,
        cx: &TurnCx<'_, K>,
    ) -> Result<(), TunnelExit> {
        match verdict {
            Verdict::Stands(expires_at) => {
                self.renew(expires_at, core, cx);
                Ok(())
            }
            Verdict::Ended(refusal) => Err(TunnelExit::reset(Cause::of_ended_right(refusal))),
        }
    }
}

/// The rights that a captured tunnel rests on.
pub(in crate::engine::session) fn rights_of(facts: &MovedFacts) -> Rights {
    Rights { principal: facts.principal, grant: facts.grant, device: facts.device }
}

fn endpoint<K: Kernel>(end: MovedEnd<K::Socket>) -> Endpoint<K> {
    let transport = if end.has_kernel_tls { Transport::KernelTls } else { Transport::Plain };
    Endpoint { socket: end.socket, transport }
}
