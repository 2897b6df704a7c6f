//! A switch by which a thread leaves its writes to another process of this node.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Off at first. Cheap to clone.
#[derive(Clone, Default)]
pub struct WritePause(Arc<AtomicBool>);

impl WritePause {
    pub fn set(&self, is_on: bool) {
        self.0.store(is_on, Ordering::Release);
    }

    pub fn is_on(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}
