//! Random histories of a store, a query that lies, operators and restarts, and what must hold after each step.
//!
//! `SLUICEGATE_HISTORIES=100000` runs so many; `SLUICEGATE_HISTORY=SEED` runs one again.

mod store;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use store::{Lens, Random, TrueStore, credential};

use super::budget::budget;
use super::row::{classify, is_located};
use super::{AnyRow, ComparedAnswer, Guard, WholeAnswer, row_of};
use crate::authz::{Device, DeviceId, End, GrantId, KeyHash, PrincipalId, Revocations, Snapshot, UnixMillis};
use crate::config::{Budgets, Config, Preference};
use crate::control::api::{ChangeKind, ExpectRequest, Group, WordKind};
use crate::store::{Position, Relation, RowKey, Word};

/// What the store says of single rows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Speech {
    /// An outbox names each row that changes.
    Rows,
    /// The operator has queries of their own; only ends are known by the row.
    Ends,
    /// Nothing.
    Silent,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Restarts {
    Never,
    /// The process stops, and all that it had is on disk.
    Clean,
    /// What answers brought of late is lost; words are read again.
    Crash,
}

struct Kept {
    snapshot: Arc<Snapshot>,
    revocations: Revocations,
    memory: Vec<u8>,
    words_since: Vec<(Vec<Word>, Position)>,
}

struct History {
    random: Random,
    /// Decides about restarts, so that two histories differ in nothing else.
    restarts: (Restarts, Random),
    speech: Speech,
    store: TrueStore,
    keys: Arc<[RowKey]>,
    lens: Option<Lens>,
    guard: Guard,
    config: Config,
    now: UnixMillis,
    lens_since: UnixMillis,
    /// Somebody has accepted or announced what the lens shows.
    is_accepted: bool,
    ended: HashSet<RowKey>,
    removed_principals: HashSet<PrincipalId>,
    kept: Option<Kept>,
    /// An answer that is on its way, compared with what was in force when it came.
    on_its_way: Option<ComparedAnswer>,
    /// What was in force at each checkpoint.
    trace: Vec<Vec<Option<AnyRow>>>,
    log: Vec<String>,
}

impl History {
    fn new(seed: u64, restarts: Restarts) -> Self {
        let mut random = Random(seed);
        let mut config = Config::default();
        if random.is_one_in(6) {
            config.authz.guard.prefer = Preference::Security;
        }
        let size = [3, 5, 12, 40][random.below(4)];
        let speech = [Speech::Rows, Speech::Rows, Speech::Ends, Speech::Silent][random.below(4)];
        let store = TrueStore::new(size, &mut random);
        let mut history = Self {
            random,
            restarts: (restarts, Random(!seed)),
            speech,
            store,
            keys: keys(size),
            lens: None,
            guard: Guard::new(&config),
            config,
            now: START,
            lens_since: START,
            is_accepted: false,
            ended: HashSet::new(),
            removed_principals: HashSet::new(),
            kept: None,
            on_its_way: None,
            trace: Vec::new(),
            log: Vec::new(),
        };
        history.note(|history| format!("{size} rows, {speech:?}, {:?}", history.config.authz.guard.prefer));
        history.follow();
        history.read_all();
        history
    }

    fn run(mut self) -> Self {
        for _ in 0..STEPS {
            self.step();
            self.check();
        }
        self.mend();
        self.check();
        self.forget();
        self
    }

    fn step(&mut self) {
        match self.random.below(15) {
            14 => self.remove_principal(),
            13 => {
                self.store.fail_over();
                self.note(|_| "a standby takes over".to_owned());
            }
            0..=2 => {
                let relation = Relation::ALL[self.random.below(3)];
                self.read(relation);
            }
            3..=4 => self.change(),
            5 => self.pass_time(),
            6 => self.mend(),
            7..=8 => {
                if self.lens.is_none() {
                    self.lens = Some(Lens::any(&mut self.random));
                    self.lens_since = self.now;
                    self.note(|history| format!("lens {:?}", history.lens));
                }
                self.read_all();
            }
            9 => self.operate(),
            10 => self.answer_late(),
            _ => self.checkpoint(),
        }
        self.maybe_restart();
    }

    fn read(&mut self, relation: Relation) {
        self.note(|_| format!("read {relation:?}"));
        let (rows, bad) = self.store.answer(relation, self.lens.as_ref(), self.now);
        if let Some(lens) = self.lens.as_mut().filter(|lens| lens.relation == relation) {
            lens.grow();
        }
        let position = self.store.position();
        self.guard.answer(relation, rows, bad, position, self.now);
    }

    fn read_all(&mut self) {
        Relation::ALL.into_iter().for_each(|relation| self.read(relation));
    }

    /// A true change of one row.
    fn change(&mut self) {
        let number = self.random.below(self.store.rows.len().max(1));
        let Some(before) = self.store.rows.get(number).cloned() else { return };
        let key = before.key();
        let id = NEW_ID + self.random.below(NEW_IDS as usize) as i64;
        let choice = self.random.below(6);
        let after = match (choice, before.clone()) {
            (0, _) => None,
            (1 | 2, AnyRow::Device(row)) => Some(AnyRow::Device(Device { online: !row.online, ..row })),
            (_, AnyRow::Device(row)) => {
                // An address that no device has had.
                let [.., high, low] = self.store.position().log.to_be_bytes();
                let address = Some([10, 1, high, low].into());
                Some(AnyRow::Device(Device { address, ..row }))
            }
            (1, row) => row.revoked(),
            (2, AnyRow::Grant(mut row)) => {
                row.expires_at = Some(UnixMillis(self.now.0 - 1));
                Some(AnyRow::Grant(row))
            }
            (3, AnyRow::Grant(mut row)) => {
                // Another right under the number.
                (row.principal, row.revoked) = (PrincipalId(row.principal.0 + 1), false);
                Some(AnyRow::Grant(row))
            }
            (4, AnyRow::Grant(mut row)) => {
                (row.revoked, row.expires_at) = (false, None);
                Some(AnyRow::Grant(row))
            }
            (2, AnyRow::Credential(mut row)) => {
                row.expires_at = Some(UnixMillis(self.now.0 - 1));
                Some(AnyRow::Credential(row))
            }
            (3, AnyRow::Credential(mut row)) => {
                row.revoked = false;
                Some(AnyRow::Credential(row))
            }
            (_, row) => {
                let new = credential(id, PrincipalId(1));
                let is_new = self.store.row(&new.key()).is_none() && matches!(row, AnyRow::Credential(_));
                Some(if is_new { new } else { row })
            }
        };
        let key = after.as_ref().map_or(key, AnyRow::key);
        let before = self.store.row(&key).cloned();
        if after == before {
            return;
        }
        let is_device = matches!(key, RowKey::Device(_));
        let (was, is) =
            [&before, &after].map(|row| row.as_ref().is_some_and(|row| row.is_live(self.now))).into();
        let is_end = was && !is && !is_device;
        let another =
            before.as_ref().zip(after.as_ref()).is_some_and(|(one, other)| one.is_another_right(other));
        match self.speech {
            Speech::Rows => {
                self.note(|_| format!("word {key:?}: {before:?} -> {after:?}"));
                let change = self.store.put(&key, after.clone());
                let back = after.as_ref().and_then(principal_of);
                let back = back.filter(|principal| self.removed_principals.remove(principal));
                self.say(back.map(Word::PrincipalLive).into_iter().chain(change.map(Word::Row)).collect());
                assert_eq!(
                    self.decides(&key),
                    visible(after.as_ref(), self.now),
                    "a word counts at once: {self}"
                );
            }
            Speech::Ends if is_end => {
                self.note(|_| format!("end {key:?}: {before:?} -> {after:?}"));
                self.store.put(&key, after.clone());
                self.say(vec![Word::Ended(key.clone())]);
                assert_eq!(self.decides(&key), None, "an end counts at once: {self}");
            }
            _ if self.lens.is_none() && self.on_its_way.is_none() => {
                // It counts as any other inferred change.
                self.now.0 += WINDOW_MS + 1_000;
                self.settle();
                self.now.0 += WINDOW_MS + 1_000;
                self.guard.pass_time(self.now);
                let is_live_again = self.speech == Speech::Ends && !is_device && is;
                let after = after.filter(|row| row.is_live(self.now) || !is_live_again);
                self.note(|_| format!("silently {key:?}: {before:?} -> {after:?}, {another}"));
                self.store.put(&key, after);
                if is_live_again {
                    self.say(vec![Word::Live(key.clone())]);
                }
                self.settle();
                // A crash that loses several true changes at once shows a mass.
                self.keep();
            }
            _ => return,
        }
        if is_end && self.speech != Speech::Silent {
            self.ended.insert(key);
        } else if is {
            self.ended.remove(&key);
        }
    }

    /// Removes a principal with everything that it holds, in one transaction.
    fn remove_principal(&mut self) {
        if self.speech != Speech::Rows || self.store.rows.is_empty() {
            return;
        }
        let number = self.random.below(self.store.rows.len());
        let Some(principal) = principal_of(&self.store.rows[number]) else { return };
        let held = self.store.rows.iter().filter(|row| principal_of(row) == Some(principal));
        let keys: Vec<RowKey> = held.map(AnyRow::key).collect();
        self.note(|_| format!("{principal:?} is removed with {keys:?}"));
        let mut words = vec![Word::PrincipalEnded(principal)];
        for key in &keys {
            words.extend(self.store.put(key, None).map(Word::Row));
        }
        self.say(words);
        self.removed_principals.insert(principal);
        for key in keys {
            assert_eq!(self.decides(&key), None, "{key:?} ends with its principal: {self}");
            self.ended.insert(key);
        }
    }

    fn say(&mut self, words: Vec<Word>) {
        let position = self.store.position();
        if let Some(kept) = &mut self.kept {
            kept.words_since.push((words.clone(), position));
        }
        self.guard.words(words, Vec::new(), position, self.now);
    }

    fn pass_time(&mut self) {
        let is_far = self.random.is_one_in(6);
        let most = match &self.lens {
            // What was within the budget and nobody has minded for a window has proved itself.
            Some(lens) if !self.guard.relations[super::index(lens.relation)].is_anything_held() => {
                self.lens_since.0 + WINDOW_MS - 1
            }
            _ => i64::MAX,
        };
        let time = if is_far { WINDOW_MS + 1 } else { self.random.below(90_000) as i64 };
        self.now.0 = most.min(self.now.0 + time).max(self.now.0);
        self.guard.pass_time(self.now);
        self.note(|history| format!("at {}", history.now.0 - START.0));
    }

    /// The query is mended: no over-grant outlives the next answer, nothing that is wrong the second one.
    fn mend(&mut self) {
        if self.on_its_way.take().is_some() {
            self.guard.forget_comparison();
        }
        let relation = self.lens.take().map(|lens| lens.relation);
        self.note(|_| format!("mend {relation:?}"));
        self.read_all();
        if !self.is_accepted {
            for key in self.keys.clone().iter() {
                let (decides, truth) = (self.decides(key), self.truth(key));
                let kind = classify(decides.as_ref(), truth.as_ref(), self.now);
                let is_over = matches!(
                    kind,
                    Some(
                        ChangeKind::Ended
                            | ChangeKind::Absent
                            | ChangeKind::Narrowed
                            | ChangeKind::Reassigned
                    )
                );
                // A crash may have lost the first of two answers that lack a row.
                let is_lost = kind == Some(ChangeKind::Absent) && self.restarts.0 == Restarts::Crash;
                let is_over = is_over && !(is_lost && self.speech != Speech::Rows);
                assert!(
                    !is_over,
                    "an over-grant outlives its mend: {key:?} {decides:?} for {truth:?}: {self}"
                );
            }
        }
        if self.is_accepted {
            self.read_all();
            if let Some(digest) = self.guard.held_digest() {
                self.guard.accept(&digest, None, self.now).unwrap();
            }
            self.is_accepted = false;
            self.read_all();
            self.read_all();
            // What healed counts as a change; a rollback would undo it.
            self.now.0 += WINDOW_MS + 1_000;
            self.guard.pass_time(self.now);
        }
        self.read_all();
        self.assert_true("after the mend");
        // A crash that brought back what was accepted before would need another mend.
        self.keep();
    }

    /// Reads often enough for anything that is within the budgets.
    fn settle(&mut self) {
        self.guard.pass_time(self.now);
        self.read_all();
        self.read_all();
        self.assert_true("after two answers");
    }

    fn assert_true(&self, when: &str) {
        for key in self.keys.clone().iter() {
            let (decides, truth) = (self.decides(key), self.truth(key));
            assert_eq!(decides, truth, "{key:?} {when}: {:?}; {self}", self.guard.status().holds);
        }
    }

    /// What operators and clients do while a query lies.
    fn operate(&mut self) {
        if self.lens.is_none() || self.speech != Speech::Rows {
            return;
        }
        match self.random.below(5) {
            0 => {
                if let Some(digest) = self.guard.held_digest() {
                    assert!(self.guard.accept("0", None, self.now).is_err());
                    self.guard.accept(&digest, None, self.now).unwrap();
                    self.is_accepted = true;
                    self.note(|_| "accept".to_owned());
                }
            }
            1 => {
                let request = ExpectRequest {
                    relation: Relation::ALL[self.random.below(3)].name().to_owned(),
                    kind: ChangeKind::ALL[self.random.below(8)],
                    rows: self.random.below(5) + 1,
                    lasts: std::time::Duration::from_secs(300),
                };
                if self.guard.expect(&request, self.now).is_ok() {
                    self.is_accepted = true;
                }
                self.note(|_| format!("{request:?}"));
            }
            2..=3 => {
                let undone = self.guard.roll_back(None, self.now);
                self.note(|_| format!("{undone:?}"));
            }
            _ => {
                let of_locations = self.random.is_one_in(2);
                let undone = self.guard.undo_losses(of_locations, self.now);
                self.note(|_| format!("{undone:?} of losses"));
            }
        }
    }

    /// An answer that was read before the words that come meanwhile.
    fn answer_late(&mut self) {
        let relation = Relation::ALL[self.random.below(3)];
        // A restart loses it, and then the same history would have another answer.
        if self.speech != Speech::Rows || self.restarts.0 != Restarts::Crash {
            return;
        }
        self.note(|history| format!("on its way: {}", history.on_its_way.is_some()));
        if let Some(compared) = self.on_its_way.take() {
            self.guard.judge_at_once(compared, self.now);
        } else {
            let (rows, quarantined) = self.store.answer(relation, self.lens.as_ref(), self.now);
            let answer = WholeAnswer { relation, rows, quarantined, position: self.store.position() };
            self.on_its_way = Some(answer.compare(self.guard.begin_comparison(self.now)));
        }
    }

    fn checkpoint(&mut self) {
        if let Some(lens) = &mut self.lens {
            lens.drift = 0;
        }
        self.read_all();
        self.read_all();
        let decisions = self.keys.iter().map(|key| self.decides(key)).collect();
        self.trace.push(decisions);
        self.note(|history| format!("checkpoint {}", history.trace.len() - 1));
    }

    fn maybe_restart(&mut self) {
        let (restarts, random) = &mut self.restarts;
        let (restarts, number) = (*restarts, random.below(4));
        match restarts {
            Restarts::Clean if number == 0 => {
                self.keep();
                self.restart();
            }
            Restarts::Crash if number == 0 => self.keep(),
            Restarts::Crash if number == 1 => self.restart(),
            _ => {}
        }
    }

    fn keep(&mut self) {
        if self.restarts.0 == Restarts::Never {
            return;
        }
        let Some(snapshot) = self.guard.in_force().cloned() else { return };
        self.kept = Some(Kept {
            snapshot,
            revocations: Revocations::clone(self.guard.revocations()),
            memory: postcard::to_stdvec(&self.guard.memory()).unwrap(),
            words_since: Vec::new(),
        });
    }

    fn restart(&mut self) {
        let Some(kept) = self.kept.take() else { return };
        self.note(|_| "restart".to_owned());
        self.on_its_way = None;
        self.guard = Guard::new(&self.config);
        let memory = postcard::from_bytes(&kept.memory).unwrap();
        self.guard.restore(kept.snapshot, kept.revocations, memory, self.now);
        self.follow();
        for (words, position) in kept.words_since {
            self.guard.words(words, Vec::new(), position, self.now);
        }
    }

    fn follow(&mut self) {
        let is_followed = self.speech == Speech::Rows;
        Relation::ALL.into_iter().for_each(|relation| self.guard.follow(relation, is_followed));
    }

    /// What must hold whatever happens.
    fn check(&mut self) {
        for key in &self.ended {
            assert_eq!(self.decides(key), None, "{key:?} has ended: {self}");
        }
        self.check_bound();
        for relation in Relation::ALL {
            for kind in ChangeKind::ALL {
                let entries = self.guard.ledger.iter();
                let entries = entries.filter(|(key, entry)| key.relation() == relation && entry.kind == kind);
                assert_eq!(entries.count(), self.guard.ledger.count(relation, kind), "{self}");
            }
            let in_force = self.guard.in_force().unwrap();
            for (key, row) in self.guard.relations[super::index(relation)].pending.iter() {
                assert_ne!(row_of(in_force, key), row.after, "{key:?} waits for what is in force: {self}");
            }
        }
        for end in self.guard.revocations().ends() {
            let is_known = match end {
                End::Credential(key) => self.guard.tombstones.contains(&RowKey::Credential(key)),
                End::Grant(id, _) => self.guard.tombstones.contains(&RowKey::Grant(id)),
                End::Principal(_) => true,
            };
            assert!(is_known, "nothing will ever forget {end:?}: {self}");
        }
    }

    /// Wrong decisions stay within the budgets of their kinds.
    fn check_bound(&self) {
        if self.is_accepted {
            return;
        }
        let windows = ((self.now.0 - self.lens_since.0) / WINDOW_MS + 1) as usize;
        let mut wrong: HashMap<(Relation, ChangeKind), usize> = HashMap::new();
        for key in self.keys.clone().iter() {
            let mut kind = classify(self.truth(key).as_ref(), self.decides(key).as_ref(), self.now);
            if kind == Some(ChangeKind::Absent) && self.is_of_another_principal(key) {
                // It decides nothing, since that principal was removed.
                kind = Some(ChangeKind::Reassigned);
            }
            if let Some(kind) = kind {
                *wrong.entry((key.relation(), kind)).or_default() += 1;
            }
        }
        for ((relation, kind), rows) in wrong {
            let is_end = matches!(kind, ChangeKind::Ended | ChangeKind::Absent | ChangeKind::Narrowed);
            if is_end && self.config.authz.guard.prefer == Preference::Security {
                continue;
            }
            let group = Group { relation, kind, word: WordKind::Inferred };
            // Each row may be there once more by the fault, until that is held.
            let rows_now = self.store.rows.iter().filter(|row| row.key().relation() == relation).count();
            let all = 2 * rows_now.max(self.store.size as usize);
            let most = budget(group, all, &Budgets::default()) * windows;
            assert!(rows <= most, "{rows} {relation:?} are wrongly {kind}, {most} may be: {self}");
        }
    }

    /// True where the row in force is not of the principal that the store has.
    fn is_of_another_principal(&self, key: &RowKey) -> bool {
        let in_force = self.guard.in_force().and_then(|in_force| row_of(in_force, key));
        in_force.is_some_and(|row| principal_of(&row) != self.store.row(key).and_then(principal_of))
    }

    /// Windows after the last change nothing is remembered of what was.
    fn forget(&mut self) {
        for _ in 0..4 {
            self.now.0 += WINDOW_MS + 1_000;
            self.read_all();
            self.guard.pass_time(self.now);
        }
        if self.speech != Speech::Ends {
            // An expiry is remembered as long as its row is there.
            let is_there = |(key, _): &(&RowKey, _)| self.store.row(key).is_some_and(|row| !row.is_revoked());
            let expired = self.guard.tombstones.rows().filter(is_there).count();
            let inferred =
                self.guard.inferred_ends.iter().filter(|key| self.store.row(key).is_some()).count();
            let aged = self.guard.aged_gains.len();
            assert_eq!(self.guard.memory_rows(), expired + inferred + aged, "{self}");
            let of_kind =
                |relation, kind| self.guard.budget(Group { relation, kind, word: WordKind::Inferred });
            let most: usize = Relation::ALL
                .map(|of| of_kind(of, ChangeKind::Gained) + of_kind(of, ChangeKind::Widened))
                .iter()
                .sum();
            assert!(aged <= most, "{aged} aged gains are remembered, {most} may be: {self}");
            assert_eq!(self.guard.revocations().len(), 0, "{self}");
        }
        assert!(self.guard.recent_words.is_empty(), "{self}");
        assert!(self.guard.status().holds.is_empty(), "{self}");
    }

    fn truth(&self, key: &RowKey) -> Option<AnyRow> {
        visible(self.store.row(key), self.now)
    }

    /// The row as far as decisions see it.
    fn decides(&self, key: &RowKey) -> Option<AnyRow> {
        let row = row_of(self.guard.in_force()?, key)?;
        let revocations = self.guard.revocations();
        let has_ended = match &row {
            AnyRow::Credential(row) => {
                revocations.credential(&row.key) || revocations.principal(row.principal)
            }
            AnyRow::Grant(row) => revocations.grant(row) || revocations.principal(row.principal),
            AnyRow::Device(_) => false,
        };
        visible(Some(&row).filter(|_| !has_ended), self.now)
    }

    fn note(&mut self, line: impl FnOnce(&Self) -> String) {
        let line = line(self);
        self.log.push(line);
    }
}

const fn principal_of(row: &AnyRow) -> Option<PrincipalId> {
    match row {
        AnyRow::Credential(row) => Some(row.principal),
        AnyRow::Grant(row) => Some(row.principal),
        AnyRow::Device(_) => None,
    }
}

/// Every row that a store of `size` and its lens may show.
fn keys(size: i64) -> Arc<[RowKey]> {
    let grants = (1..=size).chain(1_001..=1_000 + size).map(|id| RowKey::Grant(GrantId(id)));
    let devices = (1..=size).map(|id| RowKey::Device(DeviceId(id)));
    let credentials = (1..=size).chain(NEW_ID..NEW_ID + NEW_IDS).flat_map(|id| {
        let whole = [id as u8].into_iter().chain([0; 31]).collect::<Vec<u8>>();
        let truncated = whole[..31].iter().copied().chain([0xff]).collect();
        [whole, truncated]
            .map(|key: Vec<u8>| RowKey::Credential(KeyHash::from_bytes(key.try_into().unwrap())))
    });
    grants.chain(devices).chain(credentials).collect()
}

impl std::fmt::Display for History {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "\n{}", self.log.join("\n"))
    }
}

/// What decisions see of a row: nothing of one that has ended, of a device that is offline no location.
fn visible(row: Option<&AnyRow>, now: UnixMillis) -> Option<AnyRow> {
    match row?.clone() {
        AnyRow::Device(row) if !is_located(&row) => {
            Some(AnyRow::Device(Device { address: None, node: None, online: false, ..row }))
        }
        row => row.is_live(now).then_some(row),
    }
}

/// Runs the history of `seed`, and says which one it was where it fails.
fn run(seed: u64, restarts: Restarts) -> History {
    let run = std::panic::AssertUnwindSafe(|| History::new(seed, restarts).run());
    std::panic::catch_unwind(run).unwrap_or_else(|cause| {
        eprintln!("history {seed} with {restarts:?} restarts");
        std::panic::resume_unwind(cause)
    })
}

fn seeds() -> std::ops::Range<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    match number("SLUICEGATE_HISTORY") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SLUICEGATE_HISTORIES").unwrap_or(HISTORIES),
    }
}

#[test]
fn a_wrong_query_is_bounded_and_heals_and_ends_stay_ends_in_any_history() {
    seeds().for_each(|seed| drop(run(seed, Restarts::Crash)));
}

#[test]
fn a_history_with_restarts_decides_as_the_same_without() {
    for seed in seeds() {
        let (plain, restarted) = (run(seed, Restarts::Never), run(seed, Restarts::Clean));
        let places = plain.trace.iter().zip(&restarted.trace).enumerate();
        for (place, (one, other)) in places {
            let rows = one.iter().zip(other).filter(|(one, other)| one != other);
            let rows: Vec<_> = rows.collect();
            assert!(rows.is_empty(), "history {seed}, checkpoint {place}: {rows:?}: {restarted}");
        }
    }
}

#[test]
fn a_history_without_a_guard_breaks_the_bound() {
    let is_harmed = |seed| {
        let mut history = History::new(seed, Restarts::Never);
        history.config.authz.guard.enabled = false;
        let config = history.config.clone();
        history.guard.reconfigure(&config);
        history.lens = Some(Lens { part: 100, drift: 0, ..Lens::any(&mut history.random) });
        history.read_all();
        let bounded = std::panic::AssertUnwindSafe(|| history.check_bound());
        std::panic::catch_unwind(bounded).is_err()
    };
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let harmed = (0..40).filter(|seed| is_harmed(*seed)).count();
    std::panic::set_hook(hook);
    assert!(harmed > 10, "{harmed} of 40 histories show harm");
}

const START: UnixMillis = UnixMillis(1_000_000_000_000);

/// `authz.guard.window` by default.
const WINDOW_MS: i64 = 600_000;

/// Numbers of rows that come new.
const NEW_ID: i64 = 50;
const NEW_IDS: i64 = 10;

const STEPS: usize = 30;

/// Histories in the ordinary test.
const HISTORIES: u64 = 60;
