//! Where rights come from: a [`Source`] of checked rows. Nothing above this module knows SQL.

pub mod sqlite;

use crate::authz::{Change, Credential, Device, Grant};

/// A database that the relay reads and never writes.
///
/// Calls block; only the control thread makes them. After an error a source must be usable again: the
/// next call reconnects where it has to.
pub trait Source: Send {
    /// Reads all relations as of one moment, and remembers that moment for [`Source::read_changes`].
    fn read_all(&mut self) -> Result<Rows, StoreError>;

    /// What was committed since the last successful read of either kind.
    fn read_changes(&mut self) -> Result<Changes, StoreError>;

    /// For log lines: the kind and place of the store, without secrets.
    fn describe(&self) -> String;
}

/// Every row of the three relations that decoded, and those that did not.
#[derive(Debug, Default)]
pub struct Rows {
    pub credentials: Vec<Credential>,
    pub grants: Vec<Grant>,
    pub devices: Vec<Device>,
    pub quarantined: Vec<Quarantined>,
}

#[derive(Debug)]
pub enum Changes {
    Nothing,
    /// In commit order.
    Some {
        changes: Vec<Change>,
        quarantined: Vec<Quarantined>,
    },
    /// The outbox no longer reaches back to the last read: read everything.
    Behind,
}

/// A row that does not decode to the contract. Its last good version stays in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quarantined {
    pub relation: Relation,
    pub key: String,
    pub reason: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Relation {
    Credentials,
    Grants,
    Devices,
}

impl Relation {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Credentials => "credentials",
            Self::Grants => "grants",
            Self::Devices => "devices",
        }
    }
}

/// Why a store could not be read or written; each text ends in the remedy.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("{store} does not exist; `sluicegate store init` creates it")]
    Missing { store: String },
    #[error("{store} is locked by another process; end its long transaction, then try again")]
    Locked { store: String },
    #[error("{store} is damaged ({detail}); restore it from a backup")]
    Corrupt { store: String, detail: String },
    #[error("{store} has schema version {found}, this sluicegate needs {wanted}; {remedy}")]
    Version { store: String, found: i64, wanted: i64, remedy: &'static str },
    #[error("{store} cannot be read ({detail}); check its path and permissions")]
    Unreadable { store: String, detail: String },
    #[error("a query on {store} failed: {detail}")]
    Query { store: String, detail: String },
}
