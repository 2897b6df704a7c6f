//! JSON documents of the admin side: the server writes them, and the commands read them.
//!
//! `public` holds what everybody may read over TCP. A type there has only the fields that an outsider may see, so
//! that a field which is added for operators does not reach outsiders.

mod drain;
mod public;
mod reload;
mod session;
mod status;

use serde::{Deserialize, Serialize};

use crate::authz::Generation;
pub use crate::control::api::{
    Accepted, BudgetUse, ChangeKind, ExpectRequest, Expectation, Group, HoldStatus, Publication,
    RelationStatus, RolledBack,
};
pub use crate::control::{DiffCounts, DiffReport, DiffRow};
pub use crate::usage::{UsageBy, UsageReport, UsageReportRow};
pub use drain::{DrainBegun, DrainEnded, DrainRequest};
pub(super) use public::{
    Null, PublicHandshake, PublicHold, PublicRelation, PublicSource, PublicStatus, STATE_ERROR, STORE_ERROR,
};
pub use reload::{ReloadAnswer, ReloadOutcome, ReloadRequested, ReloadStatus};
pub use session::{EndedSession, SessionId, SessionInfo, SessionListing};
pub use status::{
    ByteCounts, Condition, EngineThread, ListenerCounts, ListenerInfo, ListenerUse, NodeCounts, NodeFigures,
    NodeIdentity, Permissions, ProbePathStatus, ProbeResult, ProbeStatus, ReadinessState, RowsInForce,
    SessionCounts, SlowHandshake, SourceFigures, SourceStatus, StatusReport,
};

/// The body of a response that reports a failure.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ErrorBody {
    pub error: String,
}

/// A request to publish what is held, or one group of it, as it was when `digest` was printed.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AcceptRequest {
    pub digest: String,
    #[serde(default)]
    pub group: Option<Group>,
}

/// A request to go back to a generation; without one, to before the last publication.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RollbackRequest {
    #[serde(default)]
    pub generation: Option<Generation>,
}

/// A request to expect a change of `group` no more.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClearRequest {
    pub group: Group,
}

/// Queries to compare with those in force. Each is the text of a SELECT.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CandidateQueries {
    pub credentials: Option<String>,
    pub grants: Option<String>,
    pub devices: Option<String>,
    pub ended: Option<String>,
}
