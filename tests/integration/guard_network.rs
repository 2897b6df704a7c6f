//! The guard believes the store's locations of devices where the network agrees, and never dials another device. Each
//! scenario runs on SQLite and on PostgreSQL.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use crate::support::{Installation, Judged, StoreUnderTest, on_both_stores};
use ipnet::IpNet;
use sluicegate::authz::{Decision, Refusal};
use sluicegate::control::Rule;
use socket2::{Domain, Socket, Type};

on_both_stores! {
    a_mass_loss_of_location_holds_where_devices_still_answer,
    devices_that_another_node_is_said_to_hold_are_a_loss_of_location_as_well,
    a_vpn_server_that_restarts_takes_its_devices_offline,
    devices_that_were_gone_and_came_back_are_asked_again,
    devices_that_came_back_before_the_network_had_answered_are_asked_again,
    a_few_devices_that_go_offline_are_not_asked_for,
    devices_that_do_not_answer_in_time_are_gone_and_nobody_waits_for_them,
    an_address_that_another_device_has_got_is_never_dialled_for_the_old_one_in_a_hold,
    a_device_that_is_absent_for_one_read_is_not_dialled_where_another_one_is,
    addresses_outside_the_vpn_hold_when_they_are_many,
}

const DEVICES: &str = "id, uuid, name, fleet, address, node, online, created_at FROM devices_table";

/// The address that is dialled for `device`; `None` if it is not dialled.
fn dialled(judged: &Judged, device: usize) -> Option<IpAddr> {
    match judged.decide(device) {
        Decision::Allow(route) => Some(route.address),
        _ => None,
    }
}

/// Gives every device a multicast address, to which no connection can be opened, so that none answers. Returns the
/// network.
fn put_beyond_reach(installation: &Installation) -> IpNet {
    installation.sql("UPDATE devices SET address = '224.0.0.' || id");
    "224.0.0.0/8".parse().unwrap()
}

fn a_mass_loss_of_location_holds_where_devices_still_answer(store: StoreUnderTest) {
    for (what, lost) in [
        ("an inverted flag", DEVICES.replace("online", "NOT online AS online")),
        ("addresses that are null", DEVICES.replace("address", "NULL AS address")),
    ] {
        for devices in [3, 40] {
            let installation = Installation::on(store, devices);
            let judged = installation.start();
            installation.replace_query("devices", &format!("SELECT {lost}"));
            let (rule, message) = judged.hold();
            assert_eq!(rule, Rule::Location, "{what}: {message}");
            assert!(
                message.contains(&format!("{devices} of {devices} devices have lost their location")),
                "{message}"
            );
            judged.read_whole(2);
            assert_eq!(judged.allowed(), devices, "{what}");
            installation.restore_query("devices");
            assert!(judged.heals(), "{what}");
        }
    }
}

fn devices_that_another_node_is_said_to_hold_are_a_loss_of_location_as_well(store: StoreUnderTest) {
    let installation = Installation::on(store, 12);
    installation.sql("UPDATE devices SET node = 'here'");
    let judged = installation.start_with(|config| config.vpn.node = Some("here".to_owned()));
    installation.sql("UPDATE devices SET node = 'there' WHERE id <= 4");
    let (rule, message) = judged.hold();
    assert_eq!(rule, Rule::Location, "{message}");
    assert!(
        message.contains("4 of 12 devices") && message.contains("4 of 4 that were asked still answer"),
        "{message}"
    );
    assert_eq!(judged.allowed(), 12);
    installation.sql("UPDATE devices SET node = 'here'");
    assert!(judged.heals());
}

fn a_vpn_server_that_restarts_takes_its_devices_offline(store: StoreUnderTest) {
    let installation = Installation::on(store, 40);
    let network = put_beyond_reach(&installation);
    let judged = installation.start_with(|config| config.vpn.allow.push(network));
    assert_eq!(judged.allowed(), 40);
    installation.sql("UPDATE devices SET online = false");
    assert!(judged.comes_to(|judged| judged.allowed() == 0));
    assert_eq!(judged.decide(0), Decision::Refuse(Refusal::DeviceOffline));
    assert_eq!((judged.held_by(), judged.status().holds.iter().sum::<u64>()), (None, 0), "nothing was wrong");
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
    let (rule, message) = judged.hold();
    assert_eq!(rule, Rule::Location, "{message}");
    assert_eq!(judged.allowed(), 40);
}

fn devices_that_came_back_before_the_network_had_answered_are_asked_again(store: StoreUnderTest) {
    let silent = SilentPort::open();
    let installation = Installation::on(store, 40);
    let judged = installation.start_with(|config| {
        config.authz.guard.probe_port = silent.port;
        config.authz.guard.probe_time = Duration::from_millis(500);
    });
    installation.sql("UPDATE devices SET online = false WHERE id > 10");
    judged.read_whole(2);
    installation.sql("UPDATE devices SET online = true");
    judged.read_whole(2);
    // From now on every device refuses the connection.
    drop(silent);
    std::thread::sleep(Duration::from_millis(500));
    installation.sql("UPDATE devices SET online = false WHERE id > 10");
    assert_eq!(judged.hold().0, Rule::Location);
    assert_eq!(judged.allowed(), 40);
}

fn a_few_devices_that_go_offline_are_not_asked_for(store: StoreUnderTest) {
    let installation = Installation::on(store, 40);
    let judged = installation.start();
    // They would answer a probe. Two devices are below the least number of rows, and three are less than a tenth.
    for sql in [
        "UPDATE devices SET online = false WHERE id <= 2",
        "UPDATE devices SET online = false WHERE id BETWEEN 10 AND 12",
    ] {
        let before = judged.allowed();
        installation.sql(sql);
        assert!(judged.comes_to(|judged| judged.allowed() < before));
    }
    assert_eq!((judged.allowed(), judged.held_by()), (35, None));
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
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(judged.allowed(), 40, "the guard waits for the probes");

    let asked = Instant::now();
    installation.sql("UPDATE grants SET revoked_at = 1 WHERE target = 1");
    assert!(judged.comes_to(|judged| judged.decide(0) == Decision::Refuse(Refusal::GrantRevoked)));
    assert!(asked.elapsed() < Duration::from_secs(2), "a revocation does not wait: {:?}", asked.elapsed());

    assert!(judged.comes_to(|judged| judged.allowed() == 9));
    assert_eq!(judged.held_by(), None);
}

fn an_address_that_another_device_has_got_is_never_dialled_for_the_old_one_in_a_hold(store: StoreUnderTest) {
    let installation = Installation::on(store, 12);
    let judged = installation.start();
    let of = |device: usize| Some(Installation::address(device).parse::<IpAddr>().unwrap());
    // Device 2 has come back at the address of device 1, in the same answer that loses sight of the others.
    installation.sql(&format!(
        "BEGIN; UPDATE devices SET online = false WHERE id > 2; UPDATE devices SET address = NULL WHERE id = 1;
        UPDATE devices SET address = '{}' WHERE id = 2; COMMIT",
        Installation::address(0)
    ));
    assert_eq!(judged.hold().0, Rule::Location);
    assert_eq!(dialled(&judged, 0), None, "that address is device 2's now");
    assert_eq!(judged.decide(0), Decision::Refuse(Refusal::DeviceOffline));
    assert_eq!(dialled(&judged, 1), of(1), "what is not published is not dialled");
    assert_eq!(dialled(&judged, 5), of(5));

    installation.sql(
        "BEGIN; UPDATE devices SET online = true; UPDATE devices SET address = '127.1.3.3' WHERE id = 1; COMMIT",
    );
    assert!(judged.heals());
    assert_eq!(dialled(&judged, 0), Some("127.1.3.3".parse().unwrap()));
    assert_eq!(dialled(&judged, 1), of(0));
}

fn a_device_that_is_absent_for_one_read_is_not_dialled_where_another_one_is(store: StoreUnderTest) {
    let installation = Installation::on(store, 12);
    let judged = installation.start_with(|config| {
        config.authz.refresh = Duration::from_millis(500);
        config.authz.reconcile = Duration::from_secs(3600);
    });
    let taken = Installation::address(0);
    installation.sql(&format!(
        "BEGIN; DELETE FROM devices WHERE id = 1; UPDATE devices SET address = '{taken}' WHERE id = 2; COMMIT"
    ));
    assert!(judged.comes_to(|judged| dialled(judged, 1) == Some(taken.parse().unwrap())));
    assert_eq!(dialled(&judged, 0), None);
}

fn addresses_outside_the_vpn_hold_when_they_are_many(store: StoreUnderTest) {
    let installation = Installation::on(store, 50);
    let judged = installation.start();
    installation.sql("UPDATE devices SET address = '203.0.113.' || id WHERE id <= 20");
    assert!(judged.comes_to(|judged| dialled(judged, 0) == Some("203.0.113.1".parse().unwrap())));
    assert_eq!(judged.held_by(), None, "within the allowance, and the engines dial none of them");

    installation.sql("UPDATE devices SET address = '127.1.0.' || id");
    assert!(judged.comes_to(|judged| dialled(judged, 0) == Some("127.1.0.1".parse().unwrap())));
    installation.sql("UPDATE devices SET address = '203.0.113.' || id WHERE id <= 21");
    let (rule, message) = judged.hold();
    assert_eq!(rule, Rule::Addresses, "{message}");
    assert!(message.contains("21 of 50 devices") && message.contains(" at 203.0.113."), "{message}");
    assert_eq!(dialled(&judged, 0), Some("127.1.0.1".parse().unwrap()));
    installation.sql("UPDATE devices SET address = '127.1.0.' || id");
    assert!(judged.heals());
}
