//! What the relay itself says of the ends by revocation.

use super::test_support::Relay;

/// The relay's own histogram of ends by revocation.
pub struct OwnHistogram {
    /// Upper bounds in seconds, in their order, and how many ends lie under each.
    buckets: Vec<(f64, u64)>,
    pub count: u64,
}

impl OwnHistogram {
    pub fn read(relay: &Relay) -> Self {
        let page = relay.admin_get("/metrics");
        let buckets: Vec<(f64, u64)> = page
            .lines()
            .filter_map(|line| line.strip_prefix("sluicegate_revoked_to_closed_seconds_bucket{le=\""))
            .map(|line| line.split_once("\"} ").expect("a bound and a count"))
            .map(|(bound, count)| (bound.parse().unwrap(), count.parse().unwrap()))
            .collect();
        let count = buckets.last().expect("the relay exports it").1;
        Self { buckets, count }
    }

    /// What has been added since `before`.
    pub fn since(self, before: &Self) -> Self {
        let buckets = self.buckets.iter().zip(&before.buckets);
        Self {
            buckets: buckets.map(|((bound, count), (_, known))| (*bound, count - known)).collect(),
            count: self.count - before.count,
        }
    }

    pub fn bound(&self, quantile: f64) -> f64 {
        let wanted = (quantile * self.count as f64).ceil() as u64;
        self.buckets.iter().find(|(_, count)| *count >= wanted).unwrap().0
    }
}
