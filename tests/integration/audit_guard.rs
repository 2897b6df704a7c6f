//! What the audit log has of the guard, and of operators, on a running relay.

use crate::support::{DEVICE, DEVICE_V6, Device, OTHER_DEVICE, Relay, Request, Site, V4, wait_for};
use serde_json::{Value, json};

struct Scene {
    site: Site,
    relay: Relay,
}

impl Scene {
    fn new(guard: &str) -> Self {
        let site = Site::new(&format!("authz = {{ reconcile = '50ms', refresh = '20ms', {guard} }}"));
        site.cli(&["device", "add", OTHER_DEVICE, "--address", "127.0.0.2"]);
        let relay = site.start();
        Self { site, relay }
    }

    /// Runs statements with constraints off, like a person with the sqlite3 shell.
    fn sql(&self, statements: &str) {
        let store = rusqlite::Connection::open(self.site.store_path()).unwrap();
        store.busy_timeout(crate::support::PATIENCE).unwrap();
        store.execute_batch("PRAGMA foreign_keys = OFF; PRAGMA ignore_check_constraints = ON").unwrap();
        // At once: no reader sees the store in between.
        store.execute_batch(&format!("BEGIN; {statements}; COMMIT")).unwrap();
    }

    fn audited(&self, event: &str) -> Value {
        self.site.audit().wait_for(|found| found["event"] == event)
    }

    /// The store gives one of three devices.
    fn lose_devices(&self) {
        self.sql(&format!(
            "ALTER TABLE devices RENAME TO devices_table;
            CREATE VIEW devices AS SELECT * FROM devices_table WHERE uuid = '{DEVICE_V6}'"
        ));
    }

    fn give_devices_back(&self) {
        self.sql("DROP VIEW devices; ALTER TABLE devices_table RENAME TO devices");
    }

    /// Narrows all grants by a query, so that nothing says of the rows themselves that they give less.
    fn narrow_grants(&self) {
        self.sql(
            "ALTER TABLE grants RENAME TO grants_table;
            CREATE VIEW grants AS SELECT id, principal, scope, target, 65535 AS port_min, port_max, created_at,
                expires_at, revoked_at FROM grants_table",
        );
    }
}

#[test]
fn a_hold_is_told_when_it_begins_and_when_it_ends_with_what_is_in_force_and_so_is_another_beside_it() {
    let scene = Scene::new("guard = {}");
    scene.lose_devices();
    let begin = scene.audited("hold-begin");
    assert_eq!(
        (&begin["rule"], &begin["held"], &begin["generation"]),
        (&"budget".into(), &"devices.absent".into(), &1.into())
    );
    assert!(begin["figures"].as_str().unwrap().starts_with("2 of 3 devices "), "{begin}");
    assert!(begin["examples"][0].as_str().unwrap().starts_with("devices "), "{begin}");

    // A column is gone as well.
    scene.sql("DROP VIEW devices; CREATE VIEW devices AS SELECT id, uuid FROM devices_table");
    let begin = scene.site.audit().wait_for(|found| found["rule"] == "contract");
    assert_eq!((&begin["event"], &begin["held"]), (&"hold-begin".into(), &"devices".into()), "{begin}");

    scene.give_devices_back();
    for (rule, held) in [("contract", "devices"), ("budget", "devices.absent")] {
        let is_end = |event: &Value| event["event"] == "hold-end" && event["held"] == held;
        let end = scene.site.audit().wait_for(is_end);
        assert_eq!(
            (&end["by"], &end["rule"], &end["generation"]),
            (&"guard".into(), &rule.into(), &1.into())
        );
        assert!(end["held_s"].is_u64(), "{end}");
    }
    let of_holds = |event: &&Value| event["event"].as_str().unwrap().starts_with("hold-");
    let events = scene.site.audit().events();
    let of_holds: Vec<_> = events.iter().filter(of_holds).collect();
    assert_eq!(of_holds.len(), 4, "each once: {of_holds:?}");
}

#[test]
fn what_an_operator_accepts_ends_the_hold_in_their_name() {
    let scene = Scene::new("guard = {}");
    scene.lose_devices();
    scene.audited("hold-begin");
    let digest = || scene.site.cli(&["authz", "diff"])["digest"].as_str().unwrap().to_owned();
    // It is told before the rows are to be seen.
    let digest = wait_for(|| Some(digest()).filter(|digest| !digest.is_empty())).unwrap();
    scene.site.cli(&["authz", "accept", &digest]);
    let end = scene.audited("hold-end");
    assert_eq!(
        (&end["by"], &end["rule"], &end["generation"]),
        (&"operator".into(), &"budget".into(), &2.into())
    );
    let command = scene.audited("operator-command");
    let uid = nix::unistd::getuid().as_raw();
    let expected = json!(["authz-accept", "local-socket", uid, "done"]);
    assert_eq!(json!([command["command"], command["by"], command["uid"], command["outcome"]]), expected);
}

#[test]
fn a_rollback_by_an_operator_says_from_where_to_where() {
    let scene = Scene::new("guard = {}");
    scene.narrow_grants();
    let asks = || scene.site.ask(&scene.relay, 9).status;
    assert!(wait_for(|| (asks() == 403).then_some(())).is_some());
    scene.site.cli(&["authz", "rollback"]);
    let rollback = scene.audited("rollback");
    let expected = json!(["operator", "operator", 2, 1, 3]);
    let found =
        [&rollback["by"], &rollback["rule"], &rollback["from"], &rollback["to"], &rollback["generation"]];
    assert_eq!(json!(found), expected, "{rollback}");
    assert_eq!(scene.audited("hold-begin")["rule"], "operator");
}

#[test]
fn regressions_are_told_once_for_each_pair_and_so_is_what_the_guard_does_about_them() {
    for (on_regression, outcome) in [("rollback", "rollback"), ("alarm", "regression-alarm")] {
        let site = Site::new(&format!(
            "authz = {{ refresh = '20ms', reconcile = '100ms', guard = {{ on_regression = '{on_regression}',
            max_regressions = {{ pairs = 2, principals = 2 }}, budgets.narrowed = {{ rows = 9, share = 1.0 }} }} }}"
        ));
        site.cli(&["principal", "add", "bob"]);
        site.cli(&["grant", "add", "bob", "--any"]);
        let bob = site.cli(&["token", "issue", "bob"])["token"].as_str().unwrap().to_owned();
        let relay = site.start();
        let scene = Scene { site, relay };
        let device = Device::echo(V4);
        scene.narrow_grants();
        let ask =
            |token: &str| Request::to(DEVICE, device.port()).bearer(token).send(scene.relay.address()).status;
        assert!(wait_for(|| (ask(&scene.site.token) == 403).then_some(())).is_some());
        assert_eq!([ask(&scene.site.token), ask(&scene.site.token)], [403, 403]);
        ask(&bob);

        let done = scene.audited(outcome);

        assert_eq!(done["rule"], "probation", "{done}");
        if outcome == "rollback" {
            assert_eq!((&done["by"], &done["from"], &done["to"]), (&"guard".into(), &2.into(), &1.into()));
        } else {
            assert_eq!(done["generation"], 2, "{done}");
        }
        let events = scene.site.audit().events();
        let regressions: Vec<_> = events.iter().filter(|event| event["event"] == "regression").collect();
        // In no order: both are told of at the same moment.
        let mut principals: Vec<_> =
            regressions.iter().filter_map(|event| event["principal"].as_i64()).collect();
        principals.sort_unstable();
        assert_eq!(principals, [1, 2], "{regressions:?}");
        assert_eq!(
            (&regressions[0]["device"], &regressions[0]["cause"]),
            (&1.into(), &"port-not-granted".into())
        );
    }
}

#[test]
fn rows_that_do_not_decode_are_told_each_once_and_a_crowd_in_one_line() {
    let scene = Scene::new("guard = { budgets.undecodable = { rows = 1000, share = 1.0 } }");
    scene.sql("UPDATE devices SET address = 'nowhere' WHERE id = 1");
    let row = scene.audited("quarantine");
    assert_eq!(row["row"], "devices 1");
    assert!(row["reason"].as_str().unwrap().contains("nowhere"), "{row}");
    let bad = (100..150).map(|id| format!("({id}, '{id:032x}', 'nowhere', 0)")).collect::<Vec<_>>().join(",");
    scene.sql(&format!("INSERT INTO devices (id, uuid, address, created_at) VALUES {bad}"));
    assert_eq!(scene.audited("more-quarantined")["rows"], 40);
    let events = scene.site.audit().events();
    assert_eq!(events.iter().filter(|event| event["event"] == "quarantine").count(), 11);
}

#[test]
fn a_session_that_is_ended_by_an_operator_says_by_whom() {
    let scene = Scene::new("guard = {}");
    let device = Device::echo(V4);
    let _tunnel = scene.site.ask(&scene.relay, device.port()).opened();
    let id = scene.site.cli(&["sessions"])[0]["id"].as_str().unwrap().to_owned();
    scene.site.cli(&["sessions", "kill", &id]);
    let command = scene.audited("operator-command");
    let expected = json!(["session-end", "local-socket", "done", format!("session {id}")]);
    assert_eq!(json!([command["command"], command["by"], command["outcome"], command["detail"]]), expected);
    assert!(command["pid"].is_i64(), "{command}");
    assert_eq!(scene.audited("session-end")["cause"], "ended-by-admin");
}
