//! The guard: what the store answers, what is in force, and the way from the one to the other, row by row.
//!
//! It does no input or output and reads no clock, so that a model can drive it through any history. `answers` and
//! `words` put in what was read, `decide` sorts and counts what differs, `commands` is what an operator may do, and
//! `memory` is what a restart keeps.

mod aged_gains;
mod answers;
mod budget;
mod canaries;
mod commands;
mod comparison;
mod decide;
mod first_answers;
mod ledger;
mod masses;
mod memory;
#[cfg(test)]
mod model;
mod pending;
mod places;
mod preview;
mod queries;
mod row;
mod status;
mod tombstones;
mod undo;
mod words;

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::Hash;
use std::sync::Arc;

use crate::authz::{Change, End, Generation, Revocations, Snapshot, UnixMillis};
use crate::config::{Config, GuardConfig};
use crate::control::api::{ChangeKind, Expectation, Group, Publication, Rule, WordKind};
use crate::store::{Position, Relation, RowKey, Word};
use aged_gains::AgedGains;
pub(super) use answers::Sorting;
use answers::{Touch, TouchedRows};
use canaries::Canaries;
pub(super) use commands::HeldRow;
pub(super) use comparison::{ComparedAnswer, ComparisonBase, WholeAnswer};
use first_answers::FirstAnswers;
use ledger::{Ledger, LedgerStep, SettledRow};
pub(super) use memory::GuardMemory;
use pending::{PendingRow, RelationState};
use places::Places;
pub use preview::GuardPreview;
pub(super) use queries::QueriesVerdict;
use row::change_to;
pub(super) use row::{AnyRow, row_of};
use tombstones::Tombstones;

/// See the module.
pub(super) struct Guard {
    config: GuardConfig,
    canaries: Canaries,
    /// What decides; `None` before the first publication.
    in_force: Option<Arc<Snapshot>>,
    /// Rows of the first answers, before anything is in force.
    first: FirstRows,
    first_answers: FirstAnswers,
    relations: [RelationState; 3],
    touched: TouchedRows,
    places: Places,
    /// Relations that an outbox follows row by row.
    followed: [bool; 3],
    ledger: Ledger,
    /// What refusals are compared with, as of the last publication.
    before_losses: Option<Arc<Snapshot>>,
    /// Rights that a query alone has ended, longer ago than the window, in a relation that an outbox follows: an answer
    /// can give them back, as a right that is new.
    inferred_ends: HashSet<RowKey>,
    /// Rights that ended and have no row in force any more.
    revocations: Arc<Revocations>,
    tombstones: Tombstones,
    /// Live rows by relation in force, and devices that have a location.
    live: LiveRows,
    /// The newest explicit word on a row, for answers that were read before it.
    recent_words: HashMap<RowKey, Position>,
    /// Answers from before this are too old: words were lost.
    words_lost_before: Option<Position>,
    /// Explicit ends that are too many to be believed at once.
    waiting_words: HashMap<RowKey, WaitingWord>,
    /// Explicit ends of late, by relation.
    recent_ends: VecDeque<RecentEnds>,
    /// Rows that were undone, each with the answer that is not to come back by itself.
    rejected: HashMap<RowKey, RejectedRow>,
    aged_gains: AgedGains,
    expectations: Vec<Expectation>,
    history: VecDeque<Publication>,
    /// Groups whose masses of lost locations the network has confirmed or denied.
    network: NetworkVerdicts,
    /// What an operator accepted although it still fails: canaries, bounds.
    waived: HashSet<(Rule, Relation)>,
    /// Digests of kinds that an operator has accepted and that are to be read again.
    accepted: HashMap<(Relation, ChangeKind), u128>,
    /// Changes that have been made to what is in force and are not published yet.
    unpublished: Unpublished,
    /// What a restart has to know has changed since it was asked for.
    is_memory_changed: bool,
    counts: GuardCounts,
}

/// Rows that are gathered before the first publication.
#[derive(Default)]
struct FirstRows {
    relations: [Option<Arc<Snapshot>>; 3],
}

/// Number of rows that rights and locations rest on.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(super) struct LiveRows {
    pub credentials: usize,
    pub grants: usize,
    pub devices: usize,
    pub located: usize,
}

/// Changes of what is in force, in their order, by their origin.
#[derive(Default, Debug)]
pub(super) struct Unpublished {
    pub inferred: Vec<Change>,
    pub words: Vec<Change>,
    /// Ends that count no more.
    pub lifted: Vec<End>,
    /// Ends that engines look at first.
    pub ended: Vec<End>,
    pub generation: Option<Generation>,
    /// The memory has changed beside them.
    pub is_memory_changed: bool,
}

struct WaitingWord {
    word: Word,
    kind: ChangeKind,
    since: UnixMillis,
}

#[derive(Clone, Copy)]
struct RecentEnds {
    relation: Relation,
    at: UnixMillis,
    rows: usize,
}

struct RejectedRow {
    answer: Option<AnyRow>,
    rule: Rule,
    since: UnixMillis,
    /// Rows that were undone with it.
    undone: usize,
}

/// The network's answers about masses of devices that lost their location or moved.
#[derive(Clone, Default, Debug)]
struct NetworkVerdicts {
    unlocated: NetworkVerdict,
    moved: NetworkVerdict,
}

#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub(super) enum NetworkVerdict {
    /// Nobody has asked, or no answer has come.
    #[default]
    Unknown,
    /// The devices do not answer at their old addresses.
    Silent,
    /// They do, or a peer says that it has them.
    Answers { figures: Box<str> },
}

/// Numbers since the start.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct GuardCounts {
    pub absences_honoured: u64,
    pub rollbacks: u64,
    pub holds: [u64; Rule::ALL.len()],
}

/// What a call changed.
#[derive(Default, Debug)]
pub(super) struct Judged {
    /// True where another snapshot or other revocations are in force now.
    pub published: bool,
    /// True where rights ended explicitly.
    pub ended: bool,
}

impl Guard {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            canaries: Canaries::new(&config.authz.guard, config.vpn.node.as_deref()),
            config: config.authz.guard.clone(),
            in_force: None,
            first: FirstRows::default(),
            first_answers: FirstAnswers::default(),
            relations: Default::default(),
            touched: TouchedRows::default(),
            places: Places::new(config),
            followed: [false; 3],
            ledger: Ledger::default(),
            before_losses: None,
            inferred_ends: HashSet::new(),
            revocations: Arc::default(),
            tombstones: Tombstones::default(),
            live: LiveRows::default(),
            recent_words: HashMap::new(),
            words_lost_before: None,
            waiting_words: HashMap::new(),
            recent_ends: VecDeque::new(),
            rejected: HashMap::new(),
            aged_gains: AgedGains::default(),
            expectations: Vec::new(),
            history: VecDeque::new(),
            network: NetworkVerdicts::default(),
            waived: HashSet::new(),
            accepted: HashMap::new(),
            unpublished: Unpublished::default(),
            is_memory_changed: false,
            counts: GuardCounts::default(),
        }
    }

    /// Judges by `config` from now on.
    pub(super) fn reconfigure(&mut self, config: &Config) {
        self.canaries = Canaries::new(&config.authz.guard, config.vpn.node.as_deref());
        self.config = config.authz.guard.clone();
    }

    pub(super) fn is_enabled(&self) -> bool {
        self.config.enabled
    }

    /// Answers so far that were whole.
    pub(super) fn whole_reads(&self) -> u64 {
        self.relations.iter().map(|state| state.reads).min().unwrap_or_default()
    }

    /// Rows of `relation` that do not decode.
    pub(super) fn bad_keys(&self, relation: Relation) -> &HashSet<RowKey> {
        &self.relations[index(relation)].bad
    }

    /// Forgets where the answers stood: another store is followed from here on.
    pub(super) fn forget_positions(&mut self) {
        self.recent_words.clear();
        self.words_lost_before = None;
    }

    /// Number of rows that a restart has to know of.
    pub(super) fn memory_rows(&self) -> usize {
        let pending: usize = self.relations.iter().map(|state| state.pending.charged()).sum();
        pending
            + self.inferred_ends.len()
            + self.ledger.len()
            + self.waiting_words.len()
            + self.rejected.len()
            + self.tombstones.len()
            + self.aged_gains.len()
    }

    pub(super) fn in_force(&self) -> Option<&Arc<Snapshot>> {
        self.in_force.as_ref()
    }

    pub(super) fn revocations(&self) -> &Arc<Revocations> {
        &self.revocations
    }

    pub(super) fn generation(&self) -> Option<Generation> {
        self.in_force.as_deref().map(Snapshot::generation)
    }

    /// Returns whether a relation should be read before its time, to confirm an absence or to end a hold.
    pub(super) fn wants_read(&self, relation: Relation) -> bool {
        let state = &self.relations[index(relation)];
        state.reads == 0
            || !state.pending.is_empty()
            || !state.overflow.is_empty()
            || state.relation_hold.is_some()
            || self.awaits_first(relation)
    }

    /// Lets time pass: baselines move on, announcements lapse, ends that nothing can revive are forgotten.
    pub(super) fn pass_time(&mut self, now: UnixMillis) -> Judged {
        let since = UnixMillis(now.0.saturating_sub(self.window_ms()));
        // What a query lies about in one kind shows in others: nothing of the relation proves itself meanwhile.
        let is_held = [0, 1, 2].map(|place| self.relations[place].is_anything_held());
        let settled = self.ledger.age(since, |relation| is_held[index(relation)]);
        // Refusals are compared with the baseline from here on.
        let has_settled = !settled.is_empty();
        for SettledRow { key, kind, before } in settled {
            if matches!(kind, ChangeKind::Gained | ChangeKind::Widened) {
                self.aged_gains.remember(key, before);
                self.is_memory_changed = true;
                continue;
            }
            let is_end = kind == ChangeKind::Ended && self.followed[index(key.relation())];
            if is_end && self.inferred_ends.len() < INFERRED_ENDS_MAX {
                self.inferred_ends.insert(key);
                self.is_memory_changed = true;
            }
        }
        self.bound_aged_gains();
        self.expectations.retain(|expectation| expectation.until > now);
        self.end_old_doubts(now);
        while self.recent_ends.front().is_some_and(|ends| ends.at.0 + budget::EXPLICIT_WINDOW_MS < now.0) {
            self.recent_ends.pop_front();
        }
        let mut judged = self.admit_waiting(now);
        judged.published |= self.forget_tombstones(now).published | has_settled;
        judged
    }

    /// Remembers no more aged gains than one window lets in.
    fn bound_aged_gains(&mut self) {
        for relation in Relation::ALL {
            let of_kind = |kind| self.budget(Group { relation, kind, word: WordKind::Inferred });
            let most = of_kind(ChangeKind::Gained) + of_kind(ChangeKind::Widened);
            self.aged_gains.keep_newest(relation, most);
        }
    }

    fn window_ms(&self) -> i64 {
        i64::try_from(self.config.window.as_millis()).unwrap_or(i64::MAX)
    }

    /// Puts `changes` in force as the next generation.
    ///
    /// A change with a kind was inferred and goes into the ledger, one without is the baseline from now on.
    fn put_in_force(&mut self, changes: Vec<AppliedRow>, by: &str, now: UnixMillis) -> Judged {
        if changes.is_empty() {
            return Judged::default();
        }
        let Some(in_force) = self.in_force.clone() else { return Judged::default() };
        let generation = Generation(in_force.generation().0 + 1);
        let changes = with_displaced(&in_force, changes);
        let (mut gone, mut rest) = (Vec::new(), Vec::new());
        let (mut groups, mut replaced): (HashMap<Group, usize>, Vec<Change>) = Default::default();
        for AppliedRow { key, after, kind } in changes {
            let before = row_of(&in_force, &key);
            self.touched.add(&key, if by == BY_VPN { Touch::Table } else { Touch::Row });
            // What it is now is nobody's gain any more.
            self.aged_gains.forget(&key);
            let is_explicit = matches!(by, BY_WORDS | BY_VPN | BY_ACCEPT);
            let word = if is_explicit { WordKind::Explicit } else { WordKind::Inferred };
            self.follow_place(before.as_ref(), after.as_ref(), word);
            if is_explicit && before == after {
                self.confirm_place(&key, after.as_ref());
            }
            self.live.count(before.as_ref(), after.as_ref(), now);
            let revives =
                after.as_ref().is_some_and(|row| row.is_live(now) && self.tombstones.covers(&key, row));
            if revives {
                self.tombstones.remove(&key);
                replaced.extend(change_to(&key, None));
            }
            match kind {
                Some(AppliedKind { kind, is_charged: true, .. }) => {
                    let step = LedgerStep { generation, at: now, before };
                    self.ledger.record(key.clone(), kind, step);
                    self.is_memory_changed = true;
                }
                _ => self.is_memory_changed |= self.ledger.remove(&key).is_some(),
            }
            self.inferred_ends.remove(&key);
            if let Some(AppliedKind { kind, word, .. }) = kind {
                *groups.entry(Group { relation: key.relation(), kind, word }).or_default() += 1;
            }
            self.relations[index(key.relation())].pending.remove(&key);
            let into = if after.is_none() { &mut gone } else { &mut rest };
            into.extend(change_to(&key, after));
        }
        // What goes, goes first: a new device may have the uuid of one that goes.
        gone.append(&mut rest);
        self.revive_in_revocations(&replaced);
        self.in_force = Some(Arc::new(in_force.apply(generation, &gone)));
        let into = match by {
            BY_WORDS | BY_VPN => &mut self.unpublished.words,
            _ => &mut self.unpublished.inferred,
        };
        into.append(&mut gone);
        self.unpublished.generation = Some(generation);
        self.follow_pending_devices();
        self.note(generation, by, groups, now);
        Judged { published: true, ended: false }
    }

    /// Notes a publication for the history.
    fn note(&mut self, generation: Generation, by: &str, groups: HashMap<Group, usize>, now: UnixMillis) {
        let mut changes: Vec<(Group, usize)> = groups.into_iter().collect();
        changes.sort_unstable();
        if self.history.len() == HISTORY_MAX {
            self.history.pop_front();
        }
        let by = by.to_owned();
        self.history.push_back(Publication { generation, at: now, by, changes, can_be_undone: false });
    }

    /// Fetches the changes of what is in force since the last call.
    pub(super) fn drain_unpublished(&mut self) -> Unpublished {
        let is_memory_changed = std::mem::take(&mut self.is_memory_changed);
        Unpublished { is_memory_changed, ..std::mem::take(&mut self.unpublished) }
    }
}

/// Adds the devices that go because another one has their uuid now: a uuid is one device's.
fn with_displaced(in_force: &Snapshot, mut changes: Vec<AppliedRow>) -> Vec<AppliedRow> {
    let claims = changes.iter().filter_map(|row| {
        let holder = RowKey::Device(in_force.device_named(row.after.as_ref()?.uuid()?)?.id);
        (holder != row.key).then_some((holder, row.kind))
    });
    let mut claims: Vec<(RowKey, Option<AppliedKind>)> = claims.collect();
    if claims.is_empty() {
        return changes;
    }
    let changed: HashSet<&RowKey> = changes.iter().map(|row| &row.key).collect();
    claims.retain(|(key, _)| !changed.contains(key));
    changes.extend(claims.into_iter().map(|(key, kind)| {
        let absent = AppliedKind { kind: ChangeKind::Absent, word: WordKind::Inferred, is_charged: true };
        let kind = kind.map_or(absent, |kind| AppliedKind { kind: ChangeKind::Absent, ..kind });
        AppliedRow { key, after: None, kind: Some(kind) }
    }));
    changes
}

/// A row that is about to be put in force.
struct AppliedRow {
    key: RowKey,
    after: Option<AnyRow>,
    /// `None` for a mend, and for what changes no decision.
    kind: Option<AppliedKind>,
}

#[derive(Clone, Copy)]
struct AppliedKind {
    kind: ChangeKind,
    word: WordKind,
    /// Counts against the budget for a window.
    is_charged: bool,
}

impl LiveRows {
    fn of(snapshot: &Snapshot, now: UnixMillis) -> Self {
        Self {
            credentials: snapshot.credentials().filter(|row| AnyRow::Credential(*row).is_live(now)).count(),
            grants: snapshot.grants().filter(|row| AnyRow::Grant(*row).is_live(now)).count(),
            devices: snapshot.row_counts().devices,
            located: snapshot.devices().filter(row::is_located).count(),
        }
    }

    /// Takes over what was `counted` of `relation` when `kept` was what is here, and keeps the changes since.
    fn correct(&mut self, relation: Relation, counted: Self, kept: Self) {
        let with_since = |now: usize, counted: usize, kept: usize| (counted + now).saturating_sub(kept);
        match relation {
            Relation::Credentials => {
                self.credentials = with_since(self.credentials, counted.credentials, kept.credentials);
            }
            Relation::Grants => self.grants = with_since(self.grants, counted.grants, kept.grants),
            Relation::Devices => {
                self.devices = with_since(self.devices, counted.devices, kept.devices);
                self.located = with_since(self.located, counted.located, kept.located);
            }
        }
    }

    fn count(&mut self, before: Option<&AnyRow>, after: Option<&AnyRow>, now: UnixMillis) {
        for (row, is_after) in [(before, false), (after, true)] {
            let Some(row) = row.filter(|row| row.is_live(now)) else { continue };
            let add = |count: &mut usize| {
                *count = if is_after { *count + 1 } else { count.saturating_sub(1) };
            };
            match row {
                AnyRow::Credential(_) => add(&mut self.credentials),
                AnyRow::Grant(_) => add(&mut self.grants),
                AnyRow::Device(device) => {
                    add(&mut self.devices);
                    if row::is_located(device) {
                        add(&mut self.located);
                    }
                }
            }
        }
    }

    fn rows(self, relation: Relation, kind: ChangeKind) -> usize {
        match (relation, kind) {
            (Relation::Credentials, _) => self.credentials,
            (Relation::Grants, _) => self.grants,
            (Relation::Devices, ChangeKind::Unlocated | ChangeKind::Moved) => self.located,
            (Relation::Devices, _) => self.devices,
        }
    }
}

/// Kinds of changes that a row of a relation can undergo, and that have a budget.
const fn relevant_kinds(relation: Relation) -> &'static [ChangeKind] {
    use ChangeKind::{Absent, Ended, Gained, Moved, Narrowed, Reassigned, Undecodable, Unlocated, Widened};
    match relation {
        Relation::Credentials | Relation::Grants => {
            &[Ended, Absent, Narrowed, Reassigned, Gained, Widened, Undecodable]
        }
        Relation::Devices => &[Absent, Reassigned, Gained, Moved, Unlocated, Undecodable],
    }
}

/// Gives back the memory of a map that has held many more entries than it holds now.
fn shrink<K: Eq + Hash, V>(map: &mut HashMap<K, V>) {
    if map.capacity() > SHRUNK_FROM && map.len() < map.capacity() / 4 {
        map.shrink_to(map.len() * 2);
    }
}

/// Entries of a map up to which it keeps its memory.
const SHRUNK_FROM: usize = 1_024;

/// Index of a relation in arrays of three.
const fn index(relation: Relation) -> usize {
    match relation {
        Relation::Credentials => 0,
        Relation::Grants => 1,
        Relation::Devices => 2,
    }
}

/// Origins of a publication, as `authz history` names them.
const BY_READ: &str = "read";
const BY_WORDS: &str = "words";
const BY_VPN: &str = "vpn";
const BY_ACCEPT: &str = "accept";
const BY_ROLLBACK: &str = "rollback";
const BY_START: &str = "start";

/// Rights of which a query alone said that they have ended and that are remembered as such. The budgets let a few be new
/// in each window; one beyond is taken for recorded by the store, and comes back by its word alone.
const INFERRED_ENDS_MAX: usize = 10_000;

/// Publications that `authz history` lists.
const HISTORY_MAX: usize = 200;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Budgets;

    #[test]
    fn a_reload_replaces_the_whole_section() {
        let mut config = Config::default();
        let mut guard = Guard::new(&config);
        config.authz.guard.enabled = false;
        config.authz.guard.window = std::time::Duration::from_secs(7);
        config.authz.guard.budgets =
            toml::from_str::<Budgets>("explicit = { rows = 7, share = 0.5 }").unwrap();
        config.authz.guard.bounds.grants.min = Some(7);
        assert_ne!(guard.config, config.authz.guard);
        guard.reconfigure(&config);
        assert_eq!(guard.config, config.authz.guard);
    }
}
