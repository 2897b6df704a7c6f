//! Encodes a recorded latency as an OpenMetrics histogram, in seconds.

use std::fmt;

use hdrhistogram::Histogram;
use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

use crate::telemetry::Latency;

/// Unit of a recorded latency, and the upper bounds of its buckets in that unit.
#[derive(Clone, Copy)]
pub(super) struct Scale {
    per_second: f64,
    bounds: &'static [u64],
}

/// Scale of latencies that include the network.
pub(super) const MICROSECONDS: Scale = Scale {
    per_second: 1e6,
    bounds: &[
        50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 500_000, 1_000_000,
        5_000_000, 10_000_000,
    ],
};

/// Scale of latencies of memory alone.
pub(super) const NANOSECONDS: Scale =
    Scale { per_second: 1e9, bounds: &[200, 500, 1_000, 2_000, 5_000, 10_000, 50_000, 100_000, 1_000_000] };

pub(super) struct LatencyMetric {
    scale: Scale,
    sum_seconds: f64,
    count: u64,
    /// Upper bound in seconds, and the number of values above the previous bound and at most this one.
    buckets: Vec<(f64, u64)>,
}

impl LatencyMetric {
    /// Adds up the recordings of all threads.
    pub fn sum<'a>(threads: impl Iterator<Item = &'a Latency>, scale: Scale) -> Self {
        let ends = scale.bounds.iter().map(|&bound| bound as f64 / scale.per_second);
        let mut metric = Self {
            scale,
            sum_seconds: 0.0,
            count: 0,
            buckets: ends.chain([f64::INFINITY]).map(|end| (end, 0)).collect(),
        };
        for latency in threads {
            metric.add(&latency.total());
        }
        metric
    }

    fn add(&mut self, recorded: &Histogram<u64>) {
        for value in recorded.iter_recorded() {
            let (duration, count) = (value.value_iterated_to(), value.count_at_value());
            let bucket = self.scale.bounds.partition_point(|&bound| bound < duration);
            self.buckets[bucket].1 += count;
            self.count += count;
            self.sum_seconds += duration as f64 / self.scale.per_second * count as f64;
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

#[cfg(test)]
mod tests {
    use prometheus_client::collector::Collector;
    use prometheus_client::encoding::DescriptorEncoder;
    use prometheus_client::encoding::text::encode;
    use prometheus_client::registry::Registry;

    use super::*;

    #[test]
    fn each_latency_falls_into_the_first_bucket_that_holds_it() {
        let (one, other) = (Latency::default(), Latency::default());
        one.record_us(50);
        one.record_us(51);
        other.record_us(60_000_000);
        let metric = LatencyMetric::sum([&one, &other].into_iter(), MICROSECONDS);
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

    #[test]
    fn the_last_bucket_has_no_upper_bound() {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(OneMinute));
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        let last = text.lines().rfind(|line| line.contains("_bucket")).unwrap();
        assert_eq!(last, r#"latency_bucket{le="+Inf"} 1"#, "{text}");
    }

    /// A latency of one minute, which is above every bound.
    #[derive(Debug)]
    struct OneMinute;

    impl Collector for OneMinute {
        fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
            let latency = Latency::default();
            latency.record_us(60_000_000);
            let metric = LatencyMetric::sum([&latency].into_iter(), MICROSECONDS);
            metric.encode(encoder.encode_descriptor("latency", "A latency.", None, metric.metric_type())?)
        }
    }
}
