//! The load balancer: ends TLS on port 443 as in openBalena, and tells the nodes who the client is by the PROXY
//! protocol, version 2.

use crate::pki::{Authority, Holder};
use crate::places::{Place, Program};
use crate::relays::PROXIED_PORT;

/// The name that clients connect to: HAProxy picks any node that is up.
pub const FRONT: &str = "tunnel.devices.test";

/// The name that leads to one node, `NODE.tunnel.devices.test`.
pub fn front_of(node: &str) -> String {
    format!("{node}.{FRONT}")
}

/// A certificate for [`FRONT`] and [`front_of`] each node.
pub fn start(place: &Place, nodes: &[Place], authority: &Authority) -> Program {
    let fronts: Vec<String> = nodes.iter().map(|node| front_of(node.name)).collect();
    let names: Vec<&str> = fronts.iter().map(String::as_str).chain([FRONT]).collect();
    let pair = authority.issue(FRONT, &Holder::Server(&names));
    let server =
        |node: &Place| format!(" server {} {}:{PROXIED_PORT} send-proxy-v2 check\n", node.name, node.address);
    let by_name = nodes.iter().map(|node| {
        let (name, front) = (node.name, front_of(node.name));
        let choice = format!(" use_backend {name} if {{ ssl_fc_sni -i {front} }}\n");
        (choice, format!("backend {name}\n{}", server(node)))
    });
    let (choices, backends): (String, String) = by_name.unzip();
    let config = format!(
        "global\n maxconn 1000\n\
         defaults\n mode tcp\n timeout connect 5s\n timeout client 1h\n timeout server 1h\n\
         frontend tunnels\n bind :443 ssl crt {} alpn http/1.1\n{choices} default_backend nodes\n\
         backend nodes\n balance roundrobin\n{}{backends}",
        pair.both.display(),
        nodes.iter().map(server).collect::<String>(),
    );
    let file = place.folder().join("haproxy.cfg");
    std::fs::write(&file, config).unwrap();
    place.start("haproxy", place.command("haproxy").args(["-db", "-V", "-f"]).arg(file))
}
