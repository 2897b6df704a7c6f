//! The real OpenVPN: a server on each node, a client on each device, who know each other by certificates. A device's
//! name in its certificate is its uuid.
//!
//! The server's hook writes to the store which node holds a device, as openBalena's API does when its VPN tells it;
//! the address is known to the server alone.

use std::fmt::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use crate::pki::{Authority, Holder, Pair};
use crate::places::{Place, Program};
use crate::store::Store;

/// A VPN server with a /24 of its own, behind `tun0`.
pub struct Server {
    program: Program,
    pub network: String,
    /// By which it tells the addresses of its clients, as in `vpn.addresses`.
    pub addresses: String,
}

impl Server {
    /// Its network is `10.240.NUMBER.0/24`. When this returns, `tun0` is there. The first tells addresses by its
    /// management socket, others by their status file.
    pub fn start(place: &Place, number: u8, authority: &Authority, store: &Store) -> Self {
        let Pair { certificate, key, .. } = authority.issue(place.name, &Holder::Server(&[place.name]));
        let folder = place.folder();
        let config = format!(
            "server 10.240.{number}.0 255.255.255.0\ntopology subnet\ndev tun0\nproto udp4\ndh none\n\
             ca {ca}\ncert {certificate}\nkey {key}\n\
             keepalive 1 {SILENCE_SECONDS}\nscript-security 2\nclient-connect {hook}\nclient-disconnect {hook}\n\
             management {management} unix\nstatus {status} 1\nstatus-version 2\ndisable-dco\n",
            ca = authority.file.display(),
            certificate = certificate.display(),
            key = key.display(),
            hook = hook(place, store).display(),
            management = folder.join("openvpn.sock").display(),
            status = folder.join("openvpn.status").display(),
        );
        let program = start(place, &config);
        program.says("Initialization Sequence Completed");
        let told_by = if number == 1 { "openvpn.sock" } else { "openvpn.status" };
        Self {
            program,
            network: format!("10.240.{number}.0/24"),
            addresses: format!("openvpn:{}", folder.join(told_by).display()),
        }
    }

    /// Waits until the hook has told that a device has gone.
    #[track_caller]
    pub fn tells_of_the_end_of(&self, uuid: &str) {
        self.program.says(&format!("told: client-disconnect {uuid}"));
    }
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

/// A script that OpenVPN runs when a device has come and when it has gone. What a node says of a
/// device that another one has got meanwhile is not heard.
fn hook(place: &Place, store: &Store) -> PathBuf {
    let mut script = String::from("#!/bin/sh\nset -e\nPATH=/usr/bin:/bin\n");
    write!(
        script,
        r#"case $script_type in
client-connect) change="node = :'node', online = true" where=true ;;
*) change="online = false" where="node = :'node'" ;;
esac
psql -qX -v ON_ERROR_STOP=1 -v uuid="$common_name" -v node={node} '{url}' <<SQL
UPDATE sluicegate.devices SET $change WHERE uuid = :'uuid' AND $where;
SQL
echo "told: $script_type $common_name"
"#,
        node = place.name,
        url = store.owner_url(),
    )
    .unwrap();
    let file = place.folder().join("openvpn-hook");
    std::fs::write(&file, script).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
    file
}

/// After so long a silence a server takes a device for gone.
const SILENCE_SECONDS: u8 = 4;
