//! Ctrl-C, and what a service manager sends instead.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::DemoError;

/// Whether the demo is to end.
pub(super) struct Interrupt {
    came: Arc<AtomicBool>,
    signals: Signals,
}

impl Interrupt {
    /// From now on the first signal is taken notice of, and a second one ends the process at once.
    pub fn watch() -> io::Result<Self> {
        let came = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            // In this order: the second signal finds the flag that the first one set.
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

    /// Returns with the first signal, one that has come before included.
    pub fn wait(&mut self) {
        self.signals.forever().next();
    }
}

/// A command that did not end by itself has failed.
const EXIT_CODE: i32 = 1;
