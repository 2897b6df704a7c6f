//! The whole environment: its machines, what runs on them, and who may do what.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::balena::Balena;
use crate::devices::Device;
use crate::haproxy::{self, FRONT, front_of};
use crate::openvpn::Server;
use crate::pki::Authority;
use crate::places::{Ethernet, Place, Program};
use crate::relays::{Node, direct_name_of};
use crate::store::Store;
use crate::support::{Answer, Cluster, Request, wait_for};

/// The machines, and nothing on them yet.
pub struct Ground {
    // First, so that the programs of the others are gone before their folder is.
    pub database: Place,
    pub balancer: Place,
    pub client: Place,
    pub nodes: [Place; 2],
    pub devices: [Place; 3],
    pub authority: Authority,
    _ethernet: Ethernet,
    folder: TempDir,
}

/// The programs of the environment.
pub struct World<'a> {
    pub ground: &'a Ground,
    pub store: Store<'a>,
    /// Alice may reach every port of every device of the fleet.
    pub alice: String,
    /// Bob may reach the sshd of the first device.
    pub bob: String,
    pub devices: [Device<'a>; 3],
    _balancer: Program,
    pub nodes: [Node<'a>; 2],
}

/// The nodes, by their places in [`World::nodes`].
pub const A: usize = 0;
pub const B: usize = 1;

/// The node that each device dials first.
pub const HOMES: [usize; 3] = [A, A, B];

/// A device of the fleet that was never connected.
pub const NEVER_CONNECTED: &str = "dddddddddddddddddddddddddddddddd";

/// The uuid of no device.
pub const UNKNOWN: &str = "eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee";

const UUIDS: [&str; 3] = [
    "11111111111111111111111111111111",
    "22222222222222222222222222222222",
    // As long as those that balenaOS makes today have it not; both kinds are out there.
    "33333333333333333333333333333333333333333333333333333333333333",
];

impl Ground {
    pub fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("sluicegate-e2e-").tempdir().unwrap();
        let at = |number: u8| Ipv4Addr::new(10, 77, 0, number);
        let [balancer, node_a, node_b] = [at(3), at(11), at(12)];
        let nodes = [("node-a", node_a), ("node-b", node_b)];
        let fronts = nodes.map(|(name, _)| front_of(name));
        let direct = nodes.map(|(name, _)| direct_name_of(name));
        let names = [
            (FRONT, balancer),
            (&fronts[A], balancer),
            (&fronts[B], balancer),
            (&direct[A], node_a),
            (&direct[B], node_b),
        ];
        let ethernet = Ethernet::new(folder.path(), &names);
        Self {
            database: ethernet.plug("database", at(2)),
            balancer: ethernet.plug("balancer", balancer),
            client: ethernet.plug("client", CLIENT),
            nodes: nodes.map(|(name, address)| ethernet.plug(name, address)),
            devices: [("device-1", 101), ("device-2", 102), ("device-3", 103)]
                .map(|(name, number)| ethernet.plug(name, at(number))),
            authority: Authority::new(folder.path()),
            _ethernet: ethernet,
            folder,
        }
    }

    pub fn places(&self) -> impl Iterator<Item = &Place> {
        [&self.client, &self.balancer, &self.database].into_iter().chain(&self.nodes).chain(&self.devices)
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for Ground {
    /// Prints the programs' logs where a step has failed.
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let files = std::fs::read_dir(self.folder()).into_iter().flatten().flatten();
        let mut logs: Vec<PathBuf> = files.map(|file| file.path()).collect();
        logs.retain(|file| file.extension().is_some_and(|extension| extension == "log"));
        logs.sort();
        for file in logs {
            let text = String::from_utf8_lossy(&std::fs::read(&file).unwrap_or_default()).into_owned();
            let lines: Vec<&str> = text.lines().collect();
            let last = lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..].join("\n");
            eprintln!("--- {} ---\n{last}", file.display());
        }
    }
}

impl<'a> World<'a> {
    /// Everything runs, every device is connected to its home, and the nodes know it.
    pub fn new(ground: &'a Ground, cluster: &'a Cluster) -> Self {
        let store = Store::new(&ground.database, cluster);
        let authority = &ground.authority;
        for uuid in UUIDS.into_iter().chain([NEVER_CONNECTED]) {
            store.cli(&["device", "add", uuid, "--fleet", "field", "--offline"]);
        }
        let [alice, bob] = ["alice", "bob"].map(|name| {
            store.cli(&["principal", "add", name]);
            token(&store, name).0
        });
        store.cli(&["grant", "add", "alice", "--fleet", "field"]);
        store.cli(&["grant", "add", "bob", "--device", UUIDS[0], "--ports", "22222"]);
        let mut number = 0;
        let nodes = ground.nodes.each_ref().map(|place| {
            number += 1;
            let vpn = Server::start(place, number, authority);
            Node::start(place, vpn, &ground.balancer, authority, &store)
        });
        let mut number = 0;
        let devices = ground.devices.each_ref().map(|place| {
            number += 1;
            Device::new(UUIDS[number - 1], place, authority)
        });
        let balancer = haproxy::start(&ground.balancer, &ground.nodes, authority);
        let mut world = Self { ground, store, alice, bob, devices, _balancer: balancer, nodes };
        for (device, home) in HOMES.into_iter().enumerate() {
            world.connect(device, home);
        }
        world
    }

    /// Has a device dial a node's VPN server, and waits until that node opens tunnels to it.
    pub fn connect(&mut self, device: usize, node: usize) {
        let ground = self.ground;
        self.devices[device].connect(&ground.nodes[node], &ground.authority);
        let status = || {
            // Each no is a line in the audit log, which has so much room for one client.
            std::thread::sleep(Duration::from_millis(100));
            self.ask(node, self.devices[device].uuid).status
        };
        assert!(wait_for(|| (status() == 200).then_some(())).is_some(), "{} is {}", device, status());
    }

    /// Alice's request for a device's echo, sent to a node itself, with its answer.
    pub fn ask(&self, node: usize, uuid: &str) -> Answer {
        let address = self.nodes[node].plain().parse().unwrap();
        let request = Request::to(uuid, crate::devices::ECHO_PORT).bearer(&self.alice);
        self.ground.client.enter(|| request.send(address))
    }

    /// The CLI, carrying local connections to a port of a device by way of one node.
    pub fn balena(&self, node: usize, token: &str, target: (&str, u16)) -> Balena<'a> {
        let front = front_of(self.ground.nodes[node].name);
        Balena::start(&self.ground.client, &self.ground.authority, &front, token, target)
    }

    /// The client of the session with a device, as the node lists it.
    pub fn session_of(&self, node: usize, uuid: &str) -> String {
        let found = wait_for(|| {
            let sessions = self.nodes[node].sessions();
            let session = sessions.as_array()?.iter().find(|session| session["uuid"] == uuid)?;
            session["client"].as_str().map(str::to_owned)
        });
        found.unwrap_or_else(|| panic!("{} has no session with {uuid}", self.ground.nodes[node].name))
    }

    /// True if the last audit event of a node has this cause.
    pub fn notes_last(&self, node: usize, cause: &str) -> bool {
        self.nodes[node].audit().events().last().is_some_and(|event| event["cause"] == cause)
    }

    /// The first event in a node's audit log that is wanted; else the step ends here.
    #[track_caller]
    pub fn audited(&self, node: usize, what: &str, is_wanted: impl Fn(&Value) -> bool) -> Value {
        let event = self.nodes[node].audit().wait_for(is_wanted);
        assert!(!event.is_null(), "{} has not noted {what}", self.ground.nodes[node].name);
        event
    }
}

/// Issues a token; it, and what `token revoke` takes.
pub fn token(store: &Store, principal: &str) -> (String, String) {
    let issued = store.cli(&["token", "issue", principal]);
    let text = |key: &str| issued[key].as_str().unwrap().to_owned();
    (text("token"), text("credential"))
}

/// The address of all clients.
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 50);

/// Log lines of each program that a failure prints.
const LOG_LINES_SHOWN: usize = 15;
