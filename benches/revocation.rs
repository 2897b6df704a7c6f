//! How soon a revocation ends its tunnel, with 1,000 tunnels live: on a PostgreSQL of the bench's own, by its
//! wake-up and by polling alone, and on SQLite.
//!
//! One right of a random tunnel is revoked at a time, in turn a credential and a grant: from the return of the
//! commit to the end that the client sees, by one clock. What the relay's own histogram says of the same
//! tunnels, from where its help begins, stands beside it.

#[path = "../tests/support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read};
use std::net::TcpStream;
use std::process::ExitCode;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use sha2::{Digest, Sha256};
use support::{Cluster, Device, Relay, Request, Site};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const TUNNELS: usize = 1_000;

/// Tunnels that are ended one by one; as many are opened again in their places.
const REVOCATIONS: usize = 400;

/// Longest pause before each revocation, at random: a commit comes at any time between two polls, `authz.refresh` apart.
const PAUSE_MAX: Duration = Duration::from_millis(100);

/// The way in which a relay learns that there is something to read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Learns {
    ByWakeUp,
    /// The store's triggers write to the outbox and wake nobody.
    ByPolling,
}

/// The store of the rights, with a way to change them.
enum Store {
    Postgres(postgres::Client),
    Sqlite(rusqlite::Connection),
}

/// A relay with a tunnel on each of as many principals' rights.
struct Bench {
    store: Store,
    relay: Relay,
    device: Device,
    /// Tunnels by the number of their principal.
    tunnels: BTreeMap<usize, JoinHandle<End>>,
    /// Principals so far, each with one credential and one grant of the same number.
    rights: usize,
    _site: Site,
}

impl Bench {
    fn on_postgres(cluster: &Cluster, learns: Learns) -> Self {
        let database = cluster.database();
        let site = Site::on_postgres(&database, SITE);
        database.by_hand(&format!(
            "BEGIN;
            INSERT INTO sluicegate.principals (id, name) OVERRIDING SYSTEM VALUE
                SELECT {BASE} + n, 'p' || n FROM generate_series(0, {RIGHTS} - 1) n;
            INSERT INTO sluicegate.credentials (id, key_sha256, principal) OVERRIDING SYSTEM VALUE
                SELECT {BASE} + n, sha256(convert_to('token-' || n, 'UTF8')), {BASE} + n
                FROM generate_series(0, {RIGHTS} - 1) n;
            INSERT INTO sluicegate.grants (id, principal, scope, port_min, port_max) OVERRIDING SYSTEM VALUE
                SELECT {BASE} + n, {BASE} + n, 'any', 1, 65535 FROM generate_series(0, {RIGHTS} - 1) n;
            COMMIT"
        ));
        if learns == Learns::ByPolling {
            database.by_hand(
                "DO $$ DECLARE telling oid; BEGIN
                    FOR telling IN SELECT oid FROM pg_proc WHERE prosrc LIKE '%pg_notify(%' LOOP
                        EXECUTE replace(pg_get_functiondef(telling), 'pg_notify(', 'concat(');
                    END LOOP;
                END $$",
            );
        }
        Self::with(Store::Postgres(database.client()), site)
    }

    fn on_sqlite() -> Self {
        let site = Site::new(SITE);
        let mut connection = rusqlite::Connection::open(site.store_path()).unwrap();
        connection.busy_timeout(support::PATIENCE).unwrap();
        let filling = connection.transaction().unwrap();
        for number in 0..RIGHTS {
            let (id, key) = ((BASE + number) as i64, Sha256::digest(token(number)).to_vec());
            let insert = |sql: &str, values: &[&dyn rusqlite::ToSql]| filling.execute(sql, values).unwrap();
            insert("INSERT INTO principals (id, name, created_at) VALUES (?1, 'p' || ?1, 0)", &[&id]);
            insert(
                "INSERT INTO credentials (id, key_sha256, principal, created_at) VALUES (?1, ?2, ?1, 0)",
                &[&id, &key],
            );
            insert(
                "INSERT INTO grants (id, principal, scope, port_min, port_max, created_at)
                    VALUES (?1, ?1, 'any', 1, 65535, 0)",
                &[&id],
            );
        }
        filling.commit().unwrap();
        Self::with(Store::Sqlite(connection), site)
    }

    fn with(store: Store, site: Site) -> Self {
        let (relay, device) = (site.start(), Device::echo(support::V4));
        let mut bench = Self { store, relay, device, tunnels: BTreeMap::new(), rights: 0, _site: site };
        (0..TUNNELS).for_each(|_| bench.open());
        bench
    }

    /// Opens a tunnel on rights that no other has.
    fn open(&mut self) {
        let request = Request::to(support::DEVICE, self.device.port()).bearer(&token(self.rights));
        let tunnel = wait_for_end(request.send(self.relay.address()).opened());
        self.tunnels.insert(self.rights, tunnel);
        self.rights += 1;
    }

    fn revoke_one_by_one(&mut self) -> Histogram<u64> {
        let mut histogram = Histogram::new(3).unwrap();
        for number in 0..REVOCATIONS {
            let place = getrandom::u32().unwrap() as usize % self.tunnels.len();
            let owner = *self.tunnels.keys().nth(place).unwrap();
            let tunnel = self.tunnels.remove(&owner).unwrap();
            std::thread::sleep(PAUSE_MAX.mul_f64(f64::from(getrandom::u32().unwrap()) / f64::from(u32::MAX)));
            assert!(!tunnel.is_finished(), "it ended before its right did");
            self.store.revoke(if number % 2 == 0 { "credentials" } else { "grants" }, owner);
            let committed = Instant::now();
            let end = tunnel.join().unwrap();
            assert!(end.is_reset, "not to be taken for a proper end");
            let took = end.at.saturating_duration_since(committed);
            histogram.record(took.as_micros() as u64).unwrap();
            self.open();
        }
        assert!(self.tunnels.values().all(|tunnel| !tunnel.is_finished()), "the others go on");
        histogram
    }
}

impl Store {
    fn revoke(&mut self, table: &str, owner: usize) {
        let id = (BASE + owner) as i64;
        let changed = match self {
            Self::Postgres(client) => {
                let sql = format!("UPDATE sluicegate.{table} SET revoked_at = now() WHERE id = $1");
                client.execute(&sql, &[&id]).unwrap()
            }
            Self::Sqlite(connection) => {
                let sql = format!("UPDATE {table} SET revoked_at = unixepoch() * 1000 WHERE id = ?1");
                connection.execute(&sql, [id]).unwrap() as u64
            }
        };
        assert_eq!(changed, 1);
    }
}

fn main() -> ExitCode {
    let (_, descriptors_max) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, descriptors_max, descriptors_max).unwrap();
    let cluster = Cluster::start();
    println!(
        "{REVOCATIONS} revocations beside {TUNNELS} live tunnels; milliseconds from the commit's return to the"
    );
    println!(
        "end that the client sees, and, from the relay's own histogram, the bounds that so many lie under"
    );
    println!(
        "{:<24} {:>6} {:>8} {:>8} {:>8}   {:>10} {:>10}",
        "", "ends", "p50", "p99", "max", "own p50 <", "own p99 <"
    );
    let mut is_in_time = true;
    if let Some(cluster) = &cluster {
        let bench = Bench::on_postgres(cluster, Learns::ByWakeUp);
        is_in_time &= measure("PostgreSQL, by wake-up", bench) < BY_WAKE_UP;
        let bench = Bench::on_postgres(cluster, Learns::ByPolling);
        is_in_time &= measure("PostgreSQL, by polling", bench) < BY_POLLING;
    }
    is_in_time &= measure("SQLite, by polling", Bench::on_sqlite()) < BY_POLLING;
    if is_in_time { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Prints one line of figures; gives the 99th percentile.
fn measure(name: &str, mut bench: Bench) -> Duration {
    let histogram = bench.revoke_one_by_one();
    let at = |quantile| Duration::from_micros(histogram.value_at_quantile(quantile));
    let [p50, p99, max] = [0.5, 0.99, 1.0].map(at);
    let own = OwnHistogram::read(&bench.relay);
    assert_eq!(own.count, REVOCATIONS as u64, "the relay counts each end");
    let [own_p50, own_p99] = [0.5, 0.99].map(|quantile| own.bound(quantile) * 1_000.0);
    println!(
        "{name:<24} {:>6} {:>8.1} {:>8.1} {:>8.1}   {own_p50:>10} {own_p99:>10}",
        histogram.len(),
        ms(p50),
        ms(p99),
        ms(max)
    );
    p99
}

/// The relay's own histogram of ends by revocation.
struct OwnHistogram {
    /// Upper bounds in seconds, in their order, and how many ends lie under each.
    buckets: Vec<(f64, u64)>,
    count: u64,
}

impl OwnHistogram {
    fn read(relay: &Relay) -> Self {
        let page = relay.admin_get("/metrics");
        let buckets: Vec<(f64, u64)> = page
            .lines()
            .filter_map(|line| line.strip_prefix("sluicegate_revoked_to_closed_seconds_bucket{le=\""))
            .map(|line| line.split_once("\"} ").expect("a bound and a count"))
            .map(|(bound, count)| (bound.parse().unwrap(), count.parse().unwrap()))
            .collect();
        let count = buckets.last().expect("the relay exports it").1;
        Self { buckets, count }
    }

    fn bound(&self, quantile: f64) -> f64 {
        let wanted = (quantile * self.count as f64).ceil() as u64;
        self.buckets.iter().find(|(_, count)| *count >= wanted).unwrap().0
    }
}

/// The end of a tunnel as its client sees it.
struct End {
    at: Instant,
    is_reset: bool,
}

/// A thread for each tunnel, so that none waits for another.
fn wait_for_end(mut tunnel: TcpStream) -> JoinHandle<End> {
    tunnel.set_read_timeout(None).unwrap();
    let waiting = std::thread::Builder::new().stack_size(STACK_BYTES).spawn(move || {
        let read = tunnel.read(&mut [0]);
        let at = Instant::now();
        End { at, is_reset: read.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset) }
    });
    waiting.unwrap()
}

fn token(number: usize) -> String {
    format!("token-{number}")
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1_000.0
}

const BY_WAKE_UP: Duration = Duration::from_millis(50);
const BY_POLLING: Duration = Duration::from_millis(250);

/// Rights that are used up, with those of the tunnels that are left.
const RIGHTS: usize = TUNNELS + REVOCATIONS;

/// Their numbers begin above those of the site's own.
const BASE: usize = 1_000;

/// A thousand threads that do nothing but wait.
const STACK_BYTES: usize = 64 * 1024;

/// All tunnels are to one device.
const SITE: &str = "log.level = \"warn\"\nlimits.sessions_per_device = 2000";
