//! An eventfd that a ring polls, with no more than the kernel promises.
//!
//! A poll reports a wake-up that is there at the moment of the poll. It may miss one that was cleared before.

use loom::sync::{Condvar, Mutex};

#[derive(Default)]
pub struct Wake {
    is_awake: Mutex<bool>,
    woken: Condvar,
}

impl Wake {
    pub fn wake(&self) {
        *self.is_awake.lock().unwrap() = true;
        self.woken.notify_one();
    }

    pub fn clear(&self) {
        *self.is_awake.lock().unwrap() = false;
    }

    /// Waits for a wake-up. loom reports a deadlock when none can come any more.
    pub fn sleep(&self) {
        let mut is_awake = self.is_awake.lock().unwrap();
        while !*is_awake {
            is_awake = self.woken.wait(is_awake).unwrap();
        }
    }

    /// True when [`Wake::sleep`] would return at once.
    pub fn is_there(&self) -> bool {
        *self.is_awake.lock().unwrap()
    }
}
