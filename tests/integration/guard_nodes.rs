//! The guard and devices that other nodes hold: when the store loses their locations, the guard asks the nodes, which
//! know what their VPNs reach. The incident of 30 September 2025 happened here.
//!
//! These run on SQLite alone: the nodes' answers count here, and `guard_network` covers how either store reads locations.

use std::time::Duration;

use crate::support::{Authority, Device, Relay, Request, Signal, Site, node_section, wait_for};
use tempfile::TempDir;

const DEVICES: usize = 20;

/// Two nodes: clients connect to `node-a`, and `node-b` holds all devices.
struct Fleet {
    site: Site,
    near: Relay,
    far: Relay,
    device: Device,
    _certificates: TempDir,
}

fn uuid(number: usize) -> String {
    format!("{number:032x}")
}

impl Fleet {
    /// Starts both nodes; `far` is added to the configuration of `node-b`.
    fn new(far: &str) -> Self {
        let certificates = tempfile::tempdir().unwrap();
        let authority = Authority::new(certificates.path(), "nodes");
        // The device answers when a node probes its own devices.
        let device = Device::echo("0.0.0.0".parse().unwrap());
        let mut site = Site::new(&format!("authz.guard.probe_port = {}", device.port()));
        site.configure(&node_section("node-a", &authority));
        sql(
            &site,
            &format!(
                "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {DEVICES})
                INSERT INTO devices (uuid, address, node, created_at)
                SELECT printf('%032x', i), '127.0.1.' || i, 'node-b', 0 FROM n"
            ),
        );
        let (far, _) =
            site.start_sibling("node-b", &format!("{}\n{far}", node_section("node-b", &authority)));
        let near = site.start();
        let fleet = Self { site, near, far, device, _certificates: certificates };
        assert!(fleet.near.metric_becomes("sluicegate_nodes{state=\"fresh\"}", |fresh| fresh == 2.0));
        assert!(wait_for(|| (fleet.status(1) == 200).then_some(())).is_some());
        fleet
    }

    fn sql(&self, statements: &str) {
        sql(&self.site, statements);
    }

    fn status(&self, number: usize) -> u16 {
        let request = Request::to(&uuid(number), self.device.port()).bearer(&self.site.token);
        request.send(self.near.address()).status
    }

    fn held_by(&self) -> Option<String> {
        let output = self.site.command(&["authz", "status", "--json"]).output().unwrap();
        let status: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        Some(format!("{}: {}", status["holds"][0]["rule"].as_str()?, status["holds"][0]["figures"].as_str()?))
    }

    /// Waits until the guard holds all of the other node's devices because that node says that it has them. Until it has
    /// been asked, they are held for their number.
    #[track_caller]
    fn comes_to_hold_by_location(&self) {
        let says = "but node-b says that it holds 20 devices, of which it would hold 0";
        let is_so = |held: &String| held.starts_with("location: 20 of 22 devices ") && held.ends_with(says);
        let held = wait_for(|| self.held_by().filter(is_so));
        assert!(held.is_some(), "{:?}: {}", self.held_by(), self.near.log());
    }
}

fn sql(site: &Site, statements: &str) {
    let store = rusqlite::Connection::open(site.store_path()).unwrap();
    store.busy_timeout(crate::support::PATIENCE).unwrap();
    store.execute_batch(statements).unwrap();
}

const LOST: &str = "UPDATE devices SET online = 0 WHERE node = 'node-b'";

#[test]
fn devices_that_another_node_still_holds_are_not_offline_because_the_store_says_so() {
    // A move that the store recorded counts at once; devices that go offline in a mass are asked about.
    let fleet = Fleet::new("");
    fleet.sql(LOST);
    fleet.comes_to_hold_by_location();
    assert!((1..=DEVICES).all(|number| fleet.status(number) == 200), "{}", fleet.near.log());

    fleet.sql("UPDATE devices SET online = 1 WHERE node = 'node-b'");
    assert!(wait_for(|| fleet.held_by().is_none().then_some(())).is_some(), "{}", fleet.near.log());
    assert_eq!(fleet.status(1), 200);
}

#[test]
fn a_revocation_passes_while_a_node_is_asked_what_it_holds() {
    let fleet = Fleet::new("");
    fleet.sql(LOST);
    fleet.site.cli(&["token", "revoke", &fleet.site.credential]);
    assert!(wait_for(|| (fleet.status(1) == 407).then_some(())).is_some());
    fleet.comes_to_hold_by_location();
    assert_eq!(fleet.status(1), 407);
}

#[test]
fn devices_that_another_node_has_lost_are_offline_once_it_says_so() {
    // `node-b` believes the store, like a node whose devices did not answer its probes.
    let fleet = Fleet::new("authz.guard.budgets.unlocated = { share = 1.0, rows = 1000 }");
    fleet.sql(LOST);
    // Until then `node-a` hands requests to `node-b`, which refuses them.
    let is_refused_here = || {
        // Each refusal writes a line in the audit log, which limits the lines of one client.
        std::thread::sleep(Duration::from_millis(100));
        let is_offline = fleet.status(1) == 503;
        let causes = fleet.site.audit().events();
        (is_offline && causes.iter().any(|event| event["cause"] == "device-offline")).then_some(())
    };
    assert!(wait_for(is_refused_here).is_some(), "{}", fleet.near.log());
    assert_eq!(fleet.held_by(), None);
    assert!(fleet.far.metric_becomes("sluicegate_guard_held", |held| held == 0.0));
}

#[test]
fn a_node_that_is_dead_holds_nothing() {
    let fleet = Fleet::new("");
    fleet.far.signal(Signal::SIGKILL);
    assert!(fleet.near.metric_becomes("sluicegate_nodes{state=\"stale\"}", |stale| stale == 1.0));
    fleet.sql(LOST);
    let generation = || fleet.near.metric("sluicegate_snapshot_generation");
    let before = generation();
    assert!(wait_for(|| (generation() > before).then_some(())).is_some(), "{}", fleet.near.log());
    assert_eq!(fleet.held_by(), None);
}

#[test]
fn a_changed_query_that_a_restart_brings_is_held_against_what_the_node_says() {
    let mut fleet = Fleet::new("");
    let file = fleet.site.folder().join("devices.sql");
    std::fs::write(
        &file,
        "SELECT id AS device, uuid, fleet, address, node, online AND node IS NOT 'node-b' AS online FROM devices",
    )
    .unwrap();
    fleet.near.signal(Signal::SIGTERM);
    fleet.near.wait();
    fleet.site.configure(&format!("authz.queries.devices = '{}'", file.display()));
    fleet.near = fleet.site.start();
    assert!(wait_for(|| (fleet.status(1) == 200).then_some(())).is_some(), "{}", fleet.near.log());
    fleet.comes_to_hold_by_location();
    assert!((1..=DEVICES).all(|number| fleet.status(number) == 200), "{}", fleet.near.log());
}

#[test]
fn a_query_by_which_other_nodes_hold_nothing_is_refused_before_it_runs() {
    let fleet = Fleet::new("");
    let file = fleet.site.folder().join("devices.sql");
    let query = |online: &str| {
        format!("SELECT id AS device, uuid, fleet, address, node, {online} AS online FROM devices")
    };
    let judge = |online: &str| {
        std::fs::write(&file, query(online)).unwrap();
        let candidate = format!("devices={}", file.display());
        let output =
            fleet.site.command(&["authz", "diff", "--candidate", &candidate, "--json"]).output().unwrap();
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let hold = &report["holds"][0];
        hold["rule"].as_str().map(|rule| format!("{} by {rule}", hold["group"].as_str().unwrap()))
    };
    assert_eq!(judge("online"), None);
    let judged = judge("(online AND node IS NOT 'node-b')");
    assert_eq!(judged.as_deref(), Some("devices.unlocated by budget"));
}
