//! The system's journal as a place for audit events and for the log: a socket that stands in for journald's, and
//! the real one.

use std::collections::BTreeMap;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::support::{
    OTHER_DEVICE, Relay, Request, Running, Signal, Site, as_seen_by, root_or_skip, tools_or_skip, wait_for,
    with_mounts,
};
use serde_json::Value;

const JOURNALD: &str = "/lib/systemd/systemd-journald";

/// A journald in the hands of the test, at the place where a relay looks for it.
struct StandIn {
    folder: tempfile::TempDir,
    socket: UnixDatagram,
}

type Fields = BTreeMap<String, String>;

impl StandIn {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = UnixDatagram::bind(folder.path().join("socket")).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        Self { folder, socket }
    }

    /// A relay that takes it for the system's.
    fn start(&self, site: &Site) -> Relay {
        let folder = self.folder.path().display();
        let journal = format!("{OWN_RUN}; mount --bind {folder} /run/systemd/journal");
        site.start_through(&with_mounts(&journal))
    }

    /// Waits for an entry with this value in this field.
    fn hears(&self, field: &str, value: &str) -> Option<Fields> {
        wait_for(|| self.next().filter(|fields| fields.get(field).is_some_and(|found| found == value)))
    }

    fn next(&self) -> Option<Fields> {
        let mut bytes = [0; 8192];
        let len = self.socket.recv(&mut bytes).ok()?;
        Some(fields(&bytes[..len]))
    }
}

/// https://systemd.io/JOURNAL_NATIVE_PROTOCOL
fn fields(mut bytes: &[u8]) -> Fields {
    let mut fields = Fields::new();
    while !bytes.is_empty() {
        let name_len = bytes.iter().position(|byte| b"=\n".contains(byte)).unwrap();
        let (name, is_short) = (&bytes[..name_len], bytes[name_len] == b'=');
        bytes = &bytes[name_len + 1..];
        let len = if is_short {
            bytes.iter().position(|&byte| byte == b'\n').unwrap()
        } else {
            let (len, rest) = bytes.split_at(8);
            bytes = rest;
            u64::from_le_bytes(len.try_into().unwrap()) as usize
        };
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        fields.insert(text(name), text(&bytes[..len]));
        bytes = bytes[len..].strip_prefix(b"\n").unwrap();
    }
    fields
}

/// Nothing of this machine's.
const OWN_RUN: &str = "mount -t tmpfs tmpfs /run; mkdir -p /run/systemd/journal /run/log/journal";

fn refused(site: &Site, relay: &Relay) {
    let answer = Request::to(OTHER_DEVICE, 22).bearer(&site.token).send(relay.address());
    assert_eq!(answer.status, 403);
}

#[test]
fn each_event_goes_to_the_journal_with_its_fields_and_to_the_file_as_well() {
    if !root_or_skip("each_event_goes_to_the_journal_with_its_fields_and_to_the_file_as_well") {
        return;
    }
    let (site, journal) = (Site::new("audit.journald = true"), StandIn::new());
    let relay = journal.start(&site);
    refused(&site, &relay);
    let entry = journal.hears("SLUICEGATE_EVENT", "refusal").expect("the journal is told");
    let event = &site.audit().wait_for_events(1)[0];
    assert_eq!(entry["SLUICEGATE_CAUSE"], "device-unknown");
    assert_eq!(entry["SLUICEGATE_SESSION"], event["session"].to_string());
    assert_eq!(entry["SLUICEGATE_CLIENT"], event["client"].as_str().unwrap());
    assert_eq!(entry["SLUICEGATE_CREDENTIAL"], site.credential);
    assert!(entry["MESSAGE"].ends_with("refused (device-unknown)"), "{entry:?}");
    assert!(!entry.contains_key("SLUICEGATE_DETAIL"), "what is not known is no field: {entry:?}");
}

#[test]
fn a_journal_that_stands_still_holds_up_no_client_no_file_and_no_end() {
    if !root_or_skip("a_journal_that_stands_still_holds_up_no_client_no_file_and_no_end") {
        return;
    }
    const REFUSALS: usize = 3_000;
    let site = Site::new("audit = { journald = true, refusals_per_source = 1000000 }");
    // Nobody reads it.
    let journal = StandIn::new();
    let mut relay = journal.start(&site);
    (0..REFUSALS).for_each(|_| refused(&site, &relay));
    assert_eq!(site.audit().wait_for_events(REFUSALS).len(), REFUSALS);
    assert!(relay.metric_becomes("sluicegate_audit_lost_total", |lost| lost > 0.0));
    assert_eq!(relay.metric("sluicegate_audit_dropped_total"), Some(0.0));
    assert_eq!(relay.log().matches("the journal takes no audit events").count(), 1);
    let asked = Instant::now();
    relay.signal(Signal::SIGTERM);
    assert_eq!(relay.wait().expect("the relay ends").code(), Some(0));
    assert!(asked.elapsed() < Duration::from_secs(20), "took {:?}", asked.elapsed());
}

#[test]
fn the_log_goes_to_the_journal_in_the_place_of_stderr() {
    if !root_or_skip("the_log_goes_to_the_journal_in_the_place_of_stderr") {
        return;
    }
    let (site, journal) = (Site::new("log = { journald = true, level = 'info' }"), StandIn::new());
    let relay = journal.start(&site);
    let entry = journal.hears("MESSAGE", "listening").expect("the journal is told");
    assert_eq!(entry["SLUICEGATE_CLIENTS"], relay.address().to_string());
    assert_eq!((entry["PRIORITY"].as_str(), entry["SYSLOG_IDENTIFIER"].as_str()), ("6", "sluicegate"));
    assert_eq!(relay.log(), "");
}

#[test]
fn events_and_the_log_go_to_the_journal_from_the_reload_on() {
    if !root_or_skip("events_and_the_log_go_to_the_journal_from_the_reload_on") {
        return;
    }
    let (mut site, journal) = (Site::new(""), StandIn::new());
    let relay = journal.start(&site);
    refused(&site, &relay);
    assert_eq!(site.audit().wait_for_events(1).len(), 1);
    site.configure("audit.journald = true\nlog.journald = true");
    relay.signal(Signal::SIGHUP);
    assert!(journal.hears("MESSAGE", "reloaded").is_some(), "{}", relay.log());
    refused(&site, &relay);
    assert!(journal.hears("SLUICEGATE_EVENT", "refusal").is_some());
    assert_eq!(site.audit().wait_for_events(2).len(), 2, "and to the file as before");
}

#[test]
fn a_relay_that_is_to_tell_a_journal_does_not_start_without_one() {
    if !root_or_skip("a_relay_that_is_to_tell_a_journal_does_not_start_without_one") {
        return;
    }
    for (setting, message) in [
        ("audit.journald = true", "audit.journald is on, but nobody listens at /run/systemd/journal/socket"),
        ("log.journald = true", "log.journald is on, but journald cannot be reached"),
    ] {
        let site = Site::new(setting);
        let run = site.command(&["run"]);
        let mut wrapper = with_mounts(OWN_RUN);
        // It would serve for ever.
        wrapper.extend(["timeout", "60"].map(str::to_owned));
        let mut command = Command::new(&wrapper[0]);
        command.args(&wrapper[1..]).arg(run.get_program()).args(run.get_args());
        let output = command.env("STATE_DIRECTORY", site.folder().join("state")).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(error.contains(message) && error.contains("turn it off"), "{error}");
    }
}

#[test]
fn the_real_journald_gives_back_what_it_was_told() {
    let name = "the_real_journald_gives_back_what_it_was_told";
    if !root_or_skip(name) || !tools_or_skip(name, &["journalctl"]) || !journald_or_skip(name) {
        return;
    }
    let site = Site::new("audit = { journald = true, refusals_per_source = 2 }");
    // In a network namespace of its own, so that it leaves the kernel's audit stream alone.
    let mut wrapper = with_mounts(OWN_RUN);
    wrapper.extend(["unshare", "--net", JOURNALD].map(str::to_owned));
    let mut command = Command::new(&wrapper[0]);
    command.args(&wrapper[1..]).env("SYSTEMD_LOG_TARGET", "null");
    let journald = Running::start(&mut command);
    let seen = |path: &str| as_seen_by(journald.0.id(), Path::new(path));
    wait_for(|| seen("/run/systemd/journal/socket").exists().then_some(())).expect("journald listens");
    let inside = ["nsenter", "--mount", "--target", &journald.0.id().to_string()].map(str::to_owned);
    let relay = site.start_through(&inside);

    (0..3).for_each(|_| refused(&site, &relay));
    drop(site.command(&["sessions", "kill", "1"]).output().unwrap());

    let logs = seen("/run/log/journal");
    let refusals = wait_for(|| Some(entries(&logs, "refusal")).filter(|found| found.len() == 2));
    let refusals = refusals.expect("two are written one by one");
    assert_eq!(refusals[0]["SLUICEGATE_CAUSE"], "device-unknown");
    assert_eq!(refusals[0]["SLUICEGATE_PORT"], "22");
    assert_eq!(refusals[0]["_PID"], relay.pid().to_string());
    let command = wait_for(|| entries(&logs, "operator-command").pop()).expect("the command is told");
    assert_eq!(command["SLUICEGATE_BY"], "local-socket");
    assert_eq!(command["SLUICEGATE_OUTCOME"], "refused");
}

fn journald_or_skip(name: &str) -> bool {
    Path::new(JOURNALD).exists() || crate::support::skip(name, "needs systemd-journald")
}

/// The entries of one kind of event in journald.
fn entries(logs: &PathBuf, event: &str) -> Vec<Value> {
    let mut journalctl = Command::new("journalctl");
    journalctl.arg("--directory").arg(logs).args(["--output=json", "--quiet"]);
    let output = journalctl.arg(format!("SLUICEGATE_EVENT={event}")).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}
