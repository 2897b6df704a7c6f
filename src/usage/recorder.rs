//! The thread that ends each interval: collects the sums, writes the record, and sends it to the audit log.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crossbeam::channel::Receiver;

use super::folder::UsageFolder;
use super::record::UsageRecord;
use super::report::ReportBuilder;
use super::{UsageFigures, UsageRequest};
use crate::authz::UnixMillis;
use crate::engine::UsageCollector;
use crate::sys::service_thread::StopSignal;
use crate::telemetry::{AuditEvent, AuditSender, LogOnChange, Usage, UsageTable};

pub(super) struct Recorder {
    collector: UsageCollector,
    audit: AuditSender,
    folder: Option<UsageFolder>,
    /// 0 where nothing is counted.
    interval: Duration,
    figures: Arc<UsageFigures>,
    /// The interval under way.
    began: UnixMillis,
    due: UnixMillis,
    used: UsageTable,
    /// Records that could not be written yet, the oldest first.
    unwritten: VecDeque<UsageRecord>,
    trouble: LogOnChange<String>,
}

impl Recorder {
    pub fn new(
        collector: UsageCollector,
        audit: AuditSender,
        folder: Option<UsageFolder>,
        interval: Duration,
        figures: Arc<UsageFigures>,
    ) -> Self {
        let began = UnixMillis::now();
        Self {
            collector,
            audit,
            folder,
            interval,
            figures,
            began,
            due: next_boundary(began, interval),
            used: UsageTable::default(),
            unwritten: VecDeque::new(),
            trouble: LogOnChange::default(),
        }
    }

    pub fn run(mut self, requests: &Receiver<UsageRequest>, stop: &StopSignal) {
        loop {
            crossbeam::channel::select! {
                recv(requests) -> request => match request {
                    Ok(request) => self.serve(request),
                    Err(_) => break,
                },
                recv(stop.channel()) -> _ => break,
                default(self.time_left()) => {}
            }
            if self.is_on() && self.time_left().is_zero() {
                self.end_interval();
            }
        }
        // The engine has stopped: all tunnels have ended.
        self.used.clear_open();
        self.collector.collect_ended(&mut self.used);
        self.write_record(UnixMillis::now());
    }

    fn serve(&mut self, request: UsageRequest) {
        match request {
            UsageRequest::Report { since, by, answer } => {
                self.collect();
                let mut report = ReportBuilder::new(since, by);
                if let Some(folder) = &self.folder
                    && let Err(error) = folder.read_since(since, |record| report.add(record))
                {
                    tracing::warn!(%error, "the records of use cannot be read");
                }
                self.unwritten
                    .iter()
                    .filter(|record| record.to > since)
                    .for_each(|record| report.add(record));
                let report = report.finish(&self.record(UnixMillis::now()));
                let _has_given_up = answer.try_send(report);
            }
            UsageRequest::Flush { done } => {
                if self.is_on() {
                    self.end_interval();
                }
                let _has_given_up = done.try_send(());
            }
            UsageRequest::Reconfigure(interval) => self.reconfigure(interval),
        }
    }

    fn reconfigure(&mut self, interval: Duration) {
        let was_on = self.is_on();
        if interval == self.interval {
            return;
        }
        if was_on {
            self.end_interval();
        } else {
            // What tunnels did before counts for no interval.
            self.collector.collect(&mut UsageTable::default());
            self.began = UnixMillis::now();
        }
        self.interval = interval;
        self.due = next_boundary(UnixMillis::now(), interval);
    }

    fn is_on(&self) -> bool {
        !self.interval.is_zero()
    }

    /// Time to the end of the interval. By the wall clock, which somebody may set.
    fn time_left(&self) -> Duration {
        if !self.is_on() {
            return NOTHING_TO_DO;
        }
        let left_ms = self.due.0.saturating_sub(UnixMillis::now().0);
        Duration::from_millis(u64::try_from(left_ms).unwrap_or(0)).min(self.interval)
    }

    fn collect(&mut self) {
        if self.is_on() {
            self.used.clear_open();
            self.collector.collect(&mut self.used);
        }
    }

    fn end_interval(&mut self) {
        self.collect();
        let now = UnixMillis::now();
        self.write_record(now);
        self.began = now;
        self.due = next_boundary(now, self.interval);
    }

    /// The interval under way as a record that ends at `to`.
    fn record(&self, to: UnixMillis) -> UsageRecord {
        UsageRecord { from: self.began.min(to), to, table: self.used.clone() }
    }

    /// Makes a record of what was used up to `to`, if there is any, and begins with nothing.
    fn write_record(&mut self, to: UnixMillis) {
        self.figures.keys.store(self.used.keys() as u64, Ordering::Relaxed);
        if self.used.is_empty() {
            return self.write_waiting();
        }
        let record = self.record(to);
        self.used = UsageTable::default();
        self.emit(&record);
        if self.folder.is_some() {
            if self.unwritten.len() >= UNWRITTEN_MAX {
                self.unwritten.pop_front();
            }
            self.unwritten.push_back(record);
        }
        self.write_waiting();
    }

    fn write_waiting(&mut self) {
        let Some(folder) = &self.folder else { return };
        while let Some(record) = self.unwritten.front() {
            if let Err(error) = folder.write(record) {
                self.figures.write_errors.fetch_add(1, Ordering::Relaxed);
                if self.trouble.changes_to(error.to_string()) {
                    tracing::error!(%error, "a record of use cannot be written to the state folder; see to it");
                }
                return;
            }
            self.unwritten.pop_front();
        }
        if self.trouble.ends() {
            tracing::warn!("records of use are written again");
        }
    }

    fn emit(&self, record: &UsageRecord) {
        let UsageRecord { from, to, table } = record;
        let give_up_at = Instant::now() + EMIT_TIME_MAX;
        for row in table.rows() {
            let event = Usage::new(*from, *to, Some(&row), row.sums);
            self.audit.emit_by(AuditEvent::Usage(event), give_up_at);
        }
        if !table.others().is_nothing() {
            let event = Usage::new(*from, *to, None, table.others());
            self.audit.emit_by(AuditEvent::Usage(event), give_up_at);
        }
    }
}

/// The next multiple of `interval` after `now`, so that the intervals of all nodes end together.
fn next_boundary(now: UnixMillis, interval: Duration) -> UnixMillis {
    let interval_ms = i64::try_from(interval.as_millis()).unwrap_or(i64::MAX).max(1);
    UnixMillis((now.0 / interval_ms).saturating_add(1).saturating_mul(interval_ms))
}

/// Records that wait for a disk. Each has up to 2 MiB.
const UNWRITTEN_MAX: usize = 4;

/// Time that the audit log has to take the events of a record: it writes 10,000 in far less.
const EMIT_TIME_MAX: Duration = Duration::from_secs(2);

/// Wait of a thread that has nothing to do.
const NOTHING_TO_DO: Duration = Duration::from_secs(3600);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_end_at_multiples_of_their_length() {
        let minute = Duration::from_secs(60);
        assert_eq!(next_boundary(UnixMillis(59_999), minute), UnixMillis(60_000));
        assert_eq!(next_boundary(UnixMillis(60_000), minute), UnixMillis(120_000));
    }
}
