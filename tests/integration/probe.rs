//! The node as a client of its own: what a probe finds, and how that is told.

use crate::support::{Relay, Site, V4, wait_for};

fn succeeds(relay: &Relay) -> bool {
    relay.metric_becomes("sluicegate_probe_success", |success| success == 1.0)
}

fn fails(relay: &Relay) -> bool {
    relay.metric_becomes("sluicegate_probe_success", |success| success == 0.0)
}

fn status_text(site: &Site) -> String {
    let output = site.command(&["status"]).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_probe_with_nobodys_token_has_to_be_refused_and_troubles_no_figure() {
    let site = Site::new("probe.interval = '1s'\nauthz = { refresh = '20ms', max_stale = '6s' }");
    let relay = site.start();
    assert!(succeeds(&relay));
    assert!(status_text(&site).contains("probe     served in "), "{}", status_text(&site));
    assert!(relay.metric("sluicegate_sessions_accepted_total") >= Some(1.0), "it came by the listener");
    assert_eq!(relay.metric("sluicegate_sessions_refused_total"), Some(0.0));
    assert_eq!(relay.metric("sluicegate_refusals_total"), None);
    assert!(site.audit().events().iter().all(|event| event["event"] != "refusal"));

    // While the store is away nobody knows whether a token is nobody's: the node says so, as it should.
    let away = site.store_path().with_extension("away");
    std::fs::rename(site.store_path(), &away).unwrap();
    assert!(relay.metric_becomes("sluicegate_store_reachable", |reachable| reachable == 0.0));
    let runs = relay.metric("sluicegate_probe_runs_total").unwrap();
    assert!(relay.metric_becomes("sluicegate_probe_runs_total", |now| now >= runs + 2.0));
    assert!(succeeds(&relay));
    // Until what it knew is too old to decide by.
    assert!(fails(&relay), "{}", relay.log());
    assert!(
        relay.logs("the probe fails: the reply was `HTTP/1.1 503 Authorization Unavailable`"),
        "{}",
        relay.log()
    );
    assert_eq!(relay.metric("sluicegate_sessions_undecided_total"), Some(0.0));
    std::fs::rename(away, site.store_path()).unwrap();
    assert!(relay.logs("the probe succeeds again"));
}

#[test]
fn a_probe_of_a_device_is_a_real_tunnel() {
    let mut site = Site::new("probe.interval = '1s'");
    let device = crate::support::Device::echo(V4);
    let token_file = site.folder().join("probe-token");
    std::fs::write(&token_file, format!("{}\n", site.token)).unwrap();
    let (uuid, port) = (crate::support::DEVICE, device.port());
    site.configure(&format!(
        "probe = {{ device = '{uuid}', port = {port}, token_file = '{}' }}",
        token_file.display()
    ));
    let relay = site.start();
    assert!(succeeds(&relay));
    assert!(relay.metric("sluicegate_tunnels_opened_total") >= Some(1.0));
    assert!(relay.metric("sluicegate_probe_duration_seconds") > Some(0.0));

    site.cli(&["grant", "revoke", &site.grant.to_string()]);
    assert!(fails(&relay));
    let message = "the probe fails: the reply was `HTTP/1.1 403 Tunnel Not Permitted`, and should be 200";
    assert!(relay.logs(message), "{}", relay.log());
    assert!(status_text(&site).contains("FAILS: the reply was `HTTP/1.1 403"), "{}", status_text(&site));
    assert!(relay.admin_get("/readyz").starts_with("HTTP/1.1 200"), "others are served all the same");

    std::fs::remove_file(&token_file).unwrap();
    let message = || status_text(&site).contains("probe.token_file").then_some(());
    assert!(wait_for(message).is_some(), "{}", status_text(&site));
    assert!(!relay.log().contains(&site.token));

    std::fs::write(&token_file, &site.token).unwrap();
    site.cli(&["grant", "add", "alice", "--any"]);
    assert!(succeeds(&relay));
}

#[test]
fn a_probe_that_cannot_work_is_told_before_the_relay_starts() {
    for (fragment, message) in [
        (
            format!("probe.device = '{}'", crate::support::DEVICE),
            "probe.device: a tunnel to the device needs a token",
        ),
        ("probe.token_file = '/nowhere'".to_owned(), "probe.token_file: the token has no device to reach"),
        ("probe.interval = '20ms'".to_owned(), "probe.interval: must be at least 1s"),
        ("probe.device = 'no-uuid'".to_owned(), "probe.device: "),
    ] {
        let mut site = Site::new("");
        site.configure(&fragment);
        let output = site.command(&["check"]).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{fragment}");
        assert!(said.contains(message), "{fragment}: {said}");
    }
}
