//! Nobody is sent to another's device: where it cannot be told whose an address is, that device is refused, and no other.

use std::net::IpAddr;

use crate::support::{Installation, Judged, StoreUnderTest, on_both_stores};
use sluicegate::authz::{Decision, Refusal};

on_both_stores! {
    devices_that_change_places_by_a_query_are_never_dialled_at_anothers,
    a_join_on_the_wrong_number_sends_nobody_elsewhere,
    all_devices_at_one_address_are_never_dialled_there,
    one_device_that_a_query_puts_at_anothers_address_is_not_dialled_there,
    an_address_that_was_given_to_another_device_is_that_ones_at_once,
    an_address_that_was_given_away_is_not_dialled_in_a_hold,
    a_device_that_is_missing_is_not_dialled_where_another_one_is,
    devices_that_move_to_free_addresses_are_dialled_there,
}

fn with_address(address: &str) -> String {
    format!("SELECT id, uuid, name, fleet, {address} AS address, node, online, created_at FROM devices_table")
}

/// The address of the device with this number in the table.
fn address_of(number: &str) -> String {
    format!("(SELECT other.address FROM devices_table AS other WHERE other.id = {number})")
}

/// The address that is dialled for `device`; `None` if it is not dialled.
fn dialled(judged: &Judged, device: usize) -> Option<IpAddr> {
    match judged.decide(device) {
        Decision::Allow(route) => Some(route.address),
        _ => None,
    }
}

fn own(device: usize) -> Option<IpAddr> {
    Some(Installation::address(device).parse().unwrap())
}

/// Asserts that each device is dialled at its own address or is disputed, and returns the number of the former.
#[track_caller]
fn nobody_is_elsewhere(judged: &Judged, devices: usize) -> usize {
    let is_reached = |device: &usize| {
        let decision = judged.decide(*device);
        let is_reached = matches!(&decision, Decision::Allow(route) if Some(route.address) == own(*device));
        assert!(
            is_reached || decision == Decision::Refuse(Refusal::DeviceDisputed),
            "{device}: {decision:?}"
        );
        is_reached
    };
    (0..devices).filter(is_reached).count()
}

/// Puts a wrong address into the query of `devices` devices, and asserts that nobody is sent elsewhere at any time, that at
/// least `reached` go on being reached, and that all are at the second read after the mend.
#[track_caller]
fn sends_nobody_elsewhere(store: StoreUnderTest, devices: usize, address: &str, reached: usize) {
    let installation = Installation::on(store, devices);
    let judged = installation.start();
    installation.replace_query("devices", &with_address(address));
    let held = judged.comes_to(|judged| {
        nobody_is_elsewhere(judged, devices);
        judged.held_by().is_some()
    });
    assert!(held, "nothing was held");
    judged.read_whole(2);
    let count = nobody_is_elsewhere(&judged, devices);
    assert!(count >= reached, "{count} are reached; {:?}", judged.holds());
    assert_eq!(judged.status().disputed_devices, devices - count);
    installation.restore_query("devices");
    judged.read_whole(2);
    assert_eq!((nobody_is_elsewhere(&judged, devices), judged.held_by()), (devices, None));
    assert_eq!(judged.status().disputed_devices, 0);
}

fn devices_that_change_places_by_a_query_are_never_dialled_at_anothers(store: StoreUnderTest) {
    let swapped = address_of("CASE devices_table.id WHEN 1 THEN 2 WHEN 2 THEN 1 ELSE devices_table.id END");
    sends_nobody_elsewhere(store, 12, &swapped, 10);
}

fn a_join_on_the_wrong_number_sends_nobody_elsewhere(store: StoreUnderTest) {
    for devices in [3, 40] {
        let next = address_of(&format!("devices_table.id % {devices} + 1"));
        sends_nobody_elsewhere(store, devices, &next, 0);
    }
}

fn all_devices_at_one_address_are_never_dialled_there(store: StoreUnderTest) {
    for devices in [3, 40] {
        sends_nobody_elsewhere(store, devices, &address_of("1"), devices - 1);
    }
}

fn one_device_that_a_query_puts_at_anothers_address_is_not_dialled_there(store: StoreUnderTest) {
    let taken = format!("CASE id WHEN 1 THEN {} ELSE address END", address_of("2"));
    sends_nobody_elsewhere(store, 12, &taken, 10);
}

fn an_address_that_was_given_to_another_device_is_that_ones_at_once(store: StoreUnderTest) {
    let installation = Installation::on(store, 12);
    let judged = installation.start();
    // A VPN server gives the address of the first device to the second one, and has nothing said of the first yet.
    installation.sql(&format!("UPDATE devices SET address = '{}' WHERE id = 2", Installation::address(0)));
    assert!(judged.comes_to(|judged| dialled(judged, 1) == own(0)));
    assert_eq!(
        judged.decide(0),
        Decision::Refuse(Refusal::DeviceDisputed),
        "the address is the second one's"
    );
    assert_eq!((judged.allowed(), judged.held_by()), (11, None));
    installation.sql("UPDATE devices SET address = '127.1.9.9' WHERE id = 1");
    assert!(judged.comes_to(|judged| dialled(judged, 0) == Some("127.1.9.9".parse().unwrap())));
    assert_eq!(judged.status().disputed_devices, 0);
}

fn an_address_that_was_given_away_is_not_dialled_in_a_hold(store: StoreUnderTest) {
    let installation = Installation::on(store, 30);
    let judged = installation.start();
    let offline = "SELECT id, uuid, name, fleet, address, node, online AND id <= 2 AS online, created_at FROM devices_table";
    installation.replace_query("devices", offline);
    judged.holds_groups(&["devices.unlocated"]);
    assert_eq!(judged.allowed(), 30);
    // Meanwhile the second device comes to where the fifth was.
    installation
        .sql(&format!("UPDATE devices_table SET address = '{}' WHERE id = 2", Installation::address(4)));
    let moved = judged.comes_to(|judged| dialled(judged, 1) == own(4));
    assert!(moved, "{:?}, {:?}, {:?}", judged.decide(1), judged.holds(), judged.status().last_error);
    assert!(judged.comes_to(|judged| dialled(judged, 4).is_none()));
    assert_eq!((dialled(&judged, 5), judged.allowed()), (own(5), 29));
}

fn a_device_that_is_missing_is_not_dialled_where_another_one_is(store: StoreUnderTest) {
    let installation = Installation::on(store, 30);
    let judged = installation.start();
    installation.replace_query("devices", "SELECT * FROM devices_table WHERE id > 20 OR id = 2");
    judged.holds_groups(&["devices.absent"]);
    installation
        .sql(&format!("UPDATE devices_table SET address = '{}' WHERE id = 2", Installation::address(0)));
    assert!(judged.comes_to(|judged| dialled(judged, 1) == own(0)));
    assert_eq!(dialled(&judged, 0), None);
    assert_eq!((dialled(&judged, 5), judged.allowed()), (own(5), 29));
}

fn devices_that_move_to_free_addresses_are_dialled_there(store: StoreUnderTest) {
    let installation = Installation::on(store, 30);
    let judged = installation.start();
    let address = match store {
        StoreUnderTest::Sqlite => "address",
        StoreUnderTest::Postgres(_) => "host(address)",
    };
    let moved = format!("CASE WHEN id <= 9 THEN '127.1.8.' || id ELSE {address} END");
    installation.replace_query("devices", &with_address(&moved));
    assert!(judged.comes_to(|judged| dialled(judged, 0) == Some("127.1.8.1".parse().unwrap())));
    assert_eq!((judged.allowed(), judged.held_by()), (30, None));
    installation.restore_query("devices");
    judged.read_whole(2);
    assert_eq!((dialled(&judged, 0), judged.held_by()), (own(0), None));
}
