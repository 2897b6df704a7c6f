//! One listening socket of one thread, and the pause that accept takes when the system runs out.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::timers::Tick;

pub(super) struct Listener {
    socket: OwnedFd,
    /// The place in the configuration's `listen` of what it serves.
    pub place: usize,
    /// Accept has failed for want of descriptors or memory; not asked again before.
    paused_until: Option<Tick>,
    /// An accept is in flight. It holds the socket open, whatever we do to our end of it.
    pub is_accepting: bool,
}

impl Listener {
    pub fn new(socket: OwnedFd, place: usize) -> Self {
        Self { socket, place, paused_until: None, is_accepting: false }
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

    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
