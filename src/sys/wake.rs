//! An eventfd by which other threads wake an engine thread that sleeps in its ring.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::eventfd::{EfdFlags, EventFd};

#[derive(Debug)]
pub struct Wake {
    event: EventFd,
}

impl Wake {
    pub fn new() -> io::Result<Self> {
        Ok(Self { event: EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)? })
    }

    /// Wakes the sleeper, now or at its next wait. Many calls may become one waking.
    pub fn wake(&self) {
        // The only failure is a full counter, and a full counter wakes too.
        let _already_awake = self.event.write(1);
    }

    /// Takes all wakings so far, so that the descriptor is quiet again.
    pub fn clear(&self) {
        // Nothing to take is as good as taken.
        let _nothing_there = self.event.read();
    }

    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}
