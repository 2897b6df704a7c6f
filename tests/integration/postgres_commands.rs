//! The store commands on PostgreSQL, as a person uses them.

use std::process::Command;

use serde_json::Value;

use crate::support::{BINARY, Cluster, Database, UUID, assert_done};

/// The output of `sluicegate ARGUMENTS --json`.
fn cli(database: &Database, arguments: &[&str]) -> Value {
    let output = command(database, arguments).arg("--json").output().unwrap();
    assert_done(&output);
    serde_json::from_slice(&output.stdout).unwrap()
}

fn refusal(database: &Database, arguments: &[&str]) -> String {
    let output = command(database, arguments).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{arguments:?}");
    String::from_utf8_lossy(&output.stderr).trim().to_owned()
}

fn command(database: &Database, arguments: &[&str]) -> Command {
    let mut command = Command::new(BINARY);
    command.args(arguments).args(["--store", &database.owner_url()]);
    command
}

#[test]
fn init_says_what_it_did_and_where() {
    let Some(cluster) = Cluster::shared() else { return };
    let database = cluster.empty_database();
    let url = database.owner_url();
    let done = cli(&database, &["store", "init"]);
    assert_eq!((done["url"].as_str(), done["outcome"].as_str()), (Some(url.as_str()), Some("created")));
    assert_eq!(cli(&database, &["store", "init"])["outcome"], "up-to-date");
}

#[test]
fn what_was_added_is_listed_and_what_was_ended_says_so() {
    let Some(cluster) = Cluster::shared() else { return };
    let database = cluster.database();
    assert_eq!(cli(&database, &["principal", "add", "alice"])["id"], 1);
    cli(&database, &["device", "add", UUID, "--address", "10.1.2.3", "--fleet", "red", "--node", "vpn-1"]);
    let issued =
        cli(&database, &["token", "issue", "alice", "--expires", "2100-01-01T00:00:00Z", "--label", "ci"]);
    let grant = cli(&database, &["grant", "add", "alice", "--fleet", "red", "--ports", "22-80"]);
    cli(&database, &["grant", "add", "alice", "--device", UUID]);
    cli(&database, &["grant", "add", "alice", "--any"]);

    let principals = cli(&database, &["principal", "list"]);
    assert_eq!((&principals[0]["live_tokens"], &principals[0]["live_grants"]), (&1.into(), &3.into()));
    let devices = cli(&database, &["device", "list"]);
    assert_eq!((&devices[0]["address"], &devices[0]["fleet"]), (&"10.1.2.3".into(), &"red".into()));
    let tokens = cli(&database, &["token", "list"]);
    assert_eq!(tokens[0]["credential"], issued["credential"]);
    assert_eq!(tokens[0]["expires_at"], "2100-01-01T00:00:00Z");
    let grants = cli(&database, &["grant", "list"]);
    let targets: Vec<_> = grants.as_array().unwrap().iter().map(|grant| grant["target"].clone()).collect();
    assert_eq!(targets, [Value::from("red"), UUID.into(), Value::Null]);

    cli(&database, &["device", "set", UUID, "--address", "fd00::1", "--offline"]);
    let devices = cli(&database, &["device", "list"]);
    assert_eq!((&devices[0]["address"], &devices[0]["online"]), (&"fd00::1".into(), &false.into()));
    let id = grant["id"].to_string();
    assert_eq!(cli(&database, &["grant", "revoke", &id])["outcome"], "revoked");
    assert_eq!(cli(&database, &["grant", "revoke", &id])["outcome"], "was-revoked");
    let credential = issued["credential"].as_str().unwrap();
    assert_eq!(cli(&database, &["token", "revoke", credential])["outcome"], "revoked");
    assert_eq!(cli(&database, &["token", "revoke", credential])["outcome"], "was-revoked");
    cli(&database, &["device", "remove", UUID]);
    assert_eq!(cli(&database, &["device", "list"]), Value::Array(vec![]));
    cli(&database, &["principal", "remove", "alice"]);
    let grants = cli(&database, &["grant", "list"]);
    assert!(grants.as_array().unwrap().iter().all(|grant| grant["state"] == "revoked"), "{grants}");
}

#[test]
fn mistakes_are_told_as_with_any_store() {
    let Some(cluster) = Cluster::shared() else { return };
    let database = cluster.database();
    cli(&database, &["principal", "add", "alice"]);
    cli(&database, &["device", "add", UUID, "--fleet", "red"]);
    for (arguments, message) in [
        (&["principal", "add", "alice"][..], "a principal named `alice` exists"),
        (&["principal", "remove", "alcie"], "did you mean `alice`?"),
        (&["token", "issue", "bob"], "no principal is named `bob`"),
        (&["token", "revoke", "0123456789abcdef"], "no credential is called 0123456789abcdef"),
        (&["device", "add", UUID], "exists; `sluicegate device set` changes it"),
        (&["device", "remove", "ffffffffffffffffffffffffffffffff"], "no device has the uuid ffff"),
        (&["grant", "add", "alice", "--fleet", "rad"], "did you mean `red`?"),
        (&["grant", "revoke", "7"], "no grant has the number 7"),
    ] {
        let refusal = refusal(&database, arguments);
        assert!(refusal.contains(message), "{arguments:?}: {refusal}");
    }
}

#[test]
fn a_refused_change_leaves_nothing_behind() {
    let Some(cluster) = Cluster::shared() else { return };
    let database = cluster.database();
    cli(&database, &["device", "add", UUID, "--fleet", "red"]);
    refusal(&database, &["device", "add", UUID, "--fleet", "blue"]);
    let fleets: i64 =
        database.client().query_one("SELECT count(*) FROM sluicegate.fleets", &[]).unwrap().get(0);
    assert_eq!(fleets, 1);
}

#[test]
fn commands_find_the_primary_among_the_hosts() {
    let Some(cluster) = Cluster::start() else { return };
    // In this order, so that the standby has it from the beginning.
    let database = cluster.database();
    let standby = cluster.standby("");
    let url = format!(
        "postgres://postgres@127.0.0.1:{},127.0.0.1:{}/{}?target_session_attrs=standby",
        standby.port(),
        cluster.port(),
        database.name
    );
    let output = Command::new(BINARY).args(["principal", "add", "alice", "--store", &url]).output().unwrap();
    assert_done(&output);
    let output = Command::new(BINARY)
        .args(["principal", "add", "bob", "--store", &standby.url("postgres", &database.name)])
        .output()
        .unwrap();
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1));
    assert!(message.contains("is a standby"), "{message}");
}

#[test]
fn a_server_that_cannot_be_reached_is_told_with_each_host() {
    let Some(cluster) = Cluster::shared() else { return };
    let database = cluster.empty_database();
    let url = "postgres://relay:hunter2@127.0.0.1:1,127.0.0.1:2/rights";
    let output = Command::new(BINARY).args(["principal", "list", "--store", url]).output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1));
    for part in ["127.0.0.1:1: ", "127.0.0.1:2: ", "Connection refused", "see that it runs"] {
        assert!(message.contains(part), "{message}");
    }
    assert!(!message.contains("hunter2"), "{message}");
    let none = cluster.url("nobody", &database.name);
    let output = Command::new(BINARY).args(["principal", "list", "--store", &none]).output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        message.contains("role \"nobody\" does not exist") && message.contains("docs/postgresql.md"),
        "{message}"
    );
    assert_eq!(message.lines().count(), 1, "{message}");
}
