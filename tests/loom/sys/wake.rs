//! An eventfd that a ring polls, and no more of it than the kernel promises: it tells of wakings that are
//! there when it looks, and need not tell of one that was taken before it looked.

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

    /// Waits for a waking. Where none comes any more, loom ends the model as deadlocked.
    pub fn sleep(&self) {
        let mut is_awake = self.is_awake.lock().unwrap();
        while !*is_awake {
            is_awake = self.woken.wait(is_awake).unwrap();
        }
    }

    /// Whether [`Wake::sleep`] would return at once.
    pub fn is_there(&self) -> bool {
        *self.is_awake.lock().unwrap()
    }
}
