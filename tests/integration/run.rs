//! `sluicegate run`, from its first line to its exit code.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::{Device, Relay, Signal, Site, V4, tools_or_skip};

fn says_ping_to_itself(tunnel: &mut TcpStream) -> bool {
    let mut said = [0; 4];
    tunnel.write_all(b"ping").and_then(|()| tunnel.read_exact(&mut said)).is_ok() && &said == b"ping"
}

#[test]
fn a_node_that_nobody_configured_makes_itself_a_store_of_its_own() {
    let home = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_sluicegate"));
    command.arg("run").env_clear().env("HOME", home.path()).stdin(Stdio::null());
    command
        .env("SLUICEGATE_LISTEN__0__ADDRESS", "127.0.0.1:0")
        .env("SLUICEGATE_ADMIN__ADDRESS", "127.0.0.1:0");
    let relay = Relay::start(command);
    assert!(relay.admin_get("/readyz").starts_with("HTTP/1.1 200 "));
    let folder = home.path().join(".local/state/sluicegate");
    assert!(folder.join("sluicegate.db").exists());
    let mode = std::fs::metadata(&folder).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700, "{mode:o}");
}

#[test]
fn a_configured_node_makes_no_store_but_tells_how_to() {
    let site = Site::new("");
    std::fs::remove_file(site.store_path()).unwrap();
    let output = site.command(&["run"]).output().unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    let expected = format!(
        "sluicegate: sqlite:{} does not exist; `sluicegate store init` creates it\n",
        site.store_path().display()
    );
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.ends_with(&expected), "{message}");
    assert!(!site.store_path().exists());
}

#[test]
fn every_listener_is_named_once_it_accepts() {
    let site = Site::new("listen = [{ address = '127.0.0.1:0' }, { address = '127.0.0.1:0' }]");
    let relay = site.start();
    let [first, second] = relay.addresses() else { panic!("{:?}", relay.addresses()) };
    assert_ne!(first, second);
    let device = Device::echo(V4);
    for address in [first, second] {
        assert!(says_ping_to_itself(&mut site.request(&device).send(*address).opened()));
    }
    assert!(relay.logs("listening"));
}

#[test]
fn the_log_is_json_where_that_is_wanted() {
    let site = Site::new("log.format = 'json'");
    let relay = site.start();
    assert!(relay.logs("listening"));
    for line in relay.log().lines() {
        assert!(serde_json::from_str::<serde_json::Value>(line).is_ok(), "{line}");
    }
}

#[test]
fn rust_log_goes_before_the_configuration_and_is_refused_where_it_makes_no_sense() {
    let site = Site::new("log.level = 'info'");
    let mut quiet = site.command(&["run"]);
    quiet.env("RUST_LOG", "error");
    let relay = Relay::start(quiet);
    assert_eq!(relay.log(), "");
    drop(relay);
    let output = site.command(&["run"]).env("RUST_LOG", "a=b=c").output().unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(message.starts_with("sluicegate: RUST_LOG is not understood: "), "{message}");
}

#[test]
fn the_log_on_a_terminal_has_colours_unless_no_color_is_set() {
    if !tools_or_skip("the log on a terminal", &["script"]) {
        return;
    }
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let site = Site::new(&format!("listen = [{{ address = '{}' }}]", taken.local_addr().unwrap()));
    let on_a_terminal = |no_color: &str| {
        let run = site.command(&["run"]);
        let words: Vec<_> = [run.get_program()].into_iter().chain(run.get_args()).collect();
        let line = words.iter().map(|word| word.to_str().unwrap()).collect::<Vec<_>>().join(" ");
        let mut script = Command::new("script");
        script
            .args(["--quiet", "--command", &line, "/dev/null"])
            .env("SHELL", "/bin/sh")
            .env("NO_COLOR", no_color);
        script.env("STATE_DIRECTORY", site.folder().join("state")).stdin(Stdio::null());
        // It ends at once, since the address is another's.
        String::from_utf8_lossy(&script.output().unwrap().stdout).into_owned()
    };
    let (coloured, plain) = (on_a_terminal(""), on_a_terminal("1"));
    assert!(coloured.contains("\u{1b}[") && coloured.contains("cannot listen on"), "{coloured:?}");
    assert!(!plain.contains('\u{1b}') && plain.contains("cannot listen on"), "{plain:?}");
}

#[test]
fn an_idle_node_ends_at_once_and_well_when_it_is_asked_to() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let site = Site::new("timeouts.drain = '1h'");
        let mut relay = site.start();
        relay.signal(signal);
        assert_eq!(relay.wait().expect("the relay ends").code(), Some(0));
    }
}

#[test]
fn a_drain_ends_when_the_last_tunnel_does() {
    let site = Site::new("timeouts.drain = '1h'");
    let mut relay = site.start();
    let device = Device::echo(V4);
    let mut tunnel = site.ask(&relay, device.port()).opened();
    relay.signal(Signal::SIGTERM);
    assert!(relay.logs("draining"));
    assert!(says_ping_to_itself(&mut tunnel), "the drain has ended a tunnel");
    std::thread::sleep(Duration::from_millis(300));
    assert!(relay.is_running() && says_ping_to_itself(&mut tunnel));
    drop(tunnel);
    assert_eq!(relay.wait().expect("the relay ends").code(), Some(0));
    let event = site.audit().wait_for(|event| event["event"] == "session-end");
    assert_eq!(event["bytes_up"], 8);
}

#[test]
fn a_drain_ends_when_its_time_is_over() {
    let site = Site::new("timeouts.drain = '500ms'");
    let mut relay = site.start();
    let device = Device::echo(V4);
    let mut tunnel = site.ask(&relay, device.port()).opened();
    let asked = Instant::now();
    relay.signal(Signal::SIGTERM);
    assert_eq!(relay.wait().expect("the relay ends").code(), Some(0));
    assert!(asked.elapsed() >= Duration::from_millis(500), "it ended after {:?}", asked.elapsed());
    assert!(!says_ping_to_itself(&mut tunnel));
    assert!(site.audit().has(|event| event["event"] == "session-end"));
}

#[test]
fn a_second_signal_ends_a_drain() {
    let site = Site::new("timeouts.drain = '1h'");
    let mut relay = site.start();
    let device = Device::echo(V4);
    let _tunnel = site.ask(&relay, device.port()).opened();
    relay.signal(Signal::SIGTERM);
    assert!(relay.logs("draining"));
    relay.signal(Signal::SIGINT);
    assert_eq!(relay.wait().expect("the relay ends").code(), Some(0));
    assert!(relay.logs("a second signal"));
}
