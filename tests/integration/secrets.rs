//! Tokens are shown once, when they are issued, and never again: not in a log, a file, an answer or a listing, good
//! or bad, plain or encoded.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Output, Stdio};

use crate::support::{
    DEVICE, Device, Relay, Request, Running, Signal, Signer, Site, V4, connect, exchange, in_seconds,
    root_or_skip, tools_or_skip, wait_for,
};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use serde_json::json;
use sha2::{Digest, Sha256};

/// Never issued.
const UNKNOWN: &str = "sg_3vvPjXdCq8eKzWm0yTtRf5LbUoHn7AaGi1Es2BkQ4Yw";
const ADMIN: &str = "0f4c7ab1e2d9638557aa01bc23de45ff91827364aabbccdd";
const WRONG_ADMIN: &str = "c9d8e7f6a5b4c3d2e1f00918273645546372819af0e1d2c3";
/// A token that somebody wrote into the column of hashes.
const MISPLACED: &str = "sg_misplaced_Jx7Pq2Rm9Lt4Vw8Zk3Ny6Bc1Hd5Fg0Sa";

/// Everything that a relay and those around it have let out.
#[derive(Default)]
struct Outside(Vec<(String, Vec<u8>)>);

impl Outside {
    fn put(&mut self, name: &str, bytes: impl AsRef<[u8]>) {
        self.0.push((name.to_owned(), bytes.as_ref().to_vec()));
    }

    fn put_output(&mut self, name: &str, output: &Output) {
        self.put(name, [output.stdout.as_slice(), &output.stderr].concat());
    }

    /// Every file below `folder`, but those that a test wrote a secret into by itself.
    fn put_files(&mut self, folder: &Path, but: &[&Path]) {
        for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
            let path = entry.path();
            match entry.file_type().unwrap() {
                kind if kind.is_dir() => self.put_files(&path, but),
                kind if kind.is_file() && !but.contains(&path.as_path()) => {
                    self.put(&path.display().to_string(), fs::read(&path).unwrap());
                }
                _ => {}
            }
        }
    }

    /// Places where `secret` stands, with the form that it has there.
    fn finds(&self, secret: &str) -> Vec<String> {
        let forms = forms(secret);
        let holds =
            |bytes: &[u8], form: &str| bytes.windows(form.len()).any(|window| window == form.as_bytes());
        self.0
            .iter()
            .flat_map(|(name, bytes)| {
                let found = forms.iter().filter(|(_, form)| holds(bytes, form));
                found.map(move |(kind, _)| format!("{name} ({kind})"))
            })
            .collect()
    }
}

/// Forms that a secret can take.
fn forms(secret: &str) -> Vec<(&'static str, String)> {
    let mut forms = vec![("plain", secret.to_owned())];
    forms.push(("the half of it", secret[..secret.len() / 2].to_owned()));
    for digits in [hex::encode(secret), hex::encode_upper(secret)] {
        forms.push(("hex", digits));
    }
    forms.push(("its whole hash", hex::encode(Sha256::digest(secret))));
    // Behind a user's name of any length: the digits that depend on the secret alone.
    for name_len in 0..3 {
        for engine in [STANDARD, URL_SAFE] {
            let encoded = engine.encode(format!("{}{secret}", &"xxx"[..name_len]));
            let begin = if name_len == 0 { 0 } else { 4 };
            forms.push(("base64", encoded[begin..encoded.len() - 4].to_owned()));
        }
    }
    forms
}

#[test]
fn no_core_dump_and_no_other_program_of_its_user_sees_its_memory() {
    let name = "no_core_dump_and_no_other_program_of_its_user_sees_its_memory";
    if !tools_or_skip(name, &["setpriv", "chown"]) || !root_or_skip(name) {
        return;
    }
    let site = Site::new("");
    std::fs::create_dir_all(site.folder().join("state")).unwrap();
    let owner = std::process::Command::new("chown").args(["-R", "65534:65534"]).arg(site.folder()).status();
    assert!(owner.unwrap().success());
    let relay = site.start_through(&["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]);
    // The kernel gives the files of a process that cannot be dumped to root.
    let owner = |file: &str| {
        std::os::unix::fs::MetadataExt::uid(&fs::metadata(format!("/proc/{}/{file}", relay.pid())).unwrap())
    };
    assert_eq!((owner("mem"), owner("environ")), (0, 0));
}

#[test]
fn a_store_is_its_owners_alone() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store.db");
    // With the usual umask, under which SQLite makes a file that everybody may read.
    let made = std::process::Command::new("sh")
        .args(["-c", "umask 022; exec \"$0\" store init --store \"sqlite:$1\""])
        .arg(env!("CARGO_BIN_EXE_sluicegate"))
        .arg(&store)
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&store).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn the_search_finds_a_secret_however_it_is_wrapped() {
    let secret = "sg_abcdefghijklmnop";
    for wrapped in [
        secret.to_owned(),
        format!("Bearer {secret}"),
        STANDARD.encode(secret),
        STANDARD.encode(format!(":{secret}")),
        STANDARD.encode(format!("me:{secret}\n")),
        URL_SAFE.encode(format!("anybody:{secret}")),
        hex::encode(secret),
        hex::encode(Sha256::digest(secret)),
        secret[..12].to_owned(),
    ] {
        let mut outside = Outside::default();
        outside.put("somewhere", format!("{{\"detail\":\"{wrapped}\"}}"));
        assert!(!outside.finds(secret).is_empty(), "{wrapped}");
    }
}

#[test]
fn no_token_is_anywhere_once_a_relay_has_seen_everything() {
    if !tools_or_skip("the search for tokens", &["openssl"]) {
        return;
    }
    let mut site = Site::new(
        "authz = { reconcile = '100ms', refresh = '20ms' }
        log.level = 'trace'
        audit.refusals_per_source = 1000",
    );
    let admin_token = site.folder().join("admin-token");
    fs::write(&admin_token, ADMIN).unwrap();
    fs::set_permissions(&admin_token, fs::Permissions::from_mode(0o600)).unwrap();
    site.configure(&format!("admin.token_file = '{}'", admin_token.display()));
    let signer = Signer::new(site.folder(), "login", "HS256");
    site.configure(&format!("authz.tokens = [{}]", signer.entry("")));
    let session_token = signer.sign(&json!({ "sub": 1, "exp": in_seconds(600) }));
    let foreign = Signer::new(site.folder(), "stranger", "HS256");
    let forged = foreign.sign(&json!({ "sub": 1, "exp": in_seconds(600) }));
    let mut relay = site.start();
    let mut outside = Outside::default();

    let device = Device::echo(V4);
    let _tunnels = clients([&site.token, UNKNOWN], &relay, device.port(), &mut outside);
    let _logins = clients([&session_token, &forged], &relay, device.port(), &mut outside);
    for token in [&site.token, UNKNOWN, &session_token] {
        malformed(token, &relay, &mut outside);
    }
    let _client = client_commands(&site, &relay, device.port(), &mut outside);
    trouble_with_the_store(&site, &relay);
    operators(&site, &relay, &mut outside);

    relay.signal(Signal::SIGTERM);
    assert!(relay.logs("draining"));
    relay.signal(Signal::SIGTERM);
    relay.wait().expect("the relay ends");
    outside.put("the log", relay.log());
    outside.put_files(site.folder(), &[&admin_token, &signer.key_file]);
    let names: Vec<&str> = outside.0.iter().map(|(name, _)| name.as_str()).collect();
    for expected in ["audit.jsonl", "store.db", "state/", "the log", "/metrics", "authz diff"] {
        assert!(names.iter().any(|name| name.contains(expected)), "{expected} in {names:?}");
    }
    for (secret, what) in [
        (site.token.as_str(), "a good token"),
        (UNKNOWN, "an unknown token"),
        (session_token.as_str(), "a session token"),
        (forged.as_str(), "a forged one"),
        (signer.secret().as_str(), "the secret that session tokens are signed by"),
        (ADMIN, "the admin token"),
        (WRONG_ADMIN, "a wrong admin token"),
    ] {
        assert_eq!(outside.finds(secret), [""; 0], "{what}");
    }
    // In the store alone, where somebody has put it.
    let found = outside.finds(MISPLACED);
    assert!(!found.is_empty() && found.iter().all(|place| place.contains("store.db")), "{found:?}");
}

/// Good and bad tokens in both schemes, some of whose tunnels stay open.
fn clients(tokens: [&str; 2], relay: &Relay, port: u16, outside: &mut Outside) -> Vec<std::net::TcpStream> {
    let basic = |user: &str, token: &str| {
        let credentials = STANDARD.encode(format!("{user}{token}"));
        Request::to(DEVICE, port).header(&format!("Proxy-Authorization: Basic {credentials}"))
    };
    let mut tunnels = Vec::new();
    for token in tokens {
        for request in [
            Request::to(DEVICE, port).bearer(token),
            basic("", token),
            basic("anybody:", token),
            basic(":", token),
            Request::to("ffffffffffffffffffffffffffffffff", port).bearer(token),
            Request::to(DEVICE, 1).bearer(token),
        ] {
            let answer = request.send(relay.address());
            outside.put("a reply", &answer.head);
            if answer.status == 200 {
                tunnels.push(answer.stream);
            }
        }
    }
    assert_eq!(tunnels.len(), 4);
    tunnels
}

/// Heads that are not valid, with a token where it may be, and where it may not.
fn malformed(token: &str, relay: &Relay, outside: &mut Outside) {
    let authorization = format!("Proxy-Authorization: Bearer {token}");
    for head in [
        format!("CONNECT {token}.balena:22 HTTP/1.1\r\n\r\n"),
        format!("CONNECT {DEVICE}.{token}:22 HTTP/1.1\r\n{authorization}\r\n\r\n"),
        format!("CONNECT {DEVICE}.balena:{token} HTTP/1.1\r\n{authorization}\r\n\r\n"),
        format!("CONNECT {DEVICE}.balena:22 HTTP/1.1\r\n{authorization} {token}\r\n\r\n"),
        format!("CONNECT {DEVICE}.balena:22 HTTP/1.1\r\n{authorization}\r\n{authorization}\r\n\r\n"),
        format!("CONNECT {DEVICE}.balena:22 HTTP/1.1\r\nProxy-Authorization: Basic !{token}!\r\n\r\n"),
        format!("CONNECT {DEVICE}.balena:22 HTTP/1.1\r\nProxy-Authorization: {token}\r\n\r\n"),
        format!("CONNECT {DEVICE}.balena:22 HTTP/1.1\r\n{token}\r\n\r\n"),
        format!("CONNECT {DEVICE}.balena:22 HTTP/9.{token}\r\n{authorization}\r\n\r\n"),
        format!("{token} {DEVICE}.balena:22 HTTP/1.1\r\n\r\n"),
        format!("GET http://{DEVICE}/?token={token} HTTP/1.1\r\n{authorization}\r\n\r\n"),
        format!("CONNECT {DEVICE}.balena:22 HTTP/1.1\r\n{authorization}\r\nX: {}\r\n\r\n", "x".repeat(9_000)),
        format!("CONNECT {DEVICE}.balena:22 HTTP/1.1\r\n{authorization}\r\nX\u{0}: {token}\r\n\r\n"),
        // Ends in the middle.
        format!("CONNECT {DEVICE}.balena:22 HTTP/1.1\r\n{authorization}"),
        format!("\u{16}\u{3}\u{1}{token}\r\n\r\n"),
    ] {
        let mut stream = connect(relay.address());
        stream.write_all(head.as_bytes()).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut reply = Vec::new();
        // A client that sends more than is read is reset once it has its reply.
        let _read_or_reset = stream.read_to_end(&mut reply);
        assert!(!reply.starts_with(b"HTTP/1.1 200"), "{head}");
        outside.put(&format!("the reply to {}", &head[..7]), reply);
    }
}

/// `sluicegate tunnel` as it runs, and as it fails.
fn client_commands(site: &Site, relay: &Relay, port: u16, outside: &mut Outside) -> Running {
    let target = format!("{DEVICE}:{port}");
    let relay = relay.address().to_string();
    let tunnel = |token: &str, rest: &[&str]| {
        let mut command = std::process::Command::new(crate::support::BINARY);
        command.args(["tunnel", &target, "--relay", &relay]).args(rest).env("SLUICEGATE_TOKEN", token);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    };
    let refused =
        tunnel(UNKNOWN, &["--stdio"]).stdout(Stdio::piped()).stderr(Stdio::piped()).output().unwrap();
    assert!(!refused.status.success());
    outside.put_output("tunnel", &refused);
    let unusable = format!("{} {UNKNOWN}", site.token);
    let refused =
        tunnel(&unusable, &["--stdio"]).stdout(Stdio::piped()).stderr(Stdio::piped()).output().unwrap();
    assert!(!refused.status.success());
    outside.put_output("tunnel with two tokens", &refused);
    let running = Running::start(&mut tunnel(&site.token, &["--listen", "127.0.0.1:0"]));
    outside.put("/proc/PID/cmdline", fs::read(format!("/proc/{}/cmdline", running.0.id())).unwrap());
    running
}

/// A hold that is about credentials, and a token in the place of a hash.
fn trouble_with_the_store(site: &Site, relay: &Relay) {
    let store = rusqlite::Connection::open(site.store_path()).unwrap();
    store.busy_timeout(crate::support::PATIENCE).unwrap();
    store
        .execute_batch(&format!(
            "PRAGMA foreign_keys = OFF; PRAGMA ignore_check_constraints = ON;
            INSERT INTO credentials (key_sha256, principal, created_at) VALUES (CAST('{MISPLACED}' AS BLOB), 1, 0);"
        ))
        .unwrap();
    assert!(relay.metric_becomes("sluicegate_store_quarantined_rows", |rows| rows == 1.0));
    store
        .execute_batch(
            "ALTER TABLE credentials RENAME TO credentials_table;
            CREATE VIEW credentials AS
                SELECT CAST(key_sha256 AS TEXT) AS key_sha256, principal, label, created_at, expires_at, revoked_at
                FROM credentials_table WHERE length(key_sha256) <> 32;
            ALTER TABLE devices RENAME TO devices_table;
            CREATE VIEW devices AS SELECT * FROM devices_table WHERE id < 0"
        )
        .unwrap();
    let held = "sluicegate_guard_held{rule=\"budget\",relation=\"devices\",kind=\"absent\"} 1";
    assert!(relay.admin_comes_to_say("/metrics", held), "{}", relay.admin_get("/metrics"));
}

/// All that an operator can look at, with the right admin token and with a wrong one.
fn operators(site: &Site, relay: &Relay, outside: &mut Outside) {
    for path in
        ["/", "/livez", "/readyz", "/metrics", "/status.json", "/sessions", "/authz/status", "/authz/diff"]
    {
        for token in [ADMIN, WRONG_ADMIN, site.token.as_str(), ""] {
            let authorization = format!("Authorization: Bearer {token}\r\n");
            let answer = exchange(connect(relay.admin()), &format!("GET {path}"), &authorization);
            outside.put(path, format!("{answer:?}"));
        }
        // In a query, where browsers and proxies write it down.
        let answer = exchange(connect(relay.admin()), &format!("GET {path}?token={ADMIN}"), "");
        outside.put(path, format!("{answer:?}"));
    }
    let rows = wait_for(|| {
        let diff = site.cli(&["authz", "diff"]);
        Some(diff["rows"].as_array()?.len()).filter(|rows| *rows > 0)
    });
    assert!(rows.is_some(), "there is a difference to be shown");
    for arguments in [
        &["status"][..],
        &["sessions"],
        &["authz", "status"],
        &["authz", "diff"],
        &["authz", "rollback"],
        &["sessions", "kill", "1"],
        &["check"],
        &["doctor"],
    ] {
        for form in [&[][..], &["--json"]] {
            let output = site.command(&[arguments, form].concat()).output().unwrap();
            outside.put_output(&arguments.join(" "), &output);
        }
    }
}
