//! The root pointer and what becomes of the values that it held.
#![cfg(crossbeam_loom)]

use std::sync::Arc;

use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;
use sluicegate_loom::explore;
use sluicegate_loom::sys::epoch_cell::EpochCell;

/// A value that loom watches: written when it is made and when it is dropped, read in between.
struct Watched {
    number: UnsafeCell<u32>,
    drops: loom::sync::Arc<AtomicUsize>,
}

// SAFETY: written only by who makes and who drops it; loom ends the model where another thread reads meanwhile.
unsafe impl Sync for Watched {}
// SAFETY: as above.
unsafe impl Send for Watched {}

impl Watched {
    fn new(number: u32, drops: &loom::sync::Arc<AtomicUsize>) -> Arc<Self> {
        Arc::new(Self { number: UnsafeCell::new(number), drops: loom::sync::Arc::clone(drops) })
    }

    fn number(&self) -> u32 {
        // SAFETY: that nobody writes now is what loom examines.
        self.number.with(|number| unsafe { *number })
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        // SAFETY: as in `number`.
        self.number.with_mut(|number| unsafe { *number = FREED });
        self.drops.fetch_add(1, Ordering::Relaxed);
    }
}

const FREED: u32 = u32::MAX;

/// What a control thread does from time to time, and by which old values come to be dropped.
fn reclaim() {
    crossbeam_epoch::pin().flush();
}

#[test]
fn a_reader_never_sees_a_freed_or_half_made_value_while_a_writer_publishes_twice() {
    explore(|| {
        let drops = loom::sync::Arc::new(AtomicUsize::new(0));
        let root = loom::sync::Arc::new(EpochCell::empty());
        root.publish(Watched::new(1, &drops));
        let reader = thread::spawn({
            let root = loom::sync::Arc::clone(&root);
            move || {
                let pin = root.pin();
                let value = pin.get().unwrap();
                let seen = value.number();
                assert!((1..=3).contains(&seen));
                thread::yield_now();
                assert_eq!(value.number(), seen, "it changed under the pin");
                assert!(pin.get().unwrap().number() >= seen, "the root went back");
            }
        });
        root.publish(Watched::new(2, &drops));
        root.publish(Watched::new(3, &drops));
        reclaim();
        reader.join().unwrap();
    });
}

#[test]
fn a_replaced_value_is_dropped_once_and_only_when_no_pin_holds_it() {
    explore(|| {
        let drops = loom::sync::Arc::new(AtomicUsize::new(0));
        let root = loom::sync::Arc::new(EpochCell::empty());
        root.publish(Watched::new(1, &drops));
        let reader = thread::spawn({
            let (root, drops) = (loom::sync::Arc::clone(&root), loom::sync::Arc::clone(&drops));
            move || {
                let pin = root.pin();
                if pin.get().unwrap().number() == 1 {
                    assert_eq!(drops.load(Ordering::Relaxed), 0, "dropped under the pin");
                }
            }
        });
        root.publish(Watched::new(2, &drops));
        for _ in 0..EPOCHS {
            reclaim();
        }
        reader.join().unwrap();
        // Not at once: under loom, a thread leaves the epochs after it was joined.
        while drops.load(Ordering::Relaxed) == 0 {
            reclaim();
            thread::yield_now();
        }
        drop(root);
        assert_eq!(drops.load(Ordering::Relaxed), 2, "the last value goes with the root");
    });
}

/// Looks after which a value that no pin holds can be dropped.
const EPOCHS: usize = 2;
