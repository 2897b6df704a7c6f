//! A right that ends while it is used.

use std::io::Read;

use super::{echoes, echoes_a_mebibyte};
use crate::devices::ECHO_PORT;
use crate::world::{A, World, token};

pub fn a_revoked_token_ends_a_live_cli_tunnel(world: &mut World) {
    let credential = revoke_one_of_two(world, 0);
    let end = world.audited(A, "the end", |event| event["cause"] == "credential-revoked");
    assert_eq!((&end["event"], &end["credential"]), (&"session-end".into(), &credential.into()), "{end}");
}

/// Opens two tunnels at node A to one device and revokes the token of one: that tunnel ends. Returns its credential.
pub fn revoke_one_of_two(world: &World, device: usize) -> String {
    let target = (world.devices[device].uuid, ECHO_PORT);
    let (doomed, credential) = token(&world.store, "alice");
    let (doomed_cli, other_cli) = (world.balena(A, &doomed, target), world.balena(A, &world.alice, target));
    let (mut doomed_tunnel, mut other_tunnel) = (doomed_cli.dial(), other_cli.dial());
    echoes_a_mebibyte(&mut doomed_tunnel);
    assert!(echoes(&mut other_tunnel));

    world.store.cli(&["token", "revoke", &credential]);
    let mut rest = Vec::new();
    let _ended_either_way = doomed_tunnel.read_to_end(&mut rest);
    assert!(rest.is_empty());
    assert!(echoes(&mut other_tunnel));
    assert_eq!(doomed_cli.error(), "Unable to connect: 407 Proxy Authentication Required");
    credential
}
