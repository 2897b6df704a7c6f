//! The documentation, followed: each block of a page runs as it stands, or says why it cannot.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use sluicegate::config::Config;
use sluicegate::config::reference::REFERENCE;
use toml::{Table, Value};

use crate::support::{BINARY, DEVICE, Device, Relay, Site, tools_or_skip};

/// A fenced block of a page.
struct Block {
    page: String,
    /// Line of its first fence.
    line: usize,
    language: String,
    text: String,
    /// The reason in the comment before it.
    not_run: Option<String>,
}

impl Block {
    fn place(&self) -> String {
        format!("{}:{}", self.page, self.line)
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The pages that a user follows, by their paths in the repository.
fn pages() -> Vec<String> {
    let docs = fs::read_dir(root().join("docs")).unwrap().map(|entry| entry.unwrap().file_name());
    let docs = docs.filter_map(|name| name.into_string().ok()).filter(|name| name.ends_with(".md"));
    let others = ["README.md", "systemd/README.md", "tuning/README.md", "monitoring/OPERATIONS.md"];
    let mut pages: Vec<String> =
        docs.map(|name| format!("docs/{name}")).chain(others.map(str::to_owned)).collect();
    pages.sort();
    pages
}

/// All blocks of all pages, in order.
fn blocks() -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    for page in pages() {
        let text = fs::read_to_string(root().join(&page)).unwrap();
        let (mut open, mut before) = (None::<Block>, "");
        for (number, line) in text.lines().enumerate() {
            match (line.strip_prefix("```"), &mut open) {
                (Some(language), None) => {
                    let reason = before.strip_prefix(NOT_RUN).and_then(|reason| reason.strip_suffix(" -->"));
                    open = Some(Block {
                        page: page.clone(),
                        line: number + 1,
                        language: language.to_owned(),
                        text: String::new(),
                        not_run: reason.map(str::to_owned),
                    });
                }
                (Some(_), Some(_)) => blocks.extend(open.take()),
                (None, Some(block)) => {
                    block.text.push_str(line);
                    block.text.push('\n');
                }
                (None, None) => before = line,
            }
            if open.is_none() && line.starts_with("```") {
                before = "";
            }
        }
        assert!(open.is_none(), "{page} ends in a block");
    }
    blocks
}

/// Says what is wrong with a block's language or mark.
fn fault(block: &Block) -> Option<String> {
    let is_run_elsewhere = || SQL_PAGES.contains(&block.page.as_str());
    match (block.language.as_str(), &block.not_run) {
        ("toml" | "sh", None) => None,
        ("sql", None) if is_run_elsewhere() => None,
        ("sql" | "console", None) => Some(format!("is not run; put `{NOT_RUN}REASON -->` before it")),
        ("toml" | "sh" | "sql" | "console", Some(reason)) => {
            let files = reason
                .split(|c: char| c.is_whitespace() || ";,".contains(c))
                .filter(|word| word.starts_with("tests/") || word.starts_with("docs/"));
            let missing = files.into_iter().find(|file| !root().join(file).exists());
            match missing {
                Some(file) => Some(format!("names {file}, which is not there")),
                None if reason.len() < REASON_CHARS_MIN => Some("has hardly a reason".to_owned()),
                None => None,
            }
        }
        ("text", Some(_)) => Some("is no command, so it needs no reason".to_owned()),
        ("text", None) => {
            let is_command = |line: &&str| line.starts_with("$ ") || line.starts_with("sluicegate ");
            let command = block.text.lines().find(is_command)?;
            Some(format!("has the command `{command}`; name its language `sh` or `console`"))
        }
        (other, _) => Some(format!("has the language `{other}`; it must be toml, sh, sql, console or text")),
    }
}

#[test]
fn every_block_runs_or_says_why_it_cannot() {
    let blocks = blocks();
    let faults: Vec<String> =
        blocks.iter().filter_map(|block| Some(format!("{} {}", block.place(), fault(block)?))).collect();
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
    let count = |language: &str| {
        blocks.iter().filter(|block| block.language == language && block.not_run.is_none()).count()
    };
    assert!(count("toml") >= 25 && count("sh") >= 8, "{} and {}", count("toml"), count("sh"));
}

#[test]
fn a_block_without_a_language_or_a_reason_is_found() {
    let block = |language: &str, text: &str, not_run: Option<&str>| {
        let (language, text, not_run) = (language.to_owned(), text.to_owned(), not_run.map(str::to_owned));
        fault(&Block { page: "docs/new.md".to_owned(), line: 1, language, text, not_run })
    };
    assert!(block("", "x", None).is_some_and(|fault| fault.contains("language")));
    assert!(block("sql", "SELECT 1", None).is_some() && block("console", "$ x", None).is_some());
    assert!(block("text", "sluicegate run", None).is_some());
    assert!(block("sh", "x", Some("see tests/integration/no_such_file.rs")).is_some());
    assert!(block("sh", "x", Some("no")).is_some() && block("sh", "x", None).is_none());
}

/// A folder for the files that pages name, in the place of this machine's.
struct Scratch(tempfile::TempDir);

impl Scratch {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for path in SYSTEM_FOLDERS {
            fs::create_dir_all(folder.path().join(&path[1..])).unwrap();
        }
        fs::create_dir(folder.path().join("etc/sluicegate/tls")).unwrap();
        Self(folder)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// `text` with its paths in this folder.
    fn moved(&self, text: &str) -> String {
        let folder = self.path().display().to_string();
        SYSTEM_FOLDERS
            .iter()
            .fold(text.to_owned(), |text, path| text.replace(path, &format!("{folder}{path}")))
    }

    /// Loads a block as a configuration, with what it leaves to the reader below it.
    fn loaded(&self, text: &str) -> Result<(), String> {
        // No such interface is on this machine.
        let text = self.moved(&text.replace("\"resin-vpn\"", "\"lo\""));
        self.make_files(&text);
        let mut table: Table = toml::from_str(&text).map_err(|error| error.to_string())?;
        let is_for_openbalena = text.contains("\"openbalena\"");
        let base = self.moved(if is_for_openbalena { OPENBALENA_BASE } else { BASE });
        lay_under(&mut table, toml::from_str(&base).unwrap());
        let path = self.path().join("sluicegate.toml");
        fs::write(&path, table.to_string()).unwrap();
        Config::load(Some(&path), []).map(drop).map_err(|error| error.to_string())
    }

    /// Makes the files that are read together with a configuration.
    fn make_files(&self, text: &str) {
        let folder = format!("{}/", self.path().display());
        for value in text.split('"').filter(|value| value.starts_with(&folder)) {
            let content = match Path::new(value).extension().and_then(|end| end.to_str()) {
                Some("sql") => "SELECT 1\n",
                Some("pub" | "pem") => PUBLIC_KEY,
                _ => "0123456789abcdef0123456789abcdef\n",
            };
            let file = PathBuf::from(value);
            if file.is_dir() {
                continue;
            }
            fs::write(&file, content).unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        }
    }
}

/// Adds the keys of `base` that `table` lacks.
fn lay_under(table: &mut Table, base: Table) {
    for (key, value) in base {
        match (table.get_mut(&key), value) {
            (Some(Value::Table(above)), Value::Table(below)) => lay_under(above, below),
            (Some(_), _) => {}
            (None, value) => drop(table.insert(key, value)),
        }
    }
}

#[test]
fn every_configuration_in_the_pages_is_taken() {
    let scratch = Scratch::new();
    let mut refused = Vec::new();
    for block in blocks().iter().filter(|block| block.language == "toml" && block.not_run.is_none()) {
        if let Err(error) = scratch.loaded(&block.text) {
            refused.push(format!("{}: {error}", block.place()));
        }
    }
    assert!(refused.is_empty(), "\n{}", refused.join("\n"));
    assert!(scratch.loaded("[limits]\nsession = 1\n").is_err(), "this test takes anything");
}

#[test]
fn every_example_of_the_reference_is_taken() {
    // Each key that has no default, with the other keys of its section.
    let scratch = Scratch::new();
    // They stand in the place of others.
    const OTHERS: [&str; 7] = [
        "#principal_claim = ",
        "#secret_claim = ",
        "#keys_file = ",
        "#keys_url = ",
        "#discover = ",
        "#keys_ca = ",
        "#keys_refresh = ",
    ];
    let uncommented: Vec<&str> = REFERENCE
        .lines()
        .filter(|line| !line.starts_with("# ") && !OTHERS.iter().any(|other| line.starts_with(other)))
        .map(|line| line.strip_prefix('#').unwrap_or(line))
        .collect();
    let mut text = uncommented.join("\n");
    // No such interface and group need be on this machine; and the claims are those of another profile.
    for (example, here) in [
        ("\"tun0\"", "\"lo\""),
        ("socket_group = \"sluicegate\"", "socket_group = \"root\""),
        ("claims = \"openbalena\"\n", ""),
    ] {
        assert!(text.contains(example), "{example}");
        text = text.replace(example, here);
    }
    assert_eq!(scratch.loaded(&text), Ok(()));
    let key_file = "algorithm = \"EdDSA\"\nkey_file = \"/etc/sluicegate/signer.pem\"\nkey_id = \"2026-01\"\n";
    assert!(text.contains(key_file));
    for source in ["#keys_url = ", "#discover = "] {
        let line = |key: &str| REFERENCE.lines().find_map(|line| line.strip_prefix('#')?.strip_prefix(key));
        let [source, refresh] = [source, "#keys_refresh = "].map(|key| {
            let key = key.trim_start_matches('#');
            format!("{key}{}\n", line(key).unwrap())
        });
        assert_eq!(scratch.loaded(&text.replace(key_file, &(source.clone() + &refresh))), Ok(()), "{source}");
    }
}

#[test]
fn every_command_block_in_the_pages_runs() {
    if !tools_or_skip("the commands of the pages", &["bash", "curl", "openssl", "sqlite3"]) {
        return;
    }
    let mut pages: BTreeMap<String, Vec<Block>> = BTreeMap::new();
    for block in blocks() {
        if block.language == "sh" && block.not_run.is_none() {
            pages.entry(block.page.clone()).or_default().push(block);
        }
    }
    for (page, blocks) in pages {
        let scratch = Scratch::new();
        fs::create_dir(scratch.path().join("bin")).unwrap();
        std::os::unix::fs::symlink(BINARY, scratch.path().join("bin/sluicegate")).unwrap();
        let mut run = Command::new(BINARY);
        run.arg("run").env_clear().env("HOME", scratch.path()).stdin(Stdio::null());
        run.env("SLUICEGATE_LISTEN__0__ADDRESS", "127.0.0.1:0")
            .env("SLUICEGATE_ADMIN__ADDRESS", "127.0.0.1:0");
        let relay = Relay::start(run);
        let device = Device::http(b"the page of the web server\n");
        // README.md makes its device itself.
        let device_is_made = page == "README.md";
        let begin = if device_is_made { String::new() } else { format!("sluicegate device add {DEVICE}\n") };
        let commands: String = blocks.iter().map(|block| block.text.as_str()).collect();
        let commands = scratch
            .moved(&commands)
            .replace("127.0.0.1:3128", &relay.address().to_string())
            .replace("127.0.0.1:9128", &relay.admin().to_string())
            .replace("8080", &device.port().to_string());
        let mut shell = Command::new("bash");
        shell.args(["-e", "-u", "-x", "-o", "pipefail", "-c", &format!("{begin}{commands}")]);
        let path = format!("{}/bin:/usr/sbin:/usr/bin:/sbin:/bin", scratch.path().display());
        shell.env_clear().env("HOME", scratch.path()).env("PATH", path).env("UUID", DEVICE);
        let output = shell.current_dir(scratch.path()).stdin(Stdio::null()).output().unwrap();
        let told = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        assert!(output.status.success(), "{page}: {}\n{}{}", output.status, told[0], told[1]);
        if page == "README.md" {
            assert!(told[0].contains("the page of the web server"), "{}", told[0]);
        }
        if page == "docs/tls.md" {
            takes_the_certificate_for_tests(scratch.path());
        }
    }
}

/// The relay and curl take what the recipe in docs/tls.md made in `folder`.
fn takes_the_certificate_for_tests(folder: &Path) {
    let shown = folder.display();
    let site = Site::new(&format!(
        "listen = [{{ address = '127.0.0.1:0', tls = {{ certificates = [\
         {{ chain = '{shown}/localhost.crt', key = '{shown}/localhost.key' }}] }} }}]"
    ));
    let relay = site.start();
    let device = Device::http(b"by TLS");
    let mut curl = Command::new("curl");
    curl.args(["-s", "-p", "-x", &format!("https://localhost:{}", relay.address().port())]);
    curl.args([
        "--proxy-cacert",
        &format!("{shown}/test-ca.crt"),
        "--proxy-user",
        &format!("x:{}", site.token),
    ]);
    let output = curl.arg(format!("http://{DEVICE}.balena:{}/", device.port())).output().unwrap();
    assert!(output.status.success() && output.stdout == b"by TLS", "{output:?}");
}

/// The start of the comment that says why the next block is not run.
const NOT_RUN: &str = "<!-- not run: ";

const REASON_CHARS_MIN: usize = 12;

/// Pages whose SQL other tests run: `tests/support/postgres.rs` and `tests/support/openbalena.rs`.
const SQL_PAGES: [&str; 3] = ["docs/postgresql.md", "docs/openbalena.md", "docs/nodes.md"];

/// Folders of this machine that pages name.
const SYSTEM_FOLDERS: [&str; 4] =
    ["/etc/sluicegate", "/var/lib/sluicegate", "/var/backups", "/var/log/sluicegate"];

/// What a block leaves to the reader: the networks, and that the node is one of several.
const BASE: &str = r#"
    [vpn]
    allow = ["10.8.0.0/16"]
    node = "node-1"
    [forward]
    listen = "10.0.0.1:3130"
    tls = { chain = "/etc/sluicegate/n.crt", key = "/etc/sluicegate/n.key", ca = "/etc/sluicegate/ca.crt" }
"#;

const OPENBALENA_BASE: &str = r#"
    [store]
    url = "postgres://sluicegate_relay@db.example/resin"
    profile = "openbalena"
    [vpn]
    allow = ["10.8.0.0/16"]
"#;

/// An Ed25519 key: the example of RFC 8410, section 10.1.
const PUBLIC_KEY: &str = "-----BEGIN PUBLIC KEY-----\n\
    MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n-----END PUBLIC KEY-----\n";
