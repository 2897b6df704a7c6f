//! The fault of each alert, on a running relay.

use std::fs;
use std::io::Write;
use std::net::{Shutdown, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, SystemTime};

use super::{CALM_MINUTES, Recording, Scrape, prove};
use crate::support::{
    Authority, DEVICE, DEVICE_V6, Device, KeyAnswer, KeyServer, OTHER_DEVICE, Pair, Relay, Request, Signal,
    Signer, Site, V4, assert_done, connect, node_section, root_or_skip, tools_or_skip, with_mounts,
};

const NODE: &str = "node-1";

/// A recording with its calm minutes.
fn calm(relay: &Relay) -> Recording {
    let mut recording = Recording::default();
    minutes(&mut recording, relay, CALM_MINUTES);
    recording
}

fn minutes(recording: &mut Recording, relay: &Relay, count: usize) {
    (0..count).for_each(|_| recording.minute(&[Scrape::of(NODE, relay)]));
}

/// Minutes in each of which `act` comes before the scrape.
fn minutes_of(recording: &mut Recording, relay: &Relay, count: usize, mut act: impl FnMut()) {
    for _ in 0..count {
        act();
        minutes(recording, relay, 1);
    }
}

fn sql(site: &Site, statements: &str) {
    let store = rusqlite::Connection::open(site.store_path()).unwrap();
    store.busy_timeout(crate::support::PATIENCE).unwrap();
    store.execute_batch(statements).unwrap();
}

/// Has the query read a view in the place of a table.
fn replace_table(site: &Site, table: &str, select: &str) {
    sql(site, &format!("ALTER TABLE {table} RENAME TO {table}_table; CREATE VIEW {table} AS {select}"));
}

fn take_store_away(site: &Site, relay: &Relay) {
    fs::rename(site.store_path(), site.store_path().with_extension("away")).unwrap();
    assert!(relay.metric_becomes("sluicegate_store_reachable", |reachable| reachable == 0.0));
}

#[track_caller]
fn becomes(relay: &Relay, metric: &str, is_wanted: impl Fn(f64) -> bool) {
    assert!(relay.metric_becomes(metric, is_wanted), "{metric} is {:?}", relay.metric(metric));
}

/// The condition that `status` and the page show for `alert`.
#[track_caller]
fn is_shown(site: &Site, relay: &Relay, alert: &str) {
    let screen = site.command(&["status"]).output().unwrap();
    let screen = String::from_utf8_lossy(&screen.stdout).into_owned();
    assert!(screen.contains(&format!("{alert}: ")), "{screen}");
    let report = relay.admin_get("/status.json");
    assert!(report.contains(&format!("\"alert\":\"{alert}\"")), "{report}");
}

fn has_promtool(test: &str) -> bool {
    tools_or_skip(test, &["promtool"])
}

#[test]
fn a_mass_of_rows_that_vanish_fires_hold() {
    if !has_promtool("a_mass_of_rows_that_vanish_fires_hold") {
        return;
    }
    let site = Site::new("authz = { reconcile = '200ms', refresh = '50ms' }");
    site.cli(&["device", "add", OTHER_DEVICE, "--address", "127.0.0.9"]);
    let relay = site.start();
    let mut recording = calm(&relay);
    replace_table(&site, "devices", &format!("SELECT * FROM devices_table WHERE uuid = '{DEVICE_V6}'"));
    becomes(&relay, "sluicegate_guard_held", |held| held == 1.0);
    minutes(&mut recording, &relay, 5);
    is_shown(&site, &relay, "SluicegateHold");
    prove("SluicegateHold", &[], &recording);
}

/// A site whose query gives a grant fewer ports, within the budget; clients notice it.
fn rights_narrowed() -> (Site, Relay, Recording) {
    let site = Site::new(
        "authz = { reconcile = '200ms', refresh = '50ms', guard = { on_regression = 'alarm',
         budgets = { narrowed = { rows = 9, share = 0.0 } } } }",
    );
    let relay = site.start();
    let recording = calm(&relay);
    let columns =
        "id, principal, scope, target, 443 AS port_min, 443 AS port_max, created_at, expires_at, revoked_at";
    replace_table(&site, "grants", &format!("SELECT {columns} FROM grants_table"));
    let device = Device::echo(V4);
    let refused = crate::support::wait_for(|| (site.ask(&relay, device.port()).status == 403).then_some(()));
    assert!(refused.is_some(), "{}", relay.log());
    becomes(&relay, "sluicegate_guard_regressions_total", |count| count > 0.0);
    (site, relay, recording)
}

#[test]
fn a_right_that_a_query_takes_away_fires_regressions() {
    if !has_promtool("a_right_that_a_query_takes_away_fires_regressions") {
        return;
    }
    let (_site, relay, mut recording) = rights_narrowed();
    minutes(&mut recording, &relay, 3);
    prove("SluicegateRegressions", &[], &recording);
}

#[test]
fn devices_that_go_offline_fire_nothing() {
    if !has_promtool("devices_that_go_offline_fire_nothing") {
        return;
    }
    let site = Site::new("authz = { reconcile = '200ms', refresh = '50ms' }");
    let relay = site.start();
    let device = Device::echo(V4);
    assert_eq!(site.ask(&relay, device.port()).status, 200);
    let mut recording = calm(&relay);
    // One goes offline by the store's word, the other one is gone from an answer.
    sql(&site, &format!("UPDATE devices SET address = NULL WHERE uuid = '{DEVICE}'"));
    replace_table(&site, "devices", &format!("SELECT * FROM devices_table WHERE uuid = '{DEVICE}'"));
    let comes_to = |uuid: &str, status: u16| {
        let ask = || Request::to(uuid, device.port()).bearer(&site.token).send(relay.address()).status;
        crate::support::wait_for(|| (ask() == status).then_some(())).is_some()
    };
    assert!(comes_to(DEVICE, 503) && comes_to(DEVICE_V6, 403), "{}", relay.log());
    minutes_of(&mut recording, &relay, 10, || {
        assert_eq!(site.ask(&relay, device.port()).status, 503);
        assert!(comes_to(DEVICE_V6, 403));
    });
    assert_eq!(relay.metric("sluicegate_guard_regressions_total"), Some(0.0));
    recording
        .evaluate(&[("count by (alertname) (count_over_time(ALERTS{alertstate=\"firing\"}[1d]))", None)]);
}

#[test]
fn an_undoing_fires_rolled_back() {
    if !has_promtool("an_undoing_fires_rolled_back") {
        return;
    }
    let (site, relay, mut recording) = rights_narrowed();
    assert_done(&site.command(&["authz", "rollback"]).output().unwrap());
    becomes(&relay, "sluicegate_guard_rollbacks_total", |count| count > 0.0);
    minutes(&mut recording, &relay, 3);
    prove("SluicegateRolledBack", &["SluicegateRegressions", "SluicegateHold"], &recording);
}

#[test]
fn devices_at_one_address_fire_disputed() {
    if !has_promtool("devices_at_one_address_fire_disputed") {
        return;
    }
    let site = Site::new("authz = { reconcile = '200ms', refresh = '50ms' }");
    site.cli(&["device", "add", OTHER_DEVICE, "--address", "127.0.0.9"]);
    let relay = site.start();
    let mut recording = calm(&relay);
    sql(&site, "UPDATE devices SET address = '127.0.0.1'");
    becomes(&relay, "sluicegate_guard_disputed_devices", |devices| devices > 0.0);
    minutes(&mut recording, &relay, 5);
    is_shown(&site, &relay, "SluicegateDisputed");
    prove("SluicegateDisputed", &["SluicegateHold"], &recording);
}

#[test]
fn a_full_disk_under_the_state_fires_state_unsaved() {
    let test = "a_full_disk_under_the_state_fires_state_unsaved";
    if !has_promtool(test) || !root_or_skip(test) {
        return;
    }
    let site = Site::new("authz = { reconcile = '200ms', refresh = '50ms' }");
    let state = site.folder().join("state");
    fs::create_dir(&state).unwrap();
    fs::set_permissions(&state, fs::Permissions::from_mode(0o700)).unwrap();
    let mount = format!("mount -t tmpfs -o size=512k,mode=700 tmpfs {}", state.display());
    let relay = site.start_through(&with_mounts(&mount));
    let seen = crate::support::as_seen_by(relay.pid(), &state);
    let mut recording = calm(&relay);
    let mut filler = fs::File::create(seen.join("filler")).unwrap();
    while filler.write_all(&[1; 512]).is_ok() {}
    let unsaved = crate::support::wait_for(|| {
        // Each end takes room that is reserved; then there is none.
        site.cli(&["device", "add", OTHER_DEVICE]);
        site.cli(&["device", "remove", OTHER_DEVICE]);
        let _full = filler.write_all(&[1; 4096]);
        (relay.metric("sluicegate_guard_state_unsaved") == Some(1.0)).then_some(())
    });
    assert!(unsaved.is_some(), "{}", relay.log());
    minutes(&mut recording, &relay, 5);
    prove("SluicegateStateUnsaved", &["SluicegateHold"], &recording);
}

#[test]
fn clients_that_cannot_be_decided_fire_undecided() {
    if !has_promtool("clients_that_cannot_be_decided_fire_undecided") {
        return;
    }
    let site = Site::new("authz.refresh = '50ms'");
    let relay = site.start();
    let mut recording = calm(&relay);
    take_store_away(&site, &relay);
    minutes_of(&mut recording, &relay, 8, || {
        let answer = Request::to(DEVICE, 80).bearer("a new token").send(relay.address());
        assert_eq!(answer.status, 503);
    });
    prove("SluicegateUndecided", &["SluicegateNoRefresh"], &recording);
}

#[test]
fn a_login_service_that_cannot_say_its_keys_fires_token_keys() {
    let test = "a_login_service_that_cannot_say_its_keys_fires_token_keys";
    if !tools_or_skip(test, &["promtool", "openssl"]) {
        return;
    }
    let mut site = Site::new("");
    let server = KeyServer::start(site.folder());
    let key = Signer::new(site.folder(), "login", "ES256").jwk("one", &serde_json::Value::Null);
    server.serves(&[key]);
    site.configure(&format!("authz.tokens = [{}]", server.entry("keys_refresh = '1s'")));
    let relay = site.start();
    let fails = |state: &str| {
        let line = format!("sluicegate_token_key_sets{{state=\"{state}\"}} 1");
        crate::support::wait_for(|| relay.admin_get("/metrics").contains(&line).then_some(())).is_some()
    };
    let mut recording = calm(&relay);
    server.answers("/keys", KeyAnswer::Status(500));
    assert!(fails("kept"), "{}", relay.log());
    minutes(&mut recording, &relay, 12);
    is_shown(&site, &relay, "SluicegateTokenKeys");
    prove("SluicegateTokenKeys", &[], &recording);
}

#[test]
fn a_store_that_is_away_fires_no_refresh() {
    if !has_promtool("a_store_that_is_away_fires_no_refresh") {
        return;
    }
    let site = Site::new("authz.refresh = '50ms'");
    let relay = site.start();
    let mut recording = calm(&relay);
    take_store_away(&site, &relay);
    minutes(&mut recording, &relay, 5);
    is_shown(&site, &relay, "SluicegateNoRefresh");
    prove("SluicegateNoRefresh", &[], &recording);
}

#[test]
fn a_relation_that_cannot_be_read_fires_relation_errors() {
    if !has_promtool("a_relation_that_cannot_be_read_fires_relation_errors") {
        return;
    }
    let site = Site::new("authz = { reconcile = '100ms', refresh = '50ms' }");
    let relay = site.start();
    let mut recording = calm(&relay);
    sql(&site, "ALTER TABLE grants RENAME TO grants_table");
    becomes(&relay, "sluicegate_store_relation_errors_total", |errors| errors > 0.0);
    let mut seen = 0.0;
    minutes_of(&mut recording, &relay, 8, || {
        becomes(&relay, "sluicegate_store_relation_errors_total", |errors| errors > seen);
        seen = relay.metric("sluicegate_store_relation_errors_total").unwrap();
    });
    is_shown(&site, &relay, "SluicegateRelationErrors");
    prove("SluicegateRelationErrors", &["SluicegateHold", "SluicegateNoRefresh"], &recording);
}

/// Where Debian's `faketime` has its library.
fn faketime() -> PathBuf {
    let folders = fs::read_dir("/usr/lib").unwrap().filter_map(Result::ok);
    let places = folders.map(|folder| folder.path().join("faketime/libfaketimeMT.so.1"));
    places.into_iter().find(|place| place.exists()).expect("faketime has its library in /usr/lib")
}

#[test]
fn a_store_that_was_away_for_an_hour_fires_stale_snapshot() {
    let test = "a_store_that_was_away_for_an_hour_fires_stale_snapshot";
    if !tools_or_skip(test, &["promtool", "faketime"]) {
        return;
    }
    let site = Site::new("authz.refresh = '50ms'");
    let lead = site.folder().join("lead");
    fs::write(&lead, "+0\n").unwrap();
    let relay = site.start_through(&[
        "env".to_owned(),
        format!("LD_PRELOAD={}", faketime().display()),
        format!("FAKETIME_TIMESTAMP_FILE={}", lead.display()),
        "FAKETIME_NO_CACHE=1".to_owned(),
        "FAKETIME_DONT_FAKE_MONOTONIC=1".to_owned(),
    ]);
    let mut recording = calm(&relay);
    take_store_away(&site, &relay);
    for minute in 0..65 {
        fs::write(&lead, format!("+{minute}m\n")).unwrap();
        minutes(&mut recording, &relay, 1);
    }
    is_shown(&site, &relay, "SluicegateStaleSnapshot");
    prove("SluicegateStaleSnapshot", &["SluicegateNoRefresh"], &recording);
}

#[test]
fn a_row_that_does_not_decode_fires_quarantine() {
    if !has_promtool("a_row_that_does_not_decode_fires_quarantine") {
        return;
    }
    let site = Site::new("authz = { reconcile = '200ms', refresh = '50ms' }");
    let relay = site.start();
    let mut recording = calm(&relay);
    sql(
        &site,
        &format!(
            "PRAGMA ignore_check_constraints = true; UPDATE devices SET node = '' WHERE uuid = '{DEVICE}'"
        ),
    );
    becomes(&relay, "sluicegate_store_quarantined_rows", |rows| rows == 1.0);
    minutes(&mut recording, &relay, 8);
    is_shown(&site, &relay, "SluicegateQuarantine");
    prove("SluicegateQuarantine", &[], &recording);
}

#[test]
fn a_vpn_source_that_is_away_fires_vpn_source() {
    if !has_promtool("a_vpn_source_that_is_away_fires_vpn_source") {
        return;
    }
    let mut site = Site::new("");
    let file = site.folder().join("addresses");
    fs::write(&file, format!("{DEVICE} 127.0.0.1\n")).unwrap();
    site.configure(&format!("vpn.addresses = ['file:{}', 'store']", file.display()));
    let relay = site.start();
    let mut recording = calm(&relay);
    fs::remove_file(&file).unwrap();
    becomes(&relay, "sluicegate_vpn_addresses_stale_files", |files| files == 1.0);
    minutes(&mut recording, &relay, 8);
    is_shown(&site, &relay, "SluicegateVpnSource");
    prove("SluicegateVpnSource", &[], &recording);
}

#[test]
fn a_node_that_is_gone_fires_down() {
    if !has_promtool("a_node_that_is_gone_fires_down") {
        return;
    }
    let site = Site::new("");
    let relay = site.start();
    let mut recording = calm(&relay);
    drop(relay);
    (0..5).for_each(|_| recording.minute(&[Scrape::failed(NODE)]));
    prove("SluicegateDown", &[], &recording);
}

#[test]
fn a_probe_without_its_right_fires_probe() {
    if !has_promtool("a_probe_without_its_right_fires_probe") {
        return;
    }
    let device = Device::echo(V4);
    let mut site = Site::new("");
    let token = site.folder().join("probe.token");
    fs::write(&token, &site.token).unwrap();
    fs::set_permissions(&token, fs::Permissions::from_mode(0o600)).unwrap();
    site.configure(&format!(
        "probe = {{ interval = '1s', device = '{DEVICE}', port = {}, token_file = '{}' }}",
        device.port(),
        token.display()
    ));
    let relay = site.start();
    becomes(&relay, "sluicegate_probe_success", |success| success == 1.0);
    let mut recording = calm(&relay);
    site.cli(&["grant", "revoke", &site.grant.to_string()]);
    becomes(&relay, "sluicegate_probe_success", |success| success == 0.0);
    minutes(&mut recording, &relay, 5);
    is_shown(&site, &relay, "SluicegateProbe");
    prove("SluicegateProbe", &[], &recording);
}

#[test]
fn a_node_that_cannot_be_reached_fires_node_probe() {
    if !has_promtool("a_node_that_cannot_be_reached_fires_node_probe") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new(folder.path(), "nodes");
    let mut site = Site::new("probe.interval = '1s'\ntimeouts.forward = '1s'");
    site.configure(&node_section("node-a", &authority));
    let relay = site.start();
    becomes(&relay, "sluicegate_probe_runs_total", |runs| runs >= 1.0);
    let mut recording = calm(&relay);
    // It says that it lives, and answers nobody.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    sql(
        &site,
        &format!(
            "INSERT INTO nodes (name, forward_address, heartbeat_at) VALUES ('node-b', '{}',
                unixepoch() * 1000 + 3600000)",
            silent.local_addr().unwrap()
        ),
    );
    becomes(&relay, "sluicegate_probe_success{path=\"forwarded\"}", |success| success == 0.0);
    minutes(&mut recording, &relay, 5);
    is_shown(&site, &relay, "SluicegateNodeProbe");
    prove("SluicegateNodeProbe", &[], &recording);
}

#[test]
fn a_directory_that_cannot_be_written_fires_directory() {
    if !has_promtool("a_directory_that_cannot_be_written_fires_directory") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new(folder.path(), "nodes");
    let mut site = Site::new("");
    site.configure(&node_section("node-a", &authority));
    let relay = site.start();
    let mut recording = calm(&relay);
    sql(&site, "ALTER TABLE nodes RENAME TO nodes_table");
    let mut seen = 0.0;
    minutes_of(&mut recording, &relay, 7, || {
        becomes(&relay, "sluicegate_directory_errors_total", |errors| errors > seen);
        seen = relay.metric("sluicegate_directory_errors_total").unwrap();
    });
    prove("SluicegateDirectory", &[], &recording);
}

#[test]
fn a_client_that_is_refused_again_and_again_fires_refusals_on_a_young_node_and_after_an_idle_hour() {
    let test =
        "a_client_that_is_refused_again_and_again_fires_refusals_on_a_young_node_and_after_an_idle_hour";
    if !has_promtool(test) {
        return;
    }
    let site = Site::new("limits.unknown_tokens_per_minute = 100000");
    let relay = site.start();
    let device = Device::echo(V4);
    let mut recording = calm(&relay);
    let ask = |token: &str| drop(Request::to(DEVICE, device.port()).bearer(token).send(relay.address()));
    minutes_of(&mut recording, &relay, 20, || {
        (0..8).for_each(|_| ask("an old token"));
        (0..2).for_each(|_| ask(&site.token));
    });
    prove("SluicegateRefusals", &[], &recording);
}

#[test]
fn a_client_outside_that_does_not_get_in_fires_canary() {
    if !has_promtool("a_client_outside_that_does_not_get_in_fires_canary") {
        return;
    }
    let site = Site::new("");
    let relay = site.start();
    let device = speaking();
    let file = site.folder().join("canary.prom");
    let run = |relay: &Relay| canary(&relay.address().to_string(), &site, &device, &file, &["--plain"]);
    let mut recording = Recording::default();
    for _ in 0..CALM_MINUTES {
        assert_done(&run(&relay));
        recording.minute(&[Scrape::of_file("outside-1", &file)]);
    }
    site.cli(&["grant", "revoke", &site.grant.to_string()]);
    assert!(
        crate::support::wait_for(|| (site.ask(&relay, device.port()).status == 403).then_some(())).is_some()
    );
    for _ in 0..6 {
        assert_eq!(run(&relay).status.code(), Some(1));
        recording.minute(&[Scrape::of_file("outside-1", &file)]);
    }
    prove("SluicegateCanary", &[], &recording);
}

/// A device that speaks first, as SSH does.
fn speaking() -> Device {
    Device::serving(V4, |mut socket| {
        let _gone = socket.write_all(b"SSH-2.0-dropbear\r\n");
        crate::support::receive(&mut socket);
    })
}

/// One run of the canary, with its results in `file`.
fn canary(relay: &str, site: &Site, device: &Device, file: &Path, more: &[&str]) -> Output {
    let mut command = Command::new(crate::support::BINARY);
    command.args(["canary", "--relay", relay, "--device", &format!("{DEVICE}:{}", device.port())]);
    command.args(more).arg("--textfile").arg(file).env("SLUICEGATE_TOKEN", &site.token);
    command.output().unwrap()
}

const NAME: &str = "relay.example";

/// A relay with TLS, whose certificate can be replaced.
struct TlsScene {
    site: Site,
    authority: Authority,
}

impl TlsScene {
    fn new() -> Self {
        // A canary asks with a token that nobody holds, each minute of the test.
        let mut site = Site::new("limits.unknown_tokens_per_minute = 100000");
        let authority = Authority::new(site.folder(), "root");
        let (chain, key) = authority.issue(NAME, &[NAME]).write(site.folder(), "relay");
        site.configure(&format!(
            "listen = [{{ address = '127.0.0.1:0', tls = {{ certificates = [{{ chain = '{}', key = '{}' }}] }} }}]",
            chain.display(),
            key.display(),
        ));
        Self { site, authority }
    }

    /// Has `relay` show another certificate.
    fn show(&self, relay: &Relay, pair: &Pair) {
        pair.write(self.site.folder(), "relay");
        assert_done(&self.site.command(&["reload"]).output().unwrap());
        assert!(relay.logs("reloaded"), "{}", relay.log());
    }

    /// A certificate that ends in `days`.
    fn ends_in(&self, days: u64) -> Pair {
        let at = SystemTime::now() + Duration::from_secs(days * 86_400);
        let at = jiff::Timestamp::try_from(at).unwrap().to_string();
        let mut day = at.split(['-', 'T']).map(|number| number.parse::<u16>().ok());
        let mut next = || day.next().flatten().unwrap();
        self.authority.issue_until(NAME, next().into(), next() as u8, next() as u8)
    }
}

#[test]
fn a_certificate_near_its_end_fires_certificate_ends_and_the_canarys_alert() {
    if !has_promtool("a_certificate_near_its_end_fires_certificate_ends_and_the_canarys_alert") {
        return;
    }
    let scene = TlsScene::new();
    let relay = scene.site.start();
    let device = speaking();
    let file = scene.site.folder().join("canary.prom");
    let root = scene.authority.file.display().to_string();
    let run = || {
        let relay = relay.address().to_string();
        assert_done(&canary(&relay, &scene.site, &device, &file, &["--ca", &root, "--server-name", NAME]));
    };
    let mut recording = Recording::default();
    let mut minute = || {
        run();
        recording.minute(&[Scrape::of(NODE, &relay), Scrape::of_file("outside-1", &file)]);
    };
    (0..CALM_MINUTES).for_each(|_| minute());
    scene.show(&relay, &scene.ends_in(5));
    (0..63).for_each(|_| minute());
    is_shown(&scene.site, &relay, "SluicegateCertificateEnds");
    prove("SluicegateCertificateEnds", &["SluicegateCertificate"], &recording);
    prove("SluicegateCertificate", &["SluicegateCertificateEnds"], &recording);
}

#[test]
fn a_certificate_that_has_expired_fires_certificate_invalid() {
    if !has_promtool("a_certificate_that_has_expired_fires_certificate_invalid") {
        return;
    }
    let scene = TlsScene::new();
    let relay = scene.site.start();
    let mut recording = calm(&relay);
    scene.show(&relay, &scene.authority.issue_expired(NAME));
    minutes(&mut recording, &relay, 4);
    is_shown(&scene.site, &relay, "SluicegateCertificateInvalid");
    prove("SluicegateCertificateInvalid", &[], &recording);
}

#[test]
fn a_flood_without_descriptors_fires_descriptors() {
    let test = "a_flood_without_descriptors_fires_descriptors";
    if !tools_or_skip(test, &["promtool", "prlimit"]) {
        return;
    }
    let site = Site::new("engine.threads = 1\ntimeouts.head = '1s'");
    let relay = site.start_through(&["prlimit", "--nofile=256:256"]);
    let mut recording = calm(&relay);
    relay.signal(Signal::SIGSTOP);
    let clients: Vec<_> = (0..400).map(|_| connect(relay.address())).collect();
    relay.signal(Signal::SIGCONT);
    becomes(&relay, "sluicegate_accept_pauses_total", |pauses| pauses > 0.0);
    drop(clients);
    becomes(&relay, "sluicegate_sessions", |sessions| sessions == 0.0);
    minutes(&mut recording, &relay, 3);
    prove("SluicegateDescriptors", &["SluicegateFull"], &recording);
}

#[test]
fn few_descriptors_that_are_left_fire_descriptors_low() {
    let test = "few_descriptors_that_are_left_fire_descriptors_low";
    if !tools_or_skip(test, &["promtool", "prlimit"]) {
        return;
    }
    let site = Site::new("");
    let relay = site.start();
    let mut recording = calm(&relay);
    let limit = relay.descriptors().len() * 10 / 9;
    let limit = [format!("--pid={}", relay.pid()), format!("--nofile={limit}:20000")];
    assert!(Command::new("prlimit").args(limit).status().unwrap().success());
    minutes(&mut recording, &relay, 8);
    is_shown(&site, &relay, "SluicegateDescriptorsLow");
    prove("SluicegateDescriptorsLow", &[], &recording);
}

#[test]
fn as_many_sessions_as_there_may_be_fire_full_and_fewer_nearly_full() {
    if !has_promtool("as_many_sessions_as_there_may_be_fire_full_and_fewer_nearly_full") {
        return;
    }
    let site = Site::new("limits.sessions = 10");
    let relay = site.start();
    let device = Device::echo(V4);
    let open = || site.ask(&relay, device.port()).opened();

    let mut recording = calm(&relay);
    let mut tunnels: Vec<_> = (0..9).map(|_| open()).collect();
    minutes(&mut recording, &relay, 18);
    is_shown(&site, &relay, "SluicegateNearlyFull");
    prove("SluicegateNearlyFull", &[], &recording);

    let mut recording = calm(&relay);
    tunnels.push(open());
    minutes_of(&mut recording, &relay, 4, || assert_eq!(site.ask(&relay, device.port()).status, 429));
    is_shown(&site, &relay, "SluicegateFull");
    prove("SluicegateFull", &["SluicegateNearlyFull"], &recording);
}

#[test]
fn a_full_disk_under_the_audit_log_fires_audit_lost() {
    let test = "a_full_disk_under_the_audit_log_fires_audit_lost";
    if !has_promtool(test) || !root_or_skip(test) {
        return;
    }
    let mut site = Site::new("engine.threads = 1");
    let disk = site.folder().join("disk");
    fs::create_dir(&disk).unwrap();
    site.configure(&format!("audit.path = '{}/audit.jsonl'", disk.display()));
    let relay =
        site.start_through(&with_mounts(&format!("mount -t tmpfs -o size=256k tmpfs {}", disk.display())));
    let mut recording = calm(&relay);
    let mut filler = fs::File::create(crate::support::as_seen_by(relay.pid(), &disk).join("filler")).unwrap();
    while filler.write_all(&[0; 512]).is_ok() {}
    let lost = crate::support::wait_for(|| {
        let _refused = Request::to(DEVICE, 80).bearer(&site.token).send(relay.address());
        (relay.metric("sluicegate_audit_lost_total")? > 0.0).then_some(())
    });
    assert!(lost.is_some());
    minutes(&mut recording, &relay, 3);
    prove("SluicegateAuditLost", &[], &recording);
}

#[test]
fn streams_without_a_pipe_fire_pipes() {
    if !has_promtool("streams_without_a_pipe_fire_pipes") {
        return;
    }
    let site = Site::new("engine = { pipes = 1, threads = 1 }\nlimits.sessions_per_principal = 1000");
    let relay = site.start();
    let sink = Device::serving(V4, |mut socket| drop(std::io::copy(&mut socket, &mut std::io::sink())));
    let mut recording = calm(&relay);
    // A stalled direction keeps the only pipe.
    let device = Device::listening(V4);
    let mut stalled = site.request(&device).send(relay.address()).opened();
    let _never_read = device.accept();
    stalled.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
    while stalled.write(&[0; 1 << 16]).is_ok() {}
    let chunk = vec![7; 2 << 20];
    minutes_of(&mut recording, &relay, 22, || {
        for _ in 0..8 {
            let mut stream = site.request(&sink).send(relay.address()).opened();
            stream.write_all(&chunk).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            let _end = std::io::copy(&mut stream, &mut std::io::sink());
        }
    });
    prove("SluicegatePipes", &[], &recording);
}

#[test]
fn a_configuration_that_is_refused_fires_reload_refused() {
    if !has_promtool("a_configuration_that_is_refused_fires_reload_refused") {
        return;
    }
    let site = Site::new("");
    let relay = site.start();
    let mut recording = calm(&relay);
    let good = fs::read_to_string(site.config_path()).unwrap();
    fs::write(site.config_path(), format!("no_such_key = 1\n{good}")).unwrap();
    relay.signal(Signal::SIGHUP);
    becomes(&relay, "sluicegate_config_last_reload_successful", |successful| successful == 0.0);
    minutes(&mut recording, &relay, 8);
    fs::write(site.config_path(), good).unwrap();
    is_shown(&site, &relay, "SluicegateReloadRefused");
    prove("SluicegateReloadRefused", &[], &recording);
}
