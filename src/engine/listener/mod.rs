//! One listening socket of one thread, and the pause that accept takes when the system runs out.

pub(super) mod bind;

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use super::shared::{Shared, ThreadShared};
use super::timers::Tick;
use crate::sys::ring::Operation;

pub(super) struct Listener {
    socket: OwnedFd,
    /// The place in the configuration's `listen` of what it serves.
    pub place: usize,
    sharing: Sharing,
    /// Accept has failed for want of descriptors or memory; not asked again before.
    paused_until: Option<Tick>,
    /// An accept is in flight. It holds the socket open, whatever we do to our end of it.
    pub is_accepting: bool,
}

/// Who accepts from a socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Sharing {
    /// This thread alone.
    Own,
    /// All threads, so each takes one client at a time and then waits behind the others.
    Shared,
}

impl Listener {
    pub fn new(socket: OwnedFd, place: usize, sharing: Sharing) -> Self {
        Self { socket, place, sharing, paused_until: None, is_accepting: false }
    }

    /// How long the thread with this number should leave clients to the others, because it has more sessions
    /// than they; `None` where it need not.
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

    /// Something was given back: a pause that is on need not last longer than until `tick`.
    pub fn resume_at(&mut self, tick: Tick) {
        if let Some(until) = &mut self.paused_until {
            *until = tick.min(*until);
        }
    }

    /// Whether a pause has just come to its end.
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

    /// What takes the next client, or all that follow.
    pub fn accept(&self) -> Operation<'_> {
        let listener = self.socket.as_fd();
        match self.sharing {
            Sharing::Own => Operation::AcceptMultishot { listener },
            Sharing::Shared => Operation::AcceptOne { listener },
        }
    }
}

/// Sessions that a thread may have beyond the one with the fewest and still compete for a shared socket's next
/// client. A thread that is awake already is faster than one that the kernel wakes, so without a bound the
/// busiest would take nearly all.
const AHEAD_MAX: u64 = 2;

/// Long enough for a thread that sleeps to be woken and take the client, short enough that clients do not
/// notice where none does.
const GIVE_WAY: Duration = Duration::from_millis(1);
