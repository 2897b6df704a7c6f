//! The database of an openBalena API, as far as a relay reads it, and a relay on it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use postgres::Client;
use sluicegate::config::{self, Authz, Profile};
use tempfile::TempDir;

use super::{BINARY, Cluster, Database, Relay, Request, Signer, StoreView, store_at};

/// Two connected devices, `1…1` at 127.0.0.1 and `2…2` at 127.0.0.2, and enough keys that one more or less is
/// nothing to the guard.
pub struct OpenBalena<'a> {
    pub database: Database<'a>,
    folder: TempDir,
    client: Client,
    /// Further lines of the configuration.
    more: String,
}

/// Puts a file with `text` in the place of the one at `path`, as whoever reads that should be given it.
pub fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    std::fs::write(&new, text).unwrap();
    std::fs::rename(new, path).unwrap();
}

impl<'a> OpenBalena<'a> {
    pub const DEVICE: &'static str = "11111111111111111111111111111111";
    pub const OTHER_DEVICE: &'static str = "22222222222222222222222222222222";

    pub fn new(cluster: &'a Cluster) -> Self {
        let database = cluster.empty_database();
        database.by_hand(include_str!("../fixtures/openbalena.sql"));
        database.grant_as_in(include_str!("../../docs/openbalena.md"));
        let client = database.client();
        let mut world = Self { database, client, folder: tempfile::tempdir().unwrap(), more: String::new() };
        world.by_hand(&format!(
            r#"INSERT INTO "service instance" ("service type", "ip address") VALUES ('vpn', '10.0.0.7');
            INSERT INTO "actor" DEFAULT VALUES;
            INSERT INTO "application" ("actor", "slug") VALUES (1, 'us/fleet');
            INSERT INTO "actor" SELECT FROM generate_series(1, 2);
            INSERT INTO "device" ("uuid", "actor", "belongs to-application", "is connected to vpn",
                "is managed by-service instance") VALUES ('{}', 2, 1, true, 1), ('{}', 3, 1, true, 1)"#,
            Self::DEVICE,
            Self::OTHER_DEVICE
        ));
        world.user("admin");
        for n in 0..40 {
            let key = world.key(&format!("filler {n}"), "admin");
            world.permit_key(key, "resin.device.tunnel-48484");
        }
        world.write_addresses(&[(Self::DEVICE, "127.0.0.1"), (Self::OTHER_DEVICE, "127.0.0.2")]);
        world
    }

    /// Runs one of the documentation's pieces of SQL, for this world's role.
    pub fn do_as_documented(&self, place: usize) {
        let text = include_str!("../../docs/openbalena.md");
        let statements = text.split("```sql\n").nth(place).unwrap().split("```").next().unwrap();
        self.database.by_hand(&statements.replace("sluicegate_relay", &self.database.relay()));
    }

    pub fn by_hand(&mut self, statements: &str) {
        self.client.batch_execute(statements).unwrap();
    }

    /// A user with an actor of its own.
    pub fn user(&mut self, name: &str) -> i32 {
        let sql = r#"WITH actor AS (INSERT INTO "actor" DEFAULT VALUES RETURNING "id")
            INSERT INTO "user" ("actor", "username") SELECT "id", $1 FROM actor RETURNING "id""#;
        self.client.query_one(sql, &[&name]).unwrap().get(0)
    }

    /// Accepts the API's tokens, which `signer` signs.
    pub fn accept_tokens(&mut self, signer: &Signer) {
        self.configure(&format!("authz.tokens = [{}]", signer.entry("claims = 'openbalena'")));
    }

    /// Adds a line to the configuration.
    pub fn configure(&mut self, line: &str) {
        self.more.push_str(line);
        self.more.push('\n');
    }

    /// Puts a line in the place of all that were added to the configuration.
    pub fn replace_configuration(&mut self, line: &str) {
        self.more.clear();
        self.configure(line);
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Logs a user in, or out: no token holds another secret from now on.
    pub fn set_login_secret(&mut self, user: i32, secret: Option<&str>) {
        let sql = r#"UPDATE "user" SET "jwt secret" = $2 WHERE "id" = $1"#;
        self.client.execute(sql, &[&user, &secret]).unwrap();
    }

    /// An API key of a user's.
    pub fn key(&mut self, key: &str, user: &str) -> i32 {
        let sql = r#"INSERT INTO "api key" ("key", "is of-actor")
            SELECT $1, "actor" FROM "user" WHERE "username" = $2 RETURNING "id""#;
        self.client.query_one(sql, &[&key, &user]).unwrap().get(0)
    }

    /// An API key of a device's own.
    pub fn device_key(&mut self, key: &str, uuid: &str) -> i32 {
        let sql = r#"INSERT INTO "api key" ("key", "is of-actor")
            SELECT $1, "actor" FROM "device" WHERE "uuid" = $2 RETURNING "id""#;
        self.client.query_one(sql, &[&key, &uuid]).unwrap().get(0)
    }

    /// A role with one permission.
    pub fn role(&mut self, name: &str, permission: &str) -> i32 {
        let permission = self.permission(permission);
        let sql = r#"WITH role AS (INSERT INTO "role" ("name") VALUES ($1) RETURNING "id")
            INSERT INTO "role-has-permission" ("role", "permission") SELECT "id", $2 FROM role RETURNING "role""#;
        self.client.query_one(sql, &[&name, &permission]).unwrap().get(0)
    }

    pub fn permit_key(&mut self, key: i32, permission: &str) {
        let permission = self.permission(permission);
        let sql = r#"INSERT INTO "api key-has-permission" ("api key", "permission") VALUES ($1, $2)"#;
        self.client.execute(sql, &[&key, &permission]).unwrap();
    }

    pub fn permit_user(&mut self, user: i32, permission: &str) {
        let permission = self.permission(permission);
        let sql = r#"INSERT INTO "user-has-permission" ("user", "permission") VALUES ($1, $2)"#;
        self.client.execute(sql, &[&user, &permission]).unwrap();
    }

    pub fn give_key_role(&mut self, key: i32, role: i32) {
        let sql = r#"INSERT INTO "api key-has-role" ("api key", "role") VALUES ($1, $2)"#;
        self.client.execute(sql, &[&key, &role]).unwrap();
    }

    pub fn give_user_role(&mut self, user: i32, role: i32) {
        let sql = r#"INSERT INTO "user-has-role" ("user", "role") VALUES ($1, $2)"#;
        self.client.execute(sql, &[&user, &role]).unwrap();
    }

    fn permission(&mut self, name: &str) -> i32 {
        let sql = r#"INSERT INTO "permission" ("name") VALUES ($1)
            ON CONFLICT ("name") DO UPDATE SET "name" = excluded."name" RETURNING "id""#;
        self.client.query_one(sql, &[&name]).unwrap().get(0)
    }

    /// Writes the address file of this node, as its VPN server would.
    pub fn write_addresses(&self, addresses: &[(&str, &str)]) {
        let lines: String = addresses.iter().map(|(uuid, address)| format!("{uuid} {address}\n")).collect();
        replace(&self.addresses_path(), &lines);
    }

    pub fn addresses_path(&self) -> PathBuf {
        self.folder.path().join("addresses")
    }

    /// What the relay reads of node 10.0.0.7, under the documented role.
    pub fn source(&self) -> StoreView {
        let store = config::Store { profile: Profile::OpenBalena, ..store_at(&self.database.relay_url()) };
        StoreView::new(&store, &Authz::default())
    }

    /// The same where the API's tokens count, which `signer` signs.
    pub fn source_with_logins(&self, signer: &Signer) -> StoreView {
        let tokens = format!("tokens = [{}]", signer.entry("claims = 'openbalena'"));
        let store = config::Store { profile: Profile::OpenBalena, ..store_at(&self.database.relay_url()) };
        StoreView::new(&store, &toml::from_str(&tokens).unwrap())
    }

    pub fn start(&self) -> Relay {
        Relay::start(self.command(&["run"]))
    }

    /// The binary with the configuration of node 10.0.0.7.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let folder = self.folder.path();
        let config: PathBuf = folder.join("sluicegate.toml");
        let text = format!(
            r#"
            listen = [{{ address = "127.0.0.1:0" }}]
            store.url = "{}"
            store.profile = "openbalena"
            admin.address = "127.0.0.1:0"
            vpn.allow = ["127.0.0.0/8"]
            vpn.node = "10.0.0.7"
            vpn.addresses = ["file:{}"]
            authz.reread = "20ms"
            # A handful of rows; what a test writes is no mass.
            authz.guard.budgets = {{ gained = {{ rows = 100, share = 1.0 }}, widened = {{ rows = 100, share = 1.0 }}, moved = {{ rows = 100, share = 1.0 }} }}
            {}
            "#,
            self.database.relay_url(),
            self.addresses_path().display(),
            self.more
        );
        std::fs::write(&config, text).unwrap();
        let mut command = Command::new(BINARY);
        command.args(arguments).arg("--config").arg(config).stdin(Stdio::null());
        command.env("STATE_DIRECTORY", folder.join("state"));
        command
    }

    /// The status of the reply to `key` for a port of a device.
    pub fn status(relay: &Relay, key: &str, uuid: &str, port: u16) -> u16 {
        Request::to(uuid, port).bearer(key).send(relay.address()).status
    }
}
