//! A session whose tunnel moves to another process, or comes from one.

use super::core::{ProxyHeader, SessionCore};
use super::tunnel::{Tunnel, rights_of};
use super::{Session, State};
use crate::engine::kernel::Kernel;
use crate::engine::limits::HeldPlace;
use crate::engine::moved_tunnel::MovedTunnel;
use crate::engine::requests::Verdict;
use crate::engine::turn::TurnCx;
use crate::engine::usage::TunnelState;
use crate::engine::user_data::{InFlight, Slot};

impl<K: Kernel> Session<K> {
    /// Begins with a tunnel that was captured, at rest; [`Session::go_on`] is to follow.
    pub fn adopt(
        moved: MovedTunnel<K::Socket, K::Pipe>,
        slot: Slot,
        place: HeldPlace,
        cx: &mut TurnCx<'_, K>,
    ) -> Self {
        let facts = moved.facts;
        let HeldPlace { session, tunnel, .. } = place;
        let core = SessionCore {
            id: facts.session,
            slot,
            in_flight: InFlight::default(),
            listener: facts.listener,
            proxy_header: ProxyHeader::NotExpected,
            client_address: facts.client_address,
            accepted_at_us: facts.accepted_at_us,
            deadline: None,
            permit: Some(session),
            no_place: None,
            rare: None,
            query: Some(facts.query),
            rights: Some(rights_of(&facts)),
            generation: facts.generation,
        };
        cx.count_begin(core.listener);
        Self { core, state: State::Tunnel(Tunnel::of_captured(moved, tunnel, cx)) }
    }

    /// Has the tunnel come to rest, where it can move. Returns whether it does.
    pub fn come_to_rest(&mut self, cx: &mut TurnCx<'_, K>) -> bool {
        match &mut self.state {
            State::Tunnel(tunnel) if tunnel.can_move(&self.core) => {
                tunnel.come_to_rest(&mut self.core, cx);
                true
            }
            _ => false,
        }
    }

    /// The session is a tunnel that comes to rest, or is at rest.
    pub fn comes_to_rest(&self) -> bool {
        matches!(&self.state, State::Tunnel(tunnel) if tunnel.comes_to_rest())
    }

    /// The session is a tunnel that can be captured.
    pub fn is_at_rest(&self) -> bool {
        self.comes_to_rest() && self.core.in_flight.is_empty()
    }

    /// The sockets of a tunnel: the client's and the device's.
    pub fn tunnel_sockets(&self) -> Option<[&K::Socket; 2]> {
        match &self.state {
            State::Tunnel(tunnel) => Some(tunnel.sockets()),
            _ => None,
        }
    }

    /// Takes the tunnel out of the session, with other descriptors of its sockets. Only once it [is at
    /// rest](Session::is_at_rest). The session's place within the limits becomes free.
    pub fn capture<S>(mut self, sockets: [S; 2], cx: &mut TurnCx<'_, K>) -> Option<MovedTunnel<S, K::Pipe>> {
        debug_assert!(self.is_at_rest());
        cx.count_end(self.core.listener);
        self.count_use_as(TunnelState::Moves, cx);
        match &mut self.state {
            State::Tunnel(tunnel) => tunnel.capture(sockets, &self.core, cx.kernel),
            _ => None,
        }
    }

    /// A tunnel at rest moves bytes here.
    pub fn go_on(&mut self, cx: &mut TurnCx<'_, K>) {
        if let State::Tunnel(tunnel) = &mut self.state {
            let went_on = tunnel.go_on(&mut self.core, cx);
            self.close_tunnel(went_on, cx);
        }
    }

    /// Decides again by this process's view.
    pub fn recheck_now(&mut self, cx: &mut TurnCx<'_, K>) {
        if self.standing_query().is_some() {
            let decision = self.core.decide(cx);
            self.recheck(decision, cx);
        }
    }

    /// The process that has the guard's state has decided about this session's right.
    pub fn judge(&mut self, verdict: Verdict, cx: &mut TurnCx<'_, K>) {
        if let State::Tunnel(tunnel) = &mut self.state {
            let stands = tunnel.judge(verdict, &mut self.core, cx);
            self.close_tunnel(stands, cx);
        }
    }
}
