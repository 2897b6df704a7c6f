//! Audit events: each tunnel that ended, each refusal, each operator's command, what the guard does, and who used what
//! in each interval; and the sender that emits them.
//!
//! A sender puts an event into a bounded queue and never waits. docs/audit.md describes every field.

mod guard;
mod session;
mod usage;

use std::fmt;
use std::net::SocketAddr;
use std::time::Instant;

use crossbeam::channel::Sender;
use serde::Serialize;

use super::LostEvents;

pub use guard::{
    Alarm, By, HeldGroup, HoldChange, HoldEnd, QuarantinedRow, QuarantinedRows, RegressionSeen, Rollback,
};
pub use session::{MoreRefusals, SessionEnd, SessionFacts, SessionRefusal};
pub use usage::Usage;

#[derive(Clone, Debug, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum AuditEvent {
    SessionEnd(SessionEnd),
    Refusal(SessionRefusal),
    MoreRefusals(MoreRefusals),
    OperatorCommand(OperatorCommand),
    HoldBegin(HeldGroup),
    HoldChange(HoldChange),
    HoldEnd(HoldEnd),
    Rollback(Rollback),
    Regression(RegressionSeen),
    /// Too many regressions, without a rollback.
    RegressionAlarm(Alarm),
    Quarantine(QuarantinedRow),
    MoreQuarantined(QuarantinedRows),
    Usage(Usage),
}

/// Something that a person had the node do, or tried to.
#[derive(Clone, Debug, Serialize)]
pub struct OperatorCommand {
    pub command: &'static str,
    pub by: Proof,
    /// User of the process that asked, as far as the kernel knows it.
    pub uid: Option<u32>,
    pub pid: Option<i32>,
    /// Address that the command came from; `None` for the local socket.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client: Option<SocketAddr>,
    /// `done` or `refused`.
    pub outcome: &'static str,
    pub detail: String,
}

/// Proof by which a request counts as an operator's.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Proof {
    /// The requester could open the local socket.
    LocalSocket,
    AdminToken,
    /// The token was wrong, so the requester is no operator.
    WrongToken,
}

/// Sends audit events, from any thread. Cheap to clone.
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

    /// A sender whose events a test reads.
    #[cfg(any(test, simulation))]
    pub(crate) fn to_channel(events_max: usize) -> (Self, crossbeam::channel::Receiver<AuditEvent>) {
        let (queue, events) = crossbeam::channel::bounded(events_max);
        (Self::into_queue(queue, LostEvents::default()), events)
    }

    pub(super) fn into_queue(queue: Sender<AuditEvent>, lost: LostEvents) -> Self {
        Self { queue: Some(queue), lost }
    }

    /// Sends an event. Returns `false` where the queue was full, which an engine counts itself. Without an audit log
    /// the event is dropped and counts as sent.
    #[must_use]
    pub fn send(&self, event: AuditEvent) -> bool {
        match &self.queue {
            Some(queue) => queue.try_send(event).is_ok(),
            None => true,
        }
    }

    /// Sends an event for a thread that has many at once and may wait for room in the queue, until `give_up_at`.
    /// Where there is none by then, the event is counted as lost and logged.
    pub fn emit_by(&self, event: AuditEvent, give_up_at: Instant) {
        let Some(queue) = &self.queue else { return };
        if let Err(late) = queue.send_deadline(event, give_up_at) {
            self.lost.add(1);
            tracing::error!("the audit log's queue is full; it misses: {}", late.into_inner());
        }
    }

    /// Sends an event for a thread that sends few and keeps no counters. Where the queue is full, the event is counted
    /// as lost and logged.
    pub fn emit(&self, event: AuditEvent) {
        let Some(queue) = &self.queue else { return };
        if let Err(refused) = queue.try_send(event) {
            self.lost.add(1);
            tracing::error!("the audit log's queue is full; it misses: {}", refused.into_inner());
        }
    }
}

/// Formats the event as one line for a person.
impl fmt::Display for AuditEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SessionEnd(end) => end.fmt(f),
            Self::Refusal(refusal) => refusal.fmt(f),
            Self::MoreRefusals(more) => more.fmt(f),
            Self::OperatorCommand(OperatorCommand { command, outcome, detail, .. }) => {
                write!(f, "operator's command {command} {outcome}: {detail}")
            }
            Self::HoldBegin(held) => held.fmt(f),
            Self::HoldChange(change) => change.fmt(f),
            Self::HoldEnd(end) => end.fmt(f),
            Self::Rollback(rollback) => rollback.fmt(f),
            Self::Regression(regression) => regression.fmt(f),
            Self::RegressionAlarm(Alarm { rule, figures, .. }) => {
                write!(f, "what is in force may be wrong, by {rule}: {figures}")
            }
            Self::Quarantine(QuarantinedRow { row, reason }) => write!(f, "quarantined {row}: {reason}"),
            Self::MoreQuarantined(QuarantinedRows { rows }) => write!(f, "quarantined {rows} more rows"),
            Self::Usage(usage) => usage.fmt(f),
        }
    }
}
