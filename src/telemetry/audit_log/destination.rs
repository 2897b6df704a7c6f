//! What the file and the journal have in common: the state of a destination, and an event as a line.

use std::io;

use serde::Serialize;

use super::LostEvents;
use crate::telemetry::AuditEvent;

/// DestinationState of a destination of audit events. Each change is logged once.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum DestinationState {
    Writing,
    /// `lost_before` is the count of lost events when it began.
    Failing {
        lost_before: u64,
    },
}

/// An event as one line of JSON, its time first.
#[derive(Serialize)]
pub(super) struct AuditLine<'a> {
    pub time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<&'a str>,
    #[serde(flatten)]
    pub event: &'a AuditEvent,
}

impl DestinationState {
    /// Applies the outcome of a write to `destination`, and logs where that changes the state.
    pub fn record(&mut self, destination: &'static str, outcome: io::Result<()>, lost: &LostEvents) {
        *self = match (outcome, *self) {
            (Err(error), Self::Writing) => {
                tracing::error!(%error, "{destination} takes no audit events; see to it, or events get lost");
                Self::Failing { lost_before: lost.get() }
            }
            (Ok(()), Self::Failing { lost_before }) => {
                tracing::warn!(lost = lost.get() - lost_before, "{destination} takes audit events again");
                Self::Writing
            }
            (_, state) => state,
        };
    }
}
