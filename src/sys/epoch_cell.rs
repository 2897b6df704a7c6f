//! One shared pointer that a control thread replaces and engine threads read without a lock.
//!
//! Unsafe because crossbeam-epoch hands out raw pointers; the types here tie them to a pin. The value is
//! held by `Arc`, so that whoever replaces it can keep a second handle and decide where the last one is
//! dropped: a large value must not be freed on an engine thread.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crossbeam::epoch::{self, Atomic, Guard, Owned};

/// A replaceable, initially empty `Arc<T>`.
pub struct EpochCell<T> {
    slot: Atomic<Arc<T>>,
}

impl<T: Send + Sync + 'static> EpochCell<T> {
    pub fn empty() -> Self {
        Self { slot: Atomic::null() }
    }

    /// Readers that pin from now on see `value`; those pinned before keep what they saw.
    pub fn publish(&self, value: Arc<T>) {
        let guard = epoch::pin();
        let old = self.slot.swap(Owned::new(value), Ordering::AcqRel, &guard);
        if !old.is_null() {
            // SAFETY: `old` was taken out of the slot by the swap, so no later pin can reach it; readers
            // pinned before are waited for by the epoch before the deferred drop runs.
            unsafe { guard.defer_destroy(old) };
        }
        guard.flush();
    }

    /// Holds the value in force for as long as the pin lives. Never keep one across a blocking wait: it
    /// stops the reclamation of every value published after it.
    pub fn pin(&self) -> Pin<'_, T> {
        Pin { guard: epoch::pin(), root: self }
    }
}

impl<T> Drop for EpochCell<T> {
    fn drop(&mut self) {
        // SAFETY: `&mut self` proves that no pin borrows this root, so nothing else reads the slot.
        let last = unsafe { std::mem::replace(&mut self.slot, Atomic::null()).try_into_owned() };
        drop(last);
    }
}

/// Proof that the current thread is pinned, and the way to the value.
pub struct Pin<'a, T> {
    guard: Guard,
    root: &'a EpochCell<T>,
}

impl<T> Pin<'_, T> {
    /// `None` until something was published.
    pub fn get(&self) -> Option<&T> {
        let shared = self.root.slot.load(Ordering::Acquire, &self.guard);
        // SAFETY: the pointer came out of the slot under this pin's guard, which comes from the default
        // collector as every guard in this module does, so it stays valid as long as `self` is borrowed.
        unsafe { shared.as_ref() }.map(Arc::as_ref)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_keeps_what_it_pinned_while_the_root_moves_on() {
        let root = EpochCell::empty();
        assert!(root.pin().get().is_none());
        root.publish(Arc::new(1));
        let pin = root.pin();
        let seen = pin.get().copied();
        root.publish(Arc::new(2));
        assert_eq!(seen, Some(1));
        assert_eq!(root.pin().get(), Some(&2));
    }

    #[test]
    fn the_publisher_decides_where_the_last_handle_drops() {
        let root = EpochCell::empty();
        let first = Arc::new(1);
        root.publish(Arc::clone(&first));
        root.publish(Arc::new(2));
        for _ in 0..10_000 {
            if Arc::strong_count(&first) == 1 {
                return;
            }
            epoch::pin().flush();
            std::thread::yield_now();
        }
        panic!("the replaced value was never released");
    }
}
