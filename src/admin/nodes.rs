//! The part of `/metrics` about other nodes: the directory, forwarded tunnels, and reports of device locations.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use super::Sources;
use super::openmetrics::{counter, gauge};
use crate::control::{DirectoryErrors, LocationCounts};
use crate::engine::DirectoryCounts;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct StateLabel {
    state: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(super) struct PathLabel {
    pub path: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
}

pub(super) fn encode(encoder: &mut DescriptorEncoder, sources: &Sources) -> Result<(), fmt::Error> {
    let engines = || sources.engine.counters();
    let opened: u64 = engines().map(|engine| engine.sessions.tunnels_opened.get()).sum();
    let forwarded: u64 = engines().map(|engine| engine.sessions.tunnels_forwarded.get()).sum();
    let help = "Tunnels that opened, by whether this node or another one dialled the device.";
    let mut family = encoder.encode_descriptor("tunnels", help, None, MetricType::Counter)?;
    for (path, count) in [("local", opened.saturating_sub(forwarded)), ("forwarded", forwarded)] {
        ConstCounter::new(count).encode(family.encode_family(&PathLabel { path })?)?;
    }

    let DirectoryCounts { fresh, stale } = sources.engine.directory_counts();
    let help = "Nodes in the directory, this one included, by whether their heartbeat is recent.";
    let mut family = encoder.encode_descriptor("nodes", help, None, MetricType::Gauge)?;
    for (state, count) in [("fresh", fresh), ("stale", stale)] {
        ConstGauge::new(count as i64).encode(family.encode_family(&StateLabel { state })?)?;
    }
    let help = "Other nodes that do not answer, so that requests for their devices are refused at once.";
    gauge(encoder, "nodes_hanging", help, sources.engine.hanging_peers() as i64)?;
    let used = engines().map(|engine| engine.sessions.pooled_connections_used.get()).sum();
    let help = "Requests that went to another node over a pooled connection.";
    counter(encoder, "handover_spares_used", help, used)?;
    let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
    let DirectoryErrors { failed, rivals } = &sources.directory_errors;
    let errors = read(failed);
    counter(
        encoder,
        "directory_errors",
        "Times that the heartbeat of this node could not be written to the directory.",
        errors,
    )?;
    let help = "1 while another process wants the name of this node, or has it.";
    let is_contested = read(rivals) > 0 || sources.authority.is_stand_by();
    gauge(encoder, "node_name_contested", help, i64::from(is_contested))?;

    let LocationCounts { reports, taken, refused, errors, answers } = &sources.locations;
    let help = "Devices of this node's VPN that were reported to the store, by whether the store took the report or had a later one.";
    let mut family = encoder.encode_descriptor("location_reports", help, None, MetricType::Counter)?;
    for (result, count) in [("taken", taken), ("refused", refused)] {
        ConstCounter::new(read(count)).encode(family.encode_family(&ResultLabel { result })?)?;
    }
    let help =
        "Claims of other nodes to devices of this one, by whether the device answers here and was kept.";
    let mut family = encoder.encode_descriptor("location_claims", help, None, MetricType::Counter)?;
    for (result, count) in [("kept", &answers.kept), ("yielded", &answers.yielded)] {
        ConstCounter::new(read(count)).encode(family.encode_family(&ResultLabel { result })?)?;
    }
    let help = "Devices whose location is still to be reported to the store.";
    gauge(encoder, "location_reports_waiting", help, reports.waiting() as i64)?;
    let help = "Times that device locations could not be reported to the store.";
    counter(encoder, "location_errors", help, read(errors))
}
