//! Follows what the store records of single rows.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crossbeam::channel::{self, Receiver, Sender};

use super::{Order, Pace, ReadError, ReadResult, context_of, message, pause, send};
use crate::store::{Bookmark, StoreReader};
use crate::sys::service_thread::StopSignal;

/// See the module.
pub(super) struct WordsReader {
    reader: Box<dyn StoreReader>,
    orders: Receiver<Order>,
    results: Sender<ReadResult>,
    pace: Pace,
    /// Failed reads in a row.
    failures: u32,
    /// The place after the last read that the control thread has.
    delivered: Option<Bookmark>,
}

impl WordsReader {
    pub(super) fn new(
        reader: Box<dyn StoreReader>,
        orders: Receiver<Order>,
        results: Sender<ReadResult>,
        pace: Pace,
    ) -> Self {
        let delivered = reader.bookmark();
        Self { reader, orders, results, pace, failures: 0, delivered }
    }

    pub(super) fn run(mut self, stop: &StopSignal) {
        while self.read() {
            let wake_ups = self.reader.wake_ups();
            let next = channel::after(pause(self.pace.refresh, self.failures));
            channel::select_biased! {
                recv(stop.channel()) -> _ => return,
                recv(self.orders) -> order => match order {
                    Ok(order) => self.obey(order),
                    // The control thread has ended.
                    Err(_) => return,
                },
                recv(wake_ups) -> _ => {}
                recv(next) -> _ => {}
            }
        }
    }

    fn obey(&mut self, order: Order) {
        if let Order::Replace(queries, pace) = order {
            self.reader.replace_queries(*queries);
            self.pace = pace;
        }
    }

    /// Reads once; false once nobody wants it any more.
    fn read(&mut self) -> bool {
        // Unwind safe: after a fault the reader goes on from what was delivered last.
        let result = match catch_unwind(AssertUnwindSafe(|| self.reader.read_words())) {
            Ok(result) => result.map_err(ReadError::from),
            Err(panic) => {
                if let Some(bookmark) = self.delivered.clone() {
                    self.reader.resume(bookmark);
                }
                Err(ReadError::Fault(message(&*panic)))
            }
        };
        self.failures = if result.is_ok() { 0 } else { self.failures.saturating_add(1) };
        let context = context_of(&*self.reader);
        if result.is_ok() {
            self.delivered = context.bookmark.clone();
        }
        send(&self.results, ReadResult::Words { result, context })
    }
}
