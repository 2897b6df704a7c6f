//! Devices by the node that does not hold them, which hands the request to the one that does.

use std::time::{Duration, Instant};

use super::clients::{fetches_the_page, ssh_carries_a_mebibyte};
use super::revocation::revoke_one_of_two;
use super::{echoes, echoes_a_mebibyte};
use crate::devices::ECHO_PORT;
use crate::haproxy::front_of;
use crate::support::{BINARY, wait_for};
use crate::world::{A, B, CLIENT, HOMES, World};

/// Both ways round; both nodes note who it was.
pub fn every_client_reaches_a_device_of_the_other_node(world: &mut World) {
    for (node, device) in [(A, 2), (B, 0)] {
        let uuid = world.devices[device].uuid;
        let cli = world.balena(node, &world.alice, (uuid, ECHO_PORT));
        let mut tunnel = cli.dial();
        echoes_a_mebibyte(&mut tunnel);
        let client = world.session_of(node, uuid);
        assert_eq!(client, world.session_of(HOMES[device], uuid), "the next node was told of the client");
        assert!(client.starts_with(&format!("{CLIENT}:")), "{client}");
        drop(tunnel);

        fetches_the_page(world, &front_of(world.ground.nodes[node].name), uuid);
        let relay = world.nodes[node].plain();
        ssh_carries_a_mebibyte(
            world,
            device,
            &format!("{BINARY} tunnel %h:%p --relay {relay} --plain --stdio"),
        );
    }
}

pub fn the_cli_shows_what_the_next_node_refuses(world: &mut World) {
    let (uuid, closed_port) = (world.devices[2].uuid, 9);
    let cli = world.balena(A, &world.alice, (uuid, closed_port));
    assert_eq!(cli.error(), "Unable to connect: 502 Device Port Closed");
    world.audited(A, "what it was told", |event| event["cause"] == "refused-by-node");
    world.audited(B, "the refusal", |event| event["cause"] == "device-port-closed");
}

pub fn a_revoked_token_ends_a_tunnel_by_both_nodes(world: &mut World) {
    let credential = revoke_one_of_two(world, 2);
    let is_end = |event: &serde_json::Value| {
        event["cause"] == "credential-revoked" && event["credential"] == credential.as_str()
    };
    // Whichever hears of it first; the other loses the connection between them.
    let heard = wait_for(|| {
        let events = [A, B].map(|node| world.nodes[node].audit().events());
        events.iter().flatten().any(is_end).then_some(())
    });
    assert!(heard.is_some(), "{credential}");
}

/// Kills a node: its devices are offline, and nobody else notices. The node comes back, and so do its devices.
pub fn a_node_that_dies_takes_nobody_elses_devices_down(world: &mut World) {
    let [near, _, far] = world.devices.each_ref().map(|device| device.uuid);
    let cli = world.balena(A, &world.alice, (near, ECHO_PORT));
    let mut tunnel = cli.dial();
    assert!(echoes(&mut tunnel));

    world.nodes[B].kill();
    // It is asked again, as a node that is being restarted, until the directory has it as stale.
    let is_refused = || (world.ask(A, far).status == 503 && world.notes_last(A, "node-stale")).then_some(());
    assert!(wait_for(is_refused).is_some());
    assert!(echoes(&mut tunnel) && echoes(&mut cli.dial()));

    world.nodes[B].start_again();
    let is_back = || (world.ask(A, far).status == 200).then_some(());
    assert!(wait_for(is_back).is_some());
}

/// Said, not judged: these machines are shared.
pub fn forwarded_beside_local_is_measured(world: &mut World) {
    for (name, device) in [("local", 0), ("forwarded", 2)] {
        let uuid = world.devices[device].uuid;
        let mut took: Vec<Duration> = (0..SETUPS)
            .map(|_| {
                // As people come, so that a connection between the nodes can be there before.
                std::thread::sleep(Duration::from_millis(30));
                let began = Instant::now();
                drop(world.ask(A, uuid).opened());
                began.elapsed()
            })
            .collect();
        took.sort_unstable();
        let cli = world.balena(A, &world.alice, (uuid, ECHO_PORT));
        let mut tunnel = cli.dial();
        let began = Instant::now();
        (0..MEBIBYTES).for_each(|_| echoes_a_mebibyte(&mut tunnel));
        let rate = f64::from(MEBIBYTES) / began.elapsed().as_secs_f64();
        let [median, p90] = [SETUPS / 2, SETUPS * 9 / 10].map(|place| took[place].as_secs_f64() * 1e3);
        println!(
            "          {name}: CONNECT to 200 in {median:.2} ms (median; p90 {p90:.2}), echo by the CLI {rate:.0} MiB/s"
        );
    }
}

const SETUPS: usize = 100;

const MEBIBYTES: u32 = 32;
