//! All devices connect to the VPN again at once: the hook writes each, none is lost, and revocations do not wait.

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use crate::support::{
    BINARY, DEVICE, Device, End, PATIENCE, Request, Site, V4, assert_done, receive, replace, wait_for,
};

const DEVICES: usize = 2_000;

fn uuid(number: usize) -> String {
    format!("{number:032x}")
}

/// The address of a device in one of the two halves of the network.
fn address(half: usize, number: usize) -> String {
    format!("127.{}.{}.{}", half + 1, number / 250, number % 250 + 1)
}

/// A file that has every device in `half`, and [`DEVICE`] where it always is.
fn table(half: usize) -> String {
    let lines = (0..DEVICES).map(|number| format!("{} {}\n", uuid(number), address(half, number)));
    lines.chain([format!("{DEVICE} 127.0.0.1\n")]).collect()
}

/// The hook as OpenVPN calls it when a client connects.
fn hook(file: &Path, number: usize) -> Command {
    let mut command = Command::new(BINARY);
    command.args(["vpn", "openvpn-hook", "--addresses"]).arg(file).args(["--patience", "60s", "/tmp/cc.tmp"]);
    command.env("script_type", "client-connect").env("common_name", uuid(number));
    command.env("ifconfig_pool_remote_ip", address(0, number)).stdin(Stdio::null());
    command
}

#[test]
fn two_thousand_devices_that_move_again_and_again_delay_no_revocation() {
    let mut site = Site::new("");
    let store = rusqlite::Connection::open(site.store_path()).unwrap();
    store.execute_batch("BEGIN").unwrap();
    for number in 0..DEVICES {
        store.execute("INSERT INTO devices (uuid, created_at) VALUES (?1, 0)", [uuid(number)]).unwrap();
    }
    store.execute_batch("COMMIT").unwrap();
    let file = site.folder().join("addresses");
    std::fs::write(&file, table(0)).unwrap();
    site.configure(&format!("vpn.addresses = [\"file:{}\"]", file.display()));
    let relay = site.start();
    let device = Device::echo(V4);
    let mut tunnel = site.ask(&relay, device.port()).opened();
    tunnel.write_all(b"alive").unwrap();
    tunnel.read_exact(&mut [0; 5]).unwrap();

    let (is_over, written) = (AtomicBool::new(false), AtomicUsize::new(0));
    let (before, end, during) = std::thread::scope(|scope| {
        scope.spawn(|| {
            let began = Instant::now();
            while !is_over.load(Ordering::Relaxed) && began.elapsed() < 2 * PATIENCE {
                replace(&file, &table(written.fetch_add(1, Ordering::Relaxed) % 2));
            }
        });
        let storming = |more| {
            let wanted = written.load(Ordering::Relaxed) + more;
            wait_for(|| (written.load(Ordering::Relaxed) >= wanted).then_some(()))
        };
        let before = storming(10);
        site.cli(&["token", "revoke", &site.credential]);
        let (_, end) = receive(&mut tunnel);
        // It goes on: the revocation did not wait for its end.
        let during = storming(10);
        is_over.store(true, Ordering::Relaxed);
        (before, end, during)
    });
    assert!(before.is_some() && during.is_some());
    assert_eq!(end, End::Reset, "{}", relay.log());

    let token = site.cli(&["token", "issue", "alice"])["token"].as_str().unwrap().to_owned();
    replace(
        &file,
        &table(0).replace(&address(0, 7), "127.0.0.1").replace(&format!("{DEVICE} 127.0.0.1\n"), ""),
    );
    let moved = || Request::to(&uuid(7), device.port()).bearer(&token).send(relay.address()).status == 200;
    assert!(wait_for(|| moved().then_some(())).is_some(), "{}", relay.log());
}

#[test]
fn hooks_that_run_at_once_lose_no_line_of_each_other() {
    const AT_ONCE: usize = 4;
    const EACH: usize = 25;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("addresses");
    std::thread::scope(|scope| {
        for first in 0..AT_ONCE {
            let file = &file;
            scope.spawn(move || {
                for number in 0..EACH {
                    assert_done(&hook(file, first * EACH + number).output().unwrap());
                }
            });
        }
    });
    let mut lines: Vec<String> = std::fs::read_to_string(&file).unwrap().lines().map(str::to_owned).collect();
    lines.sort();
    let all = (0..AT_ONCE * EACH).map(|number| format!("{} {}", uuid(number), address(0, number)));
    assert_eq!(lines, all.collect::<Vec<_>>());
}

#[test]
fn a_hook_that_cannot_write_says_where_and_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let output = hook(&folder.path().join("missing/addresses"), 1).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(message.contains("missing/addresses.lock cannot be changed"), "{message}");
    assert!(message.contains("is its folder there?"), "{message}");
}
