//! Every client that people have, to every service of a device.

use std::io::{Read, Write};
use std::process::Command;

use super::{echoes, echoes_a_mebibyte};
use crate::devices::{ECHO_PORT, HTTP_PORT, PAGE, SSH_PORT};
use crate::haproxy::front_of;
use crate::support::{BINARY, Content, assert_done, connect, output_of, wait_for};
use crate::world::{A, CLIENT, HOMES, World};

/// Runs the CLI against a device of each node.
pub fn the_balena_cli_reaches_ssh_http_and_echo(world: &mut World) {
    for device in [0, 2] {
        let (home, uuid) = (HOMES[device], world.devices[device].uuid);
        let open = |port| world.balena(home, &world.alice, (uuid, port));

        let echo = open(ECHO_PORT);
        let mut tunnels = [echo.dial(), echo.dial()];
        tunnels.iter_mut().for_each(echoes_a_mebibyte);

        let mut page = Vec::new();
        let web = open(HTTP_PORT);
        let mut request = web.dial();
        request.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
        request.read_to_end(&mut page).unwrap();
        assert!(page.ends_with(PAGE), "{}", String::from_utf8_lossy(&page));

        let shell = open(SSH_PORT);
        ssh_carries_a_mebibyte(world, device, &format!("socat - TCP:{}", shell.local()));
    }
}

pub fn curl_fetches_a_page_by_the_load_balancer(world: &mut World) {
    fetches_the_page(world, &front_of(world.ground.nodes[A].name), world.devices[0].uuid);
}

/// Fetches the page through `front`, which speaks TLS.
#[track_caller]
pub fn fetches_the_page(world: &World, front: &str, uuid: &str) {
    let ground = world.ground;
    let mut curl = ground.client.command("curl");
    curl.args(["--silent", "--show-error", "--max-time", "30", "--noproxy", "", "--proxytunnel"]);
    curl.arg("--proxy").arg(format!("https://{front}:443"));
    curl.arg("--proxy-cacert").arg(&ground.authority.file);
    curl.args(["--proxy-user", &format!("anybody:{}", world.alice)]);
    curl.arg(format!("http://{uuid}.balena:{HTTP_PORT}/"));
    let output = output_of(&mut curl, b"");
    assert_done(&output);
    assert_eq!(output.stdout, PAGE);
}

pub fn ssh_goes_through_a_nodes_plain_port(world: &mut World) {
    for device in [1, 2] {
        let relay = world.nodes[HOMES[device]].plain();
        ssh_carries_a_mebibyte(
            world,
            device,
            &format!("{BINARY} tunnel %h:%p --relay {relay} --plain --stdio"),
        );
    }
}

pub fn sluicegate_tunnel_carries_a_local_port(world: &mut World) {
    let place = &world.ground.client;
    let mut tunnel = place.command(BINARY);
    tunnel.args(["tunnel", &format!("{}:{ECHO_PORT}", world.devices[1].uuid)]);
    tunnel.args(["--relay", &world.nodes[A].plain(), "--plain", "--listen", "127.0.0.1:0"]);
    let program = place.start("tunnel", tunnel.env("SLUICEGATE_TOKEN", &world.alice));
    let local = program.listens_on();
    echoes_a_mebibyte(&mut place.enter(|| connect(local)));
}

/// Though the relay sees none but the load balancer.
pub fn the_audit_log_has_the_true_client(world: &mut World) {
    let cli = world.balena(A, &world.alice, (world.devices[1].uuid, ECHO_PORT));
    let mut tunnel = cli.dial();
    assert!(echoes(&mut tunnel));
    let audit = world.nodes[A].audit();
    let before = audit.events().len();
    drop((tunnel, cli));
    let ends = || audit.events().into_iter().skip(before).find(|event| event["event"] == "session-end");
    let end = wait_for(ends).expect("the end is noted");
    assert!(end["client"].as_str().unwrap().starts_with(&format!("{CLIENT}:")), "{end}");
    assert_eq!((&end["uuid"], &end["node"]), (&world.devices[1].uuid.into(), &"node-a".into()), "{end}");
}

/// Logs in to a device by this ProxyCommand, and has a `cat` there give back what it gets.
#[track_caller]
pub fn ssh_carries_a_mebibyte(world: &World, device: usize, proxy_command: &str) {
    let content = Content::new(2, 1 << 20);
    let device = &world.devices[device];
    let mut ssh: Command = device.sshd.cat_through(device.uuid, proxy_command);
    ssh.env("SLUICEGATE_TOKEN", &world.alice);
    let output = world.ground.client.enter(|| output_of(&mut ssh, &content.to_vec()));
    assert_done(&output);
    assert_eq!(Content::digest_of(&output.stdout), content.digest());
}
