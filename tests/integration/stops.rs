//! Stops of a node whose disk or store hangs: each wait has an end, and what was given up is in the log.

use std::net::TcpListener;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::kill;
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo};

use crate::support::{Device, Faults, Relay, Signal, Site, V4, tools_or_skip, wait_for};

/// Time in which a node stops that has nothing to drain, also on a busy machine.
const STOPS_WITHIN: Duration = Duration::from_secs(15);

/// Sends SIGTERM once, and waits for the end.
fn stops(relay: &mut Relay) {
    relay.signal(Signal::SIGTERM);
    let asked_at = Instant::now();
    assert!(relay.wait().is_some_and(|status| status.success()));
    assert!(asked_at.elapsed() < STOPS_WITHIN, "{:?}", asked_at.elapsed());
}

/// Causes audit events of more bytes than a pipe takes.
fn fill_audit(site: &Site, relay: &Relay) {
    let device = Device::echo(V4);
    for _ in 0..400 {
        drop(site.ask(relay, device.port()).opened());
    }
}

#[test]
fn a_fifo_without_a_reader_as_audit_log_stops_nobody() {
    let mut site = Site::new("timeouts.drain = '0s'");
    let fifo = site.folder().join("fifo");
    mkfifo(&fifo, Mode::S_IRWXU).unwrap();
    site.configure(&format!("audit.path = '{}'", fifo.display()));
    let mut relay = site.start();
    fill_audit(&site, &relay);
    assert!(relay.logs("the audit log's file takes no audit events"));
    stops(&mut relay);
    assert!(relay.log().contains("the audit log is closed with events unwritten"), "{}", relay.log());
}

#[test]
fn an_audit_log_on_a_disk_that_hangs_keeps_no_node_from_stopping() {
    if !tools_or_skip("an_audit_log_on_a_disk_that_hangs_keeps_no_node_from_stopping", &["cc"]) {
        return;
    }
    let site = Site::new("timeouts.drain = '0s'");
    let faults = Faults::new(&site);
    let mut relay = faults.start(&site);
    faults.block_audit();
    fill_audit(&site, &relay);
    stops(&mut relay);
    let log = relay.log();
    assert!(log.contains("the thread `audit` has not stopped within 3s, and is left behind"), "{log}");
    assert!(log.contains("the audit log blocks; it is given up with events unwritten"), "{log}");
}

/// A relay that does not become ready. Killed when dropped.
struct Starting(Child);

impl Drop for Starting {
    fn drop(&mut self) {
        let _gone_already = self.0.kill();
        let _gone_already = self.0.wait();
    }
}

#[test]
fn a_signal_ends_a_start_that_waits_for_the_store() {
    let store = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut site = Site::new("");
    let url = format!("postgres://relay@127.0.0.1:{}/rights", store.local_addr().unwrap().port());
    site.configure(&format!("store.url = '{url}'\nstore.connect_timeout = '1h'"));
    let mut command = site.command(&["run"]);
    let mut starting = Starting(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    // It waits for a reply now, which never comes.
    let _connection = store.accept().unwrap();
    kill(Pid::from_raw(starting.0.id() as i32), Signal::SIGTERM).unwrap();
    let asked_at = Instant::now();
    let status = wait_for(|| starting.0.try_wait().unwrap());
    assert!(status.is_some_and(|status| status.success()), "{status:?}");
    assert!(asked_at.elapsed() < Duration::from_secs(5), "{:?}", asked_at.elapsed());
}
