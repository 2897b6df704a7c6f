//! Who may reach what: immutable snapshots, the lock-free way to read them, and the decision.
//!
//! Reads no store and opens no socket: the control thread fills it, the engines ask it.

mod authority;
mod decide;
mod decision;
mod directory;
mod relations;
mod revocations;
mod snapshot;
mod survey;
mod table;
mod types;
mod witness;

pub use authority::{Authority, PinnedView, View};
pub use decide::Terms;
pub use decision::{Asker, Decision, Elsewhere, Query, Refusal, Route, Undecided};
pub use directory::{Directory, DirectoryCell, Holds, NodeEntry, NodeTrouble};
pub use revocations::Revocations;
pub use snapshot::{Change, Generation, RowCounts, Snapshot, SnapshotBuilder};
pub use survey::Permitted;
pub use types::{
    Credential, CredentialId, Device, DeviceId, DeviceUuid, FleetId, Grant, GrantId, KeyHash, PortRange,
    PrincipalId, Scope, UnixMillis,
};
pub use witness::{Regression, Witness};
