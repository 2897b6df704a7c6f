//! How soon a revocation ends its tunnels: 1,000 of them live, on a PostgreSQL of the bench's own, with the
//! wake-up and by polling alone, one right after the other and all of them at once.
//!
//! From the return of the commit to the end that the client sees, by one clock. What the relay's own histogram
//! says of the same tunnels, from the server's clock on, stands beside it.

#[path = "../tests/support/mod.rs"]
mod support;

use std::io::{ErrorKind, Read};
use std::net::TcpStream;
use std::process::ExitCode;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use support::{Cluster, Database, Device, Relay, Request, Site};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const TUNNELS: usize = 1_000;

/// Revocations that are committed on their own; the rest go in one statement.
const SINGLE: usize = 100;

/// So many times 0 to 99 before each of them, which is up to one `authz.refresh`.
const PAUSE: Duration = Duration::from_millis(1);

/// How a relay learns that there is something to read.
#[derive(Clone, Copy)]
enum Learns {
    ByWakeUp,
    /// The store's triggers write to the outbox and wake nobody.
    ByPolling,
}

/// A relay with a tunnel on each of as many grants.
struct Bench<'a> {
    database: Database<'a>,
    relay: Relay,
    /// Tells when each ended.
    tunnels: Vec<JoinHandle<Instant>>,
    _site: Site,
    _device: Device,
}

impl<'a> Bench<'a> {
    fn new(cluster: &'a Cluster, learns: Learns) -> Self {
        let database = cluster.database();
        let site = Site::on_postgres(&database, "log.level = \"warn\"");
        database.by_hand(&format!(
            "BEGIN;
            INSERT INTO sluicegate.principals (id, name) OVERRIDING SYSTEM VALUE
                SELECT 1000 + n, 'p' || n FROM generate_series(1, {TUNNELS}) n;
            INSERT INTO sluicegate.credentials (key_sha256, principal)
                SELECT sha256(convert_to('token-' || n, 'UTF8')), 1000 + n FROM generate_series(1, {TUNNELS}) n;
            INSERT INTO sluicegate.grants (id, principal, scope, port_min, port_max) OVERRIDING SYSTEM VALUE
                SELECT 1000 + n, 1000 + n, 'any', 1, 65535 FROM generate_series(1, {TUNNELS}) n;
            COMMIT"
        ));
        if let Learns::ByPolling = learns {
            database.by_hand(
                "DO $$ DECLARE telling oid; BEGIN
                    FOR telling IN SELECT oid FROM pg_proc WHERE prosrc LIKE '%pg_notify(%' LOOP
                        EXECUTE replace(pg_get_functiondef(telling), 'pg_notify(', 'concat(');
                    END LOOP;
                END $$",
            );
        }
        let relay = site.start();
        let device = Device::echo(support::V4);
        let open = |number: usize| {
            let request = Request::to(support::DEVICE, device.port()).bearer(&format!("token-{number}"));
            wait_for_end(request.send(relay.address()).opened())
        };
        let tunnels = (1..=TUNNELS).map(open).collect();
        Self { database, relay, tunnels, _site: site, _device: device }
    }

    fn revoke_one_by_one(&mut self) -> Vec<Duration> {
        let mut client = self.database.client();
        let revoke = client.prepare("UPDATE sluicegate.grants SET revoked_at = now() WHERE id = $1").unwrap();
        let ends = self.tunnels.drain(..SINGLE).enumerate();
        ends.map(|(place, end)| {
            // So that no commit comes a fixed time after a poll.
            std::thread::sleep(PAUSE * (place as u32 * 37 % 100));
            client.execute(&revoke, &[&(1001 + place as i64)]).unwrap();
            let committed = Instant::now();
            end.join().unwrap().saturating_duration_since(committed)
        })
        .collect()
    }

    fn revoke_the_rest_at_once(&mut self) -> Vec<Duration> {
        let mut client = self.database.client();
        client.execute("UPDATE sluicegate.grants SET revoked_at = now() WHERE id > 1000", &[]).unwrap();
        let committed = Instant::now();
        let ends = self.tunnels.drain(..);
        ends.map(|end| end.join().unwrap().saturating_duration_since(committed)).collect()
    }

    /// Ends that the relay's histogram counts, and their mean.
    fn by_the_relay(&self) -> (f64, Duration) {
        let metric = |name: &str| {
            let name = format!("sluicegate_revoked_to_closed_seconds_{name}");
            self.relay.metric(&name).expect("the relay exports it")
        };
        let (count, sum) = (metric("count"), metric("sum"));
        (count, Duration::from_secs_f64(sum / count.max(1.0)))
    }
}

fn main() -> ExitCode {
    let (_, descriptors_max) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, descriptors_max, descriptors_max).unwrap();
    let Some(cluster) = Cluster::start() else { return ExitCode::SUCCESS };
    let mut is_in_time = true;
    println!("{TUNNELS} live tunnels; milliseconds from the commit's return to the end that the client sees");
    println!("{:<12} {:<12} {:>6} {:>8} {:>8} {:>8}", "learns", "revoked", "ends", "p50", "p99", "max");
    for (learns, name, promise) in [
        (Learns::ByWakeUp, "by wake-up", Duration::from_millis(50)),
        (Learns::ByPolling, "by polling", Duration::from_millis(250)),
    ] {
        let mut bench = Bench::new(&cluster, learns);
        for (how, ends) in
            [("one by one", bench.revoke_one_by_one()), ("all at once", bench.revoke_the_rest_at_once())]
        {
            is_in_time &= print(name, how, &ends) < promise;
        }
        let (count, mean) = bench.by_the_relay();
        println!("             the relay's own histogram: {count} ends, mean {:.1} ms", ms(mean));
    }
    if is_in_time { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// One line of figures; gives the 99th percentile.
fn print(learns: &str, how: &str, ends: &[Duration]) -> Duration {
    let mut histogram = Histogram::<u64>::new(3).unwrap();
    for end in ends {
        histogram.record(end.as_micros() as u64).unwrap();
    }
    let at = |quantile| Duration::from_micros(histogram.value_at_quantile(quantile));
    let (p50, p99, max) = (at(0.5), at(0.99), at(1.0));
    println!("{learns:<12} {how:<12} {:>6} {:>8.1} {:>8.1} {:>8.1}", ends.len(), ms(p50), ms(p99), ms(max));
    p99
}

/// Notes when the tunnel ends. A thread each, so that none waits for another.
fn wait_for_end(mut tunnel: TcpStream) -> JoinHandle<Instant> {
    tunnel.set_read_timeout(None).unwrap();
    let waiting = std::thread::Builder::new().stack_size(STACK_BYTES).spawn(move || {
        let end = tunnel.read(&mut [0]);
        let ended = Instant::now();
        let is_reset = end.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset);
        assert!(is_reset, "a revoked tunnel is reset");
        ended
    });
    waiting.unwrap()
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1_000.0
}

/// A thousand threads that do nothing but wait.
const STACK_BYTES: usize = 64 * 1024;
