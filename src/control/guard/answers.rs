//! Whole answers about one relation: where they differ from what is in force.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::first_answers::FirstRow;
use super::pending::{Overflow, PENDING_ROWS_MAX, PendingRow, PendingRows, RelationHold};
use super::row::{AnyRow, classify, row_of};
use super::undo::is_of_location;
use super::{Guard, Judged, LiveRows, RejectedRow, index};
use crate::authz::{Generation, Snapshot, UnixMillis};
use crate::control::api::{ChangeKind, Rule};
use crate::store::{Position, Quarantined, Relation, RelationRows, RowKey};

impl Guard {
    /// A whole answer about `relation`, as the store had it at `position`. Rows that do not decode or are there twice are
    /// in `quarantined`.
    pub(in crate::control) fn answer(
        &mut self,
        relation: Relation,
        rows: RelationRows,
        quarantined: Vec<Quarantined>,
        position: Position,
        now: UnixMillis,
    ) -> Judged {
        if self.is_too_old(position) {
            return Judged::default();
        }
        let state = &mut self.relations[index(relation)];
        state.reads += 1;
        state.read_at = Some(now);
        state.position = Some(position);
        let Some(answer) = relation_snapshot(rows) else {
            // Of what is held nothing has changed but the time.
            let is_soon = now.0.saturating_sub(state.decided_at.0) < DECIDE_HELD_MS;
            if is_soon && state.pending.is_all_held() {
                return Judged::default();
            }
            return self.decide(relation, now);
        };
        state.rows = row_count(&answer, relation) + quarantined.len();
        state.bad_examples = quarantined.iter().take(EXAMPLES_MAX).cloned().collect();
        state.bad = quarantined.into_iter().map(|row| row.key).collect();
        self.check_bounds(relation, now);
        let Some(in_force) = self.in_force.clone() else {
            self.first.relations[index(relation)] = Some(answer);
            return self.publish_first(now);
        };
        self.compare_with_peers(relation, &answer, now);
        self.collect(relation, &in_force, &answer, position, now);
        self.recent_words.retain(|key, at| key.relation() != relation || is_after(*at, position));
        super::shrink(&mut self.recent_words);
        self.tombstones.confirm(relation, position, &answer);
        let mut judged = self.decide(relation, now);
        judged.published |= self.apply_accepted_overflow(relation, &answer, now);
        self.complete_first(relation);
        let live = self.in_force.as_deref().map(|snapshot| LiveRows::of(snapshot, now));
        self.live = live.unwrap_or_default();
        judged
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

    /// Sorts the rows in which `answer` differs from what is in force.
    fn collect(
        &mut self,
        relation: Relation,
        in_force: &Snapshot,
        answer: &Snapshot,
        position: Position,
        now: UnixMillis,
    ) {
        let state = &mut self.relations[index(relation)];
        let reads = state.reads;
        let before = std::mem::take(&mut state.pending);
        let overflow_before = std::mem::take(&mut state.overflow);
        let bad = std::mem::take(&mut state.bad);
        let mut pending = PendingRows::default();
        let mut is_news = false;
        let mut kinds: HashMap<ChangeKind, usize> = HashMap::new();
        let mut overflow: BTreeMap<ChangeKind, Overflow> = BTreeMap::new();
        differences(relation, in_force, answer, |key, was, is| {
            let is_spoken_of = self.recent_words.get(&key).is_some_and(|word| is_after(*word, position));
            if bad.contains(&key) || is_spoken_of || self.waiting_words.contains_key(&key) {
                return;
            }
            let kind = self.kind_of(&key, was.as_ref(), is.as_ref(), now);
            let first = match &is {
                Some(row) if kind == Some(ChangeKind::Gained) => self.first_row(relation, row, now),
                _ => FirstRow::Ordinary,
            };
            let Some(kind) = kind.filter(|_| first != FirstRow::Undoubted) else {
                // A mend, or nothing that decides: it is applied in any case.
                pending.insert(
                    key,
                    PendingRow { after: is, kind: None, since: now, first_read: reads, held: None },
                );
                return;
            };
            let count = kinds.entry(kind).or_default();
            *count += 1;
            let kind_now = Some(kind);
            let known = before.get(&key).filter(|row| row.kind == kind_now);
            is_news |= known.is_none();
            if *count <= PENDING_ROWS_MAX {
                let held = match first {
                    FirstRow::Doubted => Some(Rule::Peers),
                    _ => known.and_then(|row| row.held).filter(|rule| *rule != Rule::Peers),
                };
                let since = known.map_or(now, |row| row.since);
                let first_read = known.map_or(reads, |row| row.first_read);
                pending.insert(
                    key.clone(),
                    PendingRow { after: is.clone(), kind: kind_now, since, first_read, held },
                );
            }
            if *count >= PENDING_ROWS_MAX {
                let since = overflow_before.get(&kind).map_or(now, |overflow| overflow.since);
                let new = || Overflow { rows: 0, digest: 0, examples: Vec::new(), since };
                let overflow = overflow.entry(kind).or_insert_with(new);
                overflow.rows = *count;
                overflow.digest = overflow.digest.wrapping_add(digest(&key, is.as_ref()));
                if overflow.examples.len() < EXAMPLES_MAX {
                    overflow.examples.push(key.to_string());
                }
            }
        });
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

/// Puts the rows of a relation into a snapshot of their own; `None` where they are as before.
fn relation_snapshot(rows: RelationRows) -> Option<Snapshot> {
    let generation = Generation(0);
    Some(match rows {
        RelationRows::Credentials(rows) => Snapshot::build(generation, rows, Vec::new(), Vec::new()),
        RelationRows::Grants(rows) => Snapshot::build(generation, Vec::new(), rows, Vec::new()),
        RelationRows::Devices(rows) => Snapshot::build(generation, Vec::new(), Vec::new(), rows),
        RelationRows::Unchanged => return None,
    })
}

fn row_count(snapshot: &Snapshot, relation: Relation) -> usize {
    let counts = snapshot.row_counts();
    match relation {
        Relation::Credentials => counts.credentials,
        Relation::Grants => counts.grants,
        Relation::Devices => counts.devices,
    }
}

/// Shows each row of `relation` in which `after` differs from `before` to `visit`.
pub(super) fn differences(
    relation: Relation,
    before: &Snapshot,
    after: &Snapshot,
    mut visit: impl FnMut(RowKey, Option<AnyRow>, Option<AnyRow>),
) {
    match relation {
        Relation::Credentials => {
            for row in before.credentials() {
                let is = after.credential(&row.key);
                if is.as_ref() != Some(&row) {
                    let was = AnyRow::Credential(row);
                    visit(was.key(), Some(was), is.map(AnyRow::Credential));
                }
            }
            for row in after.credentials().filter(|row| before.credential(&row.key).is_none()) {
                visit(RowKey::Credential(row.key), None, Some(AnyRow::Credential(row)));
            }
        }
        Relation::Grants => {
            for row in before.grants() {
                let is = after.grant(row.id);
                if is.as_ref() != Some(&row) {
                    visit(RowKey::Grant(row.id), Some(AnyRow::Grant(row)), is.map(AnyRow::Grant));
                }
            }
            for row in after.grants().filter(|row| before.grant(row.id).is_none()) {
                visit(RowKey::Grant(row.id), None, Some(AnyRow::Grant(row)));
            }
        }
        Relation::Devices => {
            for row in before.devices() {
                let is = after.device(row.id);
                if is.as_ref() != Some(&row) {
                    visit(RowKey::Device(row.id), Some(AnyRow::Device(row)), is.map(AnyRow::Device));
                }
            }
            for row in after.devices().filter(|row| before.device(row.id).is_none()) {
                visit(RowKey::Device(row.id), None, Some(AnyRow::Device(row)));
            }
        }
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

/// Rows that a hold names.
pub(super) const EXAMPLES_MAX: usize = 5;
