//! The changes that come of reading the rows that an outbox names.

pub(super) use super::changed_key::ChangedKey;
use super::decode::BadRow;
use super::{Changes, Quarantined};
use crate::authz::Change;

/// Changes in commit order, apart from the rows that did not decode.
#[derive(Default)]
pub(super) struct ReadChanges {
    changes: Vec<Change>,
    quarantined: Vec<Quarantined>,
}

impl ReadChanges {
    pub(super) fn add(&mut self, row: Result<Change, BadRow>) {
        match row {
            Ok(change) => self.changes.push(change),
            Err(bad) => {
                self.changes.extend(bad.end());
                self.quarantined.push(bad.quarantined);
            }
        }
    }
}

impl From<ReadChanges> for Changes {
    fn from(read: ReadChanges) -> Self {
        let ReadChanges { changes, quarantined } = read;
        if changes.is_empty() && quarantined.is_empty() {
            return Self::Nothing;
        }
        Self::Some { changes, quarantined }
    }
}
