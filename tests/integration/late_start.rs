//! What comes later than the relay is waited for: an address, the VPN's interface, the store.

use std::net::TcpListener;
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::signal::kill;
use nix::unistd::Pid;

use crate::support::{
    ALL_V4, Cluster, DEVICE, Device, Namespace, Request, Signal, Site, V4, root_or_skip, tools_or_skip,
    wait_for,
};

/// How often `text` is in the log.
fn times(log: &str, text: &str) -> usize {
    log.matches(text).count()
}

#[test]
fn a_store_that_is_away_is_waited_for() {
    let Some(mut cluster) = Cluster::start() else { return };
    let database = cluster.database();
    let site = Site::on_postgres(&database, "timeouts.lame_duck = '1h'");
    drop(database);
    cluster.stop();
    let (mut relay, device) = (site.start(), Device::echo(V4));
    let ready = relay.admin_get("/readyz");
    let expected = "no-snapshot: the store cannot be read, and no state is kept from before\n";
    assert!(ready.starts_with("HTTP/1.1 503 ") && ready.ends_with(expected), "{ready}");
    let refused = site.ask(&relay, device.port());
    assert_eq!((refused.status, refused.slug().as_deref()), (503, Some("undecided")));
    assert!(relay.logs("waiting for the store: "), "{}", relay.log());
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(times(&relay.log(), "waiting for the store: "), 1, "{}", relay.log());
    // Nobody waits for a node that serves nothing.
    let began = Instant::now();
    relay.signal(Signal::SIGTERM);
    assert_eq!(relay.wait().and_then(|status| status.code()), Some(0));
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());

    let relay = site.start();
    cluster.run();
    assert!(wait_for(|| (site.ask(&relay, device.port()).status == 200).then_some(())).is_some());
    assert!(relay.admin_comes_to_say("/readyz", "\r\n\r\nready\n"));
    assert!(relay.logs("everything is there that this node has waited for"));
}

#[test]
fn a_signal_ends_a_start_that_hangs() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut site = Site::new("");
    let url = format!("postgres://relay@{}/rights", silent.local_addr().unwrap());
    site.configure(&format!("store.url = '{url}'"));
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut relay = site.command(&["run"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        // It waits for the first byte of the store.
        let _asked = silent.accept().unwrap();
        let began = Instant::now();
        kill(Pid::from_raw(relay.id() as i32), signal).unwrap();
        let ended = wait_for(|| relay.try_wait().unwrap()).unwrap();
        assert_eq!(ended.code(), Some(0));
        assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    }
}

#[test]
fn an_address_that_comes_later_is_waited_for() {
    let name = "an_address_that_comes_later_is_waited_for";
    if !root_or_skip(name) || !tools_or_skip(name, &["ip"]) {
        return;
    }
    let machine = Namespace::new();
    for (address, command) in [
        ("192.0.2.77", "addr add 192.0.2.77/32 dev lo"),
        ("2001:db8::77", "-6 addr add 2001:db8::77/128 dev lo nodad"),
    ] {
        let listen = if address.contains(':') { format!("[{address}]") } else { address.to_owned() };
        let fragment = format!(
            "listen = [{{ address = '{listen}:0' }}]\nadmin = {{ health_address = '{listen}:0' }}\n\
             vpn.allow = ['127.0.0.0/8']"
        );
        let site = Site::new(&fragment);
        machine.enter(|| {
            let (relay, device) = (site.start(), Device::echo(ALL_V4));
            let ready = relay.admin_get("/readyz");
            let expected = format!("waiting for {address}: no address of this machine yet\n");
            assert!(ready.starts_with("HTTP/1.1 503 ") && ready.ends_with(&expected), "{ready}");
            let waits = format!("waiting for {address}, which is no address of this machine yet");
            assert!(relay.logs(&waits), "{}", relay.log());
            assert_eq!(site.cli(&["status"])["readiness"], "unable");
            machine.ip(command);
            let request = Request::to(DEVICE, device.port()).bearer(&site.token);
            assert_eq!(request.send(relay.address()).status, 200);
            assert!(relay.admin_comes_to_say("/readyz", "\r\n\r\nready\n"));
            assert!(relay.logs("everything is there that this node has waited for"));
            assert_eq!(times(&relay.log(), &waits), 1);
        });
    }
}

#[test]
fn one_listener_of_two_is_enough_to_be_ready() {
    let name = "one_listener_of_two_is_enough_to_be_ready";
    if !root_or_skip(name) || !tools_or_skip(name, &["ip"]) {
        return;
    }
    let machine = Namespace::new();
    let site = Site::new("listen = [{ address = '127.0.0.1:0' }, { address = '192.0.2.78:0' }]");
    machine.enter(|| {
        let relay = site.start();
        let ready = relay.admin_get("/readyz");
        assert!(
            ready.starts_with("HTTP/1.1 200 ") && ready.contains("ready, but waiting for 192.0.2.78"),
            "{ready}"
        );
    });
}

#[test]
fn a_vpn_interface_that_comes_later_is_waited_for() {
    let name = "a_vpn_interface_that_comes_later_is_waited_for";
    if !root_or_skip(name) || !tools_or_skip(name, &["ip"]) {
        return;
    }
    let machine = Namespace::new();
    let site = Site::new("vpn.interface = 'late0'");
    let check = site.command(&["check"]).output().unwrap();
    let said = String::from_utf8_lossy(&check.stderr).into_owned();
    assert_eq!(check.status.code(), Some(0), "{said}");
    assert!(said.contains("warning: there is no network interface `late0`"), "{said}");
    machine.enter(|| {
        let relay = site.start();
        let ready = relay.admin_get("/readyz");
        assert!(ready.starts_with("HTTP/1.1 503 "), "{ready}");
        assert!(ready.ends_with("the network interface of vpn.interface is not there yet\n"), "{ready}");
        assert!(relay.logs("waiting for the network interface late0 of vpn.interface"));
        machine.ip("link add late0 type veth peer name late1");
        assert!(relay.admin_comes_to_say("/readyz", "\r\n\r\nready\n"));
    });
}

#[test]
fn a_vpn_table_that_comes_later_is_waited_for() {
    let mut site = Site::new("");
    let table = site.folder().join("devices");
    site.configure(&format!("vpn.addresses = ['file:{}']", table.display()));
    let (relay, device) = (site.start(), Device::echo(V4));
    let ready = relay.admin_get("/readyz");
    assert!(ready.starts_with("HTTP/1.1 503 ") && ready.contains("no source in vpn.addresses"), "{ready}");
    std::fs::write(&table, format!("{DEVICE} 127.0.0.1\n")).unwrap();
    assert!(wait_for(|| (site.ask(&relay, device.port()).status == 200).then_some(())).is_some());
    assert!(relay.admin_comes_to_say("/readyz", "\r\n\r\nready\n"));
}
