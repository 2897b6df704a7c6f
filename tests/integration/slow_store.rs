//! A store that is slow, hangs or is gone delays no command, no rollback and no word on a right.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sluicegate::authz::{Authority, Decision, DeviceUuid, KeyHash, PortRange, Query, Refusal, UnixMillis};
use sluicegate::config::{Authz, Config, Queries, RelationQuery};
use sluicegate::control::{Control, StoreAccess};
use sluicegate::store::ReportQueue;
use sluicegate::store::admin::{Admin, GrantTarget, NewDevice};
use sluicegate::telemetry::AuditSender;

use crate::support::{
    Cluster, Database, Fault, PATIENCE, Proxy, StoreUnderTest, UUID, on_both_stores, store_at, wait_for,
};

/// Longest answer to a command, and longest time until an end counts.
const SOON: Duration = Duration::from_secs(1);

const ROLLBACK: Duration = Duration::from_secs(5);

/// Far longer than a test watches.
const SLOW_SECONDS: i64 = 25;

/// A store whose query for devices can be made slow, and whose query for grants can hide one.
struct World {
    url: String,
    admin: Admin,
    database: Option<Database<'static>>,
    _folder: tempfile::TempDir,
}

/// A control thread on it.
struct Node {
    authority: Arc<Authority>,
    control: Control,
}

impl World {
    fn new(store: StoreUnderTest) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (url, database) = match store {
            StoreUnderTest::Sqlite => (format!("sqlite:{}", folder.path().join("store.db").display()), None),
            StoreUnderTest::Postgres(cluster) => {
                let database = cluster.empty_database();
                (database.owner_url(), Some(database))
            }
        };
        Admin::init(&store_at(&url)).unwrap();
        let mut admin = Admin::open(&store_at(&url)).unwrap();
        let uuid = DeviceUuid::parse(UUID).unwrap();
        let device = NewDevice {
            uuid,
            name: None,
            fleet: None,
            address: Some("127.0.0.1".parse().unwrap()),
            node: None,
            online: true,
        };
        admin.add_device(&device).unwrap();
        for principal in 0..10 {
            let name = format!("user-{principal}");
            admin.add_principal(&name).unwrap();
            admin.add_grant(&name, &GrantTarget::Device(uuid), PortRange::ANY, None).unwrap();
        }
        let world = Self { url, admin, database, _folder: folder };
        world.by_hand("CREATE TABLE pause (seconds bigint); CREATE TABLE hidden (id bigint)");
        world
    }

    fn by_hand(&self, statements: &str) {
        match &self.database {
            Some(database) => database.by_hand(statements),
            None => {
                let connection = rusqlite::Connection::open(self.url.trim_start_matches("sqlite:")).unwrap();
                connection.busy_timeout(PATIENCE).unwrap();
                connection.execute_batch(statements).unwrap();
            }
        }
    }

    fn issue(&mut self, principal: &str) -> KeyHash {
        let issued = self.admin.issue_token(principal, None, None).unwrap();
        KeyHash::of_token(issued.token.as_bytes())
    }

    fn revoke(&mut self, key: KeyHash) {
        self.admin.revoke_credential(&key.credential_id().to_string()).unwrap();
    }

    fn queries(&self) -> Queries {
        let query = |sql: String| Some(RelationQuery { file: "test.sql".into(), sql });
        let (schema, slow) = match &self.database {
            Some(_) => ("sluicegate.", "(SELECT count(pg_sleep(seconds)) FROM pause) >= 0"),
            // So many steps that it takes as long on any machine.
            None => (
                "",
                "(WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < (
                    SELECT coalesce(max(seconds), 0) * 1000000000 FROM pause)) SELECT count(*) FROM n) > 0",
            ),
        };
        Queries {
            devices: query(format!(
                "SELECT id AS device, uuid, fleet, address, node, online FROM {schema}devices
                WHERE {slow}"
            )),
            grants: query(format!(
                "SELECT id AS grant_id, principal, scope, target, port_min, port_max, expires_at,
                    revoked_at IS NOT NULL AS revoked
                FROM {schema}grants WHERE id NOT IN (SELECT id FROM hidden)"
            )),
            ..Queries::default()
        }
    }

    /// A relay's control thread that reads by `queries`, at `url`.
    fn node(&self, url: &str, queries: Queries) -> Node {
        let mut authz = Authz { queries, ..Authz::default() };
        authz.reread = Duration::from_millis(20);
        authz.reconcile = Duration::from_millis(200);
        let mut store = store_at(url);
        store.connect_timeout = Duration::from_secs(30);
        store.statement_timeout = Duration::from_secs(60);
        let config = Config { store, authz, ..Config::default() };
        let authority = Arc::new(Authority::new(config.authz.max_stale, None));
        let access = StoreAccess::of(&config, &ReportQueue::default());
        let control =
            Control::start(access, Arc::clone(&authority), || {}, AuditSender::disabled(), &config).unwrap();
        Node { authority, control }
    }

    /// Makes the query for devices slow, and waits until it runs.
    fn slow_down(&self) {
        self.by_hand(&format!("INSERT INTO pause VALUES ({SLOW_SECONDS})"));
        match &self.database {
            Some(database) => {
                let sql =
                    "SELECT count(*) FROM pg_stat_activity WHERE datname = $1 AND wait_event = 'PgSleep'";
                let mut client = database.client();
                let mut sleeps = || client.query_one(sql, &[&database.name]).unwrap().get::<_, i64>(0) > 0;
                wait_for(|| sleeps().then_some(())).expect("the slow query runs");
            }
            None => std::thread::sleep(Duration::from_millis(500)),
        }
    }
}

impl Node {
    fn decide(&self, key: KeyHash) -> Decision {
        let device = DeviceUuid::parse(UUID);
        let query = Query { subject: Some(key.into()), device, port: 80 };
        self.authority.pin().decide(&query, UnixMillis::now())
    }

    fn allows(&self, key: KeyHash) -> bool {
        matches!(self.decide(key), Decision::Allow(_))
    }

    /// Time that a command takes whose answer the control thread has to give.
    fn time_of_history(&self) -> Duration {
        let asked = Instant::now();
        block_on(self.control.commands().history()).unwrap();
        asked.elapsed()
    }
}

/// Time until `is_so`.
fn time_until(mut is_so: impl FnMut() -> bool) -> Duration {
    let began = Instant::now();
    wait_for(|| is_so().then_some(())).expect("it comes about");
    began.elapsed()
}

fn block_on<T>(answer: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(answer)
}

fn a_slow_query_for_one_relation_delays_nothing_else(store: StoreUnderTest) {
    let mut world = World::new(store);
    let (ends, stays) = (world.issue("user-0"), world.issue("user-1"));
    let node = world.node(&world.url, world.queries());
    assert!(node.allows(ends) && node.allows(stays));
    // Something that can be rolled back: a grant that an answer lacks.
    world.by_hand("INSERT INTO hidden VALUES (2)");
    time_until(|| !node.allows(stays));

    world.slow_down();

    let took = node.time_of_history();
    assert!(took < SOON, "a command: {took:?}");
    world.revoke(ends);
    let took = time_until(|| node.decide(ends) == Decision::Refuse(Refusal::CredentialRevoked));
    assert!(took < SOON, "a revocation: {took:?}");
    let asked = Instant::now();
    let rolled_back = block_on(node.control.commands().roll_back(None)).unwrap();
    assert!(asked.elapsed() < ROLLBACK, "a rollback: {:?}", asked.elapsed());
    assert!(rolled_back.rows > 0, "{rolled_back:?}");
    let fresh = world.issue("user-3");
    let took = time_until(|| node.allows(fresh));
    assert!(took < SOON, "a right of another relation: {took:?}");
    assert!(node.time_of_history() < SOON);
}

on_both_stores!(a_slow_query_for_one_relation_delays_nothing_else);

#[test]
fn a_server_that_says_nothing_or_half_or_is_gone_delays_no_command() {
    let Some(cluster) = Cluster::shared() else { return };
    let mut world = World::new(StoreUnderTest::Postgres(cluster));
    let key = world.issue("user-0");
    for fault in
        [Fault::Hang { after_bytes: 0 }, Fault::Hang { after_bytes: 500 }, Fault::Cut { after_bytes: 0 }]
    {
        let hidden = world.issue("user-1");
        let proxy = Proxy::to(([127, 0, 0, 1], cluster.port()).into());
        let url = world.url.replace(&format!(":{}/", cluster.port()), &format!(":{}/", proxy.port()));
        assert_ne!(url, world.url);
        let node = world.node(&url, world.queries());
        assert!(node.allows(key) && node.allows(hidden));
        world.by_hand("INSERT INTO hidden VALUES (2)");
        time_until(|| !node.allows(hidden));

        proxy.set(fault);
        assert!(proxy.has_struck());
        // Each reader has met it.
        std::thread::sleep(Duration::from_millis(300));

        let took = node.time_of_history();
        assert!(took < SOON, "a command: {took:?}");
        let asked = Instant::now();
        block_on(node.control.commands().roll_back(None)).unwrap();
        assert!(asked.elapsed() < ROLLBACK, "a rollback: {:?}", asked.elapsed());
        assert!(node.allows(hidden) && node.allows(key));
        assert!(node.time_of_history() < SOON);
        world.by_hand("DELETE FROM hidden");
    }
}
