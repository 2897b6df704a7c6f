//! Schema versions: the one that a store has, and the migrations that it lacks.
//!
//! A migration either changes what programs of earlier versions rely on, or only adds to it. A store records both: the
//! newest version, and the one that a program must know to use the store. So relays of two versions run side by side
//! while an installation is brought up to date.

use super::{Initialised, StoreError};

/// The kind of database that this program found.
#[derive(Clone, Copy)]
pub(super) enum StoreIdentity {
    /// Nobody has put anything in it.
    Empty,
    /// A store with this version of the schema.
    Store(SchemaVersion),
    /// A database of another program.
    Foreign,
}

/// The version of a store's schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SchemaVersion {
    /// The last version that changed what programs rely on. A program that knows it can use the store.
    pub(super) required: i64,
    /// The newest version. Those after `required` only add.
    pub(super) newest: i64,
}

/// The step from a store's version to this program's.
pub(super) struct MigrationPlan {
    /// Migrations that the store has.
    pub(super) applied: i64,
    pub(super) outcome: Initialised,
}

impl StoreIdentity {
    /// Succeeds if the store has version `wanted`, or a newer one that only adds to it. `store` names it in the error.
    pub(super) fn check(self, wanted: i64, store: String) -> Result<(), StoreError> {
        match self {
            Self::Store(version) if version.serves(wanted) => Ok(()),
            _ => Err(self.refusal(wanted, store)),
        }
    }

    /// Plans the way to version `wanted`. Fails for another program's database and for a version that this program
    /// cannot use.
    pub(super) fn plan(self, wanted: i64, store: String) -> Result<MigrationPlan, StoreError> {
        let (applied, outcome) = match self {
            Self::Empty => (0, Initialised::Created),
            Self::Store(version) if version.serves(wanted) => (version.newest, Initialised::UpToDate),
            Self::Store(SchemaVersion { newest, .. }) if newest < wanted => {
                (newest, Initialised::Migrated { from: newest })
            }
            Self::Store(_) | Self::Foreign => return Err(self.refusal(wanted, store)),
        };
        Ok(MigrationPlan { applied, outcome })
    }

    fn refusal(self, wanted: i64, store: String) -> StoreError {
        let (found, remedy) = match self {
            Self::Foreign => return StoreError::Foreign { store },
            Self::Empty => (0, "`sluicegate store init` fills it"),
            Self::Store(SchemaVersion { newest, .. }) if newest < wanted => {
                (newest, "`sluicegate store init` brings it up to date")
            }
            Self::Store(SchemaVersion { required, .. }) => {
                (required, "use the sluicegate that brought it to that version, or a newer one")
            }
        };
        StoreError::Version { store, found, wanted, remedy }
    }
}

impl SchemaVersion {
    /// True if a program that knows the versions up to `wanted` finds all of them here, and nothing that it must know
    /// and does not.
    const fn serves(self, wanted: i64) -> bool {
        self.newest >= wanted && self.required <= wanted
    }
}

/// The versions that only add to the one before. A program of that one uses the store as it did.
pub(super) const ADDITIONS: [i64; 1] = [5];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_serves_a_program_that_knows_all_that_it_must() {
        let check = |required, newest| {
            StoreIdentity::Store(SchemaVersion { required, newest }).check(5, "s".to_owned()).is_ok()
        };
        assert!(check(4, 5) && check(5, 5), "its own version");
        assert!(check(4, 9) && check(5, 9), "newer ones that only add");
        assert!(!check(4, 4), "it lacks what this program needs");
        assert!(!check(6, 6) && !check(6, 9), "it has what this program does not know");
    }
}
