//! What the relay's process gives up: what its threads can no longer do, what still works, and who says so.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::kill;
use nix::unistd::Pid;
use serde_json::Value;

use crate::support::{
    Authority, Device, Relay, Signal, Site, TlsClient, V4, ask_by_tls, root_or_skip, skip, wait_for,
};

const NAME: &str = "relay.example";

/// A relay that tries what its threads must not be able to do, and tells.
struct Attempts {
    relay: Relay,
    _folder: tempfile::TempDir,
}

impl Attempts {
    fn of(confine: &str) -> Self {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let foreign = folder.path().join("foreign");
        fs::write(&foreign, "somebody else's").unwrap();
        let site = site_with_tls(&format!("security.confine = '{confine}'"));
        let mut command = site.site.command(&["run"]);
        command.env("SLUICEGATE_TEST_ATTEMPTS", &foreign);
        Self { relay: Relay::start(command), _folder: folder }
    }

    /// The errno of each attempt of a kind of threads; 0 where it was not refused.
    fn outcomes(&self, thread: &str) -> BTreeMap<String, i32> {
        let begin = format!("attempt of {thread}: ");
        assert!(self.relay.logs(&format!("{begin}ring: ")), "{}", self.relay.log());
        let log = self.relay.log();
        let outcomes = log.lines().filter_map(|line| {
            let (name, outcome) = line.split_once(&begin)?.1.split_once(": ")?;
            Some((name.to_owned(), outcome.parse().unwrap_or(0)))
        });
        outcomes.collect()
    }
}

struct TlsSite {
    site: Site,
    authority: Authority,
    certificates: PathBuf,
}

/// A site whose certificate is behind links, as those of certbot are.
fn site_with_tls(fragment: &str) -> TlsSite {
    let folder = tempfile::tempdir().unwrap().keep();
    let [archive, live] = ["archive", "live"].map(|name| folder.join(name));
    [&archive, &live].into_iter().for_each(|folder| fs::create_dir(folder).unwrap());
    let authority = Authority::new(&folder, "root");
    authority.issue(NAME, &[NAME]).write(&archive, "one");
    for kind in ["crt", "key"] {
        std::os::unix::fs::symlink(archive.join(format!("one.{kind}")), live.join(format!("now.{kind}")))
            .unwrap();
    }
    let at = live.display();
    let listen = format!(
        "listen = [{{ address = '127.0.0.1:0', tls = {{ certificates = [{{ chain = '{at}/now.crt', key = '{at}/now.key' }}] }} }}]"
    );
    TlsSite { site: Site::new(&format!("{fragment}\n{listen}")), authority, certificates: archive }
}

const EPERM: i32 = 1;
const EACCES: i32 = 13;

/// What no thread of the relay needs.
const NOBODY: [&str; 17] = [
    "exec",
    "fork",
    "ptrace",
    "memory of others",
    "signal",
    "mount",
    "namespace",
    "bpf",
    "keys",
    "tracing",
    "user",
    "core dump",
    "packet socket",
    "virtual machine's socket",
    "kernel's crypto",
    "netlink audit",
    "terminal's input",
];

#[test]
fn no_thread_can_do_what_the_relay_does_not_need() {
    let attempts = Attempts::of("on");
    for thread in ["main", "engine", "handshake", "service"] {
        let outcomes = attempts.outcomes(thread);
        for name in NOBODY {
            assert_eq!(outcomes[name], EPERM, "{thread}: {name}");
        }
        for name in ["foreign file", "foreign file's text"] {
            let refused = if ["engine", "handshake"].contains(&thread) { EPERM } else { EACCES };
            assert_eq!(outcomes[name], refused, "{thread}: {name}");
        }
    }
    let engine = attempts.outcomes("engine");
    for name in ["thread", "local socket", "any file", "code"] {
        assert_eq!(engine[name], EPERM, "engine: {name}");
    }
    assert_ne!(engine["ring"], EPERM);
    let handshake = attempts.outcomes("handshake");
    for name in ["thread", "local socket", "network socket", "any file", "code", "ring"] {
        assert_eq!(handshake[name], EPERM, "handshake: {name}");
    }
    let service = attempts.outcomes("service");
    assert_eq!(service["ring"], EPERM);
    assert_eq!(service["network socket"], 0);
}

#[test]
fn attempts_are_not_refused_where_the_confinement_is_off_or_only_logs() {
    if !root_or_skip("attempts_are_not_refused_where_the_confinement_is_off_or_only_logs") {
        return;
    }
    for confine in ["off", "log"] {
        let outcomes = Attempts::of(confine).outcomes("engine");
        // Others fail for reasons of this machine: it may have no such sockets, or forbid tracing to everybody.
        for name in [
            "exec",
            "fork",
            "ptrace",
            "signal",
            "mount",
            "namespace",
            "user",
            "foreign file",
            "any file",
            "code",
        ] {
            assert_ne!(outcomes[name], EPERM, "{confine}: {name}");
        }
        assert_eq!((outcomes["signal"], outcomes["foreign file"]), (0, 0), "{confine}");
    }
}

/// Fields of /proc/PID/status.
fn process_status(pid: u32, name: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap();
    line.trim().to_owned()
}

#[test]
fn status_and_doctor_say_what_is_in_force() {
    let site = Site::new("");
    let relay = site.start();
    let status = site.cli(&["status"]);
    let confinement = &status["confinement"];
    assert_eq!(confinement["mode"], "on");
    for part in ["system_calls", "files", "ring"] {
        assert_eq!(confinement[part]["state"], "in-force", "{part}: {confinement}");
    }
    assert_eq!(confinement["no_new_privileges"], true);
    assert_eq!(process_status(relay.pid(), "NoNewPrivs"), "1");
    let effective = u64::from_str_radix(&process_status(relay.pid(), "CapEff"), 16).unwrap();
    let kept = confinement["capabilities"].as_array().unwrap().len();
    assert_eq!(effective.count_ones() as usize, kept, "{confinement}");
    assert!(kept <= 5, "{confinement}");
    let text = site.command(&["status"]).output().unwrap();
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(text.contains("confined  system calls, files, ring, no new privileges"), "{text}");
    let public: Value =
        serde_json::from_str(relay.admin_get("/status.json").split("\r\n\r\n").nth(1).unwrap()).unwrap();
    assert_eq!(public["confinement"], Value::Null);
    let pid = relay.pid().to_string();
    let findings = site.command(&["doctor", "--json", "--pid", &pid]).output().unwrap();
    let findings: Value = serde_json::from_slice(&findings.stdout).unwrap();
    let finding =
        |item: &str| findings.as_array().unwrap().iter().find(|finding| finding["item"] == item).cloned();
    let of_process = finding(&format!("confinement of process {pid}")).unwrap();
    assert_eq!(of_process["verdict"], "fine", "{of_process}");
    assert_eq!(finding("filters of system calls").unwrap()["verdict"], "fine");
    assert!(finding("Landlock").is_some());
    assert_eq!(finding("confinement"), None);
}

#[test]
fn a_relay_that_is_not_confined_says_so() {
    let site = Site::new("security.confine = 'off'");
    let relay = site.start();
    assert!(relay.log().contains("security.confine is off"), "{}", relay.log());
    assert_eq!(site.cli(&["status"])["confinement"]["mode"], "off");
    assert_eq!(process_status(relay.pid(), "NoNewPrivs"), "0");
    let findings = site.command(&["doctor", "--json"]).output().unwrap();
    let findings: Value = serde_json::from_slice(&findings.stdout).unwrap();
    let advice =
        findings.as_array().unwrap().iter().find(|finding| finding["item"] == "confinement").unwrap();
    assert_eq!(advice["verdict"], "advice");
}

/// A folder that a relay was not configured for.
fn elsewhere() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

#[test]
fn a_reload_that_names_files_elsewhere_is_taken_over_by_a_process_that_may_open_them() {
    let mut site = Site::new("");
    let (relay, device) = (site.start(), Device::echo(V4));
    let other = elsewhere();
    let audit = other.path().join("audit.jsonl");
    site.configure(&format!("audit.path = '{}'", audit.display()));
    let reloaded = site.command(&["reload"]).output().unwrap();
    assert!(reloaded.status.success(), "{}\n{}", String::from_utf8_lossy(&reloaded.stderr), relay.log());
    assert!(relay.log().contains(&format!("audit.path ({})", audit.display())), "{}", relay.log());
    let _successors: Vec<_> = relays_of(&site).into_iter().map(|pid| Successor(pid as i32)).collect();
    drop(site.request(&device).send(relay.address()).opened());
    let is_written =
        || fs::read_to_string(&audit).is_ok_and(|text| text.contains("session-end")).then_some(());
    assert!(wait_for(is_written).is_some());
}

/// Processes with the configuration of this site among their arguments.
fn relays_of(site: &Site) -> Vec<u32> {
    let path = site.config_path().display().to_string();
    let processes = fs::read_dir("/proc").unwrap();
    let pids = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let has_path =
        |pid: &u32| fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.contains(&path));
    pids.filter(has_path).collect()
}

struct Successor(i32);

impl Drop for Successor {
    fn drop(&mut self) {
        let _gone_already = kill(Pid::from_raw(self.0), Signal::SIGKILL);
    }
}

/// Lines of the kernel's log about what a process of our program was refused. `None` where it cannot be read.
fn violations() -> Option<Vec<String>> {
    let log = Command::new("dmesg").output().ok().filter(|output| output.status.success())?;
    let log = String::from_utf8_lossy(&log.stdout).into_owned();
    let is_ours = |line: &&str| ["type=1326", "type=1423"].iter().any(|kind| line.contains(kind));
    Some(log.lines().filter(is_ours).map(str::to_owned).collect())
}

fn violations_of(pids: &[u32]) -> Option<Vec<String>> {
    let is_of = |line: &String| pids.iter().any(|pid| line.contains(&format!(" pid={pid} ")));
    Some(violations()?.into_iter().filter(is_of).collect())
}

#[test]
fn all_that_a_relay_does_it_does_without_a_violation() {
    const TEST: &str = "all_that_a_relay_does_it_does_without_a_violation";
    if violations().is_none() {
        skip(TEST, "the kernel's log cannot be read");
        return;
    }
    let TlsSite { site, authority, certificates } =
        site_with_tls("probe.interval = '1s'\nadmin.socket_group = 'root'");
    let (relay, device) = (site.start(), Device::echo(V4));
    let mut client = TlsClient::trusting(&authority);
    let mut tunnel = client.connect(relay.address(), NAME).unwrap();
    let request = site.request(&device).bytes();
    assert!(ask_by_tls(&mut tunnel, &request).unwrap().contains(" 200 "));
    // A certificate is renewed behind its link, and the audit log is rotated.
    authority.issue("renewed", &[NAME]).write(&certificates, "one");
    let audit = site.folder().join("audit.jsonl");
    fs::rename(&audit, audit.with_extension("1")).unwrap();
    assert!(site.command(&["reload"]).status().unwrap().success());
    assert!(wait_for(|| audit.exists().then_some(())).is_some());
    let renewed = client.connect(relay.address(), NAME).unwrap();
    let shown = renewed.conn.peer_certificates().unwrap()[0].clone();
    let written = fs::read_to_string(certificates.join("one.crt")).unwrap();
    assert!(pem_is_of(&written, &shown), "the certificate of before is shown");
    for command in
        [&["status"][..], &["sessions"], &["authz", "status"], &["authz", "history"], &["authz", "diff"]]
    {
        site.cli(command);
    }
    for path in ["/metrics", "/", "/readyz", "/livez", "/status.json"] {
        assert!(relay.admin_get(path).contains(" 200 "), "{path}");
    }
    site.cli(&["token", "revoke", &site.credential]);
    assert!(site.audit().has(|event| event["event"] == "session-end"));
    let upgraded = site.cli(&["upgrade"]);
    let pid = upgraded["pid"].as_u64().unwrap() as u32;
    let _successor = Successor(pid as i32);
    assert!(site.command(&["drain"]).status().unwrap().success());
    kill(Pid::from_raw(pid as i32), Signal::SIGTERM).unwrap();
    assert!(wait_for(|| (!Path::new(&format!("/proc/{pid}")).exists()).then_some(())).is_some());
    assert_eq!(violations_of(&[relay.pid(), pid]).unwrap(), Vec::<String>::new());
}

fn pem_is_of(pem: &str, der: &[u8]) -> bool {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;
    CertificateDer::from_pem_slice(pem.as_bytes()).is_ok_and(|certificate| certificate.as_ref() == der)
}

/// Children of a process.
fn children_of(pid: u32) -> Vec<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    children.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

#[test]
fn the_launcher_outlives_signals_and_ends_with_the_relay() {
    let site = Site::new("");
    let mut relay = site.start();
    let launchers = children_of(relay.pid());
    assert_eq!(launchers.len(), 1);
    let launcher = Pid::from_raw(launchers[0] as i32);
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        kill(launcher, signal).unwrap();
    }
    let _successor = Successor(site.cli(&["upgrade"])["pid"].as_u64().unwrap() as i32);
    assert!(relay.wait().is_some_and(|status| status.success()), "{}", relay.log());
    assert!(wait_for(|| kill(launcher, None).is_err().then_some(())).is_some());
}

#[test]
fn an_upgrade_without_the_launcher_fails_and_says_why() {
    let site = Site::new("");
    let mut relay = site.start();
    kill(Pid::from_raw(children_of(relay.pid())[0] as i32), Signal::SIGKILL).unwrap();
    let refused = site.command(&["upgrade"]).output().unwrap();
    let message = String::from_utf8_lossy(&refused.stderr);
    assert!(message.contains("the process that starts programs for the relay is gone"), "{message}");
    std::thread::sleep(Duration::from_millis(50));
    assert!(relay.is_running());
}
