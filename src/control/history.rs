//! Snapshots that were in force before, as far back as probation goes.
//!
//! With changes every tenth of a second the snapshot before is no measure: what is wrong with the one in
//! force is wrong with it too. So a few older ones are kept, which share most of their rows.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::guard::Touched;
use crate::authz::{Change, Snapshot};
use crate::store::RowKey;

/// See the module.
pub(super) struct History {
    /// The oldest first.
    entries: VecDeque<HistoryEntry>,
    probation: Duration,
}

/// A snapshot that was in force before one or a few publications.
struct HistoryEntry {
    before: Arc<Snapshot>,
    /// Rows in which it differs from the next one.
    touched: Touched,
    /// Times of the first and the last of these publications.
    first_at: Instant,
    last_at: Instant,
}

impl History {
    /// Creates a history; where `probation` is zero it keeps nothing.
    pub(super) fn new(probation: Duration) -> Self {
        Self { entries: VecDeque::new(), probation }
    }

    /// `before` was in force until now, and what came then differs from it in `rows`.
    pub(super) fn push(&mut self, before: Arc<Snapshot>, rows: Vec<RowKey>) {
        if self.probation.is_zero() {
            return;
        }
        let now = Instant::now();
        let is_full = self.entries.len() == ENTRIES_MAX;
        let is_small = rows.len() < MANY_ROWS;
        match self.entries.back_mut() {
            Some(newest) if is_full || (is_small && now - newest.first_at < self.probation / SPACINGS) => {
                newest.touched.add(rows);
                newest.last_at = now;
            }
            _ => {
                let mut touched = Touched::nothing();
                touched.add(rows);
                self.entries.push_back(HistoryEntry { before, touched, first_at: now, last_at: now });
            }
        }
    }

    /// Applies `ends` to all: what has ended does not come back with any of them.
    pub(super) fn end(&mut self, ends: &[Change]) {
        if ends.is_empty() {
            return;
        }
        for entry in &mut self.entries {
            entry.before = Arc::new(entry.before.apply(entry.before.generation(), ends));
        }
    }

    /// Forgets what no publication is on probation against any more.
    pub(super) fn forget_old(&mut self) {
        while self.entries.front().is_some_and(|oldest| oldest.last_at.elapsed() > self.probation) {
            self.entries.pop_front();
        }
    }

    pub(super) fn forget_all(&mut self) {
        self.entries.clear();
    }

    /// Forgets `snapshot`, which is in force again, and all that came after it. Gives the rows in which it may
    /// differ from what was in force last.
    pub(super) fn return_to(&mut self, snapshot: &Snapshot) -> Touched {
        let mut touched = Touched::nothing();
        while let Some(newest) = self.entries.pop_back() {
            if newest.before.generation() < snapshot.generation() {
                self.entries.push_back(newest);
                break;
            }
            touched.merge(newest.touched);
        }
        touched
    }

    /// The snapshot that refusals are compared with.
    pub(super) fn oldest(&self) -> Option<&Arc<Snapshot>> {
        self.entries.front().map(|entry| &entry.before)
    }

    pub(super) fn newest_first(&self) -> impl Iterator<Item = &Arc<Snapshot>> {
        self.entries.iter().rev().map(|entry| &entry.before)
    }
}

/// Snapshots that are kept of small changes within one probation.
const SPACINGS: u32 = 8;

/// Rows from which on a publication gets a snapshot of its own.
const MANY_ROWS: usize = 1_000;

/// Snapshots that are kept at all. After a large change one shares nothing with the others.
const ENTRIES_MAX: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authz::{Generation, GrantId};

    fn snapshot(generation: u64) -> Arc<Snapshot> {
        Arc::new(Snapshot::build(Generation(generation), vec![], vec![], vec![]))
    }

    fn rows(count: usize) -> Vec<RowKey> {
        (0..count).map(|id| RowKey::Grant(GrantId(id as i64))).collect()
    }

    fn kept(history: &History) -> Vec<u64> {
        history.entries.iter().map(|entry| entry.before.generation().0).collect()
    }

    #[test]
    fn small_changes_share_a_snapshot_and_large_ones_have_their_own() {
        let mut history = History::new(Duration::from_secs(600));
        for (generation, count) in [(1, 1), (2, 5), (3, MANY_ROWS), (4, 1)] {
            history.push(snapshot(generation), rows(count));
        }
        assert_eq!(kept(&history), [1, 3]);
        (5..100).for_each(|generation| history.push(snapshot(generation), rows(MANY_ROWS)));
        assert_eq!(history.entries.len(), ENTRIES_MAX);
        let touched = history.return_to(&snapshot(3));
        assert_eq!(kept(&history), [1]);
        assert!(matches!(touched, Touched::Rows(rows) if rows.len() == MANY_ROWS));
    }

    #[test]
    fn a_snapshot_is_kept_for_as_long_as_a_publication_is_on_probation_against_it() {
        let mut history = History::new(Duration::from_millis(40));
        history.push(snapshot(1), rows(1));
        history.forget_old();
        assert_eq!(kept(&history), [1]);
        std::thread::sleep(Duration::from_millis(50));
        history.forget_old();
        assert_eq!(kept(&history), [0u64; 0]);
        let mut off = History::new(Duration::ZERO);
        off.push(snapshot(1), rows(1));
        assert!(off.oldest().is_none());
    }
}
