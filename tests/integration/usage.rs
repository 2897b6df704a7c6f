//! `sluicegate usage` and the records of use: who moved how much, in each interval, and nothing twice or not at all.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use serde_json::Value;

use crate::support::{
    ALL_V4, Authority, DEVICE, Device, Request, Signal, Site, StoreUnderTest, V4, node_section,
    on_both_stores, wait_for,
};

on_both_stores!(each_principal_device_and_credential_has_what_its_tunnels_moved);

/// Sends `count` bytes to a device that echoes, and reads them back.
fn echo(mut tunnel: &TcpStream, count: usize) {
    let mut writer = tunnel.try_clone().unwrap();
    std::thread::scope(|scope| {
        let sent = scope.spawn(move || writer.write_all(&vec![7; count]).unwrap());
        tunnel.read_exact(&mut vec![0; count]).unwrap();
        sent.join().unwrap();
    });
}

/// What `sluicegate usage` says as JSON.
fn usage(site: &Site, arguments: &[&str]) -> Value {
    let output = site.command(&[&["usage", "--json"], arguments].concat()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// What it prints without `--json`.
fn printed(site: &Site, arguments: &[&str]) -> String {
    let output = site.command(&[&["usage"], arguments].concat()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A figure of each of `rows`.
fn each(rows: &Value, figure: &str) -> Vec<u64> {
    rows.as_array().unwrap().iter().map(|row| row[figure].as_u64().unwrap()).collect()
}

/// The events with the records of use, in their order.
fn records(site: &Site) -> Vec<Value> {
    site.audit().events().into_iter().filter(|event| event["event"] == "usage").collect()
}

fn sum(rows: &[Value], figure: &str) -> u64 {
    rows.iter().map(|row| row[figure].as_u64().unwrap()).sum()
}

fn total(site: &Site) -> Value {
    usage(site, &["--since", "1day"])["total"].clone()
}

fn each_principal_device_and_credential_has_what_its_tunnels_moved(store: StoreUnderTest) {
    let database = match store {
        StoreUnderTest::Postgres(cluster) => Some(cluster.database()),
        StoreUnderTest::Sqlite => None,
    };
    let fragment = "usage.interval = '1h'";
    let site = match &database {
        Some(database) => Site::on_postgres(database, fragment),
        None => Site::new(fragment),
    };
    let other = "0000000000000000000000000000000f";
    site.cli(&["device", "add", other, "--address", "127.0.0.2"]);
    site.cli(&["principal", "add", "bob"]);
    let bob = site.cli(&["token", "issue", "bob"]);
    site.cli(&["grant", "add", "bob", "--any"]);
    let relay = site.start();
    let device = Device::echo(ALL_V4);
    let request = |uuid: &str, token: &str| Request::to(uuid, device.port()).bearer(token);
    let open = |uuid: &str, token: &str| request(uuid, token).send(relay.address()).opened();
    let bobs = bob["token"].as_str().unwrap();
    // One that has ended, one that streams, one that is open, and one of somebody else.
    let ended = open(DEVICE, &site.token);
    echo(&ended, 1_000);
    drop(ended);
    assert!(site.audit().has(|event| event["event"] == "session-end"));
    let (streams, quiet, bobs_own) = (open(DEVICE, &site.token), open(other, &site.token), open(other, bobs));
    echo(&streams, 3 << 20);
    echo(&quiet, 20);
    echo(&bobs_own, 300);

    let whole = (3 << 20) + 1_000;
    let by_principal = usage(&site, &[]);
    let rows = &by_principal["rows"];
    assert_eq!((&rows[0]["principal_name"], &rows[1]["principal_name"]), (&"alice".into(), &"bob".into()));
    assert_eq!(each(rows, "bytes_up"), [whole + 20, 300]);
    assert_eq!(each(rows, "bytes_down"), [whole + 20, 300]);
    assert_eq!((each(rows, "opened"), each(rows, "open")), (vec![3, 1], vec![2, 1]));
    assert!(each(rows, "tunnel_ms").iter().all(|time| *time < 60_000), "{rows}");
    assert_eq!(by_principal["total"]["bytes_up"], whole + 320);
    let by_device = usage(&site, &["--by", "device", "--since", "12h"]);
    let rows = &by_device["rows"];
    assert_eq!((&rows[0]["uuid"], &rows[1]["uuid"]), (&DEVICE.into(), &other.into()));
    assert_eq!(each(rows, "bytes_down"), [whole, 320]);
    let by_credential = usage(&site, &["--by", "credential"]);
    let rows = &by_credential["rows"];
    assert_eq!(
        (&rows[0]["credential"], &rows[1]["credential"]),
        (&site.credential.as_str().into(), &bob["credential"])
    );
    assert_eq!(each(rows, "bytes_up"), [whole + 20, 300]);

    let text = printed(&site, &["--by", "device"]);
    assert!(text.starts_with("DEVICE  UUID ") && text.contains(DEVICE), "{text}");
    assert!(text.lines().last().unwrap().starts_with("total "), "{text}");
    let csv = printed(&site, &["--csv"]);
    let lines: Vec<Vec<&str>> = csv.lines().map(|line| line.split(',').collect()).collect();
    assert_eq!(lines[0], ["principal", "name", "bytes_up", "bytes_down", "opened", "open", "tunnel_ms"]);
    assert_eq!(lines[2][1..6], ["bob", "300", "300", "1", "1"]);
    let both = site.command(&["usage", "--csv", "--json"]).output().unwrap();
    assert_eq!(both.status.code(), Some(2));
    drop((streams, quiet, bobs_own));
}

#[test]
fn a_tunnel_that_lasts_is_in_each_interval_and_adds_up_to_its_end() {
    let site = Site::new("usage.interval = '1s'");
    let relay = site.start();
    let device = Device::echo(V4);
    let tunnel = site.request(&device).send(relay.address()).opened();
    let is_enough = || (records(&site).len() >= 3).then_some(());
    assert!(
        wait_for(|| {
            echo(&tunnel, 1_000);
            is_enough()
        })
        .is_some(),
        "{:?}",
        records(&site)
    );
    drop(tunnel);
    let end = site.audit().wait_for(|event| event["event"] == "session-end");
    let is_whole =
        || Some(records(&site)).filter(|all| sum(all, "bytes_up") == end["bytes_up"].as_u64().unwrap());
    let all = wait_for(is_whole).unwrap_or_else(|| panic!("{end} {:?}", records(&site)));
    assert_eq!(sum(&all, "bytes_down"), end["bytes_down"].as_u64().unwrap());
    assert_eq!(sum(&all, "opened"), 1);
    let moved_in = all.iter().filter(|record| record["bytes_up"].as_u64() > Some(0)).count();
    assert!(moved_in >= 3, "not only at its end: {all:?}");
    let (last, earlier) = all.split_last().unwrap();
    assert!(earlier.iter().all(|record| record["open"] == 1) && last["open"] == 0, "{all:?}");
    for (before, after) in all.iter().zip(&all[1..]) {
        assert_eq!(before["to"], after["from"], "without a gap");
    }
    for record in &all {
        assert_eq!(
            (&record["uuid"], &record["credential"]),
            (&DEVICE.into(), &site.credential.as_str().into())
        );
    }
    let duration_ms = end["duration_ms"].as_u64().unwrap();
    let time_ms = sum(&all, "tunnel_ms");
    assert!(time_ms <= duration_ms && time_ms + 500 > duration_ms, "{time_ms} of {duration_ms}");
    // The same by the command, and once for all.
    assert_eq!(total(&site)["bytes_up"], end["bytes_up"]);
    assert_eq!(relay.metric("sluicegate_usage_write_errors_total"), Some(0.0));
}

#[test]
fn what_was_used_outlives_a_restart_and_a_kill() {
    let mut site = Site::new("usage.interval = '1h'\ntimeouts.drain = '0s'");
    let device = Device::echo(V4);
    let relay = site.start();
    let tunnel = site.request(&device).send(relay.address()).opened();
    echo(&tunnel, 700);
    relay.signal(Signal::SIGINT);
    let mut relay = relay;
    assert!(relay.wait().is_some());
    drop(tunnel);
    let last = records(&site);
    assert_eq!((last.len(), sum(&last, "bytes_up")), (1, 700), "the last interval is written at the end");
    drop(relay);
    site.configure("usage.interval = '1s'");
    let mut relay = site.start();
    assert_eq!(total(&site)["bytes_up"], 700);
    let tunnel = site.request(&device).send(relay.address()).opened();
    echo(&tunnel, 300);
    let is_recorded = || (sum(&records(&site), "bytes_up") == 1_000).then_some(());
    assert!(wait_for(is_recorded).is_some());
    // The record is in the state folder a moment after the event.
    assert!(wait_for(|| (kept(&site) >= 2).then_some(())).is_some());
    relay.signal(Signal::SIGKILL);
    assert!(relay.wait().is_none_or(|status| !status.success()));
    let _relay = site.start();
    let total = total(&site);
    assert_eq!((&total["bytes_up"], &total["opened"], &total["open"]), (&1_000.into(), &2.into(), &0.into()));
}

/// Number of records in the state folder.
fn kept(site: &Site) -> usize {
    let Ok(entries) = std::fs::read_dir(site.folder().join("state/usage")) else { return 0 };
    entries
        .filter(|entry| entry.as_ref().unwrap().path().extension().is_some_and(|end| end == "usage"))
        .count()
}

#[test]
fn counting_is_switched_on_and_off_while_tunnels_run() {
    let mut site = Site::new("usage.interval = '0s'");
    let relay = site.start();
    let device = Device::echo(V4);
    let tunnel = site.request(&device).send(relay.address()).opened();
    echo(&tunnel, 5_000);
    assert_eq!(total(&site)["bytes_up"], 0);
    site.configure("usage.interval = '1h'");
    site.cli(&["reload"]);
    echo(&tunnel, 40);
    assert_eq!(total(&site)["bytes_up"], 40, "what was before counts for no interval");
    site.configure("usage.interval = '0s'");
    site.cli(&["reload"]);
    echo(&tunnel, 6_000);
    drop(tunnel);
    assert!(site.audit().has(|event| event["event"] == "session-end"));
    assert_eq!(total(&site)["bytes_up"], 40, "and is not lost when it ends");
    assert_eq!(sum(&records(&site), "bytes_up"), 40);
}

#[test]
fn a_tunnel_through_another_node_counts_at_the_node_that_has_the_client() {
    const FAR: &str = "fedcba9876543210fedcba9876543210";
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new(folder.path(), "nodes");
    let mut site = Site::new("usage.interval = '1s'");
    site.configure(&node_section("node-a", &authority));
    site.cli(&["device", "add", FAR, "--address", "127.0.0.2", "--node", "node-b"]);
    let near = site.start();
    let fragment = format!(
        "{}\nstore.url = 'sqlite:{}'",
        node_section("node-b", &authority),
        site.store_path().display()
    );
    let (far, far_audit) = site.start_sibling("node-b", &fragment);
    assert!(near.metric_becomes("sluicegate_nodes{state=\"fresh\"}", |fresh| fresh == 2.0));
    let device = Device::echo(ALL_V4);
    let tunnel = Request::to(FAR, device.port()).bearer(&site.token).send(near.address()).opened();
    echo(&tunnel, 900);
    drop(tunnel);
    assert!(far_audit.has(|event| event["event"] == "session-end"));
    let is_recorded = || (sum(&records(&site), "bytes_up") == 900).then_some(());
    assert!(wait_for(is_recorded).is_some(), "{:?}", records(&site));
    std::thread::sleep(Duration::from_millis(1_500));
    assert!(!far_audit.events().iter().any(|event| event["event"] == "usage"));
    assert_eq!(far.metric("sluicegate_usage_rows"), Some(0.0));
}

#[test]
fn records_wait_for_a_state_folder_that_cannot_be_written() {
    let site = Site::new("usage.interval = '1s'");
    let relay = site.start();
    let device = Device::echo(V4);
    // A file is where the folder should be.
    let folder = site.folder().join("state/usage");
    std::fs::write(&folder, "in the way").unwrap();
    let tunnel = site.request(&device).send(relay.address()).opened();
    echo(&tunnel, 800);
    drop(tunnel);
    assert!(relay.metric_becomes("sluicegate_usage_write_errors_total", |errors| errors >= 1.0));
    assert_eq!(total(&site)["bytes_up"], 800, "it is not forgotten");
    std::fs::remove_file(&folder).unwrap();
    assert!(wait_for(|| (kept(&site) == 1).then_some(())).is_some());
    assert_eq!(total(&site)["bytes_up"], 800, "and not counted twice");
}

#[test]
fn whoever_may_see_sessions_may_see_who_used_how_much_and_nobody_else() {
    let mut site = Site::new("usage.interval = '1h'");
    let (token, file) = ("a-token-of-the-admin-side-with-32-bytes", site.folder().join("token"));
    std::fs::write(&file, token).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    site.configure(&format!("admin.token_file = '{}'", file.display()));
    let relay = site.start();
    let ask = |authorization: &str| {
        let mut socket = TcpStream::connect(relay.admin()).unwrap();
        write!(
            socket,
            "GET /usage?by=device HTTP/1.1\r\nHost: admin\r\n{authorization}Connection: close\r\n\r\n"
        )
        .unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        answer
    };
    assert!(ask("").starts_with("HTTP/1.1 401 "));
    let answer = ask(&format!("Authorization: Bearer {token}\r\n"));
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("\"by\":\"device\""), "{answer}");
    assert_eq!(total(&site)["bytes_up"], 0, "the local socket needs no token");
}
