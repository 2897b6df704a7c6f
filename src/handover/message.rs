//! The messages of a hand-over.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::reloads::PassedReloads;
use crate::authz::{Refusal, UnixMillis};
use crate::engine::{MovedFacts, SessionRow, TokenCounts, Verdict};

/// A step of the protocol. Its form never changes: a field that a process does not know is ignored, and one that it
/// lacks has a default.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "kebab-case")]
pub(super) enum Step {
    /// The first message of either side.
    Hello {
        format: u32,
        version: String,
        pid: u32,
        #[serde(default)]
        abilities: Abilities,
        /// New: it goes on with the status page's last hour.
        #[serde(default)]
        takes_history: bool,
    },
    /// New: the configuration is right.
    Checked,
    /// New: it cannot take over.
    Refused { why: String },
    /// Old: a client listener, by its address in the configuration. The socket is beside it.
    Listener { address: SocketAddr },
    /// Old: the listener of the admin side.
    Admin { address: SocketAddr },
    /// Old: the listener for health checks alone.
    Health { address: SocketAddr },
    /// Old: the admin side's local socket.
    LocalSocket { path: PathBuf },
    /// Old: what it reads by its queries, which follow.
    Schema { name: String },
    /// Old: a query that an operator has put in place of its own for `relation`, or the next part of it.
    Query { relation: String, text: String },
    /// Old: all sockets were sent, and nothing is written any more. `decides` where it has rights to decide by, so that
    /// the new process has to have some too.
    Start {
        #[serde(default)]
        decides: bool,
    },
    /// New: all threads run. `has_local_socket` where it uses the one that was sent.
    Ready { has_local_socket: bool },
    /// Old: the unknown tokens that clients have shown, or some of them.
    UnknownTokens { counts: TokenCounts },
    /// Old: points of the status page's last hour, each as JSON, the oldest first. Only to a process that takes them.
    History { points: Vec<String> },
    /// Old: clients are not accepted any more. Numbers of sessions from `next_number` are free.
    Commit {
        next_number: u64,
        #[serde(default)]
        reloads: PassedReloads,
    },
    /// New: clients are accepted.
    Running,
    /// Old: the service manager knows the new process.
    Main,
}

/// What a new process does that earlier versions did not.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Abilities {
    /// It compares changed queries, and understands `Schema` and `Query`.
    pub compares_queries: bool,
    /// It says so before it ends in good order.
    pub says_farewell: bool,
    /// It understands `UnknownTokens`.
    pub counts_unknown_tokens: bool,
}

impl Abilities {
    /// Those of this version.
    pub const ALL: Self = Self { compares_queries: true, says_farewell: true, counts_unknown_tokens: true };
}

/// A message about tunnels and sessions, from [`Step::Main`] on.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Traffic {
    // From the old process.
    /// A tunnel; its descriptors are beside it. It belongs to the next `BatchEnd`.
    Tunnel(Box<TunnelFields>),
    /// Bytes of the last tunnel's direction, in order.
    Unsent {
        direction: FlowName,
        bytes: Vec<u8>,
    },
    /// All tunnels of the batch were sent.
    BatchEnd(u64),
    /// The batch is the new process's from here on: the old one has closed its descriptors.
    Yours(u64),
    /// Sessions that the old process has.
    Held(#[serde(with = "rows_as_json")] Vec<SessionRow>),
    /// Sessions that it has no more, by their end.
    Gone(Vec<u64>),
    /// A part of the answer to `List`.
    Rows {
        request: u64,
        #[serde(with = "rows_as_json")]
        rows: Vec<SessionRow>,
        is_last: bool,
    },
    /// The answer to `End`.
    Ended {
        request: u64,
        was_found: bool,
    },
    // From the new process.
    /// The batch has come whole.
    Got(u64),
    /// Decisions about rights to sessions of the old process.
    Judged(Vec<(u64, VerdictFields)>),
    List {
        request: u64,
    },
    End {
        request: u64,
        session: u64,
    },
    /// It ends in good order, and nobody is to go on in its place.
    Farewell,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) enum FlowName {
    Up,
    Down,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct TunnelFields {
    pub facts: MovedFacts,
    /// Address of its listener in the configuration.
    pub listener: Option<SocketAddr>,
    pub client_has_tls: bool,
    pub device_has_tls: bool,
    pub up: FlowFields,
    pub down: FlowFields,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct FlowFields {
    pub bytes: u64,
    pub source_ended: bool,
    pub finished: bool,
    pub unsent: UnsentFields,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum UnsentFields {
    Nothing,
    /// So many bytes follow.
    Bytes(u32),
    /// A pipe with so many bytes is beside the tunnel, its read end first.
    Pipe(u32),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) enum VerdictFields {
    Stands(Option<UnixMillis>),
    Ended(Refusal),
}

impl From<VerdictFields> for Verdict {
    fn from(fields: VerdictFields) -> Self {
        match fields {
            VerdictFields::Stands(expires_at) => Self::Stands(expires_at),
            VerdictFields::Ended(refusal) => Self::Ended(refusal),
        }
    }
}

/// Rows as JSON within the binary format: they leave out fields, which that format cannot.
mod rows_as_json {
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};

    use crate::engine::SessionRow;

    pub fn serialize<S: Serializer>(rows: &[SessionRow], serializer: S) -> Result<S::Ok, S::Error> {
        serde_json::to_string(rows).map_err(ser::Error::custom)?.serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<SessionRow>, D::Error> {
        serde_json::from_str(&String::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

/// Version of [`Traffic`] and of all that is in it.
pub(super) const FORMAT: u32 = 1;

/// Bytes of a message, at most. A packet of a socket pair may have some 200 KiB.
pub(super) const MESSAGE_BYTES_MAX: usize = 64 * 1024;

/// Bytes of points that one message has, without the commas between them.
pub(super) const HISTORY_BYTES_MAX: usize = 32 * 1024;

/// Points that a process takes: more than an hour has.
pub(super) const POINTS_MAX: usize = 1_000;

/// Bytes of a tunnel that one message carries.
pub(super) const UNSENT_BYTES_MAX: usize = 32 * 1024;

/// Time that a new process has to get ready. Tests of a debug build may set a shorter one.
pub(super) fn ready_time() -> Duration {
    #[cfg(debug_assertions)]
    if let Some(ms) = std::env::var("SLUICEGATE_TEST_READY_MS").ok().and_then(|text| text.parse().ok()) {
        return Duration::from_millis(ms);
    }
    READY_TIME_MAX
}

/// Time from the start of the new process until it is ready. Shorter than an answer of the local socket may take;
/// 10 million grants are restored within some 10 s.
pub(super) const READY_TIME_MAX: Duration = Duration::from_secs(40);

/// Sessions that one message lists: some 700 bytes each.
pub(super) const ROWS_MAX: usize = 48;

/// Cells of the count of unknown tokens that one message has: some 30 bytes each.
pub(super) const TOKEN_CELLS_MAX: usize = 1024;

/// Numbers or verdicts that one message has.
pub(super) const NUMBERS_MAX: usize = 2048;
