//! The installation's PostgreSQL, on a machine of its own, with our schema; who writes and who reads it.

use serde_json::Value;

use crate::places::Place;
use crate::support::{BINARY, Cluster, Database, output_of};

pub struct Store<'a> {
    place: &'a Place,
    database: Database<'a>,
    nodes_role: String,
}

impl<'a> Store<'a> {
    /// The server in `place`; `None` where PostgreSQL is not installed, which is then noted.
    pub fn cluster(place: &Place) -> Option<Cluster> {
        place.enter(|| {
            Cluster::with_files(
                "listen_addresses = '*'\n",
                &[("pg_hba.conf", "host all all samenet trust\n")],
            )
        })
    }

    /// A database with our schema. Its numbers are none that a flag could be taken for.
    pub fn new(place: &'a Place, cluster: &'a Cluster) -> Self {
        let database = place.enter(|| cluster.database());
        let nodes_role = place.enter(|| database.nodes_role());
        let store = Self { place, database, nodes_role };
        store.by_hand("ALTER TABLE sluicegate.devices ALTER COLUMN id RESTART WITH 1000");
        store
    }

    /// Runs a command of `sluicegate` as an operator does on the database's machine.
    pub fn cli(&self, arguments: &[&str]) -> Value {
        let mut command = self.place.command(BINARY);
        command.args(arguments).args(["--json", "--store", &self.database.owner_url()]);
        let output = output_of(&mut command, b"");
        let message = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "sluicegate {} failed: {message}", arguments.join(" "));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Runs statements as an operator does with psql.
    pub fn by_hand(&self, statements: &str) {
        self.place.enter(|| self.database.by_hand(statements));
    }

    /// The node that the store says holds a device; `None` while none does.
    pub fn holder(&self, uuid: &str) -> Option<String> {
        let sql = "SELECT node FROM sluicegate.devices WHERE uuid = $1 AND online";
        let row = self.place.enter(|| self.database.client().query_opt(sql, &[&uuid]).unwrap());
        row.and_then(|row| row.get(0))
    }

    /// The URL of the relays' role, which may only read.
    pub fn relay_url(&self) -> String {
        self.seen_by_others(&self.database.relay_url())
    }

    /// The URL of the role that writes heartbeats and presence, and may write nothing else.
    pub fn directory_url(&self) -> String {
        self.relay_url().replace(&self.relay_role(), &self.nodes_role)
    }

    /// The relay's role.
    pub fn relay_role(&self) -> String {
        self.database.relay()
    }

    fn seen_by_others(&self, url: &str) -> String {
        url.replace("127.0.0.1", &self.place.address.to_string())
    }
}
