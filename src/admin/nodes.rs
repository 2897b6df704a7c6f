//! The part of `/metrics` about other nodes: those that can be asked, the tunnels by them, and what they are told by the
//! store.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use super::Sources;
use super::openmetrics::{counter, gauge};
use crate::control::LocationCounts;
use crate::engine::Neighbours;

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
    let help = "Tunnels that opened, by whether this node dialled the device or another one did.";
    let mut family = encoder.encode_descriptor("tunnels", help, None, MetricType::Counter)?;
    for (path, count) in [("local", opened.saturating_sub(forwarded)), ("forwarded", forwarded)] {
        ConstCounter::new(count).encode(family.encode_family(&PathLabel { path })?)?;
    }

    let Neighbours { fresh, stale } = sources.engine.neighbours();
    let help =
        "Nodes in the directory, this one among them, by whether they have said of late that they live.";
    let mut family = encoder.encode_descriptor("nodes", help, None, MetricType::Gauge)?;
    for (state, count) in [("fresh", fresh), ("stale", stale)] {
        ConstGauge::new(count as i64).encode(family.encode_family(&StateLabel { state })?)?;
    }
    let used = engines().map(|engine| engine.sessions.spares_used.get()).sum();
    let help = "Requests handed to another node by a connection that was there before.";
    counter(encoder, "handover_spares_used", help, used)?;
    let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
    let errors = read(&sources.directory_errors);
    counter(encoder, "directory_errors", "Times that the directory of nodes could not be kept.", errors)?;

    let LocationCounts { reports, taken, refused, errors } = &sources.locations;
    let help = "Devices that this node's VPN has, as the store was told, by whether it has them so now or somebody else was later.";
    let mut family = encoder.encode_descriptor("location_reports", help, None, MetricType::Counter)?;
    for (result, count) in [("taken", taken), ("refused", refused)] {
        ConstCounter::new(read(count)).encode(family.encode_family(&ResultLabel { result })?)?;
    }
    let help = "Devices whose whereabouts are still to be told to the store.";
    gauge(encoder, "location_reports_waiting", help, reports.waiting() as i64)?;
    let help = "Times that the store could not be told where devices are.";
    counter(encoder, "location_errors", help, read(errors))
}
