//! A recorded latency as an OpenMetrics histogram, in seconds.

use std::fmt;

use hdrhistogram::Histogram;
use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

use crate::telemetry::Latency;

pub(super) struct LatencyMetric {
    sum_seconds: f64,
    count: u64,
    /// Upper bound in seconds, and how many fell above the bucket before and not above this one.
    buckets: Vec<(f64, u64)>,
}

impl LatencyMetric {
    /// What all threads recorded, added up.
    pub fn sum<'a>(threads: impl Iterator<Item = &'a Latency>) -> Self {
        let mut metric = Self {
            sum_seconds: 0.0,
            count: 0,
            buckets: BOUNDS_US.iter().map(|&us| (us as f64 / 1e6, 0)).chain([(f64::MAX, 0)]).collect(),
        };
        for latency in threads {
            metric.add(&latency.total());
        }
        metric
    }

    fn add(&mut self, recorded: &Histogram<u64>) {
        for value in recorded.iter_recorded() {
            let (us, count) = (value.value_iterated_to(), value.count_at_value());
            let bucket = BOUNDS_US.partition_point(|&bound| bound < us);
            self.buckets[bucket].1 += count;
            self.count += count;
            self.sum_seconds += us as f64 / 1e6 * count as f64;
        }
    }
}

impl EncodeMetric for LatencyMetric {
    fn encode(&self, mut encoder: MetricEncoder) -> Result<(), fmt::Error> {
        encoder.encode_histogram::<NoLabelSet>(self.sum_seconds, self.count, &self.buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

const BOUNDS_US: [u64; 15] = [
    50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 500_000, 1_000_000, 5_000_000,
    10_000_000,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_latency_falls_into_the_first_bucket_that_holds_it() {
        let (one, other) = (Latency::default(), Latency::default());
        one.record_us(50);
        one.record_us(51);
        other.record_us(60_000_000);
        let metric = LatencyMetric::sum([&one, &other].into_iter());
        let filled: Vec<(usize, u64)> = metric
            .buckets
            .iter()
            .enumerate()
            .filter(|(_, (_, count))| *count > 0)
            .map(|(place, (_, count))| (place, *count))
            .collect();
        assert_eq!(filled, [(0, 1), (1, 1), (15, 1)]);
        assert_eq!(metric.count, 3);
        assert!((metric.sum_seconds - 60.0).abs() < 1.0, "{}", metric.sum_seconds);
    }
}
