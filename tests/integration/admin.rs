//! What operators are told over HTTP, by a whole node on real sockets and a real store.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use sluicegate::authz::{DeviceUuid, PortRange};
use sluicegate::config::{Audit, Config, EngineConfig, Listen, Store, StoreUrl, Vpn};
use sluicegate::node::{Drained, Node};
use sluicegate::store::admin::{GrantTarget, NewDevice};
use sluicegate::store::sqlite;

const UUID: &str = "00112233445566778899aabbccddeeff";

/// Longest wait for a condition without a deadline of its own.
const PATIENCE: Duration = Duration::from_secs(20);

/// A store with one device on loopback that `token` may reach, and a node's configuration on it.
struct Setting {
    folder: tempfile::TempDir,
    config: Config,
    token: String,
}

impl Setting {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store.db");
        sqlite::init(&path).unwrap();
        let mut admin = sqlite::open(&path).unwrap();
        admin.add_principal("alice").unwrap();
        let uuid = DeviceUuid::parse(UUID).unwrap();
        let address = Some([127, 0, 0, 1].into());
        let device = NewDevice { uuid, name: None, fleet: None, address, node: None, online: true };
        admin.add_device(&device).unwrap();
        admin.add_grant("alice", &GrantTarget::Device(uuid), PortRange::ANY, None).unwrap();
        let token = admin.issue_token("alice", None, None).unwrap().token;
        let anywhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let config = Config {
            store: Store { url: StoreUrl::Sqlite(path), ..Store::default() },
            listen: vec![Listen {
                address: anywhere,
                suffixes: vec!["balena".to_owned()],
                ..Listen::default()
            }],
            engine: EngineConfig { threads: 2, ..EngineConfig::default() },
            vpn: Vpn::loopback(),
            admin: sluicegate::config::Admin { address: anywhere, ..Default::default() },
            ..Config::default()
        };
        Self { folder, config, token: token.to_string() }
    }

    fn start(&self) -> Node {
        Node::start(self.config.clone()).unwrap()
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("store.db")
    }

    /// A client that has sent its head for `port` of the device.
    fn connect(&self, node: &Node, port: u16) -> TcpStream {
        self.ask(TcpStream::connect(node.client_addresses()[0]).unwrap(), port)
    }

    fn ask(&self, mut client: TcpStream, port: u16) -> TcpStream {
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        let token = &self.token;
        write!(
            client,
            "CONNECT {UUID}.balena:{port} HTTP/1.1\r\nProxy-Authorization: Bearer {token}\r\n\r\n"
        )
        .unwrap();
        client
    }
}

/// Status, head and body of an answer.
#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: String,
}

fn get(address: SocketAddr, path: &str) -> Answer {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: node\r\nAccept: application/openmetrics-text\r\n\r\n")
        .unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answer { status, head: head.to_owned(), body: body.to_owned() }
}

fn wait_for(what: &str, is_so: impl Fn() -> bool) {
    let since = Instant::now();
    while !is_so() {
        assert!(since.elapsed() < PATIENCE, "not so after {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn status_of(mut client: &TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        client.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap().lines().next().unwrap().to_owned()
}

fn value(metrics: &str, name: &str) -> f64 {
    let line = metrics.lines().find(|line| line.split(' ').next() == Some(name));
    line.unwrap_or_else(|| panic!("{name} is missing in:\n{metrics}"))
        .rsplit(' ')
        .next()
        .unwrap()
        .parse()
        .unwrap()
}

#[test]
fn a_node_is_alive_and_ready_once_it_has_started() {
    let setting = Setting::new();
    let node = setting.start();
    let alive = get(node.admin_address(), "/livez");
    assert_eq!((alive.status, alive.body.as_str()), (200, "ok\n"));
    let ready = get(node.admin_address(), "/readyz");
    assert_eq!((ready.status, ready.body.as_str()), (200, "ready\n"));
    assert_eq!(get(node.admin_address(), "/nothing").status, 404);
}

#[test]
fn the_first_client_that_is_accepted_is_decided() {
    let mut setting = Setting::new();
    let device = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = device.local_addr().unwrap().port();
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    setting.config.listen[0].address = address;
    std::thread::scope(|threads| {
        // It was there first, and comes in as soon as anybody listens.
        let client = threads.spawn(|| {
            let since = Instant::now();
            loop {
                match TcpStream::connect(address) {
                    Ok(client) => return setting.ask(client, port),
                    Err(_) => assert!(since.elapsed() < PATIENCE, "nobody listens"),
                }
            }
        });
        let node = setting.start();
        assert_eq!(status_of(&client.join().unwrap()), "HTTP/1.1 200 Connection Established");
        drop(node);
    });
}

#[test]
fn a_draining_node_is_alive_and_not_ready() {
    let setting = Setting::new();
    let node = setting.start();
    assert_eq!(node.drain(Duration::ZERO, PATIENCE, || false), Drained::Empty);
    let ready = get(node.admin_address(), "/readyz");
    assert_eq!((ready.status, ready.body.as_str()), (503, "draining\n"));
    assert_eq!(get(node.admin_address(), "/livez").status, 200);
}

#[test]
fn a_node_whose_store_is_silent_for_too_long_is_not_ready_until_it_speaks_again() {
    let mut setting = Setting::new();
    setting.config.authz.refresh = Duration::from_millis(20);
    setting.config.authz.max_stale = Duration::from_millis(400);
    let node = setting.start();
    let hidden = setting.path().with_extension("hidden");
    std::fs::rename(setting.path(), &hidden).unwrap();
    wait_for("stale", || get(node.admin_address(), "/readyz").status == 503);
    assert_eq!(get(node.admin_address(), "/readyz").body, "snapshot-stale\n");
    let metrics = get(node.admin_address(), "/metrics").body;
    assert_eq!(value(&metrics, "sluicegate_store_reachable"), 0.0);
    assert!(value(&metrics, "sluicegate_snapshot_age_seconds") > 0.4);
    std::fs::rename(&hidden, setting.path()).unwrap();
    wait_for("ready again", || get(node.admin_address(), "/readyz").status == 200);
}

#[test]
fn metrics_count_sessions_and_bytes_and_name_nobody() {
    let setting = Setting::new();
    let device = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = device.local_addr().unwrap().port();
    let node = setting.start();

    let mut client = setting.connect(&node, port);
    assert_eq!(status_of(&client), "HTTP/1.1 200 Connection Established");
    let (mut at_device, _) = device.accept().unwrap();
    client.write_all(&[7; 1000]).unwrap();
    at_device.read_exact(&mut [0; 1000]).unwrap();
    at_device.write_all(&[7; 300]).unwrap();
    client.read_exact(&mut [0; 300]).unwrap();
    let mut nobody = TcpStream::connect(node.client_addresses()[0]).unwrap();
    write!(nobody, "CONNECT {UUID}.balena:{port} HTTP/1.1\r\n\r\n").unwrap();
    assert_eq!(status_of(&nobody), "HTTP/1.1 407 Proxy Authentication Required");
    drop(nobody);
    wait_for("one session", || node.engine().sessions_active() == 1);

    let answer = get(node.admin_address(), "/metrics");
    assert!(answer.head.contains("content-type: application/openmetrics-text; version=1.0.0"), "{answer:?}");
    let metrics = answer.body;
    assert!(metrics.ends_with("# EOF\n"), "{metrics}");
    for (name, expected) in [
        ("sluicegate_sessions", 1.0),
        ("sluicegate_sessions_accepted_total", 2.0),
        ("sluicegate_sessions_refused_total", 1.0),
        ("sluicegate_sessions_undecided_total", 0.0),
        ("sluicegate_tunnels_opened_total", 1.0),
        ("sluicegate_tunnels_closed_total", 0.0),
        ("sluicegate_forwarded_bytes_total{direction=\"up\",path=\"copy\"}", 1000.0),
        ("sluicegate_forwarded_bytes_total{direction=\"down\",path=\"copy\"}", 300.0),
        ("sluicegate_forwarded_bytes_total{direction=\"down\",path=\"splice\"}", 0.0),
        ("sluicegate_snapshot_generation", 1.0),
        ("sluicegate_snapshot_rows{relation=\"credentials\"}", 1.0),
        ("sluicegate_snapshot_rows{relation=\"grants\"}", 1.0),
        ("sluicegate_snapshot_rows{relation=\"devices\"}", 1.0),
        ("sluicegate_store_reachable", 1.0),
        ("sluicegate_audit_dropped_total", 0.0),
        ("sluicegate_audit_lost_total", 0.0),
    ] {
        assert_eq!(value(&metrics, name), expected, "{name}");
    }
    assert!(metrics.contains(&format!("sluicegate_build_info{{version=\"{}\"}} 1", sluicegate::VERSION)));
    for secret in [UUID, &setting.token, "alice"] {
        assert!(!metrics.contains(secret), "{metrics}");
    }
}

#[test]
fn whoever_holds_every_admin_connection_hinders_no_tunnel_and_not_for_long() {
    let setting = Setting::new();
    let device = TcpListener::bind("127.0.0.1:0").unwrap();
    let node = setting.start();
    let held: Vec<TcpStream> = (0..40).map(|_| TcpStream::connect(node.admin_address()).unwrap()).collect();
    for (mut each, bytes) in held.iter().zip(["", "GET /livez HT"].into_iter().cycle()) {
        each.write_all(bytes.as_bytes()).unwrap();
    }
    let client = setting.connect(&node, device.local_addr().unwrap().port());
    assert_eq!(status_of(&client), "HTTP/1.1 200 Connection Established");
    assert_eq!(get(node.admin_address(), "/livez").status, 200);
    held[0].set_read_timeout(Some(PATIENCE)).unwrap();
    let ended = (&held[0]).read(&mut [0; 512]);
    let is_ended =
        matches!(ended, Ok(0)) || ended.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset);
    assert!(is_ended, "an idle admin connection is kept");
}

#[test]
fn an_admin_address_that_is_taken_is_told_in_one_line_and_frees_the_client_ports() {
    let mut setting = Setting::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    setting.config.admin.address = taken.local_addr().unwrap();
    let client = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    setting.config.listen[0].address = client;
    let Err(error) = Node::start(setting.config.clone()) else { panic!("it started") };
    let message = error.to_string();
    let expected = format!("admin.address {} cannot be listened on: ", setting.config.admin.address);
    assert!(message.starts_with(&expected) && !message.contains('\n'), "{message}");
    // The kernel takes a ring down in its own time, and a listener with it.
    wait_for("a free client port", || TcpListener::bind(client).is_ok());
}

#[test]
fn a_node_that_stops_answers_nobody_and_has_written_every_event() {
    let mut setting = Setting::new();
    let path = setting.folder.path().join("audit.jsonl");
    setting.config.audit = Audit { path: Some(path.clone()), ..Audit::default() };
    let device = TcpListener::bind("127.0.0.1:0").unwrap();
    let node = setting.start();
    let client = setting.connect(&node, device.local_addr().unwrap().port());
    assert_eq!(status_of(&client), "HTTP/1.1 200 Connection Established");
    let addresses = [node.client_addresses()[0], node.admin_address()];
    node.stop();
    for address in addresses {
        let is_refused =
            || TcpStream::connect(address).is_err_and(|e| e.kind() == ErrorKind::ConnectionRefused);
        // The kernel takes a ring down in its own time, and a listener with it.
        wait_for("nobody listens", is_refused);
    }
    let text = std::fs::read_to_string(path).unwrap();
    let events: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let kinds: Vec<&str> = events.iter().filter_map(|event| event["event"].as_str()).collect();
    assert_eq!((kinds, &events[0]["uuid"]), (vec!["session-end", "usage"], &UUID.into()));
}
