//! The part of `/metrics` about other nodes: those that can be asked, and the tunnels by them.

use std::fmt;

use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use super::Sources;
use super::metrics::counter;
use crate::engine::Neighbours;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct StateLabel {
    state: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(super) struct PathLabel {
    pub path: &'static str,
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
    let errors = sources.directory_errors.load(std::sync::atomic::Ordering::Relaxed);
    counter(encoder, "directory_errors", "Times that the directory of nodes could not be kept.", errors)
}
