//! Devices are dialled where their WireGuard peers are while their handshakes are young. A stand-in takes the place
//! of `wg`, which needs an interface.

mod support;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use support::{DEVICE, Device, OTHER_DEVICE, Relay, Request, Site, V4, replace, wait_for};

fn peer(key: &str, address: &str, age_s: u64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    format!("{key}\t(none)\t192.0.2.2:51820\t{address}/32\t{}\t1024\t2048\toff\n", now - age_s)
}

fn print(dump: &Path, peers: &[String]) {
    replace(dump, &format!("secret\tpublic\t51820\toff\n{}", peers.concat()));
}

#[test]
fn a_device_is_online_while_its_handshake_is_young_and_a_command_that_fails_takes_nothing_away() {
    let mut site = Site::new("");
    site.cli(&["device", "add", OTHER_DEVICE]);
    let [dump, peers, wg] = ["dump", "peers", "wg"].map(|name| site.folder().join(name));
    std::fs::write(&wg, format!("#!/bin/sh\n[ \"$*\" = \"show wg9 dump\" ] && cat {}\n", dump.display()))
        .unwrap();
    std::fs::set_permissions(&wg, std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::write(&peers, format!("keyA= {DEVICE}\nkeyB= {OTHER_DEVICE}\n")).unwrap();
    print(&dump, &[peer("keyA=", "127.0.0.1", 30), peer("keyB=", "127.0.0.2", 30)]);
    site.configure(&format!(
        "vpn = {{ addresses = [\"wireguard:wg9\"], wireguard_peers = {peers:?}, wireguard_command = {wg:?} }}"
    ));
    let relay = site.start();
    let device = Device::echo(V4);
    let status = |relay: &Relay, uuid: &str| {
        Request::to(uuid, device.port()).bearer(&site.token).send(relay.address()).status
    };
    let becomes = |uuid, wanted| wait_for(|| (status(&relay, uuid) == wanted).then_some(())).is_some();
    assert_eq!([DEVICE, OTHER_DEVICE].map(|uuid| status(&relay, uuid)), [200, 502], "{}", relay.log());

    print(&dump, &[peer("keyA=", "127.0.0.1", 30), peer("keyB=", "127.0.0.2", 200)]);
    assert!(becomes(OTHER_DEVICE, 503), "{}", relay.log());
    assert_eq!(status(&relay, DEVICE), 200);

    std::fs::remove_file(&dump).unwrap();
    assert!(relay.metric_becomes("sluicegate_vpn_addresses_stale_files", |sources| sources == 1.0));
    assert!(
        relay.logs("dump` failed: exit status: 1; does the relay have CAP_NET_ADMIN?"),
        "{}",
        relay.log()
    );
    assert_eq!(status(&relay, DEVICE), 200);
    print(&dump, &[]);
    assert!(becomes(DEVICE, 503), "{}", relay.log());
    assert!(!relay.log().contains("secret"), "no key is shown");
}
