//! The first answers of a node that has no memory, and what its peers say of them.
//!
//! Such a node has nothing to compare a first answer with but its peers' summaries. While they object to a relation, rows
//! on which no peer agrees wait, and rows that may be missing are no reason to refuse anybody. It ends once the peers
//! agree, once an operator accepts it, or after [`HELD_FOR_MAX`].

use super::budget::budget;
use super::pending::RelationHold;
use super::row::AnyRow;
use super::{Guard, Judged, index};
use crate::authz::{Generation, Snapshot, UnixMillis};
use crate::control::api::{ChangeKind, Group, HoldStatus, Rule, WordKind};
use crate::control::neighbours::{HELD_FOR_MAX, NodeSummary, PeerObjection, PeerSummaries, objections};
use crate::store::Relation;

/// See the module. The default is that of a node with memory, or with nobody to ask.
#[derive(Default)]
pub(super) struct FirstAnswers {
    peers: PeersSay,
    /// Counts and checksums of the newest answers.
    newest: NodeSummary,
    relations: [FirstAnswer; 3],
}

#[derive(Default)]
enum PeersSay {
    #[default]
    Nothing,
    /// They are being asked; nothing is published before they have answered.
    Awaited,
    Said(PeerSummaries),
}

#[derive(Default)]
enum FirstAnswer {
    #[default]
    Believed,
    Doubted(Doubt),
    /// The doubt is over: the next answer brings what was held back.
    Awaited,
}

struct Doubt {
    hold: RelationHold,
    /// Rows on which a peer agrees are doubted as well: where devices are is in no summary.
    is_of_places: bool,
}

/// What a doubt makes of a row that is not in force yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum FirstRow {
    /// It is judged as any other row.
    Ordinary,
    /// It is as good as a row of the first publication.
    Undoubted,
    Doubted,
}

impl Guard {
    /// Publishes nothing before [`hear_peers`](Self::hear_peers). To be called on a start without memory.
    pub(in crate::control) fn await_peers(&mut self) {
        self.first_answers.peers = PeersSay::Awaited;
    }

    /// The peers' answers, of which there may be none.
    pub(in crate::control) fn hear_peers(&mut self, said: PeerSummaries, now: UnixMillis) -> Judged {
        let is_first = matches!(self.first_answers.peers, PeersSay::Awaited);
        if said.summaries.is_empty() {
            // Peers that are silent have not agreed.
            if is_first {
                self.first_answers.peers = PeersSay::Nothing;
            }
        } else {
            self.first_answers.peers = PeersSay::Said(said);
        }
        if self.in_force.is_none() {
            return if is_first { self.publish_first(now) } else { Judged::default() };
        }
        for relation in Relation::ALL {
            self.doubt_again(relation, now);
        }
        Judged::default()
    }

    /// Relations of which rows may be missing in what is in force.
    pub(in crate::control) fn doubted(&self) -> [bool; 3] {
        Relation::ALL.map(|relation| self.doubt(relation).is_some())
    }

    /// Returns whether rows of the first answers are still kept back, so that what is in force is no memory yet.
    pub(in crate::control) fn is_first_incomplete(&self) -> bool {
        Relation::ALL.into_iter().any(|relation| self.awaits_first(relation))
    }

    /// Number of questions whose answers the operator knows.
    pub(in crate::control) fn canary_count(&self) -> usize {
        self.canaries.len()
    }

    pub(super) fn awaits_first(&self, relation: Relation) -> bool {
        !matches!(self.first_answers.relations[index(relation)], FirstAnswer::Believed)
    }

    /// Returns whether the first answers wait for the peers.
    pub(in crate::control) fn is_awaiting_peers(&self) -> bool {
        matches!(self.first_answers.peers, PeersSay::Awaited)
    }

    /// Leaves the rows out of the first publication that no peer has, and holds them.
    pub(super) fn without_doubted(&mut self, first: Snapshot, now: UnixMillis) -> Snapshot {
        if !matches!(self.first_answers.peers, PeersSay::Said(_)) {
            return first;
        }
        self.first_answers.newest = NodeSummary::of(&first, &self.revocations);
        for relation in Relation::ALL {
            self.first_answers.relations[index(relation)] = self.first_answer(relation, now);
        }
        let mut parts = Relation::ALL.map(|_| None);
        for relation in Relation::ALL.into_iter().filter(|relation| self.doubt(*relation).is_some()) {
            let is_kept = |row: AnyRow| self.first_row(relation, &row, now) != FirstRow::Doubted;
            let generation = Generation(0);
            let part = match relation {
                Relation::Credentials => {
                    let rows = first.credentials().filter(|row| is_kept(AnyRow::Credential(*row)));
                    Snapshot::build(generation, rows.collect(), Vec::new(), Vec::new())
                }
                Relation::Grants => {
                    let rows = first.grants().filter(|row| is_kept(AnyRow::Grant(*row)));
                    Snapshot::build(generation, Vec::new(), rows.collect(), Vec::new())
                }
                Relation::Devices => {
                    let rows = first.devices().filter(|row| is_kept(AnyRow::Device(row.clone())));
                    Snapshot::build(generation, Vec::new(), Vec::new(), rows.collect())
                }
            };
            parts[index(relation)] = Some(part);
        }
        let [credentials, grants, devices] = parts.each_ref().map(|part| part.as_ref().unwrap_or(&first));
        Snapshot::of_parts(first.generation(), credentials, grants, devices)
    }

    /// A whole answer about `relation` has come, which the peers may doubt no more.
    pub(super) fn compare_with_peers(&mut self, relation: Relation, answer: &Snapshot, now: UnixMillis) {
        if self.doubt(relation).is_some() {
            let newest = NodeSummary::of(answer, &self.revocations);
            self.first_answers.newest.relations[index(relation)] = newest.sketch(relation).clone();
            self.doubt_again(relation, now);
        }
    }

    /// The answer about `relation` that brings what was held back has been judged.
    pub(super) fn complete_first(&mut self, relation: Relation) {
        let first = &mut self.first_answers.relations[index(relation)];
        if matches!(first, FirstAnswer::Awaited) && self.relations[index(relation)].relation_hold.is_none() {
            *first = FirstAnswer::Believed;
            // A state is due, which lacks nothing now.
            self.is_memory_changed = true;
        }
    }

    /// What to do with a row of an answer that is not in force.
    pub(super) fn first_row(&self, relation: Relation, row: &AnyRow, now: UnixMillis) -> FirstRow {
        let doubt = match &self.first_answers.relations[index(relation)] {
            FirstAnswer::Believed => return FirstRow::Ordinary,
            FirstAnswer::Awaited if self.relations[index(relation)].relation_hold.is_some() => {
                return FirstRow::Ordinary;
            }
            FirstAnswer::Awaited => return FirstRow::Undoubted,
            FirstAnswer::Doubted(doubt) => doubt,
        };
        let PeersSay::Said(said) = &self.first_answers.peers else { return FirstRow::Undoubted };
        let ours = self.first_answers.newest.sketch(relation);
        let differs = |theirs: &NodeSummary| match row {
            AnyRow::Credential(row) => ours.doubts_credential(row, theirs.sketch(relation)),
            AnyRow::Grant(row) => ours.doubts_grant(row, theirs.sketch(relation)),
            AnyRow::Device(row) => ours.doubts_device(row, theirs.sketch(relation)),
        };
        let is_doubted = doubt.is_of_places || said.summaries.iter().all(|(_, theirs)| differs(theirs));
        // What gives no right can be put in force by anybody.
        if is_doubted && row.is_live(now) { FirstRow::Doubted } else { FirstRow::Undoubted }
    }

    /// Ends doubts that have lasted as long as they may.
    pub(super) fn end_old_doubts(&mut self, now: UnixMillis) {
        for relation in Relation::ALL {
            let is_old = |doubt: &Doubt| {
                now.0.saturating_sub(doubt.hold.since.0)
                    >= i64::try_from(HELD_FOR_MAX.as_millis()).unwrap_or(i64::MAX)
            };
            if self.doubt(relation).is_some_and(is_old) {
                self.end_doubt(relation);
            }
        }
    }

    /// Ends a doubt; returns whether there was one.
    pub(super) fn end_doubt(&mut self, relation: Relation) -> bool {
        let is_doubted = self.doubt(relation).is_some();
        if is_doubted {
            self.first_answers.relations[index(relation)] = FirstAnswer::Awaited;
        }
        is_doubted
    }

    pub(super) fn peers_hold(&self, relation: Relation) -> Option<HoldStatus> {
        let hold = &self.doubt(relation)?.hold;
        let state = &self.relations[index(relation)];
        let held = || state.pending.iter().filter(|(_, row)| row.held == Some(Rule::Peers));
        let too_many = state.overflow.get(&ChangeKind::Gained);
        Some(HoldStatus {
            rule: Rule::Peers,
            group: None,
            relation: Some(relation.name().to_owned()),
            rows: too_many.map_or_else(|| held().count(), |overflow| overflow.rows),
            figures: hold.figures.clone(),
            examples: Self::examples(held().map(|(key, _)| key)),
            since: hold.since,
            advice: format!(
                "wrong: mend the query or the data, and it heals by itself; right: `sluicegate authz diff`, then `accept` \
                 with its digest, or wait: the peers hold it for {} at most",
                humantime::format_duration(HELD_FOR_MAX)
            ),
        })
    }

    fn doubt(&self, relation: Relation) -> Option<&Doubt> {
        match &self.first_answers.relations[index(relation)] {
            FirstAnswer::Doubted(doubt) => Some(doubt),
            FirstAnswer::Believed | FirstAnswer::Awaited => None,
        }
    }

    /// Compares the newest answer about a relation that is doubted with what the peers have said last.
    fn doubt_again(&mut self, relation: Relation, now: UnixMillis) {
        if self.doubt(relation).is_none() {
            return;
        }
        match self.objection(relation) {
            None => drop(self.end_doubt(relation)),
            Some(objection) => self.doubt_by(relation, objection, now),
        }
    }

    fn first_answer(&mut self, relation: Relation, now: UnixMillis) -> FirstAnswer {
        let Some(objection) = self.objection(relation) else { return FirstAnswer::Believed };
        self.doubt_by(relation, objection, now);
        self.count_hold(Rule::Peers);
        std::mem::take(&mut self.first_answers.relations[index(relation)])
    }

    fn doubt_by(&mut self, relation: Relation, objection: PeerObjection, now: UnixMillis) {
        let since = self.doubt(relation).map_or(now, |doubt| doubt.hold.since);
        let PeerObjection { figures, is_of_places, .. } = objection;
        let hold = RelationHold { rule: Rule::Peers, figures, examples: Vec::new(), since };
        self.first_answers.relations[index(relation)] = FirstAnswer::Doubted(Doubt { hold, is_of_places });
    }

    fn objection(&self, relation: Relation) -> Option<PeerObjection> {
        let PeersSay::Said(said) = &self.first_answers.peers else { return None };
        let allowed = |relation, rows| {
            let group = Group { relation, kind: ChangeKind::Absent, word: WordKind::Inferred };
            budget(group, rows, &self.config.budgets)
        };
        let objections = objections(&self.first_answers.newest, said, allowed);
        objections.into_iter().find(|objection| objection.relation == relation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authz::{
        Credential, Device, DeviceId, DeviceUuid, Grant, GrantId, KeyHash, PortRange, PrincipalId, Scope,
    };
    use crate::config::Config;
    use crate::store::{Position, RelationRows, StoreId};

    const START: UnixMillis = UnixMillis(1_800_000_000_000);
    const GRANTS: usize = Relation::Grants as usize;

    fn grants(ids: impl Iterator<Item = i64>) -> Vec<Grant> {
        let grant = |id| Grant {
            id: GrantId(id),
            principal: PrincipalId(1),
            scope: Scope::Device(DeviceId(id)),
            ports: PortRange::new(1, 65535).unwrap(),
            expires_at: None,
            revoked: false,
        };
        ids.map(grant).collect()
    }

    fn devices(ids: impl Iterator<Item = i64>) -> Vec<Device> {
        let device = |id| Device {
            id: DeviceId(id),
            uuid: DeviceUuid::parse(&format!("{id:032x}")).unwrap(),
            fleet: None,
            address: Some(std::net::Ipv4Addr::from(0x0a00_0000 + id as u32).into()),
            node: None,
            online: true,
            disputed: false,
        };
        ids.map(device).collect()
    }

    fn credential() -> Credential {
        let key = KeyHash::of_token(b"token");
        Credential { key, principal: PrincipalId(1), expires_at: None, revoked: false }
    }

    fn all_grants() -> Vec<Grant> {
        grants(1..=300)
    }

    fn summary(grants: Vec<Grant>) -> NodeSummary {
        let snapshot = Snapshot::build(Generation(7), vec![credential()], grants, devices(1..=300));
        NodeSummary::of(&snapshot, &crate::authz::Revocations::default())
    }

    fn said(summaries: Vec<NodeSummary>) -> PeerSummaries {
        let named =
            summaries.into_iter().enumerate().map(|(n, summary)| (format!("node-{n}").into(), summary));
        PeerSummaries { summaries: named.collect(), silent: Vec::new() }
    }

    /// A guard, and the time and position of its next answer.
    struct Fresh {
        guard: Guard,
        answers: u64,
        now: UnixMillis,
    }

    impl Fresh {
        /// A node without memory whose first answer has these grants.
        fn new(first: Vec<Grant>, peers: PeerSummaries) -> Self {
            let mut guard = Guard::new(&Config::default());
            guard.await_peers();
            let mut fresh = Self { guard, answers: 0, now: START };
            fresh.answer(RelationRows::Credentials(vec![credential()]));
            fresh.answer(RelationRows::Devices(devices(1..=300)));
            fresh.answer(RelationRows::Grants(first));
            assert!(fresh.guard.in_force().is_none(), "it waits for the peers");
            fresh.guard.hear_peers(peers, START);
            fresh
        }

        fn answer(&mut self, rows: RelationRows) {
            self.answers += 1;
            self.now.0 += 1_000;
            let position = Position { store: StoreId([0; 16]), timeline: 0, log: self.answers, mark: 0 };
            let relation = match &rows {
                RelationRows::Credentials(_) => Relation::Credentials,
                RelationRows::Grants(_) => Relation::Grants,
                _ => Relation::Devices,
            };
            self.guard.answer(relation, rows, Vec::new(), position, self.now);
        }

        fn grants(&self) -> usize {
            self.guard.in_force().unwrap().row_counts().grants
        }

        fn holds(&self) -> Vec<HoldStatus> {
            self.guard.status().holds
        }
    }

    #[test]
    fn a_first_answer_to_which_no_peer_objects_is_in_force_at_once() {
        for peers in [said(vec![]), said(vec![summary(all_grants())]), said(vec![summary(grants(4..=300))])] {
            let fresh = Fresh::new(all_grants(), peers);
            assert_eq!((fresh.grants(), fresh.holds()), (300, vec![]));
            assert!(!fresh.guard.is_first_incomplete());
        }
    }

    #[test]
    fn rows_that_the_first_answer_lacks_are_doubted_until_it_is_mended() {
        let mut fresh = Fresh::new(grants(1..=150), said(vec![summary(all_grants())]));
        assert_eq!(fresh.guard.doubted(), [false, true, false]);
        let holds = fresh.holds();
        assert_eq!((holds.len(), holds[0].rule), (1, Rule::Peers));
        let figures = &holds[0].figures;
        assert!(figures.contains("has 150 grants, but node-0 has 300 rows"), "{figures}");
        assert!(fresh.grants() > 100, "rows on which the peer agrees are in force: {}", fresh.grants());
        assert!(fresh.guard.is_first_incomplete());
        assert!(fresh.guard.wants_read(Relation::Grants), "it is read again without being asked");

        // The same answer again changes nothing.
        fresh.answer(RelationRows::Grants(grants(1..=150)));
        assert_eq!(fresh.guard.doubted(), [false, true, false]);

        fresh.answer(RelationRows::Grants(all_grants()));
        assert_eq!((fresh.grants(), fresh.holds(), fresh.guard.doubted()), (300, vec![], [false; 3]));
        assert!(!fresh.guard.is_first_incomplete());
    }

    #[test]
    fn rows_that_no_peer_has_wait_and_take_effect_once_they_are_accepted() {
        let mut fresh = Fresh::new(grants(1..=600), said(vec![summary(all_grants())]));
        let in_force = fresh.grants();
        assert!((100..400).contains(&in_force), "{in_force}");
        let held = fresh.guard.rows_that_differ();
        assert!(held.is_empty(), "they are known with the next answer");
        fresh.answer(RelationRows::Grants(grants(1..=600)));
        assert_eq!(fresh.holds()[0].rows, 600 - in_force);
        assert_eq!(fresh.grants(), in_force);

        let digest = fresh.guard.held_digest().unwrap();
        let accepted = fresh.guard.accept(&digest, None, fresh.now).unwrap();
        assert_eq!((accepted.rows, fresh.grants(), fresh.holds()), (600 - in_force, 600, vec![]));
        fresh.answer(RelationRows::Grants(grants(1..=600)));
        assert_eq!((fresh.grants(), fresh.guard.is_first_incomplete()), (600, false));
    }

    #[test]
    fn a_peer_that_is_wrong_holds_for_ten_minutes_at_most() {
        let mut fresh = Fresh::new(all_grants(), said(vec![summary(vec![])]));
        assert_eq!(fresh.guard.doubted(), [false, true, false]);
        let almost = UnixMillis(START.0 + HELD_FOR_MAX.as_millis() as i64 - 1);
        fresh.guard.pass_time(almost);
        assert_eq!(fresh.guard.doubted(), [false, true, false]);
        fresh.guard.pass_time(UnixMillis(almost.0 + 1));
        assert_eq!((fresh.guard.doubted(), fresh.holds()), ([false; 3], vec![]));
        fresh.answer(RelationRows::Grants(all_grants()));
        assert_eq!((fresh.grants(), fresh.guard.is_first_incomplete()), (300, false));
    }

    #[test]
    fn a_hold_ends_when_the_peers_agree_and_not_when_they_are_silent() {
        let mut fresh = Fresh::new(grants(1..=150), said(vec![summary(all_grants())]));
        fresh.guard.hear_peers(said(vec![]), fresh.now);
        assert!(fresh.guard.doubted()[GRANTS]);
        fresh.guard.hear_peers(said(vec![summary(grants(1..=150))]), fresh.now);
        assert_eq!((fresh.guard.doubted(), fresh.holds()), ([false; 3], vec![]));
        fresh.answer(RelationRows::Grants(grants(1..=150)));
        assert_eq!((fresh.grants(), fresh.guard.is_first_incomplete()), (150, false));
    }

    #[test]
    fn ends_of_rows_in_force_count_while_the_peers_object() {
        let mut fresh = Fresh::new(grants(1..=150), said(vec![summary(all_grants())]));
        let is_in_force = |fresh: &Fresh, id| fresh.guard.in_force().unwrap().grant(GrantId(id)).is_some();
        let gone = (1..=150).find(|id| is_in_force(&fresh, *id)).unwrap();
        for _ in 0..2 {
            fresh.answer(RelationRows::Grants(grants((1..=150).filter(|id| *id != gone))));
        }
        assert!(!is_in_force(&fresh, gone));
        assert!(fresh.guard.doubted()[GRANTS]);
    }

    #[test]
    fn where_peers_hold_moves_no_device_is_believed_to_be_where_the_store_says() {
        let holding = NodeSummary { held: vec![("devices.moved".to_owned(), 200)], ..summary(all_grants()) };
        let fresh = Fresh::new(all_grants(), said(vec![holding]));
        assert_eq!((fresh.guard.doubted(), fresh.grants()), ([false, false, true], 300));
        assert_eq!(fresh.guard.in_force().unwrap().row_counts().devices, 0);
    }
}
