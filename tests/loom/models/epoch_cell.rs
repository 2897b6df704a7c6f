//! A writer publishes to an epoch cell while a reader pins it: no value is freed too early, twice or never.

use std::sync::Arc;

use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;
use sluicegate_loom::explore;
use sluicegate_loom::sys::epoch_cell::EpochCell;

/// A value whose memory loom watches. It is written when it is made and when it is dropped, and read in
/// between.
struct Watched {
    number: UnsafeCell<u32>,
    drops: loom::sync::Arc<AtomicUsize>,
}

// SAFETY: only `new` and `drop` write the number. loom fails the model when another thread reads meanwhile.
unsafe impl Sync for Watched {}
// SAFETY: the same argument as for `Sync`.
unsafe impl Send for Watched {}

impl Watched {
    fn new(number: u32, drops: &loom::sync::Arc<AtomicUsize>) -> Arc<Self> {
        Arc::new(Self { number: UnsafeCell::new(number), drops: loom::sync::Arc::clone(drops) })
    }

    fn number(&self) -> u32 {
        // SAFETY: loom fails the model when another thread writes at the same time.
        self.number.with(|number| unsafe { *number })
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        // SAFETY: loom fails the model when another thread reads or writes at the same time.
        self.number.with_mut(|number| unsafe { *number = FREED });
        self.drops.fetch_add(1, Ordering::Relaxed);
    }
}

/// Lets the collector drop the values that no pin can reach any more. A control thread does so from time to
/// time.
fn reclaim() {
    crossbeam_epoch::pin().flush();
}

#[test]
fn a_reader_never_sees_a_freed_or_half_made_value_while_a_writer_publishes_twice() {
    explore(|| {
        let drops = loom::sync::Arc::new(AtomicUsize::new(0));
        let cell = loom::sync::Arc::new(EpochCell::empty());
        cell.publish(Watched::new(1, &drops));
        let reader = thread::spawn({
            let cell = loom::sync::Arc::clone(&cell);
            move || {
                let pin = cell.pin();
                let value = pin.get().unwrap();
                let seen = value.number();
                assert!((1..=3).contains(&seen));
                thread::yield_now();
                assert_eq!(value.number(), seen, "the value changed under the pin");
                assert!(pin.get().unwrap().number() >= seen, "the cell returned to an older value");
            }
        });
        cell.publish(Watched::new(2, &drops));
        cell.publish(Watched::new(3, &drops));
        reclaim();
        reader.join().unwrap();
    });
}

#[test]
fn a_replaced_value_is_dropped_once_and_only_when_no_pin_holds_it() {
    explore(|| {
        let drops = loom::sync::Arc::new(AtomicUsize::new(0));
        let cell = loom::sync::Arc::new(EpochCell::empty());
        cell.publish(Watched::new(1, &drops));
        let reader = thread::spawn({
            let (cell, drops) = (loom::sync::Arc::clone(&cell), loom::sync::Arc::clone(&drops));
            move || {
                let pin = cell.pin();
                if pin.get().unwrap().number() == 1 {
                    assert_eq!(drops.load(Ordering::Relaxed), 0, "the value was dropped under the pin");
                }
            }
        });
        cell.publish(Watched::new(2, &drops));
        for _ in 0..EPOCHS {
            reclaim();
        }
        reader.join().unwrap();
        // Under loom a thread leaves its epoch only after it was joined, so the drop can come later.
        while drops.load(Ordering::Relaxed) == 0 {
            reclaim();
            thread::yield_now();
        }
        drop(cell);
        assert_eq!(drops.load(Ordering::Relaxed), 2, "the cell did not drop its last value");
    });
}

/// The number that a dropped value holds.
const FREED: u32 = u32::MAX;

/// Calls of `reclaim` after which a value without a pin can be dropped.
const EPOCHS: usize = 2;
