//! Several nodes on one store: a device that another node holds is reached by that node, and every way in
//! which that can fail is told.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::support::{
    ALL_V4, Audit, Authority, Content, DEVICE, Device, End, Relay, Request, Signal, Site, TlsClient, V4,
    ask_by_tls, node_section, receive, wait_for,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use sluicegate::wire::{PeerRequest, Token};

/// Held by `node-b`.
const FAR: &str = "fedcba9876543210fedcba9876543210";

/// A store, certificates for its nodes, and `node-a`, which clients come to.
struct Fleet {
    site: Site,
    authority: Authority,
}

/// A further node.
struct Node {
    relay: Relay,
    audit: Audit,
}

impl Fleet {
    fn new(fragment: &str) -> Self {
        let folder = tempfile::tempdir().unwrap().keep();
        let authority = Authority::new(&folder, "nodes");
        let mut site = Site::new("");
        site.configure(&node_section("node-a", &authority));
        site.configure(fragment);
        site.cli(&["device", "add", FAR, "--address", "127.0.0.2", "--node", "node-b"]);
        Self { site, authority }
    }

    fn start(&self) -> Relay {
        self.site.start()
    }

    /// A node with this name on the same store, or, where there is one, on `store`.
    fn node(&self, name: &str, store: Option<&Site>) -> Node {
        let store = store.unwrap_or(&self.site).store_path();
        let fragment =
            format!("{}\nstore.url = 'sqlite:{}'", node_section(name, &self.authority), store.display());
        let (relay, audit) = self.site.start_sibling(name, &fragment);
        Node { relay, audit }
    }

    /// Waits until `relay` knows so many nodes that live.
    fn wait_for_nodes(&self, relay: &Relay, count: f64) {
        assert!(relay.metric_becomes("sluicegate_nodes{state=\"fresh\"}", |fresh| fresh == count));
    }

    fn request(&self, port: u16) -> Request {
        Request::to(FAR, port).bearer(&self.site.token)
    }

    /// Says in the store that a node with this name lives at `forward`.
    fn pretend(&self, name: &str, forward: SocketAddr) {
        let store = rusqlite::Connection::open(self.site.store_path()).unwrap();
        let sql = "INSERT INTO nodes (name, forward_address, heartbeat_at) VALUES (?1, ?2, unixepoch() * 1000 + 3600000)";
        store.execute(sql, (name, forward.to_string())).unwrap();
    }

    /// Status and slug that a client gets, with the cause in the audit log of `node-a`.
    fn refusal(&self, relay: &Relay) -> (u16, String, String) {
        let before = self.site.audit().events().len();
        let answer = self.request(80).send(relay.address());
        let slug = answer.slug().unwrap_or_default();
        let event = self.site.audit().wait_for_events(before + 1).swap_remove(before);
        (answer.status, slug, event["cause"].as_str().unwrap().to_owned())
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        std::fs::remove_dir_all(self.authority.file.parent().unwrap()).unwrap();
    }
}

#[test]
fn a_device_elsewhere_is_reached_by_the_node_that_holds_it() {
    let fleet = Fleet::new("");
    let (near, far, device) = (fleet.start(), fleet.node("node-b", None), Device::echo(ALL_V4));
    fleet.wait_for_nodes(&near, 2.0);
    let mut tunnel = fleet.request(device.port()).early(b"early").send(near.address()).opened();
    tunnel.write_all(b" and late").unwrap();
    let mut back = [0; 14];
    tunnel.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"early and late");
    let client = tunnel.local_addr().unwrap().to_string();
    tunnel.shutdown(Shutdown::Write).unwrap();
    assert_eq!(tunnel.read(&mut back).unwrap(), 0);
    for (audit, via) in [(fleet.site.audit(), serde_json::Value::Null), (far.audit, "node-a".into())] {
        let end = audit.wait_for(|event| event["event"] == "session-end");
        assert_eq!(end["via"], via);
        assert_eq!((&end["client"], &end["cause"]), (&client.as_str().into(), &"closed".into()));
        assert_eq!(
            (&end["uuid"], &end["bytes_up"], &end["bytes_down"]),
            (&FAR.into(), &14.into(), &14.into())
        );
        assert_eq!(end["credential"], fleet.site.credential);
    }
    assert_eq!(near.metric("sluicegate_tunnels_total{path=\"forwarded\"}"), Some(1.0));
    assert_eq!(far.relay.metric("sluicegate_tunnels_total{path=\"local\"}"), Some(1.0));
}

#[test]
fn megabytes_by_two_nodes_arrive_whole_and_in_order() {
    let content = Content::new(11, 32 << 20);
    let device = Device::serving(ALL_V4, move |mut stream| {
        let _client_gone = content.send(&mut stream);
        let _client_gone = stream.shutdown(Shutdown::Write);
        let _rest = receive(&mut stream);
    });
    let fleet = Fleet::new("");
    let (near, _far) = (fleet.start(), fleet.node("node-b", None));
    fleet.wait_for_nodes(&near, 2.0);
    let mut tunnel = fleet.request(device.port()).send(near.address()).opened();
    assert_eq!(receive(&mut tunnel), (content.digest(), End::Fin));
}

#[test]
fn an_echo_by_two_nodes_is_whole_however_often_it_is_asked() {
    let fleet = Fleet::new("");
    let (near, _far, device) = (fleet.start(), fleet.node("node-b", None), Device::echo(ALL_V4));
    fleet.wait_for_nodes(&near, 2.0);
    let content = Content::new(1, 1 << 20);
    for _ in 0..20 {
        let mut tunnel = fleet.request(device.port()).send(near.address()).opened();
        for _ in 0..3 {
            let mut sink = tunnel.try_clone().unwrap();
            let mut back = vec![0; 1 << 20];
            std::thread::scope(|scope| {
                let sent = scope.spawn(move || content.send(&mut sink).unwrap());
                tunnel.read_exact(&mut back).unwrap();
                sent.join().unwrap();
            });
            assert_eq!(Content::digest_of(&back), content.digest());
        }
    }
}

#[test]
fn what_the_next_node_says_no_with_is_what_the_client_is_told() {
    let fleet = Fleet::new("");
    let (near, far) = (fleet.start(), fleet.node("node-b", None));
    fleet.wait_for_nodes(&near, 2.0);
    let answer = fleet.request(Device::closed_port()).send(near.address());
    assert_eq!((answer.status, answer.slug().as_deref()), (502, Some("device-port-closed")));
    assert!(fleet.site.audit().has(|event| event["cause"] == "refused-by-node"));
    assert!(far.audit.has(|event| event["cause"] == "device-port-closed"));
    let answer = Request::to(FAR, 80).bearer("nobody's").send(near.address());
    assert_eq!((answer.status, answer.slug().as_deref()), (407, Some("credentials")));
}

#[test]
fn a_revocation_ends_a_tunnel_by_two_nodes() {
    let fleet = Fleet::new("");
    let (near, far, device) = (fleet.start(), fleet.node("node-b", None), Device::echo(ALL_V4));
    fleet.wait_for_nodes(&near, 2.0);
    let mut tunnel = fleet.request(device.port()).send(near.address()).opened();
    fleet.site.cli(&["grant", "revoke", &fleet.site.grant.to_string()]);
    assert_eq!(tunnel.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    let ends = [fleet.site.audit(), far.audit].map(|audit| {
        let end = audit.wait_for(|event| event["event"] == "session-end");
        end["cause"].as_str().unwrap().to_owned()
    });
    // Whichever node hears of it second may have lost the other by then.
    assert!(ends.contains(&"grant-revoked".to_owned()), "{ends:?}");
}

#[test]
fn a_node_that_dies_is_told_and_known_to_be_gone_after_a_while() {
    let fleet = Fleet::new("timeouts.forward = '500ms'");
    let (near, far) = (fleet.start(), fleet.node("node-b", None));
    fleet.wait_for_nodes(&near, 2.0);
    far.relay.signal(Signal::SIGKILL);
    let found = wait_for(|| Some(fleet.refusal(&near)).filter(|refusal| refusal.2 == "node-unreachable"));
    assert_eq!(found.unwrap(), (503, "device-offline".to_owned(), "node-unreachable".to_owned()));
    assert!(near.metric_becomes("sluicegate_nodes{state=\"stale\"}", |stale| stale == 1.0));
    assert_eq!(fleet.refusal(&near).2, "node-stale");
    let (_again, device) = (fleet.node("node-b", None), Device::echo(ALL_V4));
    fleet.wait_for_nodes(&near, 2.0);
    fleet.request(device.port()).send(near.address()).opened();
}

#[test]
fn a_node_that_nobody_knows_is_told() {
    let fleet = Fleet::new("");
    let near = fleet.start();
    let message = fleet.refusal(&near);
    assert_eq!(message, (503, "device-offline".to_owned(), "node-unknown".to_owned()));
}

#[test]
fn a_node_that_does_not_answer_is_given_up() {
    let fleet = Fleet::new("timeouts.forward = '500ms'");
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    fleet.pretend("node-b", silent.local_addr().unwrap());
    let near = fleet.start();
    fleet.wait_for_nodes(&near, 2.0);
    assert_eq!(fleet.refusal(&near), (504, "device-timeout".to_owned(), "node-timeout".to_owned()));
}

#[test]
fn who_shows_no_certificate_of_a_node_is_neither_asked_nor_let_in() {
    let fleet = Fleet::new("");
    let stranger = Authority::new(fleet.site.folder(), "stranger");
    let impostor = FakeNode::start(&stranger, "node-b", |_, _| b"HTTP/1.1 200 OK\r\n\r\n".to_vec());
    fleet.pretend("node-b", impostor.address);
    let near = fleet.start();
    fleet.wait_for_nodes(&near, 2.0);
    assert_eq!(fleet.refusal(&near), (503, "device-offline".to_owned(), "node-tls".to_owned()));
    // Nor one that is a node, but another.
    let other = FakeNode::start(&fleet.authority, "node-c", |_, _| Vec::new());
    let store = rusqlite::Connection::open(fleet.site.store_path()).unwrap();
    store
        .execute("UPDATE nodes SET forward_address = ?1 WHERE name = 'node-b'", [other.address.to_string()])
        .unwrap();
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(fleet.refusal(&near).2, "node-tls");

    let forward = forward_address(&fleet.site, "node-a");
    for client in [
        TlsClient::trusting(&fleet.authority),
        TlsClient::trusting(&fleet.authority).showing(&stranger.issue("node-b", &["node-b"])),
    ] {
        let mut client = client;
        let asked = client
            .connect(forward, "node-a")
            .and_then(|mut stream| crate::support::ask_by_tls(&mut stream, &fleet.request(80).bytes()));
        assert!(asked.is_err(), "{asked:?}");
    }
}

#[test]
fn who_is_no_node_of_the_directory_hands_nothing_over_whatever_the_ca_has_signed() {
    let fleet = Fleet::new("");
    let near = fleet.start();
    fleet.wait_for_nodes(&near, 1.0);
    let device = Device::echo(V4);
    let mut laptop =
        TlsClient::trusting(&fleet.authority).showing(&fleet.authority.issue("laptop", &["laptop"]));
    let forward = forward_address(&fleet.site, "node-a");
    let mut ask = |client: Option<&str>, token: &str| {
        let token = Token::new(token.as_bytes().to_vec());
        let client = client.map(|client| client.parse().unwrap());
        let request =
            PeerRequest { client, uuid: DEVICE, port: device.port(), token: Some(&token), hops: &[] };
        let mut stream = laptop.connect(forward, "node-a").unwrap();
        ask_by_tls(&mut stream, &request.bytes()).unwrap()
    };
    let reply = ask(Some("192.0.2.7:51000"), &fleet.site.token);
    assert!(reply.starts_with("HTTP/1.1 503 Authorization Unavailable\r\n"), "{reply}");
    let event = fleet.site.audit().wait_for(|event| event["cause"] == "node-stranger");
    let detail = "the certificate is for laptop, which is no node of the directory, or is refused";
    assert_eq!((&event["detail"], &event["via"]), (&detail.into(), &serde_json::Value::Null));
    assert!(event["client"].as_str().unwrap().starts_with("127.0.0.1:"), "the address is its own: {event}");
    // Nor does it guess tokens in the name of a probe, of which there is no record.
    let before = fleet.site.audit().events().len();
    ask(None, "a-guess");
    assert_eq!(fleet.site.audit().wait_for_events(before + 1)[before]["cause"], "node-stranger");

    // The directory knows it from now on.
    fleet.pretend("laptop", "127.0.0.1:9".parse().unwrap());
    fleet.wait_for_nodes(&near, 2.0);
    let reply = ask(Some("192.0.2.7:51000"), &fleet.site.token);
    assert!(reply.starts_with("HTTP/1.1 200 "), "{reply}");
    let end = fleet.site.audit().wait_for(|event| event["event"] == "session-end");
    assert_eq!((&end["client"], &end["via"]), (&"192.0.2.7:51000".into(), &"laptop".into()));
}

#[test]
fn check_refuses_a_ca_that_signs_for_clients_and_for_nodes() {
    let mut fleet = Fleet::new("");
    let (chain, key) = fleet.authority.issue("relay", &["relay"]).write(fleet.site.folder(), "relay");
    let of_nodes = fleet.authority.file.clone();
    let clients = Authority::new(fleet.site.folder(), "clients");
    let mut check = |ca: &std::path::Path| {
        fleet.site.configure(&format!(
            "listen = [{{ address = '127.0.0.1:0', tls = {{ client_ca = '{}', client_certificates = 'required', \
             certificates = [{{ chain = '{}', key = '{}' }}] }} }}]",
            ca.display(),
            chain.display(),
            key.display()
        ));
        let output = fleet.site.command(&["check"]).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    assert_eq!(check(&clients.file).0, Some(0));
    let (code, told) = check(&of_nodes);
    assert_eq!(code, Some(1), "{told}");
    assert!(told.contains("forward.tls.ca"), "{told}");
    assert!(
        told.contains("has a CA that `listen.0.tls.client_ca` has too, so a client could pass for a node"),
        "{told}"
    );
}

#[test]
fn a_peer_gets_counts_of_what_a_node_has_and_a_client_does_not() {
    let fleet = Fleet::new("");
    let near = fleet.start();
    let forward = forward_address(&fleet.site, "node-a");
    let ask = || {
        let mut peer =
            TlsClient::trusting(&fleet.authority).showing(&fleet.authority.issue("node-b", &["node-b"]));
        let mut stream = peer.connect(forward, "node-a").unwrap();
        let head = crate::support::ask_by_tls(&mut stream, &sluicegate::wire::summary_request()).unwrap();
        let mut body = Vec::new();
        stream.read_to_end(&mut body).unwrap();
        (head, body)
    };
    // The first summary is made with the first heartbeat.
    let (head, body) =
        wait_for(|| Some(ask()).filter(|(head, _)| head.starts_with("HTTP/1.1 200 "))).unwrap();
    let reply = [head.as_bytes(), &body].concat();
    let summary = sluicegate::wire::parse_summary_reply(&reply).unwrap().unwrap();
    assert!(summary.len() > 12_000, "three sketches, {} bytes", summary.len());
    let uuid = hex::decode(FAR).unwrap();
    assert!(!summary.windows(uuid.len()).any(|part| part == uuid), "no row is in it");

    let mut client = TcpStream::connect(near.address()).unwrap();
    client.write_all(b"GET /summary HTTP/1.1\r\n\r\n").unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 405 "), "{answer}");
}

#[test]
fn a_request_that_comes_round_again_is_a_loop() {
    let fleet = Fleet::new("timeouts.forward = '1s'");
    // By its own store, node-a holds the device.
    let other = Site::new("");
    other.cli(&["device", "add", FAR, "--address", "127.0.0.2", "--node", "node-a"]);
    let hash = "UPDATE credentials SET key_sha256 = ?1 WHERE revoked_at IS NULL";
    let digest = sha2::Digest::finalize(sha2::Digest::chain_update(
        <sha2::Sha256 as sha2::Digest>::new(),
        &fleet.site.token,
    ));
    rusqlite::Connection::open(other.store_path()).unwrap().execute(hash, [digest.as_slice()]).unwrap();
    let far = fleet.node("node-b", Some(&other));
    fleet.pretend("node-b", forward_address(&other, "node-b"));
    let near = fleet.start();
    fleet.wait_for_nodes(&near, 2.0);
    let store = rusqlite::Connection::open(other.store_path()).unwrap();
    let sql = "INSERT INTO nodes (name, forward_address, heartbeat_at) VALUES ('node-a', ?1, unixepoch() * 1000 + 3600000)";
    store.execute(sql, [forward_address(&fleet.site, "node-a").to_string()]).unwrap();
    fleet.wait_for_nodes(&far.relay, 2.0);
    let answer = fleet.request(80).send(near.address());
    assert_eq!((answer.status, answer.slug().as_deref()), (503, Some("device-offline")));
    for audit in [far.audit, fleet.site.audit()] {
        assert!(audit.has(|event| event["cause"] == "loop"), "{:?}", audit.events());
    }
    // A client cannot make one up.
    let device = Device::echo(ALL_V4);
    let request = fleet.site.request(&device).header("Sluicegate-Hops: node-a, node-b, node-c");
    request.send(near.address()).opened();
}

/// A node's address for peers, once it has written it to the store.
fn forward_address(site: &Site, name: &str) -> SocketAddr {
    let store = rusqlite::Connection::open(site.store_path()).unwrap();
    let sql = "SELECT forward_address FROM nodes WHERE name = ?1";
    let said = || store.query_row(sql, [name], |row| row.get::<_, String>(0)).ok();
    wait_for(said).unwrap().parse().unwrap()
}

#[test]
fn a_device_that_moved_meanwhile_is_looked_up_once_more() {
    let fleet = Fleet::new("");
    let moved = fleet.site.store_path();
    // Says no, but only once the device has come to node-a.
    let node = FakeNode::start(&fleet.authority, "node-b", move |_, count| {
        if count == 0 {
            let store = rusqlite::Connection::open(&moved).unwrap();
            store.execute("UPDATE devices SET node = 'node-a' WHERE uuid = ?1", [FAR]).unwrap();
            std::thread::sleep(Duration::from_secs(1));
        }
        b"HTTP/1.1 503 Device Offline\r\nSluicegate-Reason: device-offline\r\n\r\n".to_vec()
    });
    fleet.pretend("node-b", node.address);
    let (near, device) = (fleet.start(), Device::echo(ALL_V4));
    fleet.wait_for_nodes(&near, 2.0);
    let mut tunnel = fleet.request(device.port()).send(near.address()).opened();
    tunnel.write_all(b"x").unwrap();
    tunnel.read_exact(&mut [0]).unwrap();
    let store = rusqlite::Connection::open(fleet.site.store_path()).unwrap();
    store.execute("UPDATE devices SET node = 'node-b' WHERE uuid = ?1", [FAR]).unwrap();
    // Once, and not for ever.
    let message = wait_for(|| Some(fleet.refusal(&near)).filter(|refusal| refusal.2 == "refused-by-node"));
    assert_eq!(message.unwrap().0, 503);
}

#[test]
fn a_device_in_transit_is_looked_up_again_and_nobody_sees_a_loop() {
    for refusal in [
        "HTTP/1.1 508 Loop Detected\r\nSluicegate-Reason: loop\r\n\r\n",
        "HTTP/1.1 503 Device Offline\r\nSluicegate-Reason: device-offline\r\n\r\n",
    ] {
        let fleet = Fleet::new("");
        let node = FakeNode::start(&fleet.authority, "node-b", move |_, _| refusal.as_bytes().to_vec());
        fleet.pretend("node-b", node.address);
        let (near, device) = (fleet.start(), Device::echo(ALL_V4));
        fleet.wait_for_nodes(&near, 2.0);
        let store = fleet.site.store_path();
        let arrives = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(1_000));
            let store = rusqlite::Connection::open(store).unwrap();
            store.execute("UPDATE devices SET node = 'node-a' WHERE uuid = ?1", [FAR]).unwrap();
        });
        fleet.request(device.port()).send(near.address()).opened();
        arrives.join().unwrap();
    }
}

#[test]
fn a_peer_without_a_heartbeat_is_asked_all_the_same() {
    let fleet = Fleet::new("");
    let node = FakeNode::start(&fleet.authority, "node-b", |_, _| {
        b"HTTP/1.1 200 Connection Established\r\n\r\n".to_vec()
    });
    fleet.pretend("node-b", node.address);
    let store = rusqlite::Connection::open(fleet.site.store_path()).unwrap();
    store.execute("UPDATE nodes SET heartbeat_at = unixepoch() * 1000 - 3600000", []).unwrap();
    let near = fleet.start();
    assert!(near.metric_becomes("sluicegate_nodes{state=\"stale\"}", |stale| stale == 1.0));
    fleet.request(22).send(near.address()).opened();
    // One that is dead costs its client a second, and not more.
    let silent = Device::silent();
    store
        .execute(
            "UPDATE nodes SET forward_address = ?1 WHERE name = 'node-b'",
            [SocketAddr::from((V4, silent.port)).to_string()],
        )
        .unwrap();
    std::thread::sleep(Duration::from_millis(300));
    let began = std::time::Instant::now();
    assert_eq!(fleet.refusal(&near), (503, "device-offline".to_owned(), "node-stale".to_owned()));
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
}

#[test]
fn a_peer_that_hangs_is_noticed_once_and_asked_again_by_one_request_at_a_time() {
    let fleet = Fleet::new("");
    let hanging = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = hanging.local_addr().unwrap();
    fleet.pretend("node-b", address);
    let near = fleet.start();
    fleet.wait_for_nodes(&near, 2.0);
    let began = std::time::Instant::now();
    let answers: Vec<_> = std::thread::scope(|scope| {
        let asking: Vec<_> =
            (0..20).map(|_| scope.spawn(|| fleet.request(80).send(near.address()).status)).collect();
        asking.into_iter().map(|asked| asked.join().unwrap()).collect()
    });
    assert!(answers.iter().all(|status| *status == 504), "{answers:?}");
    assert!(
        began.elapsed() < Duration::from_secs(5),
        "not the whole of timeouts.forward: {:?}",
        began.elapsed()
    );
    assert!(near.metric_becomes("sluicegate_nodes_hanging", |hanging| hanging == 1.0));
    let began = std::time::Instant::now();
    assert_eq!(fleet.refusal(&near).2, "node-hangs");
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    // It comes to itself.
    let _node = FakeNode::start_on(hanging, &fleet.authority, "node-b", |_, _| {
        b"HTTP/1.1 200 Connection Established\r\n\r\n".to_vec()
    });
    let opens = || (fleet.request(80).send(near.address()).status == 200).then_some(());
    assert!(wait_for(opens).is_some(), "{}", near.log());
    assert!(near.logs("node-b answers again"));
    assert_eq!(near.metric("sluicegate_nodes_hanging"), Some(0.0));
}

#[test]
fn a_node_that_is_refused_or_in_another_network_is_no_peer_from_the_reload_on() {
    let mut fleet = Fleet::new("");
    let (near, far, device) = (fleet.start(), fleet.node("node-b", None), Device::echo(ALL_V4));
    fleet.wait_for_nodes(&near, 2.0);
    fleet.request(device.port()).send(near.address()).opened();
    let forward = forward_address(&fleet.site, "node-a");
    let hands_over = |fleet: &Fleet| {
        let mut peer =
            TlsClient::trusting(&fleet.authority).showing(&fleet.authority.issue("node-b", &["node-b"]));
        let token = Token::new(fleet.site.token.as_bytes().to_vec());
        let request =
            PeerRequest { client: None, uuid: DEVICE, port: device.port(), token: Some(&token), hops: &[] };
        let mut stream = peer.connect(forward, "node-a").unwrap();
        ask_by_tls(&mut stream, &request.bytes()).unwrap()
    };
    assert!(hands_over(&fleet).starts_with("HTTP/1.1 200"), "{}", near.log());
    for keys in ["forward.refuse = ['node-b']", "forward = { refuse = [], allow = ['10.0.0.0/8'] }"] {
        fleet.site.configure(keys);
        fleet.site.cli(&["reload"]);
        assert_eq!(
            fleet.refusal(&near),
            (503, "device-offline".to_owned(), "node-refused".to_owned()),
            "{keys}"
        );
        let reply = hands_over(&fleet);
        assert!(reply.starts_with("HTTP/1.1 503 Authorization Unavailable"), "{keys}: {reply}");
    }
    fleet.site.configure("forward.allow = ['127.0.0.0/8']");
    fleet.site.cli(&["reload"]);
    fleet.request(device.port()).send(near.address()).opened();
    drop(far);
}

#[test]
fn no_connection_between_nodes_resumes_another_one() {
    let fleet = Fleet::new("");
    let near = fleet.start();
    fleet.wait_for_nodes(&near, 1.0);
    let forward = forward_address(&fleet.site, "node-a");
    let mut peer =
        TlsClient::trusting(&fleet.authority).showing(&fleet.authority.issue("node-b", &["node-b"]));
    for _ in 0..3 {
        let mut stream = peer.connect(forward, "node-a").unwrap();
        ask_by_tls(&mut stream, &sluicegate::wire::summary_request()).unwrap();
        assert_eq!(stream.conn.handshake_kind(), Some(rustls::HandshakeKind::Full));
    }
}

#[test]
fn later_requests_go_by_connections_that_are_there_already() {
    let fleet = Fleet::new("engine.threads = 1");
    let (near, far, device) = (fleet.start(), fleet.node("node-b", None), Device::echo(ALL_V4));
    fleet.wait_for_nodes(&near, 2.0);
    let open = || fleet.request(device.port()).send(near.address()).opened();
    let mut tunnels = vec![open()];
    let used = || near.metric("sluicegate_handover_spares_used_total").unwrap();
    assert!(
        wait_for(|| {
            tunnels.push(open());
            (used() >= 2.0).then_some(())
        })
        .is_some()
    );
    for tunnel in &mut tunnels {
        tunnel.write_all(b"x").unwrap();
        tunnel.read_exact(&mut [0]).unwrap();
    }
    // Nobody waits for those that are not used.
    drop(tunnels);
    let began = std::time::Instant::now();
    far.relay.signal(Signal::SIGTERM);
    let mut far = far;
    assert!(far.relay.wait().unwrap().success());
    assert!(began.elapsed() < Duration::from_secs(20), "a drain takes 30 s where something is left");
    assert!(!far.audit.events().iter().any(|event| event["event"] == "refusal"), "{:?}", far.audit.events());
}

#[test]
fn a_connection_that_was_there_and_fails_is_replaced_by_a_new_one() {
    let fleet = Fleet::new("engine.threads = 1");
    // Ends the connection of the second request without a word.
    let node = FakeNode::start(&fleet.authority, "node-b", |_, count| match count {
        1 => Vec::new(),
        _ => b"HTTP/1.1 200 Connection Established\r\n\r\n".to_vec(),
    });
    fleet.pretend("node-b", node.address);
    let near = fleet.start();
    fleet.wait_for_nodes(&near, 2.0);
    let ask = || fleet.request(22).send(near.address()).opened();
    let _first = ask();
    // Else the second would not go by one that is there, and be refused.
    assert!(wait_for(|| (node.secured.load(Ordering::Relaxed) >= 2).then_some(())).is_some());
    let _second = ask();
    assert_eq!(near.metric("sluicegate_handover_spares_used_total"), Some(1.0));
}

/// Answers of a node that is being restarted: it says so, or ends the connection without a word.
const RESTARTING: [&[u8]; 2] = [b"HTTP/1.1 503 Relay Draining\r\nSluicegate-Reason: draining\r\n\r\n", b""];

#[test]
fn a_node_that_is_being_restarted_is_asked_again() {
    for restarting in RESTARTING {
        let fleet = Fleet::new("forward.idle_connections = 0");
        let node = FakeNode::start(&fleet.authority, "node-b", move |_, count| match count {
            0 | 1 => restarting.to_vec(),
            _ => b"HTTP/1.1 200 Connection Established\r\n\r\n".to_vec(),
        });
        fleet.pretend("node-b", node.address);
        let near = fleet.start();
        fleet.wait_for_nodes(&near, 2.0);
        fleet.request(22).send(near.address()).opened();
        assert_eq!(near.metric("sluicegate_forward_retries_total"), Some(2.0));
    }
}

#[test]
fn a_node_that_does_not_come_back_is_given_up_after_timeouts_forward() {
    for (restarting, cause) in RESTARTING.into_iter().zip(["refused-by-node", "node-closed"]) {
        let fleet = Fleet::new("timeouts.forward = '1s'");
        let node = FakeNode::start(&fleet.authority, "node-b", move |_, _| restarting.to_vec());
        fleet.pretend("node-b", node.address);
        let near = fleet.start();
        fleet.wait_for_nodes(&near, 2.0);
        let began = std::time::Instant::now();
        let (status, _, found) = fleet.refusal(&near);
        assert_eq!((status, found.as_str()), (503, cause));
        assert!(began.elapsed() >= Duration::from_millis(300), "{:?}", began.elapsed());
        assert!(near.metric("sluicegate_forward_retries_total").unwrap() >= 2.0);
    }
}

#[test]
fn bytes_that_come_with_the_next_nodes_reply_are_not_lost() {
    let fleet = Fleet::new("");
    let node = FakeNode::start(&fleet.authority, "node-b", |_, _| {
        b"HTTP/1.1 200 Connection Established\r\n\r\nSSH-2.0-first".to_vec()
    });
    fleet.pretend("node-b", node.address);
    let near = fleet.start();
    fleet.wait_for_nodes(&near, 2.0);
    let mut tunnel = fleet.request(22).send(near.address()).opened();
    let mut first = [0; 13];
    tunnel.read_exact(&mut first).unwrap();
    assert_eq!(&first, b"SSH-2.0-first");
}

/// Takes requests as a node would, and answers what a test wants.
struct FakeNode {
    address: SocketAddr,
    /// Connections whose handshake is over.
    secured: Arc<AtomicUsize>,
}

impl FakeNode {
    /// `answer` is given the request for a tunnel and how many came before.
    fn start(
        authority: &Authority,
        name: &str,
        answer: impl Fn(&[u8], usize) -> Vec<u8> + Send + Sync + 'static,
    ) -> Self {
        Self::start_on(TcpListener::bind("127.0.0.1:0").unwrap(), authority, name, answer)
    }

    fn start_on(
        listener: TcpListener,
        authority: &Authority,
        name: &str,
        answer: impl Fn(&[u8], usize) -> Vec<u8> + Send + Sync + 'static,
    ) -> Self {
        let pair = authority.issue(name, &[name]);
        let certificate = CertificateDer::from_pem_slice(pair.certificate.as_bytes()).unwrap();
        let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .unwrap();
        let config = Arc::new(config);
        let address = listener.local_addr().unwrap();
        let (answer, requests) = (Arc::new(answer), Arc::new(AtomicUsize::new(0)));
        let secured = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&secured);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let connection = ServerConnection::new(Arc::clone(&config)).unwrap();
                let mut stream = StreamOwned::new(connection, stream.unwrap());
                let (answer, requests) = (Arc::clone(&answer), Arc::clone(&requests));
                let secured = Arc::clone(&counted);
                std::thread::spawn(move || {
                    while stream.conn.is_handshaking() {
                        if stream.conn.complete_io(&mut stream.sock).is_err() {
                            return;
                        }
                    }
                    secured.fetch_add(1, Ordering::Relaxed);
                    serve(stream, |request| {
                        // A node that starts asks for a summary, which this one has not.
                        if request.starts_with(b"GET /summary ") {
                            return b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_vec();
                        }
                        answer(request, requests.fetch_add(1, Ordering::Relaxed))
                    })
                });
            }
        });
        Self { address, secured }
    }
}

/// Answers one request, and keeps the connection where it has something to say.
fn serve(mut stream: StreamOwned<ServerConnection, TcpStream>, answer: impl Fn(&[u8]) -> Vec<u8>) {
    // The fixed part of a PROXY header ends with the number of bytes that follow.
    let mut proxy_header = [0; 16];
    if stream.read_exact(&mut proxy_header).is_err() {
        return;
    }
    let [.., high, low] = proxy_header;
    let mut addresses = vec![0; usize::from(u16::from_be_bytes([high, low]))];
    if stream.read_exact(&mut addresses).is_err() {
        return;
    }
    let mut request = Vec::new();
    let mut byte = [0];
    while !request.ends_with(b"\r\n\r\n") {
        if !matches!(stream.read(&mut byte), Ok(1)) {
            return;
        }
        request.push(byte[0]);
    }
    let answer = answer(&request);
    let _asker_gone = stream.write_all(&answer);
    if !answer.is_empty() {
        let _end = stream.read(&mut byte);
    }
}
