//! `/status.json` and `/authz/status`, as an operator gets them.
//!
//! Counts only grow while the process runs. A client reads twice and subtracts to get a rate, so the node keeps none.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::{BudgetUse, Expectation, HoldStatus, RelationStatus, ReloadStatus, SessionId, SessionInfo};
use crate::authz::{DeviceUuid, Generation, UnixMillis};
use crate::sys::confine::Confinement;

/// `/status.json` for an operator.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StatusReport {
    #[serde(flatten)]
    pub figures: NodeFigures,
    pub node: NodeIdentity,
    pub config: ReloadStatus,
    /// `None` from a relay of an older version.
    #[serde(default)]
    pub confinement: Option<Confinement>,
    pub conditions: Vec<Condition>,
    pub probe: ProbeStatus,
    pub source: SourceStatus,
    /// The slowest first, from accept to reply, of the last minute.
    pub slowest: Vec<SlowHandshake>,
    /// The fastest sessions. `None` where the engine did not list its sessions in time.
    pub top: Option<Vec<SessionInfo>>,
}

/// The part of `/status.json` that everybody may read. Every field added here is public.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeFigures {
    pub version: String,
    /// Time of this report, by the relay's clock.
    pub at: UnixMillis,
    pub readiness: ReadinessState,
    /// Reason for a readiness other than `ready`.
    pub why: Option<String>,
    pub sessions: SessionCounts,
    pub bytes: ByteCounts,
    /// Refusals so far, by their true cause.
    pub refusals: BTreeMap<String, u64>,
    pub nodes: NodeCounts,
    pub threads: Vec<EngineThread>,
    /// Time until which the snapshot in force decides, if the store stays silent: `authz.max_stale` after it confirmed
    /// the snapshot. `None` where nothing is in force.
    pub decides_until: Option<UnixMillis>,
    pub may: Permissions,
}

/// Something on the node that somebody should act on.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Condition {
    /// Name of the alert in monitoring/alerts.yml, and of the section in monitoring/OPERATIONS.md.
    pub alert: String,
    /// What is wrong, in one line.
    pub text: String,
}

/// The node itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeIdentity {
    /// `vpn.node`.
    pub name: Option<String>,
    pub started_at: UnixMillis,
    pub listeners: Vec<ListenerInfo>,
}

/// A listener that accepts.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct ListenerInfo {
    pub address: SocketAddr,
    pub serves: ListenerUse,
    pub tls: bool,
    #[serde(flatten)]
    pub counts: ListenerCounts,
}

/// Sessions of the clients of one listener. All are 0 from a relay of an older version.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct ListenerCounts {
    /// Sessions that exist now.
    pub sessions: u64,
    /// Tunnels that have opened.
    pub opened: u64,
    pub refused: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ListenerUse {
    Clients,
    /// Other nodes, with requests of their clients.
    Nodes,
}

/// Readiness of the node, without the reason.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReadinessState {
    Ready,
    /// Ready: the guard holds some changes, and the rest is in force.
    Holding,
    /// Ready: something is missing that does not keep clients from being served now.
    Impaired,
    Draining,
    /// Not ready: there is no snapshot, or it is too old.
    Undecided,
    /// Not ready: something is missing that every new client needs.
    Unable,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct SessionCounts {
    /// Sessions that exist now.
    pub active: u64,
    pub max: u64,
    pub accepted: u64,
    pub refused: u64,
    pub undecided: u64,
    /// Tunnels that have opened.
    pub opened: u64,
    /// Tunnels that have ended.
    pub closed: u64,
}

/// Forwarded bytes, by direction and path. Up is from client to device.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct ByteCounts {
    pub up_copied: u64,
    pub up_spliced: u64,
    pub up_tls: u64,
    pub down_copied: u64,
    pub down_spliced: u64,
    pub down_tls: u64,
}

/// Nodes in the directory, this one included. Both are 0 where the node stands alone.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct NodeCounts {
    /// Nodes whose heartbeat is recent.
    pub fresh: usize,
    pub stale: usize,
}

/// Work of one engine thread.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct EngineThread {
    pub number: usize,
    /// CPU time so far in nanoseconds, spinning included. `None` where the kernel keeps no count.
    pub cpu_ns: Option<u64>,
    pub turns: u64,
    pub spins_hit: u64,
    pub spins_missed: u64,
    /// Sessions that exist now.
    pub sessions: u64,
}

/// Actions that the requester of a report may take.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Permissions {
    pub see_sessions: bool,
    /// The node has an admin token, so a request that shows it may end sessions.
    pub end_with_token: bool,
}

/// Results of the self-probe, by the path that a probe takes.
#[derive(Clone, Default, Debug, Serialize, Deserialize)]
pub struct ProbeStatus {
    pub local: ProbePathStatus,
    pub forwarded: ProbePathStatus,
}

#[derive(Clone, Default, Debug, Serialize, Deserialize)]
pub struct ProbePathStatus {
    /// The newest result. `None` before the first probe, and while there is no other node to probe.
    pub last: Option<ProbeResult>,
    pub succeeded: u64,
    pub failed: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ProbeResult {
    pub at: UnixMillis,
    /// Time from connect to reply; the longest where several nodes were probed.
    pub took_us: u64,
    /// Reason of the failure. `None` for a success.
    pub failure: Option<String>,
}

/// State of the store and of the guard: the source of all decisions.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SourceStatus {
    /// Name of the store, such as its URL without a password.
    pub store: String,
    /// Error of the last read. `None` where it succeeded.
    pub last_error: Option<String>,
    /// Everything that is held. What is not held takes effect.
    pub holds: Vec<HoldStatus>,
    /// Mass changes that an operator has announced.
    pub expectations: Vec<Expectation>,
    /// Reading of each relation.
    pub relations: Vec<RelationStatus>,
    /// Reason why the state on disk is older than what is in force. `None` where it is not.
    pub state_unsaved: Option<String>,
    #[serde(flatten)]
    pub figures: SourceFigures,
}

/// The part of [`SourceStatus`] that everybody may read. Every field added here is public.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SourceFigures {
    /// Number of the snapshot in force. `None` before the first.
    pub generation: Option<Generation>,
    pub rows: RowsInForce,
    /// Time when the store last confirmed the snapshot in force.
    pub confirmed_at: UnixMillis,
    /// Holds so far, by rule.
    pub holds_by_rule: BTreeMap<String, u64>,
    /// Budgets of which something is used.
    pub budgets: Vec<BudgetUse>,
    /// Devices that are not dialled because it cannot be decided whose their address is.
    pub disputed_devices: usize,
    /// Rows that do not decode now.
    pub quarantined: usize,
    pub absences_waiting: usize,
    pub absences_honoured: u64,
    pub on_probation: bool,
    pub regressions: u64,
    pub rollbacks: u64,
    pub rights_not_understood: usize,
    /// One line for each kind of problem in the store's rows.
    pub warnings: Vec<String>,
}

/// Rows in the snapshot in force.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct RowsInForce {
    pub credentials: usize,
    pub grants: usize,
    pub devices: usize,
}

/// A session that took long from accept to reply.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SlowHandshake {
    pub at: UnixMillis,
    pub us: u64,
    /// `open`, or the true cause of the refusal.
    pub outcome: Cow<'static, str>,
    pub session: SessionId,
    pub uuid: Option<DeviceUuid>,
    pub port: Option<u16>,
}

impl ByteCounts {
    pub fn up(self) -> u64 {
        self.up_copied + self.up_spliced + self.up_tls
    }

    pub fn down(self) -> u64 {
        self.down_copied + self.down_spliced + self.down_tls
    }
}

impl ProbeStatus {
    /// Both paths with their names.
    pub fn paths(&self) -> [(&'static str, &ProbePathStatus); 2] {
        [("local", &self.local), ("forwarded", &self.forwarded)]
    }
}

impl fmt::Display for ReadinessState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ready => "ready",
            Self::Holding => "holding",
            Self::Impaired => "impaired",
            Self::Draining => "draining",
            Self::Undecided => "undecided",
            Self::Unable => "unable",
        })
    }
}
