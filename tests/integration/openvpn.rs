//! Devices are dialled where a real OpenVPN server has them connected, whichever way it is asked; and a server that
//! is away takes no address away.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use nix::sys::signal::kill;
use nix::unistd::Pid;

use crate::support::{
    Device, OTHER_DEVICE, Relay, Request, Signal, Site, Vpn, VpnClient, vpn_or_skip, wait_for,
};

const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const B: &str = OTHER_DEVICE;

const MANAGEMENT: &str = "management FOLDER/management unix";
const BY_MANAGEMENT: &str = "openvpn:FOLDER/management";
const STATUS: &str = "status FOLDER/status 1";
const BY_STATUS: &str = "openvpn:FOLDER/status";
const BY_HOOK: &str = "file:FOLDER/addresses";

const OFFLINE: u16 = 503;

/// A VPN, and a relay beside its server that knows the devices [`A`] and [`B`], and no address of them but by one
/// source.
struct World {
    vpn: Vpn,
    site: Site,
}

/// A device in the VPN, which sends back what it gets.
struct InVpn {
    client: VpnClient,
    echo: Device,
}

impl World {
    /// `source` is one of `vpn.addresses`, in which `FOLDER` is the server's.
    fn new(options: &str, source: &str) -> Self {
        let vpn = Vpn::new(options);
        let mut site = Site::new("");
        for uuid in [A, B] {
            site.cli(&["device", "add", uuid]);
        }
        let source = source.replace("FOLDER", &vpn.path("").display().to_string());
        site.configure(&format!(
            "vpn.addresses = [{source:?}]\nvpn.allow = [\"10.77.0.0/24\", \"fd00:77::/64\"]"
        ));
        Self { vpn, site }
    }

    fn start(&self) -> Relay {
        self.vpn.namespace.enter(|| self.site.start())
    }

    fn connect(&self, common_name: &str) -> InVpn {
        let client = self.vpn.connect(common_name);
        let echo = client.namespace.enter(|| Device::echo("::".parse().unwrap()));
        InVpn { client, echo }
    }

    fn ask(&self, relay: &Relay, uuid: &str, port: u16) -> crate::support::Answer {
        let request = Request::to(uuid, port).bearer(&self.site.token);
        self.vpn.namespace.enter(|| request.send(relay.address()))
    }

    fn becomes(&self, relay: &Relay, uuid: &str, port: u16, wanted: u16) -> bool {
        wait_for(|| (self.ask(relay, uuid, port).status == wanted).then_some(())).is_some()
    }

    fn stale_becomes(&self, relay: &Relay, wanted: f64) -> bool {
        let name = "sluicegate_vpn_addresses_stale_files";
        self.vpn.namespace.enter(|| relay.metric_becomes(name, |sources| sources == wanted))
    }
}

#[test]
fn a_device_is_reached_where_the_management_socket_has_it_until_it_disconnects() {
    if !vpn_or_skip("a_device_is_reached_where_the_management_socket_has_it_until_it_disconnects") {
        return;
    }
    follow_a_device(MANAGEMENT, BY_MANAGEMENT);
    follow_a_device(&format!("{MANAGEMENT}\nserver-ipv6 fd00:77::/64"), BY_MANAGEMENT);
    follow_a_device("management 127.0.0.1 7505", "openvpn:127.0.0.1:7505");
}

#[test]
fn a_device_is_reached_where_a_status_file_of_any_version_has_it_until_it_disconnects() {
    if !vpn_or_skip("a_device_is_reached_where_a_status_file_of_any_version_has_it_until_it_disconnects") {
        return;
    }
    for version in 1..=3 {
        follow_a_device(&format!("{STATUS}\nstatus-version {version}"), BY_STATUS);
    }
}

#[track_caller]
fn follow_a_device(options: &str, source: &str) {
    let world = World::new(options, source);
    let relay = world.start();
    let device = world.connect(A);
    let port = device.echo.port();
    assert!(world.becomes(&relay, A, port, 200), "{options}: {}", relay.log());

    let mut tunnel = world.ask(&relay, A, port).opened();
    tunnel.write_all(b"through the VPN").unwrap();
    let mut back = [0; 15];
    tunnel.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"through the VPN", "{options}");
    assert_eq!(world.ask(&relay, B, port).slug().as_deref(), Some("device-offline"), "{options}");

    device.client.disconnect();
    assert!(world.becomes(&relay, A, port, OFFLINE), "{options}: {}", relay.log());
    assert_eq!(world.ask(&relay, A, port).slug().as_deref(), Some("device-offline"), "{options}");
}

#[test]
fn a_relay_that_starts_beside_a_server_knows_who_is_connected() {
    if !vpn_or_skip("a_relay_that_starts_beside_a_server_knows_who_is_connected") {
        return;
    }
    for (options, source) in [(MANAGEMENT, BY_MANAGEMENT), (STATUS, BY_STATUS)] {
        let world = World::new(options, source);
        let device = world.connect(A);
        let file = world.vpn.path("status");
        let is_listed =
            || (options == MANAGEMENT || std::fs::read_to_string(&file).unwrap().contains(A)).then_some(());
        assert!(wait_for(is_listed).is_some());
        let relay = world.start();
        assert_eq!(world.ask(&relay, A, device.echo.port()).status, 200, "{options}: {}", relay.log());
    }
}

#[test]
fn a_new_process_follows_the_management_socket_and_loses_no_report() {
    if !vpn_or_skip("a_new_process_follows_the_management_socket_and_loses_no_report") {
        return;
    }
    let world = World::new(MANAGEMENT, BY_MANAGEMENT);
    let relay = world.start();
    let (stays, leaves) = (world.connect(A), world.connect(B));
    let ports = (stays.echo.port(), leaves.echo.port());
    assert!(world.becomes(&relay, A, ports.0, 200) && world.becomes(&relay, B, ports.1, 200));
    let new = world.site.cli(&["upgrade"])["pid"].as_i64().unwrap() as i32;
    assert_eq!(world.ask(&relay, A, ports.0).status, 200, "the address came along: {}", relay.log());
    // The server serves one program at a time: the new process.
    leaves.client.disconnect();
    assert!(world.becomes(&relay, B, ports.1, OFFLINE), "{}", relay.log());
    assert_eq!(world.ask(&relay, A, ports.0).status, 200);
    assert!(world.stale_becomes(&relay, 0.0), "{}", relay.log());
    let back = world.connect(B);
    assert!(world.becomes(&relay, B, back.echo.port(), 200), "{}", relay.log());

    kill(Pid::from_raw(new), Signal::SIGKILL).unwrap();
}

#[test]
fn an_old_process_follows_the_management_socket_again_where_the_new_one_has_died() {
    if !vpn_or_skip("an_old_process_follows_the_management_socket_again_where_the_new_one_has_died") {
        return;
    }
    let world = World::new(MANAGEMENT, BY_MANAGEMENT);
    let relay = world.start();
    let device = world.connect(A);
    let port = device.echo.port();
    assert!(world.becomes(&relay, A, port, 200));
    let new = world.site.cli(&["upgrade"])["pid"].as_i64().unwrap() as i32;
    kill(Pid::from_raw(new), Signal::SIGKILL).unwrap();
    assert!(relay.logs("this one accepts clients again"), "{}", relay.log());
    assert_eq!(world.ask(&relay, A, port).status, 200);
    device.client.disconnect();
    assert!(world.becomes(&relay, A, port, OFFLINE), "{}", relay.log());
}

#[test]
fn a_killed_server_takes_no_address_away_until_it_answers_again() {
    if !vpn_or_skip("a_killed_server_takes_no_address_away_until_it_answers_again") {
        return;
    }
    let world = World::new(MANAGEMENT, BY_MANAGEMENT);
    let relay = world.start();
    let (stays, leaves) = (world.connect(A), world.connect(B));
    let ports = (stays.echo.port(), leaves.echo.port());
    assert!(world.becomes(&relay, A, ports.0, 200) && world.becomes(&relay, B, ports.1, 200));

    world.vpn.stop(Signal::SIGKILL);

    assert!(world.stale_becomes(&relay, 1.0), "{}", relay.log());
    assert!(relay.logs("the server is away: Connection refused (os error 111); its last addresses stay"));
    for (uuid, port) in [(A, ports.0), (B, ports.1)] {
        let slug = world.ask(&relay, uuid, port).slug();
        assert_ne!(slug.as_deref(), Some("device-offline"), "it was dialled, in vain");
    }
    drop(leaves);
    world.vpn.start();
    assert!(world.stale_becomes(&relay, 0.0), "{}", relay.log());
    assert!(world.becomes(&relay, B, ports.1, OFFLINE), "it did not come back");
    assert!(world.becomes(&relay, A, ports.0, 200), "it did: {}", relay.log());
}

#[test]
fn a_server_that_restarts_is_reconciled() {
    if !vpn_or_skip("a_server_that_restarts_is_reconciled") {
        return;
    }
    let world = World::new(MANAGEMENT, BY_MANAGEMENT);
    let relay = world.start();
    let (stays, leaves) = (world.connect(A), world.connect(B));
    let ports = (stays.echo.port(), leaves.echo.port());
    assert!(world.becomes(&relay, A, ports.0, 200) && world.becomes(&relay, B, ports.1, 200));
    drop(leaves);
    // The first ends and begins its connections anew, the second all of it but its process.
    for signal in [Signal::SIGUSR1, Signal::SIGHUP] {
        world.vpn.signal(signal);
        assert!(world.becomes(&relay, B, ports.1, OFFLINE), "{signal}: {}", relay.log());
        assert!(world.becomes(&relay, A, ports.0, 200), "{signal}: {}", relay.log());
    }
    world.vpn.stop(Signal::SIGTERM);
    assert!(world.stale_becomes(&relay, 1.0), "{}", relay.log());
    world.vpn.start();
    assert!(world.stale_becomes(&relay, 0.0), "{}", relay.log());
    assert!(world.becomes(&relay, A, ports.0, 200), "{}", relay.log());
}

#[test]
fn a_client_whose_name_is_no_uuid_is_told_and_changes_nothing_for_devices() {
    if !vpn_or_skip("a_client_whose_name_is_no_uuid_is_told_and_changes_nothing_for_devices") {
        return;
    }
    let world = World::new(MANAGEMENT, BY_MANAGEMENT);
    let relay = world.start();
    let (device, _other) = (world.connect(A), world.connect("spare laptop"));
    assert!(relay.logs("`spare laptop` is no uuid of 32 or 62 hex digits"), "{}", relay.log());
    let port = device.echo.port();
    assert!(world.becomes(&relay, A, port, 200));
    device.client.disconnect();
    assert!(world.becomes(&relay, A, port, OFFLINE), "it is not kept because of the other");
}

#[test]
fn a_management_socket_that_serves_another_program_is_told_and_followed_once_it_is_free() {
    if !vpn_or_skip("a_management_socket_that_serves_another_program_is_told") {
        return;
    }
    let world = World::new(MANAGEMENT, BY_MANAGEMENT);
    let mut other = UnixStream::connect(world.vpn.path("management")).unwrap();
    other.read_exact(&mut [0]).unwrap();
    let device = world.connect(A);
    let relay = world.start();
    assert!(relay.logs("the management socket serves one program at a time"), "{}", relay.log());
    assert_eq!(world.ask(&relay, A, device.echo.port()).status, OFFLINE);
    drop(other);
    assert!(world.becomes(&relay, A, device.echo.port(), 200), "{}", relay.log());
}

#[test]
fn what_is_no_openvpn_is_told_and_takes_no_relay_down() {
    let mut site = Site::new("");
    let path = site.folder().join("status");
    site.configure(&format!("vpn.addresses = [\"openvpn:{}\"]", path.display()));
    for (text, message) in [
        (None, "No such file or directory"),
        (Some("root:x:0:0\n"), "it is no status of an OpenVPN server: it begins with `root:x:0:0`"),
        (Some("OpenVPN STATISTICS\nEND\n"), "it is the status of an OpenVPN client; name the server's"),
        (Some("OpenVPN CLIENT LIST\n"), "its status has no end"),
    ] {
        if let Some(text) = text {
            std::fs::write(&path, text).unwrap();
        }
        let relay = site.start();
        assert!(relay.logs(&format!("{}: {message}", path.display())), "{}", relay.log());
        assert!(relay.logs("its last addresses stay"));
    }
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    assert!(site.start().logs("it is neither a management socket nor a status file"));
}

#[test]
fn a_device_is_reached_where_the_hook_was_told_until_it_disconnects() {
    if !vpn_or_skip("a_device_is_reached_where_the_hook_was_told_until_it_disconnects") {
        return;
    }
    let hook = format!("\"{} vpn openvpn-hook --addresses FOLDER/addresses\"", crate::support::BINARY);
    let scripts = ["client-connect", "client-disconnect", "learn-address", "up"];
    let options: String = scripts.map(|script| format!("{script} {hook}\n")).concat();
    follow_a_device(&options, BY_HOOK);
    let learned = format!("client-disconnect {hook}\nlearn-address {hook}\nserver-ipv6 fd00:77::/64");
    follow_a_device(&learned, BY_HOOK);
}

#[test]
fn a_killed_server_that_starts_again_has_its_hook_forget_who_was_connected() {
    if !vpn_or_skip("a_killed_server_that_starts_again_has_its_hook_forget_who_was_connected") {
        return;
    }
    let hook = format!("\"{} vpn openvpn-hook --addresses FOLDER/addresses\"", crate::support::BINARY);
    let scripts = ["client-disconnect", "learn-address", "up"];
    let world = World::new(&scripts.map(|script| format!("{script} {hook}\n")).concat(), BY_HOOK);
    let relay = world.start();
    let (stays, leaves) = (world.connect(A), world.connect(B));
    let ports = (stays.echo.port(), leaves.echo.port());
    assert!(world.becomes(&relay, A, ports.0, 200) && world.becomes(&relay, B, ports.1, 200));
    world.vpn.stop(Signal::SIGKILL);
    drop(leaves);
    world.vpn.start();
    assert!(world.becomes(&relay, B, ports.1, OFFLINE) && world.becomes(&relay, A, ports.0, 200));
}

#[test]
fn a_client_whose_name_is_no_uuid_is_shut_out_by_the_hook_unless_it_is_told_to_let_it_in() {
    if !vpn_or_skip("a_client_whose_name_is_no_uuid_is_shut_out_by_the_hook") {
        return;
    }
    let hook = format!("{} vpn openvpn-hook --addresses FOLDER/addresses", crate::support::BINARY);
    let strict = Vpn::new(&format!("client-connect \"{hook}\""));
    let _refused = strict.begin_to_connect("spare laptop");
    let said = "the common name \"spare laptop\" is not a device uuid of 32 or 62 hex digits";
    assert!(
        wait_for(|| strict.log("server").contains(said).then_some(())).is_some(),
        "{}",
        strict.log("server")
    );
    assert!(!strict.log("client1").contains("Initialization Sequence Completed"));

    let lenient = Vpn::new(&format!("client-connect \"{hook} --ignore-unknown\""));
    let _let_in = lenient.connect("spare laptop");
    assert!(!lenient.path("addresses").exists(), "nothing is written of it");
}
