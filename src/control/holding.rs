//! Whether the last good snapshot is being kept in spite of the store, since when, and by which rule.
//!
//! Told in one line when it begins, turns into another rule's, and ends.

use std::time::Instant;

use serde::Serialize;

use super::guard::{Hold, Rule};
use crate::authz::UnixMillis;

/// A hold, for whoever asks.
#[derive(Clone, Debug, Serialize)]
pub struct HoldStatus {
    #[serde(flatten)]
    pub hold: Hold,
    pub since: UnixMillis,
}

/// Holds so far, by rule, in the order of [`Rule::ALL`].
pub type HoldCounts = [u64; Rule::ALL.len()];

/// See the module.
#[derive(Default)]
pub(super) struct Holding {
    current: Option<Held>,
    counts: HoldCounts,
}

struct Held {
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
    pub(super) fn hold(&mut self, hold: Hold) {
        self.enter(hold, HeldCandidate::Present);
    }

    pub(super) fn hold_without_candidate(&mut self, hold: Hold) {
        self.enter(hold, HeldCandidate::Absent);
    }

    /// The candidate passed, or was published all the same.
    pub(super) fn heal(&mut self) {
        if let Some(held) = self.current.take() {
            tracing::info!(
                "the guard holds no more; rule {} held for {} s",
                held.status.hold.rule,
                held.began.elapsed().as_secs()
            );
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

    fn enter(&mut self, hold: Hold, candidate: HeldCandidate) {
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
                tracing::warn!("the guard holds by {hold}; the last good snapshot stays in force");
                let (since, began) = match current {
                    Some(held) => (held.status.since, held.began),
                    None => (UnixMillis::now(), Instant::now()),
                };
                *current = Some(Held { status: HoldStatus { hold, since }, began, candidate });
            }
        }
    }
}
