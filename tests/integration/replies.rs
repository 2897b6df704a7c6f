//! Every no that a client can get: the line that it sees, sent before the connection closes, and the true
//! cause in the audit log.
//!
//! `508 Loop Detected` is not here: nothing forwards between relays yet.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::time::Duration;

use crate::support::{Answer, DEVICE, Device, OTHER_DEVICE, Request, Signal, Site, V4, connect, wait_for};

/// A row of the reply table, and the cause behind it.
struct Row {
    status: u16,
    reason: &'static str,
    slug: &'static str,
    cause: &'static str,
}

/// The client sees the row's reply and then a FIN, and the site's only audit event says why.
#[track_caller]
fn assert_refused(site: &Site, mut answer: Answer, row: &Row) {
    let Row { status, reason, slug, cause } = *row;
    assert_eq!((answer.status, answer.reason.as_str()), (status, reason));
    assert_eq!(answer.slug().as_deref(), Some(slug));
    let body = answer.rest().expect("the reply is followed by a FIN, not by a reset");
    assert_body(&answer, &body);
    let events = site.audit().wait_for_events(1);
    assert_eq!(events.len(), 1, "one session, one event: {events:?}");
    let event = &events[0];
    assert_eq!(event["event"], "refusal", "{event}");
    assert_eq!(event["status"], status, "{event}");
    assert_eq!(event["slug"], slug, "{event}");
    assert_eq!(event["cause"], cause, "{event}");
    let session = answer.header("Sluicegate-Session");
    assert_eq!(session, [event["session"].to_string()], "the reply leads to its event: {event}");
}

/// The line of a refusal that differs from session to session.
fn session_line(answer: &Answer) -> String {
    format!("Sluicegate-Session: {}\r\n", answer.header("Sluicegate-Session")[0])
}

/// The body of a refusal: its reason, and a sentence for a person. The head announces it.
#[track_caller]
fn assert_body(answer: &Answer, body: &[u8]) {
    assert_eq!(answer.header("Content-Type"), ["text/plain; charset=utf-8"]);
    assert_eq!(answer.header("Content-Length"), [body.len().to_string()]);
    let text = std::str::from_utf8(body).unwrap();
    let sentence = text.strip_prefix(&format!("{}: ", answer.reason));
    assert!(sentence.is_some_and(|sentence| sentence.len() > 20 && sentence.ends_with('\n')), "{text:?}");
}

/// Some clients take a head for complete only when a byte follows it, and some read once.
#[test]
fn a_refusal_comes_in_one_segment_with_its_body() {
    let site = Site::new("");
    let relay = site.start();
    let mut client = connect(relay.address());
    client.write_all(&Request::to(DEVICE, 22).bytes()).unwrap();
    let mut segment = [0; 4096];
    let len = client.read(&mut segment).unwrap();
    let text = String::from_utf8_lossy(&segment[..len]);
    let (head, body) = text.split_once("\r\n\r\n").expect("the head is whole");
    assert!(head.starts_with("HTTP/1.1 407 "), "{head}");
    assert!(body.starts_with("Proxy Authentication Required: ") && body.ends_with('\n'), "{body:?}");
    assert_eq!(client.read(&mut segment).unwrap(), 0, "and nothing comes behind it");
}

#[test]
fn an_open_tunnel_is_told_in_the_version_of_the_request() {
    let site = Site::new("");
    let relay = site.start();
    let device = Device::echo(V4);
    let request = site.request(&device);
    let answer = request.send(relay.address());
    assert_eq!(answer.head, b"HTTP/1.1 200 Connection Established\r\n\r\n");
    let answer = request.http10().send(relay.address());
    assert_eq!(answer.head, b"HTTP/1.0 200 Connection Established\r\n\r\n");
}

#[test]
fn every_way_of_showing_a_token_is_understood() {
    use base64::Engine;
    let basic = |text: &str| {
        let encoded = base64::prelude::BASE64_STANDARD.encode(text);
        format!("Proxy-Authorization: Basic {encoded}")
    };
    let site = Site::new("");
    let relay = site.start();
    let device = Device::echo(V4);
    let token = &site.token;
    for line in [
        format!("Proxy-Authorization: Bearer {token}"),
        format!("proxy-authorization: bearer {token}"),
        basic(&format!("anybody:{token}")),
        basic(&format!(":{token}")),
        basic(token),
        basic(&format!("{token}:")),
    ] {
        let answer = Request::to(DEVICE, device.port()).header(&line).send(relay.address());
        assert_eq!(answer.status, 200, "{line}");
    }
}

#[test]
fn a_head_that_is_no_head_is_a_bad_request_and_hurts_nobody_else() {
    let site = Site::new("");
    let relay = site.start();
    let device = Device::echo(V4);
    let mut neighbour = site.ask(&relay, device.port()).opened();
    let row = Row { status: 400, reason: "Bad Request", slug: "malformed", cause: "malformed" };
    let heads: [&[u8]; 6] = [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"CONNECT nobody:22 HTTP/1.1\r\n\r\n",
        b"CONNECT 00112233445566778899aabbccddeeff:0 HTTP/1.1\r\n\r\n",
        b"CONNECT 00112233445566778899aabbccddeeff.balena:22 HTTP/1.1\r\nX: a\0b\r\n\r\n",
        b"CONNECT 00112233445566778899aabbccdd\xc3\xa9ff.balena:22 HTTP/1.1\r\n\r\n",
        b"CONNECT 00112233445566778899aabbccddeeff.other:22 HTTP/1.1\r\n\r\n",
    ];
    for (number, head) in heads.into_iter().enumerate() {
        let mut answer = Answer::to_bytes(relay.address(), head);
        assert_eq!((answer.status, answer.reason.as_str()), (row.status, row.reason), "head {number}");
        assert_eq!(answer.slug().as_deref(), Some(row.slug), "head {number}");
        let body = answer.rest().unwrap();
        assert_body(&answer, &body);
    }
    let events = site.audit().wait_for_events(heads.len());
    assert_eq!(events.len(), heads.len());
    assert!(
        events.iter().all(|event| event["cause"] == row.cause && event["detail"].is_string()),
        "{events:?}"
    );

    neighbour.write_all(b"still here").unwrap();
    let mut echoed = [0; 10];
    neighbour.read_exact(&mut echoed).unwrap();
    assert_eq!(&echoed, b"still here");
}

#[test]
fn a_head_whose_framing_contradicts_itself_is_a_bad_request_and_dials_nobody() {
    let site = Site::new("");
    let relay = site.start();
    let device = Device::listening(V4);
    let cases = [
        (&["Host: one", "Host: other"][..], "more than one Host"),
        (&["Host: o ne"], "not a host"),
        (&["Content-Length: abc"], "not a number"),
        (&["Content-Length: 4", "Content-Length: 5"], "differ"),
        (&["Transfer-Encoding: chunked"], "Transfer-Encoding"),
    ];
    for (fields, _) in cases {
        let request = site.request(&device).early(b"BODY");
        let request = fields.iter().fold(request, |request, field| request.header(field));
        let answer = request.send(relay.address());
        assert_eq!((answer.status, answer.slug().as_deref()), (400, Some("malformed")), "{fields:?}");
    }
    let events = site.audit().wait_for_events(cases.len());
    let details: Vec<_> = events.iter().filter_map(|event| event["detail"].as_str()).collect();
    for (fields, wrong) in cases {
        assert!(details.iter().any(|detail| detail.contains(wrong)), "{fields:?}: {details:?}");
    }
    // What agrees with itself opens the tunnel, and the bytes behind the head are the device's.
    let request = site.request(&device).early(b"BODY");
    let request = request.header("Host: one").header("Content-Length: 4").header("Content-Length: 4");
    let _client = request.send(relay.address()).opened();
    let mut body = [0; 4];
    device.accept().read_exact(&mut body).unwrap();
    assert_eq!(&body, b"BODY", "the first connection to the device is this one");
}

#[test]
fn a_header_that_nobody_reads_may_hold_bytes_above_127() {
    let site = Site::new("");
    let relay = site.start();
    let device = Device::echo(V4);
    for name in ["Mac OS/Версия (arm64)".as_bytes(), b"S\xe3o Paulo"] {
        let request = site.request(&device).bytes();
        let head = request.strip_suffix(b"\r\n").unwrap();
        let answer = Answer::to_bytes(relay.address(), &[head, b"User-Agent: ", name, b"\r\n\r\n"].concat());
        assert_eq!(answer.status, 200, "{name:?}");
    }
}

#[test]
fn a_head_that_ends_before_its_end_is_a_bad_request() {
    let site = Site::new("");
    let relay = site.start();
    let mut client = connect(relay.address());
    client.write_all(b"CONNECT 001122").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let row = Row { status: 400, reason: "Bad Request", slug: "malformed", cause: "head-truncated" };
    assert_refused(&site, Answer::read(client), &row);
}

#[test]
fn what_does_not_exist_and_what_is_not_permitted_get_one_answer_byte_for_byte() {
    let site = Site::new("");
    site.cli(&["principal", "add", "bob"]);
    let token = site.cli(&["token", "issue", "bob"])["token"].as_str().unwrap().to_owned();
    let grant = |ports: &str, more: &[&str]| {
        let line = [&["grant", "add", "bob", "--device", OTHER_DEVICE, "--ports", ports], more].concat();
        site.cli(&line)["id"].as_i64().unwrap()
    };
    site.cli(&["device", "add", OTHER_DEVICE, "--address", "127.0.0.2"]);
    let revoked = grant("4", &[]);
    site.cli(&["grant", "revoke", &revoked.to_string()]);
    grant("5", &["--expires", "1s"]);
    std::thread::sleep(Duration::from_millis(1100));
    let relay = site.start();

    // By port, so that each event of the audit log is known by it.
    let unknown_device = "f".repeat(32);
    let cases = [
        (1, unknown_device.as_str(), "device-unknown"),
        (2, DEVICE, "no-grant"),
        (3, OTHER_DEVICE, "port-not-granted"),
        (4, OTHER_DEVICE, "grant-revoked"),
        (5, OTHER_DEVICE, "grant-expired"),
    ];
    for (port, uuid, cause) in cases {
        let mut answer = Request::to(uuid, port).bearer(&token).send(relay.address());
        assert_eq!(
            // The session's number is the only difference; it says nothing of the cause.
            String::from_utf8_lossy(&answer.head).replace(&session_line(&answer), ""),
            "HTTP/1.1 403 Tunnel Not Permitted\r\nSluicegate-Reason: not-permitted\r\n\
             Content-Type: text/plain; charset=utf-8\r\nContent-Length: 129\r\nConnection: close\r\n\r\n",
            "{cause}"
        );
        assert_eq!(
            String::from_utf8(answer.rest().unwrap()).unwrap(),
            "Tunnel Not Permitted: there is no such device, or this token may not reach this port of it; ask the \
             relay's operator for a grant\n",
            "{cause}"
        );
    }
    let events = site.audit().wait_for_events(cases.len());
    let causes: BTreeMap<_, _> = events
        .iter()
        .map(|event| (event["port"].as_u64().unwrap(), event["cause"].as_str().unwrap()))
        .collect();
    assert_eq!(causes, cases.map(|(port, _, cause)| (u64::from(port), cause)).into());
}

#[test]
fn a_method_other_than_connect_is_not_allowed() {
    let site = Site::new("");
    let relay = site.start();
    let answer = Answer::to_bytes(relay.address(), b"GET http://example.com/ HTTP/1.0\r\n\r\n");
    assert!(answer.head.starts_with(b"HTTP/1.0 405 "), "the version is the request's");
    assert_eq!(answer.header("Allow"), ["CONNECT"]);
    let row = Row { status: 405, reason: "Method Not Allowed", slug: "method", cause: "method" };
    assert_refused(&site, answer, &row);
}

#[test]
fn a_client_without_a_valid_token_is_asked_for_one_and_only_the_audit_log_knows_why() {
    let site = Site::new("");
    let issue = |more: &[&str]| site.cli(&[&["token", "issue", "alice"], more].concat());
    let expired = issue(&["--expires", "1s"]);
    let revoked = issue(&[]);
    site.cli(&["token", "revoke", revoked["credential"].as_str().unwrap()]);
    site.cli(&["principal", "add", "carol"]);
    let orphaned = site.cli(&["token", "issue", "carol"]);
    site.cli(&["principal", "remove", "carol"]);
    std::thread::sleep(Duration::from_millis(1100));
    let relay = site.start();

    let token = |issued: &serde_json::Value| Some(issued["token"].as_str().unwrap().to_owned());
    let cases = [
        (1, None, "credential-missing"),
        (2, Some("sg_nobody_has_this".to_owned()), "credential-unknown"),
        (3, token(&expired), "credential-expired"),
        (4, token(&revoked), "credential-revoked"),
        // Removing a principal revokes its tokens.
        (5, token(&orphaned), "credential-revoked"),
    ];
    let mut replies = Vec::new();
    for (port, token, cause) in &cases {
        let request = Request::to(DEVICE, *port);
        let request = token.iter().fold(request, |request, token| request.bearer(token));
        let mut answer = request.send(relay.address());
        assert_eq!(
            (answer.status, answer.reason.as_str()),
            (407, "Proxy Authentication Required"),
            "{cause}"
        );
        assert_eq!(answer.slug().as_deref(), Some("credentials"), "{cause}");
        let challenges = answer.header("Proxy-Authenticate");
        assert_eq!(challenges, ["Basic realm=\"sluicegate\"", "Bearer realm=\"sluicegate\""], "{cause}");
        let body = answer.rest().unwrap();
        assert_body(&answer, &body);
        let head = String::from_utf8_lossy(&answer.head).replace(&session_line(&answer), "");
        replies.push([head.into_bytes(), body].concat());
    }
    assert!(replies.iter().all(|reply| *reply == replies[0]), "the reply tells nothing more");
    let events = site.audit().wait_for_events(cases.len());
    let causes: BTreeMap<_, _> = events
        .iter()
        .map(|event| (event["port"].as_u64().unwrap(), event["cause"].as_str().unwrap()))
        .collect();
    assert_eq!(causes, cases.map(|(port, _, cause)| (u64::from(port), cause)).into());
    for event in events {
        let form = match event["cause"].as_str() {
            Some("credential-missing") => "the request has no Proxy-Authorization",
            _ => "the token came by Bearer",
        };
        assert_eq!(event["detail"], form, "{event}");
    }
    let log = std::fs::read_to_string(site.folder().join("audit.jsonl")).unwrap();
    assert!(!log.contains("sg_"), "no token in the audit log");
    assert!(!relay.log().contains("sg_"), "no token in the log");
}

#[test]
fn the_audit_log_says_in_which_form_refused_credentials_came() {
    use base64::Engine;
    let basic = |text: &str| format!("Basic {}", base64::prelude::BASE64_STANDARD.encode(text));
    let site = Site::new("");
    let relay = site.start();
    let cases = [
        ("Digest x".to_owned(), "credential-missing", "neither Basic nor Bearer"),
        ("Basic %%%".to_owned(), "credential-missing", "not base64"),
        (basic(":"), "credential-missing", "no token"),
        (basic("sg_nobody"), "credential-unknown", "without a colon"),
        (basic("sg_nobody:"), "credential-unknown", "as the user name"),
        (basic("me:sg_nobody"), "credential-unknown", "as the password"),
    ];
    // By port, so that each event of the audit log is known by it.
    for (port, (value, ..)) in (1..).zip(&cases) {
        let request = Request::to(DEVICE, port).header(&format!("Proxy-Authorization: {value}"));
        assert_eq!(request.send(relay.address()).status, 407, "{value}");
    }
    let mut events = site.audit().wait_for_events(cases.len());
    events.sort_by_key(|event| event["port"].as_u64());
    for (event, (value, cause, detail)) in events.iter().zip(cases) {
        assert_eq!(event["cause"], cause, "{value}: {event}");
        assert!(event["detail"].as_str().unwrap().contains(detail), "{value}: {event}");
    }
}

#[test]
fn a_head_that_does_not_come_in_time_is_a_request_timeout() {
    let site = Site::new("timeouts.head = '300ms'");
    let relay = site.start();
    let row = Row { status: 408, reason: "Request Timeout", slug: "head-timeout", cause: "head-timeout" };
    assert_refused(&site, Answer::read(connect(relay.address())), &row);
}

#[test]
fn a_session_beyond_a_limit_is_told_so() {
    for (limit, cause) in [
        ("limits.sessions_per_principal = 1", "limit-principal"),
        ("limits.sessions_per_device = 1", "limit-device"),
        ("limits.sessions = 1", "limit-node"),
    ] {
        let site = Site::new(limit);
        let relay = site.start();
        let device = Device::echo(V4);
        let _tunnel = site.ask(&relay, device.port()).opened();
        let row = Row { status: 429, reason: "Too Many Sessions", slug: "limit", cause };
        assert_refused(&site, site.ask(&relay, device.port()), &row);
    }
}

#[test]
fn a_head_over_8_kib_is_too_large_and_its_reply_still_arrives() {
    let site = Site::new("");
    let relay = site.start();
    let mut bytes = format!("CONNECT {DEVICE}.balena:80 HTTP/1.1\r\nX-Padding: ").into_bytes();
    // More than the relay reads before it refuses: a close right away would reset the connection.
    bytes.resize(64 * 1024, b'x');
    let answer = Answer::to_bytes(relay.address(), &bytes);
    answer.stream.shutdown(Shutdown::Write).unwrap();
    let reason = "Request Header Fields Too Large";
    let row = Row { status: 431, reason, slug: "head-too-large", cause: "head-too-large" };
    assert_refused(&site, answer, &row);
}

#[test]
fn a_device_address_outside_the_allowed_networks_is_not_dialled() {
    let site = Site::new("vpn.allow = ['127.0.0.1/32']");
    site.cli(&["device", "add", OTHER_DEVICE, "--address", "192.0.2.1"]);
    let relay = site.start();
    let answer = Request::to(OTHER_DEVICE, 22).bearer(&site.token).send(relay.address());
    let (reason, slug, cause) =
        ("Device Address Not Allowed", "device-address", "device-address-not-allowed");
    assert_refused(&site, answer, &Row { status: 502, reason, slug, cause });
}

#[test]
fn a_port_that_the_device_refuses_is_closed() {
    let site = Site::new("");
    let relay = site.start();
    let answer = site.ask(&relay, Device::closed_port());
    let (reason, slug, cause) = ("Device Port Closed", "device-port-closed", "device-port-closed");
    assert_refused(&site, answer, &Row { status: 502, reason, slug, cause });
}

#[test]
fn a_device_that_no_route_leads_to_is_unreachable() {
    let site = Site::new("");
    // TCP to a broadcast address fails in the kernel, and loopback's is one.
    site.cli(&["device", "add", OTHER_DEVICE, "--address", "127.255.255.255"]);
    let relay = site.start();
    let answer = Request::to(OTHER_DEVICE, 22).bearer(&site.token).send(relay.address());
    let (reason, slug, cause) = ("Device Unreachable", "device-unreachable", "device-unreachable");
    assert_refused(&site, answer, &Row { status: 502, reason, slug, cause });
}

#[test]
fn a_device_without_a_vpn_connection_or_address_is_offline() {
    for more in [&["--address", "127.0.0.1", "--offline"][..], &[]] {
        let site = Site::new("");
        site.cli(&[&["device", "add", OTHER_DEVICE], more].concat());
        let relay = site.start();
        let answer = Request::to(OTHER_DEVICE, 22).bearer(&site.token).send(relay.address());
        let (reason, slug, cause) = ("Device Offline", "device-offline", "device-offline");
        assert_refused(&site, answer, &Row { status: 503, reason, slug, cause });
    }
}

#[test]
fn a_device_on_another_node_is_offline_here_and_the_audit_log_knows_better() {
    let site = Site::new("vpn.node = 'vpn-1'");
    site.cli(&["device", "add", OTHER_DEVICE, "--address", "127.0.0.1", "--node", "vpn-2"]);
    let relay = site.start();
    let answer = Request::to(OTHER_DEVICE, 22).bearer(&site.token).send(relay.address());
    let (reason, slug, cause) = ("Device Offline", "device-offline", "device-elsewhere");
    assert_refused(&site, answer, &Row { status: 503, reason, slug, cause });
}

#[test]
fn a_token_that_the_lost_store_may_know_is_undecided() {
    let site = Site::new("");
    let relay = site.start();
    std::fs::rename(site.store_path(), site.folder().join("elsewhere.db")).unwrap();
    assert!(relay.metric_becomes("sluicegate_store_reachable", |reachable| reachable == 0.0));
    let answer = Request::to(DEVICE, 22).bearer("sg_issued_a_moment_ago").send(relay.address());
    assert_eq!(answer.header("Retry-After").len(), 1);
    let (reason, slug, cause) = ("Authorization Unavailable", "undecided", "store-unreachable");
    assert_refused(&site, answer, &Row { status: 503, reason, slug, cause });
}

#[test]
fn a_snapshot_that_the_store_has_not_confirmed_for_too_long_decides_nothing() {
    let site = Site::new("authz.max_stale = '1s'");
    let relay = site.start();
    let device = Device::echo(V4);
    let mut tunnel = site.ask(&relay, device.port()).opened();
    std::fs::rename(site.store_path(), site.folder().join("elsewhere.db")).unwrap();
    assert!(relay.metric_becomes("sluicegate_snapshot_age_seconds", |age| age > 1.0));

    let answer = site.ask(&relay, device.port());
    assert_eq!(answer.header("Retry-After").len(), 1);
    let (reason, slug, cause) = ("Authorization Unavailable", "undecided", "snapshot-stale");
    assert_refused(&site, answer, &Row { status: 503, reason, slug, cause });
    tunnel.write_all(b"what runs, runs").unwrap();
    tunnel.read_exact(&mut [0; 15]).unwrap();
}

#[test]
fn a_draining_relay_sends_new_clients_away() {
    let site = Site::new("");
    let relay = site.start();
    let device = Device::echo(V4);
    let _tunnel = site.ask(&relay, device.port()).opened();
    relay.signal(Signal::SIGTERM);
    let drains = wait_for(|| Some(site.ask(&relay, device.port())).filter(|answer| answer.status != 200));
    let mut answer = drains.expect("the relay drains");
    assert_eq!((answer.status, answer.reason.as_str()), (503, "Relay Draining"));
    assert_eq!(answer.slug().as_deref(), Some("draining"));
    assert_eq!(answer.header("Retry-After").len(), 1);
    let body = answer.rest().unwrap();
    assert_body(&answer, &body);
    let event = site.audit().wait_for(|event| event["event"] == "refusal");
    assert_eq!(
        (&event["status"], &event["slug"], &event["cause"]),
        (&503.into(), &"draining".into(), &"draining".into())
    );
}

#[test]
fn a_device_that_does_not_answer_is_timed_out() {
    let site = Site::new("timeouts.connect = '300ms'");
    let relay = site.start();
    let silent = Device::silent();
    let answer = site.ask(&relay, silent.port);
    let (reason, slug, cause) = ("Device Timed Out", "device-timeout", "device-timeout");
    assert_refused(&site, answer, &Row { status: 504, reason, slug, cause });
}
