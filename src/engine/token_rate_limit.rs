//! Limits the unknown tokens that a network may show in a minute, so that guessing and scanning stay cheap for the
//! node and are logged as such.
//!
//! It is used only after a token was found to be unknown. A token that the snapshot knows is never counted and never
//! refused here, whatever its network.
//!
//! The counts are a count-min sketch of a fixed size, shared by all engine threads. A cell holds a time instead of a
//! count: the time when the cell is empty again. Each token moves it later by its share of a minute.

use std::net::IpAddr;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::limits::network_of;
use crate::authz::UnixMillis;

/// The unknown tokens of all networks in the last minute.
pub(super) struct TokenRateLimit {
    /// Times when the cells are empty again, in ns since the epoch.
    rows: Box<[[AtomicI64; CELLS]; ROWS]>,
    /// The key of the hash function, at random, so that an attacker cannot choose a network to share cells with.
    key: [AtomicU64; 2],
    /// Time between two tokens at the highest allowed rate, in ns; 0 where there is no bound.
    spacing_ns: AtomicI64,
}

/// What is counted, for another process that goes on counting.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct TokenCounts {
    key: [u64; 2],
    /// Cells that are not empty, by their places, with the time when they are.
    cells: Vec<(u16, i64)>,
}

impl TokenCounts {
    /// The same in parts of at most `cells_max` cells.
    pub fn parts(&self, cells_max: usize) -> impl Iterator<Item = Self> {
        self.cells.chunks(cells_max).map(|cells| Self { key: self.key, cells: cells.to_vec() })
    }
}

/// The budget of a network for further unknown tokens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Budget {
    Left,
    Spent,
}

impl TokenRateLimit {
    /// A limit of `per_minute` for each network; 0 is no bound.
    pub fn new(per_minute: u32) -> Self {
        let rows = std::array::from_fn(|_| [const { AtomicI64::new(0) }; CELLS]);
        Self {
            rows: Box::new(rows),
            // Without a random number of the system, one that changes with each start has to do.
            key: [(); 2].map(|()| AtomicU64::new(getrandom::u64().unwrap_or(UnixMillis::now().0 as u64))),
            spacing_ns: AtomicI64::new(spacing_ns(per_minute)),
        }
    }

    /// Puts another limit in force. What networks have shown so far counts on.
    pub fn replace(&self, per_minute: u32) {
        self.spacing_ns.store(spacing_ns(per_minute), Ordering::Relaxed);
    }

    /// Counts one more unknown token from the network of `source`, unless its budget is spent. Two threads at the
    /// same moment may count two tokens as one.
    pub fn record(&self, source: IpAddr, now: UnixMillis) -> Budget {
        let spacing_ns = self.spacing_ns.load(Ordering::Relaxed);
        if spacing_ns == 0 {
            return Budget::Left;
        }
        let now_ns = now.0.saturating_mul(1_000_000);
        let end_ns = now_ns.saturating_add(MINUTE_NS);
        let cells = self.cells(source);
        // A time further ahead than any token sets it was set before the clock went back.
        let empty_at = |cell: &AtomicI64| match cell.load(Ordering::Relaxed) {
            at if at <= end_ns => at.max(now_ns),
            _ => now_ns,
        };
        // Other networks may share some of the cells; the cell that is empty first has the fewest of their tokens.
        let next = cells.iter().map(|cell| empty_at(cell)).fold(i64::MAX, i64::min) + spacing_ns;
        if next > end_ns {
            return Budget::Spent;
        }
        for cell in cells {
            let put_off = |at| (at < next || at > end_ns).then_some(next);
            let _further_already = cell.fetch_update(Ordering::Relaxed, Ordering::Relaxed, put_off);
        }
        Budget::Left
    }

    /// What is counted now.
    pub fn counts(&self, now: UnixMillis) -> TokenCounts {
        let now_ns = now.0.saturating_mul(1_000_000);
        let all = self.rows.iter().flatten().map(|cell| cell.load(Ordering::Relaxed));
        let cells = (0..).zip(all).filter(|(_, empty_at)| *empty_at > now_ns).collect();
        TokenCounts { key: self.key.each_ref().map(|part| part.load(Ordering::Relaxed)), cells }
    }

    /// Goes on from `counts`. What was counted here by another key is of no use any more.
    pub fn go_on_from(&self, counts: &TokenCounts) {
        for (part, key) in self.key.iter().zip(counts.key) {
            part.store(key, Ordering::Relaxed);
        }
        for (place, empty_at) in &counts.cells {
            let (row, cell) = (usize::from(*place) / CELLS, usize::from(*place) % CELLS);
            if let Some(row) = self.rows.get(row) {
                row[cell].fetch_max(*empty_at, Ordering::Relaxed);
            }
        }
    }

    /// The cells of a network, one of each row.
    fn cells(&self, source: IpAddr) -> [&AtomicI64; ROWS] {
        let mut hash = Sha256::new();
        self.key.iter().for_each(|part| hash.update(part.load(Ordering::Relaxed).to_le_bytes()));
        match network_of(source) {
            IpNet::V4(network) => hash.update(network.network().octets()),
            IpNet::V6(network) => hash.update(network.network().octets()),
        }
        let hash = hash.finalize();
        std::array::from_fn(|row| {
            let number = u16::from_le_bytes([hash[2 * row], hash[2 * row + 1]]);
            &self.rows[row][usize::from(number) % CELLS]
        })
    }
}

/// Time between two tokens at the rate of `per_minute`, in ns; 0 where there is no bound.
fn spacing_ns(per_minute: u32) -> i64 {
    if per_minute == 0 { 0 } else { MINUTE_NS / i64::from(per_minute) }
}

const MINUTE_NS: i64 = 60_000_000_000;

/// Rows of the sketch; each uses sixteen bits of a hash.
const ROWS: usize = 4;

/// Cells of a row: a power of two, 128 KiB in all rows. While 400 networks spend their budgets, one in 10,000 other
/// networks finds its budget spent too.
const CELLS: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixMillis = UnixMillis(1_700_000_000_000);

    fn after(ms: i64) -> UnixMillis {
        UnixMillis(NOW.0 + ms)
    }

    fn from(address: &str) -> IpAddr {
        address.parse().unwrap()
    }

    /// Number of `count` tokens at one moment that are within the budget.
    fn let_through(tokens: &TokenRateLimit, source: &str, now: UnixMillis, count: usize) -> usize {
        (0..count).filter(|_| tokens.record(from(source), now) == Budget::Left).count()
    }

    #[test]
    fn a_network_may_show_as_many_tokens_a_minute_as_the_limit() {
        for per_minute in [1, 7, 60, 100_000] {
            let tokens = TokenRateLimit::new(per_minute);
            let passed = let_through(&tokens, "192.0.2.1", NOW, per_minute as usize + 10);
            assert_eq!(passed, per_minute as usize);
        }
    }

    #[test]
    fn a_minute_later_it_may_show_as_many_again_and_before_that_its_share() {
        let tokens = TokenRateLimit::new(60);
        assert_eq!(let_through(&tokens, "192.0.2.1", NOW, 1_000), 60);
        assert_eq!(let_through(&tokens, "192.0.2.1", after(999), 10), 0);
        assert_eq!(let_through(&tokens, "192.0.2.1", after(10_000), 100), 10, "ten seconds' worth");
        assert_eq!(let_through(&tokens, "192.0.2.1", after(70_000), 100), 60);
    }

    #[test]
    fn all_addresses_of_a_network_share_a_budget_and_no_other_network_does() {
        let tokens = TokenRateLimit::new(3);
        for (sources, other) in [
            (["192.0.2.1", "192.0.2.255", "::ffff:192.0.2.7"], "192.0.3.1"),
            (["2001:db8::1", "2001:db8::ffff:1", "2001:db8:0:0:ffff::"], "2001:db8:0:1::1"),
        ] {
            assert!(sources.iter().all(|source| let_through(&tokens, source, NOW, 1) == 1));
            assert!(sources.iter().all(|source| let_through(&tokens, source, NOW, 1) == 0));
            assert_eq!(let_through(&tokens, other, NOW, 5), 3);
        }
    }

    #[test]
    fn many_networks_take_no_more_memory_and_seldom_share_a_budget() {
        let tokens = TokenRateLimit::new(60);
        for network in 0..400_u32 {
            let source = IpAddr::from((0x0a00_0000 + (network << 8)).to_be_bytes());
            let passed = (0..100).filter(|_| tokens.record(source, NOW) == Budget::Left).count();
            assert!(passed >= 59, "{passed} of 60 from network {network}");
        }
        assert_eq!(size_of_val(&*tokens.rows), 128 * 1024);
        let spared = (0..1_000_u32)
            .filter(|network| {
                let source = IpAddr::from((0x0b00_0000 + (network << 8)).to_be_bytes());
                tokens.record(source, NOW) == Budget::Left
            })
            .count();
        assert!(spared >= 990, "{spared} of 1000 networks that did nothing");
    }

    #[test]
    fn another_process_goes_on_where_one_has_stopped() {
        let (one, other) = (TokenRateLimit::new(60), TokenRateLimit::new(60));
        assert_eq!(let_through(&one, "192.0.2.1", NOW, 50), 50);
        assert_eq!(let_through(&one, "2001:db8::1", NOW, 100), 60);
        let counts = one.counts(NOW);
        // In parts, as they are sent.
        for part in counts.parts(3) {
            let sent = serde_json::to_vec(&part).unwrap();
            other.go_on_from(&serde_json::from_slice(&sent).unwrap());
        }
        assert_eq!(let_through(&other, "192.0.2.1", NOW, 100), 10);
        assert_eq!(let_through(&other, "2001:db8::1", NOW, 100), 0);
        assert_eq!(let_through(&other, "198.51.100.1", NOW, 100), 60);
        assert_eq!(one.counts(after(60_001)).cells, [], "a minute later there is nothing to pass on");
        other.go_on_from(&TokenCounts { key: [0; 2], cells: vec![(u16::MAX, 1)] });
    }

    #[test]
    fn a_clock_that_is_set_back_throttles_nobody_for_longer() {
        let tokens = TokenRateLimit::new(2);
        assert_eq!(let_through(&tokens, "192.0.2.1", NOW, 5), 2);
        assert_eq!(let_through(&tokens, "192.0.2.1", after(-3_600_000), 5), 2);
        assert_eq!(let_through(&tokens, "192.0.2.1", after(-3_540_000), 5), 2);
    }

    #[test]
    fn without_a_bound_there_is_none() {
        assert_eq!(let_through(&TokenRateLimit::new(0), "192.0.2.1", NOW, 10_000), 10_000);
    }
}
