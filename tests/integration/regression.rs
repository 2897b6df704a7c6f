//! A publication that should not have passed the guard, on a running relay with live traffic: tunnels that
//! stand survive it, and new ones are refused for a few seconds at most.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::support::{ALL_V4, DEVICE, Device, End, Relay, Request, Site, receive};

/// Three people who may reach every device, each with a live tunnel, and two devices.
struct Scene {
    site: Site,
    relay: Relay,
    device: Device,
    tokens: Vec<String>,
    tunnels: Vec<TcpStream>,
}

impl Scene {
    fn new() -> Self {
        let site = Site::new("authz = { refresh = '20ms', reconcile = '100ms' }");
        let mut tokens = vec![site.token.clone()];
        for name in ["bob", "carol"] {
            site.cli(&["principal", "add", name]);
            site.cli(&["grant", "add", name, "--any"]);
            tokens.push(site.cli(&["token", "issue", name])["token"].as_str().unwrap().to_owned());
        }
        // So that three rows are within what a query may end.
        site.cli(&["principal", "add", "dave"]);
        for _ in 0..4 {
            site.cli(&["grant", "add", "dave", "--any"]);
        }
        for number in 0..2 {
            let uuid = format!("{number:032x}");
            site.cli(&["device", "add", &uuid, "--address", &format!("127.0.0.{}", number + 2)]);
        }
        let (relay, device) = (site.start(), Device::echo(ALL_V4));
        let open =
            |token: &String| Request::to(DEVICE, device.port()).bearer(token).send(relay.address()).opened();
        let tunnels = tokens.iter().map(open).collect();
        Self { site, relay, device, tokens, tunnels }
    }

    fn sql(&self, statements: &str) {
        let store = rusqlite::Connection::open(self.site.store_path()).unwrap();
        store.busy_timeout(crate::support::PATIENCE).unwrap();
        store.execute_batch(statements).unwrap();
    }

    /// The query reads these people's grants as too narrow, and no word says so.
    fn narrow_in_query(&self, people: &str) {
        self.sql(&format!(
            "ALTER TABLE grants RENAME TO grants_table;
            CREATE VIEW grants AS SELECT id, principal, scope, target,
                CASE WHEN principal IN ({people}) THEN 65535 ELSE port_min END AS port_min, port_max,
                created_at, expires_at, revoked_at FROM grants_table"
        ));
    }

    /// Each of the three asks for each of two devices.
    fn statuses(&self) -> Vec<u16> {
        let ask = |token: &String, uuid: &str| {
            Request::to(uuid, self.device.port()).bearer(token).send(self.relay.address()).status
        };
        let both = |token| [DEVICE, "00000000000000000000000000000001"].map(|uuid| ask(token, uuid));
        self.tokens.iter().flat_map(both).collect()
    }

    fn all_echo(&mut self) -> bool {
        self.tunnels
            .iter_mut()
            .all(|tunnel| tunnel.write_all(b"ping").is_ok() && tunnel.read_exact(&mut [0; 4]).is_ok())
    }
}

#[test]
fn clients_notice_and_seconds_later_nothing_has_happened() {
    let mut scene = Scene::new();
    assert!(scene.all_echo());
    scene.narrow_in_query("1, 2, 3");
    let broken = Instant::now();
    let refused = || scene.statuses().contains(&403).then_some(());
    assert!(crate::support::wait_for(refused).is_some());
    assert!(
        crate::support::wait_for(|| scene.statuses().iter().all(|status| *status == 200).then_some(()))
            .is_some()
    );
    assert!(broken.elapsed() < Duration::from_secs(5), "took {:?}", broken.elapsed());
    assert!(scene.relay.logs("undid 3 rows: 6 pairs of principal and device, of 3 principals"));
    assert!(scene.relay.admin_comes_to_say("/readyz", "holding"));
    assert_eq!(scene.relay.metric("sluicegate_guard_rollbacks_total"), Some(1.0));
    std::thread::sleep(Duration::from_secs(6));
    assert!(scene.all_echo(), "no tunnel that stood has ended");

    scene.sql("UPDATE grants_table SET revoked_at = 1 WHERE principal = 2");
    assert_eq!(receive(&mut scene.tunnels[1]).1, End::Reset, "a revocation ends it at once");
    scene.sql("DROP VIEW grants; ALTER TABLE grants_table RENAME TO grants");
    assert!(scene.relay.metric_becomes("sluicegate_guard_held", |held| held == 0.0));
}

#[test]
fn a_tunnel_whose_right_is_really_gone_ends_seconds_later() {
    let scene = Scene::new();
    // One person's tunnel is no reason to go back.
    scene.narrow_in_query("1");
    let narrowed = Instant::now();
    let mut tunnels = scene.tunnels;
    assert_eq!(receive(&mut tunnels[0]).1, End::Reset);
    let took = narrowed.elapsed();
    assert!(took > Duration::from_secs(3) && took < Duration::from_secs(20), "took {took:?}");
    let event = scene.site.audit().wait_for(|event| event["event"] == "session-end");
    assert_eq!(event["cause"], "grant-narrowed", "{event}");
    assert_eq!(scene.relay.metric("sluicegate_guard_rollbacks_total"), Some(0.0));
    tunnels[1].write_all(b"ping").unwrap();
    tunnels[1].read_exact(&mut [0; 4]).unwrap();
}
