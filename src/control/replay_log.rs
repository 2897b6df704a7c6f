//! Decisions that were allowed of late, each once, the oldest forgotten first.

use std::collections::{HashSet, VecDeque};

use crate::authz::{Authority, Query};

/// See the module.
pub(super) struct ReplayLog {
    known: HashSet<Query>,
    /// The queries again, in the order in which they came.
    order: VecDeque<Query>,
    max: usize,
}

impl ReplayLog {
    /// Remembers `max` decisions; nothing where that is 0.
    pub(super) fn new(max: usize) -> Self {
        Self { known: HashSet::new(), order: VecDeque::new(), max }
    }

    /// Fetches what the engines have allowed since the last time.
    pub(super) fn fetch(&mut self, authority: &Authority) {
        for decision_log in authority.decision_logs() {
            decision_log.drain_allowed(|query| self.record(query));
        }
    }

    /// The queries, in the order in which they came.
    pub(super) fn queries(&self) -> &VecDeque<Query> {
        &self.order
    }

    fn record(&mut self, query: Query) {
        if self.max == 0 || !self.known.insert(query) {
            return;
        }
        self.order.push_back(query);
        if self.order.len() > self.max
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authz::KeyHash;

    fn query(port: u16) -> Query {
        Query { subject: Some(KeyHash::of_token(b"token").into()), device: None, port }
    }

    #[test]
    fn each_decision_is_remembered_once_and_the_oldest_is_forgotten() {
        let mut recent = ReplayLog::new(3);
        for port in [1, 2, 1, 1, 3, 4] {
            recent.record(query(port));
        }
        assert_eq!(recent.queries().iter().map(|query| query.port).collect::<Vec<_>>(), [2, 3, 4]);
        recent.record(query(1));
        assert_eq!(recent.queries().iter().map(|query| query.port).collect::<Vec<_>>(), [3, 4, 1]);
    }
}
