//! What `/metrics` tells of a running relay beside its totals: why, by which thread, and how near the bounds.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;

use crate::support::{Device, Relay, Request, Site, V4, wait_for};

/// The value of the sample whose name and labels are `sample`.
fn value(relay: &Relay, sample: &str) -> Option<f64> {
    let text = relay.admin_get("/metrics");
    let line = text.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '))?;
    line.parse().ok()
}

#[track_caller]
fn becomes(relay: &Relay, sample: &str, wanted: f64) {
    let found = wait_for(|| value(relay, sample).filter(|found| *found == wanted));
    assert!(found.is_some(), "{sample} is {:?}, not {wanted}", value(relay, sample));
}

#[test]
fn refusals_and_ends_are_counted_by_what_was_told_and_what_is_true() {
    let site = Site::new("");
    let relay = site.start();
    let device = Device::echo(V4);
    let unknown = Request::to(&"9".repeat(32), 80).bearer(&site.token);
    assert_eq!(unknown.send(relay.address()).status, 403);
    assert_eq!(
        Request::to(crate::support::DEVICE, device.port()).bearer("nobody's").send(relay.address()).status,
        407
    );
    assert_eq!(site.ask(&relay, Device::closed_port()).status, 502);
    drop(site.request(&device).send(relay.address()).opened());

    becomes(&relay, "sluicegate_refusals_total{slug=\"not-permitted\",cause=\"device-unknown\"}", 1.0);
    becomes(&relay, "sluicegate_refusals_total{slug=\"credentials\",cause=\"credential-unknown\"}", 1.0);
    becomes(
        &relay,
        "sluicegate_refusals_total{slug=\"device-port-closed\",cause=\"device-port-closed\"}",
        1.0,
    );
    becomes(&relay, "sluicegate_tunnel_ends_total{cause=\"closed\"}", 1.0);
    becomes(&relay, "sluicegate_decision_seconds_count", 4.0);
    becomes(&relay, "sluicegate_dial_seconds_count", 2.0);
    let text = relay.admin_get("/metrics");
    for secret in [&site.token[..], "alice", &"9".repeat(32), crate::support::DEVICE] {
        assert!(!text.contains(secret), "{secret} is in a label");
    }
}

/// Names of metrics in a table of docs/admin.md, of those that begin as the table's do.
fn documented() -> BTreeSet<String> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/admin.md");
    let page = std::fs::read_to_string(page).unwrap();
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    rows.map(|(name, _)| name.to_owned()).filter(|name| is_of_store_or_guard(name)).collect()
}

fn is_of_store_or_guard(name: &str) -> bool {
    ["sluicegate_guard_", "sluicegate_store_"].iter().any(|prefix| name.starts_with(prefix))
}

#[test]
fn the_page_on_metrics_has_each_metric_of_the_store_and_the_guard() {
    let site = Site::new("");
    let relay = site.start();
    let text = relay.admin_get("/metrics");
    let families = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    let told: BTreeSet<String> = families
        .map(|(name, kind)| if kind == "counter" { format!("{name}_total") } else { name.to_owned() })
        .filter(|name| is_of_store_or_guard(name))
        .collect();
    assert_eq!(documented(), told);
}

#[test]
fn what_streams_hold_is_told_beside_its_bound() {
    let site = Site::new("engine = { threads = 1, pipes = 7, buffers = 64 }\nlimits.sessions = 50");
    let relay = site.start();
    let device = Device::listening(V4);
    let mut client = site.request(&device).send(relay.address()).opened();
    let mut behind = device.accept();
    for (bound, wanted) in [("pipes_max", 7.0), ("buffers_max", 64.0), ("sessions_max", 50.0)] {
        assert_eq!(value(&relay, &format!("sluicegate_{bound}")), Some(wanted));
    }
    assert_eq!(value(&relay, "sluicegate_pipes_in_use"), Some(0.0), "an idle tunnel holds none");

    // A stream that nobody takes up at the other end.
    client.set_nonblocking(true).unwrap();
    let chunk = vec![7; 1 << 16];
    let _stuck = wait_for(|| {
        let _full = client.write(&chunk);
        (value(&relay, "sluicegate_pipes_in_use") == Some(1.0)).then_some(())
    });
    assert_eq!(value(&relay, "sluicegate_pipes_in_use"), Some(1.0));
    client.shutdown(std::net::Shutdown::Write).unwrap();
    behind.set_read_timeout(Some(crate::support::PATIENCE)).unwrap();
    std::io::copy(&mut behind, &mut std::io::sink()).unwrap();
    drop((client, behind));
    becomes(&relay, "sluicegate_pipes_in_use", 0.0);
    becomes(&relay, "sluicegate_buffers_in_use", 0.0);
    let turns = value(&relay, "sluicegate_engine_turns_total{thread=\"0\"}");
    assert!(turns > Some(3.0) && value(&relay, "sluicegate_engine_turns_total{thread=\"1\"}").is_none());
}

#[test]
fn descriptors_and_failed_reads_are_counted() {
    let site = Site::new("authz = { refresh = '20ms' }");
    let relay = site.start();
    let open = |relay: &Relay| value(relay, "sluicegate_open_descriptors").unwrap();
    let before = open(&relay);
    let clients: Vec<_> = (0..100).map(|_| crate::support::connect(relay.address())).collect();
    // Some of those before may have been only for the start.
    assert!(wait_for(|| (open(&relay) >= before + 90.0).then_some(())).is_some());
    let listed = relay.descriptors().len() as f64;
    assert!((open(&relay) - listed).abs() < 10.0, "{} told, {listed} listed", open(&relay));
    let soft = format!("/proc/{}/limits", relay.pid());
    let limits = std::fs::read_to_string(soft).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let max: f64 = line.split_ascii_whitespace().nth(3).unwrap().parse().unwrap();
    assert_eq!(value(&relay, "sluicegate_open_descriptors_max"), Some(max));
    drop(clients);

    assert_eq!(value(&relay, "sluicegate_store_errors_total"), Some(0.0));
    std::fs::rename(site.store_path(), site.store_path().with_extension("away")).unwrap();
    assert!(
        wait_for(|| (value(&relay, "sluicegate_store_errors_total") > Some(1.0)).then_some(())).is_some()
    );
}
