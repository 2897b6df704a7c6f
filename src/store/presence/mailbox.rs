//! What a source of addresses has found since it was last looked at; and where a thread that follows one leaves it.

use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::lines::Lines;

/// See the module.
pub(super) enum Update {
    Nothing,
    Lines(Box<Lines>),
    /// It says nothing, and why.
    Trouble(String),
}

/// What a thread has found last, until it is taken.
#[derive(Default)]
pub(super) struct Mailbox {
    found: Mutex<Found>,
    has_spoken: Condvar,
}

#[derive(Default)]
struct Found {
    lines: Option<Lines>,
    trouble: Option<String>,
    has_spoken: bool,
}

impl Mailbox {
    pub(super) fn tell(&self, lines: Lines) {
        *self.found.lock() = Found { lines: Some(lines), trouble: None, has_spoken: true };
        self.has_spoken.notify_all();
    }

    pub(super) fn tell_trouble(&self, trouble: String) {
        let mut found = self.found.lock();
        found.trouble = Some(trouble);
        found.has_spoken = true;
        self.has_spoken.notify_all();
    }

    /// What there is by now; waits so long for the very first.
    pub(super) fn take(&self, patience: Duration) -> Update {
        let mut found = self.found.lock();
        if !patience.is_zero() {
            self.has_spoken.wait_while_for(&mut found, |found| !found.has_spoken, patience);
        }
        // What was told before a trouble is news before it.
        match found.lines.take() {
            Some(lines) => Update::Lines(Box::new(lines)),
            None => found.trouble.take().map_or(Update::Nothing, Update::Trouble),
        }
    }
}
