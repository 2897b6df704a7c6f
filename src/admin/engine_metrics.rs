//! The part of `/metrics` about the engine: counters of its threads, limits, bytes and latencies.

use std::fmt;

use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::registry::Unit;

use super::Sources;
use super::latency::{LatencyMetric, MICROSECONDS, NANOSECONDS, Scale};
use super::openmetrics::{counter, gauge};
use crate::engine::{Capacity, EngineHandle};
use crate::telemetry::{Counter, EngineCounters, Latency};

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
struct ThreadLabel {
    thread: u32,
}

/// Encodes counters and limits.
pub(super) fn encode_counts(encoder: &mut DescriptorEncoder, sources: &Sources) -> Result<(), fmt::Error> {
    let engine = &sources.engine;
    encode_summed(encoder, engine)?;
    let help = "Audit events that could not be written, to the file or to the journal.";
    counter(encoder, "audit_lost", help, sources.audit_lost.get())?;
    encode_threads(encoder, engine)?;
    encode_bounded(encoder, engine)
}

/// Encodes forwarded bytes and latencies.
pub(super) fn encode_traffic(
    encoder: &mut DescriptorEncoder,
    engine: &EngineHandle,
) -> Result<(), fmt::Error> {
    encode_bytes(encoder, engine)?;
    encode_latencies(encoder, engine)
}

fn encode_summed(encoder: &mut DescriptorEncoder, engine: &EngineHandle) -> Result<(), fmt::Error> {
    gauge(
        encoder,
        "sessions",
        "Sessions that exist now, from accept to close.",
        sum(engine, |engine| &engine.sessions.active) as i64,
    )?;
    for SummedCounter { name, help, of } in SUMMED {
        counter(encoder, name, help, sum(engine, of))?;
    }
    Ok(())
}

fn encode_threads(encoder: &mut DescriptorEncoder, engine: &EngineHandle) -> Result<(), fmt::Error> {
    for SummedCounter { name, help, of } in BY_THREAD {
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (thread, engine) in engine.counters().enumerate() {
            let label = ThreadLabel { thread: thread as u32 };
            ConstCounter::new(of(engine).get()).encode(family.encode_family(&label)?)?;
        }
    }
    Ok(())
}

/// Encodes resources that have a limit: how much is in use, and the limit.
fn encode_bounded(encoder: &mut DescriptorEncoder, engine: &EngineHandle) -> Result<(), fmt::Error> {
    let Capacity { buffers, pipes } = engine.capacity();
    let (buffers_in_use, pipes_in_use) =
        (sum(engine, |engine| &engine.hot.buffers_in_use), sum(engine, |engine| &engine.hot.pipes_in_use));
    gauge(encoder, "sessions_max", "Sessions that may exist.", engine.sessions_max() as i64)?;
    gauge(encoder, "buffers_in_use", "Receive buffers that hold bytes.", buffers_in_use as i64)?;
    gauge(encoder, "buffers_max", "Receive buffers that exist.", buffers as i64)?;
    gauge(encoder, "pipes_in_use", "Pipes that directions hold.", pipes_in_use as i64)?;
    gauge(encoder, "pipes_max", "Pipes that may exist.", pipes as i64)
}

fn encode_bytes(encoder: &mut DescriptorEncoder, engine: &EngineHandle) -> Result<(), fmt::Error> {
    let help = "Bytes forwarded; up is from client to device.";
    let mut family = encoder.encode_descriptor("forwarded_bytes", help, None, MetricType::Counter)?;
    for (direction, path, of) in BYTES {
        let metric = ConstCounter::new(sum(engine, of));
        metric.encode(family.encode_family(&PathLabels { direction, path })?)?;
    }
    Ok(())
}

fn encode_latencies(encoder: &mut DescriptorEncoder, engine: &EngineHandle) -> Result<(), fmt::Error> {
    for (name, help, of, scale) in LATENCIES {
        let metric = LatencyMetric::sum(engine.counters().map(of), scale);
        let unit = Unit::Seconds;
        let descriptor = encoder.encode_descriptor(name, help, Some(&unit), metric.metric_type())?;
        metric.encode(descriptor)?;
    }
    Ok(())
}

/// Adds up a counter of all threads.
fn sum(engine: &EngineHandle, of: impl Fn(&EngineCounters) -> &Counter) -> u64 {
    engine.counters().map(|counters| of(counters).get()).sum()
}

type CounterOf = fn(&EngineCounters) -> &Counter;

const BYTES: [(&str, &str, CounterOf); 6] = [
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

const SUMMED: [SummedCounter; 14] = [
    SummedCounter {
        name: "forward_retries",
        help: "Times that a request was handed to another node again after a pause, since that node was being restarted.",
        of: |engine| &engine.sessions.peer_pauses,
    },
    SummedCounter {
        name: "sessions_accepted",
        help: "Connections that the listeners accepted.",
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
        help: "Connections that closed without asking for anything, such as health checks of load balancers.",
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
        name: "thread_restarts",
        help: "Times that an engine thread failed, reset its sessions and began anew.",
        of: |engine| &engine.sessions.thread_restarts,
    },
    SummedCounter {
        name: "audit_dropped",
        help: "Audit events that found their queue full.",
        of: |engine| &engine.sessions.audit_dropped,
    },
    SummedCounter {
        name: "promotions",
        help: "Directions of tunnels that changed from copying to splicing.",
        of: |engine| &engine.hot.promotions,
    },
    SummedCounter {
        name: "buffers_exhausted",
        help: "Receives that found no free buffer.",
        of: |engine| &engine.hot.buffers_exhausted,
    },
    SummedCounter {
        name: "pipes_exhausted",
        help: "Directions of tunnels that needed a pipe and found none.",
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
