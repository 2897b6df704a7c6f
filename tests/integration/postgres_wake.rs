//! A revocation in PostgreSQL wakes its relays, which so need not poll for it.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use crate::support::{Cluster, Device, End, Rights, Site, V4, receive, wait_for};

/// A relay that would come to look only long after each of these tests is over.
const SELDOM: &str = "authz.refresh = \"10m\"";

/// The promise is 50 ms; this leaves room for a machine that has other things to do.
const SOON: Duration = Duration::from_secs(2);

/// Number of connections that listen, by the server's own list.
fn listeners(cluster: &Cluster, database: &str) -> i64 {
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = $1 AND query = 'LISTEN sluicegate'";
    cluster.client("postgres").query_one(sql, &[&database]).unwrap().get(0)
}

#[test]
fn a_revocation_closes_its_tunnels_without_a_poll() {
    let Some(cluster) = Cluster::shared() else { return };
    let database = cluster.database();
    let site = Site::on_postgres(&database, SELDOM);
    let relay = site.start();
    let device = Device::echo(V4);
    let mut tunnel = site.ask(&relay, device.port()).opened();
    tunnel.write_all(b"ping").unwrap();
    tunnel.read_exact(&mut [0; 4]).unwrap();
    wait_for(|| (listeners(cluster, &database.name) == 1).then_some(())).unwrap();

    site.cli(&["token", "revoke", &site.credential]);

    let committed = Instant::now();
    let (_, end) = receive(&mut tunnel);
    assert_eq!(end, End::Reset);
    assert!(committed.elapsed() < SOON, "{:?}", committed.elapsed());
    assert_eq!(site.ask(&relay, device.port()).status, 407);
    assert_eq!(relay.metric("sluicegate_revoked_to_closed_seconds_count"), Some(1.0));
    let message = relay.metric("sluicegate_revoked_to_closed_seconds_sum").unwrap();
    // By the server's clock, which began before ours and ended before the client saw it.
    assert!(message > 0.0 && message < SOON.as_secs_f64(), "{message} s");
}

#[test]
fn whatever_takes_a_right_away_wakes_and_nothing_else_does() {
    let Some(cluster) = Cluster::shared() else { return };
    let database = cluster.database();
    for (statement, wakes) in [
        ("INSERT INTO sluicegate.principals (name) VALUES ('p'), ('q')", false),
        (
            "INSERT INTO sluicegate.credentials (key_sha256, principal)
            VALUES (decode(repeat('01', 32), 'hex'), 1), (decode(repeat('02', 32), 'hex'), 1)",
            false,
        ),
        ("INSERT INTO sluicegate.devices (uuid) VALUES (repeat('ab', 16))", false),
        (
            "INSERT INTO sluicegate.grants (principal, scope, target, port_min, port_max)
            VALUES (1, 'any', NULL, 1, 2), (1, 'device', 1, 1, 2), (1, 'any', NULL, 3, 4)",
            false,
        ),
        ("UPDATE sluicegate.devices SET online = false", false),
        ("UPDATE sluicegate.credentials SET label = 'x'", false),
        ("UPDATE sluicegate.credentials SET expires_at = now() + interval '1 hour' WHERE id = 2", true),
        ("UPDATE sluicegate.credentials SET expires_at = NULL WHERE id = 2", false),
        ("UPDATE sluicegate.grants SET port_max = 3 WHERE id = 3", true),
        ("UPDATE sluicegate.grants SET port_max = 9 WHERE id = 3", false),
        ("UPDATE sluicegate.grants SET principal = 2 WHERE id = 3", true),
        ("UPDATE sluicegate.credentials SET revoked_at = now() WHERE id = 1", true),
        ("UPDATE sluicegate.credentials SET revoked_at = now() WHERE id = 1", false),
        ("UPDATE sluicegate.grants SET revoked_at = now() WHERE id = 1", true),
        ("DELETE FROM sluicegate.devices", true),
        ("DELETE FROM sluicegate.grants WHERE id = 3", true),
        ("UPDATE sluicegate.principals SET name = 'r' WHERE id = 2", false),
        ("UPDATE sluicegate.principals SET removed_at = now() WHERE id = 1", true),
        ("DELETE FROM sluicegate.credentials", true),
        ("DELETE FROM sluicegate.credentials", false),
        ("DELETE FROM sluicegate.principals WHERE id = 2", true),
        ("TRUNCATE sluicegate.grants", true),
    ] {
        let mut listener = database.client();
        listener.batch_execute("LISTEN sluicegate").unwrap();
        database.by_hand(statement);
        // Whatever was sent before this answer has come with it.
        listener.batch_execute("SELECT").unwrap();
        let mut heard = listener.notifications();
        let first = postgres::fallible_iterator::FallibleIterator::next(&mut heard.iter()).unwrap();
        assert_eq!(first.is_some(), wakes, "{statement}");
        assert!(first.is_none_or(|notification| notification.payload().is_empty()), "{statement}");
    }
}

#[test]
fn a_lost_connection_for_wake_ups_comes_back() {
    let Some(cluster) = Cluster::shared() else { return };
    let database = cluster.database();
    let site = Site::on_postgres(&database, SELDOM);
    let relay = site.start();
    wait_for(|| (listeners(cluster, &database.name) == 1).then_some(())).unwrap();

    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
        WHERE datname = $1 AND query = 'LISTEN sluicegate'";
    cluster.client("postgres").execute(end, &[&database.name]).unwrap();
    assert!(relay.logs("until then revocations are found by polling"));
    // While nobody listens.
    database.by_hand(&format!("UPDATE sluicegate.grants SET revoked_at = now() WHERE id = {}", site.grant));
    assert!(!relay.log().contains("wakes this node again"), "too late to tell");

    assert!(relay.logs("wakes this node again"));
    let device = Device::echo(V4);
    let becomes = |status| wait_for(|| (site.ask(&relay, device.port()).status == status).then_some(()));
    assert!(becomes(403).is_some(), "what was missed is read");
    site.cli(&["token", "revoke", &site.credential]);
    assert!(becomes(407).is_some());
}

#[test]
fn who_is_done_with_a_store_listens_no_more() {
    let Some(cluster) = Cluster::shared() else { return };
    let rights = Rights::new(cluster);
    let mut source = rights.read_source();
    let _wake_ups = source.reader.wake_ups();
    let connections = |wanted: i64| {
        let mut client = cluster.client("postgres");
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE usename = $1";
        let mut count = || client.query_one(sql, &[&rights.database.relay()]).unwrap().get::<_, i64>(0);
        wait_for(|| (count() == wanted).then_some(()))
    };
    assert!(connections(2).is_some(), "one reads, one listens");
    drop(source);
    assert!(connections(0).is_some());
}
