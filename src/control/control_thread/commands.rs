//! Answers what operators ask.

use std::panic::{AssertUnwindSafe, catch_unwind};

use tokio::sync::oneshot;

use super::{ControlThread, pace};
use crate::authz::{Generation, UnixMillis};
use crate::config::{Config, Queries};
use crate::control::api::{Accepted, Expectation, Group, Publication, RolledBack};
use crate::control::commands::{Following, GuardCommandError, QueriesError, Request, Writing};
use crate::control::diff_report::{DiffReport, DiffRow, show_credential, show_device, show_grant};
use crate::control::guard::{AnyRow, Guard, HeldRow, Judged, QueriesVerdict};
use crate::control::readers::{ReaderFactory, is_replaced};
use crate::store::{AddressLayer, Comparison, Relation, StoreError, queries_digest};

/// A comparison of queries that a thread of its own has made, and what it was for.
pub(super) struct Compared {
    result: Result<Comparison, StoreError>,
    purpose: Purpose,
}

/// What a comparison is for.
enum Purpose {
    Report(oneshot::Sender<Result<DiffReport, QueriesError>>),
    Reload(Box<Config>, oneshot::Sender<Result<(), QueriesError>>),
}

impl ControlThread {
    /// Answers once the status shows what was done.
    pub(super) fn answer(&mut self, request: Request) {
        let now = self.now();
        // Ignore requesters that gave up.
        match request {
            Request::Diff(answer) => drop(answer.send(self.diff(now))),
            Request::Accept(digest, group, answer) => {
                let accepted = self.accept(&digest, group, now);
                self.update_status();
                drop(answer.send(accepted));
            }
            Request::RollBack(generation, answer) => {
                let undone = self.roll_back(generation, now);
                self.update_status();
                drop(answer.send(undone));
            }
            Request::Expect(request, answer) => {
                let expectation = self.guard.expect(&request, now);
                self.publish(Judged { published: true, ended: false }, None);
                self.update_status();
                drop(answer.send(expectation));
            }
            Request::ClearExpectation(group, answer) => {
                let cleared = self.clear(group);
                self.update_status();
                drop(answer.send(cleared));
            }
            Request::History(answer) => drop(answer.send(self.history())),
            Request::Compare(candidate, answer) => {
                let queries = self.queries.replaced_by(&candidate);
                self.compare(queries, Purpose::Report(answer));
            }
            Request::Reload(config, answer) => {
                if config.authz.queries == self.queries {
                    self.take_over(&config);
                    drop(answer.send(Ok(())));
                } else {
                    let queries = config.authz.queries.clone();
                    self.compare(queries, Purpose::Reload(config, answer));
                }
            }
            Request::Writing(Writing::ByAnother, answer) => {
                self.publisher.stop_writing(&self.guard, &self.known, self.store.bookmark());
                let _has_given_up = answer.send(());
            }
            Request::Writing(Writing::ByThisProcess, answer) => {
                self.publisher.resume_writing();
                self.keep_state();
                let _has_given_up = answer.send(());
            }
            Request::Following(following, answer) => {
                self.following = following;
                match following {
                    Following::Yes => {}
                    Following::Again => self.layer.take_tables(),
                    Following::No => self.layer.leave_tables(),
                }
                let _has_given_up = answer.send(());
            }
        }
    }

    fn diff(&self, _now: UnixMillis) -> Result<DiffReport, GuardCommandError> {
        if self.guard.in_force().is_none() && self.all_holds().is_empty() {
            return Err(GuardCommandError::NothingInForce);
        }
        let mut report = self.report_of(self.guard.rows_that_differ());
        report.holds = self.all_holds();
        report.digest = self.held_digest().unwrap_or_default();
        Ok(report)
    }

    /// Digest of all that is held, with the store's position where that is held.
    fn held_digest(&self) -> Option<String> {
        let rows = self.guard.held_digest();
        let position = self.store.held_position().map(|position| {
            let store =
                position.store.0.iter().fold(0u64, |sum, byte| sum.wrapping_mul(31) + u64::from(*byte));
            store ^ position.timeline.rotate_left(32)
        });
        match (rows, position) {
            (rows, None) => rows,
            (rows, Some(position)) => {
                let rows = rows.and_then(|rows| u64::from_str_radix(&rows, 16).ok()).unwrap_or_default();
                Some(format!("{:016x}", rows ^ position.rotate_left(1) ^ 1))
            }
        }
    }

    fn accept(
        &mut self,
        digest: &str,
        group: Option<Group>,
        now: UnixMillis,
    ) -> Result<Accepted, GuardCommandError> {
        let held = self.held_digest().ok_or(GuardCommandError::NothingHeld)?;
        if held != digest {
            return Err(GuardCommandError::OtherDigest);
        }
        let mut accepted = Accepted { groups: Vec::new(), rows: 0, generation: Generation(0) };
        if group.is_none()
            && let Some(position) = self.store.accept_position()
        {
            // What the other store says differs, and is judged as any answer from here on.
            self.known.replace(Some(position));
            self.guard.forget_positions();
        }
        if let Some(rows) = self.guard.held_digest() {
            accepted = self.guard.accept(&rows, group, now)?;
        }
        if let Some(generation) = self.guard.generation() {
            accepted.generation = generation;
        }
        self.probation.begin_anew();
        Relation::ALL.into_iter().for_each(|relation| self.readers.read_afresh(relation));
        self.hold_log.record_accept();
        self.publish(Judged { published: true, ended: true }, None);
        Ok(accepted)
    }

    fn roll_back(
        &mut self,
        generation: Option<Generation>,
        now: UnixMillis,
    ) -> Result<RolledBack, GuardCommandError> {
        let undone = self.guard.roll_back(generation, now);
        let undone = undone.ok_or(match generation {
            Some(generation) => GuardCommandError::NoSuchGeneration(generation),
            None => GuardCommandError::NoHistory,
        })?;
        self.report.rolled_back_by_operator(undone);
        self.probation.begin_anew();
        self.publish(Judged { published: true, ended: false }, None);
        Ok(undone)
    }

    fn clear(&mut self, group: Group) -> Result<Expectation, GuardCommandError> {
        let cleared = self.guard.clear_expectation(group).ok_or(GuardCommandError::NotExpected(group))?;
        self.publish(Judged::default(), None);
        Ok(cleared)
    }

    fn history(&self) -> Result<Vec<Publication>, GuardCommandError> {
        Ok(self.guard.history())
    }

    /// Has a thread of its own put both queries to the store, so that a slow one delays nothing here.
    fn compare(&mut self, queries: Queries, purpose: Purpose) {
        let (factory, done) = (self.factory.clone(), self.compared.0.clone());
        let running = self.queries.clone();
        // Where no thread can be started the sender of the answer is dropped, which is the reply.
        let started = std::thread::Builder::new().name("compare".to_owned()).spawn(move || {
            let compared = catch_unwind(AssertUnwindSafe(|| {
                let mut reader = factory();
                reader.replace_queries(running);
                reader.compare(&queries)
            }));
            // After a fault the sender of the answer is dropped, which is the reply.
            if let Ok(result) = compared {
                drop(done.send(Compared { result, purpose }));
            }
        });
        if let Err(error) = started {
            tracing::warn!("queries cannot be compared ({error}); raise the limit on threads or memory");
        }
    }

    pub(super) fn finish_comparison(&mut self, compared: Compared) {
        let Compared { result, purpose } = compared;
        let now = self.now();
        match purpose {
            Purpose::Report(answer) => {
                let report = result.map(|comparison| self.judge(comparison, now));
                drop(answer.send(report.map_err(QueriesError::from)));
            }
            Purpose::Reload(config, answer) => {
                let taken_over = match result {
                    Ok(comparison) => match self.judge(comparison, now).holds.into_iter().next() {
                        Some(refused) => Err(QueriesError::Refused(Box::new(refused))),
                        None => {
                            self.replace_queries(&config);
                            Ok(())
                        }
                    },
                    Err(error) => Err(error.into()),
                };
                drop(answer.send(taken_over));
            }
        }
    }

    fn judge(&self, comparison: Comparison, now: UnixMillis) -> DiffReport {
        let verdict = judge(comparison, &self.layer, &self.guard, now);
        let mut report = self.report_of(verdict.rows);
        report.holds = verdict.refused;
        report
    }

    fn replace_queries(&mut self, config: &Config) {
        tracing::info!("reading by other queries");
        self.take_over(config);
        self.readers.replace(&self.queries, self.pace);
        self.follow(self.store.follows_outbox());
    }

    fn take_over(&mut self, config: &Config) {
        self.queries = config.authz.queries.clone();
        self.pace = pace(config);
        self.guard.reconfigure(config);
        self.locations.reconfigure(config);
        self.probation.reconfigure(config);
        self.publisher.read_by(queries_digest(&config.store, &config.authz));
        self.readers.replace(&self.queries, self.pace);
    }

    pub(super) fn is_replaced(&self, relation: Relation) -> bool {
        is_replaced(&self.queries, relation)
    }

    fn report_of(&self, mut rows: Vec<HeldRow>) -> DiffReport {
        let node = self.locations.node();
        let mut report = DiffReport::default();
        rows.sort_by_cached_key(|row| row.key.to_string());
        for row in rows {
            let is_located = |row: &Option<AnyRow>| match row {
                Some(AnyRow::Device(device)) => device.location(node).is_some(),
                _ => false,
            };
            report.devices_unlocated += usize::from(is_located(&row.before) && !is_located(&row.after));
            let (before, after) = (row.before.as_ref().map(show), row.after.as_ref().map(show));
            report.push(DiffRow::new(&row.key, row.group, before, after));
        }
        report
    }
}

/// Has the guard judge the queries of `config` in place of `running`, before a process with the first takes over from one
/// with the second. Waits for the store.
pub(super) fn compare_before_start(
    factory: &ReaderFactory,
    running: Queries,
    config: &Config,
    layer: &AddressLayer,
    guard: &Guard,
    now: UnixMillis,
) -> Result<(), QueriesError> {
    let mut reader = factory();
    reader.replace_queries(running);
    let comparison = reader.compare(&config.authz.queries)?;
    let refused = judge(comparison, layer, guard, now).refused.into_iter().next();
    refused.map_or(Ok(()), |refused| Err(QueriesError::Refused(Box::new(refused))))
}

fn judge(mut comparison: Comparison, layer: &AddressLayer, guard: &Guard, now: UnixMillis) -> QueriesVerdict {
    for device in comparison.running.devices.iter_mut().chain(&mut comparison.candidate.devices) {
        layer.lay(device);
    }
    guard.judge_queries(comparison, now)
}

fn show(row: &AnyRow) -> String {
    match row {
        AnyRow::Credential(row) => show_credential(row),
        AnyRow::Grant(row) => show_grant(row),
        AnyRow::Device(row) => show_device(row),
    }
}
