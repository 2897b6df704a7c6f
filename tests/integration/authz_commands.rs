//! `sluicegate authz`: what an operator sees of a hold, and does about it, on a running relay.

use std::os::unix::fs::PermissionsExt;
use std::process::Output;
use std::time::Duration;

use crate::support::{DEVICE, DEVICE_V6, Device, OTHER_DEVICE, Relay, Site, V4, wait_for};
use serde_json::{Value, json};

/// A relay on three devices, of which the store suddenly gives one alone.
struct Scene {
    site: Site,
    relay: Relay,
    device: Device,
}

impl Scene {
    fn held() -> Self {
        let site = Site::new("authz = { reconcile = '100ms', refresh = '20ms' }");
        site.cli(&["device", "add", OTHER_DEVICE, "--address", "127.0.0.2"]);
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
    fn text(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// The error line of a command that refuses.
    fn refusal(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments);
        assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stdout));
        String::from_utf8(output.stderr).unwrap()
    }

    fn command(&self, arguments: &[&str]) -> Output {
        self.site.command(&[&["authz"], arguments].concat()).output().unwrap()
    }

    fn status(&self) -> Value {
        self.site.cli(&["authz", "status"])
    }

    fn digest(&self) -> String {
        self.site.cli(&["authz", "diff"])["digest"].as_str().unwrap().to_owned()
    }

    fn becomes(&self, status: u16) -> bool {
        wait_for(|| (self.ask() == status).then_some(())).is_some()
    }

    fn audited(&self, command: &str) -> Value {
        self.site.audit().wait_for(|event| event["command"] == command && event["outcome"] == "done")
    }
}

#[test]
fn a_held_group_is_explained_listed_and_accepted() {
    let scene = Scene::held();
    let status = scene.status();
    let hold = &status["holds"][0];
    assert_eq!((&hold["rule"], &hold["group"]), (&"budget".into(), &"devices.absent".into()));
    assert_eq!((&hold["rows"], &status["rows"]["devices"]), (&2.into(), &3.into()));
    assert_eq!(status["holds_by_rule"]["budget"], 1);
    let text = scene.text(&["status"]);
    assert!(text.contains("\nheld       devices.absent, by rule budget\nsince      20"), "{text}");
    assert!(text.contains("\nsuch as    devices ") && text.contains("\nto do      "), "{text}");

    let diff = scene.site.cli(&["authz", "diff"]);
    assert_eq!((&diff["devices"]["gone"], &diff["grants"]["gone"]), (&2.into(), &0.into()));
    let (text, digest) = (scene.text(&["diff"]), scene.digest());
    assert!(text.contains("devices     2 gone, 0 new, 0 changed"), "{text}");
    assert!(text.contains(&format!("- devices 1: {DEVICE} at 127.0.0.1")), "{text}");
    assert!(text.ends_with(&format!("sluicegate authz accept {digest}\n")), "{text}");

    assert_eq!(scene.ask(), 200, "looking changes nothing");
    let refused = scene.refusal(&["accept", &digest, "grants.absent"]);
    assert!(refused.contains("the group grants.absent is not held"), "{refused}");
    assert_eq!(scene.ask(), 200);
    let accepted = scene.site.cli(&["authz", "accept", &digest, "devices.absent"]);
    assert_eq!((&accepted["groups"][0], &accepted["rows"]), (&"devices.absent".into(), &2.into()));
    assert_eq!(scene.ask(), 403);
    assert_eq!(scene.status()["holds"], json!([]));
    let event = scene.audited("authz-accept");
    let uid = nix::unistd::getuid().as_raw();
    assert_eq!((&event["event"], &event["uid"]), (&"operator-command".into(), &uid.into()));
    assert!(event["detail"].as_str().unwrap().contains("2 rows (devices.absent), generation"), "{event}");
    let end = scene.site.audit().wait_for(|event| event["event"] == "hold-end");
    assert_eq!((&end["held"], &end["by"]), (&"devices.absent".into(), &"operator".into()));

    assert!(scene.refusal(&["accept", &digest]).contains("nothing is held"));
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(scene.status()["holds"], json!([]), "what was accepted stays so");
}

#[test]
fn accept_publishes_what_was_listed_and_nothing_that_came_after() {
    let scene = Scene::held();
    let digest = scene.digest();
    scene.sql(&format!(
        "DROP VIEW devices; CREATE VIEW devices AS SELECT * FROM devices_table WHERE uuid = '{DEVICE}'"
    ));
    assert!(wait_for(|| (scene.digest() != digest).then_some(())).is_some());
    let refused = scene.refusal(&["accept", &digest]);
    assert!(refused.contains("run `sluicegate authz diff` again"), "{refused}");
    // One more device that is gone, on its own, is within the budget; the one that was listed stays held.
    let status = scene.status();
    assert_eq!(status["holds"][0]["group"], "devices.absent", "nothing was published: {status}");
    assert!(status["rows"]["devices"].as_u64() >= Some(2), "{status}");
    let event = scene.site.audit().wait_for(|event| event["command"] == "authz-accept");
    assert_eq!(event["outcome"], "refused");
}

#[test]
fn an_operator_goes_back_and_forth() {
    let site = Site::new("authz = { reconcile = '50ms', refresh = '20ms' }");
    let relay = site.start();
    let scene = Scene { site, relay, device: Device::echo(V4) };
    assert!(scene.refusal(&["rollback"]).contains("nothing to go back to"));
    // By a query, so that nothing says of the row itself that it gives less.
    scene.sql(
        "ALTER TABLE grants RENAME TO grants_table;
        CREATE VIEW grants AS SELECT id, principal, scope, target, 65535 AS port_min, port_max, created_at,
            expires_at, revoked_at FROM grants_table",
    );
    assert!(scene.becomes(403));
    let history = scene.text(&["history"]);
    assert!(history.contains("1 grants.narrowed") && history.contains("yes"), "{history}");

    assert!(scene.refusal(&["rollback", "999"]).contains("generation 999 cannot be gone back to"));
    let done = scene.site.cli(&["authz", "rollback"]);
    assert_eq!(done["rows"], 1);
    assert_eq!(scene.ask(), 200);
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(scene.ask(), 200, "it stays there");
    let text = scene.text(&["status"]);
    assert!(text.contains("held       grants.narrowed, by rule operator"), "{text}");
    assert!(text.contains("1 rollbacks so far"), "{text}");
    let detail = scene.audited("authz-rollback")["detail"].clone();
    assert!(detail.as_str().unwrap().contains("1 rows, in force as"), "{detail}");
    let diff = scene.text(&["diff"]);
    assert!(diff.contains("~ grants 1: principal 1, any device, ports 1-65535 -> "), "{diff}");

    scene.site.cli(&["authz", "accept", &scene.digest()]);
    assert!(scene.becomes(403));
}

#[test]
fn what_is_announced_takes_effect_and_the_announcement_survives_a_restart() {
    let site = Site::new("authz = { reconcile = '100ms', refresh = '20ms' }");
    site.cli(&["device", "add", OTHER_DEVICE, "--address", "127.0.0.2"]);
    let relay = site.start();
    let mut scene = Scene { site, relay, device: Device::echo(V4) };
    let too_long = scene.refusal(&["expect", "devices", "absent", "2", "--for", "25h"]);
    assert!(too_long.contains("at most 1day"), "{too_long}");
    let expected = scene.text(&["expect", "devices", "absent", "2", "--for", "15m"]);
    assert!(
        expected.starts_with("2 rows of devices.absent may change beyond the budget until 20"),
        "{expected}"
    );
    assert_eq!(scene.audited("authz-expect")["detail"], "devices absent, 2 rows for 15m");

    // A state is written right after the start; until then a crash loses what was announced.
    let state = scene.site.folder().join("state/last-good.snapshot");
    assert!(wait_for(|| state.exists().then_some(())).is_some());
    drop(scene.relay);
    scene.relay = scene.site.start();
    let is_kept = || (scene.status()["expectations"][0]["rows"] == 2).then_some(());
    assert!(wait_for(is_kept).is_some(), "{}", scene.status());
    scene.sql(&format!(
        "ALTER TABLE devices RENAME TO devices_table;
        CREATE VIEW devices AS SELECT * FROM devices_table WHERE uuid = '{DEVICE_V6}'"
    ));
    assert!(scene.becomes(403), "what was announced is no incident");
    assert_eq!(scene.status()["holds"], json!([]));

    let cleared = scene.site.cli(&["authz", "expect", "devices", "absent", "--clear"]);
    assert_eq!(cleared["rows"], 2);
    let refused = scene.refusal(&["expect", "devices", "absent", "--clear"]);
    assert!(refused.contains("nothing is expected of the group devices.absent"), "{refused}");
}

#[test]
fn an_announcement_needs_a_relation_a_kind_a_number_and_a_time() {
    let scene = Scene { site: Site::new(""), relay: Site::new("").start(), device: Device::echo(V4) };
    for (arguments, message) in [
        (&["expect", "rights", "absent", "2", "--for", "1m"][..], "write credentials, grants or devices"),
        (&["expect", "grants", "lost", "2", "--for", "1m"], "`lost` is no kind of change"),
        (&["expect", "grants", "absent", "2"], "--for"),
        (&["expect", "grants", "absent", "--for", "1m"], "<COUNT>"),
        (&["accept"], "<DIGEST>"),
    ] {
        let output = scene.command(arguments);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(2) && said.contains(message), "{arguments:?}: {said}");
    }
}

#[test]
fn the_socket_is_its_owners_alone_and_no_other_way_leads_to_it_without_a_token() {
    let site = Site::new("");
    let relay = site.start();
    let socket = site.folder().join("state/admin.sock");
    let mode = std::fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "{mode:o}");
    // By a name that is not this machine's own; `admin_access` has the rest.
    for path in ["/authz/status", "/authz/diff", "/authz/history"] {
        assert!(relay.admin_get(path).starts_with("HTTP/1.1 403"), "{path}");
    }
    for path in ["/authz/accept", "/authz/rollback", "/authz/expect", "/authz/expect/clear"] {
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
