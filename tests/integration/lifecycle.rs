//! Starting, draining, dying and starting again, and what a broken store does to each.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::{Content, Device, End, Relay, Request, Signal, Site, V4, receive, wait_for};

/// True if new clients are refused because the node drains.
fn drains(site: &Site, relay: &Relay) -> bool {
    wait_for(|| (site.ask(relay, 1).slug().as_deref() == Some("draining")).then_some(())).is_some()
}

#[test]
fn a_draining_relay_lets_a_tunnel_finish_and_exits_0() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let site = Site::new("timeouts.drain = '1h'");
        let mut relay = site.start();
        let device = Device::listening(V4);
        let client = site.request(&device).send(relay.address()).opened();
        let mut device = device.accept();
        let (before, after) = (Content::new(1, 5 << 20), Content::new(2, 5 << 20));
        thread::scope(|scope| {
            let reader = scope.spawn(|| receive(&mut &client));
            before.send(&mut device).unwrap();
            relay.signal(signal);
            assert!(drains(&site, &relay));
            after.send(&mut device).unwrap();
            device.shutdown(Shutdown::Write).unwrap();
            let whole = [before.to_vec(), after.to_vec()].concat();
            assert_eq!(reader.join().unwrap(), (Content::digest_of(&whole), End::Fin));
        });
        assert!(relay.is_running(), "one direction is still open");
        drop(client);
        drop(device);
        assert_eq!(relay.wait().and_then(|status| status.code()), Some(0));
        let ended = site.audit().wait_for(|event| event["event"] == "session-end");
        assert_eq!(ended["cause"], "closed", "{ended}");
    }
}

#[test]
fn a_drain_ends_after_its_time_with_what_is_left() {
    let site = Site::new("timeouts.drain = '500ms'");
    let mut relay = site.start();
    let device = Device::listening(V4);
    let mut client = site.request(&device).send(relay.address()).opened();
    let mut device = device.accept();
    let began = Instant::now();
    relay.signal(Signal::SIGTERM);
    assert_eq!(receive(&mut client).1, End::Reset, "neither side takes it for a proper end");
    assert!(began.elapsed() >= Duration::from_millis(450), "ended after {:?} already", began.elapsed());
    assert_eq!(receive(&mut device).1, End::Reset);
    assert_eq!(relay.wait().and_then(|status| status.code()), Some(0));
    assert_eq!(site.audit().wait_for_events(1)[0]["cause"], "node-stopped");
}

#[test]
fn a_second_signal_ends_a_drain_at_once() {
    let site = Site::new("timeouts.drain = '1h'");
    let mut relay = site.start();
    let device = Device::echo(V4);
    let mut client = site.request(&device).send(relay.address()).opened();
    relay.signal(Signal::SIGTERM);
    assert!(drains(&site, &relay));
    relay.signal(Signal::SIGTERM);
    assert_eq!(receive(&mut client).1, End::Reset);
    assert_eq!(relay.wait().and_then(|status| status.code()), Some(0));
}

#[test]
fn a_relay_without_sessions_ends_as_soon_as_it_is_told_to() {
    let site = Site::new("timeouts.drain = '1h'");
    let mut relay = site.start();
    relay.signal(Signal::SIGTERM);
    assert_eq!(relay.wait().and_then(|status| status.code()), Some(0));
}

/// Sends and gets back a word until the tunnel breaks.
fn chat(mut tunnel: TcpStream) -> u64 {
    let mut words = 0;
    while tunnel.write_all(b"word").and_then(|()| tunnel.read_exact(&mut [0; 4])).is_ok() {
        words += 1;
    }
    words
}

#[test]
fn a_relay_that_is_killed_in_traffic_serves_again_on_its_port_once_it_is_back() {
    let mut site = Site::new("timeouts.drain = '100ms'");
    let mut relay = site.start();
    let device = Device::echo(V4);
    let address = relay.address();
    site.configure(&format!("listen = [{{ address = '{address}' }}]"));
    for signal in [Signal::SIGKILL, Signal::SIGTERM, Signal::SIGKILL] {
        let tunnels: Vec<_> = (0..20).map(|_| site.ask(&relay, device.port()).opened()).collect();
        thread::scope(|scope| {
            let chats: Vec<_> = tunnels.into_iter().map(|tunnel| scope.spawn(|| chat(tunnel))).collect();
            thread::sleep(Duration::from_millis(100));
            relay.signal(signal);
            let code = relay.wait().expect("it ends").code();
            assert_eq!(code, (signal == Signal::SIGTERM).then_some(0));
            let words: u64 = chats.into_iter().map(|chat| chat.join().unwrap()).sum();
            assert!(words > 0, "there was no traffic");
        });
        relay = site.start();
        assert_eq!(relay.address(), address);
        assert_eq!(chat_once(&site, &relay, &device), *b"word");
    }
}

fn chat_once(site: &Site, relay: &Relay, device: &Device) -> [u8; 4] {
    let mut tunnel = site.request(device).send(relay.address()).opened();
    tunnel.write_all(b"word").unwrap();
    let mut echoed = [0; 4];
    tunnel.read_exact(&mut echoed).unwrap();
    echoed
}

#[test]
fn an_address_that_is_taken_is_told_and_not_shared_with_whoever_has_it() {
    let mut site = Site::new("");
    let relay = site.start();
    site.configure(&format!("listen = [{{ address = '{}' }}]", relay.address()));
    let (code, message) = site.start_in_vain().expect("it gives up");
    assert_eq!(code, Some(1));
    assert!(
        message.contains(&relay.address().to_string()) && message.contains("another process"),
        "{message}"
    );
}

/// Asserts that a relay refuses to start with its store, in one line that has the `wanted` parts and a remedy.
#[track_caller]
fn assert_told(site: &Site, wanted: &[&str]) {
    let (code, message) = site.start_in_vain().expect("it gives up");
    assert_eq!(code, Some(1), "{message}");
    let errors: Vec<_> = message.lines().filter(|line| line.starts_with("sluicegate: ")).collect();
    assert_eq!(errors.len(), 1, "{message}");
    for text in wanted {
        assert!(errors[0].contains(text), "`{text}` is missing: {}", errors[0]);
    }
}

#[test]
fn a_store_that_is_not_there_is_told_at_start() {
    let site = Site::new("");
    std::fs::remove_file(site.store_path()).unwrap();
    assert_told(&site, &["store.db", "does not exist", "sluicegate store init"]);
}

#[test]
fn a_store_that_is_damaged_is_told_at_start() {
    let site = Site::new("");
    std::fs::write(site.store_path(), vec![0x5a; 64 * 1024]).unwrap();
    assert_told(&site, &["store.db", "damaged", "backup"]);
}

#[test]
fn a_store_of_another_version_is_told_at_start() {
    let site = Site::new("");
    let store = rusqlite::Connection::open(site.store_path()).unwrap();
    store.pragma_update(None, "user_version", 9999).unwrap();
    drop(store);
    assert_told(&site, &["store.db", "9999"]);
}

/// Holds the store so that nobody else can even read it.
fn lock(site: &Site) -> rusqlite::Connection {
    let store = rusqlite::Connection::open(site.store_path()).unwrap();
    store.busy_timeout(crate::support::PATIENCE).unwrap();
    store.pragma_update(None, "locking_mode", "EXCLUSIVE").unwrap();
    store.execute_batch("BEGIN EXCLUSIVE").unwrap();
    store
}

#[test]
fn a_store_that_another_process_has_locked_is_waited_for() {
    let site = Site::new("timeouts.lame_duck = '1h'");
    let locked = lock(&site);
    let (mut relay, device) = (site.start(), Device::echo(V4));
    let ready = relay.admin_get("/readyz");
    let expected = "no-snapshot: the store cannot be read, and no state is kept from before\n";
    assert!(ready.starts_with("HTTP/1.1 503 ") && ready.ends_with(expected), "{ready}");
    assert_eq!(site.ask(&relay, device.port()).slug().as_deref(), Some("undecided"));
    assert!(relay.logs("waiting for the store: "), "{}", relay.log());
    // Nobody waits for a node that serves nothing.
    relay.signal(Signal::SIGTERM);
    assert_eq!(relay.wait().and_then(|status| status.code()), Some(0));

    let relay = site.start();
    drop(locked);
    assert!(wait_for(|| (site.ask(&relay, device.port()).status == 200).then_some(())).is_some());
    assert!(relay.admin_comes_to_say("/readyz", "\r\n\r\nready\n"));
    assert!(relay.logs("everything is there that this node has waited for"));
}

/// The relay goes on deciding by what it read last, says so, and takes up changes when the store is back.
fn outlives(harm: impl FnOnce(&Site), mend: impl FnOnce(&Site)) {
    let site = Site::new("");
    let relay = site.start();
    let device = Device::echo(V4);
    let mut tunnel = site.ask(&relay, device.port()).opened();
    harm(&site);
    assert!(relay.metric_becomes("sluicegate_store_reachable", |reachable| reachable == 0.0));
    assert!(relay.logs("store.db"), "the log says what is wrong");

    assert_eq!(chat_once(&site, &relay, &device), *b"word", "what was allowed is");
    let unknown = "f".repeat(32);
    let refused = Request::to(&unknown, 1).bearer(&site.token).send(relay.address());
    assert_eq!(refused.status, 403, "what was refused is");
    tunnel.write_all(b"word").unwrap();
    tunnel.read_exact(&mut [0; 4]).unwrap();

    mend(&site);
    assert!(relay.metric_becomes("sluicegate_store_reachable", |reachable| reachable == 1.0));
    site.cli(&["token", "revoke", &site.credential]);
    assert_eq!(receive(&mut tunnel).1, End::Reset, "and a revocation counts again");
}

#[test]
fn a_store_that_goes_missing_leaves_the_last_snapshot_in_force() {
    let aside = |site: &Site| site.folder().join("aside");
    let files = ["store.db", "store.db-wal", "store.db-shm"];
    outlives(
        |site| {
            std::fs::create_dir(aside(site)).unwrap();
            for file in files {
                // The WAL's files come and go.
                let _absent = std::fs::rename(site.folder().join(file), aside(site).join(file));
            }
        },
        |site| {
            // The database last: whoever finds it finds its WAL.
            for file in files.into_iter().rev() {
                let _absent = std::fs::rename(aside(site).join(file), site.folder().join(file));
            }
        },
    );
}

#[test]
fn a_store_that_is_damaged_leaves_the_last_snapshot_in_force() {
    let kept = |site: &Site| site.folder().join("kept.db");
    outlives(
        |site| {
            let store = rusqlite::Connection::open(site.store_path()).unwrap();
            store.execute("VACUUM INTO ?1", [kept(site).to_str().unwrap()]).unwrap();
            drop(store);
            let damaged = site.folder().join("damaged.db");
            std::fs::write(&damaged, vec![0x5a; 64 * 1024]).unwrap();
            std::fs::rename(damaged, site.store_path()).unwrap();
            remove_wal(site);
        },
        |site| {
            std::fs::rename(kept(site), site.store_path()).unwrap();
            let store = rusqlite::Connection::open(site.store_path()).unwrap();
            store.pragma_update(None, "journal_mode", "WAL").unwrap();
        },
    );
}

fn remove_wal(site: &Site) {
    for file in ["store.db-wal", "store.db-shm"] {
        let _absent = std::fs::remove_file(site.folder().join(file));
    }
}
