//! The part of `/metrics` about self-probes, by the path that a probe takes.

use std::fmt;

use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::admin::api::{ProbePathStatus, ProbeResult, ProbeStatus};
use crate::admin::nodes::PathLabel;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RunsLabels {
    path: &'static str,
    result: &'static str,
}

pub(in crate::admin) fn encode(
    encoder: &mut DescriptorEncoder,
    status: &ProbeStatus,
) -> Result<(), fmt::Error> {
    let help = "1 if the last probe succeeded: over the node's own listener (local), or through the other nodes (forwarded).";
    let mut success = encoder.encode_descriptor("probe_success", help, None, MetricType::Gauge)?;
    for (path, ProbeResult { failure, .. }) in last_of_each(status) {
        ConstGauge::new(i64::from(failure.is_none())).encode(success.encode_family(&PathLabel { path })?)?;
    }
    let help = "Duration of the last probe; the longest where several nodes were probed.";
    let mut duration = encoder.encode_descriptor("probe_duration_seconds", help, None, MetricType::Gauge)?;
    for (path, ProbeResult { took_us, .. }) in last_of_each(status) {
        ConstGauge::new(*took_us as f64 / 1e6).encode(duration.encode_family(&PathLabel { path })?)?;
    }
    let mut runs = encoder.encode_descriptor("probe_runs", "Probes so far.", None, MetricType::Counter)?;
    for (path, ProbePathStatus { succeeded, failed, .. }) in status.paths() {
        for (result, count) in [("succeeded", *succeeded), ("failed", *failed)] {
            ConstCounter::new(count).encode(runs.encode_family(&RunsLabels { path, result })?)?;
        }
    }
    Ok(())
}

fn last_of_each(status: &ProbeStatus) -> impl Iterator<Item = (&'static str, &ProbeResult)> {
    status.paths().into_iter().filter_map(|(path, of_path)| Some((path, of_path.last.as_ref()?)))
}
