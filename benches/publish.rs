//! What it costs the control thread to put a snapshot in force: a delta of 1, 100 and 10,000 changes, and a
//! full build, at 100,000 and 1,000,000 grants.
//!
//! Included are the change itself, the swap of the root that engines read, and freeing the snapshot that
//! was in force before. Reading the store is not.

mod support;

use std::sync::Arc;
use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{BatchSize, BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use sluicegate::authz::{Authority, Change, Device, Generation, Grant, Revocations, Snapshot, View};
use support::Population;

/// The relay's own, since building, changing and freeing allocate.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const GRANTS: [usize; 2] = [100_000, 1_000_000];

const CHANGES: [usize; 3] = [1, 100, 10_000];

/// The authority and the view that is in force there; whoever replaces it frees it, as the publisher does.
struct Published {
    authority: Authority,
    current: Arc<View>,
}

impl Published {
    fn new(snapshot: Snapshot) -> Self {
        let authority = Authority::new(Duration::from_secs(3600), None);
        let current =
            Arc::new(View { snapshot: Arc::new(snapshot), revocations: Arc::default(), previous: None });
        authority.publish(Arc::clone(&current));
        Self { authority, current }
    }

    fn publish(&mut self, snapshot: Snapshot) {
        let revocations: Arc<Revocations> = Arc::clone(&self.current.revocations);
        self.current = Arc::new(View { snapshot: Arc::new(snapshot), revocations, previous: None });
        self.authority.publish(Arc::clone(&self.current));
    }

    fn apply(&mut self, changes: &[Change]) {
        let generation = Generation(self.current.snapshot.generation().0 + 1);
        self.publish(self.current.snapshot.apply(generation, changes));
    }
}

/// Changes as they come in from a fleet: devices that go and come, and a grant that is narrowed for every
/// tenth of them, scattered over the whole population.
fn changes(population: &Population) -> impl Iterator<Item = Change> {
    let places = (0..population.devices.len()).cycle().step_by(SCATTER);
    places.enumerate().map(|(number, place)| {
        if number % 10 == 0 {
            let grant = population.grants[place % population.grants.len()];
            return Change::Grant(Grant { expires_at: None, ..grant });
        }
        let device = &population.devices[place];
        Change::Device(Device { online: number % 2 == 0, ..device.clone() })
    })
}

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
    let mut changes = changes(population);
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

/// A prime, so that changes walk through all shards and not along one.
const SCATTER: usize = 7919;

/// A full build of a million grants takes a good part of a second.
const SAMPLES: usize = 20;

criterion_group!(benches, publish);
criterion_main!(benches);
