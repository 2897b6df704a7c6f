//! Ctrl-C, and the signal that a service manager sends.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::DemoError;

/// Tells whether a signal has come.
pub(super) struct Interrupt {
    came: Arc<AtomicBool>,
    signals: Signals,
}

impl Interrupt {
    /// Starts to watch signals. The first one sets a flag, a second one ends the process at once.
    pub fn watch() -> io::Result<Self> {
        let came = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            // The order matters: the second signal must find the flag that the first one set.
            signal_hook::flag::register_conditional_shutdown(signal, EXIT_CODE, Arc::clone(&came))?;
            signal_hook::flag::register(signal, Arc::clone(&came))?;
        }
        Ok(Self { came, signals: Signals::new([SIGINT, SIGTERM])? })
    }

    pub fn check(&self) -> Result<(), DemoError> {
        if self.has_come() { Err(DemoError::Interrupted) } else { Ok(()) }
    }

    pub fn has_come(&self) -> bool {
        self.came.load(Ordering::Relaxed)
    }

    /// Waits for the first signal. Returns at once if it has already come.
    pub fn wait(&mut self) {
        self.signals.forever().next();
    }
}

/// An interrupted command has failed.
const EXIT_CODE: i32 = 1;
