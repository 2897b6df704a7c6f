//! Which transactions of the outbox a reader has seen.
//!
//! Ids in the outbox are not in commit order, and neither are transaction numbers: a transaction gets its number while
//! it runs, and may commit late. A reader therefore remembers the first number that it has not come to, and which
//! transactions below it were still open. All others below have ended, and what they wrote was seen. What is new is
//! found by the index alone: from that number on, and at each of the open ones. So a read costs the number of new rows
//! and of open transactions, whatever was written behind an open one.

use serde::{Deserialize, Serialize};

/// The transactions that a reader has seen.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Horizon {
    /// First transaction that the reader has not come to.
    pub(super) next: i64,
    /// Transactions below `next` that were open. A server has no more than it has connections and prepared
    /// transactions. Sorted.
    pub(super) open: Vec<i64>,
    /// Transactions from `next` on whose rows were read all the same, since the last read alone.
    /// Sorted.
    #[serde(skip)]
    seen: Vec<i64>,
}

/// Transactions that were open at a moment, as a server gives them.
pub(super) struct OpenTransactions {
    /// Every transaction from here on was open, or yet to come.
    pub(super) next: i64,
    /// Open transactions below `next`.
    pub(super) open: Vec<i64>,
}

impl Horizon {
    /// Horizon of a reader that has seen nothing.
    pub(super) const BEGINNING: Self = Self { next: 0, open: Vec::new(), seen: Vec::new() };

    /// Horizon of a reader that has seen what ended before `moment`.
    pub(super) fn at(moment: OpenTransactions) -> Self {
        Self::BEGINNING.after(moment, std::iter::empty())
    }

    /// True if rows of `xid` are new to the reader.
    pub(super) fn is_new(&self, xid: i64) -> bool {
        let is_among = |sorted: &[i64]| sorted.binary_search(&xid).is_ok();
        if xid < self.next { is_among(&self.open) } else { !is_among(&self.seen) }
    }

    /// True if `pruned`, the newest transaction whose rows have left the outbox, may be one that was not seen.
    pub(super) fn may_miss(&self, pruned: i64, still_open: &[i64]) -> bool {
        pruned >= self.next || self.open.iter().any(|xid| *xid <= pruned && !still_open.contains(xid))
    }

    /// The horizon after a read of all new rows, whose transactions are `read`, that showed everything that had ended
    /// before `moment`.
    pub(super) fn after(&self, moment: OpenTransactions, read: impl Iterator<Item = i64>) -> Self {
        let next = self.next.max(moment.next);
        let mut open = moment.open;
        // A server that is behind the one before does not know of these yet.
        open.extend(self.open.iter().copied().filter(|xid| *xid >= moment.next));
        open.retain(|xid| *xid < next);
        open.sort_unstable();
        open.dedup();
        let mut seen: Vec<_> = self.seen.iter().copied().chain(read).filter(|xid| *xid >= next).collect();
        seen.sort_unstable();
        seen.dedup();
        Self { next, open, seen }
    }
}

impl OpenTransactions {
    /// Cuts the moment short, so that everything from `xid` on counts as not ended.
    pub(super) fn before(mut self, xid: i64) -> Self {
        self.next = self.next.min(xid);
        self.open.retain(|open| *open < self.next);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moment(next: i64, open: &[i64]) -> OpenTransactions {
        OpenTransactions { next, open: open.to_vec() }
    }

    #[test]
    fn rows_of_open_and_later_transactions_are_new() {
        let horizon = Horizon::at(moment(10, &[3, 7]));
        let new: Vec<_> = (0..13).filter(|xid| horizon.is_new(*xid)).collect();
        assert_eq!(new, [3, 7, 10, 11, 12]);
    }

    #[test]
    fn an_open_transaction_stays_new_until_it_has_ended_and_costs_one_entry() {
        let mut horizon = Horizon::at(moment(10, &[3]));
        for next in (1_000..100_000).step_by(1_000) {
            horizon = horizon.after(moment(next, &[3]), std::iter::empty());
        }
        assert_eq!(horizon.open, [3]);
        horizon = horizon.after(moment(100_001, &[]), [3].into_iter());
        assert!(!horizon.is_new(3) && horizon.open.is_empty() && horizon.seen.is_empty());
    }

    #[test]
    fn rows_that_a_standby_showed_before_it_came_to_their_transaction_are_new_once() {
        let horizon = Horizon::at(moment(10, &[]));
        let after = horizon.after(moment(10, &[]), [10, 12].into_iter());
        assert!(!after.is_new(10) && after.is_new(11) && !after.is_new(12));
        let later = after.after(moment(12, &[11]), std::iter::empty());
        assert!(later.is_new(11) && !later.is_new(12) && later.is_new(13));
    }

    #[test]
    fn a_server_that_is_behind_takes_nothing_back() {
        let horizon = Horizon::at(moment(100, &[40, 90]));
        let behind = horizon.after(moment(50, &[40]), std::iter::empty());
        assert_eq!((behind.next, &behind.open[..]), (100, &[40, 90][..]));
    }

    #[test]
    fn a_read_that_was_cut_short_goes_on_at_the_cut() {
        let horizon = Horizon::BEGINNING.after(moment(100, &[10, 60]).before(50), [5, 20].into_iter());
        assert_eq!((horizon.next, &horizon.open[..]), (50, &[10][..]));
        assert!(horizon.is_new(50) && !horizon.is_new(20));
    }

    #[test]
    fn a_prune_is_a_gap_only_where_something_unseen_may_have_gone() {
        let horizon = Horizon::at(moment(100, &[40]));
        assert!(!horizon.may_miss(39, &[]));
        assert!(!horizon.may_miss(99, &[40]), "it is open, so its rows are there");
        assert!(horizon.may_miss(99, &[]));
        assert!(horizon.may_miss(100, &[40]));
    }
}
