//! Rows of the three relations, and the keys that name them.

use std::fmt;

use crate::authz::{Credential, Device, DeviceId, Grant, GrantId, KeyHash};

/// All rows of the three relations that decoded, and the keys of those that did not.
#[derive(Debug, Default)]
pub struct Rows {
    pub credentials: Vec<Credential>,
    pub grants: Vec<Grant>,
    pub devices: Vec<Device>,
    pub quarantined: Vec<Quarantined>,
}

/// The rows that two sets of queries give as of one moment.
#[derive(Debug)]
pub struct Comparison {
    pub running: Rows,
    pub candidate: Rows,
}

/// A row that does not decode to the contract. Its last good version stays in force.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Quarantined {
    pub key: RowKey,
    pub reason: String,
}

/// Names a row of a relation.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum RowKey {
    Credential(KeyHash),
    Grant(GrantId),
    Device(DeviceId),
    /// A key that does not decode itself, as the store has it.
    Unreadable {
        relation: Relation,
        key: String,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Relation {
    Credentials,
    Grants,
    Devices,
}

impl RowKey {
    pub const fn relation(&self) -> Relation {
        match self {
            Self::Credential(_) => Relation::Credentials,
            Self::Grant(_) => Relation::Grants,
            Self::Device(_) => Relation::Devices,
            Self::Unreadable { relation, .. } => *relation,
        }
    }
}

impl fmt::Display for RowKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.relation().name())?;
        match self {
            Self::Credential(key) => write!(f, "{}", key.credential_id()),
            Self::Grant(id) => write!(f, "{}", id.0),
            Self::Device(id) => write!(f, "{}", id.0),
            Self::Unreadable { key, .. } => f.write_str(key),
        }
    }
}

impl Relation {
    pub const ALL: [Self; 3] = [Self::Credentials, Self::Grants, Self::Devices];

    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|relation| relation.name() == name)
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::Credentials => "credentials",
            Self::Grants => "grants",
            Self::Devices => "devices",
        }
    }
}
