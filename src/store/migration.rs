//! Schema versions: the one that a store has, and the migrations that it lacks.

use super::{Initialised, StoreError};

/// The kind of database that this program found.
#[derive(Clone, Copy)]
pub(super) enum StoreIdentity {
    /// Nobody has put anything in it.
    Empty,
    /// A store with this version of the schema.
    Store { version: i64 },
    /// A database of another program.
    Foreign,
}

/// The step from a store's version to this program's.
pub(super) struct MigrationPlan {
    /// Migrations that the store has.
    pub(super) applied: i64,
    pub(super) outcome: Initialised,
}

impl StoreIdentity {
    /// Succeeds if the store has version `wanted`. `store` names it in the error.
    pub(super) fn check(self, wanted: i64, store: String) -> Result<(), StoreError> {
        match self {
            Self::Store { version } if version == wanted => Ok(()),
            _ => Err(self.refusal(wanted, store)),
        }
    }

    /// Plans the way to version `wanted`. Fails for another program's database and for a newer version.
    pub(super) fn plan(self, wanted: i64, store: String) -> Result<MigrationPlan, StoreError> {
        let (applied, outcome) = match self {
            Self::Empty => (0, Initialised::Created),
            Self::Store { version } if version == wanted => (version, Initialised::UpToDate),
            Self::Store { version } if version < wanted => (version, Initialised::Migrated { from: version }),
            Self::Store { .. } | Self::Foreign => return Err(self.refusal(wanted, store)),
        };
        Ok(MigrationPlan { applied, outcome })
    }

    fn refusal(self, wanted: i64, store: String) -> StoreError {
        let (found, remedy) = match self {
            Self::Foreign => return StoreError::Foreign { store },
            Self::Empty => (0, "`sluicegate store init` fills it"),
            Self::Store { version } if version < wanted => {
                (version, "`sluicegate store init` brings it up to date")
            }
            Self::Store { version } => {
                (version, "use the sluicegate that brought it to that version, or a newer one")
            }
        };
        StoreError::Version { store, found, wanted, remedy }
    }
}
