//! The relays: one on each VPN node, behind the load balancer.

use std::path::PathBuf;

use serde_json::Value;

use crate::openvpn::Server;
use crate::places::Place;
use crate::store::Store;
use crate::support::{Audit, BINARY, Relay, Signal, output_of, wait_for};

/// Where the load balancer comes.
pub const PROXIED_PORT: u16 = 3128;

/// Where clients come that know a node by its address.
pub const PLAIN_PORT: u16 = 3129;

/// Who knows where devices are, as in `vpn.addresses`.
const ADDRESSES: &str = r#"["store"]"#;

pub struct Node<'a> {
    pub place: &'a Place,
    relay: Relay,
    pub vpn: Server,
    /// Its configuration, but for what a step adds.
    config: String,
}

impl<'a> Node<'a> {
    /// With a VPN server of this number; the load balancer is the one that may say who clients are.
    pub fn start(place: &'a Place, vpn: Server, balancer: &Place, store: &Store) -> Self {
        let config = format!(
            r#"
            store.url = "{url}"
            audit.path = "{folder}/audit.jsonl"
            admin = {{ address = "127.0.0.1:9128", socket = "{folder}/admin.sock" }}
            listen = [
                {{ address = "0.0.0.0:{PROXIED_PORT}", proxy_from = ["{balancer}/32", "127.0.0.0/8"] }},
                {{ address = "0.0.0.0:{PLAIN_PORT}" }},
            ]
            vpn = {{ node = "{name}", interface = "tun0", allow = ["{network}"], addresses = {ADDRESSES} }}
            # For three devices, one that is lost is one too many not to ask the network.
            authz.guard.max_unlocated = {{ share = 0.0, rows = 0 }}
            authz.reread = "100ms"
            "#,
            url = store.relay_url(),
            folder = place.folder().display(),
            balancer = balancer.address,
            name = place.name,
            network = vpn.network,
        );
        let file = config_file(place);
        std::fs::write(&file, &config).unwrap();
        let mut run = place.command(BINARY);
        run.args(["run", "--config"]).arg(file).env("STATE_DIRECTORY", place.folder().join("state"));
        Self { relay: Relay::start(run), place, vpn, config }
    }

    /// Has the relay read its configuration again with `addition` in it; what it says of that.
    pub fn reload_with(&self, addition: &str) -> String {
        std::fs::write(config_file(self.place), format!("{}{addition}", self.config)).unwrap();
        let said = self.relay.log().len();
        self.relay.signal(Signal::SIGHUP);
        let outcome = wait_for(|| {
            let log = self.relay.log();
            let mut lines = log[said..].lines();
            lines.find(|line| line.contains("reloaded") || line.contains("reload refused")).map(str::to_owned)
        });
        outcome.expect("a reload comes to an end")
    }

    /// The rule by which the guard holds, if it does.
    pub fn held_by(&self) -> Option<String> {
        let mut status = self.place.command(BINARY);
        status.args(["authz", "status", "--json", "--config"]).arg(config_file(self.place));
        let output = output_of(&mut status, b"");
        let told: Value = serde_json::from_slice(&output.stdout).unwrap();
        told["hold"]["rule"].as_str().map(str::to_owned)
    }

    pub fn audit(&self) -> Audit {
        Audit::new(self.place.folder().join("audit.jsonl"))
    }

    /// Its listener for clients that know it, as `--relay` takes it.
    pub fn plain(&self) -> String {
        format!("{}:{PLAIN_PORT}", self.place.address)
    }
}

fn config_file(place: &Place) -> PathBuf {
    place.folder().join("sluicegate.toml")
}
