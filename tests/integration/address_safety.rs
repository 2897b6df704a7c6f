//! Nothing is dialled outside `vpn.allow` or beside `vpn.interface`, whatever the store says.

use std::net::{IpAddr, Ipv4Addr};

use crate::support::{
    DEVICE, Device, Namespace, OTHER_DEVICE, Relay, Request, Site, V4, root_or_skip, tools_or_skip,
};

/// Alice asks for a port of [`OTHER_DEVICE`].
fn ask(site: &Site, relay: &Relay, port: u16) -> crate::support::Answer {
    Request::to(OTHER_DEVICE, port).bearer(&site.token).send(relay.address())
}

#[test]
fn an_address_outside_the_allowed_networks_is_refused_before_any_packet() {
    let site = Site::new("vpn.allow = ['127.0.0.1/32']");
    let relay = site.start();
    // A loopback address beside the allowed one, by its own name and by that of IPv6.
    let forbidden = Device::listening(IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2)));
    for address in ["127.0.0.2", "::ffff:127.0.0.2"] {
        site.cli(&["device", "add", OTHER_DEVICE, "--address", address]);
        let known = |answer: &crate::support::Answer| answer.status != 403;
        let answer =
            crate::support::wait_for(|| Some(ask(&site, &relay, forbidden.port())).filter(known)).unwrap();
        assert_eq!((answer.status, answer.slug().as_deref()), (502, Some("device-address")), "{address}");
        site.cli(&["device", "remove", OTHER_DEVICE]);
        let is_gone = || (ask(&site, &relay, forbidden.port()).status == 403).then_some(());
        assert!(crate::support::wait_for(is_gone).is_some());
    }
    assert!(!forbidden.was_connected_to());
    let refusals = site.audit().events();
    let refused = refusals.iter().filter(|event| event["cause"] == "device-address-not-allowed");
    assert!(refused.count() >= 2, "{refusals:?}");
}

#[test]
fn an_allowed_address_that_turns_into_another_in_the_store_is_refused_from_then_on() {
    let site = Site::new("vpn.allow = ['127.0.0.1/32']");
    let relay = site.start();
    let device = Device::echo(V4);
    assert_eq!(site.ask(&relay, device.port()).status, 200);
    // Past the commands, as a query gone wrong would.
    let store = rusqlite::Connection::open(site.store_path()).unwrap();
    store.busy_timeout(crate::support::PATIENCE).unwrap();
    let changed =
        store.execute("UPDATE devices SET address = '127.0.0.2' WHERE uuid = ?1", [DEVICE]).unwrap();
    assert_eq!(changed, 1);
    let refused = || Some(site.ask(&relay, device.port())).filter(|answer| answer.status != 200);
    let answer = crate::support::wait_for(refused).unwrap();
    assert_eq!((answer.status, answer.slug().as_deref()), (502, Some("device-address")));
}

#[test]
fn a_configuration_that_allows_nothing_is_told_at_start() {
    let mut site = Site::new("");
    site.configure("vpn.allow = []");
    let (code, message) = site.start_in_vain().expect("it gives up");
    assert_eq!(code, Some(1));
    assert!(message.contains("vpn.allow") && message.contains("sluicegate.toml:"), "{message}");
}

/// A node and a device in namespaces of their own, with a cable between them.
struct Wired {
    node: Namespace,
    device: Namespace,
}

impl Wired {
    /// `vpn0` at 10.77.0.1 on the node's end, 10.77.0.2 on the device's.
    fn new() -> Self {
        let (node, device) = (Namespace::new(), Namespace::new());
        node.ip(&format!("link add vpn0 type veth peer name eth0 netns {}", device.id()));
        node.ip("addr add 10.77.0.1/24 dev vpn0");
        node.ip("link set vpn0 up");
        device.ip("addr add 10.77.0.2/24 dev eth0");
        device.ip("link set eth0 up");
        Self { node, device }
    }
}

fn can_wire(name: &str) -> bool {
    root_or_skip(name) && tools_or_skip(name, &["ip"])
}

const DEVICE_IP: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 0, 2));

/// A site whose [`OTHER_DEVICE`] is at the far end of the cable.
fn site_with(vpn: &str) -> Site {
    let mut site = Site::new("timeouts.connect = '2s'");
    site.cli(&["device", "add", OTHER_DEVICE, "--address", "10.77.0.2"]);
    site.configure(vpn);
    site
}

#[test]
fn a_device_is_reached_through_the_vpn_interface_and_no_other() {
    if !can_wire("a_device_is_reached_through_the_vpn_interface_and_no_other") {
        return;
    }
    let wired = Wired::new();
    // A second way to the same address, which the routing table prefers.
    wired.node.ip("link add trap0 type veth peer name trap1");
    wired.node.ip("link set trap0 up");
    wired.node.ip("route add 10.77.0.2/32 dev trap0");
    let device = wired.device.enter(|| Device::echo(DEVICE_IP));
    let status_by = |interface: &str| {
        let site = site_with(&format!("vpn = {{ allow = ['10.77.0.0/24'], interface = '{interface}' }}"));
        wired.node.enter(|| ask(&site, &site.start(), device.port()).status)
    };
    assert_eq!(status_by("vpn0"), 200);
    assert!([502, 504].contains(&status_by("trap0")), "there is no device behind trap0");
}

#[test]
fn a_vpn_interface_that_goes_away_takes_no_device_elsewhere() {
    if !can_wire("a_vpn_interface_that_goes_away_takes_no_device_elsewhere") {
        return;
    }
    let wired = Wired::new();
    wired.node.ip("link add vpn1 type veth peer name vpn2");
    let device = wired.device.enter(|| Device::listening(DEVICE_IP));
    let site = site_with("vpn = { allow = ['10.77.0.0/24'], interface = 'vpn1' }");
    let (answer, events) = wired.node.enter(|| {
        let relay = site.start();
        wired.node.ip("link del vpn1");
        (ask(&site, &relay, device.port()), site.audit().wait_for_events(1))
    });
    assert_eq!((answer.status, answer.slug().as_deref()), (502, Some("device-unreachable")));
    assert_eq!(events[0]["cause"], "vpn-interface-missing");
    assert!(!device.was_connected_to());
}

#[test]
fn no_packet_leaves_by_the_vpn_interface_for_an_address_that_is_not_allowed() {
    if !can_wire("no_packet_leaves_by_the_vpn_interface_for_an_address_that_is_not_allowed") {
        return;
    }
    let wired = Wired::new();
    let device = wired.device.enter(|| Device::listening(DEVICE_IP));
    let site = site_with("vpn = { allow = ['10.78.0.0/24'], interface = 'vpn0' }");
    let answer = wired.node.enter(|| ask(&site, &site.start(), device.port()));
    assert_eq!((answer.status, answer.slug().as_deref()), (502, Some("device-address")));
    assert!(!device.was_connected_to());
    // Not even a question for the neighbour's hardware address.
    assert_eq!(wired.node.ip("neigh show 10.77.0.2").trim(), "");
}
