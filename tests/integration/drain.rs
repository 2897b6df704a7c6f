//! A node that goes out of service: balancers hear of it first, clients next, and its devices stay reachable for other
//! nodes until it ends.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::support::{
    ALL_V4, Answer, Audit, Authority, Device, HttpAnswer, Relay, Request, Running, Signal, Site, V4, connect,
    exchange, free_address, node_section_at, receive, tools_or_skip, wait_for,
};

/// The answer of a health check.
fn check(address: SocketAddr, path: &str) -> HttpAnswer {
    exchange(connect(address), &format!("GET {path}"), "")
}

/// The address of the listener for health checks, which a relay logs.
fn health_address(relay: &Relay) -> SocketAddr {
    assert!(relay.logs("health="));
    let log = relay.log();
    let address = log.split("health=").nth(1).unwrap().split_whitespace().next().unwrap();
    address.parse().unwrap()
}

fn echoes(tunnel: &mut TcpStream) -> bool {
    let mut echoed = [0; 4];
    tunnel.write_all(b"ping").and_then(|()| tunnel.read_exact(&mut echoed)).is_ok() && &echoed == b"ping"
}

/// Waits until a new client gets this reply.
fn comes_to(site: &Site, relay: &Relay, device: &Device, status: u16) -> bool {
    wait_for(|| (site.ask(relay, device.port()).status == status).then_some(())).is_some()
}

#[test]
fn balancers_hear_first_and_new_clients_are_served_meanwhile() {
    let site =
        Site::new("timeouts = { lame_duck = '3s', drain = '1h' }\nadmin.health_address = '127.0.0.1:0'");
    let (mut relay, device) = (site.start(), Device::echo(V4));
    let health = health_address(&relay);
    assert_eq!((check(health, "/readyz").status, check(health, "/livez").status), (200, 200));
    let mut tunnel = site.ask(&relay, device.port()).opened();
    let began = Instant::now();
    relay.signal(Signal::SIGTERM);
    let not_ready = wait_for(|| Some(check(health, "/readyz")).filter(|answer| answer.status == 503));
    assert_eq!(not_ready.unwrap().body, "not ready\n");
    assert!(relay.admin_get("/readyz").ends_with("draining\n"));
    assert_eq!(site.ask(&relay, device.port()).status, 200);
    assert!(began.elapsed() < Duration::from_secs(3), "the machine is too slow for this test");
    assert!(comes_to(&site, &relay, &device, 503));
    assert!(began.elapsed() >= Duration::from_secs(3));
    assert_eq!(check(health, "/livez").status, 200);
    assert!(echoes(&mut tunnel));
    drop(tunnel);
    assert_eq!(relay.wait().and_then(|status| status.code()), Some(0));
}

#[test]
fn the_health_address_says_no_more_than_that() {
    let mut site = Site::new("admin.health_address = '127.0.0.1:0'\nauthz.guard.bounds.devices.max = 1");
    let relay = site.start();
    let health = health_address(&relay);
    for path in ["/", "/metrics", "/status.json", "/sessions", "/readyz/"] {
        assert_eq!(check(health, path).status, 404, "{path}");
    }
    let ready = check(health, "/readyz");
    assert!(!ready.body.contains("devices"), "{}", ready.body);
    site.configure(&format!("admin.health_address = '{health}'"));
    drop(relay);
    site.configure(&format!("admin.address = '{health}'"));
    let (code, said) = site.start_in_vain().unwrap();
    assert_eq!(code, Some(1));
    assert!(said.contains("admin.health_address: ") && said.contains("is also the address"), "{said}");
}

#[test]
fn a_relay_drains_by_command_and_comes_back() {
    let site = Site::new("");
    let (relay, device) = (site.start(), Device::echo(V4));
    let mut tunnel = site.ask(&relay, device.port()).opened();
    assert_eq!(site.cli(&["drain", "--cancel"])["was_draining"], false);
    let begun = site.cli(&["drain"]);
    assert_eq!((&begun["lame_duck"], &begun["until"]), (&"0s".into(), &serde_json::Value::Null));
    assert!(comes_to(&site, &relay, &device, 503));
    assert_eq!(site.cli(&["status"])["readiness"], "draining");
    assert!(echoes(&mut tunnel));
    assert_eq!(site.cli(&["drain", "--cancel"])["was_draining"], true);
    assert_eq!(site.ask(&relay, device.port()).status, 200);
    assert!(relay.admin_get("/readyz").ends_with("ready\n"));

    let began = Instant::now();
    site.cli(&["drain", "--for", "2s"]);
    assert!(comes_to(&site, &relay, &device, 503));
    assert!(comes_to(&site, &relay, &device, 200), "it comes back by itself");
    assert!(began.elapsed() >= Duration::from_secs(2));
    assert!(echoes(&mut tunnel));
}

#[test]
fn a_drain_by_command_has_its_lame_duck_and_a_stop_waits_only_for_the_rest() {
    let site = Site::new("timeouts = { lame_duck = '2s', drain = '1h' }");
    let (mut relay, device) = (site.start(), Device::echo(V4));
    site.cli(&["drain"]);
    assert_eq!(site.ask(&relay, device.port()).status, 200);
    let status = site.cli(&["status"]);
    assert_eq!(
        (&status["readiness"], &status["why"]),
        (&"draining".into(), &"and still serves new clients".into())
    );
    assert!(comes_to(&site, &relay, &device, 503));
    let began = Instant::now();
    relay.signal(Signal::SIGTERM);
    assert_eq!(relay.wait().and_then(|status| status.code()), Some(0));
    assert!(began.elapsed() < Duration::from_secs(2), "balancers know already");
}

#[test]
fn a_person_at_a_terminal_does_not_wait_for_balancers() {
    let site = Site::new("timeouts.lame_duck = '1h'");
    let mut relay = site.start();
    relay.signal(Signal::SIGINT);
    assert_eq!(relay.wait().and_then(|status| status.code()), Some(0));
}

/// Held by `node-a` and `node-b`.
const HELD: [&str; 2] = ["aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"];

/// Two nodes on fixed addresses, so that each can come back where it was.
struct Pair {
    site: Site,
    _folder: tempfile::TempDir,
    authority: Authority,
    fragment: String,
    nodes: [NodeAddresses; 2],
}

struct NodeAddresses {
    name: &'static str,
    clients: SocketAddr,
    peers: SocketAddr,
    health: SocketAddr,
}

impl Pair {
    fn new(fragment: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::new(folder.path(), "nodes");
        let site = Site::new("");
        let nodes = ["node-a", "node-b"].map(|name| {
            let [clients, peers, health] = [(); 3].map(|()| free_address());
            NodeAddresses { name, clients, peers, health }
        });
        for (number, (uuid, node)) in HELD.into_iter().zip(&nodes).enumerate() {
            let address = format!("127.0.0.{}", number + 11);
            site.cli(&["device", "add", uuid, "--address", &address, "--node", node.name]);
        }
        Self { site, _folder: folder, authority, fragment: fragment.to_owned(), nodes }
    }

    fn start(&self, node: usize) -> Relay {
        let NodeAddresses { name, clients, peers, health } = &self.nodes[node];
        let section = node_section_at(&peers.to_string(), name, &self.authority);
        let section = section.replace("max_age = '1500ms'", "max_age = '15s'");
        let fragment = format!(
            "{section}\nlisten = [{{ address = '{clients}', proxy_from = ['127.0.0.0/8'] }}]\n\
             admin.health_address = '{health}'\n{}",
            self.fragment
        );
        self.site.start_sibling(name, &fragment).0
    }

    /// Opens a tunnel to the device of a node, by the load balancer or a node at `front`, and echoes through it.
    fn try_request(&self, front: SocketAddr, head: &[u8], device: usize, port: u16) -> Result<(), String> {
        let mut stream = connect(front);
        let request = Request::to(HELD[device], port).bearer(&self.site.token).bytes();
        stream.write_all(&[head, &request].concat()).map_err(|error| error.to_string())?;
        let head = crate::support::read_head(&mut stream).map_err(|error| error.to_string())?;
        if !head.starts_with(b"HTTP/1.1 200 ") {
            return Err(String::from_utf8_lossy(&head).into_owned());
        }
        if echoes(&mut stream) { Ok(()) } else { Err("the echo was lost".to_owned()) }
    }
}

const PROXY: &[u8] = b"PROXY UNKNOWN\r\n";

#[test]
fn a_draining_node_serves_its_devices_for_other_nodes_until_it_ends() {
    let pair = Pair::new("timeouts = { lame_duck = '0s', drain = '1h' }");
    let ([near, mut far], device) = ([pair.start(0), pair.start(1)], Device::echo(ALL_V4));
    assert!(near.metric_becomes("sluicegate_nodes{state=\"fresh\"}", |fresh| fresh == 2.0));
    let ask = |node: usize| pair.try_request(pair.nodes[node].clients, PROXY, 1, device.port());
    assert_eq!(ask(0), Ok(()));
    let bytes = [PROXY, &Request::to(HELD[1], device.port()).bearer(&pair.site.token).bytes()].concat();
    let mut tunnel = Answer::to_bytes(pair.nodes[1].clients, &bytes).opened();
    far.signal(Signal::SIGTERM);
    assert!(wait_for(|| ask(1).is_err().then_some(())).is_some(), "its own clients are refused");
    for _ in 0..20 {
        assert_eq!(ask(0), Ok(()));
    }
    assert!(echoes(&mut tunnel));
    drop(tunnel);
    // Connections that the other node keeps ready are nobody's tunnels.
    assert_eq!(far.wait().and_then(|status| status.code()), Some(0));
}

#[test]
fn a_node_that_is_back_soon_is_waited_for() {
    let pair = Pair::new("timeouts.lame_duck = '0s'");
    let ([near, far], device) = ([pair.start(0), pair.start(1)], Device::echo(ALL_V4));
    assert!(near.metric_becomes("sluicegate_nodes{state=\"fresh\"}", |fresh| fresh == 2.0));
    drop(far);
    thread::scope(|scope| {
        let asked = scope.spawn(|| pair.try_request(pair.nodes[0].clients, PROXY, 1, device.port()));
        thread::sleep(Duration::from_millis(500));
        let _far = pair.start(1);
        let near_audit = Audit::new(pair.site.folder().join("node-a/audit.jsonl"));
        assert_eq!(asked.join().unwrap(), Ok(()), "{:?}", near_audit.events());
        assert!(near.metric("sluicegate_forward_retries_total").unwrap() >= 1.0);
    });
}

/// The configuration of HAProxy that docs/load-balancers.md shows, with the addresses of `pair`.
fn haproxy_config(pair: &Pair, front: SocketAddr) -> String {
    let page = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/load-balancers.md");
    let page = std::fs::read_to_string(page).unwrap();
    let block = page.split("```text\n").find(|block| block.contains("option httpchk")).unwrap();
    let mut config = block.split("```").next().unwrap().to_owned();
    let mut replace = |from: &str, to: &str| {
        assert!(config.contains(from), "the page does not show `{from}`: {config}");
        config = config.replace(from, to);
    };
    replace("bind :443 ssl crt /etc/haproxy/certs/", &format!("bind {front}"));
    replace("inter 1s", "inter 200ms");
    for (node, address) in pair.nodes.iter().zip(["10.0.0.7", "10.0.0.8"]) {
        replace(&format!("{address}:3128"), &format!("{} check port {}", node.clients, node.health.port()));
    }
    replace(" check port 9129", "");
    config
}

#[test]
fn two_nodes_behind_haproxy_restart_under_load_and_no_request_fails() {
    let name = "two_nodes_behind_haproxy_restart_under_load_and_no_request_fails";
    if !tools_or_skip(name, &["haproxy"]) {
        return;
    }
    let pair = Pair::new("timeouts = { lame_duck = '3s', drain = '3s' }");
    let mut nodes = [pair.start(0), pair.start(1)];
    assert!(nodes[0].metric_becomes("sluicegate_nodes{state=\"fresh\"}", |fresh| fresh == 2.0));
    let (front, device) = (free_address(), Device::echo(ALL_V4));
    let config = pair.site.folder().join("haproxy.cfg");
    std::fs::write(&config, haproxy_config(&pair, front)).unwrap();
    let _haproxy = Running::start(Command::new("haproxy").arg("-q").arg("-f").arg(&config));
    assert!(wait_for(|| TcpStream::connect(front).ok()).is_some());
    let mut last = Ok(());
    let is_served = wait_for(|| {
        last = pair.try_request(front, b"", 0, device.port());
        last.is_ok().then_some(())
    });
    assert!(is_served.is_some(), "{last:?} with {}", std::fs::read_to_string(&config).unwrap());

    let (is_over, done, failures) = (AtomicBool::new(false), AtomicUsize::new(0), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for client in 0..4 {
            let (pair, is_over, done, failures, port) = (&pair, &is_over, &done, &failures, device.port());
            scope.spawn(move || {
                while !is_over.load(Ordering::Relaxed) {
                    let began = Instant::now();
                    match pair.try_request(front, b"", client % 2, port) {
                        Ok(()) => drop(done.fetch_add(1, Ordering::Relaxed)),
                        Err(error) => failures.lock().push((client, began.elapsed(), error)),
                    }
                    thread::sleep(Duration::from_millis(10));
                }
            });
        }
        for (place, node) in nodes.iter_mut().enumerate() {
            thread::sleep(Duration::from_secs(1));
            node.signal(Signal::SIGTERM);
            assert_eq!(node.wait().and_then(|status| status.code()), Some(0));
            *node = pair.start(place);
            // HAProxy takes the node back before the other one goes.
            thread::sleep(Duration::from_secs(2));
        }
        is_over.store(true, Ordering::Relaxed);
    });
    let (done, failures) = (done.into_inner(), failures.into_inner());
    eprintln!("{done} requests in two restarts, {} failed", failures.len());
    assert!(failures.is_empty(), "{} of {}: {:?}", failures.len(), done + failures.len(), failures.first());
    assert!(done > 100, "only {done} requests");
}

#[test]
fn peers_get_no_new_tunnels_in_the_last_moment_so_that_theirs_end_by_themselves() {
    let pair = Pair::new("timeouts = { lame_duck = '0s', drain = '2s' }");
    let ([near, mut far], device) = ([pair.start(0), pair.start(1)], Device::echo(ALL_V4));
    assert!(near.metric_becomes("sluicegate_nodes{state=\"fresh\"}", |fresh| fresh == 2.0));
    let bytes = [PROXY, &Request::to(HELD[1], device.port()).bearer(&pair.site.token).bytes()].concat();
    let mut long = Answer::to_bytes(pair.nodes[1].clients, &bytes).opened();
    far.signal(Signal::SIGTERM);
    let asked = thread::scope(|scope| {
        let asked = scope.spawn(|| {
            thread::sleep(Duration::from_millis(1300));
            pair.try_request(pair.nodes[0].clients, PROXY, 1, device.port())
        });
        let _reset = receive(&mut long);
        assert_eq!(far.wait().and_then(|status| status.code()), Some(0));
        let _far = pair.start(1);
        asked.join().unwrap()
    });
    assert_eq!(asked, Ok(()), "it was asked to come again, and did");
}
