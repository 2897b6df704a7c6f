//! A place where a relay can run: a folder with a store, a configuration and an audit log.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;
use toml::Table;

use super::process::{self, Relay};
use super::{Answer, Audit, Database, Device, Request};

/// At 127.0.0.1; alice may reach every port of it.
pub const DEVICE: &str = "00112233445566778899aabbccddeeff";

/// At ::1; alice may reach every port of it.
pub const DEVICE_V6: &str = "66666666666666666666666666666666";

/// No site knows it before a test adds it.
pub const OTHER_DEVICE: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcd";

/// A store with principal `alice`, her token, and a grant on every port of every device.
pub struct Site {
    folder: TempDir,
    config: Table,
    /// The store that commands write to, where the relay reads under another URL.
    writes_to: Option<String>,
    /// Alice's.
    pub token: String,
    /// The id of the token's credential in `token list`.
    pub credential: String,
    pub grant: i64,
}

impl Site {
    /// A site whose configuration has the tables of `fragment` on top of free loopback ports.
    pub fn new(fragment: &str) -> Self {
        Self::made(fragment, None)
    }

    /// A [`Site::new`] with its store on PostgreSQL: commands write as the owner, the relay reads under its
    /// own role.
    pub fn on_postgres(database: &Database, fragment: &str) -> Self {
        let mut config: Table = toml::from_str(fragment).unwrap();
        let store: Table = toml::from_str(&format!("store.url = \"{}\"", database.relay_url())).unwrap();
        lay_over(&mut config, store);
        Self::made(&toml::to_string(&config).unwrap(), Some(database.owner_url()))
    }

    fn made(fragment: &str, writes_to: Option<String>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let base = format!(
            r#"
            listen = [{{ address = "127.0.0.1:0" }}]
            store.url = "sqlite:{folder}/store.db"
            audit.path = "{folder}/audit.jsonl"
            admin.address = "127.0.0.1:0"
            vpn.allow = ["127.0.0.0/8", "::1/128"]
            log.level = "debug"
            probe.interval = "0s"
            timeouts.lame_duck = "0s"
            usage.interval = "0s"
            "#,
            folder = folder.path().display()
        );
        let mut config: Table = toml::from_str(&base).unwrap();
        lay_over(&mut config, toml::from_str(fragment).unwrap());
        let mut site =
            Self { folder, config, writes_to, token: String::new(), credential: String::new(), grant: 0 };
        site.write_config();
        site.fill();
        site
    }

    /// Has `sluicegate` do what `arguments` say, and gives what it printed.
    pub fn cli(&self, arguments: &[&str]) -> Value {
        let mut command = self.command(arguments);
        command.args(self.writes_to.iter().flat_map(|url| ["--store", url.as_str()]));
        let output = command.arg("--json").output().unwrap();
        let message = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "sluicegate {} failed: {message}", arguments.join(" "));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// The binary with this site's configuration.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(process::BINARY);
        command.args(arguments).arg("--config").arg(self.config_path()).stdin(Stdio::null());
        command.env("STATE_DIRECTORY", self.path("state"));
        command
    }

    pub fn start(&self) -> Relay {
        Relay::start(self.command(&["run"]))
    }

    /// A further relay with this configuration and `fragment` on top, and its audit log. Its files are in a folder
    /// with its `name`.
    pub fn start_sibling(&self, name: &str, fragment: &str) -> (Relay, Audit) {
        let folder = self.path(name);
        std::fs::create_dir_all(&folder).unwrap();
        let audit = folder.join("audit.jsonl");
        let mut config = self.config.clone();
        lay_over(&mut config, toml::from_str(fragment).unwrap());
        lay_over(&mut config, toml::from_str(&format!("audit.path = '{}'", audit.display())).unwrap());
        let file = folder.join("sluicegate.toml");
        std::fs::write(&file, toml::to_string(&config).unwrap()).unwrap();
        let mut command = Command::new(process::BINARY);
        command.arg("run").arg("--config").arg(&file).env("STATE_DIRECTORY", folder.join("state"));
        (Relay::start(command), Audit::new(audit))
    }

    /// Starts the relay through a program that runs its arguments, such as `prlimit`.
    pub fn start_through(&self, wrapper: &[impl AsRef<OsStr>]) -> Relay {
        let run = self.command(&["run"]);
        let mut command = Command::new(&wrapper[0]);
        command.args(&wrapper[1..]).arg(run.get_program()).args(run.get_args()).stdin(Stdio::null());
        command.env("STATE_DIRECTORY", self.path("state"));
        Relay::start(command)
    }

    /// Runs the relay where it is expected to give up: its exit code and what it said on stderr. `None`
    /// where it did not end by itself.
    pub fn start_in_vain(&self) -> Option<(Option<i32>, String)> {
        let mut child = self.command(&["run"]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let ended = super::wait_for(|| child.try_wait().unwrap());
        let _gone_already = child.kill();
        let output = child.wait_with_output().unwrap();
        Some((ended?.code(), String::from_utf8_lossy(&output.stderr).into_owned()))
    }

    /// Alice asks for a port of [`DEVICE`].
    pub fn ask(&self, relay: &Relay, port: u16) -> Answer {
        Request::to(DEVICE, port).bearer(&self.token).send(relay.address())
    }

    /// Alice's request for the port of a device that stands in for [`DEVICE`].
    pub fn request(&self, device: &Device) -> Request {
        let uuid = if device.address().is_ipv6() { DEVICE_V6 } else { DEVICE };
        Request::to(uuid, device.port()).bearer(&self.token)
    }

    /// Changes the configuration for relays that start from now on.
    pub fn configure(&mut self, fragment: &str) {
        lay_over(&mut self.config, toml::from_str(fragment).unwrap());
        self.write_config();
    }

    /// Takes a key of a table out of the configuration.
    pub fn unconfigure(&mut self, table: &str, key: &str) {
        if let Some(toml::Value::Table(table)) = self.config.get_mut(table) {
            table.remove(key);
        }
        self.write_config();
    }

    pub fn audit(&self) -> Audit {
        Audit::new(self.path("audit.jsonl"))
    }

    pub fn store_path(&self) -> PathBuf {
        self.path("store.db")
    }

    pub fn config_path(&self) -> PathBuf {
        self.path("sluicegate.toml")
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write_config(&self) {
        std::fs::write(self.config_path(), toml::to_string(&self.config).unwrap()).unwrap();
    }

    fn fill(&mut self) {
        self.cli(&["store", "init"]);
        self.cli(&["principal", "add", "alice"]);
        let issued = self.cli(&["token", "issue", "alice"]);
        self.token = issued["token"].as_str().unwrap().to_owned();
        self.credential = issued["credential"].as_str().unwrap().to_owned();
        self.cli(&["device", "add", DEVICE, "--address", "127.0.0.1"]);
        self.cli(&["device", "add", DEVICE_V6, "--address", "::1"]);
        self.grant = self.cli(&["grant", "add", "alice", "--any"])["id"].as_i64().unwrap();
    }
}

/// Puts what `top` says over `base`, table by table.
fn lay_over(base: &mut Table, top: Table) {
    for (key, value) in top {
        match (base.get_mut(&key), value) {
            (Some(toml::Value::Table(below)), toml::Value::Table(above)) => lay_over(below, above),
            (_, value) => {
                base.insert(key, value);
            }
        }
    }
}
