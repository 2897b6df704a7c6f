//! `sluicegate authz`: what an operator sees of a hold, and does about it, on a running relay.

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use crate::support::{DEVICE, DEVICE_V6, Device, OTHER_DEVICE, Relay, Site, V4};
use serde_json::Value;

/// A relay on three devices, of which the store suddenly gives one alone.
struct Scene {
    site: Site,
    relay: Relay,
    device: Device,
}

impl Scene {
    fn held() -> Self {
        let site = Site::new("authz = { reconcile = '100ms', refresh = '20ms' }");
        site.cli(&["device", "add", OTHER_DEVICE, "--address", "127.0.0.1"]);
        let relay = site.start();
        let scene = Self { site, relay, device: Device::echo(V4) };
        assert_eq!(scene.ask(), 200);
        scene.sql(&format!(
            "ALTER TABLE devices RENAME TO devices_table;
            CREATE VIEW devices AS SELECT * FROM devices_table WHERE uuid = '{DEVICE_V6}'"
        ));
        assert!(scene.relay.metric_becomes("sluicegate_guard_held", |held| held == 1.0));
        scene
    }

    fn sql(&self, statements: &str) {
        let store = rusqlite::Connection::open(self.site.store_path()).unwrap();
        store.busy_timeout(crate::support::PATIENCE).unwrap();
        store.execute_batch(statements).unwrap();
    }

    fn ask(&self) -> u16 {
        self.site.ask(&self.relay, self.device.port()).status
    }

    /// The text output for a person.
    fn text(&self, command: &str) -> String {
        let output = self.site.command(&["authz", command]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// The error line of a command that refuses.
    fn refusal(&self, command: &str) -> String {
        let output = self.site.command(&["authz", command]).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stdout));
        String::from_utf8(output.stderr).unwrap()
    }

    fn audited(&self, command: &str) -> Value {
        self.site.audit().wait_for(|event| event["command"] == command && event["outcome"] == "done")
    }
}

#[test]
fn a_hold_is_explained_listed_and_accepted() {
    let scene = Scene::held();
    let status = scene.site.cli(&["authz", "status"]);
    assert_eq!(status["holds"][0]["rule"], "loss");
    assert_eq!((&status["holds"]["loss"], &status["rows"]["devices"]), (&1.into(), &3.into()));
    let text = scene.text("status");
    assert!(text.contains("guard: HOLDS by rule loss since 20"), "{text}");
    assert!(text.contains("2 of 3 devices have vanished") && text.contains("such as devices"), "{text}");

    let diff = scene.site.cli(&["authz", "diff"]);
    assert_eq!((&diff["devices"]["gone"], &diff["grants"]["gone"]), (&2.into(), &0.into()));
    let text = scene.text("diff");
    assert!(text.contains("devices: 2 gone, 0 new, 0 changed"), "{text}");
    assert!(text.contains(&format!("- devices 1: {DEVICE} at 127.0.0.1")), "{text}");

    assert_eq!(scene.ask(), 200, "looking changes nothing");
    let accepted = scene.site.cli(&["authz", "accept"]);
    assert_eq!((&accepted["rule"], &accepted["rows"]), (&"loss".into(), &2.into()));
    assert_eq!(scene.ask(), 403);
    assert_eq!(scene.site.cli(&["authz", "status"])["holds"][0], Value::Null);
    let event = scene.audited("authz-accept");
    let uid = nix::unistd::getuid().as_raw();
    assert_eq!((&event["event"], &event["uid"]), (&"operator-command".into(), &uid.into()));
    assert!(event["detail"].as_str().unwrap().contains("rule loss: 2 of 3 devices"), "{event}");

    assert!(scene.refusal("accept").contains("nothing is held"));
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(scene.site.cli(&["authz", "status"])["holds"][0], Value::Null, "what was accepted stays so");
}

#[test]
fn what_was_accepted_of_a_rule_about_rows_stays_accepted_until_it_is_worse_or_mended() {
    let site = Site::new(
        "authz = { reconcile = '50ms', refresh = '20ms', guard = { bounds = { grants = { max = 2 } } } }",
    );
    let relay = site.start();
    let held = |wanted: f64| relay.metric_becomes("sluicegate_guard_held", |held| held == wanted);
    let add = || site.cli(&["grant", "add", "alice", "--device", DEVICE])["id"].as_i64().unwrap();
    add();
    let third = add();
    assert!(held(1.0));
    site.cli(&["authz", "accept"]);
    std::thread::sleep(Duration::from_millis(200));
    assert!(held(0.0), "three are accepted");
    add();
    assert!(held(1.0), "four are not");
    site.cli(&["authz", "accept"]);
    let store = rusqlite::Connection::open(site.store_path()).unwrap();
    store.execute("DELETE FROM grants WHERE id >= ?1", [third]).unwrap();
    assert!(
        crate::support::wait_for(
            || (relay.metric("sluicegate_guard_absences_honoured_total") == Some(2.0)).then_some(())
        )
        .is_some()
    );
    add();
    assert!(held(1.0), "three are too many again");
}

#[test]
fn an_operator_goes_back_and_forth() {
    let site = Site::new("authz = { reconcile = '50ms', refresh = '20ms' }");
    let relay = site.start();
    let scene = Scene { site, relay, device: Device::echo(V4) };
    assert!(scene.refusal("rollback").contains("nothing to go back to"));
    scene.sql("UPDATE grants SET port_min = 65535");
    assert!(crate::support::wait_for(|| (scene.ask() == 403).then_some(())).is_some());

    let done = scene.site.cli(&["authz", "rollback"]);
    assert_eq!((&done["from"], &done["to"]), (&2.into(), &1.into()));
    assert_eq!(scene.ask(), 200);
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(scene.ask(), 200, "it stays there");
    let text = scene.text("status");
    assert!(text.contains("HOLDS by rule operator") && text.contains("1 rollbacks so far"), "{text}");
    assert_eq!(scene.audited("authz-rollback")["detail"], "from generation 2 to 1");
    let diff = scene.text("diff");
    assert!(diff.contains("~ grants 1: principal 1, any device, ports 1-65535 -> "), "{diff}");

    scene.site.cli(&["grant", "revoke", &scene.site.grant.to_string()]);
    assert!(crate::support::wait_for(|| (scene.ask() == 403).then_some(())).is_some(), "a revocation counts");
    scene.site.cli(&["authz", "accept"]);
    assert_eq!(scene.ask(), 403);
}

#[test]
fn the_socket_is_its_owners_alone_and_no_other_way_leads_to_it_without_a_token() {
    let site = Site::new("");
    let relay = site.start();
    let socket = site.folder().join("state/admin.sock");
    let mode = std::fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "{mode:o}");
    // By a name that is not this machine's own; `admin_access` has the rest.
    for path in ["/authz/status", "/authz/diff"] {
        assert!(relay.admin_get(path).starts_with("HTTP/1.1 403"), "{path}");
    }
    for path in ["/authz/accept", "/authz/rollback"] {
        assert!(relay.admin_get(path).starts_with("HTTP/1.1 405"), "{path}");
    }
    assert!(relay.admin_get("/metrics").contains("sluicegate_guard_rollbacks_total 0"));
    let (code, message) = site.start_in_vain().expect("a second relay gives up");
    assert_eq!(code, Some(1));
    assert!(
        message.contains("admin.socket") && message.contains("another process listens on it"),
        "{message}"
    );
    assert_eq!(site.cli(&["authz", "status"])["holds"][0], Value::Null, "the first one is asked still");

    // As a crash leaves it.
    drop(relay);
    assert!(socket.exists());
    let output = site.command(&["authz", "status"]).output().unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(message.contains("no relay can be asked at") && message.contains("is it running"), "{message}");
    let _relay = site.start();
    site.cli(&["authz", "status"]);
}
