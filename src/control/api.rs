//! What commands and pages see of the guard: held groups, what is expected, what was published.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::authz::{Generation, UnixMillis};
use crate::store::Relation;

/// Kinds of changes that the guard counts apart.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ChangeKind {
    /// The row says that it is revoked, or its expiry has passed.
    Ended,
    /// The row is not there any more.
    Absent,
    /// The row gives less than before: fewer ports or devices, an earlier end.
    Narrowed,
    /// The row is somebody else's: another principal, target, fleet or uuid.
    Reassigned,
    /// The row is new.
    Gained,
    /// The row gives more than before, lasts longer, or has ended no more.
    Widened,
    /// The device has another address or node.
    Moved,
    /// The device is offline or has no address any more.
    Unlocated,
    /// The row does not decode; its last good version stays.
    Undecodable,
    /// The row has explicitly ended, and an answer shows it as live without an explicit word.
    Revived,
}

/// One relation's changes of one kind.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Group {
    pub relation: Relation,
    pub kind: ChangeKind,
    pub word: WordKind,
}

/// Origin of a change.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WordKind {
    /// The store recorded the change when it was written.
    Explicit,
    /// A query came to it.
    Inferred,
}

/// Reasons for which changes are held.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rule {
    /// A relation cannot be read: its query breaks the contract.
    Contract,
    /// The store went back in time, or is another one.
    Position,
    /// A relation has fewer or more rows than `authz.guard.bounds`.
    Bounds,
    /// A canary would be answered wrongly.
    Canaries,
    /// A group exceeds its budget.
    Budget,
    /// Devices that the store lost sight of still answer.
    Location,
    /// Two devices claim one address, or many have changed places.
    Address,
    /// Clients were refused what the baseline allows.
    Probation,
    /// An operator went back to an earlier generation.
    Operator,
    /// Another node holds it.
    Peers,
}

/// Something that is held, and its figures.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct HoldStatus {
    pub rule: Rule,
    /// Name of the group, such as `grants.gained`; absent where a whole relation or everything is held.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub group: Option<Group>,
    /// Relation that is held; absent where all are.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub relation: Option<String>,
    /// Rows that are held.
    pub rows: usize,
    /// Counts and limits, in one sentence.
    pub figures: String,
    /// Names of some of the rows, as in listings.
    pub examples: Vec<String>,
    pub since: UnixMillis,
    /// What an operator does, in one sentence.
    pub advice: String,
}

/// A mass change that an operator has announced.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Expectation {
    pub relation: String,
    pub kind: ChangeKind,
    /// Rows that may change beyond the budget.
    pub rows: usize,
    /// Rows of these that have changed.
    pub used: usize,
    pub until: UnixMillis,
}

/// A request for an [`Expectation`].
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct ExpectRequest {
    pub relation: String,
    pub kind: ChangeKind,
    pub rows: usize,
    #[serde(with = "humantime_serde")]
    pub lasts: Duration,
}

/// A publication, for `authz history`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Publication {
    pub generation: Generation,
    pub at: UnixMillis,
    /// `read`, `words`, `accept`, `rollback` or `start`.
    pub by: String,
    /// Rows that changed, by the name of the group.
    pub changes: Vec<(Group, usize)>,
    /// True where it has inferred changes within the window, which `authz rollback` undoes.
    pub can_be_undone: bool,
}

/// The result of `authz accept`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Accepted {
    pub groups: Vec<Group>,
    /// Rows that changed by it.
    pub rows: usize,
    pub generation: Generation,
}

/// The result of `authz rollback`.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct RolledBack {
    pub from: Generation,
    /// The generation whose inferred rights are in force again.
    pub to: Generation,
    /// The number under which they are in force.
    pub in_force: Generation,
    /// Rows that changed by it.
    pub rows: usize,
}

/// The state of one relation's reading.
#[derive(Clone, PartialEq, Default, Debug, Serialize, Deserialize)]
pub struct RelationStatus {
    pub relation: String,
    pub rows: usize,
    /// Time of the last read that was believed; absent before the first.
    pub read_at: Option<UnixMillis>,
    /// Error of the last read; absent where it succeeded.
    pub error: Option<String>,
    /// Reads so far that failed.
    pub errors: u64,
}

/// The use of a group's budget.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct BudgetUse {
    pub group: Group,
    /// Rows that changed within the window, and rows that are held.
    pub used: usize,
    /// Rows that may change within the window.
    pub rows: usize,
}

impl ChangeKind {
    pub const ALL: [Self; 10] = [
        Self::Ended,
        Self::Absent,
        Self::Narrowed,
        Self::Reassigned,
        Self::Gained,
        Self::Widened,
        Self::Moved,
        Self::Unlocated,
        Self::Undecodable,
        Self::Revived,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Ended => "ended",
            Self::Absent => "absent",
            Self::Narrowed => "narrowed",
            Self::Reassigned => "reassigned",
            Self::Gained => "gained",
            Self::Widened => "widened",
            Self::Moved => "moved",
            Self::Unlocated => "unlocated",
            Self::Undecodable => "undecodable",
            Self::Revived => "revived",
        }
    }
}

impl fmt::Display for ChangeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for ChangeKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|kind| kind.name() == text).ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            format!("`{text}` is no kind of change; there are {names}")
        })
    }
}

impl fmt::Display for Group {
    /// `grants.gained`, or `grants.ended.explicit` for what the store recorded itself.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.relation.name(), self.kind)?;
        match self.word {
            WordKind::Explicit => f.write_str(".explicit"),
            WordKind::Inferred => Ok(()),
        }
    }
}

impl FromStr for Group {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (text, word) = match text.strip_suffix(".explicit") {
            Some(text) => (text, WordKind::Explicit),
            None => (text, WordKind::Inferred),
        };
        let (relation, kind) = text
            .split_once('.')
            .ok_or_else(|| format!("`{text}` is no group; write RELATION.KIND, such as grants.gained"))?;
        let relation = Relation::named(relation)
            .ok_or_else(|| format!("`{relation}` is none of credentials, grants, devices"))?;
        Ok(Self { relation, kind: kind.parse()?, word })
    }
}

impl Serialize for Group {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Group {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl Rule {
    pub const ALL: [Self; 10] = [
        Self::Contract,
        Self::Position,
        Self::Bounds,
        Self::Canaries,
        Self::Budget,
        Self::Location,
        Self::Address,
        Self::Probation,
        Self::Operator,
        Self::Peers,
    ];

    /// Name of the rule in metrics, logs and commands.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Contract => "contract",
            Self::Position => "position",
            Self::Bounds => "bounds",
            Self::Canaries => "canaries",
            Self::Budget => "budget",
            Self::Location => "location",
            Self::Address => "address",
            Self::Probation => "probation",
            Self::Operator => "operator",
            Self::Peers => "peers",
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl HoldStatus {
    /// Name of what is held: a group, a relation, or `everything`.
    pub fn subject(&self) -> String {
        match (&self.group, &self.relation) {
            (Some(group), _) => group.to_string(),
            (None, Some(relation)) => relation.clone(),
            (None, None) => "everything".to_owned(),
        }
    }
}

impl fmt::Display for HoldStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} by rule {}: {}", self.subject(), self.rule, self.figures)?;
        if self.examples.is_empty() {
            return Ok(());
        }
        write!(f, "; such as {}", self.examples.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_reads_as_it_is_written() {
        for relation in Relation::ALL {
            for kind in ChangeKind::ALL {
                for word in [WordKind::Explicit, WordKind::Inferred] {
                    let group = Group { relation, kind, word };
                    assert_eq!(group.to_string().parse(), Ok(group));
                }
            }
        }
    }

    #[test]
    fn what_is_no_group_is_refused_with_what_there_is() {
        let refused = |text: &str| text.parse::<Group>().unwrap_err();
        assert!(refused("grants").contains("RELATION.KIND"));
        assert!(refused("rights.gained").contains("credentials, grants, devices"));
        assert!(refused("grants.lost").contains("absent"));
    }
}
