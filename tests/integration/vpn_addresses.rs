//! `vpn.addresses`: devices are dialled where the first table that holds them says, or else the store, and a file that is wrong takes
//! no address away.

use std::path::PathBuf;
use std::time::Duration;

use crate::support::{
    DEVICE, Device, OTHER_DEVICE, Relay, Request, Site, V4, assert_done, replace, wait_for,
};

const PORT_CLOSED: u16 = 502;
const OFFLINE: u16 = 503;

/// A site with the devices [`DEVICE`], at 127.0.0.1 as its store says, and [`OTHER_DEVICE`], of which it says nothing;
/// and a file.
struct World {
    site: Site,
    file: PathBuf,
    device: Device,
}

impl World {
    /// Makes a scene with `sources` as `vpn.addresses`; `FILE` in it is the file.
    fn new(sources: &str, text: &str) -> Self {
        let mut site = Site::new("");
        site.cli(&["device", "add", OTHER_DEVICE]);
        let file = site.folder().join("addresses");
        std::fs::write(&file, text).unwrap();
        let sources = sources.replace("FILE", &format!("file:{}", file.display()));
        site.configure(&format!("vpn.addresses = {sources}"));
        Self { site, file, device: Device::echo(V4) }
    }

    fn status(&self, relay: &Relay, uuid: &str) -> u16 {
        Request::to(uuid, self.device.port()).bearer(&self.site.token).send(relay.address()).status
    }

    fn by_hand(&self, statements: &str) {
        let store = rusqlite::Connection::open(self.site.store_path()).unwrap();
        store.busy_timeout(crate::support::PATIENCE).unwrap();
        store.execute_batch(statements).unwrap();
    }

    fn becomes(&self, relay: &Relay, uuid: &str, wanted: u16) -> bool {
        wait_for(|| (self.status(relay, uuid) == wanted).then_some(())).is_some()
    }
}

#[test]
fn a_table_of_this_node_comes_before_the_store_wherever_it_is_listed() {
    let text = format!("{DEVICE} 127.0.0.2\n{OTHER_DEVICE} 127.0.0.1\n");
    for (sources, expected) in [
        (r#"["store"]"#, [200, OFFLINE]),
        (r#"["store", "FILE"]"#, [PORT_CLOSED, 200]),
        (r#"["FILE", "store"]"#, [PORT_CLOSED, 200]),
        (r#"["FILE"]"#, [PORT_CLOSED, 200]),
    ] {
        let world = World::new(sources, &text);
        let relay = world.site.start();
        assert_eq!([DEVICE, OTHER_DEVICE].map(|uuid| world.status(&relay, uuid)), expected, "{sources}");
    }
}

#[test]
fn a_file_is_followed_whether_it_is_replaced_or_written_over() {
    let world = World::new(r#"["FILE"]"#, &format!("{DEVICE} 127.0.0.1\n"));
    let relay = world.site.start();
    assert_eq!([DEVICE, OTHER_DEVICE].map(|uuid| world.status(&relay, uuid)), [200, OFFLINE]);
    replace(&world.file, &format!("{DEVICE} 127.0.0.2\n{OTHER_DEVICE} 127.0.0.1\n"));
    assert!(world.becomes(&relay, DEVICE, PORT_CLOSED));
    assert!(world.becomes(&relay, OTHER_DEVICE, 200));
    // As long as it was, so that only its times tell.
    std::fs::write(&world.file, format!("{DEVICE} 127.0.0.1\n{OTHER_DEVICE} 127.0.0.2\n")).unwrap();
    assert!(world.becomes(&relay, DEVICE, 200));
    replace(&world.file, &format!("{OTHER_DEVICE} 127.0.0.2\n"));
    assert!(world.becomes(&relay, DEVICE, OFFLINE), "its line is gone");
}

#[test]
fn a_device_that_the_store_learns_of_later_is_found_in_the_file() {
    let uuid = "99999999999999999999999999999999";
    let world = World::new(r#"["store", "FILE"]"#, &format!("{uuid} 127.0.0.1\n"));
    let relay = world.site.start();
    assert_eq!(world.status(&relay, uuid), 403);
    world.site.cli(&["device", "add", uuid]);
    assert!(world.becomes(&relay, uuid, 200));
    world.site.cli(&["device", "set", uuid, "--address", "127.0.0.2"]);
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(world.status(&relay, uuid), 200, "the node's own table comes first");
    replace(&world.file, &format!("{DEVICE} 127.0.0.1\n"));
    assert!(world.becomes(&relay, uuid, PORT_CLOSED), "the store knows where it is");
}

#[test]
fn a_bad_line_is_told_by_file_and_number_and_its_device_stays_where_it_was() {
    let world = World::new(r#"["FILE"]"#, &format!("{DEVICE} 127.0.0.1\n{OTHER_DEVICE} 127.0.0.2\n"));
    let relay = world.site.start();
    replace(&world.file, &format!("{DEVICE} 127.0.0\n{OTHER_DEVICE} 127.0.0.1\n# fine\n"));
    assert!(relay.metric_becomes("sluicegate_vpn_addresses_bad_lines", |lines| lines == 1.0));
    assert!(relay.logs(&format!("{}:1: `127.0.0` is no IP address", world.file.display())));
    assert!(world.becomes(&relay, OTHER_DEVICE, 200), "good lines count");
    assert!(world.becomes(&relay, DEVICE, OFFLINE), "where it was is another device now");

    let checked = world.site.command(&["check"]).output().unwrap();
    assert_done(&checked);
    let said = String::from_utf8_lossy(&checked.stderr) + String::from_utf8_lossy(&checked.stdout);
    assert!(said.contains("warning: 1 lines give no address: ") && said.contains("addresses:1: "), "{said}");

    replace(&world.file, &format!("{DEVICE} 127.0.0.1\n{OTHER_DEVICE} 127.0.0.2\n"));
    assert!(world.becomes(&relay, DEVICE, 200));
    replace(&world.file, &format!("garbage\n{OTHER_DEVICE} 127.0.0.3\n"));
    assert!(relay.metric_becomes("sluicegate_vpn_addresses_bad_lines", |lines| lines == 1.0));
    assert!(world.becomes(&relay, OTHER_DEVICE, PORT_CLOSED));
    assert_eq!(world.status(&relay, DEVICE), 200, "the line may have been its");
}

#[test]
fn a_file_that_vanishes_or_turns_empty_takes_no_address_away() {
    let line = format!("{DEVICE} 127.0.0.1\n");
    let world = World::new(r#"["FILE"]"#, &line);
    let relay = world.site.start();
    let stale =
        |wanted: f64| relay.metric_becomes("sluicegate_vpn_addresses_stale_files", |files| files == wanted);
    for (text, message) in [
        (None, "No such file or directory (os error 2); its last addresses stay"),
        (Some(""), "there is no address in it; its last addresses stay"),
        (Some("# starting\n"), "there is no address in it; its last addresses stay"),
    ] {
        match text {
            None => std::fs::remove_file(&world.file).unwrap(),
            Some(text) => replace(&world.file, text),
        }
        assert!(stale(1.0), "{message}");
        assert!(relay.logs(message), "{}", relay.log());
        assert_eq!(world.status(&relay, DEVICE), 200, "{message}");
        let ready = relay.admin_get("/readyz");
        assert!(
            ready.starts_with("HTTP/1.1 200 ") && ready.contains("ready, but 1 of the sources"),
            "{ready}"
        );
        replace(&world.file, &line);
        assert!(stale(0.0), "{message}");
        assert!(relay.admin_comes_to_say("/readyz", "\r\n\r\nready\n"), "{message}");
    }
}

#[test]
fn a_relay_starts_without_the_file_and_says_so() {
    let world = World::new(r#"["FILE"]"#, "");
    std::fs::remove_file(&world.file).unwrap();
    let relay = world.site.start();
    assert_eq!(world.status(&relay, DEVICE), OFFLINE);
    assert!(relay.logs("No such file or directory"));
    let ready = relay.admin_get("/readyz");
    assert!(ready.starts_with("HTTP/1.1 503 "), "{ready}");
    assert!(ready.contains("no source in vpn.addresses has given an address since the start"), "{ready}");
    replace(&world.file, &format!("{DEVICE} 127.0.0.1\n"));
    assert!(world.becomes(&relay, DEVICE, 200));
    assert!(relay.admin_comes_to_say("/readyz", "\r\n\r\nready\n"));
}

#[test]
fn a_pipe_in_the_place_of_the_file_is_told_and_not_waited_for() {
    let world = World::new(r#"["FILE"]"#, &format!("{DEVICE} 127.0.0.1\n"));
    let relay = world.site.start();
    std::fs::remove_file(&world.file).unwrap();
    nix::unistd::mkfifo(&world.file, nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(relay.logs("it is no file; its last addresses stay"), "{}", relay.log());
    assert_eq!(world.status(&relay, DEVICE), 200);
}

#[test]
fn a_device_whose_row_has_turned_bad_goes_on_to_follow_its_vpn() {
    let world = World::new(r#"["FILE"]"#, &format!("{DEVICE} 127.0.0.1\n"));
    let relay = world.site.start();
    world.by_hand(&format!(
        "PRAGMA ignore_check_constraints = true; UPDATE devices SET node = '' WHERE uuid = '{DEVICE}'"
    ));
    assert!(relay.metric_becomes("sluicegate_store_quarantined_rows", |rows| rows == 1.0));
    replace(&world.file, &format!("{DEVICE} 127.0.0.3\n{OTHER_DEVICE} 127.0.0.2\n"));
    assert!(world.becomes(&relay, OTHER_DEVICE, PORT_CLOSED));
    assert_eq!(world.status(&relay, DEVICE), PORT_CLOSED);
}

#[test]
fn devices_that_swap_their_names_are_both_followed() {
    let world = World::new(r#"["FILE"]"#, &format!("{DEVICE} 127.0.0.1\n{OTHER_DEVICE} 127.0.0.2\n"));
    let relay = world.site.start();
    let swap = |from, to| format!("UPDATE devices SET uuid = '{to}' WHERE uuid = '{from}';");
    let between = "f".repeat(32);
    let swaps = [(DEVICE, &*between), (OTHER_DEVICE, DEVICE), (&*between, OTHER_DEVICE)];
    world.by_hand(&format!("BEGIN; {} COMMIT", swaps.map(|(from, to)| swap(from, to)).concat()));
    // Read after it, by the outbox.
    let third = "99999999999999999999999999999999";
    world.site.cli(&["device", "add", third]);
    assert!(world.becomes(&relay, third, OFFLINE));
    replace(&world.file, &format!("{DEVICE} 127.0.0.2\n{OTHER_DEVICE} 127.0.0.1\n"));
    assert!(world.becomes(&relay, DEVICE, PORT_CLOSED) && world.becomes(&relay, OTHER_DEVICE, 200));
}

#[test]
fn an_address_outside_vpn_allow_is_never_dialled() {
    let world = World::new(r#"["FILE"]"#, &format!("{DEVICE} 10.1.2.3\n"));
    let relay = world.site.start();
    let answer = Request::to(DEVICE, world.device.port()).bearer(&world.site.token).send(relay.address());
    assert_eq!((answer.status, answer.slug().as_deref()), (502, Some("device-address")));
}

#[test]
fn a_file_that_loses_many_devices_that_still_answer_is_held_by_the_location_rule() {
    let devices: Vec<String> = (0..10).map(|n| format!("{n:032x}")).collect();
    let line = |(n, uuid): (usize, &String)| format!("{uuid} 127.0.0.{}\n", n + 1);
    let all: String = devices.iter().enumerate().map(line).collect();
    let mut world = World::new(r#"["FILE"]"#, &all);
    for uuid in &devices {
        world.site.cli(&["device", "add", uuid]);
    }
    // Whatever the address: it is there.
    let answers = Device::listening("0.0.0.0".parse().unwrap());
    world.site.configure(&format!("authz.guard.probe_port = {}", answers.port()));
    let relay = world.site.start();
    assert_eq!(world.status(&relay, &devices[0]), 200);

    replace(&world.file, &line((9, &devices[9])));

    assert!(relay.logs("9 of 10 devices have lost their location, but 9 of 9"), "{}", relay.log());
    assert!(relay.admin_comes_to_say("/readyz", "holding"));
    assert_eq!(world.status(&relay, &devices[0]), 200);
    replace(&world.file, &all);
    assert!(relay.metric_becomes("sluicegate_guard_held", |held| held == 0.0));
}

#[test]
fn sources_that_make_no_sense_are_refused_with_their_place() {
    for (sources, message) in [
        (
            "[\"tinc:/run/status\"]",
            "`tinc:/run/status` is not a source of device addresses; use `store`, `file:PATH`, `openvpn:PATH`, `openvpn:HOST:PORT` (an IPv6 address in brackets) or `wireguard:INTERFACE`",
        ),
        ("[\"file:\"]", "`file:` is not a source of device addresses"),
        ("[\"wireguard:wg0\"]", "vpn.addresses: wireguard:wg0 needs vpn.wireguard_peers"),
        ("[\"wireguard:--help\"]", "`wireguard:--help` is not a source of device addresses"),
        ("[]", "vpn.addresses: no source is listed"),
        ("[\"store\", \"store\"]", "vpn.addresses: a source is listed twice"),
    ] {
        let mut site = Site::new("");
        site.configure(&format!("vpn.addresses = {sources}"));
        let (code, said) = site.start_in_vain().unwrap();
        assert_eq!(code, Some(1));
        assert!(said.contains(message) && said.contains("sluicegate.toml:"), "{said}");
    }
    let mut site = Site::new("");
    site.configure("store.profile = \"openbalena\"");
    let (_, said) = site.start_in_vain().unwrap();
    assert!(said.contains("store.profile: openBalena's database is on PostgreSQL"), "{said}");
}
