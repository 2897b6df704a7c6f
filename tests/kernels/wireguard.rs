//! Devices are dialled where their WireGuard peers are while their handshakes are young: of a real WireGuard, the
//! kernel's where it has one; and of a stand-in for `wg`, where the age of a handshake is what matters.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::support::{
    DEVICE, Device, Namespace, OTHER_DEVICE, Relay, Request, Running, Site, V4, assert_done, output_of,
    replace, root_or_skip, tools_or_skip, wait_for,
};

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
    // Everything answers on this machine, so that none that is lost is believed gone beyond the budget.
    site.configure("authz.guard.budgets.unlocated = { share = 1, rows = 2 }");
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
        relay.logs("dump` failed: exit status: 1; does the relay have the capability for it?"),
        "{}",
        relay.log()
    );
    assert_eq!(status(&relay, DEVICE), 200);
    print(&dump, &[]);
    assert!(becomes(DEVICE, 503), "{}", relay.log());
    assert!(!relay.log().contains("secret"), "no key is shown");
}

/// One end of a WireGuard, in a namespace of its own.
struct End {
    namespace: Namespace,
    interface: String,
    public_key: String,
    /// The user-space WireGuard; only where the kernel has none.
    _program: Option<Running>,
}

impl End {
    /// Named for this process, since wireguard-go's sockets are in one folder for the whole machine.
    fn new(name: &str, folder: &Path) -> Self {
        let (namespace, interface) = (Namespace::new(), format!("{name}{}", std::process::id()));
        let program = (!has_kernels(&namespace, &interface)).then(|| {
            let mut program = Command::new("wireguard-go");
            program.args(["--foreground", &interface]).stdout(Stdio::null()).stderr(Stdio::null());
            namespace.enter(|| Running::start(&mut program))
        });
        let key_file = folder.join(name);
        let private_key = output_of(Command::new("wg").arg("genkey"), b"").stdout;
        std::fs::write(&key_file, &private_key).unwrap();
        let public_key = output_of(Command::new("wg").arg("pubkey"), &private_key).stdout;
        let public_key = String::from_utf8(public_key).unwrap().trim().to_owned();
        let end = Self { namespace, interface, public_key, _program: program };
        let settings = format!("private-key {} listen-port 51820", key_file.display());
        // It is there once its program is.
        assert!(
            wait_for(|| end.wg(&settings).status.success().then_some(())).is_some(),
            "{:?}",
            end.wg(&settings)
        );
        end
    }

    /// `wg set` with this end's interface.
    fn wg(&self, arguments: &str) -> Output {
        let mut wg = Command::new("wg");
        wg.args(["set", &self.interface]).args(arguments.split_whitespace());
        self.namespace.enter(|| output_of(&mut wg, b""))
    }

    fn address(&self, inside: &str) {
        self.namespace.ip(&format!("address add {inside}/24 dev {}", self.interface));
        self.namespace.ip(&format!("link set {} up", self.interface));
    }
}

/// Has the kernel make it, where it has a WireGuard.
fn has_kernels(namespace: &Namespace, interface: &str) -> bool {
    let mut add = Command::new("ip");
    add.args(["link", "add", interface, "type", "wireguard"]);
    namespace.enter(|| output_of(&mut add, b"")).status.success()
}

fn wireguard_or_skip(name: &str) -> bool {
    root_or_skip(name)
        && tools_or_skip(name, &["ip", "wg"])
        && (has_kernels(&Namespace::new(), "wireguard") || tools_or_skip(name, &["wireguard-go"]))
}

#[test]
fn a_device_behind_a_real_wireguard_is_reached_from_its_handshake_on() {
    if !wireguard_or_skip("a_device_behind_a_real_wireguard_is_reached_from_its_handshake_on") {
        return;
    }
    let mut site = Site::new("");
    site.cli(&["device", "add", OTHER_DEVICE]);
    let [node, device] = ["wgn", "wgd"].map(|name| End::new(name, site.folder()));
    let cable = format!("link add cable type veth peer name cable netns {}", device.namespace.id());
    node.namespace.ip(&cable);
    for (end, outside, inside) in [(&node, "192.0.2.1", "10.9.0.1"), (&device, "192.0.2.2", "10.9.0.2")] {
        end.namespace.ip(&format!("address add {outside}/24 dev cable"));
        end.namespace.ip("link set cable up");
        end.address(inside);
    }
    assert_done(&node.wg(&format!("peer {} allowed-ips 10.9.0.2/32", device.public_key)));
    let peers = site.folder().join("peers");
    std::fs::write(&peers, format!("{} {OTHER_DEVICE}\n", device.public_key)).unwrap();
    // An emulated machine takes seconds to look at a handshake, and the next one comes two minutes later.
    site.configure(&format!(
        "vpn = {{ addresses = [\"wireguard:{}\"], wireguard_peers = {peers:?}, wireguard_max_age = \"15s\", \
         interface = \"{}\", allow = [\"10.9.0.0/24\"] }}",
        node.interface, node.interface
    ));
    let echo = device.namespace.enter(|| Device::echo("10.9.0.2".parse().unwrap()));
    let request = || Request::to(OTHER_DEVICE, echo.port()).bearer(&site.token);
    node.namespace.enter(|| {
        let relay = site.start();
        let becomes = |wanted| wait_for(|| (request().send(relay.address()).status == wanted).then_some(()));
        let comes = || {
            let public_key = &node.public_key;
            let peer = format!("peer {public_key} endpoint 192.0.2.1:51820 allowed-ips 10.9.0.1/32");
            assert_done(&device.wg(&format!("{peer} persistent-keepalive 1")));
        };
        assert_eq!(request().send(relay.address()).slug().as_deref(), Some("device-offline"));
        comes();
        assert!(becomes(200).is_some(), "{}", relay.log());

        assert_done(&device.wg(&format!("peer {} remove", node.public_key)));
        assert!(becomes(503).is_some(), "its handshake grows old: {}", relay.log());
        comes();
        assert!(becomes(200).is_some(), "{}", relay.log());
        let mut tunnel = request().send(relay.address()).opened();
        tunnel.write_all(b"through WireGuard").unwrap();
        let mut back = [0; 17];
        tunnel.read_exact(&mut back).unwrap();
        assert_eq!(&back, b"through WireGuard");
    });
}
