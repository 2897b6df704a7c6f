//! What has arrived, counted while it is being measured.

use std::time::Instant;

use hdrhistogram::Histogram;

use crate::record::{Latency, Load};

pub struct Tally {
    clock: Instant,
    /// Messages are due whatever the answers do; only those count that are due while it records.
    pub is_scheduled: bool,
    /// Time at which recording began.
    since_ns: Option<u64>,
    bytes: u64,
    exchanges: u64,
    latency_ns: Histogram<u64>,
    errors: u64,
    first_error: Option<String>,
    /// Time of the last byte, answer or new tunnel, recorded or not.
    pub progress_ns: u64,
}

impl Tally {
    pub fn new() -> Self {
        Self {
            clock: Instant::now(),
            is_scheduled: false,
            since_ns: None,
            bytes: 0,
            exchanges: 0,
            latency_ns: Histogram::new_with_bounds(1, LATENCY_MAX_NS, 3).expect("the bounds are in order"),
            errors: 0,
            first_error: None,
            progress_ns: 0,
        }
    }

    pub fn record(&mut self) {
        self.since_ns = Some(self.now_ns());
    }

    /// Bytes of bulk.
    pub fn arrived(&mut self, bytes: u64) {
        if bytes > 0 {
            self.progress_ns = self.now_ns();
        }
        if self.since_ns.is_some() {
            self.bytes += bytes;
        }
    }

    /// Records that the message due at `due_ns` was answered, and returns the time.
    pub fn exchanged(&mut self, due_ns: u64) -> u64 {
        let now_ns = self.now_ns();
        self.progress_ns = now_ns;
        let counts = match self.since_ns {
            None => false,
            Some(since_ns) => !self.is_scheduled || due_ns >= since_ns,
        };
        if counts {
            self.exchanges += 1;
            self.waited(due_ns, now_ns);
        }
        now_ns
    }

    /// Nobody has answered what was due at `due_ns`, and it is not waited for any longer.
    pub fn unanswered(&mut self, due_ns: u64) {
        self.waited(due_ns, self.now_ns());
        self.failed("a message that was due was not answered in time".to_owned());
    }

    /// Errors count from the first connection on: a relay that fails while it warms up has failed.
    pub fn failed(&mut self, error: String) {
        self.errors += 1;
        self.first_error.get_or_insert(error);
    }

    pub fn now_ns(&self) -> u64 {
        self.clock.elapsed().as_nanos() as u64
    }

    pub fn since_ns(&self) -> u64 {
        self.since_ns.unwrap_or(u64::MAX)
    }

    pub fn errors(&self) -> u64 {
        self.errors
    }

    pub fn first_error(&self) -> Option<&str> {
        self.first_error.as_deref()
    }

    pub fn into_load(self, seconds: f64) -> Load {
        let us = |quantile| self.latency_ns.value_at_quantile(quantile) as f64 / 1000.0;
        let latency_us = (!self.latency_ns.is_empty()).then(|| Latency {
            p50: us(0.5),
            p90: us(0.9),
            p99: us(0.99),
            p999: us(0.999),
            max: self.latency_ns.max() as f64 / 1000.0,
        });
        Load {
            seconds,
            bytes: self.bytes,
            exchanges: self.exchanges,
            latency_us,
            errors: self.errors,
            first_error: self.first_error,
        }
    }

    fn waited(&mut self, due_ns: u64, until_ns: u64) {
        self.latency_ns.saturating_record(until_ns.saturating_sub(due_ns).max(1));
    }
}

const LATENCY_MAX_NS: u64 = 60_000_000_000;
