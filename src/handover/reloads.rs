//! The reloads that the old process was asked for: who waits for the outcome of one hears it from the new process.

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use crate::authz::UnixMillis;

/// What came of a reload.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ReloadOutcome {
    pub number: u64,
    pub at: UnixMillis,
    /// Reason for which it was refused, in one line for each error; `None` where it was taken over.
    pub error: Option<String>,
}

/// The reloads of a process, as they are when another one takes over.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct PassedReloads {
    /// Reloads that were asked for.
    asked: u64,
    /// Number of the last that was done; the others wait.
    done: u64,
    /// The latest outcomes, the newest last.
    outcomes: Vec<ReloadOutcome>,
}

impl PassedReloads {
    /// `outcomes` are the latest, the newest last. The older ones and the ends of long reasons are left out.
    pub fn new(asked: u64, done: u64, outcomes: impl DoubleEndedIterator<Item = ReloadOutcome>) -> Self {
        let shorten = |why: String| why.chars().take(WHY_LETTERS_MAX).collect();
        let newest = outcomes.rev().take(OUTCOMES_MAX);
        let mut outcomes: Vec<_> =
            newest.map(|outcome| ReloadOutcome { error: outcome.error.map(shorten), ..outcome }).collect();
        outcomes.reverse();
        Self { asked, done, outcomes }
    }

    /// The numbers of those that wait, of which there are at most `bound`.
    pub fn waiting(&self, bound: usize) -> RangeInclusive<u64> {
        let first = self.asked.saturating_sub(bound as u64).max(self.done);
        first.saturating_add(1)..=self.asked
    }

    pub fn asked(&self) -> u64 {
        self.asked
    }

    pub fn into_outcomes(self) -> Vec<ReloadOutcome> {
        self.outcomes
    }
}

/// Outcomes that are passed on. Who waits asks many times a second, so that only the newest can still be asked for.
const OUTCOMES_MAX: usize = 4;

/// Letters of a reason. With the outcomes that are passed on, at most half of a message even where each is escaped.
const WHY_LETTERS_MAX: usize = 1024;

#[cfg(test)]
mod tests {
    use super::super::message::{MESSAGE_BYTES_MAX, Step};
    use super::*;

    #[test]
    fn outcomes_with_long_reasons_fit_into_a_message() {
        let outcome =
            |number| ReloadOutcome { number, at: UnixMillis(i64::MAX), error: Some("\u{1}".repeat(100_000)) };
        let reloads = PassedReloads::new(u64::MAX, u64::MAX, (1..=16).map(outcome));
        let numbers: Vec<_> = reloads.outcomes.iter().map(|outcome| outcome.number).collect();
        assert_eq!(numbers, [13, 14, 15, 16]);
        let step = Step::Commit { next_number: u64::MAX, reloads };
        assert!(serde_json::to_vec(&step).unwrap().len() <= MESSAGE_BYTES_MAX / 2);
    }

    #[test]
    fn no_more_wait_than_the_bound_whatever_the_other_process_says() {
        let waiting = |asked, done| PassedReloads::new(asked, done, [].into_iter()).waiting(8);
        assert_eq!(waiting(5, 3), 4..=5);
        assert_eq!(waiting(5, 5).count(), 0);
        assert_eq!(waiting(3, 5).count(), 0);
        assert_eq!(waiting(u64::MAX, 0).count(), 8);
    }
}
