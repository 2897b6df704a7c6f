//! What it costs the control thread to put a snapshot in force: a delta of 1, 100 and 10,000 changes, and a
//! full build, at 100,000 and 1,000,000 grants.
//!
//! Included are the change itself, the swap of the root that engines read, and freeing the snapshot that
//! was in force before. Reading the store is not.

mod support;

use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{BatchSize, BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use sluicegate::authz::{Generation, Snapshot};
use support::{Population, Published};

/// The relay's own, since building, changing and freeing allocate.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const GRANTS: [usize; 2] = [100_000, 1_000_000];

const CHANGES: [usize; 3] = [1, 100, 10_000];

fn publish(criterion: &mut Criterion) {
    for grants in GRANTS {
        let population = Population::of_grants(grants);
        let mut group = criterion.benchmark_group(format!("{grants} grants"));
        group.sample_size(SAMPLES).warm_up_time(Duration::from_secs(1));
        deltas(&mut group, &population);
        full_build(&mut group, &population);
        group.finish();
    }
}

fn deltas(group: &mut BenchmarkGroup<'_, WallTime>, population: &Population) {
    let mut published = Published::new(population.snapshot());
    let mut changes = population.changes();
    for count in CHANGES {
        group.throughput(Throughput::Elements(count as u64));
        group.bench_function(format!("publish {count} changes"), |bencher| {
            bencher.iter_batched_ref(
                || changes.by_ref().take(count).collect::<Vec<_>>(),
                |changes| published.apply(changes),
                BatchSize::PerIteration,
            );
        });
    }
}

fn full_build(group: &mut BenchmarkGroup<'_, WallTime>, population: &Population) {
    let mut published = Published::new(population.snapshot());
    group.throughput(Throughput::Elements(population.grants.len() as u64));
    group.bench_function("build and publish all", |bencher| {
        bencher.iter_batched(
            || (population.credentials.clone(), population.grants.clone(), population.devices.clone()),
            |(credentials, grants, devices)| {
                published.publish(Snapshot::build(Generation(1), credentials, grants, devices));
            },
            BatchSize::PerIteration,
        );
    });
}

/// A full build of a million grants takes a good part of a second.
const SAMPLES: usize = 20;

criterion_group!(benches, publish);
criterion_main!(benches);
