//! The control thread's loop: takes in what readers read and what operators ask, has the guard judge it, publishes.
//!
//! It never waits for the store. Whatever goes wrong here, a fault of our own included, leaves what is in force.

mod answers;
mod commands;
mod events;
mod first_answers;
mod locations;
mod peers;
mod state;
mod status;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::{self, Receiver, Sender};

use super::commands::{Following, QueriesError, Request};
use super::guard::{Guard, Judged};
use super::hold_log::HoldLog;
use super::neighbours::Inquiry;
use super::probation::Probation;
use super::publisher::{Publisher, ReadUpTo};
use super::readers::{Pace, ReadResult, ReaderFactory, Readers, message};
use super::report::GuardReport;
use super::status::{ControlStatus, StatusHandle};
use crate::authz::{Authority, UnixMillis};
use crate::config::{Config, Queries};
use crate::store::{AddressLayer, KnownPosition, Relation, StoreError};
use crate::sys::service_thread::StopSignal;
use answers::Answers;
use commands::compare_before_start;
use first_answers::report_start;
use locations::Locations;
use peers::Peers;
use state::StoreState;

/// Everything that the control thread owns.
pub(super) struct ControlThread {
    guard: Guard,
    publisher: Publisher,
    readers: Readers,
    results: Receiver<ReadResult>,
    factory: ReaderFactory,
    /// The newest position that is believed; the readers compare with it.
    known: KnownPosition,
    authority: Arc<Authority>,
    layer: AddressLayer,
    locations: Locations,
    peers: Peers,
    store: StoreState,
    probation: Probation,
    hold_log: HoldLog,
    report: GuardReport,
    status: StatusHandle,
    queries: Queries,
    pace: Pace,
    compared: (channel::Sender<commands::Compared>, Receiver<commands::Compared>),
    answers: Answers,
    pass_time_at: Instant,
    /// The first words were read, or could not be.
    has_begun: bool,
    following: Following,
}

/// What a control thread begins with.
pub(super) struct Parts {
    /// The store, without secrets.
    pub name: String,
    pub factory: ReaderFactory,
    /// The queries so far, where they are others.
    pub running: Option<Queries>,
    pub known: KnownPosition,
    pub layer: AddressLayer,
    /// The way to the peers, where there are any.
    pub peers: Option<Inquiry>,
    pub authority: Arc<Authority>,
    pub publisher: Publisher,
    pub report: GuardReport,
}

impl ControlThread {
    /// Begins with what was kept on disk. Without it, [`run`](Self::run) waits for the first answers of the store.
    pub(super) fn start(parts: Parts, config: &Config) -> Result<Self, StartError> {
        let Parts { name, factory, running, known, layer, peers, authority, mut publisher, report } = parts;
        let pace = pace(config);
        let mut guard = Guard::new(config);
        let mut bookmark = None;
        if let Some(kept) = publisher.restore() {
            let now = authority.time(UnixMillis::now());
            known.replace(kept.position);
            bookmark = kept.bookmark;
            guard.restore(kept.snapshot, kept.revocations, kept.memory, now);
            if let Some(position) = kept.position {
                guard.remember_ends(position, now);
            }
        }
        if let Some(running) = running {
            let now = authority.time(UnixMillis::now());
            compare_before_start(&factory, running, config, &layer, &guard, now)
                .map_err(StartError::Queries)?;
        }
        let (readers, results) =
            Readers::start(&factory, bookmark, &config.authz.queries, pace).map_err(StartError::Thread)?;
        let store = StoreState::new(name);
        let status = ControlStatus { store: store.name().to_owned(), ..ControlStatus::default() };
        let mut thread = Self {
            guard,
            publisher,
            readers,
            results,
            factory,
            known,
            authority,
            layer,
            locations: Locations::new(config),
            peers: Peers::new(peers),
            store,
            probation: Probation::new(config, report.clone()),
            hold_log: HoldLog::new(report.clone()),
            report,
            status: StatusHandle::new(status),
            queries: config.authz.queries.clone(),
            pace,
            compared: channel::bounded(COMPARED_MAX),
            answers: Answers::start().map_err(StartError::Thread)?,
            pass_time_at: Instant::now(),
            has_begun: false,
            following: Following::Yes,
        };
        let follows_outbox = thread.factory.as_ref()().follows_outbox();
        thread.follow(follows_outbox);
        if !config.authz.guard.enabled {
            tracing::warn!("authz.guard.enabled is false: whatever the store says is put in force unseen");
        }
        if thread.guard.in_force().is_some() {
            thread.publish(Judged { published: true, ended: false }, None);
            thread.log_kept();
        }
        Ok(thread)
    }

    /// The time that rights expire by. It never goes back, and is asked for with each tick, whatever the store does.
    fn now(&self) -> UnixMillis {
        self.authority.time(UnixMillis::now())
    }

    pub(super) fn status(&self) -> StatusHandle {
        self.status.clone()
    }

    /// Keeps up with the store, and answers requests, until `stop`. Tells `started` once it decides, or waits for a store
    /// that is away; or why the node cannot start.
    pub(super) fn run(
        mut self,
        stop: &StopSignal,
        requests: &Receiver<Request>,
        started: &Sender<Result<(), StartError>>,
    ) {
        if self.guard.in_force().is_none() && !self.wait_for_first_answers(stop, requests, started) {
            return;
        }
        // What an operator says next is to outlive a crash.
        self.keep_state();
        self.update_status();
        report_start(started, Ok(()));
        let ticks = channel::tick(TICK);
        loop {
            let follows = self.following != Following::No;
            // What readers have read waits for the time when it is wanted again.
            let results = if follows { self.results.clone() } else { channel::never() };
            let compared = self.compared.1.clone();
            let (answers, work) = (self.answers.done().clone(), self.answers.work());
            channel::select_biased! {
                recv(stop.channel()) -> _ => break,
                recv(requests) -> request => match request {
                    Ok(request) => self.guarded(|thread| thread.answer(request)),
                    // Nobody is left who could ask, or stop this thread otherwise.
                    Err(_) => break,
                },
                recv(results) -> result => if let Ok(result) = result {
                    self.guarded(|thread| thread.take_in(result));
                },
                recv(compared) -> compared => if let Ok(compared) = compared {
                    self.guarded(|thread| thread.finish_comparison(compared));
                },
                recv(answers) -> done => if let Ok(done) = done {
                    self.answers.push(done);
                },
                recv(ticks) -> _ => if follows {
                    self.guarded(Self::tick);
                },
                recv(work) -> _ => self.guarded(Self::judge_some),
            }
            self.update_status();
        }
        self.publisher.stop(&self.guard, &self.known, self.store.bookmark());
    }

    /// Runs `step`. After a fault of our own everything is read anew; what is in force was replaced as a whole.
    fn guarded(&mut self, step: impl FnOnce(&mut Self)) {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| step(self))) {
            let fault = format!("a fault of sluicegate itself ({}); please report it", message(&*panic));
            self.store.fail(None, fault);
            self.drop_answers();
            Relation::ALL.into_iter().for_each(|relation| self.readers.read_afresh(relation));
        }
    }

    /// Sets which relations an outbox follows row by row.
    fn follow(&mut self, follows_outbox: bool) {
        for relation in Relation::ALL {
            self.guard.follow(relation, follows_outbox && !self.is_replaced(relation));
        }
    }

    fn log_kept(&self) {
        let Some(snapshot) = self.guard.in_force() else { return };
        let (generation, rows) = (snapshot.generation().0, snapshot.row_counts());
        tracing::info!(
            generation,
            grants = rows.grants,
            devices = rows.devices,
            "beginning with the snapshot that was kept on disk"
        );
    }

    /// Regular work that waits for nothing.
    fn tick(&mut self) {
        let now = self.now();
        self.publisher.tidy();
        self.poll_tables(now);
        self.poll_network(now);
        self.poll_peers(now);
        self.check_for_regressions(now);
        if Instant::now() >= self.pass_time_at {
            self.pass_time_at = Instant::now() + PASS_TIME_EVERY;
            let judged = self.guard.pass_time(now);
            self.publish(judged, None);
            if self.guard.has_many_tombstones() {
                Relation::ALL.into_iter().for_each(|relation| self.readers.read_soon(relation));
            }
            self.keep_state();
        }
    }

    /// Writes the state to disk where one is due.
    fn keep_state(&mut self) {
        self.publisher.keep(&self.guard, &self.known, self.store.bookmark());
    }

    /// Puts in force what `judged` changed. `readable_since` says since when its ends could have been read.
    fn publish(&mut self, judged: Judged, readable_since: Option<Instant>) {
        let unpublished = self.guard.drain_unpublished();
        if judged.published {
            let ended_at = judged.ended.then(|| readable_since.unwrap_or_else(Instant::now));
            let read_up_to = ReadUpTo { position: self.known.get(), bookmark: self.store.bookmark() };
            let changes = || unpublished.inferred.iter().chain(&unpublished.words);
            if let Some(masked) = self.guard.mask(changes()) {
                let previous = self.guard.before_losses(changes());
                self.publisher.publish(&self.guard, masked, previous, unpublished, ended_at, read_up_to);
            }
        } else if unpublished.is_memory_changed {
            self.publisher.record_memory(&self.guard);
        }
        self.authority.set_doubted(self.guard.doubted());
        self.hold_log.update(&self.all_holds(), self.guard.generation());
        for relation in Relation::ALL.into_iter().filter(|relation| self.guard.wants_read(*relation)) {
            self.readers.read_soon(relation);
        }
    }
}

/// Reason why a control thread does not start.
#[derive(Debug, thiserror::Error)]
pub(super) enum StartError {
    #[error(transparent)]
    Store(StoreError),
    #[error(transparent)]
    Queries(QueriesError),
    #[error("{0}")]
    Fault(String),
    #[error("a reading thread cannot be started ({0}); raise the limit on threads or memory")]
    Thread(std::io::Error),
}

pub(super) fn pace(config: &Config) -> Pace {
    let authz = &config.authz;
    Pace { refresh: authz.refresh, reconcile: authz.reconcile, reread: authz.reread }
}

/// Time between two looks at tables, clients and disk.
const TICK: Duration = Duration::from_millis(50);

/// Time between two moves of the baseline.
const PASS_TIME_EVERY: Duration = Duration::from_secs(1);

/// Comparisons of queries that wait for their verdict.
const COMPARED_MAX: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_keep_the_times_that_were_read_again() {
        let mut config = Config::default();
        let second = Duration::from_secs(1);
        (config.authz.refresh, config.authz.reconcile, config.authz.reread) =
            (second, 2 * second, 3 * second);
        let Pace { refresh, reconcile, reread } = pace(&config);
        assert_eq!((refresh, reconcile, reread), (second, 2 * second, 3 * second));
    }
}
