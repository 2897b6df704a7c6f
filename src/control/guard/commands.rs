//! What an operator may do: look at what is held, accept exactly that, announce a mass change.

use std::collections::HashSet;

use super::answers::{EXAMPLES_MAX, digest, text_digest};
use super::row::{AnyRow, row_of};
use super::{Guard, index};
use crate::authz::UnixMillis;
use crate::control::api::{
    Accepted, ChangeKind, ExpectRequest, Expectation, Group, Publication, Rule, WordKind,
};
use crate::control::commands::{EXPECTATIONS_MAX, GuardCommandError};
use crate::store::{Relation, RowKey, Word};

/// A row that is held or waits, for listings.
pub(in crate::control) struct HeldRow {
    pub(in crate::control) key: RowKey,
    pub(in crate::control) group: Option<Group>,
    pub(in crate::control) before: Option<AnyRow>,
    pub(in crate::control) after: Option<AnyRow>,
    pub(in crate::control) is_held: bool,
}

impl Guard {
    /// Every row in which the store's newest answer differs from what is in force, and that is kept.
    pub(in crate::control) fn rows_that_differ(&self) -> Vec<HeldRow> {
        let in_force = self.in_force.as_deref();
        let before = |key: &RowKey| in_force.and_then(|in_force| row_of(in_force, key));
        let mut rows = Vec::new();
        for relation in Relation::ALL {
            let state = &self.relations[index(relation)];
            for (key, row) in state.pending.iter() {
                // Where the relation as a whole waits, each of its changes does.
                let is_held = row.held.is_some() || (state.relation_hold.is_some() && row.kind.is_some());
                rows.push(HeldRow {
                    key: key.clone(),
                    group: row.kind.map(|kind| Group { relation, kind, word: WordKind::Inferred }),
                    before: before(key),
                    after: row.after.clone(),
                    is_held,
                });
            }
        }
        for (key, waiting) in &self.waiting_words {
            let before = before(key);
            let after = match &waiting.word {
                Word::Row(change) => super::row::row_after(change.clone()).and_then(|(_, after)| after),
                _ => before.clone().and_then(AnyRow::revoked),
            };
            let group = Group { relation: key.relation(), kind: ChangeKind::Ended, word: WordKind::Explicit };
            rows.push(HeldRow { key: key.clone(), group: Some(group), before, after, is_held: true });
        }
        rows
    }

    /// Digest of all that is held, as 16 hex digits; `None` where nothing is.
    pub(in crate::control) fn held_digest(&self) -> Option<String> {
        let mut sum = 0u128;
        let mut is_anything = false;
        for row in self.rows_that_differ().iter().filter(|row| row.is_held) {
            sum = sum.wrapping_add(digest(&row.key, row.after.as_ref()));
            is_anything = true;
        }
        for state in &self.relations {
            for overflow in state.overflow.values() {
                sum = sum.wrapping_add(overflow.digest);
                is_anything = true;
            }
            if let Some(hold) = &state.relation_hold {
                // The counts that were shown belong to what is accepted.
                sum = sum.wrapping_add(text_digest(&hold.figures));
                is_anything = true;
            }
        }
        is_anything |= self.doubted().contains(&true);
        is_anything.then(|| format!("{:016x}", (sum >> 64) as u64 ^ sum as u64))
    }

    /// Puts in force what is held with `expected` as its digest, all of it or one group.
    pub(in crate::control) fn accept(
        &mut self,
        expected: &str,
        group: Option<Group>,
        now: UnixMillis,
    ) -> Result<Accepted, GuardCommandError> {
        let digest = self.held_digest().ok_or(GuardCommandError::NothingHeld)?;
        if digest != expected {
            return Err(GuardCommandError::OtherDigest);
        }
        let is_meant = |of: Group| group.is_none_or(|group| group == of);
        let held: Vec<_> = self
            .rows_that_differ()
            .into_iter()
            .filter_map(|row| Some((row.group.filter(|of| row.is_held && is_meant(*of))?, row)))
            .collect();
        let mut groups: Vec<Group> = held.iter().map(|(group, _)| *group).collect();
        let mut overflows = Vec::new();
        for relation in Relation::ALL {
            for (kind, overflow) in &self.relations[index(relation)].overflow {
                let of = Group { relation, kind: *kind, word: WordKind::Inferred };
                if is_meant(of) {
                    groups.push(of);
                    overflows.push((relation, *kind, overflow.digest));
                }
            }
        }
        let relation_holds: Vec<(Relation, Rule)> = Relation::ALL
            .into_iter()
            .filter_map(|relation| {
                Some((relation, self.relations[index(relation)].relation_hold.as_ref()?.rule))
            })
            .filter(|(relation, _)| group.is_none_or(|group| group.relation == *relation))
            .collect();
        groups.sort_unstable();
        groups.dedup();
        let mut is_doubt_ended = false;
        for relation in Relation::ALL {
            if group.is_none_or(|group| group.relation == relation) {
                is_doubt_ended |= self.end_doubt(relation);
            }
        }
        if groups.is_empty() && relation_holds.is_empty() && !is_doubt_ended {
            return Err(group.map_or(GuardCommandError::NothingHeld, GuardCommandError::NotHeld));
        }
        self.is_memory_changed = true;
        for (relation, rule) in relation_holds {
            self.waived.insert((rule, relation));
            self.relations[index(relation)].relation_hold = None;
        }
        let mut rows = 0;
        for group in groups.iter().filter(|group| group.word == WordKind::Explicit) {
            rows += self.accept_words(group.relation, now);
        }
        let inferred = held.into_iter().filter(|(group, _)| group.word == WordKind::Inferred);
        let inferred = inferred.map(|(group, row)| (row.key, row.after, group.kind)).collect();
        rows += self.apply_accepted(inferred, now);
        for (relation, kind, digest) in overflows {
            self.accepted.insert((relation, kind), digest);
        }
        if self.in_force.is_none() {
            self.accept_first(now);
        }
        for relation in Relation::ALL {
            self.decide(relation, now);
        }
        let generation = self.generation().ok_or(GuardCommandError::NothingHeld)?;
        Ok(Accepted { groups, rows, generation })
    }

    /// Announces that so many rows will change, so that it is no incident.
    pub(in crate::control) fn expect(
        &mut self,
        request: &ExpectRequest,
        now: UnixMillis,
    ) -> Result<Expectation, GuardCommandError> {
        let relation = Relation::named(&request.relation)
            .ok_or_else(|| GuardCommandError::NoRelation(request.relation.clone()))?;
        if self.expectations.len() >= EXPECTATIONS_MAX {
            return Err(GuardCommandError::ExpectMany);
        }
        let until = UnixMillis(now.0.saturating_add(request.lasts.as_millis() as i64));
        let expectation = Expectation {
            relation: relation.name().to_owned(),
            kind: request.kind,
            rows: request.rows,
            used: 0,
            until,
        };
        self.expectations.push(expectation.clone());
        self.is_memory_changed = true;
        self.decide(relation, now);
        self.admit_waiting_words(relation, now);
        Ok(expectation)
    }

    /// Ends the newest announcement about `group`, and returns it.
    pub(in crate::control) fn clear_expectation(&mut self, group: Group) -> Option<Expectation> {
        let is_meant = |of: &Expectation| of.relation == group.relation.name() && of.kind == group.kind;
        let place = self.expectations.iter().rposition(is_meant)?;
        self.is_memory_changed = true;
        Some(self.expectations.remove(place))
    }

    pub(in crate::control) fn expectations(&self) -> &[Expectation] {
        &self.expectations
    }

    /// Publications so far, the newest first.
    pub(in crate::control) fn history(&self) -> Vec<Publication> {
        let steps = self.ledger.iter().flat_map(|(_, entry)| &entry.steps);
        let in_ledger: HashSet<u64> = steps.map(|step| step.generation.0).collect();
        let mut history: Vec<Publication> = self.history.iter().rev().cloned().collect();
        for publication in &mut history {
            publication.can_be_undone = in_ledger.contains(&publication.generation.0);
        }
        history
    }

    /// Explicit ends that waited take effect once they are announced.
    fn admit_waiting_words(&mut self, relation: Relation, now: UnixMillis) {
        let waiting = self.waiting_words.keys().filter(|key| key.relation() == relation).count();
        if waiting > 0 && self.waiting_words_are_expected(relation, waiting) {
            self.accept_words(relation, now);
        }
    }

    /// Names of some of the rows of a hold.
    pub(super) fn examples<'a>(keys: impl Iterator<Item = &'a RowKey>) -> Vec<String> {
        let mut names: Vec<String> = keys.take(EXAMPLES_MAX).map(ToString::to_string).collect();
        names.sort_unstable();
        names
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authz::{Device, DeviceId, DeviceUuid};
    use crate::config::{Bound, Config};
    use crate::store::{Position, RelationRows, StoreId};

    const NOW: UnixMillis = UnixMillis(1_000_000);

    fn answer(guard: &mut Guard, rows: RelationRows, relation: Relation) {
        let position = Position { store: StoreId([1; 16]), timeline: 0, log: 1, mark: 0 };
        guard.answer(relation, rows, Vec::new(), position, NOW);
    }

    fn devices(count: i64) -> RelationRows {
        let device = |number| Device {
            id: DeviceId(number),
            uuid: DeviceUuid::parse(&format!("{number:032x}")).unwrap(),
            fleet: None,
            address: None,
            node: None,
            online: false,
            disputed: false,
        };
        RelationRows::Devices((1..=count).map(device).collect())
    }

    #[test]
    fn a_digest_is_of_the_rows_that_wait_for_a_whole_relation_too() {
        let mut config = Config::default();
        config.authz.guard.bounds.devices = Bound { min: Some(3), max: None };
        let mut guard = Guard::new(&config);
        answer(&mut guard, RelationRows::Credentials(Vec::new()), Relation::Credentials);
        answer(&mut guard, RelationRows::Grants(Vec::new()), Relation::Grants);
        answer(&mut guard, devices(4), Relation::Devices);
        answer(&mut guard, devices(2), Relation::Devices);
        let of_two = guard.held_digest().unwrap();

        answer(&mut guard, devices(1), Relation::Devices);
        let of_one = guard.held_digest().unwrap();
        let refusal = guard.accept(&of_two, None, NOW).unwrap_err();
        assert!(matches!(refusal, GuardCommandError::OtherDigest), "{refusal}");
        assert_eq!(guard.in_force().unwrap().row_counts().devices, 4);

        let accepted = guard.accept(&of_one, None, NOW).unwrap();
        assert_eq!((accepted.rows, guard.in_force().unwrap().row_counts().devices), (3, 1));
    }
}
