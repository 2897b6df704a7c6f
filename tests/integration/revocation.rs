//! A right that ends closes what runs on it, soon, and the audit log says which right it was.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::support::{ALL_V4, DEVICE, Device, End, OTHER_DEVICE, Relay, Request, Site, receive};
use serde_json::Value;

/// The promise is 250 ms; this leaves room for a machine that has other things to do.
const SOON: Duration = Duration::from_secs(2);

/// A live tunnel on rights of its own, beside one of alice's that must survive.
struct Scene {
    site: Site,
    relay: Relay,
    /// The token of bob, who may reach every port of [`OTHER_DEVICE`].
    token: String,
    credential: String,
    grant: i64,
    device: Device,
    tunnel: TcpStream,
    bystander: TcpStream,
}

impl Scene {
    fn new() -> Self {
        let site = Site::new("");
        site.cli(&["principal", "add", "bob"]);
        site.cli(&["device", "add", OTHER_DEVICE, "--address", "127.0.0.2"]);
        let issued = site.cli(&["token", "issue", "bob"]);
        let grant = site.cli(&["grant", "add", "bob", "--device", OTHER_DEVICE])["id"].as_i64().unwrap();
        let relay = site.start();
        let device = Device::echo(ALL_V4);
        let text = |key: &str| issued[key].as_str().unwrap().to_owned();
        let (token, credential) = (text("token"), text("credential"));
        let tunnel = Request::to(OTHER_DEVICE, device.port()).bearer(&token).send(relay.address()).opened();
        let bystander = site.ask(&relay, device.port()).opened();
        Self { site, relay, token, credential, grant, device, tunnel, bystander }
    }

    /// Runs a command and waits for the tunnel to end: how it ended, and how long after the commit.
    fn ends_after(&mut self, command: &[&str]) -> (End, Duration) {
        self.tunnel.write_all(b"alive").unwrap();
        self.tunnel.read_exact(&mut [0; 5]).unwrap();
        self.site.cli(command);
        let committed = Instant::now();
        let (_, end) = receive(&mut self.tunnel);
        let took = committed.elapsed();
        println!("`sluicegate {}` took effect {} ms after it returned", command.join(" "), took.as_millis());
        (end, took)
    }

    /// The end of the only tunnel that has ended.
    fn audited(&self) -> Value {
        self.site.audit().wait_for(|event| event["event"] == "session-end")
    }

    /// The status of a new request with the same rights.
    fn ask_again(&self) -> u16 {
        let request = Request::to(OTHER_DEVICE, self.device.port()).bearer(&self.token);
        request.send(self.relay.address()).status
    }

    fn bystander_lives(&mut self) -> bool {
        let mut echoed = [0; 4];
        self.bystander.write_all(b"ping").unwrap();
        self.bystander.read_exact(&mut echoed).is_ok()
    }
}

#[test]
fn a_revoked_token_closes_its_tunnels() {
    let mut scene = Scene::new();
    let credential = scene.credential.clone();
    let (end, took) = scene.ends_after(&["token", "revoke", &credential]);
    assert_eq!(end, End::Reset, "not to be taken for a proper end");
    assert!(took < SOON, "took {took:?}");
    let event = scene.audited();
    assert_eq!(event["cause"], "credential-revoked", "{event}");
    assert_eq!(event["credential"], credential, "{event}");
    assert_eq!(scene.ask_again(), 407);
    assert!(scene.bystander_lives());
}

#[test]
fn a_revoked_grant_closes_its_tunnels() {
    let mut scene = Scene::new();
    let grant = scene.grant;
    let (end, took) = scene.ends_after(&["grant", "revoke", &grant.to_string()]);
    assert_eq!(end, End::Reset);
    assert!(took < SOON, "took {took:?}");
    let event = scene.audited();
    assert_eq!(event["cause"], "grant-revoked", "{event}");
    assert_eq!(event["grant"], grant, "{event}");
    assert_eq!(scene.ask_again(), 403);
    assert!(scene.bystander_lives());
}

#[test]
fn a_tunnel_lives_on_while_another_grant_still_allows_it() {
    let mut scene = Scene::new();
    scene.site.cli(&["grant", "add", "bob", "--any"]);
    scene.site.cli(&["grant", "revoke", &scene.grant.to_string()]);
    std::thread::sleep(Duration::from_millis(500));
    scene.tunnel.write_all(b"ping").unwrap();
    scene.tunnel.read_exact(&mut [0; 4]).unwrap();
}

#[test]
fn a_removed_principal_loses_its_tunnels() {
    let mut scene = Scene::new();
    let (end, took) = scene.ends_after(&["principal", "remove", "bob"]);
    assert_eq!(end, End::Reset);
    assert!(took < SOON, "took {took:?}");
    let event = scene.audited();
    assert_eq!(event["cause"], "principal-revoked", "{event}");
    assert_eq!(scene.ask_again(), 407);
    assert!(scene.bystander_lives());
}

#[test]
fn a_removed_device_loses_its_tunnels() {
    let mut scene = Scene::new();
    // Grants on the device alone are revoked with it; this one is not, so the device is the only cause.
    scene.site.cli(&["grant", "add", "bob", "--any"]);
    let (end, took) = scene.ends_after(&["device", "remove", OTHER_DEVICE]);
    assert_eq!(end, End::Reset);
    assert!(took < SOON, "took {took:?}");
    let event = scene.audited();
    assert_eq!(event["cause"], "device-removed", "{event}");
    assert_eq!(scene.ask_again(), 403);
    assert!(scene.bystander_lives());
}

#[test]
fn a_row_that_is_deleted_from_the_store_by_hand_ends_its_tunnels_too() {
    let mut scene = Scene::new();
    let store = rusqlite::Connection::open(scene.site.store_path()).unwrap();
    store.busy_timeout(crate::support::PATIENCE).unwrap();
    let deleted = store.execute("DELETE FROM grants WHERE id = ?1", [scene.grant]).unwrap();
    assert_eq!(deleted, 1);
    let committed = Instant::now();
    assert_eq!(receive(&mut scene.tunnel).1, End::Reset);
    assert!(committed.elapsed() < SOON, "took {:?}", committed.elapsed());
    let event = scene.audited();
    assert!(["grant-removed", "grant-revoked"].contains(&event["cause"].as_str().unwrap()), "{event}");
    assert!(scene.bystander_lives());
}

#[test]
fn a_device_that_goes_offline_keeps_the_tunnels_that_still_reach_it() {
    let mut scene = Scene::new();
    scene.site.cli(&["device", "set", OTHER_DEVICE, "--offline"]);
    assert!(crate::support::wait_for(|| (scene.ask_again() == 503).then_some(())).is_some());
    scene.tunnel.write_all(b"ping").unwrap();
    scene.tunnel.read_exact(&mut [0; 4]).unwrap();
}

/// Opens a tunnel with the token that `issue` gives and waits for its end: how it ended, what the audit
/// log says, and what the same request gets then.
fn outlived(issue: impl FnOnce(&Site) -> String) -> (End, Value, u16) {
    // The timeouts of stages that are over must not be what ends it.
    let site = Site::new("timeouts = { head = '1h', connect = '1h' }");
    site.cli(&["principal", "add", "bob"]);
    let device = Device::echo(ALL_V4);
    let token = issue(&site);
    let relay = site.start();
    let request = Request::to(DEVICE, device.port()).bearer(&token);
    let mut tunnel = request.send(relay.address()).opened();
    let (_, end) = receive(&mut tunnel);
    let event = site.audit().wait_for_events(1).remove(0);
    (end, event, request.send(relay.address()).status)
}

/// Long enough to start a relay and open a tunnel on a busy machine.
const LIFE: &str = "4s";

#[test]
fn a_token_that_expires_closes_its_tunnels() {
    let (end, event, status) = outlived(|site| {
        site.cli(&["grant", "add", "bob", "--any"]);
        let issued = site.cli(&["token", "issue", "bob", "--expires", LIFE]);
        issued["token"].as_str().unwrap().to_owned()
    });
    assert_eq!(end, End::Reset);
    assert_eq!(event["cause"], "credential-expired", "{event}");
    assert_eq!(status, 407);
}

#[test]
fn a_grant_that_expires_closes_its_tunnels() {
    let (end, event, status) = outlived(|site| {
        let issued = site.cli(&["token", "issue", "bob"]);
        site.cli(&["grant", "add", "bob", "--any", "--expires", LIFE]);
        issued["token"].as_str().unwrap().to_owned()
    });
    assert_eq!(end, End::Reset);
    assert_eq!(event["cause"], "grant-expired", "{event}");
    assert_eq!(status, 403);
}

#[test]
fn a_right_that_is_given_while_the_relay_runs_counts_soon() {
    let site = Site::new("");
    let relay = site.start();
    let device = Device::echo(ALL_V4);
    site.cli(&["principal", "add", "carol"]);
    let token = site.cli(&["token", "issue", "carol"])["token"].as_str().unwrap().to_owned();
    site.cli(&["device", "add", OTHER_DEVICE, "--address", "127.0.0.2"]);
    site.cli(&["grant", "add", "carol", "--device", OTHER_DEVICE]);
    let committed = Instant::now();
    let request = Request::to(OTHER_DEVICE, device.port()).bearer(&token);
    let opened = crate::support::wait_for(|| (request.send(relay.address()).status == 200).then_some(()));
    let took = committed.elapsed();
    println!("new rights took effect {} ms after the last command returned", took.as_millis());
    assert!(opened.is_some() && took < SOON, "took {took:?}");
}
