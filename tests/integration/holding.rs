//! What an operator sees of a hold, on a running relay with live traffic.

use std::io::{Read, Write};

use crate::support::{DEVICE_V6, Device, OTHER_DEVICE, Site, V4};

#[test]
fn a_hold_is_told_everywhere_and_takes_nothing_from_anybody() {
    let mut site = Site::new("authz.reconcile = '100ms'");
    site.cli(&["device", "add", OTHER_DEVICE, "--address", "127.0.0.2"]);
    site.configure("authz.refresh = '50ms'");
    let relay = site.start();
    let device = Device::echo(V4);
    let mut tunnel = site.ask(&relay, device.port()).opened();
    let ready = relay.admin_get("/readyz");
    assert!(ready.starts_with("HTTP/1.1 200") && ready.ends_with("ready\n"), "{ready}");
    assert_eq!(relay.metric("sluicegate_guard_held"), Some(0.0));

    let store = rusqlite::Connection::open(site.store_path()).unwrap();
    store.busy_timeout(crate::support::PATIENCE).unwrap();
    store
        .execute_batch(&format!(
            "ALTER TABLE devices RENAME TO devices_table;
            CREATE VIEW devices AS SELECT * FROM devices_table WHERE uuid = '{DEVICE_V6}'"
        ))
        .unwrap();

    assert!(relay.metric_becomes("sluicegate_guard_held", |held| held == 1.0));
    let metrics = relay.admin_get("/metrics");
    for line in [
        "sluicegate_guard_held{rule=\"budget\",relation=\"devices\",kind=\"absent\"} 1",
        "sluicegate_guard_held{rule=\"canaries\",relation=\"all\",kind=\"all\"} 0",
        "sluicegate_guard_held_rows{rule=\"budget\",relation=\"devices\",kind=\"absent\"} 2",
        "sluicegate_guard_holds_total{rule=\"budget\"} 1",
    ] {
        assert!(metrics.contains(line), "{line} in {metrics}");
    }
    let ready = relay.admin_get("/readyz");
    assert!(ready.starts_with("HTTP/1.1 200") && ready.contains("devices.absent"), "{ready}");
    tunnel.write_all(b"ping").unwrap();
    tunnel.read_exact(&mut [0; 4]).unwrap();
    assert_eq!(site.ask(&relay, device.port()).status, 200);

    store.execute_batch("DROP VIEW devices; ALTER TABLE devices_table RENAME TO devices").unwrap();
    assert!(relay.metric_becomes("sluicegate_guard_held", |held| held == 0.0));
    assert!(relay.logs("the guard holds devices.absent by rule budget no more"));
    let log = relay.log();
    let message: Vec<&str> =
        log.lines().filter(|line| line.contains("the guard holds devices.absent by rule budget:")).collect();
    assert_eq!(message.len(), 1, "{log}");
    assert!(
        message[0].contains("2 of 3 devices are missing") && message[0].contains("such as devices"),
        "{log}"
    );
    assert!(relay.admin_get("/readyz").ends_with("ready\n"));
}
