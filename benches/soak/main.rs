//! A node under the mix of a real one, for `HOURS` (1 if unset): do memory, descriptors, files and counters stay where
//! they are?
//!
//! Clients open short and long tunnels, streams and TLS, are refused, and leave without a word. An operator issues and
//! revokes, reloads, hands over and rotates logs; the database loses rows, restarts and hangs. Every byte that a client
//! gets back is compared. In the first third the node is handed over again and again; in the rest one process stays, whose
//! memory is judged. The report goes to `REPORT` (`target/soak.md` if unset). Run it by `make soak HOURS=1`.

#[path = "../../tests/support/mod.rs"]
mod support;

mod load;
mod operator;
mod report;
mod samples;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use load::{Load, Tallies};
use operator::Operator;
use report::Report;
use samples::Sampler;
use support::{Authority, Cluster, Database, Device, Site, TlsClient, V4};

fn main() -> ExitCode {
    let hours: f64 = std::env::var("HOURS").ok().map_or(1.0, |text| text.parse().expect("HOURS is a number"));
    let time = Duration::from_secs_f64(hours * 3600.0);
    let path: PathBuf = std::env::var_os("REPORT").map_or_else(|| "target/soak.md".into(), PathBuf::from);
    let Some(cluster) = Cluster::start() else {
        eprintln!("a soak needs PostgreSQL, which `make test` installs");
        return ExitCode::FAILURE;
    };
    let authority = Authority::new(&std::env::temp_dir(), "soak-ca");
    let (site, database) = {
        let database = cluster.database();
        (site_on(&database, &authority), database.name)
    };
    let relay = site.start();
    let device = Device::echo(V4);
    println!("soaking for {hours} h; the report goes to {}", path.display());
    let (tallies, is_over, hands_over) = (Tallies::default(), AtomicBool::new(false), AtomicBool::new(true));
    let tls_client = TlsClient::trusting(&authority).config();
    let load = Load::new(&site, &relay, &device, tls_client, &tallies, &is_over);
    let (state, audit) = (site.folder().join("state"), site.folder().join("audit.jsonl"));
    let pid = AtomicU32::new(relay.pid());
    let mut sampler = Sampler::new(&relay, &pid, state, audit);
    let mut operator = Operator::new(site, &relay, &pid, &device, cluster, database);
    let began = Instant::now();
    std::thread::scope(|scope| {
        load.start(scope);
        let operated = scope.spawn(|| operator.work_until(&is_over, &hands_over));
        while began.elapsed() < time {
            std::thread::sleep(SAMPLE_EVERY.min(time.saturating_sub(began.elapsed())));
            hands_over.store(began.elapsed() < time / 3, Ordering::Relaxed);
            sampler.sample(began.elapsed());
        }
        is_over.store(true, Ordering::Relaxed);
        operated.join().expect("the operator's thread ends");
    });
    sampler.rest();
    operator.end();
    let report = Report { time, tallies: &tallies, done: operator.done(), sampler: &sampler };
    let text = report.text();
    print!("{text}");
    if let Some(folder) = path.parent() {
        let _is_there = std::fs::create_dir_all(folder);
    }
    if let Err(error) = std::fs::write(&path, text) {
        eprintln!("{}: {error}", path.display());
    }
    if report.is_met() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// A site with a listener for plain clients and one for TLS, on `database`.
fn site_on(database: &Database<'_>, authority: &Authority) -> Site {
    let mut site = Site::on_postgres(
        database,
        "log.level = 'warn'\nauthz = { refresh = '200ms', reconcile = '5s', reread = '2s' }\n\
         limits = { sessions_per_device = 4000, sessions_per_principal = 4000, unknown_tokens_per_minute = 1000 }",
    );
    let (chain, key) = authority.issue("relay", &["relay"]).write(site.folder(), "relay");
    site.configure(&format!(
        "listen = [{{ address = '127.0.0.1:0' }}, {{ address = '127.0.0.1:0', tls = {{ certificates = \
         [{{ chain = '{}', key = '{}' }}] }} }}]",
        chain.display(),
        key.display()
    ));
    // So many that the loss of all is a mass, which the guard holds.
    database.by_hand(
        "INSERT INTO sluicegate.devices (uuid, address)
             SELECT lpad(to_hex(n), 32, '0'), '127.3.0.0'::inet + n FROM generate_series(1, 500) n;
         INSERT INTO sluicegate.grants (principal, scope, target, port_min, port_max)
             SELECT p.id, 'device', d.id, 1, 65535 FROM sluicegate.devices d, sluicegate.principals p",
    );
    site
}

/// Time between two samples.
const SAMPLE_EVERY: Duration = Duration::from_secs(5);
