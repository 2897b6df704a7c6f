//! What the guard keeps over a restart, beside the rows in force: the ledger, what waits, what was undone.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::ledger::{LedgerEntry, LedgerStep};
use super::pending::PENDING_KEPT_MAX;
use super::tombstones::Tombstone;
use super::{AnyRow, Guard, PendingRow, RecentEnds, RejectedRow, WaitingWord, index};
use crate::authz::{
    Credential, Device, DeviceId, DeviceUuid, End, FleetId, Generation, Grant, GrantId, KeyHash, PortRange,
    PrincipalId, Revocations, Scope, Snapshot, UnixMillis,
};
use crate::control::api::{ChangeKind, Expectation, Publication, Rule};
use crate::store::{Position, Relation, RowKey, Word};

/// A row that is held or waits: its answer, kind, since when, and the rule.
type PendingFields = (KeyFields, Option<RowFields>, ChangeKind, UnixMillis, Option<Rule>);

/// An explicit end that waits.
type WaitingFields = (KeyFields, Option<RowFields>, WordFields, ChangeKind, UnixMillis);

/// See the module.
#[derive(Clone, Default, Serialize, Deserialize)]
pub(in crate::control) struct GuardMemory {
    ledger: Vec<(KeyFields, ChangeKind, Vec<StepFields>)>,
    waiting_words: Vec<WaitingFields>,
    rejected: Vec<(KeyFields, Option<RowFields>, Rule, UnixMillis)>,
    aged_gains: Vec<(KeyFields, Option<RowFields>)>,
    /// Rows that are held or wait for a second answer, by which answers after a restart are judged as before.
    pending: Vec<PendingFields>,
    tombstones: Vec<(KeyFields, TombstoneFields)>,
    principals: Vec<(i64, TombstoneFields)>,
    recent_ends: Vec<(u8, UnixMillis, u64)>,
    expectations: Vec<(String, ChangeKind, u64, u64, UnixMillis)>,
    history: Vec<PublicationFields>,
    words_lost_before: Option<Position>,
    inferred_ends: Vec<KeyFields>,
    positions: [Option<Position>; 3],
}

#[derive(Clone, PartialEq, Serialize, Deserialize)]
enum KeyFields {
    Credential([u8; 32]),
    Grant(i64),
    Device(i64),
}

/// The kinds of words on one row.
#[derive(Clone, Copy, Serialize, Deserialize)]
enum WordFields {
    Row,
    Ended,
}

#[derive(Clone, Serialize, Deserialize)]
enum RowFields {
    Credential {
        key: [u8; 32],
        principal: i64,
        expires_at: Option<i64>,
        revoked: bool,
    },
    Grant {
        id: i64,
        principal: i64,
        scope: (u8, i64),
        ports: (u16, u16),
        expires_at: Option<i64>,
        revoked: bool,
    },
    Device {
        id: i64,
        uuid: String,
        fleet: Option<i64>,
        address: Option<IpAddr>,
        node: Option<String>,
        online: bool,
    },
}

#[derive(Clone, Serialize, Deserialize)]
struct StepFields {
    generation: u64,
    at: UnixMillis,
    before: Option<RowFields>,
}

#[derive(Clone, Serialize, Deserialize)]
struct TombstoneFields {
    position: Position,
    at: UnixMillis,
    right: Option<(i64, (u8, i64))>,
    confirmed: [bool; 3],
}

#[derive(Clone, Serialize, Deserialize)]
struct PublicationFields {
    generation: u64,
    at: UnixMillis,
    by: String,
    changes: Vec<(String, u64)>,
}

impl Guard {
    pub(in crate::control) fn memory(&self) -> GuardMemory {
        let ledger = self.ledger.iter().filter_map(|(key, entry)| {
            let steps = entry.steps.iter().map(StepFields::of).collect();
            Some((KeyFields::of(key)?, entry.kind, steps))
        });
        let waiting_words = self.waiting_words.iter().filter_map(|(key, waiting)| {
            let (row, word) = match &waiting.word {
                Word::Row(change) => {
                    (super::row::row_after(change.clone()).and_then(|(_, after)| after), WordFields::Row)
                }
                _ => (None, WordFields::Ended),
            };
            Some((KeyFields::of(key)?, row.as_ref().map(RowFields::of), word, waiting.kind, waiting.since))
        });
        let rejected = self.rejected.iter().filter_map(|(key, row)| {
            let answer = row.answer.as_ref().map(RowFields::of);
            Some((KeyFields::of(key)?, answer, row.rule, row.since))
        });
        let aged_gains = self
            .aged_gains
            .rows()
            .filter_map(|(key, before)| Some((KeyFields::of(key)?, before.map(RowFields::of))));
        let tombstones = self.tombstones.rows();
        let tombstones =
            tombstones.filter_map(|(key, of)| Some((KeyFields::of(key)?, TombstoneFields::of(of))));
        let principals = self.tombstones.principals();
        let ends = |ends: &RecentEnds| (index(ends.relation) as u8, ends.at, ends.rows as u64);
        let expectation =
            |of: &Expectation| (of.relation.clone(), of.kind, of.rows as u64, of.used as u64, of.until);
        GuardMemory {
            ledger: ledger.collect(),
            waiting_words: waiting_words.collect(),
            rejected: rejected.collect(),
            aged_gains: aged_gains.collect(),
            pending: self.pending_fields(),
            tombstones: tombstones.collect(),
            principals: principals.map(|(id, of)| (id.0, TombstoneFields::of(of))).collect(),
            recent_ends: self.recent_ends.iter().map(ends).collect(),
            expectations: self.expectations.iter().map(expectation).collect(),
            history: self.history.iter().map(PublicationFields::of).collect(),
            words_lost_before: self.words_lost_before,
            inferred_ends: self.inferred_ends.iter().filter_map(KeyFields::of).collect(),
            positions: std::array::from_fn(|place| self.relations[place].position),
        }
    }

    fn pending_fields(&self) -> Vec<PendingFields> {
        let rows = self.relations.iter().flat_map(|state| state.pending.iter());
        let fields = rows.filter_map(|(key, row)| {
            Some((KeyFields::of(key)?, row.after.as_ref().map(RowFields::of), row.kind?, row.since, row.held))
        });
        fields.take(PENDING_KEPT_MAX).collect()
    }

    /// Begins with what an earlier process has kept.
    pub(in crate::control) fn restore(
        &mut self,
        snapshot: std::sync::Arc<Snapshot>,
        revocations: Revocations,
        memory: GuardMemory,
        now: UnixMillis,
    ) {
        self.live = super::LiveRows::of(&snapshot, now);
        self.places.begin_with(&snapshot);
        self.in_force = Some(snapshot);
        self.revocations = std::sync::Arc::new(revocations);
        for (key, kind, steps) in memory.ledger {
            let steps = steps.into_iter().map(StepFields::step).collect();
            self.ledger.insert(key.key(), LedgerEntry { kind, steps });
        }
        for (key, row, word, kind, since) in memory.waiting_words {
            let key = key.key();
            let word = match word {
                WordFields::Ended => Some(Word::Ended(key.clone())),
                WordFields::Row => super::change_to(&key, row.and_then(RowFields::row)).map(Word::Row),
            };
            if let Some(word) = word {
                self.waiting_words.insert(key, WaitingWord { word, kind, since });
            }
        }
        for (key, row, rule, since) in memory.rejected {
            let answer = row.and_then(RowFields::row);
            self.rejected.insert(key.key(), RejectedRow { answer, rule, since, undone: 0 });
        }
        for (key, row, kind, since, held) in memory.pending {
            let (key, after) = (key.key(), row.and_then(RowFields::row));
            let row = PendingRow { after, kind: Some(kind), since, first_read: 0, held };
            if self.in_force.as_deref().and_then(|rows| super::row_of(rows, &key)) != row.after {
                self.relations[index(key.relation())].pending.insert(key, row);
            }
        }
        for (key, before) in memory.aged_gains {
            self.aged_gains.remember(key.key(), before.and_then(RowFields::row));
        }
        for (key, tombstone) in memory.tombstones {
            self.tombstones.restore(key.key(), tombstone.tombstone());
        }
        for (id, tombstone) in memory.principals {
            self.tombstones.restore_principal(PrincipalId(id), tombstone.tombstone());
        }
        for (relation, at, rows) in memory.recent_ends {
            if let Some(relation) = Relation::ALL.get(usize::from(relation)) {
                self.recent_ends.push_back(RecentEnds { relation: *relation, at, rows: rows as usize });
            }
        }
        let expectation =
            |(relation, kind, rows, used, until): (String, ChangeKind, u64, u64, UnixMillis)| Expectation {
                relation,
                kind,
                rows: rows as usize,
                used: used as usize,
                until,
            };
        self.expectations = memory.expectations.into_iter().map(expectation).collect();
        self.history = memory.history.into_iter().map(PublicationFields::publication).collect();
        self.words_lost_before = memory.words_lost_before;
        self.inferred_ends = memory.inferred_ends.iter().map(KeyFields::key).collect();
        [Rule::Operator, Rule::Probation].into_iter().for_each(|rule| self.count_undone(rule));
        self.hold_rejected(now);
    }

    /// Remembers the ends that were recorded after the memory, at `position` at the latest: a newer word gives them back,
    /// and answers that confirm them let them be forgotten.
    pub(in crate::control) fn remember_ends(&mut self, position: Position, now: UnixMillis) {
        let revocations = std::sync::Arc::clone(&self.revocations);
        for end in revocations.ends() {
            match end {
                End::Principal(id) => self.tombstones.insert_missing_principal(id, position, now),
                End::Credential(key) => self.remember_end(RowKey::Credential(key), position, now),
                End::Grant(id, _) => self.remember_end(RowKey::Grant(id), position, now),
            }
        }
    }

    fn remember_end(&mut self, key: RowKey, position: Position, now: UnixMillis) {
        let row = self.in_force.as_deref().and_then(|in_force| super::row_of(in_force, &key));
        // A row that is in force says itself whether it has ended.
        if row.is_none() && !self.tombstones.contains(&key) {
            self.tombstones.insert(key, None, position, now);
        }
    }
}

impl KeyFields {
    fn of(key: &RowKey) -> Option<Self> {
        match key {
            RowKey::Credential(key) => Some(Self::Credential(*key.as_bytes())),
            RowKey::Grant(id) => Some(Self::Grant(id.0)),
            RowKey::Device(id) => Some(Self::Device(id.0)),
            RowKey::Unreadable { .. } => None,
        }
    }

    fn key(&self) -> RowKey {
        match self {
            Self::Credential(key) => RowKey::Credential(KeyHash::from_bytes(*key)),
            Self::Grant(id) => RowKey::Grant(GrantId(*id)),
            Self::Device(id) => RowKey::Device(DeviceId(*id)),
        }
    }
}

impl RowFields {
    fn of(row: &AnyRow) -> Self {
        match row {
            AnyRow::Credential(row) => Self::Credential {
                key: *row.key.as_bytes(),
                principal: row.principal.0,
                expires_at: row.expires_at.map(|end| end.0),
                revoked: row.revoked,
            },
            AnyRow::Grant(row) => Self::Grant {
                id: row.id.0,
                principal: row.principal.0,
                scope: scope_fields(row.scope),
                ports: (row.ports.min(), row.ports.max()),
                expires_at: row.expires_at.map(|end| end.0),
                revoked: row.revoked,
            },
            AnyRow::Device(row) => Self::Device {
                id: row.id.0,
                uuid: row.uuid.to_string(),
                fleet: row.fleet.map(|fleet| fleet.0),
                address: row.address,
                node: row.node.as_deref().map(str::to_owned),
                online: row.online,
            },
        }
    }

    /// `None` for what no version of this program writes.
    fn row(self) -> Option<AnyRow> {
        Some(match self {
            Self::Credential { key, principal, expires_at, revoked } => AnyRow::Credential(Credential {
                key: KeyHash::from_bytes(key),
                principal: PrincipalId(principal),
                expires_at: expires_at.map(UnixMillis),
                revoked,
            }),
            Self::Grant { id, principal, scope, ports, expires_at, revoked } => AnyRow::Grant(Grant {
                id: GrantId(id),
                principal: PrincipalId(principal),
                scope: scope_of(scope)?,
                ports: PortRange::new(ports.0, ports.1)?,
                expires_at: expires_at.map(UnixMillis),
                revoked,
            }),
            Self::Device { id, uuid, fleet, address, node, online } => AnyRow::Device(Device {
                id: DeviceId(id),
                uuid: DeviceUuid::parse(&uuid)?,
                fleet: fleet.map(FleetId),
                address,
                node: node.map(Into::into),
                online,
                disputed: false,
            }),
        })
    }
}

impl StepFields {
    fn of(step: &LedgerStep) -> Self {
        let before = step.before.as_ref().map(RowFields::of);
        Self { generation: step.generation.0, at: step.at, before }
    }

    fn step(self) -> LedgerStep {
        let before = self.before.and_then(RowFields::row);
        LedgerStep { generation: Generation(self.generation), at: self.at, before }
    }
}

impl TombstoneFields {
    fn of(tombstone: &Tombstone) -> Self {
        let Tombstone { position, at, right, confirmed } = *tombstone;
        Self { position, at, right: right.map(|(id, scope)| (id.0, scope_fields(scope))), confirmed }
    }

    fn tombstone(self) -> Tombstone {
        let Self { position, at, right, confirmed } = self;
        let right = right.and_then(|(id, scope)| Some((PrincipalId(id), scope_of(scope)?)));
        Tombstone { position, at, right, confirmed }
    }
}

impl PublicationFields {
    fn of(publication: &Publication) -> Self {
        let changes = publication.changes.iter().map(|(group, rows)| (group.to_string(), *rows as u64));
        Self {
            generation: publication.generation.0,
            at: publication.at,
            by: publication.by.clone(),
            changes: changes.collect(),
        }
    }

    fn publication(self) -> Publication {
        let changes =
            self.changes.iter().filter_map(|(group, rows)| Some((group.parse().ok()?, *rows as usize)));
        Publication {
            generation: Generation(self.generation),
            at: self.at,
            changes: changes.collect(),
            by: self.by,
            can_be_undone: false,
        }
    }
}

const fn scope_fields(scope: Scope) -> (u8, i64) {
    match scope {
        Scope::Any => (0, 0),
        Scope::Fleet(id) => (1, id.0),
        Scope::Device(id) => (2, id.0),
    }
}

const fn scope_of(fields: (u8, i64)) -> Option<Scope> {
    match fields {
        (0, _) => Some(Scope::Any),
        (1, id) => Some(Scope::Fleet(FleetId(id))),
        (2, id) => Some(Scope::Device(DeviceId(id))),
        _ => None,
    }
}
