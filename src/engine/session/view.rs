//! A session as an operator sees it, and what it has used.

use super::closing::Closing;
use super::{Session, State};
use crate::authz::UnixMillis;
use crate::engine::kernel::Kernel;
use crate::engine::limits::HeadPermit;
use crate::engine::session_view::{SessionRow, SessionState};
use crate::engine::timers::Instant;
use crate::engine::turn::TurnCx;
use crate::engine::usage::TunnelState;

impl<K: Kernel> Session<K> {
    pub fn row(&self, now: Instant) -> SessionRow {
        let tunnel = match &self.state {
            State::Tunnel(tunnel) | State::Closing(Closing::Tunnel(tunnel)) => Some(tunnel.row()),
            _ => None,
        };
        let age_ms = (now.us_since(self.core.accepted_at_us) / 1000) as i64;
        SessionRow {
            facts: self.core.facts(),
            state: self.state.name(),
            since: UnixMillis(now.wall.0.saturating_sub(age_ms)),
            tunnel,
            query: self.standing_query(),
            awaited_from: self.core.head().and_then(HeadPermit::network),
        }
    }

    /// Adds what the tunnel has used since the last count to the thread's sums.
    pub fn count_use(&mut self, cx: &mut TurnCx<'_, K>) {
        self.count_use_as(TunnelState::Open, cx);
    }

    pub(super) fn count_use_as(&mut self, state: TunnelState, cx: &mut TurnCx<'_, K>) {
        if let State::Tunnel(tunnel) = &mut self.state {
            tunnel.count_use(state, &self.core, cx);
        }
    }
}

impl<K: Kernel> State<K> {
    fn name(&self) -> SessionState {
        match self {
            Self::TlsHandshake(_) => SessionState::Securing,
            Self::Request(_) => SessionState::Head,
            Self::Connect(_) | Self::ViaPeer(_) | Self::AwaitPeer(_) => SessionState::Dialling,
            Self::Tunnel(tunnel) if tunnel.is_half_closed() => SessionState::HalfClosed,
            Self::Tunnel(_) => SessionState::Open,
            Self::Reject(_) => SessionState::Refused,
            Self::Closing(_) => SessionState::Closing,
        }
    }
}
