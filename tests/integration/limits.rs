//! How many sessions there may be, and what running out of descriptors does: new ones are refused and
//! counted, running ones go on.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use crate::support::{
    ALL_V4, Device, OTHER_DEVICE, Relay, Request, Signal, Site, V4, connect, tools_or_skip, wait_for,
};

/// True if bytes still go both ways through a tunnel to an echo device.
fn is_alive(mut tunnel: &TcpStream) -> bool {
    let mut echoed = [0; 4];
    tunnel.write_all(b"ping").and_then(|()| tunnel.read_exact(&mut echoed)).is_ok() && &echoed == b"ping"
}

/// Asks until the relay has noticed that something was given back.
fn asks_until_opened(site: &Site, relay: &Relay, port: u16) -> bool {
    crate::support::wait_for(|| (site.ask(relay, port).status == 200).then_some(())).is_some()
}

#[test]
fn a_node_takes_so_many_sessions_and_one_more_when_one_has_ended() {
    const SESSIONS: usize = 5;
    let site = Site::new(&format!("limits.sessions = {SESSIONS}"));
    let relay = site.start();
    let device = Device::echo(V4);
    let mut tunnels: Vec<_> = (0..SESSIONS).map(|_| site.ask(&relay, device.port()).opened()).collect();
    let refused = site.ask(&relay, device.port());
    assert_eq!((refused.status, refused.slug().as_deref()), (429, Some("limit")));
    assert_eq!(site.audit().wait_for_events(1)[0]["cause"], "limit-node");
    assert!(tunnels.iter().all(is_alive));
    tunnels.pop();
    assert!(asks_until_opened(&site, &relay, device.port()));
}

#[test]
fn a_node_without_room_for_a_session_is_not_ready() {
    let site = Site::new("limits.sessions = 1");
    let relay = site.start();
    assert!(relay.admin_get("/readyz").ends_with("ready\n"));
    let device = Device::echo(V4);
    let tunnel = site.ask(&relay, device.port()).opened();
    let ready = relay.admin_get("/readyz");
    assert!(ready.starts_with("HTTP/1.1 503 "), "{ready}");
    assert!(ready.ends_with("there is no room for another session; 1 is the most\n"), "{ready}");
    let status = site.cli(&["status"]);
    assert_eq!(status["readiness"], "unable", "{status}");
    drop(tunnel);
    assert!(relay.admin_comes_to_say("/readyz", "\r\n\r\nready\n"), "a session has ended");
}

#[test]
fn one_principal_at_its_limit_leaves_room_for_others() {
    let site = Site::new("limits.sessions_per_principal = 2");
    site.cli(&["principal", "add", "bob"]);
    site.cli(&["grant", "add", "bob", "--any"]);
    let bobs_token = site.cli(&["token", "issue", "bob"])["token"].as_str().unwrap().to_owned();
    let relay = site.start();
    let device = Device::echo(V4);
    let mut tunnels: Vec<_> = (0..2).map(|_| site.ask(&relay, device.port()).opened()).collect();
    assert_eq!(site.ask(&relay, device.port()).status, 429);
    assert_eq!(site.audit().wait_for_events(1)[0]["cause"], "limit-principal");
    let bob = Request::to(crate::support::DEVICE, device.port()).bearer(&bobs_token).send(relay.address());
    assert_eq!(bob.status, 200);
    tunnels.pop();
    assert!(asks_until_opened(&site, &relay, device.port()));
}

#[test]
fn one_device_at_its_limit_leaves_room_for_others() {
    let site = Site::new("limits.sessions_per_device = 2");
    site.cli(&["device", "add", OTHER_DEVICE, "--address", "127.0.0.2"]);
    let relay = site.start();
    let device = Device::echo(ALL_V4);
    let mut tunnels: Vec<_> = (0..2).map(|_| site.ask(&relay, device.port()).opened()).collect();
    assert_eq!(site.ask(&relay, device.port()).status, 429);
    assert_eq!(site.audit().wait_for_events(1)[0]["cause"], "limit-device");
    let other = Request::to(OTHER_DEVICE, device.port()).bearer(&site.token).send(relay.address());
    assert_eq!(other.status, 200);
    tunnels.pop();
    assert!(asks_until_opened(&site, &relay, device.port()));
}

#[test]
fn sessions_that_never_open_a_tunnel_count_as_well_and_give_their_place_back() {
    let site = Site::new("limits.sessions = 3");
    let relay = site.start();
    let device = Device::echo(V4);
    let idle: Vec<_> = (0..3).map(|_| connect(relay.address())).collect();
    assert!(relay.metric_becomes("sluicegate_sessions", |sessions| sessions == 3.0));
    assert_eq!(site.ask(&relay, device.port()).status, 429);
    drop(idle);
    assert!(asks_until_opened(&site, &relay, device.port()));
}

/// Reads the whole answer. Some clients get only a close, perhaps a reset: the number of refusals has a bound.
fn all_that_is_told(mut client: TcpStream) -> Vec<u8> {
    let mut answer = Vec::new();
    let _closed = client.read_to_end(&mut answer);
    answer
}

#[test]
fn a_flood_beyond_the_limit_is_answered_or_closed_and_then_forgotten() {
    let site = Site::new("limits.sessions = 2");
    let relay = site.start();
    let device = Device::echo(V4);
    let tunnels: Vec<_> = (0..2).map(|_| site.ask(&relay, device.port()).opened()).collect();
    let is_over = AtomicBool::new(false);
    let answers = thread::scope(|scope| {
        let running = scope.spawn(|| {
            let mut words = 0;
            while !is_over.load(Ordering::Relaxed) {
                assert!(tunnels.iter().all(is_alive), "after {words} words");
                words += 1;
            }
            words
        });
        let flood: Vec<_> = (0..1500).map(|_| connect(relay.address())).collect();
        let answers: Vec<_> = flood.into_iter().map(all_that_is_told).collect();
        is_over.store(true, Ordering::Relaxed);
        assert!(running.join().unwrap() > 0, "running tunnels go on meanwhile");
        answers
    });
    let message = answers.iter().filter(|answer| answer.starts_with(b"HTTP/1.1 429 ")).count();
    let closed = answers.iter().filter(|answer| answer.is_empty()).count();
    assert_eq!(message + closed, 1500);
    assert!(message > 0);
    let refused = relay.metric("sluicegate_sessions_refused_total").unwrap();
    let dropped = relay.metric("sluicegate_accept_dropped_total").unwrap();
    assert_eq!((refused as usize, dropped as usize), (message, closed), "each is counted as what it was");
    assert!(tunnels.iter().all(is_alive));
    drop(tunnels);
    assert!(asks_until_opened(&site, &relay, device.port()));
    assert!(relay.metric_becomes("sluicegate_sessions", |sessions| sessions <= 1.0));
}

/// Lets the relay have descriptors below `limit` alone, from now on.
fn limit_descriptors(relay: &Relay, limit: u64) {
    let arguments = [format!("--pid={}", relay.pid()), format!("--nofile={limit}:20000")];
    let status = Command::new("prlimit").args(arguments).status().unwrap();
    assert!(status.success());
}

/// The lowest limit that leaves the relay exactly `free` descriptors to open.
fn limit_with_free(relay: &Relay, free: usize) -> u64 {
    let open = relay.descriptors();
    (0..).filter(|number| !open.contains(number)).nth(free).unwrap()
}

#[test]
fn without_a_descriptor_for_the_device_a_session_is_refused() {
    if !tools_or_skip("without_a_descriptor_for_the_device_a_session_is_refused", &["prlimit"]) {
        return;
    }
    let site = Site::new("engine.threads = 1");
    let relay = site.start_through(&["prlimit", "--nofile=2000:20000"]);
    let device = Device::echo(V4);
    let tunnels: Vec<_> = (0..10).map(|_| site.ask(&relay, device.port()).opened()).collect();
    let limit = limit_with_free(&relay, 1);
    limit_descriptors(&relay, limit);
    let refused = site.ask(&relay, device.port());
    assert_eq!((refused.status, refused.slug().as_deref()), (429, Some("limit")));
    let event = &site.audit().wait_for_events(1)[0];
    assert_eq!(event["cause"], "descriptors", "{event}");
    assert!(tunnels.iter().all(is_alive));

    // One for the connection of who asks, and none or one for a session that needs two.
    limit_descriptors(&relay, 2000);
    let open_in_between = relay.descriptors().len();
    for free in [1, 2] {
        // Those of the last question may be closed a moment later.
        assert!(wait_for(|| (relay.descriptors().len() <= open_in_between).then_some(())).is_some());
        let limit = limit_with_free(&relay, free);
        limit_descriptors(&relay, limit);
        let ready = relay.admin_get("/readyz");
        assert!(ready.starts_with("HTTP/1.1 503 "), "{free} left: {ready}");
        assert!(ready.ends_with("no file descriptor is left for another session\n"), "{ready}");
    }
    limit_descriptors(&relay, 2000);
    assert!(relay.admin_get("/readyz").ends_with("ready\n"));
}

#[test]
fn a_flood_pauses_accept_and_leaves_the_descriptors_that_the_node_itself_needs() {
    let name = "a_flood_pauses_accept_and_leaves_the_descriptors_that_the_node_itself_needs";
    if !tools_or_skip(name, &["prlimit"]) {
        return;
    }
    // More clients than there are descriptors, none of whom closes: each that was told holds its own for a while.
    const DESCRIPTORS: usize = 256;
    const CLIENTS: usize = 400;
    let site = Site::new("engine.threads = 1\ntimeouts.head = '1s'");
    let relay = site.start_through(&["prlimit", &format!("--nofile={DESCRIPTORS}:{DESCRIPTORS}")]);
    let device = Device::echo(V4);
    let tunnels: Vec<_> = (0..10).map(|_| site.ask(&relay, device.port()).opened()).collect();
    // All wait at once when the relay goes on: the kernel accepts as many as there are descriptors, and accept pauses.
    relay.signal(Signal::SIGSTOP);
    let clients: Vec<_> = (0..CLIENTS).map(|_| connect(relay.address())).collect();
    relay.signal(Signal::SIGCONT);
    let is_enough = || relay.descriptors().len() < DESCRIPTORS - 2;
    assert!(crate::support::wait_for(|| is_enough().then_some(())).is_some());
    assert!(relay.admin_get("/livez").ends_with("ok\n"));
    assert!(tunnels.iter().all(is_alive));

    let answers: Vec<_> = clients.into_iter().map(all_that_is_told).collect();
    let message =
        |wanted: &str| answers.iter().filter(|answer| answer.starts_with(wanted.as_bytes())).count();
    let (idle, refused) = (message("HTTP/1.1 408 "), message("HTTP/1.1 429 "));
    let closed = answers.iter().filter(|answer| answer.is_empty()).count();
    assert_eq!(idle + refused + closed, CLIENTS, "idle in a place of its own, or beyond the limit");
    assert!(idle > 0 && refused > 0, "{idle} and {refused}");
    assert!(relay.metric("sluicegate_accept_pauses_total").unwrap() >= 1.0);
    assert!(relay.descriptors().len() < DESCRIPTORS / 2, "{} are open", relay.descriptors().len());
    assert!(tunnels.iter().all(is_alive));
    assert!(asks_until_opened(&site, &relay, device.port()));
}
