//! How long a full load of 1,000,000 grants takes, with 100,000 credentials and 200,000 devices, from a
//! PostgreSQL of the bench's own: from the first packet to the snapshot in force.
//!
//! All that a starting relay does is in it: connecting, the contract, reading and decoding, every rule of the
//! guard, building, publishing. The server is warm, as one that other relays read is.

mod support;
#[path = "../tests/support/mod.rs"]
mod test_support;

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sluicegate::authz::{Authority, Scope, UnixMillis};
use sluicegate::config::Config;
use sluicegate::control::{Control, StoreAccess};
use sluicegate::store::ReportQueue;
use sluicegate::telemetry::AuditSender;
use support::Population;
use test_support::{Cluster, Database, StoreView};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const GRANTS: usize = 1_000_000;

const LOADS: usize = 7;

const PROMISE: Duration = Duration::from_secs(3);

fn main() -> ExitCode {
    let Some(cluster) = Cluster::configured("shared_buffers = 512MB\nmax_wal_size = 4GB\n") else {
        return ExitCode::SUCCESS;
    };
    let database = cluster.database();
    fill(&database, &Population::of_grants(GRANTS));
    let config: Config = toml::from_str(&format!(
        "store.url = \"{}\"\nvpn.allow = [\"10.0.0.0/8\"]\nauthz.reconcile = \"1h\"",
        database.relay_url()
    ))
    .unwrap();
    read(&config);
    let reads = median((0..LOADS).map(|_| read(&config)).collect());
    let loads = median((0..LOADS).map(|_| load(&config)).collect());
    println!("{GRANTS} grants from a local PostgreSQL, {LOADS} times; seconds");
    println!("{:<28} {:>8} {:>8} {:>8}", "", "min", "median", "max");
    for (name, [min, median, max]) in [("read and decoded", reads), ("published, from the start", loads)] {
        println!("{name:<28} {min:>8.2} {median:>8.2} {max:>8.2}");
    }
    if loads[1] <= PROMISE.as_secs_f64() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Connects, and reads all rows, one relation after the other.
fn read(config: &Config) -> Duration {
    let began = Instant::now();
    let rows = StoreView::new(&config.store, &config.authz).read_all().unwrap();
    let took = began.elapsed();
    assert_eq!((rows.grants.len(), rows.quarantined.len()), (GRANTS, 0));
    took
}

/// Starts the control side of a relay, which returns once it has published.
fn load(config: &Config) -> Duration {
    let authority = Arc::new(Authority::new(Duration::from_secs(3600), None));
    let began = Instant::now();
    let store = StoreAccess::of(config, &ReportQueue::default());
    let control =
        Control::start(store, Arc::clone(&authority), || {}, AuditSender::disabled(), config).unwrap();
    let took = began.elapsed();
    assert_eq!(authority.trouble(UnixMillis::now()), None);
    assert_eq!(authority.pin().get().unwrap().snapshot.row_counts().grants, GRANTS);
    drop(control);
    took
}

/// Least, median and greatest, in seconds.
fn median(mut durations: Vec<Duration>) -> [f64; 3] {
    durations.sort_unstable();
    [0, durations.len() / 2, durations.len() - 1].map(|place| durations[place].as_secs_f64())
}

/// Copies the population into the reference schema, past its triggers: the outbox is for what comes later.
fn fill(database: &Database<'_>, population: &Population) {
    let mut client = database.client();
    client.batch_execute("SET session_replication_role = replica").unwrap();
    let mut copy = |into: &str, line: &mut dyn FnMut(&mut String, usize) -> bool| {
        let mut writer = client.copy_in(&format!("COPY sluicegate.{into} FROM STDIN")).unwrap();
        let mut text = String::new();
        let mut number = 0;
        while line(&mut text, number) {
            number += 1;
            text.push('\n');
            if text.len() > COPY_BYTES {
                writer.write_all(text.as_bytes()).unwrap();
                text.clear();
            }
        }
        writer.write_all(text.as_bytes()).unwrap();
        writer.finish().unwrap();
    };
    let Population { credentials, grants, devices } = population;
    copy("principals (id, name)", &mut |text, number| {
        let Some(credential) = credentials.get(number) else { return false };
        write!(text, "{0}\tp{0}", credential.principal.0).is_ok()
    });
    copy("credentials (key_sha256, principal)", &mut |text, number| {
        let Some(credential) = credentials.get(number) else { return false };
        write!(text, "\\\\x{}\t{}", hex::encode(credential.key.as_bytes()), credential.principal.0).is_ok()
    });
    copy("devices (id, uuid, fleet, address)", &mut |text, number| {
        let Some(device) = devices.get(number) else { return false };
        let (fleet, address) = (device.fleet.unwrap().0, device.address.unwrap());
        write!(text, "{}\t{}\t{fleet}\t{address}", device.id.0, device.uuid).is_ok()
    });
    copy("grants (id, principal, scope, target, port_min, port_max)", &mut |text, number| {
        let Some(grant) = grants.get(number) else { return false };
        let (scope, target) = match grant.scope {
            Scope::Any => ("any", "\\N".to_owned()),
            Scope::Fleet(id) => ("fleet", id.0.to_string()),
            Scope::Device(id) => ("device", id.0.to_string()),
        };
        write!(text, "{}\t{}\t{scope}\t{target}\t1\t65535", grant.id.0, grant.principal.0).is_ok()
    });
    client.batch_execute("VACUUM ANALYZE").unwrap();
}

/// One message of a copy, about.
const COPY_BYTES: usize = 1 << 16;
