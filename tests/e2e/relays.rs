//! The relays: one on each VPN node, behind the load balancer.

use std::path::PathBuf;

use serde_json::Value;

use crate::openvpn::Server;
use crate::pki::{Authority, Holder};
use crate::places::Place;
use crate::store::Store;
use crate::support::{Audit, BINARY, Relay, Signal, output_of, wait_for};

/// Port for the load balancer, which sends PROXY headers.
pub const PROXIED_PORT: u16 = 3128;

/// Port for clients that know a node by its address.
pub const PLAIN_PORT: u16 = 3129;

/// Port for the other nodes.
const FORWARD_PORT: u16 = 3130;

/// The name of a node's own TLS listener, with no load balancer in front.
pub fn direct_name_of(node: &str) -> String {
    format!("{node}.direct.test")
}

pub struct Node<'a> {
    pub place: &'a Place,
    relay: Relay,
    pub vpn: Server,
    /// Its configuration, but for what a step adds.
    config: String,
}

impl<'a> Node<'a> {
    /// Starts a node with its VPN server. Only the load balancer may send PROXY headers to it.
    pub fn start(
        place: &'a Place,
        vpn: Server,
        balancer: &Place,
        authority: &Authority,
        store: &Store,
    ) -> Self {
        let between_nodes = authority.issue(place.name, &Holder::Both(&[place.name]));
        let direct = direct_name_of(place.name);
        let to_clients = authority.issue(&direct, &Holder::Server(&[&direct]));
        let config = format!(
            r#"
            store.url = "{url}"
            audit.path = "{folder}/audit.jsonl"
            admin = {{ address = "127.0.0.1:9128", socket = "{folder}/admin.sock" }}
            listen = [
                {{ address = "0.0.0.0:{PROXIED_PORT}", proxy_from = ["{balancer}/32", "127.0.0.0/8"] }},
                {{ address = "0.0.0.0:{PLAIN_PORT}" }},
                {{ address = "0.0.0.0:443", tls = {{ certificates = [{{ chain = "{client_chain}", key = "{client_key}" }}] }} }},
            ]
            forward.listen = "{address}:{FORWARD_PORT}"
            forward.tls = {{ chain = "{chain}", key = "{key}", ca = "{ca}" }}
            forward.directory_url = "{directory}"
            forward.heartbeat = "500ms"
            forward.refresh = "100ms"
            forward.max_age = "3s"
            vpn = {{ node = "{name}", interface = "tun0", allow = ["{network}"], addresses = ["{addresses}"], report = true }}
            # For three devices, one that is lost is one too many not to ask the network.
            authz.guard.budgets.unlocated = {{ share = 0.0, rows = 0 }}
            authz.reread = "100ms"
            "#,
            url = store.relay_url(),
            directory = store.directory_url(),
            address = place.address,
            chain = between_nodes.certificate.display(),
            key = between_nodes.key.display(),
            ca = authority.file.display(),
            client_chain = to_clients.certificate.display(),
            client_key = to_clients.key.display(),
            folder = place.folder().display(),
            balancer = balancer.address,
            name = place.name,
            network = vpn.network,
            addresses = vpn.addresses,
        );
        let file = config_file(place);
        std::fs::write(&file, &config).unwrap();
        Self { relay: run(place), place, vpn, config }
    }

    /// Ends the node with SIGKILL, like a machine that loses its power.
    pub fn kill(&mut self) {
        self.relay.signal(Signal::SIGKILL);
        self.relay.wait();
    }

    pub fn start_again(&mut self) {
        self.relay = run(self.place);
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

    /// The rule by which the guard holds the first group that it holds, if it does.
    pub fn held_by(&self) -> Option<String> {
        let mut status = self.place.command(BINARY);
        status.args(["authz", "status", "--json", "--config"]).arg(config_file(self.place));
        let output = output_of(&mut status, b"");
        let message: Value = serde_json::from_slice(&output.stdout).unwrap();
        message["holds"][0]["rule"].as_str().map(str::to_owned)
    }

    /// The output of `sluicegate sessions --json`.
    pub fn sessions(&self) -> Value {
        let mut sessions = self.place.command(BINARY);
        sessions.args(["sessions", "--json", "--config"]).arg(config_file(self.place));
        serde_json::from_slice(&output_of(&mut sessions, b"").stdout).unwrap()
    }

    pub fn audit(&self) -> Audit {
        Audit::new(self.place.folder().join("audit.jsonl"))
    }

    /// Its listener for clients that know it, as `--relay` takes it.
    pub fn plain(&self) -> String {
        format!("{}:{PLAIN_PORT}", self.place.address)
    }
}

fn run(place: &Place) -> Relay {
    let mut run = place.command(BINARY);
    run.args(["run", "--config"])
        .arg(config_file(place))
        .env("STATE_DIRECTORY", place.folder().join("state"));
    Relay::start(run)
}

fn config_file(place: &Place) -> PathBuf {
    place.folder().join("sluicegate.toml")
}
