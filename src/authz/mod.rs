//! Who may reach what: immutable snapshots, the lock-free way to read them, and the decision.
//!
//! Reads no store and opens no socket: the control thread fills it, the engines ask it.

mod authority;
mod decide;
mod decision;
mod decision_log;
mod directory;
mod end;
mod latest_time;
mod lookup;
mod relations;
mod revocations;
mod snapshot;
mod table;
mod types;

pub use authority::{Authority, PinnedView, View};
pub use decide::DecisionContext;
pub use decision::{Decision, DeviceRight, LoginUser, PeerRoute, Query, Refusal, Route, Subject, Undecided};
pub use decision_log::{DecisionLog, Regression};
pub use directory::{Directory, DirectoryCell, Freshness, Holds, NodeEntry};
pub use end::{End, Incarnation};
pub use lookup::Permitted;
pub use revocations::Revocations;
pub use snapshot::{Change, Generation, RowCounts, Snapshot, SnapshotBuilder};
pub use types::{
    Credential, CredentialId, Device, DeviceId, DeviceUuid, FleetId, Grant, GrantId, KeyHash, PortRange,
    PrincipalId, Scope, UnixMillis,
};
