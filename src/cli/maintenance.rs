//! A drain by command: the node refuses new clients and goes on running, until a time or another command.

use std::time::{Duration, Instant};

use crate::admin::api::{DrainBegun, DrainEnded};
use crate::authz::UnixMillis;
use crate::engine::ServicePhase;
use crate::node::Node;

/// The present drain by command, if there is one.
#[derive(Default)]
pub(super) struct Maintenance {
    drain: Option<Drain>,
}

#[derive(Clone, Copy)]
struct Drain {
    /// Time from which new clients are refused.
    refuse_at: Instant,
    /// Time from which they are served again; `None` where that takes a command.
    back_at: Option<Instant>,
}

impl Maintenance {
    /// Drains the node for `lasts`. Where it drains already, only the end changes.
    pub fn begin(&mut self, lasts: Option<Duration>, lame_duck: Duration, node: &Node) -> DrainBegun {
        let now = Instant::now();
        let refuse_at = self.drain.map_or(now + lame_duck, |drain| drain.refuse_at);
        self.drain = Some(Drain { refuse_at, back_at: lasts.and_then(|lasts| now.checked_add(lasts)) });
        if node.engine().phase() == ServicePhase::Serving {
            node.engine().set_phase(ServicePhase::LameDuck);
        }
        tracing::warn!(?lasts, "draining by command; open tunnels go on");
        let in_ms = |lasts: Duration| i64::try_from(lasts.as_millis()).unwrap_or(i64::MAX);
        DrainBegun {
            lame_duck: whole_millis(refuse_at.saturating_duration_since(now)),
            until: lasts.map(|lasts| UnixMillis(UnixMillis::now().0.saturating_add(in_ms(lasts)))),
        }
    }

    pub fn end(&mut self, node: &Node) -> DrainEnded {
        let was_draining = self.drain.take().is_some();
        if was_draining {
            node.engine().set_phase(ServicePhase::Serving);
            tracing::warn!("the drain has ended; new clients are served again");
        }
        DrainEnded { was_draining }
    }

    /// Time at which [`pass_time`](Self::pass_time) has something to do.
    pub fn next_at(&self, node: &Node) -> Option<Instant> {
        let drain = self.drain?;
        let refuses = node.engine().phase() >= ServicePhase::Draining;
        let refuse_at = (!refuses).then_some(drain.refuse_at);
        refuse_at.into_iter().chain(drain.back_at).min()
    }

    /// Does what is due.
    pub fn pass_time(&mut self, node: &Node) {
        let (Some(drain), now) = (self.drain, Instant::now()) else { return };
        if drain.back_at.is_some_and(|at| at <= now) {
            self.end(node);
        } else if drain.refuse_at <= now && node.engine().phase() == ServicePhase::LameDuck {
            node.engine().set_phase(ServicePhase::Draining);
        }
    }

    /// The part of `lame_duck` that a stop has to wait for.
    pub fn lame_duck_left(&self, lame_duck: Duration) -> Duration {
        self.drain.map_or(lame_duck, |drain| drain.refuse_at.saturating_duration_since(Instant::now()))
    }
}

fn whole_millis(duration: Duration) -> Duration {
    Duration::from_millis(duration.as_millis().try_into().unwrap_or(u64::MAX))
}
