//! The incident of 30 September 2025, on the path where it happened: the query that finds out where devices are
//! compares a device with its flag (`d eq is_connected_to_vpn` for `d/is_connected_to_vpn`), and finds none. It ran for
//! devices of another instance alone, so that one which loses just these is played as well.

use std::net::TcpStream;

use super::{echoes, echoes_a_mebibyte};
use crate::balena::Balena;
use crate::devices::ECHO_PORT;
use crate::support::wait_for;
use crate::world::{A, B, World};

/// Makes the change of 30 September twice. In the relays' configuration it is refused; in a view that the query reads
/// it is held. Open tunnels stay, and new ones open, at the node that holds the device and at the other one.
pub fn the_query_change_of_30_september_is_held(world: &mut World) {
    let routes = [A, B].into_iter().flat_map(|node| world.devices.iter().map(move |device| (node, device)));
    let clis: Vec<Balena> =
        routes.map(|(node, device)| world.balena(node, &world.alice, (device.uuid, ECHO_PORT))).collect();
    let mut tunnels: Vec<TcpStream> = clis.iter().map(Balena::dial).collect();
    let mut goes_on = || {
        assert!(tunnels.iter_mut().all(echoes), "a tunnel has ended");
        clis.iter().for_each(|cli| echoes_a_mebibyte(&mut cli.dial()));
    };
    goes_on();

    for fault in FAULTS {
        deploy(world, &location(fault), "devices.unlocated by rule budget");
        goes_on();
    }

    let role = world.store.relay_role();
    world
        .store
        .by_hand(&format!("CREATE VIEW located AS {}; GRANT SELECT ON located TO {role}", location(TRUTH)));
    deploy(world, "SELECT * FROM located", "reloaded");
    for fault in FAULTS {
        world.store.by_hand(&format!("CREATE OR REPLACE VIEW located AS {}", location(fault)));
        for node in &world.nodes {
            // Held for their number, until the devices and the nodes that have them were asked.
            let by_location = wait_for(|| node.held_by().filter(|rule| rule == "location"));
            assert!(by_location.is_some(), "{}: {fault}: {:?}", node.place.name, node.held_by());
        }
        goes_on();

        world.store.by_hand(&format!("CREATE OR REPLACE VIEW located AS {}", location(TRUTH)));
        for node in &world.nodes {
            let is_healed = || node.held_by().is_none().then_some(());
            assert!(wait_for(is_healed).is_some(), "{}: {fault}", node.place.name);
        }
        goes_on();
    }
    for node in &world.nodes {
        assert!(node.reload_with("").contains("reloaded"));
    }
    world.store.by_hand("DROP VIEW located");
}

/// Has each node read its devices by this query; `outcome` is what they say of it.
#[track_caller]
fn deploy(world: &World, query: &str, outcome: &str) {
    for node in &world.nodes {
        let file = node.place.folder().join("devices.sql");
        std::fs::write(&file, query).unwrap();
        let said = node.reload_with(&format!("\n[authz.queries]\ndevices = \"{}\"\n", file.display()));
        assert!(said.contains(outcome), "{}: {said}", node.place.name);
    }
}

fn location(is_connected: &str) -> String {
    format!(
        "SELECT device.id AS device, device.uuid, device.fleet, device.address, device.node,
            {is_connected} AS online FROM sluicegate.devices AS device"
    )
}

const TRUTH: &str = "device.online";

/// Well-typed, quick, and true of no device; or of none that node-b holds.
const FAULTS: [&str; 2] = ["(device.id = device.online::int)", "(device.online AND device.node = 'node-a')"];
