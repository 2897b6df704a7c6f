//! Measures the time to open a tunnel, and of a round trip in an open one.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use super::client::close;
use super::echo::{MESSAGE_BYTES, exchange, open_echo};
use super::steps::{DemoFailure, Expecting, Steps};
use super::world::DemoWorld;

pub(super) fn show(world: &DemoWorld, steps: &mut Steps) {
    steps.section("Latency, one tunnel after the other");
    let opened = open_many(world).map(|times| {
        let remark = format!("p99 {}, {TUNNELS} tunnels, connect to 200", times.percentile(99.0));
        steps.figure("new tunnel, p50", times.percentile(50.0), &remark);
        format!("p50 {}, p99 {}", times.percentile(50.0), times.percentile(99.0))
    });
    steps.record(&format!("{TUNNELS} new tunnels"), opened);
    let exchanged = exchange_many(world).map(|times| {
        let remark =
            format!("p99 {}, {ROUND_TRIPS} round trips of {MESSAGE_BYTES} B", times.percentile(99.0));
        steps.figure("request and response, p50", times.percentile(50.0), &remark);
        format!("p50 {}, p99 {}", times.percentile(50.0), times.percentile(99.0))
    });
    steps.record(&format!("{ROUND_TRIPS} round trips in one"), exchanged);
}

/// Recorded times of one kind.
struct RecordedTimes {
    histogram_ns: Histogram<u64>,
}

fn open_many(world: &DemoWorld) -> Result<RecordedTimes, DemoFailure> {
    let mut times = RecordedTimes::new();
    for _ in 0..TUNNELS {
        let began = Instant::now();
        let tunnel = world.client.open(world.echo(), &world.rights.token)?;
        times.record(began.elapsed());
        close(tunnel).expecting("a tunnel that closes")?;
    }
    Ok(times)
}

fn exchange_many(world: &DemoWorld) -> Result<RecordedTimes, DemoFailure> {
    let mut tunnel = open_echo(world.client, world.echo(), &world.rights.token)?;
    let mut times = RecordedTimes::new();
    for number in 0..ROUND_TRIPS {
        let began = Instant::now();
        exchange(&mut tunnel, number)?;
        times.record(began.elapsed());
    }
    close(tunnel).expecting("a tunnel that closes")?;
    Ok(times)
}

impl RecordedTimes {
    fn new() -> Self {
        Self { histogram_ns: Histogram::new(3).expect("3 significant digits are supported") }
    }

    fn record(&mut self, took: Duration) {
        let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.histogram_ns.record(nanoseconds).expect("a histogram that resizes itself takes any value");
    }

    fn percentile(&self, percentile: f64) -> String {
        let us = self.histogram_ns.value_at_percentile(percentile) as f64 / 1000.0;
        if us < 10_000.0 { format!("{us:.0} µs") } else { format!("{:.1} ms", us / 1000.0) }
    }
}

const TUNNELS: u32 = 200;

const ROUND_TRIPS: u32 = 2000;
