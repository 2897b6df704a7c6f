//! The directory of nodes: by whose clock they age, who may write what in it, and what operators see of it.

use std::time::Duration;

use crate::support::{
    Authority, Cluster, Database, Device, Signal, Site, StoreUnderTest, node_section, on_both_stores,
    store_at, wait_for,
};
use sluicegate::config::{Config, StoreUrl};
use sluicegate::store::{HeartbeatOutcome, NodeHeartbeat, NodeList, NodeTable, node_table};

const FORWARD: &str = "192.0.2.1:3130";

/// The directory of a node that keeps it under `role`, with `parameters` in its URL.
fn table(database: &Database, role: &str, parameters: &str) -> NodeTable {
    let url = format!("{}{parameters}", database.cluster.url(role, &database.name));
    let mut config = Config::default();
    config.forward.directory_url = Some(StoreUrl::try_from(url).unwrap());
    node_table(&config)
}

/// A heartbeat of a node, by a process with this identity.
fn beat<'a>(name: &'a str, devices: Option<usize>, process: Option<&'a str>) -> NodeHeartbeat<'a> {
    let forward = FORWARD.parse().unwrap();
    NodeHeartbeat { name, forward, devices, process, max_age: Duration::from_secs(15) }
}

fn ages(nodes: &NodeList) -> Vec<(&str, i64)> {
    nodes.nodes.iter().map(|node| (&*node.name, node.age_ms)).collect()
}

#[test]
fn nodes_age_by_the_clock_of_the_database_whatever_that_shows() {
    let Some(cluster) = Cluster::shared() else { return };
    let database = cluster.database();
    let role = database.nodes_role();
    for hours in ["-3", "3"] {
        // What the table's statements call `now()` is hours away from what this machine does.
        database.by_hand(&format!(
            "CREATE SCHEMA IF NOT EXISTS skewed; GRANT USAGE ON SCHEMA skewed TO {role};
            CREATE OR REPLACE FUNCTION skewed.now() RETURNS timestamptz LANGUAGE sql
                AS 'SELECT pg_catalog.now() + interval ''{hours} hours''';"
        ));
        let mut table = table(&database, &role, "?options=-csearch_path%3Dskewed,pg_catalog");
        table.write(&beat("node-a", None, None), None).unwrap();
        let off = "abs(extract(epoch FROM heartbeat_at - now())) BETWEEN 10000 AND 11000";
        let row = database.client().query_one(&format!("SELECT {off} FROM sluicegate.nodes"), &[]).unwrap();
        assert!(row.get::<_, bool>(0), "the database's clock is that of the test");
        let nodes = table.read().unwrap();
        assert!((0..5_000).contains(&nodes.nodes[0].age_ms), "{hours}: {:?}", ages(&nodes));
    }
}

#[test]
fn where_the_database_looks_after_it_a_node_writes_its_own_row_and_no_other() {
    let Some(cluster) = Cluster::shared() else { return };
    let database = cluster.database();
    let group = database.nodes_role();
    let nodes = ["node-a", "node-b"].map(|name| (name, format!("{group}_{name}")));
    database.by_hand(&database.own_rows_only(&group));
    for (_, role) in &nodes {
        database.by_hand(&format!("CREATE ROLE \"{role}\" LOGIN IN ROLE {group}"));
    }
    for (name, role) in &nodes {
        let mut table = table(&database, role, "");
        table.write(&beat(name, Some(7), None), None).unwrap();
        table.write(&beat(name, Some(7), None), None).unwrap();
    }
    let (_, role) = &nodes[1];
    for other in ["node-a", "node-c"] {
        let error = table(&database, role, "").write(&beat(other, None, None), None).unwrap_err();
        assert!(error.to_string().contains("row-level security"), "{error}");
    }
    let nodes = table(&database, role, "").read().unwrap();
    assert!(nodes.nodes.iter().all(|node| node.devices == Some(7)));
    assert_eq!(nodes.nodes.len(), 2, "it sees the others: {:?}", ages(&nodes));
}

/// An error like any other, which the next read may not meet: nobody else's table is to end a thread of ours.
#[test]
fn a_column_of_another_type_is_an_error() {
    let Some(cluster) = Cluster::shared() else { return };
    let database = cluster.database();
    let mut table = table(&database, &database.nodes_role(), "");
    table.write(&beat("node-a", Some(1), None), None).unwrap();
    database.by_hand("ALTER TABLE sluicegate.nodes ALTER COLUMN devices TYPE text");
    table.read().unwrap_err();
    database.by_hand("ALTER TABLE sluicegate.nodes ALTER COLUMN devices TYPE bigint USING devices::bigint");
    assert_eq!(table.read().unwrap().nodes[0].devices, Some(1));
}

#[test]
fn the_role_of_the_directory_is_not_shown_the_password_of_the_store() {
    let Some(cluster) = Cluster::shared() else { return };
    let database = cluster.database();
    let url = StoreUrl::try_from(cluster.url(&database.nodes_role(), &database.name)).unwrap();
    let mut config = Config::default();
    config.store.password_file = Some("no-such-file-of-the-store".into());
    config.forward.directory_url = Some(url);
    assert_eq!(node_table(&config).read().unwrap(), NodeList::default());
    config.forward.directory_password_file = Some("no-such-file-of-the-directory".into());
    let error = node_table(&config).read().unwrap_err().to_string();
    assert!(error.contains("no-such-file-of-the-directory"), "{error}");
}

/// A node on a store with two more: one that lives, and one that has been silent for an hour.
struct Neighbourhood {
    site: Site,
    authority: Authority,
}

impl Neighbourhood {
    fn new() -> Self {
        let mut site = Site::new("");
        let authority = Authority::new(site.folder(), "nodes");
        site.configure(&node_section("node-a", &authority));
        let neighbourhood = Self { site, authority };
        // A sign of life from the future keeps for as long as the test takes.
        neighbourhood.sql(
            "INSERT INTO nodes (name, forward_address, heartbeat_at, devices) VALUES
                ('node-b', '192.0.2.2:3130', unixepoch() * 1000 + 3600000, 12),
                ('node-c', '192.0.2.3:3130', unixepoch() * 1000 - 3600000, NULL)",
        );
        neighbourhood
    }

    fn sql(&self, statements: &str) {
        rusqlite::Connection::open(self.site.store_path()).unwrap().execute_batch(statements).unwrap();
    }

    fn output(&self, arguments: &[&str]) -> (bool, String, String) {
        let output = self.site.command(arguments).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.success(), text(&output.stdout), text(&output.stderr))
    }
}

/// The words of one row of a table for people.
fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}

#[test]
fn the_nodes_are_listed_with_what_is_known_of_each() {
    let neighbourhood = Neighbourhood::new();
    let (done, said, message) = neighbourhood.output(&["node", "list"]);
    assert!(done, "{message}");
    let lines: Vec<_> = said.lines().map(words).collect();
    assert_eq!(lines.len(), 3, "{said}");
    assert_eq!(lines[0], ["NAME", "FORWARD", "ADDRESS", "HEARTBEAT", "AGE", "DEVICES", "STATE"]);
    assert_eq!(lines[1], ["node-b", "192.0.2.2:3130", "0s", "12", "fresh"]);
    assert_eq!((&lines[2][..3], lines[2].last()), (&["node-c", "192.0.2.3:3130", "1h"][..], Some(&"stale")));

    neighbourhood.sql("INSERT INTO nodes (name, forward_address, heartbeat_at) VALUES ('node-d', 'somewhere', unixepoch() * 1000)");
    let (done, said, message) = neighbourhood.output(&["node", "list", "--json"]);
    assert!(done && message.contains("node node-d: `somewhere` is no address with a port"), "{message}");
    let nodes: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(nodes.as_array().unwrap().len(), 2);
    assert_eq!((&nodes[1]["name"], &nodes[1]["state"]), (&"node-c".into(), &"stale".into()));
    assert_eq!((&nodes[0]["devices"], &nodes[1]["devices"]), (&12.into(), &serde_json::Value::Null));
    assert!(nodes[1]["heartbeat_age_ms"].as_i64().unwrap() >= 3_600_000);
}

#[test]
fn a_running_node_tells_how_many_there_are_and_not_which() {
    let neighbourhood = Neighbourhood::new();
    let relay = neighbourhood.site.start();
    assert!(relay.metric_becomes("sluicegate_nodes{state=\"fresh\"}", |fresh| fresh == 2.0));
    let (done, said, message) = neighbourhood.output(&["status"]);
    assert!(done, "{message}");
    let line = said.lines().find(|line| line.starts_with("nodes"));
    assert_eq!(line, Some("nodes     2 alive, 1 silent"), "{said}");
    let (_, facts, _) = neighbourhood.output(&["status", "--json"]);
    let facts: serde_json::Value = serde_json::from_str(&facts).unwrap();
    assert_eq!(facts["nodes"], serde_json::json!({ "fresh": 2, "stale": 1 }));
    assert!(!facts.to_string().contains("node-c"), "{facts}");
    // It writes its own row beside them.
    let listed = || neighbourhood.output(&["node", "list"]).1.contains("node-a").then_some(());
    assert!(wait_for(listed).is_some());
}

#[test]
fn the_directory_is_checked_before_a_start() {
    let neighbourhood = Neighbourhood::new();
    let (done, said, message) = neighbourhood.output(&["check"]);
    assert!(done && said.ends_with("\nthe directory of nodes: fine, 2 nodes\n"), "{said}{message}");
    neighbourhood.sql("UPDATE nodes SET forward_address = 'somewhere' WHERE name = 'node-c'");
    let (done, _, message) = neighbourhood.output(&["check"]);
    assert!(done && message.starts_with("warning: node node-c: `somewhere` is no address"), "{message}");
    neighbourhood.sql("DROP TABLE nodes");
    let (done, _, message) = neighbourhood.output(&["check"]);
    assert!(!done && message.contains("no such table: nodes"), "{message}");
}

#[test]
fn a_certificate_that_other_nodes_would_refuse_is_told_before_they_do() {
    let mut neighbourhood = Neighbourhood::new();
    let other = neighbourhood.authority.issue("node-a", &["node-b"]);
    let (chain, key) = other.write(neighbourhood.site.folder(), "other");
    neighbourhood.site.configure(&format!(
        "forward.tls = {{ chain = '{}', key = '{}' }}",
        chain.display(),
        key.display()
    ));
    let (done, _, message) = neighbourhood.output(&["check"]);
    assert!(!done && message.contains("forward.tls.chain: the certificate is not for node-a"), "{message}");
}

#[test]
fn a_directory_that_could_not_be_kept_is_told_before_a_start() {
    let mut neighbourhood = Neighbourhood::new();
    neighbourhood.site.configure("forward.directory_password_file = '/dev/null'");
    let (done, _, message) = neighbourhood.output(&["check"]);
    assert!(
        !done && message.contains("forward.directory_password_file: it belongs to the role"),
        "{message}"
    );
    neighbourhood.site.unconfigure("forward", "directory_password_file");
    neighbourhood
        .site
        .configure("store = { profile = 'openbalena', url = 'postgres://nobody@127.0.0.1:1/none' }");
    let (done, _, message) = neighbourhood.output(&["check"]);
    assert!(!done && message.contains("forward.directory_url: openBalena's database has no"), "{message}");
}

fn one_process_writes_under_a_name(store: StoreUnderTest) {
    let (site, mut config) = (Site::new(""), Config::default());
    match store {
        StoreUnderTest::Sqlite => config.store = store_at(&format!("sqlite:{}", site.store_path().display())),
        StoreUnderTest::Postgres(cluster) => {
            let database = cluster.database();
            let url = cluster.url(&database.nodes_role(), &database.name);
            config.forward.directory_url = Some(StoreUrl::try_from(url).unwrap());
        }
    }
    let mut table = node_table(&config);
    let mut write = |process: Option<&str>, over: Option<&str>| {
        table.write(&beat("node-a", None, process), over).unwrap()
    };
    let taken = |process: &str| HeartbeatOutcome::NameTaken { process: process.to_owned() };
    assert_eq!(write(Some("one"), None), HeartbeatOutcome::Written);
    assert_eq!(write(Some("two"), None), taken("one"));
    assert_eq!(write(Some("two"), Some("zero")), taken("one"), "another one has ended");
    assert_eq!(write(Some("one"), None), HeartbeatOutcome::Written);
    assert_eq!(write(Some("two"), Some("one")), HeartbeatOutcome::Written);
    assert_eq!(write(Some("one"), None), taken("two"));
    let mut table = node_table(&config);
    let rival = table.read().unwrap().nodes[0].rival.clone().unwrap();
    assert!(rival.forward == FORWARD && (0..5_000).contains(&rival.age_ms), "the first is told: {rival:?}");
    table.release("node-a", "one").unwrap();
    assert_eq!(table.write(&beat("node-a", None, Some("one")), None).unwrap(), taken("two"));
    table.release("node-a", "two").unwrap();
    assert_eq!(table.write(&beat("node-a", None, Some("one")), None).unwrap(), HeartbeatOutcome::Written);
    let silent = NodeHeartbeat { max_age: Duration::ZERO, ..beat("node-a", None, Some("one")) };
    table.write(&silent, None).unwrap();
    assert_eq!(
        table.write(&beat("node-a", None, Some("two")), None).unwrap(),
        HeartbeatOutcome::Written,
        "its time is over"
    );
}

on_both_stores!(one_process_writes_under_a_name);

const CONTESTED: &str = "sluicegate_node_name_contested";

#[test]
fn a_second_process_under_a_name_serves_nobody_until_the_first_has_ended() {
    for (signal, logged) in [(Signal::SIGTERM, "in order"), (Signal::SIGKILL, "at once")] {
        let neighbourhood = Neighbourhood::new();
        let (site, device) = (&neighbourhood.site, Device::echo("127.0.0.1".parse().unwrap()));
        let first = site.start();
        assert!(wait_for(|| first.admin_get("/readyz").starts_with("HTTP/1.1 200").then_some(())).is_some());
        let again = node_section("node-a", &neighbourhood.authority);
        let (second, audit) = site.start_sibling("again", &again);
        let waits =
            || second.admin_get("/readyz").contains("another process has this node's name").then_some(());
        assert!(wait_for(waits).is_some(), "{}", second.log());
        assert!(second.logs("another process is node-a and lives"));
        assert!(first.logs("has vpn.node = node-a too; it waits as a stand-by"), "{}", first.log());
        for relay in [&first, &second] {
            assert!(relay.metric_becomes(CONTESTED, |contested| contested == 1.0));
        }
        site.ask(&first, device.port()).opened();
        let refused = site.ask(&second, device.port());
        assert_eq!((refused.status, refused.slug().as_deref()), (503, Some("undecided")));
        assert!(audit.has(|event| event["cause"] == "node-stand-by"));

        first.signal(signal);
        let is_ready = || second.admin_get("/readyz").starts_with("HTTP/1.1 200").then_some(());
        assert!(wait_for(is_ready).is_some(), "{logged}: {}", second.log());
        assert!(second.logs("this process is node-a from now on"));
        site.ask(&second, device.port()).opened();
        assert!(second.metric_becomes(CONTESTED, |contested| contested == 0.0));
    }
}

#[test]
fn a_node_without_a_directory_is_not_ready() {
    let mut neighbourhood = Neighbourhood::new();
    neighbourhood.site.configure("forward.directory_url = 'postgres://nobody@127.0.0.1:1/none'");
    let relay = neighbourhood.site.start();
    let answer = relay.admin_get("/readyz");
    assert!(
        answer.starts_with("HTTP/1.1 503") && answer.contains("the directory of nodes was not read yet"),
        "{answer}"
    );
}

#[test]
fn a_node_that_starts_while_the_directory_is_away_goes_by_the_one_that_was_kept() {
    let Some(mut cluster) = Cluster::start() else { return };
    let database = cluster.database();
    let directory = cluster.url(&database.nodes_role(), &database.name);
    let mut site = Site::new(&format!("forward.directory_url = '{directory}'"));
    let authority = Authority::new(site.folder(), "nodes");
    site.configure(&node_section("node-a", &authority));
    let far_device = "fedcba9876543210fedcba9876543210";
    site.cli(&["device", "add", far_device, "--address", "127.0.0.2", "--node", "node-b"]);
    let (_far, _) = site.start_sibling("node-b", &node_section("node-b", &authority));
    let mut near = site.start();
    assert!(near.metric_becomes("sluicegate_nodes{state=\"fresh\"}", |fresh| fresh == 2.0));
    near.signal(Signal::SIGTERM);
    near.wait().unwrap();
    drop(near);
    cluster.stop();

    let near = site.start();
    let is_ready = || near.admin_get("/readyz").starts_with("HTTP/1.1 200").then_some(());
    assert!(wait_for(is_ready).is_some(), "{}", near.log());
    let device = Device::echo("0.0.0.0".parse().unwrap());
    // By then the heartbeats are old, and the node is asked all the same.
    std::thread::sleep(Duration::from_secs(2));
    let request = crate::support::Request::to(far_device, device.port()).bearer(&site.token);
    request.send(near.address()).opened();
}
