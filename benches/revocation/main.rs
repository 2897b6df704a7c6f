//! How soon a revocation ends its tunnel, with 1,000 tunnels live: on a PostgreSQL of the bench's own, by its wake-up and
//! by polling alone, and on SQLite; while a mass is held, a relation cannot be read or is read slowly; and on PostgreSQL
//! and a standby while a transaction stays open with 100,000 changes behind it.
//!
//! One right of a random tunnel is revoked at a time, in turn a credential and a grant: from the return of the commit to
//! the end that the client sees, by one clock. What the relay's own histogram says of the same tunnels, from where its
//! help begins, stands beside it.

mod own_histogram;
mod slips;
#[path = "../../tests/support/mod.rs"]
mod test_support;
mod tunnels;

use std::process::ExitCode;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use own_histogram::OwnHistogram;
use slips::Slip;
use test_support::Cluster;
use tunnels::{BASE, Bench, Learns, OTHER_DEVICES, TUNNELS};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Tunnels that are ended one by one while all is well; as many are opened again in their places.
const REVOCATIONS: usize = 400;

/// Tunnels that are ended one by one in any other state.
const REVOCATIONS_IN_TROUBLE: usize = 100;

fn main() -> ExitCode {
    let (_, descriptors_max) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, descriptors_max, descriptors_max).unwrap();
    let cluster = Cluster::start();
    println!(
        "revocations beside {TUNNELS} live tunnels; milliseconds from the commit's return to the end that the"
    );
    println!("client sees, and, from the relay's own histogram, the bounds that so many lie under");
    println!(
        "{:<44} {:>6} {:>8} {:>8} {:>8}   {:>10} {:>10}",
        "", "ends", "p50", "p99", "max", "own p50 <", "own p99 <"
    );
    let mut is_in_time = true;
    if let Some(cluster) = &cluster {
        let mut bench = Bench::on_postgres(&cluster.database(), None, Learns::ByWakeUp, OFTEN);
        is_in_time &= measure("PostgreSQL, by wake-up", &mut bench, REVOCATIONS) < BY_WAKE_UP;
        is_in_time &= in_trouble("PostgreSQL", &mut bench, BY_WAKE_UP);
        drop(bench);
        let mut bench = Bench::on_postgres(&cluster.database(), None, Learns::ByPolling, "");
        is_in_time &= measure("PostgreSQL, by polling", &mut bench, REVOCATIONS) < BY_POLLING;
        drop(bench);
        is_in_time &= behind_a_transaction(cluster);
    }
    let mut bench = Bench::on_sqlite(OFTEN);
    is_in_time &= measure("SQLite, by polling", &mut bench, REVOCATIONS) < BY_POLLING;
    is_in_time &= in_trouble("SQLite", &mut bench, BY_POLLING);
    if is_in_time { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Revokes while each slip lasts.
fn in_trouble(store: &str, bench: &mut Bench, promise: Duration) -> bool {
    let mut is_in_time = true;
    for slip in Slip::ALL {
        slip.begin(bench);
        is_in_time &= measure(&format!("{store}, {}", slip.name), bench, REVOCATIONS_IN_TROUBLE) < promise;
        slip.end(bench);
    }
    is_in_time
}

/// Revokes while a transaction in another database has been open since before 100,000 changes.
fn behind_a_transaction(cluster: &Cluster) -> bool {
    let database = cluster.database();
    let mut at_primary = Bench::on_postgres(&database, None, Learns::ByWakeUp, "");
    let other = cluster.database();
    let standby = cluster.standby("");
    let mut at_standby = Bench::on_postgres(&other, Some(&standby), Learns::ByWakeUp, "");
    let mut client = cluster.client("postgres");
    let mut open = client.transaction().unwrap();
    open.execute("SELECT pg_current_xact_id()", &[]).unwrap();
    for bench in [&mut at_primary, &mut at_standby] {
        for round in 0..CHANGES_BEHIND / OTHER_DEVICES {
            bench.store.batch(&format!(
                "UPDATE sluicegate.devices SET address = '127.{}.0.0'::inet + id::int WHERE id >= {BASE}",
                2 + round % 2
            ));
        }
    }
    let name = |place| format!("{place}, {CHANGES_BEHIND} changes behind an open transaction");
    let is_in_time = (measure(&name("primary"), &mut at_primary, REVOCATIONS_IN_TROUBLE) < BY_WAKE_UP)
        & (measure(&name("standby"), &mut at_standby, REVOCATIONS_IN_TROUBLE) < BY_WAKE_UP);
    open.commit().unwrap();
    is_in_time
}

/// Prints one line of figures; gives the 99th percentile.
fn measure(name: &str, bench: &mut Bench, revocations: usize) -> Duration {
    let before = OwnHistogram::read(&bench.relay);
    let histogram = bench.revoke_one_by_one(revocations);
    let at = |quantile| Duration::from_micros(histogram.value_at_quantile(quantile));
    let [p50, p99, max] = [0.5, 0.99, 1.0].map(at);
    let own = OwnHistogram::read(&bench.relay).since(&before);
    assert_eq!(own.count, revocations as u64, "the relay counts each end");
    let [own_p50, own_p99] = [0.5, 0.99].map(|quantile| own.bound(quantile) * 1_000.0);
    println!(
        "{name:<44} {:>6} {:>8.1} {:>8.1} {:>8.1}   {own_p50:>10} {own_p99:>10}",
        histogram.len(),
        ms(p50),
        ms(p99),
        ms(max)
    );
    p99
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1_000.0
}

const BY_WAKE_UP: Duration = Duration::from_millis(50);
const BY_POLLING: Duration = Duration::from_millis(250);

/// Changes that are recorded while a transaction is open.
const CHANGES_BEHIND: usize = 100_000;

/// Has what slips be read soon.
const OFTEN: &str = "authz.reconcile = \"1s\"";
