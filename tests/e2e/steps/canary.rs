//! The canary, from where clients are.

use std::process::Output;

use serde_json::Value;

use crate::devices::{ECHO_PORT, SSH_PORT};
use crate::haproxy::front_of;
use crate::support::{BINARY, output_of, wait_for};
use crate::world::{A, B, World, token};

/// Through the load balancer, to a device of each node; with rights of its own.
pub fn the_canary_takes_both_ways_and_tells_which_is_broken(world: &mut World) {
    let [near, other, far] = world.devices.each_ref().map(|device| device.uuid);
    world.store.cli(&["principal", "add", "canary"]);
    for uuid in [near, far] {
        world.store.cli(&["grant", "add", "canary", "--device", uuid, "--ports", &SSH_PORT.to_string()]);
    }
    let (token, _) = token(&world.store, "canary");
    let fly = |world: &World| -> (Value, Output) {
        let ground = world.ground;
        let mut canary = ground.client.command(BINARY);
        canary.args(["canary", "--json", "--relay", &format!("{}:443", front_of(ground.nodes[A].name))]);
        canary.arg("--ca").arg(&ground.authority.file);
        canary.args(["--device", &format!("{near}:{SSH_PORT}"), "--forwarded", &format!("{far}:{SSH_PORT}")]);
        canary.args(["--refused", &format!("{other}:{ECHO_PORT}")]);
        let output = output_of(canary.env("SLUICEGATE_TOKEN", &token), b"");
        (serde_json::from_slice(&output.stdout).unwrap_or_default(), output)
    };

    // Until the nodes know what the canary may.
    let satisfied = wait_for(|| Some(fly(world)).filter(|(_, output)| output.status.success()));
    let (message, _) = satisfied.unwrap_or_else(|| panic!("{:?}", fly(world)));
    let steps: Vec<&str> =
        message["steps"].as_array().unwrap().iter().filter_map(|step| step["step"].as_str()).collect();
    assert_eq!(steps, ["connect", "tls", "device", "forwarded", "token", "refused"], "{message}");

    world.nodes[B].kill();
    let (message, output) = fly(world);
    assert_eq!(message["failed_step"], "forwarded", "{message} {output:?}");
    assert_eq!(output.status.code(), Some(1));
    world.nodes[B].start_again();
    assert!(wait_for(|| (world.ask(A, far).status == 200).then_some(())).is_some());
}
