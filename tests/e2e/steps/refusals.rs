//! What people are told who get no tunnel, and what the audit log knows beside it.

use crate::balena::Balena;
use crate::devices::{ECHO_PORT, HTTP_PORT, SSH_PORT};
use crate::haproxy::{FRONT, front_of};
use crate::relays::{PLAIN_PORT, PROXIED_PORT};
use crate::support::output_of;
use crate::world::{A, B, CLIENT, NEVER_CONNECTED, UNKNOWN, World};

/// Compares what the CLI shows with the cause in the audit log.
pub fn the_cli_shows_why_it_is_refused(world: &mut World) {
    let (alice, bob, first) = (&*world.alice, &*world.bob, world.devices[0].uuid);
    for (token, target, shown, cause) in [
        ("sg_nobody", (first, SSH_PORT), "407 Proxy Authentication Required", "credential-unknown"),
        (bob, (first, ECHO_PORT), "403 Tunnel Not Permitted", "port-not-granted"),
        (bob, (world.devices[1].uuid, SSH_PORT), "403 Tunnel Not Permitted", "no-grant"),
        (alice, (UNKNOWN, SSH_PORT), "403 Tunnel Not Permitted", "device-unknown"),
        (alice, (NEVER_CONNECTED, SSH_PORT), "503 Device Offline", "device-offline"),
        (alice, (first, 9), "502 Device Port Closed", "device-port-closed"),
    ] {
        let cli = world.balena(A, token, target);
        assert_eq!(cli.error(), format!("Unable to connect: {shown}"), "{cause}");
        let (uuid, port) = target;
        let is_it = |event: &serde_json::Value| {
            event["event"] == "refusal" && event["uuid"] == uuid && event["port"] == port
        };
        let event = world.audited(A, cause, |event| is_it(event) && event["cause"] == cause);
        assert!(event["client"].as_str().unwrap().starts_with(&format!("{CLIENT}:")), "{event}");
    }
}

/// Both of them behind the name that people dial.
pub fn the_load_balancer_uses_both_nodes(world: &mut World) {
    let ground = world.ground;
    for _ in &world.nodes {
        let target = (UNKNOWN, HTTP_PORT);
        let cli = Balena::start(&ground.client, &ground.authority, FRONT, "sg_nobody", target);
        assert_eq!(cli.error(), "Unable to connect: 407 Proxy Authentication Required");
    }
    for node in [A, B] {
        world.audited(node, "its share", |event| {
            event["cause"] == "credential-unknown" && event["port"] == HTTP_PORT
        });
    }
}

/// Sends bad input with TLS, without TLS, and around the load balancer.
pub fn bad_input_is_answered(world: &mut World) {
    let node = &world.ground.nodes[A];
    let (front, authority) = (front_of(node.name), world.ground.authority.file.display().to_string());
    let tls = format!("OPENSSL:{front}:443,cafile={authority},verify=1,snihost={front},commonname={front}");
    let plain = format!("TCP:{}:{PLAIN_PORT}", node.address);
    let too_long = format!("CONNECT {UNKNOWN}.balena:80 HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(9_000));
    let is_told = |address: &str, input: &str, wanted: &str| {
        let mut socat = world.ground.client.command("socat");
        let output = output_of(socat.args(["-t", "10", "-", address]), input.as_bytes());
        let message = String::from_utf8_lossy(&output.stdout).into_owned();
        let (status, _) = message.split_once("\r\n").unwrap_or_default();
        assert!(status.ends_with(wanted), "{address} answers {message:?} to {input:.40?}");
    };
    for address in [&tls, &plain] {
        is_told(address, "what is this\r\n\r\n", "400 Bad Request");
        is_told(address, "GET / HTTP/1.1\r\nHost: relay\r\n\r\n", "405 Method Not Allowed");
        is_told(address, "CONNECT neverland:80 HTTP/1.1\r\n\r\n", "400 Bad Request");
        is_told(address, &too_long, "431 Request Header Fields Too Large");
    }
    let uninvited = format!("TCP:{}:{PROXIED_PORT}", node.address);
    is_told(&uninvited, "PROXY TCP4 192.0.2.7 192.0.2.8 5000 443\r\n", "400 Bad Request");
    let event = world.audited(A, "who came past the balancer", |event| event["cause"] == "proxy-untrusted");
    assert!(event["client"].as_str().unwrap_or_default().starts_with(&format!("{CLIENT}:")), "{event}");

    // TLS where the relay speaks none: openssl does not take the answer for TLS, and the relay goes on.
    let mut openssl = world.ground.client.command("openssl");
    openssl.args(["s_client", "-connect", &format!("{}:{PLAIN_PORT}", node.address)]);
    assert!(!output_of(&mut openssl, b"").status.success());
    assert_eq!(world.ask(A, world.devices[0].uuid).status, 200);
}
