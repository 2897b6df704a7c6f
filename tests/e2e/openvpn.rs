//! The real OpenVPN: a server on each node, a client on each device, who know each other by certificates. A device's
//! name in its certificate is its uuid.
//!
//! Nothing but the relays tells the store where devices are.

use std::path::Path;

use crate::pki::{Authority, Holder, Pair};
use crate::places::{Place, Program};
use crate::support::BINARY;

/// A VPN server with a /24 of its own, behind `tun0`.
pub struct Server {
    program: Program,
    pub network: String,
    /// The entry of `vpn.addresses` by which a relay learns the addresses of its clients.
    pub addresses: String,
}

impl Server {
    /// Its network is `10.240.NUMBER.0/24`. When this returns, `tun0` is there. The first tells of its clients by its
    /// management socket, others by the hook.
    pub fn start(place: &Place, number: u8, authority: &Authority) -> Self {
        let Pair { certificate, key, .. } = authority.issue(place.name, &Holder::Server(&[place.name]));
        let (options, addresses) = match number {
            1 => by_management_socket(&place.folder().join("openvpn.sock")),
            _ => by_hook(&place.folder().join("openvpn.addresses")),
        };
        let config = format!(
            "server 10.240.{number}.0 255.255.255.0\ntopology subnet\ndev tun0\nproto udp4\ndh none\n\
             ca {ca}\ncert {certificate}\nkey {key}\n\
             keepalive 1 {SILENCE_SECONDS}\nstatus {status} 1\nstatus-version 2\ndisable-dco\n{options}\n",
            ca = authority.file.display(),
            certificate = certificate.display(),
            key = key.display(),
            status = place.folder().join("openvpn.status").display(),
        );
        let program = start(place, &config);
        program.says("Initialization Sequence Completed");
        Self { program, network: format!("10.240.{number}.0/24"), addresses }
    }

    /// Waits until it has noticed that a device is silent.
    #[track_caller]
    pub fn gives_up(&self, uuid: &str) {
        self.program.says(&format!("[{uuid}] Inactivity timeout (--ping-restart)"));
    }
}

/// Options of a server, and the source of `vpn.addresses` that follows it.
fn by_management_socket(socket: &Path) -> (String, String) {
    (format!("management {} unix", socket.display()), format!("openvpn:{}", socket.display()))
}

fn by_hook(file: &Path) -> (String, String) {
    let hook = format!("\"{BINARY} vpn openvpn-hook --addresses {}\"", file.display());
    let options = ["learn-address", "client-disconnect", "up"].map(|script| format!("{script} {hook}\n"));
    (format!("script-security 2\n{}", options.concat()), format!("file:{}", file.display()))
}

/// A device's VPN connection. Gone without a word when dropped, as a device that loses its network is.
pub struct Client(Program);

impl Client {
    /// Connects to the server in `node`, and waits until the tunnel is up.
    pub fn start(place: &Place, node: &Place, pair: &Pair, authority: &Authority) -> Self {
        let config = format!(
            "client\ndev tun0\nproto udp4\nremote {} 1194\nnobind\nconnect-retry 1 1\nremote-cert-tls server\n\
             ca {}\ncert {}\nkey {}\nexplicit-exit-notify 1\ndisable-dco\n",
            node.address,
            authority.file.display(),
            pair.certificate.display(),
            pair.key.display(),
        );
        let program = start(place, &config);
        program.says("Initialization Sequence Completed");
        Self(program)
    }

    /// Says goodbye to the server.
    pub fn leave(self) {
        self.0.stop();
    }
}

fn start(place: &Place, config: &str) -> Program {
    let file = place.folder().join("openvpn.conf");
    std::fs::write(&file, config).unwrap();
    place.start("openvpn", place.command("openvpn").arg("--config").arg(file))
}

/// Seconds of silence after which a server counts a device as gone.
const SILENCE_SECONDS: u8 = 4;
