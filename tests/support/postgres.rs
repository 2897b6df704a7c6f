//! PostgreSQL servers of a test's own: made from nothing by an unprivileged user, gone with the test.

use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Gid, Pid, Uid, User};
use postgres::{Client, NoTls};

use super::made_once::MadeOnce;
use super::skip::skip;
use super::wait_for;

/// A server and its data.
pub struct Cluster {
    data: PathBuf,
    port: u16,
    /// `None` while it is stopped.
    server: Option<Server>,
}

/// Ends with this process, however that ends: a shell holds the other end of its stdin, and stops the server
/// and removes its data once that is closed.
struct Server {
    supervisor: Child,
    stdin: ChildStdin,
}

impl Cluster {
    /// A server that tests of one binary share, each with a database of its own. `None` where PostgreSQL is
    /// not installed, which is then noted.
    pub fn shared() -> Option<&'static Self> {
        static SHARED: LazyLock<Option<Cluster>> = LazyLock::new(Cluster::start);
        SHARED.as_ref().or_else(|| {
            note_skip();
            None
        })
    }

    /// A server for a test that stops it, or does something else to it that others would notice.
    pub fn start() -> Option<Self> {
        Self::configured("")
    }

    /// Starts like [`Cluster::start`], with lines for postgresql.conf.
    pub fn configured(settings: &str) -> Option<Self> {
        Self::with_files(settings, &[])
    }

    /// Starts like [`Cluster::configured`], with private files in the data folder.
    pub fn with_files(settings: &str, files: &[(&str, &str)]) -> Option<Self> {
        let Some(tools) = tools() else {
            note_skip();
            return None;
        };
        let data = data_folder();
        copy(template(&tools).folder(), &data);
        append(&data.join("postgresql.conf"), &format!("{SETTINGS}{settings}"));
        for (name, text) in files {
            let file = data.join(name);
            std::fs::write(&file, text).unwrap();
            own(&file, 0o600);
        }
        let mut cluster = Self { data, port: 0, server: None };
        cluster.run();
        Some(cluster)
    }

    /// A standby that follows this server by streaming.
    pub fn standby(&self, settings: &str) -> Self {
        let data = data_folder();
        let mut backup = as_unprivileged(Command::new(tools().unwrap().join("pg_basebackup")));
        backup.args(["--checkpoint=fast", "--no-sync", "--wal-method=stream", "--write-recovery-conf"]);
        backup.args(["--dbname", &self.url("postgres", "postgres"), "-D"]).arg(&data);
        let output = backup.output().unwrap();
        assert!(output.status.success(), "pg_basebackup: {}", String::from_utf8_lossy(&output.stderr));
        append(&data.join("postgresql.conf"), settings);
        let mut standby = Self { data, port: 0, server: None };
        standby.run();
        standby
    }

    /// Starts the server and waits until it lets clients in.
    pub fn run(&mut self) {
        for _ in 0..PORTS_TRIED_MAX {
            if self.port == 0 {
                self.port = super::free_address().port();
            }
            let mut server = Server::start(&self.data, self.port);
            let is_up = wait_for(|| match self.try_client("postgres", "postgres") {
                Ok(_) => Some(true),
                Err(_) => server.supervisor.try_wait().unwrap().map(|_| false),
            });
            if is_up == Some(true) {
                self.server = Some(server);
                return;
            }
            // Somebody else may have taken the port meanwhile.
            self.port = 0;
        }
        panic!("no server: {}", std::fs::read_to_string(self.data.join("server.log")).unwrap_or_default());
    }

    /// Stops the server, its connections included, and keeps its data.
    pub fn stop(&mut self) {
        let Server { mut supervisor, mut stdin } = self.server.take().unwrap();
        stdin.write_all(b"keep\n").unwrap();
        supervisor.wait().unwrap();
    }

    /// A new database with a schema, and the relay's role in it.
    pub fn database(&self) -> Database<'_> {
        let database = self.empty_database();
        assert!(database.init().contains("created"));
        database.grant();
        database
    }

    pub fn empty_database(&self) -> Database<'_> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("test_{}", COUNT.fetch_add(1, Ordering::Relaxed));
        self.client("postgres").batch_execute(&format!("CREATE DATABASE {name}")).unwrap();
        Database { cluster: self, name }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn data(&self) -> &Path {
        &self.data
    }

    pub fn url(&self, user: &str, database: &str) -> String {
        format!("postgres://{user}@127.0.0.1:{}/{database}", self.port)
    }

    /// A superuser's connection.
    pub fn client(&self, database: &str) -> Client {
        self.try_client("postgres", database).unwrap()
    }

    pub fn try_client(&self, user: &str, database: &str) -> Result<Client, postgres::Error> {
        Client::connect(&self.url(user, database), NoTls)
    }

    /// Sends a signal to the server process that serves a connection of the relay's.
    pub fn signal_backends(&self, application: &str, signal: Signal) {
        let rows = self
            .client("postgres")
            .query("SELECT pid FROM pg_stat_activity WHERE application_name = $1", &[&application])
            .unwrap();
        for row in rows {
            kill(Pid::from_raw(row.get(0)), signal).unwrap();
        }
    }
}

impl Server {
    fn start(data: &Path, port: u16) -> Self {
        let script = r#"
            "$1/postgres" -D "$2" -p "$3" >>"$2/server.log" 2>&1 </dev/null &
            pid=$!
            read -r word
            kill -INT $pid 2>/dev/null
            wait $pid
            [ "$word" = keep ] || rm -rf "$2"
        "#;
        let mut shell = as_unprivileged(Command::new("sh"));
        shell.args(["-c", script, "server"]);
        shell.arg(tools().unwrap()).arg(data).arg(port.to_string());
        // Not the test's own, which whoever runs it waits for the end of.
        shell.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut supervisor = shell.spawn().unwrap();
        let stdin = supervisor.stdin.take().unwrap();
        Self { supervisor, stdin }
    }
}

/// A PgBouncer in front of a cluster's databases. It ends when this is dropped.
pub struct Pooler {
    program: Child,
    port: u16,
    folder: PathBuf,
}

impl Pooler {
    /// Starts one with this `pool_mode`, for these users. `None` where PgBouncer is not installed, which is then noted.
    pub fn start(cluster: &Cluster, pool_mode: &str, users: &[&str]) -> Option<Self> {
        let name = std::thread::current().name().unwrap_or("a test").to_owned();
        if !super::tools_or_skip(&name, &["pgbouncer"]) {
            return None;
        }
        let folder = data_folder();
        let port = super::free_address().port();
        let listed: String = users.iter().map(|user| format!("\"{user}\" \"\"\n")).collect();
        let settings = format!(
            "[databases]\n* = host=127.0.0.1 port={}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
             unix_socket_dir =\nauth_type = trust\nauth_file = {}\npool_mode = {pool_mode}\n",
            cluster.port,
            folder.join("users").display()
        );
        for (file, text) in [("users", &listed), ("pgbouncer.ini", &settings)] {
            std::fs::write(folder.join(file), text).unwrap();
            own(&folder.join(file), 0o600);
        }
        let mut command = as_unprivileged(Command::new("pgbouncer"));
        command.env("PATH", "/usr/sbin:/usr/bin:/bin").arg("--quiet").arg(folder.join("pgbouncer.ini"));
        let program =
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let pooler = Self { program, port, folder };
        let is_up = || std::net::TcpStream::connect(("127.0.0.1", port)).ok();
        wait_for(is_up).expect("the pooler accepts connections");
        Some(pooler)
    }

    pub fn url(&self, user: &str, database: &str) -> String {
        format!("postgres://{user}@127.0.0.1:{}/{database}", self.port)
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        let _gone = self.program.kill().and_then(|()| self.program.wait());
        let _removed_already = std::fs::remove_dir_all(&self.folder);
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(Server { mut supervisor, stdin }) = self.server.take() {
            drop(stdin);
            let _gone = supervisor.wait();
        }
        let _removed_already = std::fs::remove_dir_all(&self.data);
    }
}

/// A database for one test, with roles of its own.
pub struct Database<'a> {
    pub cluster: &'a Cluster,
    pub name: String,
}

impl Database<'_> {
    /// Runs `sluicegate store init`, and gives what it printed.
    pub fn init(&self) -> String {
        let mut command = Command::new(super::BINARY);
        let output = command.args(["store", "init", "--store", &self.owner_url()]).output().unwrap();
        super::assert_done(&output);
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Makes the relay's role, with exactly the rights that the documentation gives it.
    pub fn grant(&self) {
        self.grant_as_in(include_str!("../../docs/postgresql.md"));
    }

    /// Grants the rights that `document` shows.
    pub fn grant_as_in(&self, document: &str) {
        let statements = documented_grants(document).replace("sluicegate_relay", &self.relay());
        self.client().batch_execute(&statements).unwrap();
    }

    /// Makes the role by which nodes keep their directory, with exactly the rights that the documentation gives it;
    /// its name.
    pub fn nodes_role(&self) -> String {
        let role = format!("node_{}", self.name);
        let statements = documented_grants(include_str!("../../docs/nodes.md"));
        self.client().batch_execute(&statements.replace("sluicegate_node", &role)).unwrap();
        role
    }

    /// The statements of the documentation by which a node, as a role in `group`, can write only its
    /// own row.
    pub fn own_rows_only(&self, group: &str) -> String {
        let blocks = include_str!("../../docs/nodes.md").split("```sql\n");
        let mut statements = blocks.filter_map(|block| block.split_once("```")).map(|(sql, _)| sql);
        let policies = statements.find(|sql| sql.contains("CREATE POLICY")).unwrap();
        policies.replace("sluicegate_node", group)
    }

    pub fn owner_url(&self) -> String {
        self.cluster.url("postgres", &self.name)
    }

    pub fn relay_url(&self) -> String {
        self.cluster.url(&self.relay(), &self.name)
    }

    /// The role that the relay of this test has.
    pub fn relay(&self) -> String {
        format!("relay_{}", self.name)
    }

    pub fn client(&self) -> Client {
        self.cluster.client(&self.name)
    }

    /// Runs statements as an operator does with psql; triggers run unless a statement turns them off.
    pub fn by_hand(&self, statements: &str) {
        self.client().batch_execute(statements).unwrap();
    }
}

/// The first block of SQL in a document.
fn documented_grants(document: &str) -> &str {
    let (_, block) = document.split_once("```sql\n").unwrap();
    block.split_once("```").unwrap().0
}

fn note_skip() {
    // The harness names a test's thread for it.
    let name = std::thread::current().name().unwrap_or("a test").to_owned();
    skip(&name, "needs PostgreSQL's server programs");
}

/// The folder of the server's programs: Debian's newest, else the first on the path.
fn tools() -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
    let mut folders: Vec<_> = versions.filter_map(|entry| Some(entry.ok()?.path().join("bin"))).collect();
    folders.sort();
    folders.reverse();
    folders.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    let programs = ["initdb", "postgres", "pg_basebackup"];
    folders.into_iter().find(|folder| programs.iter().all(|program| folder.join(program).exists()))
}

/// A data folder as `initdb` makes it, from which the cluster of each test is copied. Clusters made from it have the
/// same system identifier, so a test whose servers must be different systems has to run `initdb` itself.
fn template(tools: &Path) -> MadeOnce {
    let version = Command::new(tools.join("initdb")).arg("--version").output().unwrap();
    let owner = unprivileged().map_or_else(nix::unistd::geteuid, |(uid, _)| uid);
    let version = String::from_utf8(version.stdout).unwrap();
    let key = format!("{} {} uid {owner}", version.trim(), INITDB_ARGUMENTS.join(" "));
    let key = key.replace(|letter: char| !letter.is_ascii_alphanumeric() && letter != '.', "-");
    MadeOnce::new("postgres", &key, |folder| {
        // The server's user may be unable to reach cargo's folder.
        let data = data_folder();
        let mut initdb = as_unprivileged(Command::new(tools.join("initdb")));
        let output = initdb.args(INITDB_ARGUMENTS).arg("-D").arg(&data).output().unwrap();
        let message = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "initdb cannot make the template of all clusters: {message}");
        copy(&data, folder);
        std::fs::remove_dir_all(data).unwrap();
    })
}

/// Copies the content of a folder, and the owners and modes of everything, the folder itself included.
fn copy(from: &Path, to: &Path) {
    let output = Command::new("cp").arg("-a").arg(from.join(".")).arg(to).output().unwrap();
    assert!(output.status.success(), "cp: {}", String::from_utf8_lossy(&output.stderr));
}

/// A folder that the server's user owns.
fn data_folder() -> PathBuf {
    let folder = tempfile::Builder::new().prefix("sluicegate-postgres-").tempdir().unwrap().keep();
    own(&folder, 0o700);
    folder
}

/// Gives a file to the server's user alone.
fn own(path: &Path, mode: u32) {
    if let Some((uid, gid)) = unprivileged() {
        nix::unistd::chown(path, Some(uid), Some(gid)).unwrap();
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// The server refuses to run as root.
fn as_unprivileged(mut command: Command) -> Command {
    if let Some((uid, gid)) = unprivileged() {
        command.uid(uid.as_raw()).gid(gid.as_raw()).current_dir("/");
    }
    command.env_remove("PGPASSWORD");
    command
}

fn unprivileged() -> Option<(Uid, Gid)> {
    if !nix::unistd::geteuid().is_root() {
        return None;
    }
    let names = ["postgres", "nobody"].into_iter();
    let user = names.filter_map(|name| User::from_name(name).unwrap()).next().unwrap();
    Some((user.uid, user.gid))
}

fn append(file: &Path, lines: &str) {
    let mut text = std::fs::read_to_string(file).unwrap();
    text.push_str(lines);
    std::fs::write(file, text).unwrap();
}

const INITDB_ARGUMENTS: [&str; 5] =
    ["--no-sync", "--auth=trust", "--username=postgres", "--encoding=UTF8", "--locale=C"];

/// Quick, because nothing has to outlive the test; and small, because several run beside each other.
const SETTINGS: &str = "
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
fsync = off
full_page_writes = off
shared_buffers = 32MB
max_connections = 60
max_wal_size = 256MB
wal_level = replica
max_wal_senders = 4
autovacuum_naptime = 10s
";

const PORTS_TRIED_MAX: usize = 5;
