//! A latency that one thread records and others read.
//!
//! The recording thread takes a lock that nobody holds for longer than a swap of two pointers: a reader
//! swaps an empty histogram in and adds up outside.

use std::mem;
use std::time::Duration;

use hdrhistogram::Histogram;
use parking_lot::Mutex;

/// Latencies in µs, to two significant digits. A latency above two minutes counts as two minutes.
pub struct Latency {
    recent: Mutex<Box<Histogram<u32>>>,
    /// Totals of everything read before, and an empty histogram to swap in.
    read: Mutex<ReadTotals>,
}

struct ReadTotals {
    total: Histogram<u64>,
    spare: Box<Histogram<u32>>,
}

impl Latency {
    pub fn record_us(&self, us: u64) {
        self.record(us);
    }

    /// Records a value in the unit that the readers of this latency expect.
    pub fn record(&self, value: u64) {
        self.recent.lock().saturating_record(value);
    }

    /// Returns everything recorded so far.
    pub fn total(&self) -> Histogram<u64> {
        let mut read = self.read.lock();
        let ReadTotals { total, spare } = &mut *read;
        mem::swap(&mut *self.recent.lock(), spare);
        for value in spare.iter_recorded() {
            total.saturating_record_n(value.value_iterated_to(), u64::from(value.count_at_value()));
        }
        spare.reset();
        total.clone()
    }
}

impl Default for Latency {
    fn default() -> Self {
        Self {
            recent: Mutex::new(Box::new(histogram())),
            read: Mutex::new(ReadTotals { total: histogram(), spare: Box::new(histogram()) }),
        }
    }
}

fn histogram<C: hdrhistogram::Counter>() -> Histogram<C> {
    let max_us = LATENCY_MAX.as_micros() as u64;
    Histogram::new_with_max(max_us, SIGNIFICANT_DIGITS).expect("the bounds are those that hdrhistogram takes")
}

/// No handshake takes longer: its timeouts end it before.
const LATENCY_MAX: Duration = Duration::from_secs(120);

const SIGNIFICANT_DIGITS: u8 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_recorded_between_two_reads_is_in_the_second() {
        let latency = Latency::default();
        latency.record_us(100);
        assert_eq!(latency.total().len(), 1);
        latency.record_us(300);
        latency.record_us(u64::MAX);
        let total = latency.total();
        assert_eq!((total.len(), total.min()), (3, 100));
        assert!(total.max() >= 120_000_000);
        assert_eq!(latency.total().len(), 3);
    }

    #[test]
    fn reading_while_recording_loses_nothing() {
        let latency = Latency::default();
        std::thread::scope(|scope| {
            scope.spawn(|| (0..100_000).for_each(|us| latency.record_us(us)));
            for _ in 0..100 {
                latency.total();
            }
        });
        assert_eq!(latency.total().len(), 100_000);
    }
}
