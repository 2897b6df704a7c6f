//! Masses of explicit ends: a statement without its condition ends thousands at once, and these wait.
//!
//! A mass waits until somebody accepts it or announced it, or until what is left of it is few. What was granted on a
//! device whose end waits was written with that end, and waits with it.

use super::budget::EXPLICIT_WINDOW_MS;
use super::row::{AnyRow, row_after, row_of};
use super::words::{DEVICES_FIRST, EndWord, SortedWords};
use super::{Guard, Judged, RecentEnds, WaitingWord};
use crate::authz::{DeviceId, Scope, UnixMillis};
use crate::config::Preference;
use crate::control::api::{ChangeKind, Expectation, Group, Rule, WordKind};
use crate::store::{Position, Relation, RowKey, Word};

impl Guard {
    /// Has ends wait, as a mass.
    pub(super) fn have_wait(&mut self, ends: Vec<EndWord>, now: UnixMillis) {
        if ends.is_empty() {
            return;
        }
        self.count_hold(Rule::Budget);
        self.is_memory_changed = true;
        for EndWord { key, kind, word, .. } in ends {
            self.waiting_words.insert(key, WaitingWord { word, kind, since: now });
        }
    }

    /// Ends that waited as a mass and are few now take effect: most were taken back, or a minute has passed.
    pub(super) fn admit_small_rests(
        &mut self,
        sorted: &mut SortedWords,
        position: Position,
        now: UnixMillis,
    ) {
        for relation in DEVICES_FIRST {
            let is_small_rest =
                |key: &&RowKey| key.relation() == relation && self.waiting_device(key).is_none();
            let keys: Vec<RowKey> = self.waiting_words.keys().filter(is_small_rest).cloned().collect();
            if !keys.is_empty() && keys.len() <= self.room_for_ends(relation, now) {
                self.record_ends(relation, keys.len(), now);
                let ends = self.drain_waiting(keys);
                self.apply_ends(sorted, ends, position, now);
            }
        }
    }

    /// The device that a grant leads to, if its end waits.
    pub(super) fn waiting_device(&self, key: &RowKey) -> Option<DeviceId> {
        let Some(AnyRow::Grant(grant)) = row_of(self.in_force.as_deref()?, key) else { return None };
        match grant.scope {
            Scope::Device(id) if self.waiting_words.contains_key(&RowKey::Device(id)) => Some(id),
            _ => None,
        }
    }

    /// Has the rest of a mass of explicit ends take effect once it is small enough.
    pub(super) fn admit_waiting(&mut self, now: UnixMillis) -> Judged {
        if self.waiting_words.is_empty() {
            return Judged::default();
        }
        let position = self.recent_words.values().next().copied().unwrap_or(UNKNOWN_POSITION);
        let mut judged = self.put_words(SortedWords::default(), position, now);
        judged.ended |= judged.published;
        judged
    }

    /// Applies the explicit ends of `relation` that wait, for a person has accepted them.
    pub(super) fn accept_words(&mut self, relation: Relation, now: UnixMillis) -> usize {
        let mut sorted = SortedWords::default();
        let of_relation = |key: &&RowKey| key.relation() == relation;
        let keys = self.waiting_words.keys().filter(of_relation).cloned().collect();
        let ends = self.drain_waiting(keys);
        let rows = ends.len();
        let position = self.recent_words.values().next().copied().unwrap_or(UNKNOWN_POSITION);
        self.apply_ends(&mut sorted, ends, position, now);
        self.put_words(sorted, position, now);
        rows
    }

    /// Takes out the explicit ends of `keys`, which wait.
    fn drain_waiting(&mut self, keys: Vec<RowKey>) -> Vec<EndWord> {
        let Some(in_force) = self.in_force.clone() else { return Vec::new() };
        let mut ends = Vec::new();
        for key in keys {
            let Some(waiting) = self.waiting_words.remove(&key) else { continue };
            let after = match &waiting.word {
                Word::Row(change) => row_after(change.clone()).and_then(|(_, after)| after),
                _ => row_of(&in_force, &key).and_then(AnyRow::revoked),
            };
            ends.push(EndWord { key, after, kind: waiting.kind, word: waiting.word });
        }
        self.is_memory_changed |= !ends.is_empty();
        ends
    }

    /// Number of explicit ends that `relation` may still have now.
    pub(super) fn room_for_ends(&self, relation: Relation, now: UnixMillis) -> usize {
        if !self.config.enabled || self.config.prefer == Preference::Security {
            return usize::MAX;
        }
        let group = Group { relation, kind: ChangeKind::Ended, word: WordKind::Explicit };
        let recent = |ends: &&RecentEnds| {
            ends.relation == relation && ends.at.0 > now.0.saturating_sub(EXPLICIT_WINDOW_MS)
        };
        let used: usize = self.recent_ends.iter().filter(recent).map(|ends| ends.rows).sum();
        self.budget(group).saturating_sub(used)
    }

    /// Counts explicit ends. Those of one second are kept as one, so that many single ones stay few.
    pub(super) fn record_ends(&mut self, relation: Relation, rows: usize, now: UnixMillis) {
        let is_of_now = |ends: &&mut RecentEnds| now.0.saturating_sub(ends.at.0) < RECENT_ENDS_STEP_MS;
        let mut recent = self.recent_ends.iter_mut().rev().take_while(is_of_now);
        match recent.find(|ends| ends.relation == relation) {
            Some(ends) => ends.rows += rows,
            None => self.recent_ends.push_back(RecentEnds { relation, at: now, rows }),
        }
    }

    /// A row that had ended has come back by the store's own word, so there is room for another end.
    pub(super) fn take_back_end(&mut self, relation: Relation) {
        let newest =
            self.recent_ends.iter_mut().rev().find(|ends| ends.relation == relation && ends.rows > 0);
        if let Some(ends) = newest {
            ends.rows -= 1;
        }
    }

    /// Returns whether `rows` explicit ends of `relation` were announced, and counts them.
    pub(super) fn waiting_words_are_expected(&mut self, relation: Relation, rows: usize) -> bool {
        let is_expected = rows <= self.expected_ends(relation);
        if is_expected {
            self.spend_expected_ends(relation, rows);
        }
        is_expected
    }

    pub(super) fn expected_ends(&self, relation: Relation) -> usize {
        [ChangeKind::Ended, ChangeKind::Absent, ChangeKind::Narrowed]
            .into_iter()
            .map(|kind| {
                let left = |expected: &Expectation| expected.rows.saturating_sub(expected.used);
                let of_group =
                    |expected: &&Expectation| expected.relation == relation.name() && expected.kind == kind;
                self.expectations.iter().filter(of_group).map(left).sum::<usize>()
            })
            .sum()
    }

    pub(super) fn spend_expected_ends(&mut self, relation: Relation, mut rows: usize) {
        for kind in [ChangeKind::Ended, ChangeKind::Absent, ChangeKind::Narrowed] {
            let left = |expected: &Expectation| expected.rows.saturating_sub(expected.used);
            let of_group =
                |expected: &&Expectation| expected.relation == relation.name() && expected.kind == kind;
            let spent = rows.min(self.expectations.iter().filter(of_group).map(left).sum());
            self.spend_expected(relation, kind, spent);
            rows -= spent;
        }
    }
}

/// Position of words of which none is known any more.
const UNKNOWN_POSITION: Position =
    Position { store: crate::store::StoreId([0; 16]), timeline: 0, log: 0, mark: 0 };

/// Time in which explicit ends are counted as one, in ms.
const RECENT_ENDS_STEP_MS: i64 = 1_000;

#[cfg(test)]
mod tests {
    use crate::authz::{
        Change, Credential, Device, DeviceId, DeviceUuid, Grant, GrantId, KeyHash, PortRange, PrincipalId,
        Scope, UnixMillis,
    };
    use crate::config::Config;
    use crate::control::guard::Guard;
    use crate::store::{Position, Relation, RelationRows, StoreId, Word};

    const ROWS: i64 = 40;

    fn grant(n: i64) -> Grant {
        Grant {
            id: GrantId(n),
            principal: PrincipalId(1),
            scope: Scope::Device(DeviceId(n)),
            ports: PortRange::new(22, 22).unwrap(),
            expires_at: None,
            revoked: false,
        }
    }

    fn device(n: i64) -> Device {
        Device {
            id: DeviceId(n),
            uuid: DeviceUuid::parse(&format!("{n:032x}")).unwrap(),
            fleet: None,
            address: format!("10.0.0.{n}").parse().ok(),
            node: None,
            online: true,
            disputed: false,
        }
    }

    fn position(log: u64) -> Position {
        Position { store: StoreId([1; 16]), timeline: 0, log, mark: 0 }
    }

    /// A guard over forty devices, with a grant on each.
    fn guard(now: UnixMillis) -> Guard {
        let mut guard = Guard::new(&Config::default());
        let credential = Credential {
            key: KeyHash::from_bytes([1; 32]),
            principal: PrincipalId(1),
            expires_at: None,
            revoked: false,
        };
        for (relation, rows) in [
            (Relation::Credentials, RelationRows::Credentials(vec![credential])),
            (Relation::Grants, RelationRows::Grants((1..=ROWS).map(grant).collect())),
            (Relation::Devices, RelationRows::Devices((1..=ROWS).map(device).collect())),
        ] {
            guard.follow(relation, true);
            guard.answer(relation, rows, Vec::new(), position(1), now);
        }
        guard
    }

    /// What the outbox has of devices that are removed: their ends, and those of the grants on them.
    fn removed(devices: std::ops::RangeInclusive<i64>) -> Vec<Word> {
        let gone = devices.clone().map(|n| Word::Row(Change::DeviceGone(DeviceId(n))));
        gone.chain(devices.map(|n| Word::Row(Change::Grant(Grant { revoked: true, ..grant(n) })))).collect()
    }

    fn live(guard: &Guard) -> (usize, usize) {
        let in_force = guard.in_force().unwrap();
        let devices = (1..=ROWS).filter(|n| in_force.device(DeviceId(*n)).is_some()).count();
        let is_live = |n: &i64| in_force.grant(GrantId(*n)).is_some_and(|grant| !grant.revoked);
        (devices, (1..=ROWS).filter(is_live).count())
    }

    #[test]
    fn what_was_granted_on_a_device_whose_end_waits_waits_with_it() {
        let now = UnixMillis(1_000_000);
        let mut guard = guard(now);
        assert_eq!(live(&guard), (40, 40));
        guard.words(removed(1..=16), Vec::new(), position(2), now);
        assert_eq!(live(&guard), (24, 24), "within the budget of a minute");
        guard.words(removed(17..=24), Vec::new(), position(3), now);
        assert_eq!(live(&guard), (24, 24), "eight more are a mass, and so are the grants on them");

        let other = vec![Word::Row(Change::Grant(Grant { revoked: true, ..grant(30) }))];
        guard.words(other, Vec::new(), position(4), now);
        assert_eq!(live(&guard), (24, 23), "what was not written with the mass does not wait");
        let of_mass = vec![Word::Row(Change::Grant(Grant { revoked: true, ..grant(20) }))];
        guard.words(of_mass, Vec::new(), position(5), now);
        assert_eq!(live(&guard), (24, 22), "nor does a grant of it that is revoked by itself");

        let later = UnixMillis(now.0 + 61_000);
        guard.pass_time(later);
        assert_eq!(live(&guard), (16, 15));
    }

    #[test]
    fn ends_that_are_taken_back_make_room_for_others() {
        let now = UnixMillis(1_000_000);
        let mut guard = guard(now);
        guard.words(removed(1..=20), Vec::new(), position(2), now);
        guard.words(removed(21..=21), Vec::new(), position(3), now);
        assert_eq!(live(&guard), (20, 20), "one more than may end in a minute");

        let back = (1..=2).map(|n| Word::Row(Change::Device(device(n)))).collect();
        guard.words(back, Vec::new(), position(4), now);
        assert_eq!(live(&guard).0, 21, "two are back, and the one that waited has ended");
    }
}
