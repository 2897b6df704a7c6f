//! A relay with a thousand tunnels, each on rights of its own, and the store that has the rights.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read};
use std::net::TcpStream;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use sha2::{Digest, Sha256};

use super::test_support::{self as support, Cluster, Database, Device, Relay, Request, Site};

/// The way in which a relay learns that there is something to read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Learns {
    ByWakeUp,
    /// The store's triggers write to the outbox and wake nobody.
    ByPolling,
}

/// The store of the rights, with a way to change them.
pub enum Store {
    /// With the role of the relay.
    Postgres(postgres::Client, String),
    Sqlite(rusqlite::Connection),
}

/// A relay with a tunnel on each of as many principals' rights.
pub struct Bench {
    pub store: Store,
    pub relay: Relay,
    device: Device,
    /// Tunnels by the number of their principal.
    tunnels: BTreeMap<usize, JoinHandle<End>>,
    /// Principals so far, each with one credential and one grant of the same number.
    rights: usize,
    /// Table of the grants: a slip puts a view in its place.
    pub grants: &'static str,
    _site: Site,
}

impl Bench {
    /// Fills a database, and starts a relay on it with `settings`, or on a standby of it.
    pub fn on_postgres(
        database: &Database<'_>,
        standby: Option<&Cluster>,
        learns: Learns,
        settings: &str,
    ) -> Self {
        let mut site = Site::on_postgres(database, &format!("{SITE}\n{settings}"));
        if let Some(standby) = standby {
            // It reads the standby, and is woken by the primary.
            let (ours, theirs) = (standby.port(), database.cluster.port());
            let (role, name) = (database.relay(), &database.name);
            let url = format!("postgres://{role}@127.0.0.1:{ours},127.0.0.1:{theirs}/{name}");
            site.configure(&format!("store.url = \"{url}\""));
        }
        database.by_hand(&format!(
            "BEGIN;
            INSERT INTO sluicegate.principals (id, name) OVERRIDING SYSTEM VALUE
                SELECT {BASE} + n, 'p' || n FROM generate_series(0, {RIGHTS} - 1) n;
            INSERT INTO sluicegate.credentials (id, key_sha256, principal) OVERRIDING SYSTEM VALUE
                SELECT {BASE} + n, sha256(convert_to('token-' || n, 'UTF8')), {BASE} + n
                FROM generate_series(0, {RIGHTS} - 1) n;
            INSERT INTO sluicegate.grants (id, principal, scope, port_min, port_max) OVERRIDING SYSTEM VALUE
                SELECT {BASE} + n, {BASE} + n, 'any', 1, 65535 FROM generate_series(0, {RIGHTS} - 1) n;
            INSERT INTO sluicegate.devices (id, uuid, address) OVERRIDING SYSTEM VALUE
                SELECT {BASE} + n, md5('device-' || n), '127.1.0.0'::inet + n
                FROM generate_series(0, {OTHER_DEVICES} - 1) n;
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
        if let Some(standby) = standby {
            let has_all = format!("SELECT count(*) = {OTHER_DEVICES} + 2 FROM sluicegate.devices");
            let mut client = standby.client(&database.name);
            let there =
                support::wait_for(|| client.query_one(&has_all, &[]).ok()?.get::<_, bool>(0).then_some(()));
            assert!(there.is_some(), "the standby follows");
        }
        Self::with(Store::Postgres(database.client(), database.relay()), site)
    }

    pub fn on_sqlite(settings: &str) -> Self {
        let site = Site::new(&format!("{SITE}\n{settings}"));
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
        for number in 0..OTHER_DEVICES {
            let (id, uuid) = ((BASE + number) as i64, format!("{:032x}", 0xd00d_0000 + number));
            let address = format!("127.1.{}.{}", number / 250, number % 250 + 1);
            let sql = "INSERT INTO devices (id, uuid, address, created_at) VALUES (?1, ?2, ?3, 0)";
            filling.execute(sql, (id, uuid, address)).unwrap();
        }
        filling.commit().unwrap();
        Self::with(Store::Sqlite(connection), site)
    }

    fn with(store: Store, site: Site) -> Self {
        let (relay, device) = (site.start(), Device::echo(support::V4));
        let mut bench =
            Self { store, relay, device, tunnels: BTreeMap::new(), rights: 0, grants: "grants", _site: site };
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

    /// Revokes rights of so many tunnels, and opens as many anew; times from the commit to the end, in microseconds.
    pub fn revoke_one_by_one(&mut self, revocations: usize) -> Histogram<u64> {
        let mut histogram = Histogram::new(3).unwrap();
        for number in 0..revocations {
            let place = getrandom::u32().unwrap() as usize % self.tunnels.len();
            let owner = *self.tunnels.keys().nth(place).unwrap();
            let tunnel = self.tunnels.remove(&owner).unwrap();
            std::thread::sleep(PAUSE_MAX.mul_f64(f64::from(getrandom::u32().unwrap()) / f64::from(u32::MAX)));
            assert!(!tunnel.is_finished(), "it ended before its right did");
            let table = if number % 2 == 0 { "credentials" } else { self.grants };
            self.store.revoke(table, owner);
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
    /// Runs statements as an operator does.
    pub fn batch(&mut self, statements: &str) {
        match self {
            Self::Postgres(client, _) => client.batch_execute(statements).unwrap(),
            Self::Sqlite(connection) => connection.execute_batch(statements).unwrap(),
        }
    }

    fn revoke(&mut self, table: &str, owner: usize) {
        let id = (BASE + owner) as i64;
        let changed = match self {
            Self::Postgres(client, _) => {
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

pub const TUNNELS: usize = 1_000;

/// Longest pause before each revocation, at random: a commit comes at any time between two polls, `authz.refresh` apart.
const PAUSE_MAX: Duration = Duration::from_millis(100);

/// Rights that are there: those of the tunnels, and one for each revocation.
const RIGHTS: usize = TUNNELS + 1_000;

/// Devices beside that of the tunnels.
pub const OTHER_DEVICES: usize = 2_000;

/// Their numbers begin above those of the site's own.
pub const BASE: usize = 1_000;

/// A thousand threads that do nothing but wait.
const STACK_BYTES: usize = 64 * 1024;

/// All tunnels are to one device.
const SITE: &str = "log.level = \"warn\"\nlimits.sessions_per_device = 2000";
