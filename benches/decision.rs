//! What a decision costs, from a token's hash, at `SLUICEGATE_BENCH_GRANTS` grants (1,000,000 if unset): one
//! alone, as an engine asks for a new client, and many together, as it asks again for all live tunnels after
//! a publication; what a delta costs; what grants that have ended cost the ones that have not; and beside criterion's figures how decisions fare while deltas are
//! published every 100 ms, and what a grant takes of memory.

mod support;

use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use hdrhistogram::Histogram;
use sluicegate::authz::{
    Change, Decision, DecisionContext, Device, Generation, Grant, GrantId, PortRange, Query, Revocations,
    Scope, Snapshot, UnixMillis,
};
use support::{Population, Published, resident_bytes};

/// The relay's own, since building and applying allocate.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Enough that their keys alone do not fit in a cache.
const QUERIES: usize = 1 << 18;

/// Decisions in one batch: the live tunnels that an engine checks in one turn.
const TOGETHER: usize = 256;

fn decision(criterion: &mut Criterion) {
    let grants = match std::env::var("SLUICEGATE_BENCH_GRANTS") {
        Ok(text) => text.parse().expect("SLUICEGATE_BENCH_GRANTS is a number of grants"),
        Err(_) => 1_000_000,
    };
    let population = Population::of_grants(grants);
    let before = resident_bytes();
    let snapshot = population.snapshot();
    let bytes = resident_bytes().saturating_sub(before);
    println!("{grants} grants: {:.1} bytes of memory per grant", bytes as f64 / grants as f64);

    let queries = population.allowed_queries(QUERIES);
    let revocations = Revocations::default();
    let context = DecisionContext { revocations: &revocations, node: None, now: UnixMillis(0) };
    let mut group = criterion.benchmark_group(format!("{grants} grants"));
    group.throughput(Throughput::Elements(1));
    group.bench_function("decide", |bencher| {
        let mut queries = queries.iter().cycle();
        bencher.iter(|| {
            let query = queries.next().expect("a cycle has no end");
            black_box(snapshot.decide(query, context))
        });
    });
    group.throughput(Throughput::Elements(TOGETHER as u64));
    group.bench_function(format!("decide {TOGETHER} together"), |bencher| {
        let mut turns = queries.chunks_exact(TOGETHER).cycle();
        bencher.iter(|| {
            let queries = turns.next().expect("a cycle has no end");
            snapshot.decide_all(queries, context, |decision| {
                black_box(decision);
            });
        });
    });

    // A snapshot that is dropped is part of what a delta costs: the control thread frees the old one.
    let mut devices = population.devices.iter().cycle();
    group.throughput(Throughput::Elements(1));
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
    past_grants(criterion);
    under_deltas(&population, snapshot, &queries);
}

/// Decisions of one principal on one device, by a grant that is the newest of many: all the others have ended.
fn past_grants(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("a pair");
    for past in PAST_GRANTS {
        let Population { credentials, devices, .. } = Population::of_grants(10_000);
        let (credential, device) = (credentials[0], devices[0].clone());
        let grant = |number: usize| Grant {
            id: GrantId(number as i64),
            principal: credential.principal,
            scope: Scope::Device(device.id),
            ports: PortRange::ANY,
            // They ended in both ways that a row tells.
            expires_at: (number < past && number.is_multiple_of(2)).then_some(UnixMillis(-1)),
            revoked: number < past && !number.is_multiple_of(2),
        };
        let grants = (0..=past).map(grant).collect();
        let snapshot = Snapshot::build(Generation(1), credentials, grants, devices);
        let revocations = Revocations::default();
        let context = DecisionContext { revocations: &revocations, node: None, now: UnixMillis(0) };
        let query = Query { subject: Some(credential.key.into()), device: Some(device.uuid), port: 22 };
        assert!(matches!(snapshot.decide(&query, context), Decision::Allow(_)), "the newest grant allows it");
        group.bench_function(format!("decide, {past} past grants"), |bencher| {
            bencher.iter(|| black_box(snapshot.decide(black_box(&query), context)));
        });
    }
    group.finish();
}

/// Prints how long turns of decisions take through the root pointer, alone and while another thread publishes.
fn under_deltas(population: &Population, snapshot: Snapshot, queries: &[Query]) {
    let mut published = Published::new(snapshot);
    let authority = published.authority();
    for changes in [0, 100, 1_000] {
        let is_over = AtomicBool::new(false);
        let latency_ns = std::thread::scope(|scope| {
            let is_over = &is_over;
            let published = &mut published;
            let publishing = (changes > 0).then(|| {
                scope.spawn(move || {
                    let mut source = population.changes();
                    while !is_over.load(Ordering::Relaxed) {
                        let delta: Vec<Change> = source.by_ref().take(changes).collect();
                        published.apply(&delta);
                        std::thread::sleep(PUBLISH_EVERY);
                    }
                })
            });
            let latency_ns = decide_for(
                UNDER_DELTAS,
                |queries| {
                    let view = authority.pin();
                    view.decide_all(queries, UnixMillis(0), |decision| {
                        black_box(decision);
                    });
                },
                queries,
            );
            is_over.store(true, Ordering::Relaxed);
            if let Some(publishing) = publishing {
                publishing.join().expect("publishing does not panic");
            }
            latency_ns
        });
        let at = |quantile| latency_ns.value_at_quantile(quantile) as f64 / TOGETHER as f64;
        println!(
            "{changes} changes every {PUBLISH_EVERY:?}: ns per decision p50 {:.0}, p99 {:.0}, p99.9 {:.0}, over turns \
             of {TOGETHER}",
            at(0.5),
            at(0.99),
            at(0.999)
        );
    }
}

fn decide_for(time: Duration, decide: impl Fn(&[Query]), queries: &[Query]) -> Histogram<u64> {
    let mut latency_ns = Histogram::new(3).expect("three digits are within bounds");
    let until = Instant::now() + time;
    let mut turns = queries.chunks_exact(TOGETHER).cycle();
    while Instant::now() < until {
        let queries = turns.next().expect("a cycle has no end");
        let began = Instant::now();
        decide(queries);
        latency_ns.record(began.elapsed().as_nanos() as u64).expect("the histogram grows by itself");
    }
    latency_ns
}

/// Grants of a pair that have ended, beside the one that has not.
const PAST_GRANTS: [usize; 2] = [0, 50_000];

/// Time between two publications: the default of `authz.refresh`.
const PUBLISH_EVERY: Duration = Duration::from_millis(100);

const UNDER_DELTAS: Duration = Duration::from_secs(5);

criterion_group!(benches, decision);
criterion_main!(benches);
