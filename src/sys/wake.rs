//! The eventfd by which other threads wake an engine thread that sleeps in its ring.

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

    /// Wakes the thread, now or at its next wait. Several calls may cause one wake-up.
    pub fn wake(&self) {
        // The only failure is a full counter, and a full counter wakes too.
        let _already_awake = self.event.write(1);
    }

    /// Clears all wake-ups so far, so that the descriptor is not readable any more.
    pub fn clear(&self) {
        // The only failure is that there was nothing to clear.
        let _already_clear = self.event.read();
    }

    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}
