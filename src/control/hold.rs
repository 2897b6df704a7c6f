//! The hold in force: by which rule the guard keeps the last good snapshot, and since when.
//!
//! Reported when it begins, when another rule takes over, and when it ends.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::api;
use super::guard::{Hold, Rule};
use super::report::GuardReport;
use crate::authz::{Generation, UnixMillis};
use crate::telemetry::By;

/// A hold and its beginning, for status and commands.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HoldStatus {
    #[serde(flatten)]
    pub hold: Hold,
    pub since: UnixMillis,
}

impl HoldStatus {
    /// The hold as commands and pages show it. The whole answer waits by it.
    pub(super) fn of_everything(&self) -> api::HoldStatus {
        let rule = shown_rule(self.hold.rule);
        api::HoldStatus {
            rule,
            group: None,
            relation: None,
            rows: self.hold.extent,
            figures: self.hold.figures.clone(),
            examples: self.hold.examples.clone(),
            since: self.since,
            advice: "`sluicegate authz diff` lists what is held".to_owned(),
        }
    }
}

pub(super) fn shown_rule(rule: Rule) -> api::Rule {
    match rule {
        Rule::Contract => api::Rule::Contract,
        Rule::Bounds => api::Rule::Bounds,
        Rule::Canaries => api::Rule::Canaries,
        Rule::Location => api::Rule::Location,
        Rule::Unique | Rule::Addresses => api::Rule::Address,
        Rule::Probation | Rule::Replay => api::Rule::Probation,
        Rule::Operator => api::Rule::Operator,
        Rule::Decode | Rule::Loss | Rule::References | Rule::Revival => api::Rule::Budget,
    }
}

/// Holds so far, by rule, in the order of [`Rule::ALL`].
pub type HoldCounts = [u64; Rule::ALL.len()];

/// See the module.
pub(super) struct Holding {
    report: GuardReport,
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
    pub(super) fn new(report: GuardReport) -> Self {
        Self { report, current: None, counts: HoldCounts::default() }
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
            self.report.hold_ends(&held.status.hold, held.began.elapsed(), by, in_force);
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
                        self.report.hold_changes(&status.hold, began.elapsed(), &hold, in_force);
                        (status.since, *began)
                    }
                    None => {
                        self.report.hold_begins(&hold, in_force);
                        (UnixMillis::now(), Instant::now())
                    }
                };
                *current = Some(CurrentHold { status: HoldStatus { hold, since }, began, candidate });
            }
        }
    }
}
