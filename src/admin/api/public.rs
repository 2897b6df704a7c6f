//! `/status.json` for an outsider: a request over TCP that may not see sessions.
//!
//! The document has the same keys as the operator's, so that a page can read both. Keys whose value is private are
//! [`Null`] or an empty list here. They cannot hold a value.

use serde::Serialize;

use super::{
    Condition, Group, HoldStatus, NodeFigures, ProbeResult, ProbeStatus, RelationStatus, SourceFigures,
};
use crate::authz::UnixMillis;
use crate::control::api::Rule;

/// `null`, in the place of a private value.
#[derive(Clone, Copy, Default, Debug, Serialize)]
pub struct Null;

/// An empty list, in the place of private values.
type EmptyList = [Null; 0];

#[derive(Clone, Debug, Serialize)]
pub struct PublicStatus {
    #[serde(flatten)]
    pub figures: NodeFigures,
    /// The name and the listeners of a node are nobody's business.
    pub node: Null,
    /// Errors of a configuration name files and values.
    pub config: Null,
    /// The obstacles for an attacker are nobody's business.
    pub confinement: Null,
    pub conditions: Vec<Condition>,
    pub probe: PublicProbeStatus,
    pub source: PublicSource,
    pub slowest: Vec<PublicHandshake>,
    pub top: Null,
}

#[derive(Clone, Debug, Serialize)]
pub struct PublicProbeStatus {
    pub local: PublicProbePath,
    pub forwarded: PublicProbePath,
}

#[derive(Clone, Debug, Serialize)]
pub struct PublicProbePath {
    pub last: Option<PublicProbeResult>,
    pub succeeded: u64,
    pub failed: u64,
}

#[derive(Clone, Debug, Serialize)]
pub struct PublicProbeResult {
    pub at: UnixMillis,
    pub took_us: u64,
    /// One fixed text for every failure: the true one names hosts and files.
    pub failure: Option<&'static str>,
}

#[derive(Clone, Debug, Serialize)]
pub struct PublicSource {
    pub store: Null,
    /// One fixed text for every error: the true one names hosts and rows.
    pub last_error: Option<&'static str>,
    pub holds: Vec<PublicHold>,
    pub expectations: EmptyList,
    pub relations: Vec<PublicRelation>,
    /// One fixed text for every reason: the true one names files.
    pub state_unsaved: Option<&'static str>,
    #[serde(flatten)]
    pub figures: SourceFigures,
}

#[derive(Clone, Debug, Serialize)]
pub struct PublicHold {
    pub rule: Rule,
    pub group: Option<Group>,
    pub relation: Option<String>,
    pub rows: usize,
    pub figures: Null,
    pub examples: EmptyList,
    pub since: UnixMillis,
    pub advice: Null,
}

#[derive(Clone, Debug, Serialize)]
pub struct PublicRelation {
    pub relation: String,
    pub rows: usize,
    pub read_at: Option<UnixMillis>,
    /// One fixed text for every error: the true one names hosts and rows.
    pub error: Option<&'static str>,
    pub errors: u64,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub struct PublicHandshake {
    pub at: UnixMillis,
    pub us: u64,
    pub outcome: &'static str,
    pub session: Null,
    pub uuid: Null,
    pub port: Null,
}

impl From<ProbeStatus> for PublicProbeStatus {
    fn from(status: ProbeStatus) -> Self {
        let path = |path: super::ProbePathStatus| PublicProbePath {
            last: path.last.map(PublicProbeResult::from),
            succeeded: path.succeeded,
            failed: path.failed,
        };
        Self { local: path(status.local), forwarded: path(status.forwarded) }
    }
}

impl From<ProbeResult> for PublicProbeResult {
    fn from(result: ProbeResult) -> Self {
        let ProbeResult { at, took_us, failure } = result;
        Self { at, took_us, failure: failure.map(|_| PROBE_FAILURE) }
    }
}

impl From<HoldStatus> for PublicHold {
    fn from(held: HoldStatus) -> Self {
        let HoldStatus { rule, group, relation, rows, since, .. } = held;
        Self { rule, group, relation, rows, figures: Null, examples: [], since, advice: Null }
    }
}

impl From<RelationStatus> for PublicRelation {
    fn from(status: RelationStatus) -> Self {
        let RelationStatus { relation, rows, read_at, error, errors } = status;
        Self { relation, rows, read_at, error: error.map(|_| STORE_ERROR), errors }
    }
}

const PROBE_FAILURE: &str = "the node's own client is not served";

/// Error of a store, without its host.
pub const STORE_ERROR: &str = "the store cannot be read";

/// Reason why the state on disk is old, without the name of a file.
pub const STATE_ERROR: &str = "the state on disk cannot be written";
