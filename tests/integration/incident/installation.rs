//! An installation on a schema of an operator's own, behind views that the relay's queries read: that is where
//! a change gets in that no review of the relay's configuration sees.

use std::fs::File;
use std::io::{BufRead, BufReader, Seek, SeekFrom};
use std::path::PathBuf;

use serde_json::Value;

use super::changes::Change;
use crate::support::{Cluster, Database, Device, Relay, Request, Site, assert_done};

/// Number of devices.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Size(pub usize);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Relation {
    Credentials,
    Grants,
    Devices,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Guard {
    On,
    Off,
}

/// See the module. Device `n` counts from 1, and its one grant is held by principal `n % principals + 1`.
pub struct Installation<'a> {
    pub database: Database<'a>,
    pub size: Size,
    site: Site,
    /// Stands in for every device.
    device: Device,
}

impl<'a> Installation<'a> {
    pub fn new(cluster: &'a Cluster, size: Size, guard: Guard) -> Self {
        let database = cluster.database();
        let (devices, principals, relay) = (size.0, size.principals(), database.relay());
        let yesterday = devices.div_ceil(3);
        let views = Relation::ALL.map(|relation| {
            let (view, select) = (relation.view(), relation.select());
            format!("CREATE VIEW {view} AS {select};")
        });
        database.by_hand(&format!(
            "BEGIN; {TABLES} {RAN}
            INSERT INTO person SELECT n FROM generate_series(1, {principals} + 1) n;
            {first}
            CREATE TABLE yesterday_api_key AS TABLE api_key;
            CREATE TABLE yesterday_permission AS TABLE permission;
            CREATE TABLE yesterday_unit AS TABLE unit;
            {rest}
            UPDATE api_key SET revoked_at = now() WHERE person = {principals} + 1;
            UPDATE permission SET revoked_at = now() WHERE person = {principals} + 1;
            {views} GRANT SELECT ON ALL TABLES IN SCHEMA public TO {relay}; COMMIT; ANALYZE",
            first = rows(1, yesterday, principals)
                + &keys(1, principals.div_ceil(3), principals)
                + &ended(principals),
            rest = rows(yesterday + 1, devices, principals)
                + &keys(principals.div_ceil(3) + 1, principals, principals),
            views = views.concat(),
        ));
        let device = Device::echo("0.0.0.0".parse().unwrap());
        let mut site = Site::on_postgres(&database, "");
        for relation in Relation::ALL {
            std::fs::write(site.folder().join(relation.name()), relation.query()).unwrap();
        }
        let folder = site.folder().display().to_string();
        site.configure(&format!(
            r#"
            store.statement_timeout = "1s"
            admin.socket = "{folder}/admin.socket"
            log.level = "info"
            [authz]
            reread = "100ms"
            state = "{folder}/{KEPT}"
            queries = {{ credentials = "{folder}/credentials", grants = "{folder}/grants", devices = "{folder}/devices" }}
            guard = {{ enabled = {enabled}, probe_port = {port} }}
            "#,
            enabled = guard == Guard::On,
            port = device.port(),
        ));
        Self { database, size, site, device }
    }

    /// Does to the database what the author of a change does.
    pub fn change(&self, change: Change) {
        self.database.by_hand(&change.statements(&self.database.relay()));
    }

    pub fn mend(&self, change: Change) {
        self.database.by_hand(&change.mending(&self.database.relay()));
    }

    pub fn start(&self) -> Relay {
        self.site.start()
    }

    /// Puts another query in the place of a relation's, for relays that start from now on.
    pub fn deploy(&self, relation: Relation, query: &str) {
        std::fs::write(self.site.folder().join(relation.name()), query).unwrap();
    }

    /// Has the next relay know nothing of this one.
    pub fn forget(&self) {
        std::fs::remove_dir_all(self.site.folder().join(KEPT)).unwrap();
    }

    /// The request of the grant's holder for a device.
    pub fn request(&self, device: usize) -> Request {
        let principal = device % self.size.principals() + 1;
        Request::to(&format!("{device:032x}"), self.device.port()).bearer(&format!("token-{principal}"))
    }

    /// A request with a credential that was revoked a moment before the relay started.
    pub fn revoked_request(&self) -> Request {
        let principal = self.size.principals() + 1;
        Request::to(&format!("{:032x}", 1), self.device.port()).bearer(&format!("token-{principal}"))
    }

    /// The output of `sluicegate authz status --json`.
    pub fn status(&self) -> Value {
        let output = self.site.command(&["authz", "status", "--json"]).output().unwrap();
        assert_done(&output);
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Count of `mark` in the server's log for this database, after the first `skip` bytes.
    pub fn server_said(&self, mark: &str, skip: u64) -> usize {
        let mut log = File::open(self.server_log()).unwrap();
        log.seek(SeekFrom::Start(skip)).unwrap();
        let database = format!("[{}]", self.database.name);
        let lines = BufReader::new(log).lines().map_while(Result::ok);
        lines.filter(|line| line.starts_with(&database) && line.contains(mark)).count()
    }

    pub fn server_log_bytes(&self) -> u64 {
        std::fs::metadata(self.server_log()).unwrap().len()
    }

    fn server_log(&self) -> PathBuf {
        self.database.cluster.data().join("server.log")
    }
}

impl Size {
    pub fn principals(self) -> usize {
        (self.0 / 10).max(3)
    }

    pub fn is_smallest(self) -> bool {
        self.0 == 3
    }
}

impl Relation {
    pub const ALL: [Self; 3] = [Self::Credentials, Self::Grants, Self::Devices];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Credentials => "credentials",
            Self::Grants => "grants",
            Self::Devices => "devices",
        }
    }

    pub fn view(self) -> String {
        format!("rights_{}", self.name())
    }

    /// The true query of the view.
    pub const fn select(self) -> &'static str {
        match self {
            Self::Credentials => {
                "SELECT api_key.hash AS key_sha256, person.id AS principal, NULL::timestamptz AS expires_at,
                    api_key.revoked_at IS NOT NULL AS revoked
                FROM api_key JOIN person ON person.id = api_key.person WHERE true"
            }
            Self::Grants => {
                "SELECT permission.id AS grant_id, person.id AS principal, 'device'::text AS scope,
                    permission.unit AS target, 1 AS port_min, 65535 AS port_max,
                    NULL::timestamptz AS expires_at, permission.revoked_at IS NOT NULL AS revoked
                FROM permission JOIN person ON person.id = permission.person WHERE true"
            }
            Self::Devices => {
                "SELECT unit.id AS device, unit.uuid AS uuid, NULL::int8 AS fleet, vpn.address AS address,
                    NULL::text AS node, vpn.id IS NOT NULL AS online
                FROM unit LEFT JOIN vpn ON vpn.unit = unit.id WHERE true"
            }
        }
    }

    /// The relay's query.
    fn query(self) -> String {
        format!("SELECT * FROM {}", self.view())
    }
}

/// Devices, their connections and the grants on them.
fn rows(from: usize, to: usize, principals: usize) -> String {
    format!(
        "INSERT INTO unit SELECT n, lpad(to_hex(n), 32, '0') FROM generate_series({from}, {to}) n;
        INSERT INTO vpn SELECT 1000000 + n, n, format('127.%s.%s.%s', 1 + n / 62500, n / 250 % 250, n % 250 + 1)
            FROM generate_series({from}, {to}) n;
        INSERT INTO permission SELECT n, n % {principals} + 1, n FROM generate_series({from}, {to}) n;"
    )
}

/// Keys have numbers that are persons' too, but not those of their own persons.
fn keys(from: usize, to: usize, principals: usize) -> String {
    format!(
        "INSERT INTO api_key SELECT n % {principals} + 1, sha256(convert_to('token-' || n, 'UTF8')),
            sha256(int8send(n)), n FROM generate_series({from}, {to}) n;"
    )
}

/// The key of one person more and a permission, which are going to be revoked.
fn ended(principals: usize) -> String {
    format!(
        "INSERT INTO api_key SELECT n, sha256(convert_to('token-' || n, 'UTF8')), sha256(int8send(n)), n
            FROM generate_series({principals} + 1, {principals} + 1) n;
        INSERT INTO permission VALUES (0, {principals} + 1, 1);"
    )
}

const TABLES: &str = "
    CREATE TABLE person (id int8 PRIMARY KEY);
    CREATE TABLE api_key (id int8 PRIMARY KEY, hash bytea, checksum bytea, person int8, revoked_at timestamptz);
    CREATE TABLE permission (id int8 PRIMARY KEY, person int8, unit int8, revoked_at timestamptz);
    CREATE TABLE unit (id int8 PRIMARY KEY, uuid text);
    CREATE TABLE vpn (id int8 PRIMARY KEY, unit int8, address text);";

/// Writes to the server's log that a query ran, whatever becomes of it.
const RAN: &str = "
    CREATE FUNCTION ran(mark text, seconds int) RETURNS bool LANGUAGE plpgsql VOLATILE AS $$
    BEGIN
        RAISE LOG '%', mark;
        PERFORM pg_sleep(seconds);
        RETURN true;
    END $$;";

/// The folder in which a relay keeps its last good snapshot.
const KEPT: &str = "kept";
