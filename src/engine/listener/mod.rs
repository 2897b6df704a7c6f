//! One listening socket of one thread, and the pause after an accept that failed for want of resources.

pub(super) mod bind;
pub(super) mod own_address;
pub(super) mod privileged_port;

use std::os::fd::OwnedFd;
use std::time::Duration;

use super::shared::{Shared, ThreadShared};
use super::timers::Tick;

pub(super) struct Listener<S = OwnedFd> {
    pub socket: S,
    /// Place of its settings in the configuration's `listen`.
    pub place: usize,
    pub sharing: Sharing,
    /// Time before which no accept is submitted, after one has failed for want of descriptors or memory.
    paused_until: Option<Tick>,
    /// An accept is in flight. It keeps the socket open even after we close it.
    pub is_accepting: bool,
}

/// The threads that accept from a socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Sharing {
    /// This thread alone.
    Own,
    /// All threads: each takes one client at a time and then waits behind the others.
    Shared,
}

impl<S> Listener<S> {
    pub fn new(socket: S, place: usize, sharing: Sharing) -> Self {
        Self { socket, place, sharing, paused_until: None, is_accepting: false }
    }

    /// The same listener for a worker that begins anew, where no accept is in flight.
    pub fn renewed(self) -> Self {
        Self::new(self.socket, self.place, self.sharing)
    }

    /// The time for which thread number `thread` leaves clients to the others, because it has more sessions than
    /// they; `None` where it has not.
    pub fn gives_way(&self, shared: &Shared, thread: usize) -> Option<Duration> {
        if self.sharing == Sharing::Own {
            return None;
        }
        let sessions = |thread: &ThreadShared| thread.counters.sessions.active.get();
        let fewest = shared.threads.iter().map(sessions).min()?;
        (sessions(&shared.threads[thread]) > fewest + AHEAD_MAX).then_some(GIVE_WAY)
    }

    pub fn pause_until(&mut self, tick: Tick) {
        self.paused_until = Some(tick);
    }

    /// Shortens a pause, where there is one, to end at `tick`: resources were freed.
    pub fn resume_at(&mut self, tick: Tick) {
        if let Some(until) = &mut self.paused_until {
            *until = tick.min(*until);
        }
    }

    /// Ends a pause, where there is one: nothing is accepted anyway.
    pub fn end_pause(&mut self) {
        self.paused_until = None;
    }

    /// Ends a pause whose time is over. Returns whether it did.
    pub fn take_resumed(&mut self, now: Tick) -> bool {
        let is_over = self.paused_until.is_some_and(|until| until <= now);
        if is_over {
            self.paused_until = None;
        }
        is_over
    }

    pub fn paused_until(&self) -> Option<Tick> {
        self.paused_until
    }
}

/// Sessions that a thread may have more than the thread with the fewest and still compete for the next client of a
/// shared socket. An awake thread is faster than one that the kernel must wake, so without a bound the busiest
/// thread would take nearly all clients.
const AHEAD_MAX: u64 = 2;

/// Time that a sleeping thread has to wake up and take the client. Too short for clients to notice where no thread
/// does.
const GIVE_WAY: Duration = Duration::from_millis(1);
