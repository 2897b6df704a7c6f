//! What `/metrics` tells of a running relay beside its totals: why, by which thread, and how near the bounds.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;

use crate::support::{Device, Relay, Request, Site, V4, output_of, tools_or_skip, wait_for};

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
    let told: BTreeSet<String> =
        families.map(|(name, _)| name.to_owned()).filter(|name| is_of_store_or_guard(name)).collect();
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
fn the_process_is_told_by_the_names_that_prometheus_uses() {
    let site = Site::new("");
    let relay = site.start();
    let rss = value(&relay, "process_resident_memory_bytes").unwrap();
    let seen = relay.rss_bytes() as f64;
    assert!((rss - seen).abs() < 0.2 * seen, "{rss} told, {seen} seen");
    assert!(value(&relay, "process_virtual_memory_bytes") > Some(rss));
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    let started = value(&relay, "process_start_time_seconds").unwrap();
    assert!((now - started).abs() < 120.0, "{started} is not about {now}");
    let threads = std::fs::read_dir(format!("/proc/{}/task", relay.pid())).unwrap().count() as f64;
    assert!((value(&relay, "process_threads").unwrap() - threads).abs() < 3.0);
    let cpu = value(&relay, "process_cpu_seconds_total").unwrap();
    assert!(
        wait_for(|| (value(&relay, "process_cpu_seconds_total")? > cpu).then_some(())).is_some(),
        "every scrape takes some"
    );
}

/// Prometheus's own check: names, HELP and TYPE of each metric, in the format that any program gets.
#[test]
fn prometheus_finds_nothing_to_say_about_the_metrics() {
    if !tools_or_skip("prometheus_finds_nothing_to_say_about_the_metrics", &["promtool"]) {
        return;
    }
    let site = Site::new("");
    let relay = site.start();
    let device = Device::echo(V4);
    drop(site.request(&device).send(relay.address()).opened());
    becomes(&relay, "sluicegate_tunnels_closed_total", 1.0);
    let text = relay.admin_get("/metrics");
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    assert!(head.contains("content-type: text/plain; version=0.0.4"), "{head}");
    let mut promtool = std::process::Command::new("promtool");
    let output = output_of(promtool.args(["check", "metrics"]), body.as_bytes());
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success() && said.is_empty(), "{said}");
}

#[test]
fn descriptors_and_failed_reads_are_counted() {
    let site = Site::new("authz = { refresh = '20ms' }");
    let relay = site.start();
    let open = |relay: &Relay| value(relay, "process_open_fds").unwrap();
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
    assert_eq!(value(&relay, "process_max_fds"), Some(max));
    drop(clients);

    assert_eq!(value(&relay, "sluicegate_store_errors_total"), Some(0.0));
    std::fs::rename(site.store_path(), site.store_path().with_extension("away")).unwrap();
    assert!(
        wait_for(|| (value(&relay, "sluicegate_store_errors_total") > Some(1.0)).then_some(())).is_some()
    );
}
