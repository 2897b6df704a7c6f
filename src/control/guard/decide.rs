//! Which of the rows that differ take effect: by group, by budget, by canaries.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::budget::budget;
use super::pending::RelationHold;
use super::row::{AnyRow, change_to};
use super::{AppliedKind, AppliedRow, Guard, Judged, NetworkVerdict, PendingRow, index};
use crate::authz::{Change, DeviceUuid, Generation, UnixMillis};
use crate::config::Preference;
use crate::control::api::{ChangeKind, Expectation, Group, Rule, WordKind};
use crate::store::{Relation, RowKey};

impl Guard {
    /// Judges the rows of `relation` that differ, and puts in force what may be.
    pub(in crate::control) fn decide(&mut self, relation: Relation, now: UnixMillis) -> Judged {
        let Some(in_force) = self.in_force.clone() else { return Judged::default() };
        self.relations[index(relation)].decided_at = now;
        self.end_canary_waiver(relation, now);
        let contested = match relation {
            Relation::Devices => self.hold_contested_moves(&in_force),
            _ => HashSet::new(),
        };
        // Mends first: they make room.
        let mends = self.mends(relation, &contested);
        let mut judged = self.put_in_force(mends, super::BY_READ, now);
        if relation == Relation::Devices {
            self.follow_pending_devices();
            judged.published |= self.has_new_disputes();
        }
        let mut charged = self.charged(relation, &contested);
        if charged.is_empty() {
            self.end_canary_hold(relation);
            return judged;
        }
        let in_force = self.in_force.clone().unwrap_or(in_force);
        if self.config.enabled && !self.waived.contains(&(Rule::Canaries, relation)) {
            let changes: Vec<Change> =
                charged.iter().filter_map(|row| change_to(&row.key, row.after.clone())).collect();
            let next = in_force.apply(Generation(0), &changes);
            if let Err(wrong) = self.canaries.check(&next, &self.revocations, now) {
                let wrong_before = self.canaries.check(&in_force, &self.revocations, now).err();
                if wrong_before.is_none_or(|before| before.wrong.len() < wrong.wrong.len()) {
                    for row in charged.drain(..) {
                        self.relations[index(relation)].pending.hold(&row.key, Some(Rule::Canaries));
                    }
                    self.hold_by_canaries(relation, wrong, now);
                    return judged;
                }
            }
        }
        self.end_canary_hold(relation);
        let absences =
            charged.iter().filter(|row| row.kind.is_some_and(|kind| kind.kind == ChangeKind::Absent));
        self.counts.absences_honoured += absences.count() as u64;
        judged.published |= self.put_in_force(charged, super::BY_READ, now).published;
        judged
    }

    /// Rows that take effect in any case.
    fn mends(&self, relation: Relation, contested: &HashSet<RowKey>) -> Vec<AppliedRow> {
        let pending = self.relations[index(relation)].pending.iter();
        let free = pending.filter(|(key, row)| row.kind.is_none() && !contested.contains(*key));
        free.map(|(key, row)| AppliedRow { key: key.clone(), after: row.after.clone(), kind: None }).collect()
    }

    /// Rows that take effect, and count.
    fn charged(&mut self, relation: Relation, contested: &HashSet<RowKey>) -> Vec<AppliedRow> {
        let state = &self.relations[index(relation)];
        if state.relation_hold.as_ref().is_some_and(|hold| hold.rule != Rule::Canaries) {
            return Vec::new();
        }
        let mut groups: BTreeMap<ChangeKind, Vec<RowKey>> = BTreeMap::new();
        for (key, row) in state.pending.iter() {
            if let Some(kind) = row.kind.filter(|_| !contested.contains(key)) {
                groups.entry(kind).or_default().push(key.clone());
            }
        }
        let mut charged = Vec::new();
        for (kind, keys) in groups {
            let keys = self.without_rejected(relation, keys);
            let admitted = self.admit(relation, kind, keys);
            charged.extend(admitted);
        }
        self.without_claimed(charged)
    }

    /// Leaves out devices whose uuid another device still has: it goes first, or the device waits for it.
    fn without_claimed(&self, mut rows: Vec<AppliedRow>) -> Vec<AppliedRow> {
        let Some(in_force) = &self.in_force else { return rows };
        loop {
            let left: HashMap<RowKey, Option<DeviceUuid>> =
                rows.iter().map(|row| (row.key.clone(), row.after.as_ref().and_then(AnyRow::uuid))).collect();
            let before = rows.len();
            rows.retain(|row| {
                let Some(uuid) = row.after.as_ref().and_then(AnyRow::uuid) else { return true };
                let Some(holder) = in_force.device_named(uuid) else { return true };
                let holder = RowKey::Device(holder.id);
                holder == row.key || left.get(&holder).is_some_and(|kept| *kept != Some(uuid))
            });
            if rows.len() == before {
                return rows;
            }
        }
    }

    /// Leaves out the rows that were undone and that the store shows as before, and those that the peers doubt.
    fn without_rejected(&mut self, relation: Relation, keys: Vec<RowKey>) -> Vec<RowKey> {
        let pending = &mut self.relations[index(relation)].pending;
        let rejected = &self.rejected;
        keys.into_iter()
            .filter(|key| {
                let Some(row) = pending.get(key) else { return false };
                if row.held == Some(Rule::Peers) {
                    return false;
                }
                let undone = rejected.get(key).filter(|undone| undone.answer == row.after);
                if let Some(undone) = undone {
                    pending.hold(key, Some(undone.rule));
                }
                undone.is_none()
            })
            .collect()
    }

    /// Returns the rows of one kind that take effect, and holds the others.
    fn admit(&mut self, relation: Relation, kind: ChangeKind, keys: Vec<RowKey>) -> Vec<AppliedRow> {
        let group = Group { relation, kind, word: WordKind::Inferred };
        let state = &self.relations[index(relation)];
        let is_counted_already = |key: &&RowKey| self.ledger.kind(key) == Some(kind);
        let overlap = keys.iter().filter(is_counted_already).count();
        let used = self.ledger.count(relation, kind) - overlap;
        let rows = keys.len() + state.overflow.get(&kind).map_or(0, |overflow| overflow.rows);
        let room = self.budget(group).saturating_sub(used);
        let expected = self.expected(relation, kind);
        let is_end = matches!(kind, ChangeKind::Ended | ChangeKind::Absent | ChangeKind::Narrowed);
        let is_open = !self.config.enabled || (is_end && self.config.prefer == Preference::Security);
        let network = self.network_verdict(relation, kind).clone();
        let admitted: Vec<RowKey> = if is_open || rows <= room {
            keys
        } else if rows <= room + expected {
            let applied = self.apply(relation, kind, keys, Charge::Announced);
            // Absences count when they take effect, and not before a second answer confirms them.
            self.spend_expected(relation, kind, applied.len().min(rows - room));
            return applied;
        } else if network == NetworkVerdict::Silent && !state.overflow.contains_key(&kind) {
            return self.apply(relation, kind, keys, Charge::Explained);
        } else {
            // A mass that is held stays held; what comes later on its own is judged on its own.
            let pending = &state.pending;
            let is_fresh = |key: &&RowKey| pending.get(key).is_some_and(|row| row.held.is_none());
            let has_held =
                [Rule::Budget, Rule::Location].iter().any(|rule| pending.count(kind, Some(*rule)) > 0)
                    || state.overflow.contains_key(&kind);
            let fresh: HashSet<RowKey> = keys.iter().filter(is_fresh).cloned().collect();
            let (fresh, masses): (Vec<RowKey>, Vec<RowKey>) = if has_held && fresh.len() <= room {
                keys.into_iter().partition(|key| fresh.contains(key))
            } else {
                (Vec::new(), keys)
            };
            let answers = matches!(network, NetworkVerdict::Answers { .. });
            let rule = if answers { Rule::Location } else { Rule::Budget };
            self.hold(relation, &masses, rule);
            fresh
        };
        self.apply(relation, kind, admitted, Charge::Budget)
    }

    /// Turns keys into the rows to apply, but for absences that no second answer has confirmed.
    fn apply(
        &mut self,
        relation: Relation,
        kind: ChangeKind,
        keys: Vec<RowKey>,
        charge: Charge,
    ) -> Vec<AppliedRow> {
        let is_guarded = self.config.enabled;
        let state = &mut self.relations[index(relation)];
        let reads = state.reads;
        let mut applied = Vec::with_capacity(keys.len());
        for key in keys {
            state.pending.hold(&key, None);
            let Some(row) = state.pending.get(&key) else { continue };
            if is_guarded && kind == ChangeKind::Absent && row.first_read >= reads {
                continue;
            }
            let is_charged = is_guarded && charge == Charge::Budget;
            let kind = AppliedKind { kind, word: WordKind::Inferred, is_charged };
            applied.push(AppliedRow { key, after: row.after.clone(), kind: Some(kind) });
        }
        applied
    }

    fn hold(&mut self, relation: Relation, keys: &[RowKey], rule: Rule) {
        let pending = &mut self.relations[index(relation)].pending;
        let mut is_new = false;
        for key in keys {
            is_new |= pending.hold(key, Some(rule)) == Some(None);
        }
        if is_new {
            self.is_memory_changed = true;
            self.count_hold(rule);
        }
    }

    pub(super) fn count_hold(&mut self, rule: Rule) {
        if let Some(place) = Rule::ALL.iter().position(|known| *known == rule) {
            self.counts.holds[place] += 1;
        }
    }

    /// Number of rows of `group` that may change within a window.
    pub(super) fn budget(&self, group: Group) -> usize {
        budget(group, self.live.rows(group.relation, group.kind), &self.config.budgets)
    }

    /// Number of rows of `group` that have changed within the window.
    pub(super) fn used(&self, group: Group) -> usize {
        self.ledger.count(group.relation, group.kind)
    }

    pub(super) fn expected(&self, relation: Relation, kind: ChangeKind) -> usize {
        let of_group =
            |expectation: &&Expectation| expectation.relation == relation.name() && expectation.kind == kind;
        let left = |expectation: &Expectation| expectation.rows.saturating_sub(expectation.used);
        self.expectations.iter().filter(of_group).map(left).sum()
    }

    pub(super) fn spend_expected(&mut self, relation: Relation, kind: ChangeKind, mut rows: usize) {
        for expectation in &mut self.expectations {
            if expectation.relation == relation.name() && expectation.kind == kind {
                let spent = rows.min(expectation.rows.saturating_sub(expectation.used));
                expectation.used += spent;
                rows -= spent;
            }
        }
    }

    pub(super) fn network_verdict(&self, relation: Relation, kind: ChangeKind) -> &NetworkVerdict {
        match (relation, kind) {
            (Relation::Devices, ChangeKind::Unlocated) => &self.network.unlocated,
            (Relation::Devices, ChangeKind::Moved) => &self.network.moved,
            _ => &NetworkVerdict::Unknown,
        }
    }

    /// The network's last answer about a mass of `kind`.
    pub(in crate::control) fn network_verdict_on(&self, kind: ChangeKind) -> &NetworkVerdict {
        self.network_verdict(Relation::Devices, kind)
    }

    /// What the network says of the devices that lost their location, or moved, in a mass.
    pub(in crate::control) fn set_network_verdict(
        &mut self,
        kind: ChangeKind,
        verdict: NetworkVerdict,
        now: UnixMillis,
    ) -> Judged {
        let is_silent = verdict == NetworkVerdict::Silent;
        match kind {
            ChangeKind::Moved => self.network.moved = verdict,
            _ => self.network.unlocated = verdict,
        }
        let judged = self.decide(Relation::Devices, now);
        if is_silent {
            // Silence counts once: devices that come back and are lost again have been there in between.
            self.network = super::NetworkVerdicts::default();
        }
        judged
    }

    /// Devices of `kind` that are held for their number, with their rows in force.
    pub(in crate::control) fn held_devices(&self, kind: ChangeKind) -> Vec<crate::authz::Device> {
        let Some(in_force) = &self.in_force else { return Vec::new() };
        let held = self.relations[index(Relation::Devices)].pending.iter();
        let of_kind = |(_, row): &(&RowKey, &PendingRow)| {
            row.kind == Some(kind) && matches!(row.held, Some(Rule::Budget | Rule::Location))
        };
        let device = |(key, _): (&RowKey, &PendingRow)| match key {
            RowKey::Device(id) => in_force.device(*id),
            _ => None,
        };
        held.filter(of_kind).filter_map(device).collect()
    }

    pub(super) fn hold_by_canaries(
        &mut self,
        relation: Relation,
        wrong: super::canaries::WrongAnswers,
        now: UnixMillis,
    ) {
        let state = &mut self.relations[index(relation)];
        let before = state.relation_hold.take().filter(|hold| hold.rule == Rule::Canaries);
        let is_new = before.is_none();
        let since = before.map_or(now, |hold| hold.since);
        let (figures, examples) = (wrong.figures(), wrong.wrong);
        state.relation_hold = Some(RelationHold { rule: Rule::Canaries, figures, examples, since });
        if is_new {
            self.count_hold(Rule::Canaries);
        }
    }

    /// Ends what an operator waived, once what is in force answers the canaries rightly again.
    fn end_canary_waiver(&mut self, relation: Relation, now: UnixMillis) {
        let waiver = (Rule::Canaries, relation);
        let Some(in_force) = self.in_force.as_ref().filter(|_| self.waived.contains(&waiver)) else { return };
        if self.canaries.check(in_force, &self.revocations, now).is_ok() {
            self.waived.remove(&waiver);
        }
    }

    fn end_canary_hold(&mut self, relation: Relation) {
        let hold = &mut self.relations[index(relation)].relation_hold;
        if hold.as_ref().is_some_and(|hold| hold.rule == Rule::Canaries) {
            *hold = None;
        }
    }

    /// Applies rows that a person has accepted: they are the baseline from now on.
    pub(super) fn apply_accepted(
        &mut self,
        rows: Vec<(RowKey, Option<AnyRow>, ChangeKind)>,
        now: UnixMillis,
    ) -> usize {
        let ended: Vec<Change> = rows.iter().filter_map(|(key, _, _)| change_to(key, None)).collect();
        for (key, after, _) in &rows {
            self.rejected.remove(key);
            if after.is_some() && self.tombstones.remove(key) {
                // A person says that it is live.
                self.waiting_words.remove(key);
            }
        }
        self.revive_in_revocations(&ended);
        let kind = |kind| Some(AppliedKind { kind, word: WordKind::Inferred, is_charged: false });
        let applied = rows
            .into_iter()
            .map(|(key, after, of)| AppliedRow { key, after, kind: kind(of) })
            .collect::<Vec<_>>();
        let count = applied.len();
        self.put_in_force(applied, super::BY_ACCEPT, now);
        count
    }
}

/// How rows that take effect are counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Charge {
    Budget,
    /// An operator has announced them.
    Announced,
    /// The network says that it is so.
    Explained,
}
