//! A configuration that is read again while the relay runs: what is taken over, what is refused and how that
//! is told, and that no tunnel notices either way. Queries are compared in a real store.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::time::Duration;

use crate::support::{ALL_V4, Cluster, DEVICE_V6, Database, Device, Relay, Request, Signal, Site, V4};
use serde_json::Value;

/// A relay on a store whose queries can be replaced, with a device and a tunnel to it.
struct Scene<'a> {
    site: Site,
    relay: Relay,
    device: Device,
    tunnel: TcpStream,
    /// `None` for a store on SQLite.
    database: Option<Database<'a>>,
}

impl<'a> Scene<'a> {
    fn on_sqlite(fragment: &str) -> Self {
        Self::on(Site::new(fragment), None)
    }

    fn on_postgres(cluster: &'a Cluster, fragment: &str) -> Self {
        let database = cluster.database();
        Self::on(Site::on_postgres(&database, fragment), Some(database))
    }

    /// Six devices, so that the loss of most is more than a person's work.
    fn on(site: Site, database: Option<Database<'a>>) -> Self {
        for number in 1..=4 {
            site.cli(&[
                "device",
                "add",
                &format!("{number:032x}"),
                "--address",
                &format!("127.0.0.{}", number + 1),
            ]);
        }
        let (relay, device) = (site.start(), Device::echo(ALL_V4));
        let tunnel = site.request(&device).send(relay.address()).opened();
        Self { site, relay, device, tunnel, database }
    }

    /// The tables' names in this store.
    fn sql(&self, text: &str) -> String {
        let schema = if self.database.is_some() { "sluicegate." } else { "" };
        text.replace('@', schema)
    }

    /// Puts `sql` in a file as the query for `relation`; `@` stands for the schema.
    fn query(&self, relation: &str, sql: &str) -> PathBuf {
        let file = self.site.folder().join(format!("{relation}.sql"));
        std::fs::write(&file, self.sql(sql)).unwrap();
        file
    }

    /// Has the relay read its configuration again with this query in it; what it says of that.
    fn reload_query(&mut self, relation: &str, sql: &str) -> String {
        let file = self.query(relation, sql);
        self.site.configure(&format!("authz.queries.{relation} = '{}'", file.display()));
        self.reload()
    }

    fn reload(&self) -> String {
        let said = self.relay.log().len();
        self.relay.signal(Signal::SIGHUP);
        let outcome = crate::support::wait_for(|| {
            let log = self.relay.log();
            let line =
                log[said..].lines().find(|line| line.contains("reloaded") || line.contains("reload refused"));
            line.map(str::to_owned)
        });
        outcome.expect("a reload comes to an end")
    }

    /// JSON output of `authz diff --candidate`, with the exit code.
    fn diff(&self, relation: &str, sql: &str) -> (Value, Option<i32>) {
        let file = self.query(relation, sql);
        let candidate = format!("{relation}={}", file.display());
        let output =
            self.site.command(&["authz", "diff", "--json", "--candidate", &candidate]).output().unwrap();
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        (serde_json::from_slice(&output.stdout).expect(&message), output.status.code())
    }

    fn tunnel_still_works(&mut self) -> bool {
        let mut echoed = [0; 4];
        self.tunnel.write_all(b"ping").is_ok()
            && self.tunnel.read_exact(&mut echoed).is_ok()
            && &echoed == b"ping"
    }

    /// True if the other device, at ::1 in the store, is reached on the IPv4 port.
    fn reaches_moved_device(&self) -> bool {
        let request = Request::to(DEVICE_V6, self.device.port()).bearer(&self.site.token);
        request.send(self.relay.address()).status == 200
    }

    fn is_allowed(&self) -> bool {
        self.site.ask(&self.relay, self.device.port()).status == 200
    }
}

/// Runs `test` on a store of each kind, as far as they are there.
fn on_each_store(test: impl Fn(Scene<'_>)) {
    test(Scene::on_sqlite(FAST));
    if let Some(cluster) = Cluster::shared() {
        test(Scene::on_postgres(cluster, FAST));
    }
}

/// Configuration that reads replaced queries often enough for a test.
const FAST: &str = "authz = { refresh = '20ms', reread = '100ms' }";

/// The reference schema's query, with another address for one device.
const MOVED: &str = "SELECT id AS device, uuid, fleet,
    CASE uuid WHEN '66666666666666666666666666666666' THEN '127.0.0.8' ELSE address END AS address, node, online
    FROM @devices";

#[test]
fn a_changed_query_is_taken_over_and_no_tunnel_notices() {
    on_each_store(|mut scene| {
        assert!(!scene.reaches_moved_device());
        let (diff, code) = scene.diff("devices", MOVED);
        assert_eq!(
            (&diff["devices"]["changed"], &diff["holds"][0], code),
            (&1.into(), &Value::Null, Some(0))
        );
        assert!(!scene.reaches_moved_device(), "to look changes nothing");

        let outcome = scene.reload_query("devices", MOVED);
        assert!(outcome.contains("reloaded"), "{outcome}");
        assert!(crate::support::wait_for(|| scene.reaches_moved_device().then_some(())).is_some());
        assert!(scene.tunnel_still_works());
    });
}

#[test]
fn a_query_that_takes_rights_away_is_refused_by_name_and_the_old_one_goes_on() {
    let devices = "SELECT id AS device, uuid, fleet, address, node, online FROM @devices";
    let grants = "SELECT id AS grant_id, principal, scope, target, port_min, port_max, expires_at";
    let credentials = "SELECT key_sha256, principal, expires_at";
    let broken = [
        ("devices", format!("{devices} WHERE id < 0"), "devices.absent"),
        ("devices", format!("{devices} WHERE id = fleet"), "devices.absent"),
        // Every device in two places.
        (
            "devices",
            format!("{devices} UNION ALL {}", devices.replace("address,", "'127.0.0.99' AS address,")),
            "devices.moved",
        ),
        (
            "devices",
            devices.replace("address", "CASE WHEN id < 0 THEN address END AS address"),
            "devices.unlocated",
        ),
        ("devices", devices.replace("online", "NOT online AS online"), "devices.unlocated"),
        ("devices", devices.replace(" node,", ""), "breaks the contract"),
        ("devices", devices.replace("address", "'203.0.113.9' AS address"), "devices.moved"),
        ("grants", format!("{grants}, revoked_at IS NULL AS revoked FROM @grants"), "grants.ended"),
        (
            "credentials",
            format!("{credentials}, revoked_at IS NULL AS revoked FROM @credentials"),
            "credentials.ended",
        ),
    ];
    on_each_store(|mut scene| {
        // More than a person's work.
        for _ in 0..4 {
            scene.site.cli(&["grant", "add", "alice", "--any"]);
            scene.site.cli(&["token", "issue", "alice"]);
        }
        for (relation, sql, held) in &broken {
            if *held != "breaks the contract" {
                let (diff, code) = scene.diff(relation, sql);
                assert_eq!(
                    (diff["holds"][0]["group"].as_str(), code),
                    (Some(*held), Some(1)),
                    "{sql}: {diff}"
                );
            }
            let outcome = scene.reload_query(relation, sql);
            assert!(outcome.contains("reload refused"), "{sql}: {outcome}");
            assert!(outcome.contains(held), "{sql}: {outcome}");
            assert!(scene.is_allowed() && scene.tunnel_still_works(), "{sql}");
            assert_eq!(scene.relay.metric("sluicegate_guard_held"), Some(0.0), "nothing else is held for it");
            scene.site.unconfigure("authz", "queries");
        }
        let outcome = scene.reload();
        assert!(outcome.contains("reloaded"), "{outcome}");
    });
}

#[test]
fn what_is_revoked_comes_back_by_no_query() {
    on_each_store(|mut scene| {
        let second = scene.site.cli(&["grant", "add", "alice", "--any"])["id"].clone();
        scene.site.cli(&["grant", "revoke", &second.to_string()]);
        let sql = "SELECT id AS grant_id, principal, scope, target, port_min, port_max, expires_at,
            id < 0 AS revoked FROM @grants";
        // The relay may not have read the revocation yet.
        let diff = crate::support::wait_for(|| {
            let (diff, code) = scene.diff("grants", sql);
            (code == Some(1)).then_some(diff)
        });
        let diff = diff.expect("the row that comes back is held");
        assert_eq!(diff["holds"][0]["group"].as_str(), Some("grants.revived"), "{diff}");
        let outcome = scene.reload_query("grants", sql);
        assert!(outcome.contains("grants.revived by rule budget: 1 of 1 rows"), "{outcome}");
    });
}

#[test]
fn both_queries_are_put_to_one_moment() {
    let Some(cluster) = Cluster::shared() else { return };
    let scene = Scene::on_postgres(cluster, FAST);
    let slow = "SELECT key_sha256, principal, expires_at, revoked_at IS NOT NULL AS revoked
        FROM @credentials, (SELECT pg_sleep(1.5)) AS slept";
    std::thread::scope(|scope| {
        let diff = scope.spawn(|| scene.diff("credentials", slow));
        std::thread::sleep(Duration::from_millis(500));
        scene.site.cli(&["device", "add", &"c".repeat(32), "--address", "127.0.0.9"]);
        let (diff, code) = diff.join().unwrap();
        assert_eq!(
            (&diff["devices"]["new"], &diff["holds"][0], code),
            (&0.into(), &Value::Null, Some(0)),
            "{diff}"
        );
    });
}

#[test]
fn a_configuration_with_a_mistake_is_refused_with_its_place() {
    let mut scene = Scene::on_sqlite(FAST);
    scene.site.configure("authz.refesh = '30ms'");
    let outcome = scene.reload();
    let place = format!("{}:", scene.site.config_path().display());
    assert!(
        outcome.contains("reload refused, and nothing but certificates has changed")
            && outcome.contains(&place),
        "{outcome}"
    );
    assert!(outcome.contains("unknown key `refesh`; the nearest known key is `refresh`"), "{outcome}");
    assert!(scene.is_allowed() && scene.tunnel_still_works());

    scene.site.unconfigure("authz", "refesh");
    scene.site.configure("authz.queries.devices = '/nowhere/devices.sql'");
    assert!(scene.reload().contains("the query in /nowhere/devices.sql cannot be used"));
}

#[test]
fn guard_and_log_level_change_while_the_relay_runs() {
    let mut scene = Scene::on_sqlite("authz = { refresh = '20ms', reconcile = '100ms' }\nlog.level = 'warn'");
    scene.site.configure("log.level = 'info'\nauthz.guard.bounds.devices.max = 5");
    assert!(scene.reload().contains("reloaded"), "the level that is said by is the new one");
    assert!(scene.relay.metric_becomes("sluicegate_guard_held", |held| held == 1.0));
    assert_eq!(scene.site.cli(&["authz", "status"])["holds"][0]["rule"], "bounds");
    scene.site.configure("authz.guard.bounds.devices.max = 6");
    assert!(scene.reload().contains("reloaded"));
    assert!(scene.relay.metric_becomes("sluicegate_guard_held", |held| held == 0.0));
    assert!(scene.tunnel_still_works());
}

#[test]
fn a_relay_whose_store_is_away_keeps_its_queries() {
    let Some(mut cluster) = Cluster::start() else { return };
    let database = cluster.database();
    let mut site = Site::on_postgres(&database, FAST);
    let file = site.folder().join("devices.sql");
    drop(database);
    let relay = site.start();
    let device = Device::echo(V4);
    cluster.stop();
    std::fs::write(&file, MOVED.replace('@', "sluicegate.")).unwrap();
    site.configure(&format!("authz.queries.devices = '{}'", file.display()));
    relay.signal(Signal::SIGHUP);
    assert!(relay.logs("reload refused"), "{}", relay.log());
    assert!(relay.logs("cannot be reached"), "{}", relay.log());
    assert_eq!(site.ask(&relay, device.port()).status, 200);
}

#[test]
fn a_query_that_was_changed_while_the_relay_was_down_is_not_believed_either() {
    let mut site = Site::new(FAST);
    for _ in 0..9 {
        site.cli(&["grant", "add", "alice", "--any"]);
    }
    let device = Device::echo(V4);
    let mut relay = site.start();
    assert_eq!(site.ask(&relay, device.port()).status, 200);
    assert!(
        crate::support::wait_for(|| site.folder().join("state/last-good.snapshot").exists().then_some(()))
            .is_some()
    );
    relay.signal(Signal::SIGTERM);
    relay.wait().unwrap();

    let file = site.folder().join("grants.sql");
    let grants = "SELECT id AS grant_id, principal, scope, target, port_min, port_max, expires_at,
        revoked_at IS NULL AND id <= 5 AS revoked FROM grants";
    std::fs::write(&file, grants).unwrap();
    site.configure(&format!("authz.queries.grants = '{}'", file.display()));
    let relay = site.start();
    assert!(relay.metric_becomes("sluicegate_guard_held", |held| held == 1.0), "{}", relay.log());
    let hold = site.cli(&["authz", "status"])["holds"][0].clone();
    assert_eq!((&hold["rule"], &hold["group"]), (&"budget".into(), &"grants.ended".into()), "{hold}");
    let figures = hold["figures"].as_str().unwrap();
    assert!(
        figures.contains("5 of 10 grants read as ended, 0 more have within 10m; the budget is 3"),
        "{figures}"
    );
    assert_eq!(site.ask(&relay, device.port()).status, 200);

    let digest = site.cli(&["authz", "diff"])["digest"].clone();
    site.cli(&["authz", "accept", digest.as_str().unwrap()]);
    assert_eq!(site.cli(&["authz", "status"])["holds"][0], Value::Null);
    assert_eq!(site.ask(&relay, device.port()).status, 200, "the other five grants stand");
}
