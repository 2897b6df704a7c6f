//! What the peers of a node that starts without memory hold, and what contradicts its first answer of the store.
//!
//! A node with no kept state has no baseline: a wrong first answer looks like any other. So it asks its peers for a
//! summary of what they have in force: counts and checksums of buckets of rows, by which nobody can tell a row.
//! [`objections`] compares them with the first answer. A relation to which most peers object is held for at most
//! [`HELD_FOR_MAX`], or until an operator accepts it; rows in buckets on which a peer agrees are undoubted meanwhile.

mod client;
mod inquiry;
mod sketch;

use std::time::Duration;

use serde::{Deserialize, Serialize};

pub(super) use inquiry::{Inquiry, InquiryAnswer};
pub(super) use sketch::RelationSketch;

use crate::authz::{Credential, Grant, Revocations, Snapshot};
use crate::store::Relation;

/// The rows that a node has in force, without any row. At most [`SUMMARY_BYTES_MAX`] bytes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct NodeSummary {
    /// Credentials, grants, devices.
    pub relations: [RelationSketch; 3],
    /// Names of the groups that the node holds, and their rows. At most [`HELD_GROUPS_MAX`].
    pub held: Vec<(String, u64)>,
}

/// A relation in which the peers contradict the first answer of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PeerObjection {
    pub relation: Relation,
    /// Peers that object, and those that answered.
    pub peers: (usize, usize),
    /// Counts and names, in one sentence.
    pub figures: String,
    /// The peers hold where devices are, which their checksums do not have.
    pub is_of_places: bool,
}

/// The answers of the peers.
#[derive(Clone, Debug, Default)]
pub(super) struct PeerSummaries {
    pub summaries: Vec<(Box<str>, NodeSummary)>,
    /// Peers that did not answer in time, and why. A node says at its start that it could not ask them.
    pub silent: Vec<(Box<str>, String)>,
}

impl NodeSummary {
    /// Makes the summary of what is in force. It reads each row once. Rows that have ended are left out.
    pub(super) fn of(snapshot: &Snapshot, revocations: &Revocations) -> Self {
        let [mut credentials, mut grants, mut devices] = <[RelationSketch; 3]>::default();
        let is_live = |row: &Credential| {
            !row.revoked && !revocations.credential(&row.key) && !revocations.principal(row.principal)
        };
        snapshot.credentials().filter(is_live).for_each(|row| credentials.add_credential(&row));
        let is_live =
            |row: &Grant| !row.revoked && !revocations.grant(row) && !revocations.principal(row.principal);
        snapshot.grants().filter(is_live).for_each(|row| grants.add_grant(&row));
        snapshot.devices().for_each(|row| devices.add_device(&row));
        Self { relations: [credentials, grants, devices], held: Vec::new() }
    }

    pub(super) fn sketch(&self, relation: Relation) -> &RelationSketch {
        &self.relations[place(relation)]
    }

    /// The bytes for a peer. Groups beyond [`HELD_GROUPS_MAX`] are left out.
    pub(super) fn encode(&self) -> Vec<u8> {
        let held = self.held.iter().take(HELD_GROUPS_MAX).cloned().collect();
        let bounded = Self { relations: self.relations.clone(), held };
        postcard::to_stdvec(&bounded).expect("a summary has nothing that cannot be encoded")
    }

    /// Reads a peer's bytes; `None` for any that no node sends.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        if bytes.len() > SUMMARY_BYTES_MAX {
            return None;
        }
        let summary: Self = postcard::from_bytes(bytes).ok()?;
        let is_named = |(name, _): &(String, u64)| {
            name.len() <= GROUP_NAME_BYTES_MAX && name.bytes().all(|byte| byte.is_ascii_graphic())
        };
        (summary.held.len() <= HELD_GROUPS_MAX && summary.held.iter().all(is_named)).then_some(summary)
    }
}

/// Compares the first answer of the store with what the peers have in force.
///
/// `budget` says how many rows of a relation of that many rows may differ. A peer objects to a relation if it has more
/// or fewer rows by more than that, if so many rows differ by their checksums, or if it holds a group of the relation
/// itself. An objection counts if at least half of the peers that answered have one, so that one broken peer among
/// several says nothing.
pub(super) fn objections(
    first: &NodeSummary,
    peers: &PeerSummaries,
    budget: impl Fn(Relation, usize) -> usize,
) -> Vec<PeerObjection> {
    let mut objections = Vec::new();
    for relation in Relation::ALL {
        let ours = first.sketch(relation);
        let object = |(name, summary): &(Box<str>, NodeSummary)| {
            let theirs = summary.sketch(relation);
            let allowed = budget(relation, theirs.rows()) as u64;
            let differ = ours.difference(theirs);
            if differ > allowed {
                return Some(format!("{name} has {} rows, and some {differ} or more differ", theirs.rows()));
            }
            let prefix = format!("{}.", relation.name());
            let (group, rows) = summary.held.iter().find(|(group, _)| group.starts_with(&prefix))?;
            Some(format!("{name} holds {rows} rows of {group}"))
        };
        let reasons: Vec<String> = peers.summaries.iter().filter_map(object).collect();
        let asked = peers.summaries.len();
        if reasons.is_empty() || reasons.len() * 2 < asked {
            continue;
        }
        let figures = format!(
            "the store's first answer has {} {}, but {}",
            ours.rows(),
            relation.name(),
            reasons[..reasons.len().min(REASONS_MAX)].join("; ")
        );
        let holds_moves =
            |(_, summary): &&(Box<str>, NodeSummary)| summary.held.iter().any(|(group, _)| group == MOVES);
        let is_of_places =
            relation == Relation::Devices && peers.summaries.iter().filter(holds_moves).count() * 2 >= asked;
        objections.push(PeerObjection { relation, peers: (reasons.len(), asked), figures, is_of_places });
    }
    objections
}

const fn place(relation: Relation) -> usize {
    match relation {
        Relation::Credentials => 0,
        Relation::Grants => 1,
        Relation::Devices => 2,
    }
}

/// Longest time for which the peers can hold a relation of a node that has no memory. A peer that is wrong for longer must
/// not keep a new node from its work; it holds its own answers by then.
pub(super) const HELD_FOR_MAX: Duration = Duration::from_secs(600);

/// The group of devices that have another address, as peers name it.
const MOVES: &str = "devices.moved";

/// Bytes of a summary: one TLS record. Three sketches have 12 KiB.
pub(super) const SUMMARY_BYTES_MAX: usize = 16 * 1024;

/// Held groups in a summary; there are no more kinds of changes.
const HELD_GROUPS_MAX: usize = 64;

/// Bytes of a group's name, such as `credentials.undecodable.explicit`.
const GROUP_NAME_BYTES_MAX: usize = 40;

/// Peers that one sentence names.
const REASONS_MAX: usize = 3;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authz::{Device, DeviceId, DeviceUuid, FleetId};

    fn device(id: i64) -> Device {
        Device {
            id: DeviceId(id),
            uuid: DeviceUuid::parse(&format!("{id:032x}")).unwrap(),
            fleet: Some(FleetId(id % 7)),
            address: None,
            node: None,
            online: true,
            disputed: false,
        }
    }

    fn summary(devices: impl Iterator<Item = Device>) -> NodeSummary {
        let mut sketch = RelationSketch::default();
        devices.for_each(|device| sketch.add_device(&device));
        NodeSummary {
            relations: [RelationSketch::default(), RelationSketch::default(), sketch],
            held: Vec::new(),
        }
    }

    fn peers(summaries: Vec<NodeSummary>) -> PeerSummaries {
        let named =
            summaries.into_iter().enumerate().map(|(n, summary)| (format!("node-{n}").into(), summary));
        PeerSummaries { summaries: named.collect(), silent: Vec::new() }
    }

    fn object(first: &NodeSummary, summaries: Vec<NodeSummary>) -> Vec<PeerObjection> {
        objections(first, &peers(summaries), |_, rows| 3.max(rows.isqrt() / 2))
    }

    #[test]
    fn an_answer_that_agrees_but_for_a_few_rows_has_no_objection() {
        let all = summary((0..300).map(device));
        assert_eq!(object(&all, vec![all.clone(), all.clone()]), []);
        assert_eq!(object(&summary((5..300).map(device)), vec![all.clone()]), []);
        assert_eq!(object(&all, vec![]), [], "nobody was asked");
    }

    #[test]
    fn rows_that_are_missing_too_many_or_changed_are_objected_to() {
        let all = summary((0..300).map(device));
        let fewer = summary((0..100).map(device));
        let more = summary((0..600).map(device));
        let other = summary((0..300).map(|id| Device { fleet: Some(FleetId(9)), ..device(id) }));
        let empty = summary(std::iter::empty());
        for wrong in [fewer, more, other, empty] {
            let objected = object(&wrong, vec![all.clone()]);
            assert_eq!(objected.len(), 1);
            assert_eq!((objected[0].relation, objected[0].peers), (Relation::Devices, (1, 1)));
            assert!(objected[0].figures.contains("but node-0 has 300 rows"), "{}", objected[0].figures);
        }
    }

    #[test]
    fn one_broken_peer_among_several_says_nothing() {
        let all = summary((0..300).map(device));
        let broken = summary(std::iter::empty());
        assert_eq!(object(&all, vec![all.clone(), broken.clone(), all.clone()]), []);
        let objected = object(&all, vec![broken.clone(), broken]);
        assert_eq!(objected[0].peers, (2, 2));
    }

    #[test]
    fn a_group_that_a_peer_holds_is_an_objection() {
        let all = summary((0..300).map(device));
        let holding = NodeSummary { held: vec![("devices.moved".to_owned(), 40)], ..all.clone() };
        let objected = object(&all, vec![holding]);
        assert!(objected[0].figures.contains("node-0 holds 40 rows of devices.moved"), "{objected:?}");
    }

    #[test]
    fn where_a_device_is_now_makes_no_difference() {
        let moved = |id| Device { online: false, node: Some("x".into()), ..device(id) };
        assert_eq!(summary((0..300).map(device)), summary((0..300).map(moved)));
    }

    #[test]
    fn a_row_more_is_one_difference_and_is_doubted() {
        let mut summary = summary((0..300).map(device));
        let before = summary.clone();
        summary.relations[2].add_device(&device(900));
        let (before, after) = (before.sketch(Relation::Devices), summary.sketch(Relation::Devices));
        assert_eq!(before.difference(after), 1);
        assert!(after.doubts_device(&device(900), before));
    }

    #[test]
    fn a_summary_is_bounded_and_what_no_node_sends_is_none() {
        let mut full = summary((0..5_000).map(device));
        full.held = (0..100).map(|_| ("credentials.undecodable.explicit".to_owned(), u64::MAX)).collect();
        let bytes = full.encode();
        assert!(bytes.len() <= SUMMARY_BYTES_MAX, "{}", bytes.len());
        let decoded = NodeSummary::decode(&bytes).unwrap();
        assert_eq!((decoded.held.len(), &decoded.relations), (HELD_GROUPS_MAX, &full.relations));
        assert_eq!(NodeSummary::decode(&bytes[..bytes.len() - 1]), None);
        assert_eq!(NodeSummary::decode(&vec![0; SUMMARY_BYTES_MAX + 1]), None);
        let odd = NodeSummary { held: vec![("a\nb".to_owned(), 1)], ..full };
        assert_eq!(NodeSummary::decode(&odd.encode()), None, "it would break a log line");
    }
}
