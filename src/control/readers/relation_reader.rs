//! Reads one relation whole, on a period and when the control thread asks.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use crossbeam::channel::{self, Receiver, Sender};

use super::{Order, Pace, ReadError, ReadResult, context_of, is_replaced, jittered, message, pause, send};
use crate::config::Queries;
use crate::store::{Relation, RelationRows, StoreError, StoreReader};
use crate::sys::service_thread::StopSignal;

/// See the module.
pub(super) struct RelationReader {
    relation: Relation,
    reader: Box<dyn StoreReader>,
    orders: Receiver<Order>,
    results: Sender<ReadResult>,
    pace: Pace,
    queries: Queries,
    failures: u32,
    /// Earliest time of a read that is asked for.
    soonest: Instant,
}

impl RelationReader {
    pub(super) fn new(
        relation: Relation,
        reader: Box<dyn StoreReader>,
        orders: Receiver<Order>,
        results: Sender<ReadResult>,
        pace: Pace,
        queries: Queries,
    ) -> Self {
        Self { relation, reader, orders, results, pace, queries, failures: 0, soonest: Instant::now() }
    }

    pub(super) fn run(mut self, stop: &StopSignal) {
        // Words come first: what was recorded is then no inferred change.
        let mut first = Instant::now() + WORDS_TIME;
        loop {
            if !self.wait_until(first, stop) || !self.read() {
                return;
            }
            first = self.due();
        }
    }

    /// Time of the next read that nobody asks for.
    fn due(&self) -> Instant {
        let period = if self.reader.follows_outbox() && !is_replaced(&self.queries, self.relation) {
            jittered(self.pace.reconcile)
        } else {
            self.pace.reread
        };
        Instant::now() + if self.failures == 0 { period } else { pause(FIRST_PAUSE, self.failures) }
    }

    /// Waits for the time of the next read; false once the thread is to stop.
    fn wait_until(&mut self, mut due: Instant, stop: &StopSignal) -> bool {
        loop {
            let next = channel::at(due);
            channel::select_biased! {
                recv(stop.channel()) -> _ => return false,
                recv(self.orders) -> order => match order {
                    Ok(Order::Soon) => due = due.min(self.soonest),
                    Ok(Order::Afresh) => {
                        // A reader by new queries remembers no answer.
                        self.reader.replace_queries(self.queries.clone());
                        due = due.min(self.soonest);
                    }
                    Ok(Order::Replace(queries, pace)) => {
                        self.queries = (*queries).clone();
                        self.pace = pace;
                        self.reader.replace_queries(*queries);
                        due = Instant::now();
                    }
                    Err(_) => return false,
                },
                recv(next) -> _ => return true,
            }
        }
    }

    /// Reads once; false once nobody wants it any more.
    fn read(&mut self) -> bool {
        let began = Instant::now();
        let (reader, relation) = (&mut self.reader, self.relation);
        let read = || {
            let mut answer = reader.read_relation(relation)?;
            let (rows, twice) = std::mem::replace(&mut answer.rows, RelationRows::Unchanged).deduplicated();
            answer.rows = rows;
            answer.quarantined.extend(twice);
            Ok::<_, StoreError>(answer)
        };
        let result = match catch_unwind(AssertUnwindSafe(read)) {
            Ok(result) => result.map_err(ReadError::from),
            Err(panic) => Err(ReadError::Fault(message(&*panic))),
        };
        self.failures = if result.is_ok() { 0 } else { self.failures.saturating_add(1) };
        let pause = REREAD_PAUSE_MIN.max(began.elapsed() * REREAD_PAUSE_FACTOR).min(REREAD_PAUSE_MAX);
        self.soonest = Instant::now() + pause;
        let context = context_of(&*self.reader);
        send(&self.results, ReadResult::Relation { relation, result, context })
    }
}

/// Longest wait for the first words before a relation is read.
const WORDS_TIME: Duration = Duration::from_secs(2);

/// First pause after a failed read.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// Shortest pause before a read that comes before its time.
const REREAD_PAUSE_MIN: Duration = Duration::from_millis(500);

/// Factor between the time of a read and the pause after it, so that a slow query does not load the store for long.
const REREAD_PAUSE_FACTOR: u32 = 2;

/// Longest pause before a read that is asked for.
const REREAD_PAUSE_MAX: Duration = Duration::from_secs(30);
