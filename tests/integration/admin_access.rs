//! Who may see and do what over TCP, and what a bad request to the admin side gets.

use std::fmt::Write as _;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;

use crate::support::{
    Device, HttpAnswer, Namespace, Relay, Site, V4, connect, exchange, root_or_skip, wait_for,
};

const TOKEN: &str = "0123456789abcdef0123456789abcdef";

/// A relay with a tunnel, and perhaps with an admin token.
struct Scene {
    site: Site,
    relay: Relay,
    tunnel: TcpStream,
    _device: Device,
}

impl Scene {
    fn new(has_token: HasToken) -> Self {
        let mut site = Site::new("");
        if let HasToken::Yes = has_token {
            let path = site.folder().join("admin-token");
            std::fs::write(&path, format!("{TOKEN}\n")).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
            site.configure(&format!("admin.token_file = '{}'", path.display()));
        }
        let relay = site.start();
        let device = Device::echo(V4);
        let tunnel = site.request(&device).send(relay.address()).opened();
        Self { site, relay, tunnel, _device: device }
    }

    fn ask(&self, line: &str, headers: &str) -> HttpAnswer {
        exchange(connect(self.relay.admin()), line, headers)
    }

    fn post_with_token(&self, path: &str, body: &str) -> HttpAnswer {
        // The line end that follows the headers belongs to the body.
        let headers = format!(
            "Authorization: Bearer {TOKEN}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len() + 2
        );
        self.ask(&format!("POST {path}"), &headers)
    }

    fn with_token(&self, line: &str, token: &str) -> HttpAnswer {
        self.ask(line, &format!("Authorization: Bearer {token}\r\n"))
    }

    /// The request that ends the tunnel's session.
    fn end(&self) -> String {
        let sessions = self.site.cli(&["sessions"]);
        format!("POST /sessions/{}/end", sessions[0]["id"].as_str().unwrap())
    }

    fn is_open(&mut self) -> bool {
        self.tunnel.write_all(b"x").is_ok() && self.tunnel.read_exact(&mut [0]).is_ok()
    }
}

enum HasToken {
    Yes,
    No,
}

#[test]
fn without_a_token_file_tcp_shows_this_machine_sessions_and_changes_nothing() {
    let mut scene = Scene::new(HasToken::No);
    assert_eq!(scene.ask("GET /sessions", "").json()["sessions"].as_array().unwrap().len(), 1);
    assert_eq!(scene.ask("GET /status.json", "").json()["top"].as_array().unwrap().len(), 1);
    for line in [scene.end().as_str(), "POST /authz/accept", "POST /authz/rollback"] {
        for headers in ["", &format!("Authorization: Bearer {TOKEN}\r\n"), "Authorization: Bearer \r\n"] {
            let answer = scene.ask(line, headers);
            assert_eq!(answer.status, 403, "{line}");
            assert!(answer.error().contains("configure admin.token_file"), "{answer:?}");
        }
    }
    assert!(scene.is_open());
}

#[test]
fn a_page_from_elsewhere_that_gave_itself_this_address_sees_no_session() {
    let scene = Scene::new(HasToken::No);
    let ask = |path: &str| {
        let mut stream = connect(scene.relay.admin());
        write!(stream, "GET {path} HTTP/1.1\r\nHost: elsewhere.example\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    };
    assert!(ask("/sessions").starts_with("HTTP/1.1 403"));
    let status = ask("/status.json");
    assert!(status.contains("\"top\":null") && !status.contains(crate::support::DEVICE), "{status}");
}

#[test]
fn another_machine_sees_figures_and_no_session() {
    if !root_or_skip("another_machine_sees_figures_and_no_session") {
        return;
    }
    let namespace = Namespace::new();
    // What is not loopback is taken for another machine.
    namespace.ip("addr add 192.0.2.1/32 dev lo");
    namespace.enter(|| {
        let site = Site::new("admin.address = '192.0.2.1:0'");
        let relay = site.start();
        let device = Device::echo(V4);
        let _tunnel = site.request(&device).send(relay.address()).opened();
        let ask = |line| exchange(connect(relay.admin()), line, "");
        let refused = ask("GET /sessions");
        assert_eq!(refused.status, 403);
        assert!(refused.error().contains("this machine alone"), "{refused:?}");
        let status = ask("GET /status.json").json();
        assert_eq!((&status["sessions"]["active"], status["top"].is_null()), (&1.into(), true));
        assert!(!status.to_string().contains(crate::support::DEVICE));
    });
}

#[test]
fn with_a_token_file_sessions_and_changes_are_for_the_token_alone() {
    let mut scene = Scene::new(HasToken::Yes);
    let end = scene.end();
    let lines = [
        "GET /sessions",
        "GET /authz/diff",
        "GET /authz/status",
        "GET /authz/history",
        "POST /authz/accept",
        "POST /authz/expect",
        "POST /authz/expect/clear",
        "POST /authz/rollback",
        "POST /authz/compare",
        &end,
    ];
    for line in lines {
        let answer = scene.ask(line, "");
        assert_eq!(answer.status, 401, "{line}");
        assert!(answer.head.to_lowercase().contains("www-authenticate: bearer"), "{answer:?}");
    }
    let status = scene.ask("GET /status.json", "").json();
    assert_eq!((status["top"].is_null(), &status["sessions"]["active"]), (true, &1.into()));
    assert!(!status.to_string().contains(crate::support::DEVICE));
    for path in ["/livez", "/readyz", "/metrics", "/"] {
        assert_eq!(scene.ask(&format!("GET {path}"), "").status, 200, "{path}");
    }

    assert_eq!(scene.with_token("GET /sessions", TOKEN).json()["sessions"].as_array().unwrap().len(), 1);
    assert_eq!(scene.with_token("GET /status.json", TOKEN).json()["top"].as_array().unwrap().len(), 1);
    let no_digest = scene.with_token("POST /authz/accept", TOKEN);
    assert_eq!(no_digest.status, 415);
    assert!(no_digest.error().contains("application/json"), "{no_digest:?}");
    let accept = scene.post_with_token("/authz/accept", r#"{"digest": "00"}"#);
    assert_eq!(accept.status, 409, "nothing is held");
    assert!(accept.error().contains("nothing is held"), "{accept:?}");
    let expect = r#"{"relation": "rights", "kind": "absent", "rows": 4, "lasts": "15m"}"#;
    let expect = scene.post_with_token("/authz/expect", expect);
    assert!(expect.status == 409 && expect.error().contains("credentials, grants or devices"), "{expect:?}");
    let expect = r#"{"relation": "grants", "kind": "absent", "rows": 4, "lasts": "25h"}"#;
    let expect = scene.post_with_token("/authz/expect", expect);
    assert!(expect.status == 409 && expect.error().contains("at most 1day"), "{expect:?}");
    assert_eq!(scene.with_token("GET /authz/history", TOKEN).status, 200);
    assert!(scene.is_open());
    assert_eq!(scene.with_token(&end, TOKEN).status, 200);
    assert!(!scene.is_open());
    let command = scene.site.audit().wait_for(|event| event["command"] == "session-end");
    assert!(command["client"].as_str().unwrap().starts_with("127.0.0.1:"), "{command}");
}

#[test]
fn an_outsider_gets_the_same_keys_without_private_values() {
    let scene = Scene::new(HasToken::Yes);
    let operator = scene.with_token("GET /status.json", TOKEN).json();
    let outsider = scene.ask("GET /status.json", "").json();
    for pointer in ["", "/source", "/source/rows", "/sessions", "/probe/local", "/slowest/0", "/may"] {
        let keys = |status: &serde_json::Value| -> Vec<String> {
            status.pointer(pointer).unwrap().as_object().unwrap().keys().cloned().collect()
        };
        assert_eq!(keys(&outsider), keys(&operator), "{pointer}");
    }
    for pointer in ["/source/store", "/slowest/0/session", "/slowest/0/uuid", "/slowest/0/port", "/top"] {
        assert!(operator.pointer(pointer).is_some_and(|value| !value.is_null()), "{pointer}");
        assert!(outsider.pointer(pointer).is_some_and(serde_json::Value::is_null), "{pointer}");
    }
}

#[test]
fn wrong_tokens_are_refused_written_down_a_few_times_and_never_shown() {
    let mut scene = Scene::new(HasToken::Yes);
    let end = scene.end();
    let wrong = format!("{}0", &TOKEN[..31]);
    let answers: Vec<_> = (0..30).map(|_| scene.with_token(&end, &wrong)).collect();
    assert_eq!(answers[0].status, 401);
    assert!(answers[0].error().contains("not the admin token"));
    let message = answers.iter().filter(|answer| answer.status == 401).count();
    let bounded = answers.iter().filter(|answer| answer.status == 429).count();
    assert_eq!((message, bounded), (10, 20));
    assert!(scene.is_open());
    // Whoever has the right one is let in all the same.
    assert_eq!(scene.with_token("GET /sessions", TOKEN).status, 200);
    scene.site.audit().wait_for_events(10);
    let audited =
        scene.site.audit().events().iter().filter(|event| event["command"] == "admin-token").count();
    assert_eq!(audited, 10);
    let log = scene.relay.log() + &std::fs::read_to_string(scene.site.folder().join("audit.jsonl")).unwrap();
    assert!(!log.contains(&wrong) && !log.contains(TOKEN));
}

#[test]
fn a_token_file_that_cannot_serve_stops_the_start_with_the_reason() {
    let mut site = Site::new("");
    let path = site.folder().join("admin-token");
    site.configure(&format!("admin.token_file = '{}'", path.display()));
    for (text, mode, reason) in [
        (None, 0o600, "it cannot be read"),
        (Some("short"), 0o600, "fewer than 32 characters"),
        (Some(TOKEN), 0o604, "every user can read it"),
    ] {
        if let Some(text) = text {
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        }
        let (code, message) = site.start_in_vain().unwrap();
        assert_eq!(code, Some(1), "{message}");
        assert!(message.contains("admin.token_file") && message.contains(reason), "{message}");
    }
}

#[test]
fn a_head_that_is_too_large_is_refused() {
    let scene = Scene::new(HasToken::Yes);
    let mut headers = String::new();
    for number in 0..200 {
        write!(headers, "X-{number}: {}\r\n", "a".repeat(90)).unwrap();
    }
    let mut stream = connect(scene.relay.admin());
    // It may be cut off before all is sent.
    let _cut_off = stream.write_all(format!("GET /sessions HTTP/1.1\r\nHost: x\r\n{headers}\r\n").as_bytes());
    let mut answer = Vec::new();
    let _reset = stream.read_to_end(&mut answer);
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
}

#[test]
fn a_body_is_not_read_however_large() {
    let scene = Scene::new(HasToken::Yes);
    let rss_before = scene.relay.rss_bytes();
    let mut stream = connect(scene.relay.admin());
    let head = format!(
        "POST /authz/accept HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: 1000000000\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    let mut sent = 0;
    while sent < 64 << 20 && stream.write_all(&[0; 65536]).is_ok() {
        sent += 65536;
    }
    assert!(sent < 64 << 20, "the node took {sent} bytes of a body that it has no use for");
    assert!(scene.relay.rss_bytes() < rss_before + (16 << 20));
    assert_eq!(scene.ask("GET /livez", "").status, 200);
}

#[test]
fn slow_requests_are_cut_off_and_hinder_no_tunnel() {
    let mut scene = Scene::new(HasToken::Yes);
    // One byte each second, on every connection that there may be at once.
    let mut slow: Vec<_> = (0..32).map(|_| connect(scene.relay.admin())).collect();
    for stream in &mut slow {
        stream.write_all(b"GET /sta").unwrap();
    }
    assert!(scene.is_open());
    let mut first = slow.swap_remove(0);
    first.set_read_timeout(Some(std::time::Duration::from_millis(100))).unwrap();
    let is_cut_off = || {
        let _gone = first.write_all(b"x");
        match first.read(&mut [0; 64]) {
            Ok(0) => Some(()),
            Err(error) if error.kind() != ErrorKind::WouldBlock => Some(()),
            _ => None,
        }
    };
    assert!(wait_for(is_cut_off).is_some());
    assert_eq!(scene.ask("GET /livez", "").status, 200);
}
