//! The part of `/metrics` that says why: refusals and ends of tunnels by their causes, TLS handshakes by theirs.

use std::collections::BTreeMap;
use std::fmt;

use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;

use crate::engine::EngineHandle;
use crate::telemetry::RefusalCause;

/// Words of the program's own: no client can make more of them.
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
    let help = "Refusals, by what the client was told (Sluicegate-Reason) and the true cause.";
    let mut family = encoder.encode_descriptor("refusals", help, None, MetricType::Counter)?;
    for (RefusalCause { slug, cause }, count) in sum(engine.counters().flat_map(|each| each.refusals.get())) {
        ConstCounter::new(count).encode(family.encode_family(&RefusalLabels { slug, cause })?)?;
    }
    let help = "Tunnels that ended, by cause.";
    let mut family = encoder.encode_descriptor("tunnel_ends", help, None, MetricType::Counter)?;
    for (cause, count) in sum(engine.counters().flat_map(|each| each.ends.get())) {
        ConstCounter::new(count).encode(family.encode_family(&EndLabel { cause })?)?;
    }
    let help = "TLS handshakes with clients, by how they came out.";
    let mut family = encoder.encode_descriptor("tls_handshakes", help, None, MetricType::Counter)?;
    for (outcome, count) in sum(engine.counters().flat_map(|each| each.tls_handshakes.get())) {
        ConstCounter::new(count).encode(family.encode_family(&HandshakeLabel { outcome })?)?;
    }
    let help = "Tunnels by TLS that were opened, by who opens and seals their records.";
    let mut family = encoder.encode_descriptor("tls_tunnels", help, None, MetricType::Counter)?;
    for (records, count) in sum(engine.counters().flat_map(|each| each.tls_tunnels.get())) {
        ConstCounter::new(count).encode(family.encode_family(&TunnelLabel { records })?)?;
    }
    Ok(())
}

/// Over all threads.
fn sum<C: Ord>(counts: impl Iterator<Item = (C, u64)>) -> BTreeMap<C, u64> {
    let mut sums = BTreeMap::new();
    for (cause, count) in counts {
        *sums.entry(cause).or_default() += count;
    }
    sums
}
