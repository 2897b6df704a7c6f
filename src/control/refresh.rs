//! The control thread's loop: read, admit, confirm, wait.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::{self, Receiver};

use super::admission::Admission;
use super::commands::{GuardCommandError, QueriesError, Request};
use super::diff_report::DiffReport;
use super::guard::broken_contract;
use super::persist::Persistence;
use super::publisher::Publisher;
use super::report::GuardReport;
use super::status::{ControlStatus, StatusHandle};
use crate::authz::{Authority, UnixMillis};
use crate::config::{Config, Queries};
use crate::store::{Changes, Rows, Source, StoreError, queries_digest};
use crate::sys::service_thread::StopSignal;
use crate::telemetry::LogOnChange;

/// Everything that the control thread owns.
pub(super) struct Refresher {
    source: Box<dyn Source>,
    authority: Arc<Authority>,
    admission: Admission,
    status: StatusHandle,
    /// Queries that the source runs.
    queries: Queries,
    refresh_every: Duration,
    reconcile_every: Duration,
    reconcile_at: Instant,
    /// Pause between full reads that come before their time.
    reread_pause: Duration,
    /// Failed reads in a row.
    failures: u32,
    trouble: LogOnChange,
}

impl Refresher {
    /// Begins with what was kept on disk, reads everything and admits it. Fails where neither can be had.
    pub(super) fn start(
        source: Box<dyn Source>,
        authority: Arc<Authority>,
        on_publish: Box<dyn Fn() + Send>,
        report: GuardReport,
        config: &Config,
    ) -> Result<Self, StoreError> {
        let store = source.describe();
        let queries = queries_digest(&config.store, &config.authz);
        let keep = |folder: &PathBuf| Persistence::new(folder, store.clone(), queries);
        let persistence = config.authz.state.as_ref().map(keep);
        let publisher = Publisher::new(Arc::clone(&authority), on_publish, persistence);
        let mut refresher = Self {
            admission: Admission::new(config, publisher, report),
            source,
            authority,
            status: StatusHandle::new(ControlStatus { store, ..ControlStatus::default() }),
            queries: config.authz.queries.clone(),
            refresh_every: config.authz.refresh,
            reconcile_every: config.authz.reconcile,
            reconcile_at: Instant::now(),
            reread_pause: REREAD_PAUSE_MIN,
            failures: 0,
            trouble: LogOnChange::default(),
        };
        if !config.authz.guard.enabled {
            tracing::warn!("authz.guard.enabled is false: whatever the store says is put in force unseen");
        }
        let kept = refresher.admission.restore().map(|kept| (kept.generation(), kept.row_counts()));
        match (refresher.refresh(), kept) {
            (Ok(()), _) => {}
            (Err(error), None) => return Err(error),
            (Err(error), Some((generation, rows))) => {
                tracing::warn!(
                    generation = generation.0,
                    grants = rows.grants,
                    devices = rows.devices,
                    "beginning with the snapshot that was kept on disk"
                );
                refresher.fail_by(&error);
            }
        }
        Ok(refresher)
    }

    pub(super) fn status(&self) -> StatusHandle {
        self.status.clone()
    }

    /// Keeps up with the store, and answers requests, until `stop`.
    pub(super) fn run(mut self, stop: &StopSignal, requests: &Receiver<Request>) {
        loop {
            // Other queries may have others.
            let wake_ups = self.source.wake_ups();
            let next_turn = channel::after(self.pause());
            loop {
                channel::select_biased! {
                    recv(stop.channel()) -> _ => return,
                    recv(next_turn) -> _ => break,
                    recv(wake_ups) -> _ => break,
                    recv(requests) -> request => match request {
                        Ok(request) => self.answer(request),
                        // Nobody is left who could ask, or stop this thread otherwise.
                        Err(_) => return,
                    },
                }
            }
            self.turn();
        }
    }

    fn answer(&mut self, request: Request) {
        // Ignore requesters that gave up. After a fault the sender is dropped, which is the reply.
        let answered = catch_unwind(AssertUnwindSafe(|| match request {
            Request::Diff(answer) => drop(answer.send(self.admission.diff())),
            Request::Accept(digest, group, answer) => {
                drop(answer.send(self.admission.accept(&digest, group)));
            }
            Request::RollBack(generation, answer) => {
                drop(answer.send(self.admission.roll_back(generation)));
            }
            Request::History(answer) => drop(answer.send(Ok(Vec::new()))),
            Request::ClearExpectation(group, answer) => {
                drop(answer.send(Err(GuardCommandError::NotExpected(group))));
            }
            Request::Expect(request, answer) => {
                tracing::warn!(?request, "this guard has no budgets, so that nothing can be announced");
                drop(answer.send(Err(GuardCommandError::ExpectMany)));
            }
            Request::Compare(candidate, answer) => drop(answer.send(self.compare(&candidate))),
            Request::Reload(config, answer) => drop(answer.send(self.reload(*config))),
        }));
        if let Err(panic) = answered {
            tracing::error!("a fault of sluicegate itself ({}); please report it", message(&*panic));
        }
        self.status.update(|status| self.admission.report(status));
    }

    fn compare(&mut self, candidate: &Queries) -> Result<DiffReport, QueriesError> {
        let comparison = self.source.compare(&self.queries.replaced_by(candidate))?;
        Ok(self.admission.judge_queries(comparison))
    }

    /// Takes `config` over, unless it has other queries and the guard refuses those.
    fn reload(&mut self, config: Config) -> Result<(), QueriesError> {
        let queries = &config.authz.queries;
        if *queries != self.queries {
            let report = self.admission.judge_queries(self.source.compare(queries)?);
            if let Some(refused) = report.holds.into_iter().next() {
                return Err(QueriesError::Refused(refused));
            }
            tracing::info!(
                credentials = report.credentials.total(),
                grants = report.grants.total(),
                devices = report.devices.total(),
                "reading by other queries; so many rows differ"
            );
            self.source.replace_queries(queries.clone());
            self.reconcile_at = Instant::now();
        }
        self.admission.reconfigure(&config);
        self.refresh_every = config.authz.refresh;
        self.reconcile_every = config.authz.reconcile;
        self.queries = config.authz.queries;
        Ok(())
    }

    /// The pause before the next read. After failures it grows, with jitter so that nodes do not read in step, but
    /// stays short.
    fn pause(&self) -> Duration {
        let pause = self.refresh_every.saturating_mul(1 << self.failures.min(16));
        let pause = pause.min(FAILURE_PAUSE_MAX.max(self.refresh_every)).max(PAUSE_MIN);
        if self.failures == 0 { pause } else { jittered(pause) }
    }

    fn turn(&mut self) {
        // Unwind safe: after a fault everything is read anew, and views are replaced as a whole.
        match catch_unwind(AssertUnwindSafe(|| self.refresh())) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                self.follow_elsewhere();
                self.fail_by(&error);
            }
            Err(panic) => {
                // What was read may be lost: the source takes it for delivered.
                self.reconcile_at = Instant::now();
                self.fail(format!("a fault of sluicegate itself ({}); please report it", message(&*panic)));
            }
        }
    }

    fn refresh(&mut self) -> Result<(), StoreError> {
        self.admission.drain_decision_logs();
        let now = UnixMillis::now();
        self.read()?;
        let lag_ms = i64::try_from(self.source.lag().as_millis()).unwrap_or(i64::MAX);
        self.confirm(UnixMillis(now.0.saturating_sub(lag_ms)));
        Ok(())
    }

    fn read(&mut self) -> Result<(), StoreError> {
        if Instant::now() >= self.reconcile_at {
            return self.read_everything();
        }
        let began = Instant::now();
        let changes = self.source.read_changes()?;
        self.admission.record_readable(self.source.readable_since().unwrap_or(began));
        match changes {
            Changes::Nothing => self.admission.apply_nothing(),
            Changes::Some { changes, quarantined } => self.admission.apply_changes(&changes, quarantined),
            Changes::All(rows) => self.apply_everything(rows),
            Changes::Behind => {
                tracing::info!("the outbox of {} does not reach back; reading all", self.source.describe());
                self.read_everything()?;
            }
        }
        self.hasten_reconcile();
        Ok(())
    }

    fn read_everything(&mut self) -> Result<(), StoreError> {
        let began = Instant::now();
        let rows = self.source.read_all()?;
        self.admission.record_readable(began);
        self.apply_everything(rows);
        self.reconcile_at = Instant::now() + jittered(self.reconcile_every);
        self.reread_pause = REREAD_PAUSE_MIN.max(began.elapsed() * REREAD_PAUSE_FACTOR);
        self.hasten_reconcile();
        Ok(())
    }

    /// Devices go on to move while the store cannot be read.
    fn follow_elsewhere(&mut self) {
        let moves = self.source.changes_elsewhere();
        if !moves.is_empty() {
            self.admission.apply_changes(&moves, Vec::new());
        }
        self.status.update(|status| {
            self.admission.report(status);
            status.warnings = self.source.warnings();
        });
    }

    fn apply_everything(&mut self, rows: Rows) {
        self.admission.apply_rows(rows);
    }

    /// Puts the next full read forward where it could heal a hold or confirm an absence.
    fn hasten_reconcile(&mut self) {
        if self.admission.wants_everything_read() {
            self.reconcile_at = self.reconcile_at.min(Instant::now() + self.reread_pause);
        }
    }

    /// The store was read as it was at `now`, and what it said is in force or held.
    fn confirm(&mut self, now: UnixMillis) {
        self.admission.confirm(now);
        self.failures = 0;
        if self.trouble.ends() {
            tracing::info!("{} can be read again", self.source.describe());
        }
        self.status.update(|status| {
            self.admission.report(status);
            status.confirmed_at = now;
            status.last_error = None;
            status.record_relations(now);
            status.warnings = self.source.warnings();
        });
    }

    fn fail_by(&mut self, error: &StoreError) {
        if let Some(hold) = broken_contract(error) {
            self.admission.hold_without_candidate(hold);
        }
        self.fail(error.to_string());
    }

    /// Logs a failure when it begins and when it changes, not with every read.
    fn fail(&mut self, error: String) {
        self.authority.lost_store();
        self.failures = self.failures.saturating_add(1);
        if self.trouble.changes_to(error.clone()) {
            tracing::warn!("{error}; until then the last good snapshot decides");
        }
        self.status.update(|status| {
            self.admission.report(status);
            status.record_relation_error(&error);
            status.last_error = Some(error);
            status.store_errors += 1;
        });
    }
}

fn message(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

/// Within 10 % of `period`, so that nodes do not all read everything in the same second.
pub(super) fn jittered(period: Duration) -> Duration {
    // Without random bytes there is no jitter; nothing depends on it.
    let random = getrandom::u32().unwrap_or(u32::MAX / 2);
    period.mul_f64(0.9 + 0.2 * f64::from(random) / f64::from(u32::MAX))
}

/// Longest pause between two reads of a store that fails.
const FAILURE_PAUSE_MAX: Duration = Duration::from_secs(1);

/// Shortest pause between two full reads that come before their time; a hold can last for days.
const REREAD_PAUSE_MIN: Duration = Duration::from_millis(500);

/// Factor between the time of a full read and the pause after it, so that a large store has time for others.
const REREAD_PAUSE_FACTOR: u32 = 10;

/// Shortest pause between two reads, also where `authz.refresh` is 0.
const PAUSE_MIN: Duration = Duration::from_millis(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reconciles_are_spread_by_a_tenth_to_either_side() {
        let period = Duration::from_secs(100);
        let periods: Vec<_> = (0..1_000).map(|_| jittered(period)).collect();
        assert!(periods.iter().all(|p| (90..=110).contains(&p.as_secs())));
        assert!(periods.iter().any(|p| *p < period) && periods.iter().any(|p| *p > period));
    }
}
