//! Ends the process once its terminal is gone.
//!
//! The library that reads keys tries a terminal that is gone again and again, and never returns. So a thread of its own
//! waits for the hang-up. No signal has to come: a shell that ended before need not pass one on.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Starts the thread that waits for the hang-up of stdin.
pub(super) fn exit_on_hangup() -> io::Result<()> {
    let terminal = io::stdin().as_fd().try_clone_to_owned()?;
    std::thread::Builder::new().name("hangup".to_owned()).spawn(move || {
        wait_for_hangup(&terminal);
        // There is no terminal to give back, and nobody to tell.
        std::process::exit(0);
    })?;
    Ok(())
}

fn wait_for_hangup(terminal: &OwnedFd) {
    loop {
        // A hang-up and an error are reported without being asked for.
        let mut watched = [PollFd::new(terminal.as_fd(), PollFlags::empty())];
        match poll(&mut watched, PollTimeout::NONE) {
            Err(Errno::EINTR) | Ok(0) => {}
            Err(_) | Ok(_) => return,
        }
    }
}
