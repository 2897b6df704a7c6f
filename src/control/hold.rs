//! Whether the last good snapshot is being kept in spite of the store, since when, and by which rule.
//!
//! Told when it begins, turns into another rule's, and ends.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::guard::{Hold, Rule};
use super::report::GuardReport;
use crate::authz::{Generation, UnixMillis};
use crate::telemetry::By;

/// A hold, for whoever asks.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HoldStatus {
    #[serde(flatten)]
    pub hold: Hold,
    pub since: UnixMillis,
}

/// Holds so far, by rule, in the order of [`Rule::ALL`].
pub type HoldCounts = [u64; Rule::ALL.len()];

/// See the module.
pub(super) struct Holding {
    record: GuardReport,
    current: Option<CurrentHold>,
    counts: HoldCounts,
}

struct CurrentHold {
    status: HoldStatus,
    began: Instant,
    candidate: HeldCandidate,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum HeldCandidate {
    Present,
    /// The store gave nothing that could be published.
    Absent,
}

impl Holding {
    pub(super) fn new(record: GuardReport) -> Self {
        Self { record, current: None, counts: HoldCounts::default() }
    }

    /// `in_force` stays so.
    pub(super) fn hold(&mut self, hold: Hold, in_force: Option<Generation>) {
        self.enter(hold, in_force, HeldCandidate::Present);
    }

    pub(super) fn hold_without_candidate(&mut self, hold: Hold, in_force: Option<Generation>) {
        self.enter(hold, in_force, HeldCandidate::Absent);
    }

    /// The candidate passed, or was published all the same, and is `in_force`.
    pub(super) fn heal(&mut self, by: By, in_force: Option<Generation>) {
        if let Some(held) = self.current.take() {
            self.record.hold_ends(&held.status.hold, held.began.elapsed(), by, in_force);
        }
    }

    pub(super) fn is_holding(&self) -> bool {
        self.current.is_some()
    }

    pub(super) fn is_without_candidate(&self) -> bool {
        self.current.as_ref().is_some_and(|held| held.candidate == HeldCandidate::Absent)
    }

    pub(super) fn current(&self) -> Option<&HoldStatus> {
        self.current.as_ref().map(|held| &held.status)
    }

    pub(super) fn counts(&self) -> HoldCounts {
        self.counts
    }

    fn enter(&mut self, hold: Hold, in_force: Option<Generation>, candidate: HeldCandidate) {
        match &mut self.current {
            Some(held) if held.status.hold.rule == hold.rule => {
                held.status.hold = hold;
                held.candidate = candidate;
            }
            current => {
                let index = Rule::ALL.iter().position(|rule| *rule == hold.rule);
                if let Some(index) = index {
                    self.counts[index] += 1;
                }
                let (since, began) = match current {
                    Some(CurrentHold { status, began, .. }) => {
                        self.record.hold_changes(&status.hold, began.elapsed(), &hold, in_force);
                        (status.since, *began)
                    }
                    None => {
                        self.record.hold_begins(&hold, in_force);
                        (UnixMillis::now(), Instant::now())
                    }
                };
                *current = Some(CurrentHold { status: HoldStatus { hold, since }, began, candidate });
            }
        }
    }
}
