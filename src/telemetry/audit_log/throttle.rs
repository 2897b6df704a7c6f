//! How many refusals of one source are written one by one; the rest is summed.
//!
//! A source is an IPv4 address or an IPv6 /64. Its time begins with a refusal, and ends [`WINDOW`] later with a
//! line that says how many were not written, if any. Counters know nothing of it.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use ipnet::IpNet;

use crate::telemetry::{Cause, MoreRefusals};

/// See the module.
pub(super) struct Throttle {
    /// Refusals of one source that are written within its time.
    written_max: u32,
    /// Refusals by source. `None` stands for all clients beyond [`SOURCES_MAX`] sources, and for those without an
    /// address.
    sources: HashMap<Option<IpNet>, SourceRefusals>,
    /// End of each source's window, in the order in which the windows began.
    ends: VecDeque<(Instant, Option<IpNet>)>,
}

/// Outcome of the throttle for one refusal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Admitted {
    ToBeWritten,
    Summed,
}

/// One source's refusals in its time.
#[derive(Default)]
struct SourceRefusals {
    written: u32,
    summed: BTreeMap<Cause, u64>,
}

impl Throttle {
    pub fn new(written_max: u32) -> Self {
        Self { written_max, sources: HashMap::new(), ends: VecDeque::new() }
    }

    /// Writes up to `written_max` refusals of a source within its time, from now on.
    pub fn set_written_max(&mut self, written_max: u32) {
        self.written_max = written_max;
    }

    pub fn admit(&mut self, client: Option<SocketAddr>, cause: Cause, now: Instant) -> Admitted {
        let mut source = client.map(|client| network(client.ip()));
        if self.sources.len() >= SOURCES_MAX && !self.sources.contains_key(&source) {
            source = None;
        }
        let seen = self.sources.entry(source).or_insert_with(|| {
            self.ends.push_back((now + WINDOW, source));
            SourceRefusals::default()
        });
        if seen.written < self.written_max {
            seen.written += 1;
            return Admitted::ToBeWritten;
        }
        *seen.summed.entry(cause).or_default() += 1;
        Admitted::Summed
    }

    /// The sum of the next source whose time has ended and that had more refusals than were written.
    pub fn next_sum(&mut self, now: Instant) -> Option<MoreRefusals> {
        while self.ends.front().is_some_and(|(end, _)| *end <= now) {
            let sum = self.close_first(WINDOW);
            if sum.is_some() {
                return sum;
            }
        }
        None
    }

    /// The sum of the next source, before its time has ended. For the close of the log.
    pub fn next_sum_early(&mut self, now: Instant) -> Option<MoreRefusals> {
        while let Some((end, _)) = self.ends.front() {
            let left = end.saturating_duration_since(now);
            let sum = self.close_first(WINDOW.saturating_sub(left));
            if sum.is_some() {
                return sum;
            }
        }
        None
    }

    /// Time of the next end of a window.
    pub fn next_end(&self) -> Option<Instant> {
        self.ends.front().map(|(end, _)| *end)
    }

    fn close_first(&mut self, lasted: Duration) -> Option<MoreRefusals> {
        let (_, source) = self.ends.pop_front()?;
        let causes = self.sources.remove(&source)?.summed;
        let refusals = causes.values().sum();
        let seconds = lasted.as_millis().div_ceil(1000) as u64;
        (refusals > 0).then_some(MoreRefusals { source, refusals, seconds, causes })
    }
}

/// Network that counts as one source: an IPv4 address, or an IPv6 /64.
fn network(address: IpAddr) -> IpNet {
    let address = address.to_canonical();
    let prefix_bits = if address.is_ipv4() { 32 } else { 64 };
    IpNet::new(address, prefix_bits).expect("both are lengths that an address has").trunc()
}

/// Time in which refusals of one source are counted together. Long enough to make one line of thousands, short
/// enough that the line still helps an operator who watches.
pub(super) const WINDOW: Duration = Duration::from_secs(10);

/// Number of sources that are kept apart at a time, in some 100 bytes each. What comes from others then is one source
/// together, so that a flood from everywhere is summed as well.
pub(super) const SOURCES_MAX: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;
    use Admitted::{Summed, ToBeWritten};

    const A: Cause = Cause::NoGrant;
    const B: Cause = Cause::PortNotGranted;

    fn client(number: usize) -> Option<SocketAddr> {
        let [.., a, b] = (number as u64).to_be_bytes();
        Some(([198, 18, a, b], 1024).into())
    }

    #[test]
    fn what_a_source_has_too_much_of_is_summed_by_cause_and_others_are_written() {
        let now = Instant::now();
        let mut throttle = Throttle::new(2);
        let admitted: Vec<_> = [A, B, A, B, B].map(|cause| throttle.admit(client(1), cause, now)).into();
        assert_eq!(admitted, [ToBeWritten, ToBeWritten, Summed, Summed, Summed]);
        assert_eq!(throttle.admit(client(2), A, now), ToBeWritten, "another source");
        assert_eq!(throttle.next_sum(now), None, "its time has not ended");
        let sum = throttle.next_sum(now + WINDOW).unwrap();
        assert_eq!(sum.to_string(), "3 more refusals from 198.18.0.1/32 in the last 10 s");
        assert_eq!(sum.causes, BTreeMap::from([(A, 1), (B, 2)]));
        assert_eq!(throttle.next_sum(now + WINDOW), None, "the other had nothing to add");
        assert_eq!(throttle.admit(client(1), A, now + WINDOW), ToBeWritten, "a new time");
    }

    #[test]
    fn a_client_cannot_hide_in_its_own_ipv6_network() {
        let now = Instant::now();
        let mut throttle = Throttle::new(1);
        let from = |address: &str| Some(SocketAddr::new(address.parse().unwrap(), 1));
        assert_eq!(throttle.admit(from("2001:db8::1"), A, now), ToBeWritten);
        assert_eq!(throttle.admit(from("2001:db8::ffff:1"), A, now), Summed);
        assert_eq!(throttle.admit(from("2001:db8:0:1::1"), A, now), ToBeWritten, "another /64");
        assert_eq!(throttle.admit(from("::ffff:192.0.2.1"), A, now), ToBeWritten);
        assert_eq!(throttle.admit(from("192.0.2.1"), A, now), Summed, "the same address, written otherwise");
    }

    #[test]
    fn sources_beyond_the_table_are_one_source_together() {
        let now = Instant::now();
        let mut throttle = Throttle::new(1);
        for number in 0..SOURCES_MAX {
            assert_eq!(throttle.admit(client(number), A, now), ToBeWritten);
        }
        assert_eq!(throttle.admit(client(SOURCES_MAX), A, now), ToBeWritten, "the first of the others");
        for number in 0..1_000 {
            assert_eq!(throttle.admit(client(SOURCES_MAX + number), A, now), Summed);
        }
        assert_eq!(throttle.sources.len(), SOURCES_MAX + 1);
        let sum = throttle.next_sum(now + WINDOW).unwrap();
        assert_eq!(sum.to_string(), "1000 more refusals from other sources in the last 10 s");
        assert_eq!((throttle.sources.len(), throttle.ends.len()), (0, 0), "and all are forgotten");
    }

    #[test]
    fn a_million_sources_take_no_more_room_than_the_table_and_write_no_more_lines() {
        let now = Instant::now();
        let mut throttle = Throttle::new(1);
        let address =
            |number: u32| Some(SocketAddr::new(std::net::Ipv4Addr::from_bits(number << 8).into(), 1));
        let written = (0..1_000_000).filter(|number| throttle.admit(address(*number), A, now) == ToBeWritten);
        assert_eq!(written.count(), SOURCES_MAX + 1);
        assert_eq!((throttle.sources.len(), throttle.ends.len()), (SOURCES_MAX + 1, SOURCES_MAX + 1));
    }

    #[test]
    fn what_is_summed_when_the_log_closes_is_told_then() {
        let now = Instant::now();
        let mut throttle = Throttle::new(1);
        for _ in 0..3 {
            let _summed_but_for_one = throttle.admit(None, A, now);
        }
        let sum = throttle.next_sum_early(now + Duration::from_millis(2_100)).unwrap();
        assert_eq!((sum.refusals, sum.seconds, sum.source), (2, 3, None));
        assert_eq!(throttle.next_sum_early(now), None);
    }
}
