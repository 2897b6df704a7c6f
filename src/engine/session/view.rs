//! A session as others see it.

use super::{Session, Stage, Turn};
use crate::authz::UnixMillis;
use crate::engine::kernel::Kernel;
use crate::engine::session_view::{SessionRow, SessionState, TunnelRow};
use crate::engine::timers::Instant;
use crate::telemetry::Cause;

impl<K: Kernel> Session<K> {
    pub fn row(&self, now: Instant) -> SessionRow {
        let tunnel = match &self.stage {
            Stage::Tunnel(tunnel) | Stage::Ended(Some(tunnel)) => Some(TunnelRow {
                up: tunnel.up.row(),
                down: tunnel.down.row(),
                handshake_us: tunnel.handshake_us,
            }),
            _ => None,
        };
        let age_ms = (now.us_since(self.accepted_at_us) / 1000) as i64;
        SessionRow {
            facts: self.facts(),
            state: self.state(),
            since: UnixMillis(now.wall.0.saturating_sub(age_ms)),
            tunnel,
        }
    }

    /// Whether there is anything left to end.
    pub fn is_live(&self) -> bool {
        !matches!(self.stage, Stage::Ended(_))
    }

    /// A person wants this session gone.
    pub fn end_by_admin(&mut self, turn: &mut Turn<'_, K>) {
        match &self.stage {
            // There is nothing in the protocol to tell its client.
            Stage::Securing(_) | Stage::Head(_) | Stage::Dial(_) | Stage::Handing(_) => {
                self.note_lost_client(Cause::EndedByAdmin, None, turn)
            }
            Stage::Tunnel(_) => self.break_tunnel(Cause::EndedByAdmin, turn),
            Stage::Refused { .. } => self.end(turn),
            Stage::Ended(_) => {}
        }
    }

    fn state(&self) -> SessionState {
        match &self.stage {
            Stage::Securing(_) => SessionState::Securing,
            Stage::Head(_) => SessionState::Head,
            Stage::Dial(_) | Stage::Handing(_) => SessionState::Dialling,
            Stage::Tunnel(tunnel) if tunnel.is_half_closed() => SessionState::HalfClosed,
            Stage::Tunnel(_) => SessionState::Open,
            Stage::Refused { .. } => SessionState::Refused,
            Stage::Ended(_) => SessionState::Closing,
        }
    }
}
