//! Three nodes on a PostgreSQL with a standby: every device by every node, and what a lost node, a lost primary and a
//! failover do to that.

mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;

use support::{
    Audit, Authority, Cluster, Database, Device, Relay, Request, Signal, Site, V4, node_section, wait_for,
};

/// With the devices that each holds.
const NODES: [(&str, &str); 3] = [
    ("node-a", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"),
    ("node-b", "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"),
    ("node-c", "cccccccccccccccccccccccccccccccc"),
];

struct Fleet {
    site: Site,
    authority: Authority,
    /// Where each node reads, and where it says that it lives.
    sections: Vec<String>,
    device: Device,
}

impl Fleet {
    /// The last node reads the standby, the others the primary; each may go to either.
    fn new(database: &Database, primary: &Cluster, standby: &Cluster) -> Self {
        let folder = tempfile::tempdir().unwrap().keep();
        let authority = Authority::new(&folder, "nodes");
        let site = Site::on_postgres(database, "");
        for (node, uuid) in NODES {
            site.cli(&["device", "add", uuid, "--address", "127.0.0.1", "--node", node]);
        }
        let (relay, role, name) = (database.relay(), database.nodes_role(), &database.name);
        let [first, second] = [primary, standby].map(|cluster| format!("127.0.0.1:{}", cluster.port()));
        let directory = format!("forward.directory_url = 'postgres://{role}@{first},{second}/{name}'");
        let hosts = [format!("{first},{second}"), format!("{first},{second}"), format!("{second},{first}")];
        let sections = NODES.iter().zip(hosts).map(|((node, _), hosts)| {
            let section = node_section(node, &authority);
            format!("{section}\n{directory}\nstore.url = 'postgres://{relay}@{hosts}/{name}'")
        });
        let sections = sections.collect();
        Self { site, authority, sections, device: Device::echo(V4) }
    }

    fn start(&self, node: usize) -> (Relay, Audit) {
        self.site.start_sibling(NODES[node].0, &self.sections[node])
    }

    fn ask(&self, relay: &Relay, device: usize) -> support::Answer {
        Request::to(NODES[device].1, self.device.port()).bearer(&self.site.token).send(relay.address())
    }

    /// Waits until a client of `relay` reaches the device.
    fn reach(&self, relay: &Relay, device: usize) -> TcpStream {
        let reached = || Some(self.ask(relay, device)).filter(|answer| answer.status == 200);
        wait_for(reached).unwrap_or_else(|| panic!("{:?}", self.ask(relay, device).reason)).opened()
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        std::fs::remove_dir_all(self.authority.file.parent().unwrap()).unwrap();
    }
}

#[track_caller]
fn echoes(tunnel: &mut TcpStream) {
    tunnel.write_all(b"ping").unwrap();
    tunnel.read_exact(&mut [0; 4]).unwrap();
}

fn knows(relay: &Relay, state: &str, count: f64) -> bool {
    relay.metric_becomes(&format!("sluicegate_nodes{{state=\"{state}\"}}"), |nodes| nodes == count)
}

#[test]
fn what_one_node_or_the_primary_held_is_all_that_is_lost_with_it() {
    let Some(mut primary) = Cluster::start() else { return };
    let mut standby = primary.standby("");
    let (fleet, name) = {
        let database = primary.database();
        (Fleet::new(&database, &primary, &standby), database.name.clone())
    };
    let mut nodes: Vec<_> = (0..3).map(|node| fleet.start(node)).collect();
    nodes.iter().for_each(|(relay, _)| assert!(knows(relay, "fresh", 3.0)));
    for (relay, _) in &nodes {
        (0..3).for_each(|device| echoes(&mut fleet.reach(relay, device)));
    }

    let mut standing = fleet.reach(&nodes[0].0, 1);
    let mut lost = fleet.reach(&nodes[0].0, 2);
    nodes[2].0.signal(Signal::SIGKILL);
    assert!(matches!(lost.read(&mut [0]), Ok(0) | Err(_)), "a tunnel by a node that died ends");
    assert!(wait_for(|| (fleet.ask(&nodes[0].0, 2).status == 503).then_some(())).is_some());
    assert!(knows(&nodes[0].0, "stale", 1.0));
    echoes(&mut standing);
    // It comes back by another node's VPN.
    let by_hand = |cluster: &Cluster, sql: &str| cluster.client(&name).batch_execute(sql).unwrap();
    by_hand(&primary, "UPDATE sluicegate.devices SET node = 'node-a' WHERE node = 'node-c'");
    nodes[..2].iter().for_each(|(relay, _)| echoes(&mut fleet.reach(relay, 2)));

    primary.stop();
    assert!(
        wait_for(|| nodes[0].0.metric("sluicegate_directory_errors_total").filter(|errors| *errors > 0.0))
            .is_some()
    );
    // Longer than a sign of life counts: without the store nobody is taken for dead.
    std::thread::sleep(std::time::Duration::from_secs(2));
    echoes(&mut standing);
    nodes[..2]
        .iter()
        .for_each(|(relay, _)| (0..3).for_each(|device| echoes(&mut fleet.reach(relay, device))));

    by_hand(&standby, "SELECT pg_promote()");
    nodes[2] = fleet.start(2);
    nodes.iter().for_each(|(relay, _)| assert!(knows(relay, "fresh", 3.0)));
    nodes.iter().for_each(|(relay, _)| (0..3).for_each(|device| echoes(&mut fleet.reach(relay, device))));
    by_hand(&standby, "UPDATE sluicegate.grants SET revoked_at = now()");
    assert_eq!(standing.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    for (relay, _) in &nodes {
        assert!(wait_for(|| (fleet.ask(relay, 0).status == 403).then_some(())).is_some());
    }
    drop(nodes);
    standby.stop();
}

#[test]
fn each_role_can_do_what_it_is_for_and_nothing_else() {
    let Some(primary) = Cluster::start() else { return };
    let database = primary.database();
    let role = database.nodes_role();
    let write = "INSERT INTO sluicegate.nodes VALUES ('node-z', '192.0.2.1:3130', now()) \
                 ON CONFLICT (name) DO UPDATE SET heartbeat_at = now()";
    let denied = |role: &str, sql: &str| {
        let error = primary.try_client(role, &database.name).unwrap().batch_execute(sql).unwrap_err();
        error.code() == Some(&postgres::error::SqlState::INSUFFICIENT_PRIVILEGE)
    };
    primary.try_client(&role, &database.name).unwrap().batch_execute(write).unwrap();
    for sql in [
        "SELECT * FROM sluicegate.credentials",
        "UPDATE sluicegate.grants SET revoked_at = NULL",
        "UPDATE sluicegate.devices SET node = 'node-z'",
        "DELETE FROM sluicegate.nodes",
    ] {
        assert!(denied(&role, sql), "{sql}");
    }
    assert!(denied(&database.relay(), write));
}
