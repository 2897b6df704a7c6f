//! A pause before a peer is asked again: it is about to end, or is not back yet.
//!
//! A node that is restarted is away for a moment, and its devices are nobody else's. So the client waits, for
//! `timeouts.forward` in all, and gets the refusal only then.

use std::time::Duration;

use super::State;
use super::core::SessionCore;
use super::reject::Rejection;
use super::request::ClientRequest;
use crate::authz::{Decision, Refusal};
use crate::engine::kernel::Kernel;
use crate::engine::turn::TurnCx;

/// A request that waits. Nothing of it is in flight.
pub(super) struct AwaitingPeer<K: Kernel> {
    pub request: ClientRequest<K>,
}

impl<K: Kernel> AwaitingPeer<K> {
    /// Pauses, or rejects the request where there is no time for another try.
    pub fn start(
        request: ClientRequest<K>,
        rejection: Rejection,
        core: &mut SessionCore,
        cx: &mut TurnCx<'_, K>,
    ) -> State<K> {
        let pause = PAUSE_MIN.saturating_mul(1 << request.peer_pauses.min(DOUBLINGS_MAX)).min(PAUSE_MAX);
        let again_at = cx.now.after(pause);
        if request.ask_peers_until.is_none_or(|until| again_at >= until) || core.is_probe(cx) {
            return request.reject(rejection, core, cx);
        }
        cx.counters.sessions.peer_pauses.add(1);
        core.deadline = Some(again_at);
        let (peer_pauses, skips_pool) = (request.peer_pauses + 1, false);
        State::AwaitPeer(Box::new(Self { request: ClientRequest { peer_pauses, skips_pool, ..request } }))
    }

    /// The pause is over. The device may be elsewhere by now.
    pub fn on_deadline(self, core: &mut SessionCore, cx: &mut TurnCx<'_, K>) -> State<K> {
        State::decide(self.request, core, cx)
    }

    /// The view has changed meanwhile.
    pub fn recheck(
        self: Box<Self>,
        decision: Decision,
        core: &mut SessionCore,
        cx: &mut TurnCx<'_, K>,
    ) -> State<K> {
        match decision {
            Decision::Refuse(refusal) if !refusal.is_of_location() => {
                core.note_regression(refusal, cx);
                self.request.reject(Rejection::refused(refusal), core, cx)
            }
            Decision::Allow(_) | Decision::Refuse(Refusal::DeviceElsewhere) => self.on_deadline(core, cx),
            Decision::Refuse(_) | Decision::Undecided(_) => State::AwaitPeer(self),
        }
    }
}

/// First pause. Each further one is twice as long, up to the longest: a node that has died is asked no more often by
/// the thousands of clients of its devices.
const PAUSE_MIN: Duration = Duration::from_millis(100);

const PAUSE_MAX: Duration = Duration::from_secs(1);

const DOUBLINGS_MAX: u32 = 4;
