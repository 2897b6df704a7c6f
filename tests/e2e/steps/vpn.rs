//! VPN connections that end and come back, here or elsewhere.

use std::time::Duration;

use super::{echoes, echoes_a_mebibyte};
use crate::devices::ECHO_PORT;
use crate::support::wait_for;
use crate::world::{A, B, World};

/// Checks that new requests get "offline". An open tunnel is left to TCP, so it can outlive a short break of the VPN.
pub fn a_device_that_leaves_the_vpn_is_offline(world: &mut World) {
    let (third, uuid) = (2, world.devices[2].uuid);
    let cli = world.balena(B, &world.alice, (uuid, ECHO_PORT));
    let mut tunnel = cli.dial();
    assert!(echoes(&mut tunnel));

    world.devices[third].disconnect();
    is_refused(world, B, uuid, "device-offline");

    world.connect(third, B);
    echoes_a_mebibyte(&mut cli.dial());
    assert!(echoes(&mut tunnel), "the device has come back to the address that it had");
}

/// It loses its network, comes back by the other node, and what the first one notices later does not count.
pub fn a_device_that_moves_is_found_at_its_new_node(world: &mut World) {
    let (second, uuid) = (1, world.devices[1].uuid);
    world.devices[second].vanish();
    world.connect(second, B);
    let cli = world.balena(B, &world.alice, (uuid, ECHO_PORT));
    echoes_a_mebibyte(&mut cli.dial());
    reach_by_the_node_that_does_not_hold_it(world, A, uuid);

    world.nodes[A].vpn.gives_up(uuid);
    // Until the relay beside it has asked it again.
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(world.store.holder(uuid).as_deref(), Some("node-b"), "it was not overruled");

    world.devices[second].disconnect();
    world.connect(second, A);
    reach_by_the_node_that_does_not_hold_it(world, B, uuid);
}

/// Reaches the device through the other node, as soon as that node has read where the device is.
#[track_caller]
fn reach_by_the_node_that_does_not_hold_it(world: &World, node: usize, uuid: &str) {
    let is_reached = || (world.ask(node, uuid).status == 200).then_some(());
    assert!(wait_for(is_reached).is_some());
    let cli = world.balena(node, &world.alice, (uuid, ECHO_PORT));
    echoes_a_mebibyte(&mut cli.dial());
}

/// Waits until the CLI shows that the device is offline at a node, which notes this cause.
#[track_caller]
fn is_refused(world: &World, node: usize, uuid: &str, cause: &str) {
    let is_offline = || (world.ask(node, uuid).status == 503).then_some(());
    assert!(wait_for(is_offline).is_some(), "{cause}");
    let cli = world.balena(node, &world.alice, (uuid, ECHO_PORT));
    assert_eq!(cli.error(), "Unable to connect: 503 Device Offline");
    world.audited(node, cause, |event| event["uuid"] == uuid && event["cause"] == cause);
}
