//! Questions that show whether a wrong row is in force: those that the true row and the wrong one decide differently.

use std::collections::{BTreeMap, HashMap, HashSet};

use sluicegate::authz::{DeviceUuid, KeyHash, PrincipalId, Scope, UnixMillis};
use sluicegate::control::api::ChangeKind;
use sluicegate::store::Relation;

use super::law;
use super::rights::{Installation, PORTS_AROUND, Question, Rights, RightsKey, RightsRow, RowChange, Verdict};
use super::store::AnswerRow;

/// A row that an answer has wrong, and the questions that it would decide wrongly.
pub struct Witness {
    pub key: RightsKey,
    pub kinds: Vec<ChangeKind>,
    pub questions: Vec<Question>,
}

/// Everything that is asked while a fault lasts.
pub struct Inquiry {
    /// One question for each row that nobody touched and for each that somebody did.
    pub base: Vec<(RightsKey, Question)>,
    pub witnesses: Vec<Witness>,
    /// Groups that the fault touches.
    pub kinds: Vec<ChangeKind>,
    /// The decisions that are right.
    truth: HashMap<Question, Verdict>,
    /// Rows of questions that are not judged: they are being ended.
    spared: HashSet<KeyHash>,
    spared_devices: HashSet<DeviceUuid>,
    /// Devices that are offline: in truth, or as an answer has it.
    away: HashSet<DeviceUuid>,
}

/// Rows that are decided wrongly.
#[derive(Clone, Default, Debug)]
pub struct Wrong {
    pub rows: usize,
    /// Wrong rows by their kinds.
    pub by_kind: BTreeMap<ChangeKind, usize>,
    /// Rows for which a client gets 503 because it cannot be told whose an address is.
    pub disputed: usize,
    /// Questions that lead to the address of another device.
    pub misrouted: Vec<String>,
    /// Questions that are decided wrongly.
    pub questions: Vec<Question>,
    /// Devices at an address whose true owner is offline, in truth or as the answer has it. No one can tell that from a VPN
    /// that gives an address to the next one; it stays within the budget of moves.
    pub inherited: usize,
    /// A few of the wrong decisions.
    pub examples: Vec<String>,
}

/// The differences between the rights and an answer. An answer that there is none of changes nothing.
pub fn changes(rights: &Rights, relation: Relation, answer: Option<&[AnswerRow]>) -> Vec<RowChange> {
    let Some(answer) = answer else { return Vec::new() };
    let mut given: HashMap<RightsKey, Option<RightsRow>> = HashMap::new();
    for row in answer {
        match row {
            Ok(row) => {
                given
                    .entry(row.key())
                    .and_modify(|earlier| {
                        if earlier.as_ref() != Some(row) {
                            *earlier = None;
                        }
                    })
                    .or_insert_with(|| Some(row.clone()));
            }
            Err(Some(key)) => drop(given.insert(*key, None)),
            Err(None) => {}
        }
    }
    let mut changes = Vec::new();
    for row in rights.of(relation) {
        let key = row.key();
        let (after, is_unusable) = match given.remove(&key) {
            None => (None, false),
            Some(None) => (Some(row.clone()), true),
            Some(after) => (after, false),
        };
        if is_unusable || after.as_ref() != Some(row) {
            changes.push(RowChange { key, before: Some(row.clone()), after, is_unusable });
        }
    }
    for (key, after) in given {
        if let Some(after) = after {
            changes.push(RowChange { key, before: None, after: Some(after), is_unusable: false });
        }
    }
    changes
}

impl Inquiry {
    pub fn new(
        installation: &Installation,
        rights: &Rights,
        relation: Relation,
        changes: &[RowChange],
        now: UnixMillis,
    ) -> Self {
        let mut truth = HashMap::new();
        let mut base = Vec::new();
        for n in 0..installation.rows() {
            let question = installation.question(n);
            let key = match relation {
                Relation::Credentials => RightsRow::Credential(installation.credential(n)).key(),
                Relation::Grants => RightsRow::Grant(installation.grant(n)).key(),
                Relation::Devices if n >= installation.devices => continue,
                Relation::Devices => RightsRow::Device(installation.device(installation.target(n))).key(),
            };
            truth.insert(question, rights.decide(&question, now));
            base.push((key, question));
        }
        let mut kinds = Vec::new();
        let mut witnesses = Vec::new();
        for change in changes {
            let of_change = law::kinds(change, now);
            kinds.extend(of_change.iter().copied());
            let candidates = candidates(installation, rights, change);
            let mut found: Vec<(Question, Verdict)> = Vec::new();
            for question in candidates {
                let is_right = rights.decide(&question, now);
                let is_wrong = rights.decide_with(change, &question, now);
                let is_new = found.iter().all(|(_, other)| kind_of(*other) != kind_of(is_wrong));
                if is_right != is_wrong && is_new {
                    truth.insert(question, is_right);
                    found.push((question, is_wrong));
                }
            }
            if !found.is_empty() {
                let questions = found.into_iter().map(|(question, _)| question).collect();
                witnesses.push(Witness { key: change.key, kinds: of_change, questions });
            }
        }
        kinds.sort();
        kinds.dedup();
        Self {
            base,
            witnesses,
            kinds,
            truth,
            spared: HashSet::new(),
            spared_devices: HashSet::new(),
            away: away(rights, changes),
        }
    }

    pub fn questions(&self) -> impl Iterator<Item = &Question> {
        self.truth.keys()
    }

    /// Judges nothing any more that has to do with what `question` asks for.
    pub fn spare(&mut self, question: &Question) {
        self.spared.insert(question.key);
        self.spared_devices.insert(question.uuid);
    }

    pub fn spare_none(&mut self) {
        self.spared.clear();
        self.spared_devices.clear();
    }

    pub fn right(&self, question: &Question) -> Verdict {
        self.truth[question]
    }

    /// Counts the rows that `decide` gets wrong.
    pub fn wrong(&self, decide: impl Fn(&Question) -> Verdict) -> Wrong {
        let mut wrong = Wrong::default();
        let mut counted: HashSet<RightsKey> = HashSet::new();
        let mut judge = |wrong: &mut Wrong, key: RightsKey, question: &Question| -> bool {
            let (right, given) = (self.truth[question], decide(question));
            let is_spared =
                self.spared.contains(&question.key) || self.spared_devices.contains(&question.uuid);
            if right == given || is_spared {
                return false;
            }
            if let Verdict::Allow(address) = given
                && let Some(device) = Installation::device_at(address)
                && Installation::uuid(device) != question.uuid
            {
                if self.away.contains(&Installation::uuid(device)) {
                    wrong.inherited += 1;
                } else {
                    wrong.misrouted.push(format!("{key:?}: {} leads to {address}", question.uuid));
                }
            }
            wrong.questions.push(*question);
            let is_first = counted.insert(key);
            if is_first && given == Verdict::Disputed {
                wrong.disputed += 1;
            }
            if is_first && wrong.examples.len() < EXAMPLES_MAX {
                wrong.examples.push(format!("{key:?}, port {}: {given:?} for {right:?}", question.port));
            }
            is_first && given != Verdict::Disputed
        };
        for witness in &self.witnesses {
            let is_wrong =
                witness.questions.iter().filter(|question| judge(&mut wrong, witness.key, question)).count()
                    > 0;
            if is_wrong {
                wrong.rows += 1;
                for kind in &witness.kinds {
                    *wrong.by_kind.entry(*kind).or_default() += 1;
                }
            }
        }
        for (key, question) in &self.base {
            wrong.rows += usize::from(judge(&mut wrong, *key, question));
        }
        wrong
    }
}

fn away(rights: &Rights, changes: &[RowChange]) -> HashSet<DeviceUuid> {
    let offline = rights.of(Relation::Devices).filter_map(|row| match row {
        RightsRow::Device(device) if !device.online => Some(device.uuid),
        _ => None,
    });
    let left = |change: &RowChange| match (&change.before, &change.after) {
        (Some(RightsRow::Device(before)), Some(RightsRow::Device(after)))
            if before.online && !after.online =>
        {
            Some(before.uuid)
        }
        (Some(RightsRow::Device(before)), None) => Some(before.uuid),
        _ => None,
    };
    offline.chain(changes.iter().filter_map(left)).collect()
}

/// Questions that a change could decide differently.
fn candidates(installation: &Installation, rights: &Rights, change: &RowChange) -> Vec<Question> {
    let rows = [change.before.as_ref(), change.after.as_ref()].into_iter().flatten();
    let port = installation.port;
    let ask = |key, uuid, port| Question { key, uuid, port };
    let mut questions = Vec::new();
    match change.key {
        RightsKey::Credential(key) => {
            for principal in rows.filter_map(|row| match row {
                RightsRow::Credential(row) => Some(row.principal),
                _ => None,
            }) {
                for grant in rights.grants_of(principal) {
                    let device = (0..4).filter_map(|pick| rights.example(grant.scope, pick));
                    questions.extend(device.map(|device| ask(key, device.uuid, port)));
                }
            }
        }
        RightsKey::Grant(id) => {
            let pick = id.0 as usize;
            let grants: Vec<_> = rows
                .filter_map(|row| match row {
                    RightsRow::Grant(row) => Some(row),
                    _ => None,
                })
                .collect();
            let principals: Vec<PrincipalId> = grants.iter().map(|grant| grant.principal).collect();
            let ports = [
                port,
                port - PORTS_AROUND,
                port + PORTS_AROUND,
                port - PORTS_AROUND - 1,
                port + PORTS_AROUND + 1,
            ];
            for key in principals.iter().flat_map(|principal| rights.credentials_of(*principal)) {
                for grant in &grants {
                    let some = (0..4).filter_map(|more| rights.example(grant.scope, pick + more));
                    for device in some {
                        questions.extend(ports.map(|port| ask(key, device.uuid, port)));
                    }
                }
            }
        }
        RightsKey::Device(id) => {
            let devices: Vec<_> = rows
                .filter_map(|row| match row {
                    RightsRow::Device(row) => Some(row),
                    _ => None,
                })
                .collect();
            let mut scopes = vec![Scope::Device(id), Scope::Any];
            scopes.extend(devices.iter().filter_map(|device| device.fleet).map(Scope::Fleet));
            let uuids: Vec<_> = devices.iter().map(|device| device.uuid).collect();
            let named = uuids.iter().filter_map(|uuid| rights.device_by_uuid(uuid));
            scopes.extend(named.map(|device| Scope::Device(device.id)));
            for grant in scopes.into_iter().flat_map(|scope| rights.grants_on(scope)) {
                for key in rights.credentials_of(grant.principal) {
                    questions.extend(uuids.iter().map(|uuid| ask(key, *uuid, port)));
                }
            }
        }
    }
    questions
}

/// Lost, and not lost: a row can do both.
const fn kind_of(verdict: Verdict) -> bool {
    matches!(verdict, Verdict::Refuse)
}

/// Wrong decisions that a failure shows.
const EXAMPLES_MAX: usize = 4;
