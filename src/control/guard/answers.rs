//! Whole answers about one relation: where they differ from what is in force.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use sha2::{Digest, Sha256};

#[cfg(test)]
use super::comparison::WholeAnswer;
use super::comparison::{ComparedAnswer, ComparisonBase, differences};
use super::first_answers::FirstRow;
use super::pending::{Overflow, PENDING_ROWS_MAX, PendingRow, PendingRows, RelationHold};
use super::row::{AnyRow, classify, row_of};
use super::undo::is_of_location;
use super::{Guard, Judged, LiveRows, RejectedRow, index};
use crate::authz::{Generation, Snapshot, UnixMillis};
use crate::control::api::{ChangeKind, Rule};
use crate::store::{Position, Relation, RowKey};
#[cfg(test)]
use crate::store::{Quarantined, RelationRows};

impl Guard {
    /// A whole answer about `relation`, compared and judged at once.
    #[cfg(test)]
    pub(in crate::control) fn answer(
        &mut self,
        relation: Relation,
        rows: RelationRows,
        quarantined: Vec<Quarantined>,
        position: Position,
        now: UnixMillis,
    ) -> Judged {
        let whole = WholeAnswer { relation, rows, quarantined, position };
        let compared = whole.compare(self.begin_comparison(now));
        self.judge_at_once(compared, now).unwrap_or_default()
    }

    /// What an answer that has come now is to be compared with. [`Guard::finish`] or [`Guard::forget_comparison`] ends
    /// the comparison.
    pub(in crate::control) fn begin_comparison(&mut self, now: UnixMillis) -> ComparisonBase {
        self.touched.comparisons += 1;
        ComparisonBase {
            in_force: self.in_force.clone(),
            touched: self.touched.rows.len(),
            epoch: self.touched.epoch,
            live: self.live,
            now,
        }
    }

    /// A comparison that [`Guard::begin_comparison`] began has come to nothing.
    pub(in crate::control) fn forget_comparison(&mut self) {
        self.touched.comparisons = self.touched.comparisons.saturating_sub(1);
        if self.touched.comparisons == 0 {
            self.touched.rows = Vec::new();
        }
    }

    /// No comparison that has begun so far is to be used: after a fault, what was touched is not known.
    pub(in crate::control) fn forget_comparisons(&mut self) {
        self.touched = TouchedRows { epoch: self.touched.epoch + 1, ..TouchedRows::default() };
    }

    /// Judges a compared answer in one go. `None` where it is too old.
    #[cfg(test)]
    pub(in crate::control) fn judge_at_once(
        &mut self,
        compared: ComparedAnswer,
        now: UnixMillis,
    ) -> Option<Judged> {
        let mut sorting = self.begin_sorting(compared, now);
        while !self.sort_some(&mut sorting, now) {}
        self.finish(sorting, now)
    }

    /// Begins to sort the rows in which an answer differs.
    pub(in crate::control) fn begin_sorting(&mut self, compared: ComparedAnswer, now: UnixMillis) -> Sorting {
        if let Some(answer) = &compared.answer {
            self.compare_with_peers(compared.relation, answer, now);
        }
        let bad = compared.quarantined.iter().map(|row| row.key.clone()).collect();
        Sorting { sorted: SortedRows::default(), bad, compared }
    }

    /// Sorts some more rows; true once none is left. Words and commands may come in between.
    pub(in crate::control) fn sort_some(&self, sorting: &mut Sorting, now: UnixMillis) -> bool {
        let Sorting { compared, sorted, bad } = sorting;
        let (Some(differing), Some(answer)) = (&mut compared.differing, &compared.answer) else {
            return true;
        };
        for key in differing.take(SORTED_AT_ONCE) {
            self.sort_row(sorted, bad, key, answer, compared.position, now);
        }
        differing.is_empty()
    }

    /// Judges a sorted answer. `None` where it cannot be used: it is to be read again.
    pub(in crate::control) fn finish(&mut self, sorting: Sorting, now: UnixMillis) -> Option<Judged> {
        let Sorting { compared, mut sorted, bad } = sorting;
        let ComparedAnswer { relation, answer, quarantined, position, differing, touched, epoch, live } =
            compared;
        if epoch != self.touched.epoch {
            return None;
        }
        let touched = self.touched.rows.get(touched..).unwrap_or_default().to_vec();
        self.forget_comparison();
        if self.is_too_old(position) {
            return None;
        }
        let state = &mut self.relations[index(relation)];
        state.reads += 1;
        state.read_at = Some(now);
        state.position = Some(position);
        let Some(answer) = answer else {
            // Of what is held nothing has changed but the time.
            let is_soon = now.0.saturating_sub(state.decided_at.0) < DECIDE_HELD_MS;
            if is_soon && state.pending.is_all_held() {
                return Some(Judged::default());
            }
            return Some(self.decide(relation, now));
        };
        state.rows = row_count(&answer, relation) + quarantined.len();
        state.bad_examples = quarantined.iter().take(EXAMPLES_MAX).cloned().collect();
        self.check_bounds(relation, now);
        let Some(in_force) = self.in_force.clone() else {
            self.relations[index(relation)].bad = bad;
            self.first.relations[index(relation)] = Some(answer);
            return Some(self.publish_first(now));
        };
        if differing.is_none() {
            // Nothing was in force when the answer came.
            let mut keys = Vec::new();
            differences(relation, &in_force, &answer, |key, _, _| keys.push(key));
            for key in keys {
                self.sort_row(&mut sorted, &bad, key, &answer, position, now);
            }
        }
        let mut latest: HashMap<RowKey, Touch> = HashMap::new();
        for (key, touch) in touched.into_iter().filter(|(key, _)| key.relation() == relation) {
            let known = latest.entry(key).or_insert(touch);
            if touch == Touch::Table {
                *known = touch;
            }
        }
        for (key, touch) in latest {
            sorted.pending.remove(&key);
            match touch {
                Touch::Row => self.sort_row(&mut sorted, &bad, key, &answer, position, now),
                // The node's own table has said since what the row is; the answer was laid over an older one.
                Touch::Table => {
                    if let Some(row) = self.relations[index(relation)].pending.get(&key) {
                        sorted.pending.insert(key, row.clone());
                    }
                }
            }
        }
        self.take_in(relation, sorted, bad, &in_force, now);
        self.recent_words.retain(|key, at| key.relation() != relation || is_after(*at, position));
        super::shrink(&mut self.recent_words);
        self.tombstones.confirm(relation, position, &answer);
        let mut judged = self.decide(relation, now);
        judged.published |= self.apply_accepted_overflow(relation, &answer, now);
        self.complete_first(relation);
        let (counted, kept) = live;
        self.live.correct(relation, counted, kept);
        Some(judged)
    }

    /// The relations are to be read again: the words from before `position` were lost.
    pub(in crate::control) fn lose_words(&mut self, position: Position) {
        self.words_lost_before = Some(position);
        self.recent_words = HashMap::new();
    }

    /// Returns whether an answer was read before words that were lost.
    pub(in crate::control) fn is_too_old(&self, position: Position) -> bool {
        self.words_lost_before.is_some_and(|lost| is_after(lost, position))
    }

    /// Sorts the row of `key`, if it differs from what is in force now.
    fn sort_row(
        &self,
        sorted: &mut SortedRows,
        bad: &HashSet<RowKey>,
        key: RowKey,
        answer: &Snapshot,
        position: Position,
        now: UnixMillis,
    ) {
        let relation = key.relation();
        let was = self.in_force.as_deref().and_then(|in_force| row_of(in_force, &key));
        let is = row_of(answer, &key);
        let is_spoken_of = self.recent_words.get(&key).is_some_and(|word| is_after(*word, position));
        if was == is || bad.contains(&key) || is_spoken_of || self.waiting_words.contains_key(&key) {
            return;
        }
        let state = &self.relations[index(relation)];
        // The number of this answer.
        let reads = state.reads + 1;
        let kind = self.kind_of(&key, was.as_ref(), is.as_ref(), now);
        let first = match &is {
            Some(row) if kind == Some(ChangeKind::Gained) => self.first_row(relation, row, now),
            _ => FirstRow::Ordinary,
        };
        let Some(kind) = kind.filter(|_| first != FirstRow::Undoubted) else {
            // A mend, or nothing that decides: it is applied in any case.
            let row = PendingRow { after: is, kind: None, since: now, first_read: reads, held: None };
            sorted.pending.insert(key, row);
            return;
        };
        let count = sorted.kinds.entry(kind).or_default();
        *count += 1;
        let kind_now = Some(kind);
        let known = state.pending.get(&key).filter(|row| row.kind == kind_now);
        sorted.is_news |= known.is_none();
        if *count <= PENDING_ROWS_MAX {
            let held = match first {
                FirstRow::Doubted => Some(Rule::Peers),
                _ => known.and_then(|row| row.held).filter(|rule| *rule != Rule::Peers),
            };
            let since = known.map_or(now, |row| row.since);
            let first_read = known.map_or(reads, |row| row.first_read);
            let row = PendingRow { after: is.clone(), kind: kind_now, since, first_read, held };
            sorted.pending.insert(key.clone(), row);
        }
        if *count >= PENDING_ROWS_MAX {
            let since = state.overflow.get(&kind).map_or(now, |overflow| overflow.since);
            let new = || Overflow { rows: 0, digest: 0, examples: Vec::new(), since };
            let overflow = sorted.overflow.entry(kind).or_insert_with(new);
            overflow.rows = *count;
            overflow.digest = overflow.digest.wrapping_add(digest(&key, is.as_ref()));
            if overflow.examples.len() < EXAMPLES_MAX {
                overflow.examples.push(key.to_string());
            }
        }
    }

    /// Puts the sorted rows in the place of those of the answer before.
    fn take_in(
        &mut self,
        relation: Relation,
        sorted: SortedRows,
        bad: HashSet<RowKey>,
        in_force: &Snapshot,
        now: UnixMillis,
    ) {
        let SortedRows { mut pending, kinds, mut overflow, mut is_news } = sorted;
        let state = &mut self.relations[index(relation)];
        let before = std::mem::take(&mut state.pending);
        // A kind of which too many rows differ to be kept is kept by its count alone.
        overflow.retain(|kind, _| kinds.get(kind).is_some_and(|count| *count > PENDING_ROWS_MAX));
        for (kind, overflow) in &mut overflow {
            for (key, row) in
                pending.iter().filter(|(_, row)| row.kind == Some(*kind)).take(PENDING_ROWS_MAX - 1)
            {
                overflow.digest = overflow.digest.wrapping_add(digest(key, row.after.as_ref()));
            }
            pending.remove_kind(*kind);
        }
        // What was undone and has changed since is judged as any other answer.
        let changed: Vec<(RowKey, RejectedRow)> = self
            .rejected
            .extract_if(|key, undone| {
                let shown = pending.get(key).map(|row| &row.after);
                key.relation() == relation && shown != Some(&undone.answer)
            })
            .collect();
        let is_right_mended = changed.iter().any(|(key, undone)| {
            let kind = classify(row_of(in_force, key).as_ref(), undone.answer.as_ref(), now);
            let is_mended = undone.rule == Rule::Probation && pending.get(key).is_none();
            is_mended && kind.is_some_and(|kind| !is_of_location(kind))
        });
        is_news |= before.charged() != pending.charged();
        self.is_memory_changed |= is_news || !changed.is_empty();
        let state = &mut self.relations[index(relation)];
        state.pending = pending;
        state.pending.follow(before);
        state.overflow = overflow;
        state.bad = bad;
        self.release_mended(is_right_mended);
    }

    /// Kind of the change from the baseline to `after`; `None` for a mend and for what changes no decision.
    pub(super) fn kind_of(
        &self,
        key: &RowKey,
        in_force: Option<&AnyRow>,
        after: Option<&AnyRow>,
        now: UnixMillis,
    ) -> Option<ChangeKind> {
        let is_live = after.is_some_and(|row| row.is_live(now));
        if is_live && self.has_ended_explicitly(key, in_force, after) {
            return Some(ChangeKind::Revived);
        }
        let baseline = match self.ledger.baseline(key) {
            Some(baseline) => baseline.as_ref(),
            None => in_force,
        };
        // The mend of a gain that has become the baseline takes nothing from anybody who had it before.
        if self.aged_gains.is_mend(key, after) {
            return None;
        }
        // The same right again, however it is written.
        if baseline == after {
            return None;
        }
        classify(baseline, after, now)
    }

    /// A relation that has other sizes than an operator knows it to have is kept as it is.
    fn check_bounds(&mut self, relation: Relation, now: UnixMillis) {
        let bounds = &self.config.bounds;
        let bound = [bounds.credentials, bounds.grants, bounds.devices][index(relation)];
        let state = &mut self.relations[index(relation)];
        let (name, rows) = (relation.name(), state.rows);
        let figures = match (bound.min, bound.max) {
            (Some(min), _) if rows < min => {
                Some(format!("{name} has {rows} rows; authz.guard.bounds.{name}.min is {min}"))
            }
            (_, Some(max)) if rows > max => {
                Some(format!("{name} has {rows} rows; authz.guard.bounds.{name}.max is {max}"))
            }
            _ => None,
        };
        let since =
            state.relation_hold.as_ref().filter(|hold| hold.rule == Rule::Bounds).map(|hold| hold.since);
        let is_bounds = state.relation_hold.as_ref().is_none_or(|hold| hold.rule == Rule::Bounds);
        match figures.filter(|_| self.config.enabled) {
            None => {
                self.waived.remove(&(Rule::Bounds, relation));
                if is_bounds {
                    state.relation_hold = None;
                }
            }
            Some(_) if self.waived.contains(&(Rule::Bounds, relation)) => {}
            Some(figures) => {
                let (since, examples) = (since.unwrap_or(now), Vec::new());
                state.relation_hold = Some(RelationHold { rule: Rule::Bounds, figures, examples, since });
            }
        }
    }

    /// Publishes the first answers once there is one about each relation.
    pub(super) fn publish_first(&mut self, now: UnixMillis) -> Judged {
        let [Some(credentials), Some(grants), Some(devices)] = &self.first.relations else {
            return Judged::default();
        };
        if self.is_awaiting_peers() || self.relations.iter().any(|state| state.relation_hold.is_some()) {
            return Judged::default();
        }
        let first = Snapshot::of_parts(Generation(1), credentials, grants, devices);
        if self.config.enabled
            && let Err(wrong) = self.canaries.check(&first, &self.revocations, now)
            && !self.waived.contains(&(Rule::Canaries, Relation::Credentials))
        {
            self.hold_by_canaries(Relation::Credentials, wrong, now);
            return Judged::default();
        }
        let first = self.without_doubted(first, now);
        self.begin_with(first, now);
        Judged { published: true, ended: false }
    }

    fn begin_with(&mut self, first: Snapshot, now: UnixMillis) {
        let generation = first.generation();
        self.live = LiveRows::of(&first, now);
        self.first = super::FirstRows::default();
        self.places.begin_with(&first);
        self.in_force = Some(Arc::new(first));
        self.note(generation, super::BY_START, HashMap::new(), now);
    }

    /// Publishes the first answers in spite of a hold.
    pub(super) fn accept_first(&mut self, now: UnixMillis) -> Judged {
        for state in &mut self.relations {
            state.relation_hold = None;
        }
        self.publish_first(now)
    }

    /// Applies a kind that was accepted when it had too many rows to keep, if this answer shows exactly these.
    fn apply_accepted_overflow(&mut self, relation: Relation, answer: &Snapshot, now: UnixMillis) -> bool {
        let state = &self.relations[index(relation)];
        let accepted: HashSet<ChangeKind> = state
            .overflow
            .iter()
            .filter(|(kind, overflow)| self.accepted.get(&(relation, **kind)) == Some(&overflow.digest))
            .map(|(kind, _)| *kind)
            .collect();
        self.accepted.retain(|(of, _), _| *of != relation);
        let Some(in_force) = self.in_force.clone().filter(|_| !accepted.is_empty()) else { return false };
        let mut chunk = Vec::new();
        differences(relation, &in_force, answer, |key, was, is| {
            let is_bad = self.relations[index(relation)].bad.contains(&key);
            let kind = self.kind_of(&key, was.as_ref(), is.as_ref(), now);
            if let Some(kind) = kind.filter(|kind| !is_bad && accepted.contains(kind)) {
                chunk.push((key, is, kind));
            }
            if chunk.len() >= PENDING_ROWS_MAX {
                self.apply_accepted(std::mem::take(&mut chunk), now);
            }
        });
        self.apply_accepted(chunk, now);
        let state = &mut self.relations[index(relation)];
        state.overflow.retain(|kind, _| !accepted.contains(kind));
        true
    }
}

/// An answer whose differing rows are being sorted, some at a time.
pub(in crate::control) struct Sorting {
    compared: ComparedAnswer,
    sorted: SortedRows,
    /// Rows that do not decode.
    bad: HashSet<RowKey>,
}

/// Rows that differ, by what their change amounts to.
#[derive(Default)]
struct SortedRows {
    pending: PendingRows,
    kinds: HashMap<ChangeKind, usize>,
    overflow: BTreeMap<ChangeKind, Overflow>,
    is_news: bool,
}

/// Rows that changed here while answers were being compared.
#[derive(Default)]
pub(super) struct TouchedRows {
    /// Number of times that all comparisons were given up.
    epoch: u64,
    /// Comparisons that have begun and not ended.
    comparisons: usize,
    /// Empty while there is none.
    rows: Vec<(RowKey, Touch)>,
}

/// Reason why a row changed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Touch {
    /// A word, a judgement or a command.
    Row,
    /// The node's own VPN table.
    Table,
}

impl TouchedRows {
    pub(super) fn add(&mut self, key: &RowKey, touch: Touch) {
        if self.comparisons > 0 && self.rows.len() < TOUCHED_MAX {
            self.rows.push((key.clone(), touch));
        } else if self.comparisons > 0 {
            *self = Self { epoch: self.epoch + 1, ..Self::default() };
        }
    }
}

impl Sorting {
    pub(in crate::control) const fn relation(&self) -> Relation {
        self.compared.relation
    }

    /// The answer's rows; `None` where they are as before.
    pub(in crate::control) fn answer(&self) -> Option<Arc<Snapshot>> {
        self.compared.answer.clone()
    }
}

fn row_count(snapshot: &Snapshot, relation: Relation) -> usize {
    let counts = snapshot.row_counts();
    match relation {
        Relation::Credentials => counts.credentials,
        Relation::Grants => counts.grants,
        Relation::Devices => counts.devices,
    }
}

/// True where `one` is later than `other` in one history, and where they cannot be compared.
pub(super) fn is_after(one: Position, other: Position) -> bool {
    one.store != other.store || (one.timeline, one.log) > (other.timeline, other.log)
}

/// Digest of a row that is to be applied. Digests of several rows are added, so that their order does not matter.
pub(super) fn digest(key: &RowKey, after: Option<&AnyRow>) -> u128 {
    text_digest(&format!("{key:?} {after:?}"))
}

pub(super) fn text_digest(text: &str) -> u128 {
    let digest = Sha256::digest(text);
    let mut head = [0; 16];
    head.copy_from_slice(&digest[..16]);
    u128::from_le_bytes(head)
}

/// Time between two judgements of a mass that is held and does not change, in ms: words wait for none of them.
const DECIDE_HELD_MS: i64 = 5_000;

/// Differing rows that are sorted before words and commands have their turn.
const SORTED_AT_ONCE: usize = 2_000;

/// Rows that may change while answers are being compared. With more, the answers are read again.
pub(super) const TOUCHED_MAX: usize = 200_000;

/// Rows that a hold names.
pub(super) const EXAMPLES_MAX: usize = 5;
