//! The guard believes the store's masses of lost devices where the network agrees.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::support::{Installation, StoreUnderTest, on_both_stores};
use ipnet::IpNet;
use sluicegate::authz::{Decision, Refusal};
use sluicegate::control::api::Rule;
use socket2::{Domain, Socket, Type};

on_both_stores! {
    a_mass_loss_of_location_holds_where_devices_still_answer,
    devices_that_another_node_is_said_to_hold_are_held_where_they_still_answer,
    a_vpn_server_that_restarts_takes_its_devices_offline,
    devices_that_were_gone_and_came_back_are_asked_again,
    a_few_devices_that_go_offline_are_not_asked_for,
    one_more_device_goes_offline_during_a_hold,
    devices_that_do_not_answer_in_time_are_gone_and_nobody_waits_for_them,
}

const DEVICES: &str = "id, uuid, name, fleet, address, node, online, created_at FROM devices_table";

/// Gives every device a multicast address, to which no connection can be opened, so that none answers. Returns the
/// network.
fn put_beyond_reach(installation: &Installation) -> IpNet {
    installation.sql("UPDATE devices SET address = '224.0.0.' || id");
    "224.0.0.0/8".parse().unwrap()
}

fn a_mass_loss_of_location_holds_where_devices_still_answer(store: StoreUnderTest) {
    for (what, lost) in [
        ("an inverted flag", DEVICES.replace("online", "NOT online AS online")),
        (
            "addresses that are null",
            DEVICES.replace("address", "CASE WHEN false THEN address END AS address"),
        ),
    ] {
        for devices in [3, 40] {
            let installation = Installation::on(store, devices);
            let judged = installation.start();
            installation.replace_query("devices", &format!("SELECT {lost}"));
            assert!(
                judged.comes_to(|judged| judged.held_by() == Some(Rule::Location)),
                "{:?}",
                judged.holds()
            );
            let message = judged.holds_groups(&["devices.unlocated"]);
            let lost = format!("{devices} of {devices} devices have lost their location");
            assert!(message.contains(&lost) && message.contains("still answer"), "{message}");
            judged.read_whole(2);
            assert_eq!(judged.allowed(), devices, "{what}");
            installation.restore_query("devices");
            judged.read_whole(2);
            assert_eq!((judged.held_by(), judged.allowed()), (None, devices), "{what}");
        }
    }
}

fn devices_that_another_node_is_said_to_hold_are_held_where_they_still_answer(store: StoreUnderTest) {
    let installation = Installation::on(store, 40);
    installation.sql("UPDATE devices SET node = 'here'");
    let judged = installation.start_with(|config| config.vpn.node = Some("here".to_owned()));
    installation.replace_query("devices", &format!("SELECT {}", DEVICES.replace("node", "'there' AS node")));
    assert!(judged.comes_to(|judged| judged.held_by() == Some(Rule::Location)), "{:?}", judged.holds());
    judged.read_whole(2);
    assert_eq!((judged.held_groups(), judged.allowed()), (vec!["devices.moved".to_owned()], 40));
    installation.restore_query("devices");
    judged.read_whole(2);
    assert_eq!((judged.held_by(), judged.allowed()), (None, 40));
}

fn a_vpn_server_that_restarts_takes_its_devices_offline(store: StoreUnderTest) {
    let installation = Installation::on(store, 40);
    let network = put_beyond_reach(&installation);
    let judged = installation.start_with(|config| config.vpn.allow.push(network));
    assert_eq!(judged.allowed(), 40);
    installation.sql("UPDATE devices SET online = false");
    assert!(judged.comes_to(|judged| judged.allowed() == 0));
    assert_eq!(judged.decide(0), Decision::Refuse(Refusal::DeviceOffline));
    assert!(judged.heals());
    installation.sql("UPDATE devices SET online = true");
    assert!(judged.comes_to(|judged| judged.allowed() == 40), "each comes back as soon as it is there");
    assert_eq!(judged.held_by(), None);
}

fn devices_that_were_gone_and_came_back_are_asked_again(store: StoreUnderTest) {
    let installation = Installation::on(store, 40);
    let network = put_beyond_reach(&installation);
    let judged = installation.start_with(|config| config.vpn.allow.push(network));
    installation.sql("UPDATE devices SET online = false");
    assert!(judged.comes_to(|judged| judged.allowed() == 0));
    installation.sql("UPDATE devices SET online = true, address = '127.1.0.' || id");
    assert!(judged.comes_to(|judged| judged.allowed() == 40));
    installation.sql("UPDATE devices SET online = false");
    assert!(judged.comes_to(|judged| judged.held_by() == Some(Rule::Location)), "{:?}", judged.holds());
    assert_eq!(judged.allowed(), 40);
}

fn a_few_devices_that_go_offline_are_not_asked_for(store: StoreUnderTest) {
    let installation = Installation::on(store, 40);
    let judged = installation.start();
    // They would answer a probe.
    let lost = DEVICES.replace("online", "online AND id > 6 AS online");
    installation.replace_query("devices", &format!("SELECT {lost}"));
    assert!(judged.comes_to(|judged| judged.allowed() == 34));
    judged.read_whole(2);
    assert_eq!((judged.allowed(), judged.held_by()), (34, None));
}

fn one_more_device_goes_offline_during_a_hold(store: StoreUnderTest) {
    let installation = Installation::on(store, 40);
    let judged = installation.start();
    let lost = DEVICES.replace("online", "online AND id > 20 AS online");
    installation.replace_query("devices", &format!("SELECT {lost}"));
    assert!(judged.comes_to(|judged| judged.held_by() == Some(Rule::Location)), "{:?}", judged.holds());
    installation.sql("UPDATE devices_table SET online = false WHERE id = 40");
    assert!(judged.comes_to(|judged| judged.decide(39) == Decision::Refuse(Refusal::DeviceOffline)));
    judged.read_whole(2);
    assert_eq!((judged.allowed(), judged.held_by()), (39, Some(Rule::Location)));
}

/// A port that neither accepts a connection nor refuses one, because its backlog is full.
struct SilentPort {
    _listener: Socket,
    _waiting: Vec<Socket>,
    port: u16,
}

impl SilentPort {
    fn open() -> Self {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        listener.bind(&SocketAddr::from(([0, 0, 0, 0], 0)).into()).unwrap();
        listener.listen(0).unwrap();
        let port = listener.local_addr().unwrap().as_socket().unwrap().port();
        let connect = |_| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), None).unwrap();
            let _in_progress = socket.connect(&SocketAddr::from(([127, 0, 0, 1], port)).into());
            socket
        };
        let waiting = (0..4).map(connect).collect();
        std::thread::sleep(Duration::from_millis(100));
        Self { _listener: listener, _waiting: waiting, port }
    }
}

fn devices_that_do_not_answer_in_time_are_gone_and_nobody_waits_for_them(store: StoreUnderTest) {
    let silent = SilentPort::open();
    let installation = Installation::on(store, 40);
    let judged = installation.start_with(|config| {
        config.authz.guard.probe_port = silent.port;
        config.authz.guard.probe_time = Duration::from_secs(3);
    });
    installation.sql("UPDATE devices SET online = false WHERE id > 10");
    judged.holds_groups(&["devices.unlocated"]);
    assert_eq!(judged.allowed(), 40, "the guard waits for the probes");

    let asked = Instant::now();
    installation.sql("UPDATE grants SET revoked_at = 1 WHERE target = 1");
    assert!(judged.comes_to(|judged| judged.decide(0) == Decision::Refuse(Refusal::GrantRevoked)));
    assert!(asked.elapsed() < Duration::from_secs(2), "a revocation does not wait: {:?}", asked.elapsed());

    assert!(judged.comes_to(|judged| judged.allowed() == 9));
    assert!(judged.heals());
}
