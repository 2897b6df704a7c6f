//! A shared pointer that one thread replaces and others read without a lock.
//!
//! Unsafe because crossbeam-epoch hands out raw pointers; the types here tie them to a pin. The value is
//! held by `Arc`, so that the thread that replaces it can keep a second handle and decide where the last handle
//! is dropped: a large value must not be freed on an engine thread.

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

    /// Replaces the value. Pins that are taken from now on see `value`; earlier pins keep the old one.
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

    /// Keeps the current value alive until the pin is dropped. Never hold a pin across a blocking wait: meanwhile
    /// no value that was replaced since then can be freed.
    pub fn pin(&self) -> Pin<'_, T> {
        Pin { guard: epoch::pin(), cell: self }
    }
}

impl<T> Drop for EpochCell<T> {
    fn drop(&mut self) {
        // SAFETY: `&mut self` proves that no pin borrows this cell, so nothing else reads the slot.
        let last = unsafe { std::mem::replace(&mut self.slot, Atomic::null()).try_into_owned() };
        drop(last);
    }
}

/// A proof that the current thread is pinned, and the access to the value.
pub struct Pin<'a, T> {
    guard: Guard,
    cell: &'a EpochCell<T>,
}

impl<T> Pin<'_, T> {
    /// The value; `None` until one was published.
    pub fn get(&self) -> Option<&T> {
        let shared = self.cell.slot.load(Ordering::Acquire, &self.guard);
        // SAFETY: the pointer came out of the slot under this pin's guard, which comes from the default
        // collector as every guard in this module does, so it stays valid as long as `self` is borrowed.
        unsafe { shared.as_ref() }.map(Arc::as_ref)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_keeps_what_it_pinned_while_the_cell_moves_on() {
        let cell = EpochCell::empty();
        assert!(cell.pin().get().is_none());
        cell.publish(Arc::new(1));
        let pin = cell.pin();
        let seen = pin.get().copied();
        cell.publish(Arc::new(2));
        assert_eq!(seen, Some(1));
        assert_eq!(cell.pin().get(), Some(&2));
    }

    #[test]
    fn the_publisher_decides_where_the_last_handle_drops() {
        let cell = EpochCell::empty();
        let first = Arc::new(1);
        cell.publish(Arc::clone(&first));
        cell.publish(Arc::new(2));
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
