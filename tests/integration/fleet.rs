//! Three nodes, each on a machine of its own, on a PostgreSQL with a standby: every device by every node, and what a
//! link that is cut, a lost node, a lost primary and a failover do to that.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;

use crate::support::{
    ALL_V4, Answer, Authority, Cluster, Database, Device, Namespace, Relay, Request, Signal, Site, Switch,
    node_section_at, root_or_skip, tools_or_skip, wait_for,
};
use tempfile::TempDir;

/// The nodes, each with the device that it holds.
const NODES: [(&str, &str); 3] = [
    ("node-a", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"),
    ("node-b", "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"),
    ("node-c", "cccccccccccccccccccccccccccccccc"),
];

/// The address of the primary and its standby.
const STORE: &str = "10.77.0.2";

const ECHO_PORT: u16 = 7000;

/// The machine of a node. Nobody but it reaches the device behind it.
struct Machine {
    namespace: Namespace,
    _device: (Namespace, Device),
}

/// A relay on its machine.
struct Node<'a> {
    machine: &'a Machine,
    relay: Relay,
    token: &'a str,
}

struct Fleet {
    site: Site,
    machines: Vec<Machine>,
    /// Configuration of each node: its listener for peers, its store and its directory.
    sections: Vec<String>,
    _certificates: TempDir,
}

fn address_of(node: usize) -> String {
    format!("10.77.0.{}", 11 + node)
}

/// The address of a device in the VPN of its node.
fn device_address(node: usize) -> String {
    format!("10.9.{node}.2")
}

/// The address of a second device there, which comes over from another node.
fn guest_address(node: usize) -> String {
    format!("10.9.{node}.3")
}

impl Machine {
    fn new(switch: &Switch, node: usize) -> Self {
        let namespace = switch.plug(NODES[node].0, &address_of(node));
        let device = Namespace::new();
        namespace.ip(&format!("link add vpn0 type veth peer name eth0 netns {}", device.id()));
        namespace.ip(&format!("address add 10.9.{node}.1/24 dev vpn0"));
        namespace.ip("link set vpn0 up");
        for address in [device_address(node), guest_address(node)] {
            device.ip(&format!("address add {address}/24 dev eth0"));
        }
        device.ip("link set eth0 up");
        let echo = device.enter(|| Device::echo_at((ALL_V4, ECHO_PORT).into()));
        Self { namespace, _device: (device, echo) }
    }
}

impl Fleet {
    /// The last node reads the standby, the others the primary; each may go to either.
    fn new(switch: &Switch, store: &Namespace, database: &Database, ports: [u16; 2]) -> Self {
        let certificates = tempfile::tempdir().unwrap();
        let authority = Authority::new(certificates.path(), "nodes");
        let site = store.enter(|| {
            let site = Site::on_postgres(database, "timeouts.forward = '1s'");
            for (number, (node, uuid)) in NODES.into_iter().enumerate() {
                site.cli(&["device", "add", uuid, "--address", &device_address(number), "--node", node]);
            }
            site
        });
        let (relay, role, name) = (database.relay(), store.enter(|| database.nodes_role()), &database.name);
        let [first, second] = ports.map(|port| format!("{STORE}:{port}"));
        let directory = format!("forward.directory_url = 'postgres://{role}@{first},{second}/{name}'");
        let sections = NODES.iter().enumerate().map(|(number, (node, _))| {
            let section = node_section_at(&format!("{}:3130", address_of(number)), node, &authority);
            let hosts = if number < 2 { format!("{first},{second}") } else { format!("{second},{first}") };
            format!(
                "{section}\n{directory}\nstore.url = 'postgres://{relay}@{hosts}/{name}'\n\
                 vpn.interface = 'vpn0'\nvpn.allow = ['10.9.{number}.0/24']"
            )
        });
        let sections = sections.collect();
        let machines = (0..NODES.len()).map(|node| Machine::new(switch, node)).collect();
        Self { site, machines, sections, _certificates: certificates }
    }

    fn start(&self, node: usize) -> Node<'_> {
        let machine = &self.machines[node];
        let start = || self.site.start_sibling(NODES[node].0, &self.sections[node]);
        let (relay, _) = machine.namespace.enter(start);
        Node { machine, relay, token: &self.site.token }
    }
}

impl Node<'_> {
    fn ask(&self, device: usize) -> Answer {
        let request = Request::to(NODES[device].1, ECHO_PORT).bearer(self.token);
        self.machine.namespace.enter(|| request.send(self.relay.address()))
    }

    /// Waits until a client who comes here reaches the device.
    fn reach(&self, device: usize) -> TcpStream {
        let reached = || Some(self.ask(device)).filter(|answer| answer.status == 200);
        wait_for(reached).unwrap_or_else(|| panic!("{:?}", self.ask(device).reason)).opened()
    }

    fn reaches_all(&self) {
        (0..NODES.len()).for_each(|device| echoes(&mut self.reach(device)));
    }

    fn comes_to_answer(&self, device: usize, status: u16) -> bool {
        wait_for(|| (self.ask(device).status == status).then_some(())).is_some()
    }

    fn knows(&self, state: &str, count: f64) -> bool {
        let name = format!("sluicegate_nodes{{state=\"{state}\"}}");
        self.machine.namespace.enter(|| self.relay.metric_becomes(&name, |nodes| nodes == count))
    }

    fn loses_its_store(&self) -> bool {
        let name = "sluicegate_directory_errors_total";
        self.machine.namespace.enter(|| self.relay.metric_becomes(name, |errors| errors > 0.0))
    }
}

#[track_caller]
fn echoes(tunnel: &mut TcpStream) {
    tunnel.write_all(b"ping").unwrap();
    tunnel.read_exact(&mut [0; 4]).unwrap();
}

#[test]
fn what_one_node_or_the_primary_held_is_all_that_is_lost_with_it() {
    let test = "what_one_node_or_the_primary_held_is_all_that_is_lost_with_it";
    if !root_or_skip(test) || !tools_or_skip(test, &["ip"]) {
        return;
    }
    let switch = Switch::new();
    let store = switch.plug("store", STORE);
    let files = [("pg_hba.conf", "host all,replication all samenet trust\nhost all all samenet trust\n")];
    let started = store.enter(|| Cluster::with_files("listen_addresses = '*'\n", &files));
    let Some(mut primary) = started else { return };
    let mut standby = store.enter(|| primary.standby(""));
    let ports = [primary.port(), standby.port()];
    let (fleet, name) = {
        let database = store.enter(|| primary.database());
        (Fleet::new(&switch, &store, &database, ports), database.name.clone())
    };
    let mut nodes: Vec<Node> = (0..NODES.len()).map(|node| fleet.start(node)).collect();
    nodes.iter().for_each(|node| assert!(node.knows("fresh", 3.0)));
    nodes.iter().for_each(Node::reaches_all);

    let mut standing = nodes[0].reach(1);
    // Cut off, and nobody is told.
    switch.set_link(NODES[2].0, "down");
    let status = nodes[0].ask(2).status;
    assert!([503, 504].contains(&status), "{status}");
    assert!(nodes[0].knows("stale", 1.0) && nodes[0].comes_to_answer(2, 503));
    echoes(&mut standing);
    echoes(&mut nodes[2].reach(2));
    switch.set_link(NODES[2].0, "up");
    nodes.iter().for_each(|node| assert!(node.knows("fresh", 3.0)));
    nodes.iter().for_each(Node::reaches_all);

    let mut lost = nodes[0].reach(2);
    nodes[2].relay.signal(Signal::SIGKILL);
    assert!(matches!(lost.read(&mut [0]), Ok(0) | Err(_)), "a tunnel by a node that died ends");
    assert!(nodes[0].comes_to_answer(2, 503) && nodes[0].knows("stale", 1.0));
    echoes(&mut standing);
    // It comes back by another node's VPN.
    let by_hand =
        |cluster: &Cluster, sql: &str| store.enter(|| cluster.client(&name).batch_execute(sql).unwrap());
    let address = guest_address(0);
    let moved =
        format!("UPDATE sluicegate.devices SET node = 'node-a', address = '{address}' WHERE node = 'node-c'");
    by_hand(&primary, &moved);
    nodes[..2].iter().for_each(|node| echoes(&mut node.reach(2)));

    store.enter(|| primary.stop());
    assert!(nodes[0].loses_its_store());
    // Longer than a sign of life counts: without the store nobody is taken for dead.
    std::thread::sleep(std::time::Duration::from_secs(2));
    echoes(&mut standing);
    nodes[..2].iter().for_each(Node::reaches_all);

    by_hand(&standby, "SELECT pg_promote()");
    nodes[2] = fleet.start(2);
    nodes.iter().for_each(|node| assert!(node.knows("fresh", 3.0)));
    nodes.iter().for_each(Node::reaches_all);
    by_hand(&standby, "UPDATE sluicegate.grants SET revoked_at = now()");
    assert_eq!(standing.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    for node in &nodes {
        assert!(node.comes_to_answer(0, 403));
    }
    drop(nodes);
    store.enter(|| standby.stop());
}

#[test]
fn each_role_can_do_what_it_is_for_and_nothing_else() {
    let Some(primary) = Cluster::start() else { return };
    let database = primary.database();
    let role = database.nodes_role();
    let write = "INSERT INTO sluicegate.nodes (name, forward_address, heartbeat_at) VALUES ('node-z', '192.0.2.1:3130', now()) \
                 ON CONFLICT (name) DO UPDATE SET heartbeat_at = now()";
    let denied = |role: &str, sql: &str| {
        let error = primary.try_client(role, &database.name).unwrap().batch_execute(sql).unwrap_err();
        error.code() == Some(&postgres::error::SqlState::INSUFFICIENT_PRIVILEGE)
    };
    primary.try_client(&role, &database.name).unwrap().batch_execute(write).unwrap();
    for sql in [
        "SELECT * FROM sluicegate.credentials",
        "UPDATE sluicegate.grants SET revoked_at = NULL",
        "UPDATE sluicegate.devices SET fleet = NULL",
        "INSERT INTO sluicegate.devices (uuid) VALUES (repeat('d', 32))",
        "DELETE FROM sluicegate.devices",
        "DELETE FROM sluicegate.nodes",
    ] {
        assert!(denied(&role, sql), "{sql}");
    }
    assert!(denied(&database.relay(), write));
}
