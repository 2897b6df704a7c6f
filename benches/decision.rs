//! What a decision costs, and what a delta costs, at `SLUICEGATE_BENCH_GRANTS` grants (100,000 if unset).

mod support;

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use sluicegate::authz::{Change, Device, Generation, Revocations, UnixMillis};
use support::Population;

/// The relay's own, since building and applying allocate.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Enough that their keys alone do not fit in a cache.
const QUERIES: usize = 1 << 18;

fn decision(criterion: &mut Criterion) {
    let grants = match std::env::var("SLUICEGATE_BENCH_GRANTS") {
        Ok(text) => text.parse().expect("SLUICEGATE_BENCH_GRANTS is a number of grants"),
        Err(_) => 100_000,
    };
    let population = Population::of_grants(grants);
    let snapshot = population.snapshot();
    let mut group = criterion.benchmark_group(format!("{grants} grants"));

    let mut queries = population.allowed_queries(QUERIES).into_iter().cycle();
    let revocations = Revocations::default();
    group.throughput(Throughput::Elements(1));
    group.bench_function("decide", |bencher| {
        bencher.iter(|| {
            let query = queries.next().expect("a cycle has no end");
            black_box(snapshot.decide(&query, &revocations, None, UnixMillis(0)))
        });
    });

    // A snapshot that is dropped is part of what a delta costs: the control thread frees the old one.
    let mut devices = population.devices.iter().cycle();
    group.bench_function("apply one device", |bencher| {
        let mut current = snapshot.clone();
        bencher.iter_batched(
            || {
                let device = devices.next().expect("a cycle has no end");
                [Change::Device(Device { online: !device.online, ..device.clone() })]
            },
            |change| current = current.apply(Generation(2), &change),
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

criterion_group!(benches, decision);
criterion_main!(benches);
