//! What the store says, what is in force, and the way from the one to the other.
//!
//! What has ended, ends first. The rest is put to the guard, and then either published or held: the last
//! good snapshot stays in force, and the next read is put to the guard again.

mod person;
mod queries;
mod rollback;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use super::api;
use super::candidate::CandidateBuilder;
use super::guard::{
    Candidate, Difference, Guard, Hold, PeerPolls, Prober, ReadScope, Replay, Rule, Since, Verdict,
    revokes_everything,
};
use super::history::History;
use super::hold::{HoldStatus, Holding, shown_rule};
use super::missing_rows::{MissingRows, Settled};
use super::probation::Probation;
use super::publisher::Publisher;
use super::quarantine::{Quarantine, row_key};
use super::replay_log::ReplayLog;
use super::report::GuardReport;
use super::reused_addresses::ReusedAddresses;
use super::status::ControlStatus;
use crate::authz::{Change, Device, Generation, RowCounts, Snapshot, UnixMillis};
use crate::config::{Config, OnRegression};
use crate::store::{Quarantined, Relation, RowKey, Rows, queries_digest};
use crate::telemetry::By;
use rollback::Rejection;

/// The way of rows from a read to a publication.
pub(super) struct Admission {
    report: GuardReport,
    guard: Guard,
    publisher: Publisher,
    /// Snapshot that passed the guard last; `None` before the first.
    last_good: Option<Arc<Snapshot>>,
    /// Rows of `last_good` that are not revoked.
    live: RowCounts,
    candidate_builder: CandidateBuilder,
    missing_rows: MissingRows,
    quarantine: Quarantine,
    /// Hold because the revocations of the last full read are not believed; see [`revokes_everything`].
    doubt: Option<Hold>,
    holding: Holding,
    prober: Prober,
    peer_polls: PeerPolls,
    recent: ReplayLog,
    node: Option<String>,
    /// Other queries read the state on disk, and nothing has been published since.
    queries_are_unproven: bool,
    /// Changes of addresses on top of the last good snapshot, while something else is held.
    reused_addresses: ReusedAddresses,
    reads_of_everything: u64,
    history: History,
    probation: Probation,
    /// Reason of a rollback, which keeps the store's answer from being published again.
    rejection: Option<Rejection>,
    on_regression: OnRegression,
    rollbacks: u64,
}

impl Admission {
    pub(super) fn new(config: &Config, publisher: Publisher, report: GuardReport) -> Self {
        Self {
            guard: Guard::new(config),
            prober: Prober::new(config),
            peer_polls: PeerPolls::new(config),
            recent: ReplayLog::new(config.authz.guard.replay),
            node: config.vpn.node.clone(),
            reused_addresses: ReusedAddresses::default(),
            publisher,
            last_good: None,
            live: RowCounts::default(),
            candidate_builder: CandidateBuilder::empty(),
            missing_rows: MissingRows::default(),
            quarantine: Quarantine::new(report.clone()),
            doubt: None,
            holding: Holding::new(report.clone()),
            queries_are_unproven: false,
            reads_of_everything: 0,
            history: History::new(config.authz.guard.probation),
            probation: Probation::new(config, report.clone()),
            rejection: None,
            on_regression: config.authz.guard.on_regression,
            rollbacks: 0,
            report,
        }
    }

    /// Judges by `config` from now on.
    pub(super) fn reconfigure(&mut self, config: &Config) {
        self.publisher.read_by(queries_digest(&config.store, &config.authz));
        self.guard = Guard::new(config);
        self.prober = Prober::new(config);
        self.peer_polls = PeerPolls::new(config);
        self.on_regression = config.authz.guard.on_regression;
    }

    /// Begins with what an earlier process kept on disk, if there is anything.
    pub(super) fn restore(&mut self) -> Option<&Snapshot> {
        let (kept, other_queries) = self.publisher.restore()?;
        self.queries_are_unproven = !other_queries.is_empty();
        if self.queries_are_unproven {
            tracing::warn!(
                "the snapshot on disk was read by other queries; what these revoke has to be within bounds"
            );
        }
        self.live = count_live(&kept);
        self.candidate_builder.share(&kept, &HashSet::new());
        Some(self.last_good.insert(kept))
    }

    /// The store was heard at `now`, and what it said is in force or held.
    pub(super) fn confirm(&mut self, now: UnixMillis) {
        self.publisher.confirm(now);
    }

    /// Records that the next rows could be read since `readable_since`.
    pub(super) fn record_readable(&mut self, readable_since: Instant) {
        self.publisher.record_readable(readable_since);
    }

    /// A full read.
    pub(super) fn apply_rows(&mut self, mut rows: Rows) {
        let quarantined = std::mem::take(&mut rows.quarantined);
        self.missing_rows.count_read(ReadScope::Everything);
        let ends = self.believed_ends(&rows);
        self.publisher.end(&ends);
        // What follows takes its time.
        self.publisher.settle();
        self.candidate_builder.replace(rows, &quarantined, self.last_good.as_deref());
        self.quarantine.replace(quarantined);
        self.reads_of_everything += 1;
        self.judge(ReadScope::Everything);
        self.publisher.settle();
    }

    /// A read of changes. Deleted rows are no ends: their absence waits for the next read.
    pub(super) fn apply_changes(&mut self, changes: &[Change], quarantined: Vec<Quarantined>) {
        self.missing_rows.count_read(ReadScope::Changes);
        let bad: HashSet<&RowKey> = quarantined.iter().map(|row| &row.key).collect();
        // A row that is named as gone and does not decode either is there, and says that it is revoked.
        let is_end =
            |change: &&Change| !change.is_gone() || row_key(change).is_some_and(|key| bad.contains(&key));
        let ends: Vec<Change> = changes.iter().filter(is_end).cloned().collect();
        self.publisher.end(&ends);
        if changes.len() > QUICK_CHANGES_MAX {
            self.publisher.settle();
        }
        self.candidate_builder.apply(changes, &bad);
        self.quarantine.update(changes, quarantined);
        self.judge(ReadScope::Changes);
        self.publisher.settle();
    }

    /// Applies a read of changes that found none. It confirms the rows that the read before missed.
    pub(super) fn apply_nothing(&mut self) {
        self.missing_rows.count_read(ReadScope::Changes);
        let is_asking = self.prober.is_asking() || self.peer_polls.is_asking();
        let is_awaited = self.missing_rows.waiting() > 0 || is_asking;
        if is_awaited || self.holding.is_without_candidate() {
            self.judge(ReadScope::Changes);
            self.publisher.settle();
        }
    }

    /// The store answered, but not with what could be a candidate.
    pub(super) fn hold_without_candidate(&mut self, hold: Hold) {
        if self.guard.is_enabled() {
            self.holding.hold_without_candidate(hold, self.generation());
        }
    }

    /// Returns whether a full read should come before its time, to heal a hold or to confirm an absence.
    pub(super) fn wants_everything_read(&self) -> bool {
        self.holding.is_holding() || self.missing_rows.want_everything_read()
    }

    /// Frees what no engine looks at any more, and fetches what they have seen. To be called before each read.
    pub(super) fn drain_decision_logs(&mut self) {
        self.publisher.tidy();
        self.recent.fetch(self.publisher.authority());
        self.check_for_regressions();
    }

    pub(super) fn report(&self, status: &mut ControlStatus) {
        status.generation = self.generation();
        status.rows = self.last_good.as_deref().map(Snapshot::row_counts).unwrap_or_default();
        status.state_trouble = self.publisher.state_trouble();
        status.quarantined = self.quarantine.len();
        status.hold = self.holding.current().cloned();
        status.holds = self.holding.counts();
        status.held = self.holds();
        status.hold_counts = Default::default();
        for (rule, holds) in Rule::ALL.into_iter().zip(status.holds) {
            let counted = api::Rule::ALL.iter().position(|shown| *shown == shown_rule(rule));
            if let Some(counted) = counted {
                status.hold_counts[counted] += holds;
            }
        }
        status.absences_waiting = self.missing_rows.waiting();
        status.absences_honoured = self.missing_rows.honoured();
        status.reads_of_everything = self.reads_of_everything;
        status.on_probation = self.history.oldest().is_some();
        status.regressions = self.probation.total();
        status.rollbacks = self.rollbacks;
    }

    fn holds(&self) -> Vec<api::HoldStatus> {
        self.holding.current().map(HoldStatus::of_everything).into_iter().collect()
    }

    /// Returns the explicit ends in `rows`, without a relation that seems to end as a whole.
    fn believed_ends(&mut self, rows: &Rows) -> Vec<Change> {
        let since = match self.reads_of_everything {
            _ if self.queries_are_unproven => Since::OtherQueries,
            0 => Since::Start,
            _ => Since::Read,
        };
        let revocations = self.publisher.revocations();
        let doubt = self.last_good.as_deref().filter(|_| self.guard.is_enabled()).and_then(|last_good| {
            let allowed = self.guard.max_loss();
            revokes_everything(rows, last_good, revocations, since, allowed, UnixMillis::now())
        });
        let doubted = doubt.as_ref().map(|(relation, _)| *relation);
        self.doubt = doubt.map(|(_, hold)| hold);
        ends(rows).filter(|change| doubted.is_none() || relation_of(change) != doubted).collect()
    }

    fn judge(&mut self, read: ReadScope) {
        let now = UnixMillis::now();
        let difference = match &self.last_good {
            Some(last_good) => self.candidate_builder.difference(last_good),
            None => Difference::default(),
        };
        match self.verdict(&difference, read, now) {
            Verdict::Publish => self.publish(difference, read, now),
            Verdict::Wait => self.mask(&difference),
            Verdict::Hold(hold) => {
                self.mask(&difference);
                self.holding.hold(hold, self.generation());
            }
        }
    }

    fn verdict(&mut self, difference: &Difference, read: ReadScope, now: UnixMillis) -> Verdict {
        if !self.guard.is_enabled() {
            return Verdict::Publish;
        }
        if let Some(hold) = &self.doubt {
            return Verdict::Hold(hold.clone());
        }
        if let Some(hold) = self.rejected(now) {
            return Verdict::Hold(hold);
        }
        let last_good = self.last_good.as_deref();
        let unlocated = last_good.and_then(|last_good| self.guard.unlocated(difference, last_good));
        if unlocated.is_none() {
            self.prober.forget();
        }
        let unlocated = unlocated
            .as_ref()
            .map(|unlocated| (unlocated, self.prober.poll(&unlocated.devices, &unlocated.targets, |_| true)));
        let store = self.candidate_builder.snapshot();
        let displaced = last_good.map(|last_good| self.guard.displaced(difference, last_good, store));
        let directory = self.publisher.authority().directory().get();
        let displaced = self.peer_polls.poll(&displaced.unwrap_or_default(), &directory);
        let candidate = Candidate {
            store,
            difference,
            live: self.live,
            revocations: self.publisher.revocations(),
            duplicates: self.candidate_builder.duplicates(),
            bad_rows: self.quarantine.len(),
            bad_examples: self.quarantine.examples(),
            read,
            unlocated,
            displaced,
            now,
        };
        let (recent, node) = (self.recent.queries(), self.node.as_deref());
        let replay = last_good.map(|in_force| Replay { recent, in_force, node });
        self.guard.judge(&candidate, replay)
    }

    /// The last good snapshot stays, but is not to lead to addresses that are other devices' now.
    fn mask(&mut self, difference: &Difference) {
        let Some(last_good) = &self.last_good else { return };
        let reused_addresses =
            ReusedAddresses::on(last_good.devices(), difference, self.candidate_builder.snapshot());
        if reused_addresses != self.reused_addresses {
            let masked = last_good.apply(last_good.generation(), &reused_addresses.changes(last_good));
            self.reused_addresses = reused_addresses;
            self.publisher.publish(Arc::new(masked));
        }
    }

    /// Puts what the store says in force, but for absences that no second read has confirmed.
    fn publish(&mut self, difference: Difference, read: ReadScope, now: UnixMillis) {
        let revocations = self.publisher.revocations();
        let settled = if self.guard.is_enabled() {
            self.missing_rows.settle(&difference, revocations, read, now)
        } else {
            self.missing_rows.settle_all(&difference, revocations, now)
        };
        self.put_in_force(difference, settled);
        self.rejection = None;
        self.holding.heal(By::Guard, self.generation());
    }

    fn put_in_force(&mut self, difference: Difference, settled: Settled) {
        self.queries_are_unproven = false;
        self.publisher.end(&settled.ended);
        self.history.end(&settled.ended);
        let difference = difference.without(&settled.kept);
        let generation = self.publisher.next_generation();
        let reused_addresses = std::mem::take(&mut self.reused_addresses);
        let next = match &self.last_good {
            None => {
                let first = self.candidate_builder.snapshot().apply(generation, &[]);
                self.live = count_live(&first);
                first
            }
            Some(last_good) if difference.is_empty() => {
                if !reused_addresses.is_empty() {
                    self.publisher.publish(Arc::clone(last_good));
                }
                return;
            }
            Some(last_good) => {
                self.live = difference.count_live(self.live);
                let mut changes = difference.changes();
                let stale = self.stale_devices(&settled.kept, last_good);
                let reused_addresses =
                    ReusedAddresses::on(stale.into_iter(), &difference, self.candidate_builder.snapshot());
                changes.extend(reused_addresses.changes(last_good));
                last_good.apply(generation, &changes)
            }
        };
        let next = Arc::new(next);
        if let Some(before) = self.last_good.replace(Arc::clone(&next)) {
            self.history.push(before, difference.keys().collect());
            self.publisher.compare_with(self.history.oldest().cloned());
        }
        self.candidate_builder.share(&next, &settled.kept);
        self.publisher.publish(next);
    }

    /// The generation of the last good snapshot.
    fn generation(&self) -> Option<Generation> {
        self.last_good.as_deref().map(Snapshot::generation)
    }

    /// Devices that are published as they were, with no word of the store that they still are.
    fn stale_devices(&self, kept: &HashSet<RowKey>, last_good: &Snapshot) -> Vec<Device> {
        let device = |key: &RowKey| match key {
            RowKey::Device(id) => last_good.device(*id),
            _ => None,
        };
        kept.iter().chain(self.quarantine.keys()).filter_map(device).collect()
    }
}

fn ends(rows: &Rows) -> impl Iterator<Item = Change> {
    let credentials = rows.credentials.iter().filter(|row| row.revoked).copied().map(Change::Credential);
    let grants = rows.grants.iter().filter(|row| row.revoked).copied().map(Change::Grant);
    rows.ended.iter().cloned().chain(credentials).chain(grants)
}

fn relation_of(change: &Change) -> Option<Relation> {
    row_key(change).map(|key| key.relation())
}

fn count_live(snapshot: &Snapshot) -> RowCounts {
    RowCounts {
        credentials: snapshot.credentials().filter(|row| !row.revoked).count(),
        grants: snapshot.grants().filter(|row| !row.revoked).count(),
        devices: snapshot.row_counts().devices,
    }
}

/// Changes that are applied and judged in some milliseconds, so that what they end can wait for the rest.
const QUICK_CHANGES_MAX: usize = 1_000;
