//! JSON documents of the admin side: the server writes them, and the commands read them.
//!
//! `public` holds what everybody may read over TCP. A type there has only the fields that an outsider may see, so
//! that a field which is added for operators does not reach outsiders.

mod public;
mod session;
mod status;

use serde::{Deserialize, Serialize};

pub use crate::control::{AcceptedHold, DiffCounts, DiffReport, DiffRow, HoldStatus, RolledBack};
pub(super) use public::{Null, PublicHandshake, PublicHold, PublicSource, PublicStatus, STORE_ERROR};
pub use session::{EndedSession, SessionId, SessionInfo, SessionListing};
pub use status::{
    ByteCounts, EngineThread, NodeCounts, NodeFigures, Permissions, ProbePathStatus, ProbeResult,
    ProbeStatus, ReadinessState, RelationRows, SessionCounts, SlowHandshake, SourceFigures, SourceStatus,
    StatusReport,
};

/// The body of a response that reports a failure.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ErrorBody {
    pub error: String,
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
