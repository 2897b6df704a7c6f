//! What can happen to a PostgreSQL server under a running relay: each is told, none decides anything, and all
//! heal without a restart of the relay.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::time::{Duration, Instant};

use sluicegate::config::{self, Authz};
use sluicegate::store::StoreError;

use crate::support::{
    Changes, Cluster, Device, Relay, Request, Rights, Signal, Site, StoreView, UUID, V4, store_at, wait_for,
};

/// A source that gives a server little time.
fn hasty_source(url: &str) -> StoreView {
    let store = config::Store {
        statement_timeout: Duration::from_millis(500),
        connect_timeout: Duration::from_millis(500),
        ..store_at(url)
    };
    StoreView::new(&store, &Authz::default())
}

/// The status that a token gets which nobody issued.
fn ask_unknown(relay: &Relay) -> u16 {
    Request::to(crate::support::DEVICE, 22).bearer("unknown").send(relay.address()).status
}

#[test]
fn a_restart_of_the_server_is_survived_and_nothing_is_missed() {
    let Some(mut cluster) = Cluster::start() else { return };
    let site = Site::on_postgres(&cluster.database(), "");
    let relay = site.start();
    let device = Device::echo(V4);
    let mut tunnel = site.ask(&relay, device.port()).opened();
    assert_eq!(ask_unknown(&relay), 407);

    cluster.stop();

    assert!(relay.logs("cannot be reached"));
    let becomes = |status: u16| wait_for(|| (ask_unknown(&relay) == status).then_some(())).is_some();
    assert!(becomes(503), "what nobody can know is not refused");
    tunnel.write_all(b"ping").unwrap();
    tunnel.read_exact(&mut [0; 4]).unwrap();
    assert_eq!(site.ask(&relay, device.port()).status, 200, "what was known is decided");

    cluster.run();

    assert!(becomes(407));
    site.cli(&["token", "revoke", &site.credential]);
    assert!(tunnel.read(&mut [0]).is_err(), "the tunnel is reset");
    assert_eq!(site.ask(&relay, device.port()).status, 407);
}

#[test]
fn a_right_to_read_a_relation_that_is_lost_is_told_and_delays_no_word() {
    let Some(cluster) = Cluster::shared() else { return };
    let database = cluster.database();
    let site = Site::on_postgres(&database, "authz.reconcile = '100ms'");
    let relay = site.start();
    let device = Device::echo(V4);

    database.by_hand(&format!("REVOKE SELECT ON sluicegate.devices FROM {}", database.relay()));
    assert!(relay.logs("permission denied for table devices"));
    assert!(relay.logs("see to its password and to the rights in docs/postgresql.md"));
    assert_eq!(ask_unknown(&relay), 407, "the other relations are read as ever");
    assert_eq!(site.ask(&relay, device.port()).status, 200);

    site.cli(&["device", "set", crate::support::DEVICE, "--offline"]);
    assert!(wait_for(|| (site.ask(&relay, device.port()).status == 503).then_some(())).is_some());

    database.by_hand(&format!("GRANT SELECT ON sluicegate.devices TO {}", database.relay()));
    assert!(relay.logs("can be read again"));
}

#[test]
fn a_server_that_has_no_connection_left_is_told_and_tried_again() {
    let Some(cluster) = Cluster::configured("max_connections = 6\nmax_wal_senders = 0\n") else { return };
    let rights = Rights::new(&cluster);
    let mut source = rights.source();
    let relay = rights.database.relay();
    let connect = || cluster.try_client(&relay, &rights.database.name).ok();
    let mut taken: Vec<_> = std::iter::from_fn(connect).collect();
    assert!(!taken.is_empty());

    let error = source.read_all().unwrap_err();

    assert!(matches!(error, StoreError::Full { .. }), "{error}");
    assert!(error.to_string().contains("raise its max_connections"), "{error}");
    taken.pop();
    let read = wait_for(|| source.read_all().ok());
    assert!(read.is_some());
}

#[test]
fn a_server_process_that_hangs_is_given_up_and_another_asked() {
    let Some(cluster) = Cluster::shared() else { return };
    let mut rights = Rights::new(cluster);
    let mut source = hasty_source(&format!("{}?application_name=hangs", rights.database.relay_url()));
    source.read_all().unwrap();

    cluster.signal_backends("hangs", Signal::SIGSTOP);
    let asked = Instant::now();
    let error = source.read_changes().unwrap_err();
    assert!(matches!(error, StoreError::Slow { .. }), "{error}");
    assert!(error.to_string().contains("no answer for 500ms"), "{error}");
    assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());

    rights.grant_any();
    let changes = source.read_changes().unwrap();
    assert!(matches!(&changes, Changes::Some { changes, .. } if changes.len() == 1), "{changes:?}");
    assert_eq!(source.read_all().unwrap().grants.len(), 1);
    cluster.signal_backends("hangs", Signal::SIGCONT);
}

#[test]
fn a_query_that_never_ends_is_given_up_and_cancelled() {
    let Some(cluster) = Cluster::shared() else { return };
    let rights = Rights::new(cluster);
    let mut source = hasty_source(&rights.database.owner_url());
    source.read_all().unwrap();
    // What a view that was changed badly can do.
    rights.by_hand(
        "ALTER TABLE sluicegate.devices RENAME TO all_devices;
        CREATE VIEW sluicegate.devices AS SELECT all_devices.* FROM sluicegate.all_devices, pg_sleep(600)",
    );

    let error = source.read_all().unwrap_err();

    assert!(matches!(error, StoreError::Slow { .. }), "{error}");
    let running = "SELECT count(*) FROM pg_stat_activity WHERE datname = $1 AND wait_event = 'PgSleep'";
    let is_over = || {
        let count: i64 =
            cluster.client("postgres").query_one(running, &[&rights.database.name]).unwrap().get(0);
        (count == 0).then_some(())
    };
    assert!(wait_for(is_over).is_some());
}

#[test]
fn a_table_that_is_locked_is_told_and_read_once_it_is_free() {
    let Some(cluster) = Cluster::shared() else { return };
    let rights = Rights::new(cluster);
    let mut source = rights.read_source();
    let mut holder = rights.database.client();
    let mut holder = holder.transaction().unwrap();
    holder.batch_execute("LOCK sluicegate.grants IN ACCESS EXCLUSIVE MODE").unwrap();
    let error = source.read_all().unwrap_err();
    assert!(matches!(error, StoreError::Locked { .. }), "{error}");
    holder.rollback().unwrap();
    source.read_all().unwrap();
}

#[test]
fn an_address_that_accepts_and_says_nothing_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("postgres://relay@{}/rights", listener.local_addr().unwrap());
    let asked = Instant::now();
    let error = hasty_source(&url).read_all().unwrap_err();
    assert!(matches!(error, StoreError::Slow { .. }), "{error}");
    assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
}

#[test]
fn a_database_that_is_not_there_is_told() {
    let Some(cluster) = Cluster::shared() else { return };
    let error = crate::support::postgres_source(&cluster.url("postgres", "nowhere")).read_all().unwrap_err();
    assert!(matches!(error, StoreError::Unreachable { .. }), "{error}");
    assert!(error.to_string().contains("database \"nowhere\" does not exist"), "{error}");
}

#[test]
fn a_password_comes_from_a_file_that_is_read_again_or_from_the_environment() {
    let Some(cluster) = Cluster::start() else { return };
    let mut rights = Rights::new(&cluster);
    rights.add_device(UUID);
    let role = rights.database.relay();
    rights.by_hand(&format!("ALTER ROLE {role} PASSWORD 'right-one'"));
    let hba = format!("host all {role} all scram-sha-256\nhost all postgres all trust\n");
    std::fs::write(cluster.data().join("pg_hba.conf"), hba).unwrap();
    rights.by_hand("SELECT pg_reload_conf()");
    let url = rights.database.relay_url();
    wait_for(|| cluster.try_client(&role, "postgres").is_err().then_some(())).unwrap();

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("password");
    std::fs::write(&file, "wrong-one\n").unwrap();
    let store = config::Store { password_file: Some(file.clone()), ..store_at(&url) };
    let mut source = StoreView::new(&store, &Authz::default());
    let error = source.read_all().unwrap_err();
    assert!(matches!(error, StoreError::Denied { .. }), "{error}");
    assert!(!error.to_string().contains("wrong-one"), "{error}");
    std::fs::write(&file, "right-one\n").unwrap();
    assert_eq!(source.read_all().unwrap().devices.len(), 1);
    std::fs::remove_file(&file).unwrap();
    let error = StoreView::new(&store, &Authz::default()).read_all().unwrap_err();
    assert!(matches!(error, StoreError::PasswordFile { .. }), "{error}");

    let mut check = std::process::Command::new(crate::support::BINARY);
    check.arg("check").env("SLUICEGATE_STORE__URL", &url).env("HOME", folder.path());
    let message = |check: &mut std::process::Command| {
        let output = check.output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, why) = message(&mut check);
    assert!(code == Some(1) && why.contains("password missing"), "{why}");
    let (code, why) = message(check.env("PGPASSWORD", "right-one"));
    assert_eq!(code, Some(0), "{why}");
}
