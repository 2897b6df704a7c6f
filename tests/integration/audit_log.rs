//! The audit log's file: rotated, on a full disk, and under a flood of refusals.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use crate::support::{
    Audit, DEVICE, Device, OTHER_DEVICE, Relay, Request, Signal, Site, V4, as_seen_by, root_or_skip,
    wait_for, with_mounts,
};
use serde_json::Value;
use sluicegate::telemetry::Cause;

/// One refusal, for want of a device.
fn refused(site: &Site, relay: &Relay) {
    let answer = Request::to(OTHER_DEVICE, 22).bearer(&site.token).send(relay.address());
    assert_eq!(answer.status, 403);
}

fn sessions(events: &[Value]) -> Vec<u64> {
    events.iter().filter_map(|event| event["session"].as_u64()).collect()
}

#[test]
fn a_session_that_ends_tells_who_what_and_how_much() {
    let site = Site::new("vpn.node = 'relay-1'");
    let relay = site.start();
    let device = Device::echo(V4);
    let mut tunnel = site.ask(&relay, device.port()).opened();
    let client = tunnel.local_addr().unwrap();
    tunnel.write_all(b"hello").unwrap();
    std::io::Read::read_exact(&mut tunnel, &mut [0; 5]).unwrap();
    drop(tunnel);
    let event = site.audit().wait_for(|event| event["event"] == "session-end");
    let expected = serde_json::json!({
        "event": "session-end", "node": "relay-1", "client": client.to_string(), "principal": 1,
        "credential": site.credential, "grant": site.grant, "device": 1, "uuid": DEVICE,
        "port": device.port(), "generation": 1, "bytes_up": 5, "bytes_down": 5,
    });
    for (name, value) in expected.as_object().unwrap() {
        assert_eq!(&event[name], value, "{name} in {event}");
    }
    assert!(event["duration_ms"].is_u64() && event["handshake_us"].as_u64().unwrap() > 0, "{event}");
}

#[test]
fn a_refusal_tells_who_asked_for_what_and_the_cause_that_the_client_is_not_told() {
    let site = Site::new("");
    let relay = site.start();
    refused(&site, &relay);
    let stranger = Request::to(DEVICE, 22).bearer("nobody's").send(relay.address());
    assert_eq!(stranger.status, 407);
    let mut events = site.audit().wait_for_events(2);
    // Two threads wrote them.
    events.sort_by_key(|event| event["status"].as_u64());
    let expected = serde_json::json!({
        "event": "refusal", "status": 403, "slug": "not-permitted", "cause": "device-unknown", "principal": 1,
        "credential": site.credential, "uuid": OTHER_DEVICE, "port": 22, "generation": 1,
    });
    for (name, value) in expected.as_object().unwrap() {
        assert_eq!(&events[0][name], value, "{name} in {}", events[0]);
    }
    assert!(events[0]["duration_us"].is_u64());
    assert_eq!((&events[1]["cause"], &events[1]["principal"]), (&"credential-unknown".into(), &Value::Null));
    assert_eq!(events[1]["credential"].as_str().unwrap().len(), 16, "eight bytes of the hash, and no more");
}

#[test]
fn a_rotated_log_is_let_go_on_sighup() {
    let site = Site::new("");
    let relay = site.start();
    let (path, rotated) = (site.folder().join("audit.jsonl"), site.folder().join("audit.jsonl.1"));
    refused(&site, &relay);
    assert_eq!(site.audit().wait_for_events(1).len(), 1);
    fs::rename(&path, &rotated).unwrap();
    refused(&site, &relay);
    assert_eq!(Audit::new(rotated.clone()).wait_for_events(2).len(), 2, "until it is told");

    relay.signal(Signal::SIGHUP);
    assert!(relay.logs("is opened anew"));
    refused(&site, &relay);

    assert_eq!(sessions(&site.audit().wait_for_events(1)).len(), 1);
    assert_eq!(Audit::new(rotated).events().len(), 2);
    relay.signal(Signal::SIGHUP);
    assert!(relay.logs("is still the same file"));
}

#[test]
fn a_log_that_cannot_be_opened_anew_is_written_on_and_that_is_told() {
    let site = Site::new("");
    let relay = site.start();
    let (path, rotated) = (site.folder().join("audit.jsonl"), site.folder().join("audit.jsonl.1"));
    refused(&site, &relay);
    fs::rename(&path, &rotated).unwrap();
    fs::create_dir(&path).unwrap();
    relay.signal(Signal::SIGHUP);
    assert!(relay.logs("cannot be opened anew: Is a directory"));
    refused(&site, &relay);
    assert_eq!(Audit::new(rotated).wait_for_events(2).len(), 2);
}

#[test]
fn a_full_disk_blocks_nobody_and_costs_lines_that_are_counted_and_none_that_is_torn() {
    if !root_or_skip("a_full_disk_blocks_nobody_and_costs_lines_that_are_counted_and_none_that_is_torn") {
        return;
    }
    let mut site = Site::new("audit.refusals_per_source = 1000000\nengine.threads = 1");
    let disk = site.folder().join("disk");
    fs::create_dir(&disk).unwrap();
    site.configure(&format!("audit.path = '{}/audit.jsonl'", disk.display()));
    let mount = format!("mount -t tmpfs -o size=256k tmpfs {}", disk.display());
    let relay = site.start_through(&with_mounts(&mount));
    let disk = as_seen_by(relay.pid(), &disk);
    let audit = Audit::new(disk.join("audit.jsonl"));
    refused(&site, &relay);
    assert_eq!(audit.wait_for_events(1).len(), 1);

    let filler = disk.join("filler");
    fill(&filler);
    let mut message = 1;
    while relay.metric("sluicegate_audit_lost_total").unwrap() < 10.0 {
        (0..100).for_each(|_| refused(&site, &relay));
        message += 100;
        assert!(message < 10_000, "nothing is lost");
    }
    let device = Device::echo(V4);
    let mut tunnel = site.ask(&relay, device.port()).opened();
    tunnel.write_all(b"ping").unwrap();
    std::io::Read::read_exact(&mut tunnel, &mut [0; 4]).unwrap();
    fs::remove_file(filler).unwrap();

    assert!(relay.logs("takes audit events again"), "by itself, with no further event");
    let lost = relay.metric("sluicegate_audit_lost_total").unwrap() as usize;
    let sessions = sessions(&audit.wait_for_events(message - lost));
    assert_eq!(sessions.len() + lost, message);
    assert!(sessions.is_sorted());
    assert_eq!(relay.log().matches("takes no audit events").count(), 1);
    assert_eq!(relay.metric("sluicegate_audit_dropped_total"), Some(0.0), "and no engine had to wait");
}

/// Takes what space there is.
fn fill(path: &Path) {
    let mut file = File::create(path).unwrap();
    while file.write_all(&[0; 512]).is_ok() {}
}

#[test]
fn what_one_source_is_refused_too_often_is_summed_in_the_log_and_counted_in_full() {
    let site = Site::new("audit.refusals_per_source = 5");
    let relay = site.start();
    (0..30).for_each(|_| refused(&site, &relay));
    let malformed = Request::to("nobody", 0).send(relay.address());
    assert_eq!(malformed.status, 400);

    let sum = wait_for(|| site.audit().events().into_iter().find(|event| event["event"] == "more-refusals"))
        .expect("the sum comes by itself");

    assert_eq!((&sum["source"], &sum["refusals"]), (&"127.0.0.1/32".into(), &26.into()));
    assert_eq!(sum["causes"], serde_json::json!({ "device-unknown": 25, "malformed": 1 }));
    assert_eq!(sum["seconds"], 10);
    assert_eq!(site.audit().events().len(), 6);
    assert_eq!(relay.metric("sluicegate_sessions_refused_total"), Some(31.0));
    refused(&site, &relay);
    assert_eq!(site.audit().wait_for_events(7)[6]["event"], "refusal", "its time begins anew");
}

#[test]
fn the_page_about_the_audit_log_lists_each_cause_and_no_other() {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/audit.md")).unwrap();
    let sections = page.split("\n#").filter(|section| section.starts_with("### Causes of a `"));
    let rows = sections.flat_map(str::lines).filter_map(|line| line.strip_prefix("| `"));
    let listed: BTreeSet<_> = rows.filter_map(|row| Some(row.split_once('`')?.0)).collect();
    let causes: BTreeSet<_> = Cause::ALL.iter().map(|cause| cause.slug()).collect();
    assert_eq!(listed, causes);
}
