//! `/metrics`: the engines' counters, summed over their threads, and the state of the control thread.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

use super::latency::{LatencyMetric, MICROSECONDS, NANOSECONDS, Scale};
use super::openmetrics::{counter, gauge};
use super::process::Descriptors;
use super::{Sources, guard, label_counts, nodes, self_probe};
use crate::authz::UnixMillis;
use crate::engine::Capacity;
use crate::store::StoreWarnings;
use crate::telemetry::{Counter, EngineCounters, Latency};

pub(super) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

pub(super) fn render(sources: Sources) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("sluicegate");
    registry.register_collector(Box::new(MetricsCollector { sources }));
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

#[derive(Debug)]
struct MetricsCollector {
    sources: Sources,
}

/// A counter that each thread keeps, and its metric.
struct SummedCounter {
    name: &'static str,
    help: &'static str,
    of: fn(&EngineCounters) -> &Counter,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct PathLabels {
    direction: &'static str,
    path: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RelationLabel {
    relation: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ThreadLabel {
    thread: u32,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct BuildLabel {
    version: &'static str,
}

impl Collector for MetricsCollector {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        self.encode_build(&mut encoder)?;
        self.encode_engines(&mut encoder)?;
        self.encode_threads(&mut encoder)?;
        self.encode_bounded(&mut encoder)?;
        label_counts::encode(&mut encoder, &self.sources.engine)?;
        self_probe::encode(&mut encoder, &self.sources.probe.get())?;
        self.encode_bytes(&mut encoder)?;
        self.encode_latencies(&mut encoder)?;
        nodes::encode(&mut encoder, &self.sources)?;
        self.encode_snapshot(&mut encoder)?;
        guard::encode(&mut encoder, &self.sources.control.get())
    }
}

impl MetricsCollector {
    fn encode_build(&self, encoder: &mut DescriptorEncoder) -> Result<(), fmt::Error> {
        let metric = ConstGauge::new(1i64);
        let mut family = encoder.encode_descriptor(
            "build_info",
            "Version of the running relay.",
            None,
            metric.metric_type(),
        )?;
        let label = BuildLabel { version: env!("CARGO_PKG_VERSION") };
        metric.encode(family.encode_family(&label)?)
    }

    fn encode_engines(&self, encoder: &mut DescriptorEncoder) -> Result<(), fmt::Error> {
        gauge(
            encoder,
            "sessions",
            "Sessions that exist now, from accept to close.",
            self.sum(|engine| &engine.sessions.active) as i64,
        )?;
        for SummedCounter { name, help, of } in SUMMED {
            counter(encoder, name, help, self.sum(of))?;
        }
        let help = "Audit events that could not be written, to the file or to the journal.";
        counter(encoder, "audit_lost", help, self.sources.audit_lost.get())
    }

    fn encode_threads(&self, encoder: &mut DescriptorEncoder) -> Result<(), fmt::Error> {
        for SummedCounter { name, help, of } in BY_THREAD {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (thread, engine) in self.sources.engine.counters().enumerate() {
                let label = ThreadLabel { thread: thread as u32 };
                ConstCounter::new(of(engine).get()).encode(family.encode_family(&label)?)?;
            }
        }
        Ok(())
    }

    /// Encodes resources that have a limit: how much is in use, and the limit.
    fn encode_bounded(&self, encoder: &mut DescriptorEncoder) -> Result<(), fmt::Error> {
        let engine = &self.sources.engine;
        let Capacity { buffers, pipes } = engine.capacity();
        let (buffers_in_use, pipes_in_use) =
            (self.sum(|engine| &engine.hot.buffers_in_use), self.sum(|engine| &engine.hot.pipes_in_use));
        gauge(encoder, "sessions_max", "Sessions that may exist.", engine.sessions_max() as i64)?;
        gauge(encoder, "buffers_in_use", "Receive buffers that hold bytes.", buffers_in_use as i64)?;
        gauge(encoder, "buffers_max", "Receive buffers that exist.", buffers as i64)?;
        gauge(encoder, "pipes_in_use", "Pipes that directions hold.", pipes_in_use as i64)?;
        gauge(encoder, "pipes_max", "Pipes that may exist.", pipes as i64)?;
        if let Some(Descriptors { open, max }) = Descriptors::now() {
            gauge(encoder, "open_descriptors", "File descriptors that this process has open.", open as i64)?;
            let max = i64::try_from(max).unwrap_or(i64::MAX);
            gauge(encoder, "open_descriptors_max", "File descriptors that this process may open.", max)?;
        }
        Ok(())
    }

    fn encode_bytes(&self, encoder: &mut DescriptorEncoder) -> Result<(), fmt::Error> {
        let help = "Bytes forwarded; up is from client to device.";
        let mut family = encoder.encode_descriptor("forwarded_bytes", help, None, MetricType::Counter)?;
        for (direction, path, of) in BYTES {
            let metric = ConstCounter::new(self.sum(of));
            metric.encode(family.encode_family(&PathLabels { direction, path })?)?;
        }
        Ok(())
    }

    fn encode_latencies(&self, encoder: &mut DescriptorEncoder) -> Result<(), fmt::Error> {
        for (name, help, of, scale) in LATENCIES {
            let metric = LatencyMetric::sum(self.sources.engine.counters().map(of), scale);
            let unit = Unit::Seconds;
            let descriptor = encoder.encode_descriptor(name, help, Some(&unit), metric.metric_type())?;
            metric.encode(descriptor)?;
        }
        Ok(())
    }

    fn encode_snapshot(&self, encoder: &mut DescriptorEncoder) -> Result<(), fmt::Error> {
        let status = self.sources.control.get();
        let age_ms = UnixMillis::now().0.saturating_sub(status.confirmed_at.0).max(0);
        let generation = status.generation.map_or(0, |generation| generation.0) as i64;
        gauge(encoder, "snapshot_generation", "Number of the snapshot in force, 0 for none.", generation)?;
        let metric = ConstGauge::new(age_ms as f64 / 1000.0);
        let help = "Time since the store last confirmed the snapshot in force.";
        let descriptor =
            encoder.encode_descriptor("snapshot_age_seconds", help, None, metric.metric_type())?;
        metric.encode(descriptor)?;
        let reachable = i64::from(status.last_error.is_none());
        gauge(encoder, "store_reachable", "1 if the last read of the store succeeded.", reachable)?;
        counter(encoder, "store_errors", "Reads of the store that failed.", status.store_errors)?;
        let quarantined = status.quarantined as i64;
        gauge(encoder, "store_quarantined_rows", "Rows that do not decode now.", quarantined)?;
        let StoreWarnings { not_understood, bad_lines, stale_addresses } = &status.warnings;
        let help = "Permissions of a foreign schema that are not understood and grant nothing.";
        gauge(encoder, "store_rights_not_understood", help, not_understood.count as i64)?;
        let help = "Lines of vpn.addresses sources that give no address.";
        gauge(encoder, "vpn_addresses_bad_lines", help, bad_lines.count as i64)?;
        let help =
            "Sources of vpn.addresses that cannot be read now, and whose last addresses stay in force.";
        gauge(encoder, "vpn_addresses_stale_files", help, stale_addresses.len() as i64)?;
        let help = "Rows in the snapshot in force.";
        let mut family = encoder.encode_descriptor("snapshot_rows", help, None, MetricType::Gauge)?;
        for (relation, rows) in [
            ("credentials", status.rows.credentials),
            ("grants", status.rows.grants),
            ("devices", status.rows.devices),
        ] {
            let metric = ConstGauge::new(rows as i64);
            metric.encode(family.encode_family(&RelationLabel { relation })?)?;
        }
        Ok(())
    }

    fn sum(&self, of: impl Fn(&EngineCounters) -> &Counter) -> u64 {
        self.sources.engine.counters().map(|engine| of(engine).get()).sum()
    }
}

type Of = fn(&EngineCounters) -> &Counter;

const BYTES: [(&str, &str, Of); 6] = [
    ("up", "copy", |engine| &engine.hot.bytes_up_copied),
    ("up", "splice", |engine| &engine.hot.bytes_up_spliced),
    ("up", "tls", |engine| &engine.hot.bytes_up_tls),
    ("down", "copy", |engine| &engine.hot.bytes_down_copied),
    ("down", "splice", |engine| &engine.hot.bytes_down_spliced),
    ("down", "tls", |engine| &engine.hot.bytes_down_tls),
];

type LatencyOf = fn(&EngineCounters) -> &Latency;

const LATENCIES: [(&str, &str, LatencyOf, Scale); 7] = [
    (
        "handover",
        "Time from passing a request to another node to its reply.",
        |engine| &engine.handover,
        MICROSECONDS,
    ),
    (
        "accept_to_secured",
        "Time from accept to the end of the TLS handshake.",
        |engine| &engine.accept_to_secured,
        MICROSECONDS,
    ),
    (
        "accept_to_dial",
        "Time from accept to the start of the dial.",
        |engine| &engine.accept_to_dial,
        MICROSECONDS,
    ),
    (
        "accept_to_reply",
        "Time from accept to the reply, of every kind.",
        |engine| &engine.accept_to_reply,
        MICROSECONDS,
    ),
    ("decision", "Time to decide about a new client.", |engine| &engine.decision_ns, NANOSECONDS),
    ("dial", "Time from the dial to its outcome, of every kind.", |engine| &engine.dial, MICROSECONDS),
    (
        "revoked_to_closed",
        "Time from a revocation in the store (with SQLite or a foreign schema: from the read that finds it) to the \
         end of a tunnel.",
        |engine| &engine.revoked_to_closed,
        MICROSECONDS,
    ),
];

const SUMMED: [SummedCounter; 12] = [
    SummedCounter {
        name: "sessions_accepted",
        help: "Connections taken from the listeners.",
        of: |engine| &engine.sessions.accepted,
    },
    SummedCounter {
        name: "sessions_refused",
        help: "Sessions that ended with a refusal.",
        of: |engine| &engine.sessions.refused,
    },
    SummedCounter {
        name: "sessions_undecided",
        help: "Sessions about which the node could not decide.",
        of: |engine| &engine.sessions.undecided,
    },
    SummedCounter {
        name: "balancer_checks",
        help: "Health checks of load balancers.",
        of: |engine| &engine.sessions.balancer_checks,
    },
    SummedCounter {
        name: "tunnels_opened",
        help: "Sessions that became tunnels.",
        of: |engine| &engine.sessions.tunnels_opened,
    },
    SummedCounter {
        name: "tunnels_closed",
        help: "Tunnels that ended.",
        of: |engine| &engine.sessions.tunnels_closed,
    },
    SummedCounter {
        name: "accept_pauses",
        help: "Times that accept paused for lack of descriptors or memory.",
        of: |engine| &engine.sessions.accept_pauses,
    },
    SummedCounter {
        name: "accept_dropped",
        help: "Connections that were closed without a reply because the node was full.",
        of: |engine| &engine.sessions.accept_dropped,
    },
    SummedCounter {
        name: "audit_dropped",
        help: "Audit events that found their queue full.",
        of: |engine| &engine.sessions.audit_dropped,
    },
    SummedCounter {
        name: "promotions",
        help: "Directions that went from copying to splicing.",
        of: |engine| &engine.hot.promotions,
    },
    SummedCounter {
        name: "buffers_exhausted",
        help: "Receives that found no free buffer.",
        of: |engine| &engine.hot.buffers_exhausted,
    },
    SummedCounter {
        name: "pipes_exhausted",
        help: "Directions that wanted a pipe and found none.",
        of: |engine| &engine.hot.pipes_exhausted,
    },
];

const BY_THREAD: [SummedCounter; 4] = [
    SummedCounter {
        name: "engine_turns",
        help: "Turns of the engine threads.",
        of: |engine| &engine.hot.turns,
    },
    SummedCounter {
        name: "engine_spins_hit",
        help: "Times that a thread spun instead of sleeping, and work came.",
        of: |engine| &engine.hot.spins_hit,
    },
    SummedCounter {
        name: "engine_spins_missed",
        help: "Times that a thread spun instead of sleeping, and no work came.",
        of: |engine| &engine.hot.spins_missed,
    },
    SummedCounter {
        name: "engine_ring_overflows",
        help: "Turns that found more completions than their queue holds.",
        of: |engine| &engine.hot.ring_overflows,
    },
];
