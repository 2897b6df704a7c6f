//! Threads that read the store, each with a connection of its own, so that no read delays another one, a command or an
//! end.
//!
//! One follows what the store records of single rows, three read a relation each. They judge nothing: what they read
//! goes to the control thread through a bounded queue.

mod relation_reader;
mod words_reader;

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel::{self, Receiver, Sender, TrySendError};

use crate::config::Queries;
use crate::store::{Bookmark, Relation, RelationAnswer, StoreError, StoreReader, StoreWarnings, WordsAnswer};
use crate::sys::service_thread::ServiceThread;
use relation_reader::RelationReader;
use words_reader::WordsReader;

/// Makes another reader of the same store.
pub type ReaderFactory = Arc<dyn Fn() -> Box<dyn StoreReader> + Send + Sync>;

/// The reading threads; dropping them stops them, without waiting for a store that hangs.
pub(super) struct Readers {
    words: Sender<Order>,
    relations: [Sender<Order>; 3],
    _threads: Vec<ServiceThread>,
}

/// What the control thread wants of a reader.
#[derive(Clone, Debug)]
pub(super) enum Order {
    /// Read before the time.
    Soon,
    /// Read before the time, and give all rows: the last answer was not used.
    Afresh,
    /// Read by these queries from now on, at this pace.
    Replace(Box<Queries>, Pace),
}

/// The time between two reads.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// Between two reads of words.
    pub refresh: Duration,
    /// Between two whole reads of a relation that the outbox follows.
    pub reconcile: Duration,
    /// Between two whole reads of any other relation.
    pub reread: Duration,
}

/// What a reader has to say.
pub(super) enum ReadResult {
    Words { result: Result<WordsAnswer, ReadError>, context: ReadContext },
    Relation { relation: Relation, result: Result<RelationAnswer, ReadError>, context: ReadContext },
}

/// Reason why a read failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("a fault of sluicegate itself ({0}); please report it")]
    Fault(String),
}

/// The state of a reader after a read.
#[derive(Default)]
pub(super) struct ReadContext {
    pub warnings: StoreWarnings,
    pub lag: Duration,
    pub bookmark: Option<Bookmark>,
    /// The store names each row that changes.
    pub follows_outbox: bool,
}

impl Readers {
    /// Starts the threads. The words go on from `bookmark`, if there is one.
    pub(super) fn start(
        factory: &ReaderFactory,
        bookmark: Option<Bookmark>,
        queries: &Queries,
        pace: Pace,
    ) -> std::io::Result<(Self, Receiver<ReadResult>)> {
        let (results, received) = channel::bounded(RESULTS_MAX);
        let mut threads = Vec::new();
        let (words, orders) = channel::bounded(ORDERS_MAX);
        let mut reader = factory();
        if let Some(bookmark) = bookmark {
            reader.resume(bookmark);
        }
        let words_reader = WordsReader::new(reader, orders, results.clone(), pace);
        threads.push(ServiceThread::start_detached("read-words", move |stop| words_reader.run(&stop))?);
        let mut relations = Vec::new();
        for relation in Relation::ALL {
            let (order, orders) = channel::bounded(ORDERS_MAX);
            let reader =
                RelationReader::new(relation, factory(), orders, results.clone(), pace, queries.clone());
            let name = match relation {
                Relation::Credentials => "read-creds",
                Relation::Grants => "read-grants",
                Relation::Devices => "read-devices",
            };
            threads.push(ServiceThread::start_detached(name, move |stop| reader.run(&stop))?);
            relations.push(order);
        }
        let Ok(relations) = relations.try_into() else {
            return Err(std::io::Error::other("there are three relations"));
        };
        Ok((Self { words, relations, _threads: threads }, received))
    }

    /// Has `relation` read before its time. A reader that is reading does it afterwards.
    pub(super) fn read_soon(&self, relation: Relation) {
        let place = Relation::ALL.iter().position(|known| *known == relation).unwrap_or_default();
        // A full queue says the same already.
        let _is_asked_already = self.relations[place].try_send(Order::Soon);
    }

    /// Has `relation` read before its time, whether it has changed or not.
    pub(super) fn read_afresh(&self, relation: Relation) {
        let place = Relation::ALL.iter().position(|known| *known == relation).unwrap_or_default();
        // With a full queue the next answer is asked for again.
        let _is_busy = self.relations[place].try_send(Order::Afresh);
    }

    /// Has all read by `queries`. False where a reader is so busy that it cannot even be told.
    pub(super) fn replace(&self, queries: &Queries, pace: Pace) -> bool {
        let all = self.relations.iter().chain(std::iter::once(&self.words));
        all.fold(true, |is_sent, reader| {
            let order = Order::Replace(Box::new(queries.clone()), pace);
            let sent = reader.send_timeout(order, ORDER_TIME);
            is_sent && sent.is_ok()
        })
    }
}

/// Sends a result; false once nobody receives any more.
fn send(results: &Sender<ReadResult>, result: ReadResult) -> bool {
    match results.try_send(result) {
        Ok(()) => true,
        Err(TrySendError::Full(result)) => results.send(result).is_ok(),
        Err(TrySendError::Disconnected(_)) => false,
    }
}

fn context_of(reader: &dyn StoreReader) -> ReadContext {
    ReadContext {
        warnings: reader.warnings(),
        lag: reader.lag(),
        bookmark: reader.bookmark(),
        follows_outbox: reader.follows_outbox(),
    }
}

pub(super) const fn is_replaced(queries: &Queries, relation: Relation) -> bool {
    match relation {
        Relation::Credentials => queries.credentials.is_some(),
        Relation::Grants => queries.grants.is_some(),
        Relation::Devices => queries.devices.is_some(),
    }
}

/// The message of a panic.
pub(super) fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message").to_owned()
}

/// Within 10 % of `period`, so that nodes do not all read in the same second.
pub(super) fn jittered(period: Duration) -> Duration {
    // Without random bytes there is no jitter; nothing depends on it.
    let random = getrandom::u32().unwrap_or(u32::MAX / 2);
    period.mul_f64(0.9 + 0.2 * f64::from(random) / f64::from(u32::MAX))
}

/// Pause after failed reads in a row: it grows and stays short, with jitter so that nodes do not read in step.
fn pause(period: Duration, failures: u32) -> Duration {
    if failures == 0 {
        return period.max(PAUSE_MIN);
    }
    let longest = FAILURE_PAUSE_MAX.max(period);
    jittered(period.saturating_mul(1 << failures.min(16)).min(longest).max(PAUSE_MIN))
}

/// Results that wait for the control thread. Readers wait when it is full.
const RESULTS_MAX: usize = 8;

/// Orders that wait for a reader.
const ORDERS_MAX: usize = 4;

/// Longest wait for a reader to accept an order.
const ORDER_TIME: Duration = Duration::from_secs(1);

/// Longest pause between two reads of a store that fails.
const FAILURE_PAUSE_MAX: Duration = Duration::from_secs(1);

/// Shortest pause between two reads.
const PAUSE_MIN: Duration = Duration::from_millis(1);
