//! The node as a client of its own that goes by the other nodes: what such a probe finds, and how that is told.

use std::net::{SocketAddr, TcpListener};

use crate::support::{Audit, Authority, Relay, Signal, Site, node_section, wait_for};
use tempfile::TempDir;

/// A store and certificates for nodes that probe each other. `node-a` is the site's own relay.
struct Fleet {
    site: Site,
    authority: Authority,
    folder: TempDir,
}

impl Fleet {
    fn new(fragment: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::new(folder.path(), "nodes");
        let mut site = Site::new("probe.interval = '1s'");
        site.configure(&node_section("node-a", &authority));
        site.configure(fragment);
        Self { site, authority, folder }
    }

    /// A further node, whose certificate is of `authority`.
    fn node(&self, name: &str, authority: &Authority) -> (Relay, Audit) {
        self.site.start_sibling(name, &node_section(name, authority))
    }

    /// Says in the store that a node with this name lives at `forward`, for as long as that is there.
    fn pretend(&self, name: &str, forward: SocketAddr) {
        let store = rusqlite::Connection::open(self.site.store_path()).unwrap();
        let sql = "INSERT INTO nodes (name, forward_address, heartbeat_at) VALUES (?1, ?2, unixepoch() * 1000 + 3600000)";
        store.execute(sql, (name, forward.to_string())).unwrap();
    }

    fn status(&self) -> String {
        let output = self.site.command(&["status"]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }
}

const SUCCESS: &str = "sluicegate_probe_success{path=\"forwarded\"}";

fn of_path(relay: &Relay, name: &str) -> Option<f64> {
    let body = relay.admin_get("/metrics");
    let sample = body.lines().find_map(|line| line.strip_prefix(name));
    sample.and_then(|value| value.trim().parse().ok())
}

fn forwarded_becomes(relay: &Relay, wanted: Option<f64>) -> bool {
    wait_for(|| (of_path(relay, SUCCESS) == wanted).then_some(())).is_some()
}

#[test]
fn the_way_to_each_other_node_is_probed_and_troubles_no_figure() {
    let fleet = Fleet::new("");
    let near = fleet.site.start();
    assert!(near.metric_becomes("sluicegate_probe_runs_total", |runs| runs >= 1.0));
    assert_eq!(of_path(&near, SUCCESS), None, "there is no other node yet");

    let (far, far_audit) = fleet.node("node-b", &fleet.authority);
    assert!(forwarded_becomes(&near, Some(1.0)), "{}", near.log());
    assert!(forwarded_becomes(&far, Some(1.0)), "{}", far.log());
    let succeeded = "sluicegate_probe_runs_total{path=\"forwarded\",result=\"succeeded\"}";
    assert!(wait_for(|| (of_path(&near, succeeded)? >= 2.0).then_some(())).is_some());
    assert!(fleet.status().contains("probe: each answers in "), "{}", fleet.status());

    for relay in [&near, &far] {
        assert_eq!(relay.metric("sluicegate_refusals_total"), None, "{}", relay.log());
        assert_eq!(relay.metric("sluicegate_sessions_refused_total"), Some(0.0));
        assert_eq!(relay.metric("sluicegate_handover_seconds_count"), Some(0.0));
    }
    for audit in [fleet.site.audit(), far_audit] {
        assert!(audit.events().iter().all(|event| event["event"] != "refusal"), "{:?}", audit.events());
    }

    // While the store is away nobody knows whether a token is nobody's, and the way there is as good.
    let away = fleet.site.store_path().with_extension("away");
    std::fs::rename(fleet.site.store_path(), &away).unwrap();
    assert!(far.metric_becomes("sluicegate_store_reachable", |reachable| reachable == 0.0));
    let runs = of_path(&near, succeeded).unwrap();
    assert!(
        wait_for(|| (of_path(&near, succeeded)? >= runs + 2.0).then_some(())).is_some(),
        "{}",
        near.log()
    );
    assert_eq!(of_path(&near, SUCCESS), Some(1.0), "{}", near.log());
    std::fs::rename(away, fleet.site.store_path()).unwrap();
    assert!(far.metric_becomes("sluicegate_store_reachable", |reachable| reachable == 1.0));

    far.signal(Signal::SIGKILL);
    assert!(near.logs("the probe by node-b fails: the reply was `HTTP/1.1 503 Device Offline`"));
    assert!(
        forwarded_becomes(&near, None),
        "known to be gone, which has a figure of its own: {}",
        near.log()
    );
}

#[test]
fn a_node_whose_certificate_is_nobodys_is_named_with_the_reason() {
    let fleet = Fleet::new("");
    let near = fleet.site.start();
    let stranger = Authority::new(fleet.folder.path(), "stranger");
    let _far = fleet.node("node-b", &stranger);
    assert!(forwarded_becomes(&near, Some(0.0)), "{}", near.log());
    let message = "by node-b, the reply was `HTTP/1.1 503 Device Offline` (node-tls: node-b: ";
    assert!(fleet.status().contains(message), "{}", fleet.status());
    assert_eq!(of_path(&near, "sluicegate_probe_success{path=\"local\"}"), Some(1.0));
    assert!(near.admin_get("/readyz").starts_with("HTTP/1.1 200"), "others are served all the same");
}

/// Every change of the store has the engines look at what is on its way again, and this node itself knows too that
/// nobody holds the probe's token.
#[test]
fn a_silent_node_is_not_taken_for_one_that_answers_while_rights_change() {
    let fleet = Fleet::new("timeouts.forward = '1s'");
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    fleet.pretend("node-b", silent.local_addr().unwrap());
    let near = fleet.site.start();
    let message = "(node-timeout: node-b)";
    let mut changes = 0;
    let has_failed = wait_for(|| {
        changes += 1;
        fleet.site.cli(&["device", "add", &format!("{changes:032x}")]);
        (of_path(&near, SUCCESS) == Some(0.0)).then_some(())
    });
    assert!(has_failed.is_some(), "{}", near.log());
    assert!(fleet.status().contains(message), "{}", fleet.status());
    let succeeded = "sluicegate_probe_runs_total{path=\"forwarded\",result=\"succeeded\"}";
    assert_eq!(of_path(&near, succeeded), Some(0.0));
}
