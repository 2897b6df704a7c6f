//! A node that starts without kept state: it compares the first answer of the store with what its peers have, or says
//! that it has nobody to ask.

use std::time::{Duration, Instant};

use crate::support::{Audit, Authority, Device, Relay, Request, Signal, Site, node_section, wait_for};
use serde_json::Value;
use tempfile::TempDir;

const DEVICES: usize = 40;

/// A store with [`DEVICES`] devices, each with a grant of its own, and nodes on it.
struct Fleet {
    site: Site,
    authority: Authority,
    device: Device,
    _certificates: TempDir,
}

/// A node whose query of grants is the test's.
struct Node {
    relay: Relay,
    config: std::path::PathBuf,
    _audit: Audit,
}

impl Fleet {
    fn new() -> Self {
        let certificates = tempfile::tempdir().unwrap();
        let authority = Authority::new(certificates.path(), "nodes");
        let site = Site::new("");
        let store = rusqlite::Connection::open(site.store_path()).unwrap();
        let rows = format!(
            "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {DEVICES})
            INSERT INTO devices (uuid, address, created_at) SELECT printf('%032x', i), '127.0.1.' || i, 0 FROM n;
            INSERT INTO grants (principal, scope, target, port_min, port_max, created_at)
            SELECT (SELECT principal FROM grants LIMIT 1), 'device', id, 1, 65535, 0 FROM devices
            WHERE length(ltrim(uuid, '0')) <= 2"
        );
        store.execute_batch(&rows).unwrap();
        Self {
            site,
            authority,
            device: Device::echo("0.0.0.0".parse().unwrap()),
            _certificates: certificates,
        }
    }

    /// Starts a node of its own name that reads grants where `condition` is true.
    fn node(&self, name: &str, condition: &str, fragment: &str) -> Node {
        let query = self.site.folder().join(format!("{name}.sql"));
        write_query(&query, condition);
        let fragment = format!(
            "{}\nauthz.reread = '100ms'\nauthz.queries.grants = '{}'\n{fragment}",
            node_section(name, &self.authority),
            query.display()
        );
        let (relay, audit) = self.site.start_sibling(name, &fragment);
        Node { relay, config: self.site.folder().join(name).join("sluicegate.toml"), _audit: audit }
    }

    fn wait_for_nodes(&self, node: &Node, count: f64) {
        assert!(node.relay.metric_becomes("sluicegate_nodes{state=\"fresh\"}", |fresh| fresh == count));
    }

    /// Numbers of the devices with each reply, by node.
    fn statuses(&self, node: &Node) -> Vec<u16> {
        let ask = |number: usize| {
            let request = Request::to(&format!("{number:032x}"), self.device.port());
            request.bearer(&self.site.token).send(node.relay.address()).status
        };
        (1..=DEVICES).map(ask).collect()
    }
}

impl Node {
    fn authz(&self, arguments: &[&str]) -> Value {
        let mut command = std::process::Command::new(crate::support::BINARY);
        command.arg("authz").args(arguments).arg("--config").arg(&self.config).arg("--json");
        let output = command.env("STATE_DIRECTORY", self.config.with_file_name("state")).output().unwrap();
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{message}"))
    }

    fn holds(&self) -> Vec<Value> {
        self.authz(&["status"])["holds"].as_array().cloned().unwrap_or_default()
    }
}

fn write_query(file: &std::path::Path, condition: &str) {
    let sql = format!(
        "SELECT id AS grant_id, principal, scope, target, port_min, port_max, expires_at, revoked_at IS NOT NULL AS revoked \
         FROM grants WHERE {condition}"
    );
    std::fs::write(file, sql).unwrap();
}

fn count(statuses: &[u16], wanted: u16) -> usize {
    statuses.iter().filter(|status| **status == wanted).count()
}

/// Half of the grants are lost.
const HALF: &str = "id % 2 = 0";

#[test]
fn a_fresh_node_whose_query_lost_half_of_the_grants_refuses_nobody_for_it() {
    let fleet = Fleet::new();
    let first = fleet.node("node-a", "true", "");
    let second = fleet.node("node-b", "true", "");
    fleet.wait_for_nodes(&first, 2.0);
    assert_eq!(count(&fleet.statuses(&first), 200), DEVICES);

    let fresh = fleet.node("node-c", HALF, "");

    let holds = fresh.holds();
    assert_eq!(holds.len(), 1, "{holds:?}\n{}", fresh.relay.log());
    assert_eq!((&holds[0]["rule"], &holds[0]["relation"]), (&"peers".into(), &"grants".into()));
    let figures = holds[0]["figures"].as_str().unwrap();
    assert!(figures.contains("node-a has 41 rows") && figures.contains("node-b has 41 rows"), "{figures}");
    let statuses = fleet.statuses(&fresh);
    assert!(count(&statuses, 200) >= DEVICES / 3, "rows on which the peers agree: {statuses:?}");
    assert_eq!(count(&statuses, 200) + count(&statuses, 503), DEVICES, "nobody is refused: {statuses:?}");
    assert!(count(&statuses, 503) >= DEVICES / 2, "what is missing cannot be decided: {statuses:?}");
    assert!(fresh.relay.log().contains("the first answer is compared with"), "{}", fresh.relay.log());
    assert_eq!((first.holds(), second.holds()), (vec![], vec![]), "it is nobody else's business");

    // A crash forgets nothing of it: the node asks again.
    drop(fresh);
    let fresh = fleet.node("node-c", HALF, "");
    assert_eq!(fresh.holds()[0]["rule"], "peers");

    // What is mended is in force without a command.
    drop(fresh);
    let fresh = fleet.node("node-c", "id < 40", "");
    assert_eq!(fresh.holds(), Vec::<Value>::new(), "two of 41 rows are within the budget");
}

#[test]
fn a_fresh_node_heals_when_the_store_is_mended_or_an_operator_accepts() {
    let fleet = Fleet::new();
    let first = fleet.node("node-a", "true", "");
    fleet.wait_for_nodes(&first, 1.0);
    let store = rusqlite::Connection::open(fleet.site.store_path()).unwrap();
    let until_mended = format!("{HALF} OR EXISTS (SELECT 1 FROM nodes WHERE name = 'mended')");
    let fresh = fleet.node("node-b", &until_mended, "");
    assert_eq!(fresh.holds()[0]["rule"], "peers");
    store.execute("INSERT INTO nodes (name) VALUES ('mended')", ()).unwrap();
    assert!(wait_for(|| fresh.holds().is_empty().then_some(())).is_some(), "{:?}", fresh.holds());
    assert_eq!(count(&fleet.statuses(&fresh), 200), DEVICES);
    drop(fresh);

    let fresh = fleet.node("node-c", HALF, "");
    let diff = fresh.authz(&["diff"]);
    fresh.authz(&["accept", diff["digest"].as_str().unwrap()]);
    assert!(wait_for(|| fresh.holds().is_empty().then_some(())).is_some(), "{:?}", fresh.holds());
    let statuses = fleet.statuses(&fresh);
    assert_eq!((count(&statuses, 200), count(&statuses, 403)), (DEVICES / 2, DEVICES / 2), "{statuses:?}");
}

#[test]
fn a_peer_that_hangs_costs_a_start_three_seconds_and_one_broken_peer_of_three_nothing_else() {
    let fleet = Fleet::new();
    let first = fleet.node("node-a", "true", "");
    let second = fleet.node("node-b", "true", "");
    // It starts without a check, with rows that no other node has.
    let broken = fleet.node("node-c", "id = 1", "authz.guard.enabled = false");
    fleet.wait_for_nodes(&first, 3.0);
    fleet.wait_for_nodes(&broken, 3.0);
    let hangs = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let store = rusqlite::Connection::open(fleet.site.store_path()).unwrap();
    let sql = "INSERT INTO nodes (name, forward_address, heartbeat_at) VALUES ('hangs', ?1, unixepoch() * 1000 + 3600000)";
    store.execute(sql, [hangs.local_addr().unwrap().to_string()]).unwrap();

    let began = Instant::now();
    let fresh = fleet.node("node-d", "true", "");
    let lasted = began.elapsed();

    assert!(lasted < Duration::from_secs(5), "{lasted:?}");
    assert_eq!(fresh.holds(), Vec::<Value>::new());
    assert_eq!(count(&fleet.statuses(&fresh), 200), DEVICES);
    assert!(fresh.relay.log().contains("hangs (no answer in time)"), "{}", fresh.relay.log());
    assert_eq!(count(&fleet.statuses(&second), 200), DEVICES);
}

#[test]
fn a_node_that_starts_alone_says_what_it_could_not_check() {
    let fleet = Fleet::new();
    let alone = fleet.node("node-a", HALF, "");
    let log = alone.relay.log();
    assert!(log.contains("there are no peers to ask"), "{log}");
    assert!(log.contains("there are no canaries (authz.guard.must_allow"), "{log}");
    let mut relay = alone.relay;
    relay.signal(Signal::SIGTERM);
    relay.wait().unwrap();
    // With its own memory it has something to compare with.
    let alone = fleet.node("node-a", HALF, "");
    assert!(!alone.relay.log().contains("no peers to ask"), "{}", alone.relay.log());
    drop(alone);

    // No section [forward], and a canary.
    let site = Site::new(&format!("authz.guard.must_locate = ['{}']", crate::support::DEVICE));
    let relay = site.start();
    let log = relay.log();
    assert!(log.contains("there are no peers to ask") && log.contains("1 canaries decide"), "{log}");
}
