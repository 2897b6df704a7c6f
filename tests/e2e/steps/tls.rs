//! Clients that come straight to a node by TLS, with no load balancer in front.

use super::clients::fetches_the_page;
use super::echoes_a_mebibyte;
use crate::balena::Balena;
use crate::devices::ECHO_PORT;
use crate::relays::direct_name_of;
use crate::world::{A, B, CLIENT, World};

pub fn the_cli_and_curl_come_straight_to_a_node(world: &mut World) {
    let ground = world.ground;
    for (node, device) in [(A, 0), (A, 2), (B, 2)] {
        let (name, uuid) = (direct_name_of(ground.nodes[node].name), world.devices[device].uuid);
        let target = (uuid, ECHO_PORT);
        let cli = Balena::start(&ground.client, &ground.authority, &name, &world.alice, target);
        echoes_a_mebibyte(&mut cli.dial());
        fetches_the_page(world, &name, uuid);
        let refused = Balena::start(&ground.client, &ground.authority, &name, "nobody's", target);
        assert_eq!(refused.error(), "Unable to connect: 407 Proxy Authentication Required");
        world.audited(node, "the client", |event| {
            event["uuid"] == uuid
                && event["client"].as_str().is_some_and(|it| it.starts_with(&CLIENT.to_string()))
        });
    }
}
