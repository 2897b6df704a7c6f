//! Certificates that end soon, have ended or are not valid yet are told in every place that an operator looks at.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{Authority, BINARY, Pair, Signal, Site, node_section};

const NAME: &str = "relay.example";
const KEY: &str = "listen.0.tls.certificates.0";

/// A folder with certificates, and the authority that signs them. It is removed with the test's machine.
struct Files {
    folder: tempfile::TempDir,
    authority: Authority,
}

impl Files {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::new(folder.path(), "root");
        Self { folder, authority }
    }

    fn write(&self, pair: &Pair) -> (PathBuf, PathBuf) {
        pair.write(self.folder.path(), "relay")
    }

    /// A listener with what [`write`](Self::write) has written, and the listeners `more`.
    fn listen(&self, more: &str) -> String {
        let at = self.folder.path().display();
        format!(
            "listen = [{{ address = '127.0.0.1:0', tls = {{ certificates = [
             {{ chain = '{at}/relay.crt', key = '{at}/relay.key' }}] }} }}{more}]"
        )
    }
}

/// Exit code, stdout and stderr of a command on the site's configuration.
fn outcome(site: &Site, command: &str) -> (Option<i32>, String, String) {
    let mut sluicegate = Command::new(BINARY);
    sluicegate.arg(command).arg("--config").arg(site.config_path());
    let output = sluicegate.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn an_expired_certificate_is_told_everywhere_and_a_reload_ends_that() {
    let files = Files::new();
    files.write(&files.authority.issue_expired(NAME));
    let site = Site::new(&files.listen(""));
    let expired = format!("{KEY}: the certificate of {NAME}");

    let (code, _, warned) = outcome(&site, "check");
    assert!(warned.contains(&format!("warning: {expired} in ")), "{warned}");
    assert!(warned.contains("has expired on 2020-02-01 00:00:00 UTC; renew it"), "{warned}");
    assert_eq!(code, Some(0), "a relay could start with it");
    let (code, found, _) = outcome(&site, "doctor");
    assert!(
        found.contains(&format!("LIMIT    certificate of {NAME} ({KEY}): has expired on 2020-02-01")),
        "{found}"
    );
    assert_eq!(code, Some(1));

    let relay = site.start();
    assert!(relay.logs(&expired), "{}", relay.log());
    let left = format!("sluicegate_certificate_remaining_seconds{{key=\"{KEY}\",name=\"{NAME}\"}}");
    assert!(relay.metric_becomes(&left, |seconds| seconds < 0.0), "{}", relay.admin_get("/metrics"));
    let ready = relay.admin_get("/readyz");
    assert!(ready.starts_with("HTTP/1.1 503 "), "nobody gets in: {ready}");
    assert!(ready.contains("no listener has a valid certificate\n"), "{ready}");
    assert!(ready.contains(&format!("{expired} has expired on 2020-02-01")), "{ready}");

    files.write(&files.authority.issue(NAME, &[NAME]));
    relay.signal(Signal::SIGHUP);
    assert!(relay.logs("reloaded"));
    assert!(relay.metric_becomes(&left, |seconds| seconds > 0.0));
    let ready = relay.admin_get("/readyz");
    assert!(ready.starts_with("HTTP/1.1 200 ") && ready.ends_with("\r\n\r\nready\n"), "{ready}");
}

#[test]
fn a_node_with_another_way_in_stays_ready_and_says_what_is_wrong() {
    let files = Files::new();
    files.write(&files.authority.issue_from(NAME, 2100));
    let site = Site::new(&files.listen(", { address = '127.0.0.1:0' }"));
    let relay = site.start();
    let ready = relay.admin_get("/readyz");
    assert!(ready.starts_with("HTTP/1.1 200 "), "{ready}");
    assert!(
        ready.contains(&format!("ready\n{KEY}: the certificate of {NAME} is not valid before 2100-01-01")),
        "{ready}"
    );
    let until = format!("sluicegate_certificate_not_yet_valid_seconds{{key=\"{KEY}\",name=\"{NAME}\"}}");
    assert!(relay.metric(&until).unwrap() > 0.0);
}

#[test]
fn a_certificate_between_nodes_counts_too() {
    let files = Files::new();
    let section = node_section("node-a", &files.authority);
    files.authority.issue_expired("node-a").write(files.folder.path(), "node-a");
    let site = Site::new(&section);
    let (_, _, warned) = outcome(&site, "check");
    assert!(warned.contains("warning: forward.tls: the certificate of node-a in "), "{warned}");
    let relay = site.start();
    // A node among others waits for its directory first.
    let ready = || Some(relay.admin_get("/readyz")).filter(|ready| ready.starts_with("HTTP/1.1 200 "));
    let ready = crate::support::wait_for(ready).expect("clients get in");
    assert!(ready.contains("forward.tls: the certificate of node-a has expired"), "{ready}");
}

#[test]
fn a_chain_that_is_not_in_order_is_told() {
    let files = Files::new();
    let stranger = Authority::new(files.folder.path(), "stranger");
    let (chain, _) = files.write(&files.authority.issue(NAME, &[NAME]));
    append(&chain, &stranger.file);
    append(&chain, &files.authority.file);
    let (code, _, warned) = outcome(&Site::new(&files.listen("")), "check");
    assert_eq!(code, Some(0), "{warned}");
    assert!(warned.contains("certificate 1 of the file is not signed by certificate 2; put"), "{warned}");
}

fn append(file: &Path, more: &Path) {
    let text = std::fs::read_to_string(file).unwrap() + &std::fs::read_to_string(more).unwrap();
    std::fs::write(file, text).unwrap();
}
