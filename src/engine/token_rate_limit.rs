//! How many tokens that nobody holds a network may show in a minute, so that guessing and scanning stay cheap for
//! the node and are told as what they are.
//!
//! Asked only once a token was found to be nobody's: what the snapshot knows is never counted and never refused
//! here, from whatever network it comes.
//!
//! A count-min sketch of a fixed size, shared by all engine threads. A cell holds no count but the time at which all
//! that was counted there is forgotten: each token puts that off by its share of a minute, and time does the rest.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::atomic::{AtomicI64, Ordering};

use ipnet::IpNet;

use crate::authz::UnixMillis;

/// See the module.
pub(super) struct TokenRateLimit {
    /// In nanoseconds since 1970, when a cell is empty again.
    rows: Box<[[AtomicI64; CELLS]; ROWS]>,
    /// Keyed at random, so that nobody can choose whom to share cells with.
    hasher: RandomState,
    /// Between two tokens of a network that never has too many. 0 where there is no bound.
    spacing_ns: i64,
}

/// Whether a network may show more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Budget {
    Left,
    Spent,
}

impl TokenRateLimit {
    /// 0 is no bound.
    pub fn new(per_minute: u32) -> Self {
        let spacing_ns = if per_minute == 0 { 0 } else { MINUTE_NS / i64::from(per_minute) };
        let rows = std::array::from_fn(|_| [const { AtomicI64::new(0) }; CELLS]);
        Self { rows: Box::new(rows), hasher: RandomState::new(), spacing_ns }
    }

    /// Takes note of one more from `source`, unless it has spent what it may. Two threads at the same moment may
    /// count one for two.
    pub fn note(&self, source: IpAddr, now: UnixMillis) -> Budget {
        if self.spacing_ns == 0 {
            return Budget::Left;
        }
        let now_ns = now.0.saturating_mul(1_000_000);
        let end_ns = now_ns.saturating_add(MINUTE_NS);
        let cells = self.cells(source);
        // One that lies further ahead than any token puts it was filled before the clock was set back.
        let empty_at = |cell: &AtomicI64| match cell.load(Ordering::Relaxed) {
            at if at <= end_ns => at.max(now_ns),
            _ => now_ns,
        };
        // Others may share some of the cells; the one that is empty first has the fewest of them.
        let next = cells.iter().map(|cell| empty_at(cell)).fold(i64::MAX, i64::min) + self.spacing_ns;
        if next > end_ns {
            return Budget::Spent;
        }
        for cell in cells {
            let put_off = |at| (at < next || at > end_ns).then_some(next);
            let _further_already = cell.fetch_update(Ordering::Relaxed, Ordering::Relaxed, put_off);
        }
        Budget::Left
    }

    /// One of each row.
    fn cells(&self, source: IpAddr) -> [&AtomicI64; ROWS] {
        let hash = self.hasher.hash_one(network(source));
        std::array::from_fn(|row| &self.rows[row][(hash >> (16 * row)) as usize % CELLS])
    }
}

/// What one party is likely to have: an IPv4 /24, an IPv6 /64.
fn network(address: IpAddr) -> IpNet {
    let address = address.to_canonical();
    let prefix = if address.is_ipv4() { 24 } else { 64 };
    IpNet::new(address, prefix).expect("both are valid prefixes").trunc()
}

const MINUTE_NS: i64 = 60_000_000_000;

/// Sixteen bits of a hash for each.
const ROWS: usize = 4;

/// A power of two, 128 KiB in all rows. While 400 networks spend all they may, one other in 10,000 is taken for one
/// of them.
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

    /// How many of `count` are let through at one moment.
    fn let_through(tokens: &TokenRateLimit, source: &str, now: UnixMillis, count: usize) -> usize {
        (0..count).filter(|_| tokens.note(from(source), now) == Budget::Left).count()
    }

    #[test]
    fn a_network_may_show_so_many_a_minute_and_no_more() {
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
    fn nobody_hides_in_a_network_of_his_own_and_no_other_network_is_touched() {
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
    fn many_networks_take_no_more_room_and_hardly_ever_each_others_share() {
        let tokens = TokenRateLimit::new(60);
        for network in 0..400_u32 {
            let source = IpAddr::from((0x0a00_0000 + (network << 8)).to_be_bytes());
            let passed = (0..100).filter(|_| tokens.note(source, NOW) == Budget::Left).count();
            assert!(passed >= 59, "{passed} of 60 from network {network}");
        }
        assert_eq!(size_of_val(&*tokens.rows), 128 * 1024);
        let spared = (0..1_000_u32)
            .filter(|network| {
                let source = IpAddr::from((0x0b00_0000 + (network << 8)).to_be_bytes());
                tokens.note(source, NOW) == Budget::Left
            })
            .count();
        assert!(spared >= 990, "{spared} of 1000 networks that did nothing");
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
