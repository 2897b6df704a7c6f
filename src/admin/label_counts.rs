//! The part of `/metrics` with counters by label: refusals and ends of tunnels by their causes, TLS handshakes by
//! their outcomes, TLS tunnels by what handles their records.

use std::fmt;

use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;

use crate::engine::EngineHandle;
use crate::telemetry::{CountLabel, EngineCounters, LabelCounts, RefusalLabel};

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RefusalLabels {
    slug: &'static str,
    cause: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct EndLabel {
    cause: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct HandshakeLabel {
    outcome: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct TunnelLabel {
    records: &'static str,
}

pub(super) fn encode(encoder: &mut DescriptorEncoder, engine: &EngineHandle) -> Result<(), fmt::Error> {
    let help = "Refusals, by the reply that the client got (Sluicegate-Reason) and the true cause.";
    let mut family = encoder.encode_descriptor("refusals", help, None, MetricType::Counter)?;
    for (RefusalLabel { reply, cause }, count) in sums(engine, |counters| &counters.refusals) {
        let labels = RefusalLabels { slug: reply.slug().unwrap_or_default(), cause: cause.slug() };
        ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
    }
    let help = "Tunnels that ended, by cause.";
    let mut family = encoder.encode_descriptor("tunnel_ends", help, None, MetricType::Counter)?;
    for (cause, count) in sums(engine, |counters| &counters.ends) {
        ConstCounter::new(count).encode(family.encode_family(&EndLabel { cause: cause.slug() })?)?;
    }
    let help = "TLS handshakes with clients, by outcome.";
    let mut family = encoder.encode_descriptor("tls_handshakes", help, None, MetricType::Counter)?;
    for (outcome, count) in sums(engine, |counters| &counters.tls_handshakes) {
        let label = HandshakeLabel { outcome: outcome.slug() };
        ConstCounter::new(count).encode(family.encode_family(&label)?)?;
    }
    let help =
        "TLS tunnels that were opened, by what opens and seals their records: the kernel or the process.";
    let mut family = encoder.encode_descriptor("tls_tunnels", help, None, MetricType::Counter)?;
    for (by, count) in sums(engine, |counters| &counters.tls_tunnels) {
        let label = TunnelLabel { records: by.slug() };
        ConstCounter::new(count).encode(family.encode_family(&label)?)?;
    }
    Ok(())
}

/// Sums over all engine threads, without the labels that counted nothing.
fn sums<L: CountLabel>(
    engine: &EngineHandle,
    counts: impl Fn(&EngineCounters) -> &LabelCounts<L>,
) -> impl Iterator<Item = (L, u64)> {
    let sum = move |label: L| engine.counters().map(|each| counts(each).get(label)).sum();
    L::all().map(move |label| (label, sum(label))).filter(|(_, sum)| *sum > 0)
}
