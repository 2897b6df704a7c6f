//! Clients from the accept to the begin of their sessions: who gets a place, who waits, and who is refused.
//!
//! A thread accepts no faster than its sessions begin. Whoever comes meanwhile waits in the listening socket's queue, in its
//! order, and takes nobody's place: so connections that are closed at once, however many, lock nobody out.

use std::sync::atomic::Ordering;
use std::time::Duration;

use ipnet::IpNet;

use super::SessionDriver;
use crate::engine::kernel::thread::ThreadKernel;
use crate::engine::limits::{HeadPermit, NoPlace, SessionPermit, network_of};
use crate::engine::requests::SESSION_NUMBER_BITS;
use crate::engine::session::{Accepted, Session};
use crate::engine::turn::TurnCx;
use crate::engine::user_data::UserData;
use crate::sys::ring::Completion;

impl<K: ThreadKernel> SessionDriver<K> {
    pub(super) fn on_accept(
        &mut self,
        number: usize,
        completion: Completion<K::Accepted>,
        cx: &mut TurnCx<'_, K>,
    ) {
        self.listeners[number].is_accepting = completion.more;
        if cx.shared.is_stopping() {
            return;
        }
        if let Some(client) = completion.accepted {
            self.admit(self.listeners[number].place, client, cx);
        } else if is_exhaustion(-completion.result) {
            cx.counters.sessions.accept_pauses.add(1);
            // Who is held back accepts again by itself.
            if self.accepts() {
                self.listeners[number].pause_until(cx.now.after(ACCEPT_PAUSE));
            }
            return;
        }
        if !completion.more && self.accepts() {
            match self.listeners[number].gives_way(cx.shared, self.number) {
                Some(pause) => self.listeners[number].pause_until(cx.now.after(pause)),
                None => self.accept(number, cx.kernel),
            }
        }
    }

    /// Begins the sessions that have their turn, and accepts again where few are left.
    pub(super) fn begin_sessions(&mut self, cx: &mut TurnCx<'_, K>) {
        while let Some(accepted) = self.scheduler.next_arrival() {
            self.begin_session(accepted, cx);
        }
        if self.is_held_back && self.scheduler.arrivals() <= ARRIVALS_MAX / 2 {
            self.is_held_back = false;
            if !cx.shared.is_stopping() {
                self.begin_accepting(cx.kernel);
            }
        }
    }

    /// Accepts on every listener, where clients are accepted.
    pub(super) fn begin_accepting(&mut self, kernel: &mut K) {
        for number in 0..self.listeners.len() {
            if self.accepts() && !self.listeners[number].is_accepting {
                self.accept(number, kernel);
            }
        }
    }

    /// Stops accepting, so that no socket listens any more when the thread has ended.
    pub fn stop_accepting(&mut self, cx: &mut TurnCx<'_, K>) {
        self.scheduler.turn_away();
        self.cancel_accepts(cx);
    }

    /// Has every accept end. A pause ends too: nothing would take up its end, and the thread would turn without a rest.
    pub(super) fn cancel_accepts(&mut self, cx: &mut TurnCx<'_, K>) {
        for (number, listener) in (0u32..).zip(&mut self.listeners) {
            listener.end_pause();
            if listener.is_accepting {
                cx.kernel.cancel(UserData::CancelOwn, UserData::Accept { listener: number });
            }
        }
    }

    /// Accepts again where a pause is over.
    pub fn resume_accepting(&mut self, cx: &mut TurnCx<'_, K>) {
        if cx.shared.is_stopping() || !self.accepts() {
            return;
        }
        for number in 0..self.listeners.len() {
            if self.listeners[number].take_resumed(cx.now.tick()) {
                self.accept(number, cx.kernel);
            }
        }
    }

    /// Clients are accepted here, and not as many as may wait for their sessions have been.
    fn accepts(&self) -> bool {
        self.hand_over.accepts() && !self.is_held_back
    }

    fn accept(&mut self, number: usize, kernel: &mut K) {
        self.listeners[number].end_pause();
        self.listeners[number].is_accepting = true;
        let user_data = UserData::Accept { listener: number as u32 };
        kernel.accept(user_data, &self.listeners[number]);
    }

    /// Gives a client a place among the node's sessions, or among those that get the reply that there is none.
    fn admit(&mut self, listener: usize, client: K::Accepted, cx: &mut TurnCx<'_, K>) {
        let (client, address) = cx.kernel.accepted(client);
        // A load balancer names its client later, and a peer is no client.
        let is_named = !cx.config.listen[listener].has_proxy_header();
        let network = address.filter(|_| is_named).map(|address| network_of(address.ip()));
        let place = self.place(network, cx);
        if place.is_err() && self.over_limit >= cx.shared.limits.refused_max() {
            // There is no room even for a reply: this client gets no more than the close.
            cx.counters.sessions.accept_dropped.add(1);
            return;
        }
        self.over_limit += usize::from(place.is_err());
        let at_us = cx.now.monotonic_us;
        self.scheduler.admit(Accepted { client, address, network, listener, place, at_us });
        if self.scheduler.arrivals() >= ARRIVALS_MAX && !self.is_held_back {
            self.is_held_back = true;
            self.cancel_accepts(cx);
        }
    }

    /// Takes a place for a client of this network. Where there is none, a client that has not sent its head gives way.
    fn place(
        &mut self,
        network: Option<IpNet>,
        cx: &mut TurnCx<'_, K>,
    ) -> Result<(SessionPermit, HeadPermit), NoPlace> {
        let limits = &cx.shared.limits;
        let (head, freed) = match limits.await_head(network) {
            Some(head) => (head, None),
            None => {
                let freed = self.take_place_of_oldest(network, cx);
                (limits.await_head(network).ok_or(NoPlace::Network)?, freed)
            }
        };
        let permit = freed.or_else(|| limits.enter()).or_else(|| self.take_place_of_oldest(None, cx));
        Ok((permit.ok_or(NoPlace::Node)?, head))
    }

    /// Ends the session of this thread that has waited longest for its head, of this network if one is given.
    fn take_place_of_oldest(
        &mut self,
        network: Option<IpNet>,
        cx: &mut TurnCx<'_, K>,
    ) -> Option<SessionPermit> {
        let slot = self.heads.oldest(network, cx.now.monotonic_us, &mut self.sessions)?;
        let mut freed = None;
        self.with_session(slot, cx, |session, cx| freed = session.give_way(cx));
        freed
    }

    fn begin_session(&mut self, mut accepted: Accepted<K::Socket>, cx: &mut TurnCx<'_, K>) {
        if accepted.place.is_err() {
            // Those before it may have gone meanwhile.
            accepted.place = self.place(accepted.network, cx);
            self.over_limit -= usize::from(accepted.place.is_ok());
        }
        self.sessions_begun += 1;
        let number = cx.shared.numbers_from.load(Ordering::Relaxed) + self.sessions_begun;
        let id = (self.number as u64) << SESSION_NUMBER_BITS | number;
        let slot = self.sessions.reserve();
        self.arrangement(slot).over_limit = accepted.place.is_err();
        let session = Session::begin(id, slot, accepted, cx);
        let awaits_head = session.awaits_head_since_us().is_some();
        self.sessions.fill(slot, session);
        if awaits_head {
            self.heads.add(slot, id, &mut self.sessions);
        }
        self.after(slot, cx);
    }
}

/// True where accept failed because the process or the system is out of descriptors or memory.
fn is_exhaustion(errno: i32) -> bool {
    matches!(errno, libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM)
}

/// Pause after which accept tries again by itself, where no session has ended before.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Accepted clients that wait for their sessions, at which a thread accepts no more until half of them have begun. What one
/// look at the listening socket's queue had found comes on top. The simulation has few clients.
const ARRIVALS_MAX: usize = if cfg!(simulation) { 3 } else { 256 };
