//! Explicit words: what the store recorded of single rows, or the node's own VPN. They count at once.
//!
//! No budget of inferred changes, no hold and no rollback touches them. Only a mass of ends waits: a statement without
//! its condition revokes thousands at once.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::answers::Touch;
use super::row::{AnyRow, change_to, classify, row_after, row_of};
use super::{AppliedKind, AppliedRow, Guard, Judged, PendingRow, index};
use crate::authz::{Change, Device, DeviceId, End, PrincipalId, Scope, Snapshot, UnixMillis};
use crate::config::Preference;
use crate::control::api::{ChangeKind, Group, Rule, WordKind};
use crate::store::{Position, Quarantined, Relation, RowKey, Word};

/// What one read of words amounts to, before it is put in force.
#[derive(Default)]
pub(super) struct SortedWords {
    applied: Vec<AppliedRow>,
    ends: Vec<EndWord>,
    /// Ends for the set that engines look at first.
    ended: Vec<End>,
    /// Rights that were given back.
    revived: Vec<Change>,
    /// Devices that ended. What was granted on one that waits was written with it, and waits as well.
    devices: HashSet<DeviceId>,
}

/// An explicit end of one row that nothing else explains.
pub(super) struct EndWord {
    pub(super) key: RowKey,
    pub(super) after: Option<AnyRow>,
    pub(super) kind: ChangeKind,
    pub(super) word: Word,
}

impl Guard {
    /// Sets which relations an outbox follows row by row.
    pub(in crate::control) fn follow(&mut self, relation: Relation, is_followed: bool) {
        self.followed[index(relation)] = is_followed;
    }

    /// Words that the store recorded up to `position`, in their order.
    pub(in crate::control) fn words(
        &mut self,
        words: Vec<Word>,
        quarantined: Vec<Quarantined>,
        position: Position,
        now: UnixMillis,
    ) -> Judged {
        for row in quarantined {
            let state = &mut self.relations[index(row.key.relation())];
            if state.bad_examples.len() < super::answers::EXAMPLES_MAX {
                state.bad_examples.push(row.clone());
            }
            state.bad.insert(row.key);
        }
        let Some(in_force) = self.in_force.clone() else {
            // The first whole answers are read after these words.
            return Judged::default();
        };
        let sorted = self.sort_words(words, &in_force, position, now);
        let mut judged = self.put_words(sorted, position, now);
        if self.recent_words.len() > RECENT_WORDS_MAX {
            // Answers that are being read now may be older than what is forgotten here.
            self.lose_words(position);
        }
        judged.ended |= judged.published;
        judged
    }

    /// Devices whose address has changed in the node's own VPN table, as they are now.
    pub(in crate::control) fn own_moves(&mut self, devices: Vec<Device>, now: UnixMillis) -> Judged {
        let Some(in_force) = self.in_force.clone() else { return Judged::default() };
        let mut applied = Vec::new();
        for device in devices {
            let key = RowKey::Device(device.id);
            let after = Some(AnyRow::Device(device));
            let before = row_of(&in_force, &key);
            // Rows that are held or unknown are not this table's to bring.
            let is_known = before
                .as_ref()
                .is_some_and(|before| !before.is_another_right(after.as_ref().unwrap_or(before)));
            if !is_known {
                continue;
            }
            let is_place = |kind: &ChangeKind| matches!(kind, ChangeKind::Moved | ChangeKind::Unlocated);
            let pending = &mut self.relations[index(Relation::Devices)].pending;
            if pending.get(&key).and_then(|row| row.kind).is_some_and(|kind| is_place(&kind)) {
                // What was inferred of its place is over.
                pending.remove(&key);
                self.touched.add(&key, Touch::Table);
                self.is_memory_changed = true;
            }
            if before == after {
                continue;
            }
            let kind = classify(before.as_ref(), after.as_ref(), now).filter(is_place);
            let kind = kind.map(|kind| AppliedKind { kind, word: WordKind::Explicit, is_charged: false });
            applied.push(AppliedRow { key, after, kind });
        }
        self.follow_pending_devices();
        self.put_in_force(applied, super::BY_VPN, now)
    }

    /// Devices that the node's own VPN table holds no more, as the store has them. Judged as a query's rows are.
    pub(in crate::control) fn left_tables(&mut self, devices: Vec<Device>, now: UnixMillis) -> Judged {
        let Some(in_force) = self.in_force.clone() else { return Judged::default() };
        if devices.is_empty() {
            return Judged::default();
        }
        for device in devices {
            let key = RowKey::Device(device.id);
            let (before, after) = (row_of(&in_force, &key), Some(AnyRow::Device(device)));
            self.touched.add(&key, Touch::Table);
            if before.is_none() || before == after {
                self.relations[index(Relation::Devices)].pending.remove(&key);
                continue;
            }
            let kind = self.kind_of(&key, before.as_ref(), after.as_ref(), now);
            let state = &mut self.relations[index(Relation::Devices)];
            let row = PendingRow { after, kind, since: now, first_read: state.reads, held: None };
            state.pending.insert(key, row);
        }
        self.decide(Relation::Devices, now)
    }

    fn sort_words(
        &mut self,
        words: Vec<Word>,
        in_force: &Snapshot,
        position: Position,
        now: UnixMillis,
    ) -> SortedWords {
        let mut explained = Explained::by(&words);
        // A mass of them explains nothing.
        let ended_devices = explained.devices.clone();
        let (credentials, devices) = (Relation::Credentials, Relation::Devices);
        if explained.principals.len() > self.room_for_ends(credentials, now) {
            explained.principals.clear();
        }
        if explained.devices.len() > self.room_for_ends(devices, now) {
            explained.devices.clear();
        }
        if !explained.principals.is_empty() {
            self.record_ends(credentials, explained.principals.len(), now);
        }
        let mut sorted = SortedWords { devices: ended_devices, ..SortedWords::default() };
        // The newest word on a row counts.
        let mut newest: HashMap<RowKey, usize> = HashMap::new();
        let mut rows: Vec<(RowKey, Option<AnyRow>, Word)> = Vec::new();
        for word in words {
            let row = match &word {
                // The ends of what it held come one by one.
                Word::PrincipalEnded(id) if !explained.principals.contains(id) => None,
                Word::PrincipalEnded(id) => {
                    sorted.ended.push(End::Principal(*id));
                    self.tombstones.insert_principal(*id, position, now);
                    None
                }
                Word::PrincipalLive(id) => {
                    if self.tombstones.remove_principal(*id) {
                        sorted.revived.push(Change::PrincipalGone(*id));
                    }
                    None
                }
                Word::Row(change) => row_after(change.clone()),
                Word::Ended(key) => {
                    let row = row_of(in_force, key);
                    Some((key.clone(), row.and_then(AnyRow::revoked)))
                }
                Word::Live(key) => {
                    if self.tombstones.remove(key) {
                        sorted.revived.extend(change_to(key, None));
                    }
                    // What the row is comes with the next answer, as no mass of its own.
                    self.recent_words.remove(key);
                    None
                }
            };
            let Some((key, after)) = row else { continue };
            if let Some(place) = newest.insert(key.clone(), rows.len()) {
                rows[place].0 = FORGOTTEN;
            }
            rows.push((key, after, word));
        }
        for (key, after, word) in rows {
            if key == FORGOTTEN {
                continue;
            }
            self.sort_word(&mut sorted, &explained, in_force, (key, after, word), position, now);
        }
        sorted
    }

    fn sort_word(
        &mut self,
        sorted: &mut SortedWords,
        explained: &Explained,
        in_force: &Snapshot,
        (key, after, word): (RowKey, Option<AnyRow>, Word),
        position: Position,
        now: UnixMillis,
    ) {
        let before = row_of(in_force, &key);
        self.touched.add(&key, Touch::Row);
        self.relations[index(key.relation())].bad.remove(&key);
        self.recent_words.insert(key.clone(), position);
        let was_held = self.waiting_words.remove(&key).is_some() | self.rejected.remove(&key).is_some();
        self.is_memory_changed |= was_held;
        self.relations[index(key.relation())].pending.remove(&key);
        let is_live = after.as_ref().is_some_and(|row| row.is_live(now));
        // A row that is live, or says of itself that it is revoked, needs nothing beside it.
        let is_revoked = after.as_ref().is_some_and(AnyRow::is_revoked) && matches!(word, Word::Row(_));
        let was_gone = (is_live || is_revoked) && self.tombstones.remove(&key);
        if was_gone {
            sorted.revived.extend(change_to(&key, None));
        }
        let kind = classify(before.as_ref(), after.as_ref(), now);
        let was_ended = was_gone || before.as_ref().is_some_and(AnyRow::is_revoked);
        if is_live && (was_ended || kind == Some(ChangeKind::Widened)) {
            self.take_back_end(key.relation());
        }
        let is_end = matches!(kind, Some(ChangeKind::Ended | ChangeKind::Absent | ChangeKind::Narrowed));
        if is_end && !explained.explains(&key, before.as_ref()) {
            if let Some(kind) = kind {
                sorted.ends.push(EndWord { key, after, kind, word });
            }
            return;
        }
        self.entomb(sorted, &key, before.as_ref(), after.as_ref(), &word, position, now);
        // A query may have come to the same first. From here on it is explicit, and no undoing gives it back.
        if before == after && self.ledger.baseline(&key).is_none() {
            self.is_memory_changed |= self.inferred_ends.remove(&key);
            return;
        }
        let kind = kind.map(|kind| AppliedKind { kind, word: WordKind::Explicit, is_charged: false });
        sorted.applied.push(AppliedRow { key, after, kind });
    }

    /// Remembers the end of a row of which nothing is left to say so.
    #[expect(clippy::too_many_arguments)]
    fn entomb(
        &mut self,
        sorted: &mut SortedWords,
        key: &RowKey,
        before: Option<&AnyRow>,
        after: Option<&AnyRow>,
        word: &Word,
        position: Position,
        now: UnixMillis,
    ) {
        let is_right = !matches!(key, RowKey::Device(_));
        // An operator's query may not see the end that our own table records.
        let is_unseen = matches!(word, Word::Ended(_));
        // The row says that it has ended by its expiry alone, which a wrong answer takes away as easily.
        let has_expired = after.is_some_and(|row| !row.is_live(now) && !row.is_revoked());
        if after.is_none() || is_unseen || has_expired {
            self.tombstones.insert(key.clone(), before, position, now);
            self.is_memory_changed = true;
            if is_right && !has_expired {
                sorted.ended.extend(match before {
                    // The number alone may name another right later.
                    Some(AnyRow::Grant(row)) => Some(End::of_grant(row)),
                    _ => change_to(key, None).as_ref().and_then(End::of),
                });
            }
        }
    }

    /// Puts words in force; ends that are too many wait.
    pub(super) fn put_words(
        &mut self,
        mut sorted: SortedWords,
        position: Position,
        now: UnixMillis,
    ) -> Judged {
        // Devices first, for what was granted on them.
        for relation in DEVICES_FIRST {
            let of_relation = |end: &mut EndWord| end.key.relation() == relation;
            let mut ends: Vec<EndWord> = sorted.ends.extract_if(.., of_relation).collect();
            if ends.is_empty() {
                continue;
            }
            let room = self.room_for_ends(relation, now);
            let expected = self.expected_ends(relation);
            let is_open = !self.config.enabled || self.config.prefer == Preference::Security;
            let with_devices = ends.extract_if(.., |end| {
                self.waiting_device(&end.key).is_some_and(|device| sorted.devices.contains(&device))
            });
            let with_devices = with_devices.collect();
            self.have_wait(with_devices, now);
            let rows = ends.len();
            if is_open || rows <= room + expected {
                if rows > room {
                    self.spend_expected_ends(relation, rows - room);
                }
                self.record_ends(relation, rows, now);
                self.apply_ends(&mut sorted, ends, position, now);
            } else {
                self.have_wait(ends, now);
            }
        }
        self.admit_small_rests(&mut sorted, position, now);
        let SortedWords { applied, ended, revived, .. } = sorted;
        let applied = self.hold_lost_locations(applied, now);
        let mut judged = self.put_in_force(applied, super::BY_WORDS, now);
        if !revived.is_empty() {
            self.revive_in_revocations(&revived);
            judged.published = true;
        }
        if let Some(more) = self.revocations.with_ends(ended.iter().copied()) {
            self.unpublished.ended.extend(ended);
            self.revocations = Arc::new(more);
            judged.published = true;
        }
        judged
    }

    pub(super) fn apply_ends(
        &mut self,
        sorted: &mut SortedWords,
        ends: Vec<EndWord>,
        position: Position,
        now: UnixMillis,
    ) {
        let in_force = self.in_force.clone();
        for EndWord { key, after, kind, word } in ends {
            let before = in_force.as_deref().and_then(|in_force| row_of(in_force, &key));
            self.entomb(sorted, &key, before.as_ref(), after.as_ref(), &word, position, now);
            let kind = Some(AppliedKind { kind, word: WordKind::Explicit, is_charged: false });
            sorted.applied.push(AppliedRow { key, after, kind });
        }
    }

    /// Devices that go offline in a mass are put to the network first, whoever says so.
    fn hold_lost_locations(&mut self, applied: Vec<AppliedRow>, now: UnixMillis) -> Vec<AppliedRow> {
        let is_lost = |row: &AppliedRow| row.kind.is_some_and(|kind| kind.kind == ChangeKind::Unlocated);
        let group =
            Group { relation: Relation::Devices, kind: ChangeKind::Unlocated, word: WordKind::Explicit };
        let lost = applied.iter().filter(|row| is_lost(row)).count();
        if !self.config.enabled || lost <= self.budget(group) {
            return applied;
        }
        let (lost, rest): (Vec<AppliedRow>, Vec<AppliedRow>) = applied.into_iter().partition(is_lost);
        let state = &mut self.relations[index(Relation::Devices)];
        let first_read = state.reads;
        for row in lost {
            let kind = Some(ChangeKind::Unlocated);
            let held = Some(Rule::Budget);
            state
                .pending
                .insert(row.key, PendingRow { after: row.after, kind, since: now, first_read, held });
        }
        self.count_hold(Rule::Budget);
        rest
    }
}

/// Principals and devices whose end explains the ends of what rests on them.
struct Explained {
    principals: HashSet<PrincipalId>,
    devices: HashSet<DeviceId>,
}

impl Explained {
    fn by(words: &[Word]) -> Self {
        let principal = |word: &Word| match word {
            Word::PrincipalEnded(id) => Some(*id),
            _ => None,
        };
        let device = |word: &Word| match word {
            Word::Row(Change::DeviceGone(id)) => Some(*id),
            _ => None,
        };
        Self {
            principals: words.iter().filter_map(principal).collect(),
            devices: words.iter().filter_map(device).collect(),
        }
    }

    fn explains(&self, key: &RowKey, before: Option<&AnyRow>) -> bool {
        match (key, before) {
            (_, Some(AnyRow::Credential(row))) => self.principals.contains(&row.principal),
            (_, Some(AnyRow::Grant(row))) => {
                let is_of_device = matches!(row.scope, Scope::Device(id) if self.devices.contains(&id));
                self.principals.contains(&row.principal) || is_of_device
            }
            _ => false,
        }
    }
}

/// Stands in the place of a word that a newer one has replaced.
const FORGOTTEN: RowKey = RowKey::Unreadable { relation: Relation::Devices, key: String::new() };

/// The relations in an order in which a grant comes after the device that it is on.
pub(super) const DEVICES_FIRST: [Relation; 3] = [Relation::Devices, Relation::Credentials, Relation::Grants];

/// Keys with words that answers which are being read may not know yet. More of them have the answers read again.
const RECENT_WORDS_MAX: usize = 200_000;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authz::{Credential, KeyHash};
    use crate::config::Config;
    use crate::store::{RelationRows, StoreId};

    fn credentials(revoked: u8) -> Vec<Credential> {
        let credential = |number| Credential {
            key: KeyHash::from_bytes([number; 32]),
            principal: PrincipalId(1),
            expires_at: None,
            revoked: number == revoked,
        };
        (1..=4).map(credential).collect()
    }

    fn position(log: u64) -> Position {
        Position { store: StoreId([1; 16]), timeline: 0, log, mark: 0 }
    }

    #[test]
    fn an_end_that_a_query_shows_before_its_word_comes_is_explicit_once_it_has() {
        let mut guard = Guard::new(&Config::default());
        let now = UnixMillis(1_000_000);
        guard.follow(Relation::Credentials, true);
        for rows in [
            RelationRows::Credentials(credentials(0)),
            RelationRows::Grants(Vec::new()),
            RelationRows::Devices(Vec::new()),
        ] {
            let relation = match rows {
                RelationRows::Grants(_) => Relation::Grants,
                RelationRows::Devices(_) => Relation::Devices,
                _ => Relation::Credentials,
            };
            guard.answer(relation, rows, Vec::new(), position(1), now);
        }
        let shown = RelationRows::Credentials(credentials(2));
        guard.answer(Relation::Credentials, shown, Vec::new(), position(2), now);
        assert!(guard.before_losses([].iter()).is_some(), "until the word comes it may be a mistake");

        let word = Word::Row(Change::Credential(credentials(2)[1]));
        let judged = guard.words(vec![word], Vec::new(), position(2), now);

        assert!(judged.published && judged.ended, "open tunnels are closed at once");
        assert!(guard.before_losses([].iter()).is_none());
        assert!(guard.roll_back(None, now).is_none(), "an explicit end is not undone");
    }
}
