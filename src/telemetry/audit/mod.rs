//! Audit events: each tunnel that ended, each refusal, each operator's command, and what the guard does; and
//! the way to tell them.
//!
//! Whoever tells one puts it into a bounded queue and never waits. docs/audit.md describes every field.

mod guard;
mod session;

use std::fmt;
use std::net::SocketAddr;

use crossbeam::channel::Sender;
use serde::Serialize;

use super::LostEvents;

pub use guard::{Alarm, By, HoldChange, HoldEnd, QuarantinedRow, QuarantinedRows, RegressionSeen, Rollback};
pub use session::{MoreRefusals, SessionEnd, SessionFacts, SessionRefusal};

#[derive(Clone, Debug, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum AuditEvent {
    SessionEnd(SessionEnd),
    Refusal(SessionRefusal),
    MoreRefusals(MoreRefusals),
    OperatorCommand(OperatorCommand),
    HoldBegin(Alarm),
    HoldChange(HoldChange),
    HoldEnd(HoldEnd),
    Rollback(Rollback),
    Regression(RegressionSeen),
    /// Too many regressions, and nothing was gone back to.
    RegressionAlarm(Alarm),
    Quarantine(QuarantinedRow),
    MoreQuarantined(QuarantinedRows),
}

/// Something that a person had the node do, or tried to.
#[derive(Clone, Debug, Serialize)]
pub struct OperatorCommand {
    pub command: &'static str,
    pub by: Proof,
    /// Of the process that asked, as far as the kernel tells.
    pub uid: Option<u32>,
    pub pid: Option<i32>,
    /// Where they asked from, where that was not the local socket.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client: Option<SocketAddr>,
    /// `done` or `refused`.
    pub outcome: &'static str,
    pub detail: String,
}

/// By what an operator is believed to be one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Proof {
    /// They could open it.
    LocalSocket,
    AdminToken,
    /// They are not.
    WrongToken,
}

/// The way to tell events, from any thread. Cheap to clone.
#[derive(Clone)]
pub struct AuditSender {
    queue: Option<Sender<AuditEvent>>,
    lost: LostEvents,
}

impl AuditSender {
    /// A sender into nowhere, for a node without an audit log.
    pub fn disabled() -> Self {
        Self { queue: None, lost: LostEvents::default() }
    }

    pub(super) fn into_queue(queue: Sender<AuditEvent>, lost: LostEvents) -> Self {
        Self { queue: Some(queue), lost }
    }

    /// Whether the event was taken, or nobody wants it; `false` where the queue was full. For engines, which
    /// count that themselves.
    #[must_use]
    pub fn send(&self, event: AuditEvent) -> bool {
        match &self.queue {
            Some(queue) => queue.try_send(event).is_ok(),
            None => true,
        }
    }

    /// As [`send`](Self::send), for threads that tell little and keep no counters: what finds the queue full is
    /// counted as lost, and told in the log.
    pub fn emit(&self, event: AuditEvent) {
        let Some(queue) = &self.queue else { return };
        if let Err(refused) = queue.try_send(event) {
            self.lost.add(1);
            tracing::error!("the audit log's queue is full; it misses: {}", refused.into_inner());
        }
    }
}

/// In words, for people who read one line.
impl fmt::Display for AuditEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SessionEnd(end) => end.fmt(f),
            Self::Refusal(refusal) => refusal.fmt(f),
            Self::MoreRefusals(more) => more.fmt(f),
            Self::OperatorCommand(OperatorCommand { command, outcome, detail, .. }) => {
                write!(f, "operator's command {command} {outcome}: {detail}")
            }
            Self::HoldBegin(Alarm { rule, figures, .. }) => write!(f, "the guard holds by {rule}: {figures}"),
            Self::HoldChange(change) => change.fmt(f),
            Self::HoldEnd(end) => end.fmt(f),
            Self::Rollback(rollback) => rollback.fmt(f),
            Self::Regression(regression) => regression.fmt(f),
            Self::RegressionAlarm(Alarm { rule, figures, .. }) => {
                write!(f, "what is in force may be wrong, by {rule}: {figures}")
            }
            Self::Quarantine(QuarantinedRow { row, reason }) => write!(f, "quarantined {row}: {reason}"),
            Self::MoreQuarantined(QuarantinedRows { rows }) => write!(f, "quarantined {rows} more rows"),
        }
    }
}
