//! `sluicegate tunnel`, our own client.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};

use crate::support::{
    Content, DEVICE, Device, End, OTHER_DEVICE, Relay, Running, Site, V4, assert_done, connect, ipv6_or_skip,
    output_of, receive, reset, wait_for,
};

/// `sluicegate tunnel` to a port of [`DEVICE`], with alice's token in its environment.
fn tunnel(site: &Site, relay: &str, port: u16) -> Command {
    let mut command = Command::new(crate::support::BINARY);
    command.args(["tunnel", &format!("{DEVICE}:{port}"), "--relay", relay]);
    command.env("SLUICEGATE_TOKEN", &site.token);
    command
}

fn stdio(site: &Site, relay: &Relay, port: u16) -> Command {
    let mut command = tunnel(site, &relay.address().to_string(), port);
    command.arg("--stdio");
    command
}

#[test]
fn stdin_and_stdout_are_carried_whole_and_both_ends_are_passed_on() {
    let site = Site::new("");
    let relay = site.start();
    let device = Device::echo(V4);
    let content = Content::new(1, 32 << 20);
    let output = output_of(&mut stdio(&site, &relay, device.port()), &content.to_vec());
    assert_done(&output);
    assert_eq!(Content::digest_of(&output.stdout), content.digest());
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert_eq!(site.audit().wait_for_events(1)[0]["cause"], "closed");
}

/// `sluicegate tunnel --stdio` with pipes that the test holds.
fn piped(site: &Site, relay: &Relay, port: u16) -> Child {
    let mut command = stdio(site, relay, port);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

#[test]
fn a_device_that_has_said_all_closes_stdout_and_still_hears_stdin() {
    let site = Site::new("");
    let relay = site.start();
    let device = Device::listening(V4);
    let mut client = piped(&site, &relay, device.port());
    let mut device = device.accept();
    device.write_all(b"all there is to say").unwrap();
    device.shutdown(Shutdown::Write).unwrap();
    let mut said = Vec::new();
    client.stdout.take().unwrap().read_to_end(&mut said).unwrap();
    assert_eq!(said, b"all there is to say");

    let mut stdin = client.stdin.take().unwrap();
    stdin.write_all(b"but listen").unwrap();
    drop(stdin);
    assert_eq!(receive(&mut device), (Content::digest_of(b"but listen"), End::Fin));
    drop(device);
    assert_eq!(client.wait().unwrap().code(), Some(0));
}

#[test]
fn a_tunnel_that_breaks_is_a_failure_even_while_stdin_stays_open() {
    let site = Site::new("");
    let relay = site.start();
    let device = Device::listening(V4);
    let mut client = piped(&site, &relay, device.port());
    let mut device = device.accept();
    device.write_all(b"x").unwrap();
    client.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    reset(device);
    let status = wait_for(|| client.try_wait().unwrap()).expect("it ends");
    assert_eq!(status.code(), Some(1));
    let mut message = String::new();
    client.stderr.take().unwrap().read_to_string(&mut message).unwrap();
    assert!(message.contains("the tunnel broke"), "{message}");
}

#[test]
fn a_closed_stdout_is_told_as_that() {
    let site = Site::new("");
    let relay = site.start();
    let device = Device::listening(V4);
    let mut client = piped(&site, &relay, device.port());
    let mut device = device.accept();
    drop(client.stdout.take());
    device.write_all(b"for nobody").unwrap();
    let status = wait_for(|| client.try_wait().unwrap()).expect("it ends");
    assert_eq!(status.code(), Some(1));
    let mut message = String::new();
    client.stderr.take().unwrap().read_to_string(&mut message).unwrap();
    assert!(message.contains("stdout was closed; the program that reads it has ended"), "{message}");
}

/// What a program that listens where a relay should be hears of the client. It answers nothing but nonsense.
fn heard_of(site: &Site, host: &str, option: Option<&str>) -> Vec<u8> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let relay = format!("{host}:{}", listener.local_addr().unwrap().port());
    std::thread::scope(|scope| {
        let heard = scope.spawn(|| {
            let mut socket = listener.accept().unwrap().0;
            let mut heard = vec![0; 4096];
            let len = socket.read(&mut heard).unwrap();
            heard.truncate(len);
            socket.write_all(b"nonsense\r\n\r\n").unwrap();
            heard
        });
        let output = output_of(tunnel(site, &relay, 22).arg("--stdio").args(option), b"");
        assert_eq!(output.status.code(), Some(1));
        heard.join().unwrap()
    })
}

#[test]
fn a_token_is_sent_in_the_clear_only_to_loopback_or_where_that_is_asked_for() {
    let site = Site::new("");
    let has_token = |heard: &[u8]| String::from_utf8_lossy(heard).contains(&site.token);
    // This leads to this machine too, and yet is no loopback address.
    let other = heard_of(&site, "0.0.0.0", None);
    assert!(!has_token(&other) && other.starts_with(&[TLS_HANDSHAKE]), "{other:?}");
    assert!(has_token(&heard_of(&site, "0.0.0.0", Some("--plain"))));
    for host in ["127.0.0.1", "localhost"] {
        assert!(has_token(&heard_of(&site, host, None)), "{host}");
        let with_tls = heard_of(&site, host, Some("--tls"));
        assert!(!has_token(&with_tls) && with_tls.starts_with(&[TLS_HANDSHAKE]), "{host}: {with_tls:?}");
    }
}

/// The first byte of a TLS handshake's record.
const TLS_HANDSHAKE: u8 = 22;

#[test]
fn every_refusal_is_told_in_words_and_leaves_stdout_empty() {
    let site = Site::new("timeouts.connect = '300ms'\nlimits.sessions_per_device = 1");
    let relay = site.start();
    let (echo, silent) = (Device::echo(V4), Device::silent());
    site.cli(&["device", "add", OTHER_DEVICE, "--address", "192.0.2.1"]);
    let offline = "0".repeat(32);
    site.cli(&["device", "add", &offline, "--offline", "--address", "127.0.0.1"]);
    assert!(relay.metric_becomes("sluicegate_snapshot_rows", |rows| rows >= 6.0));
    let refused = |uuid: &str, port: u16, token: &str| {
        let mut command = Command::new(crate::support::BINARY);
        command.args([
            "tunnel",
            &format!("{uuid}:{port}"),
            "--relay",
            &relay.address().to_string(),
            "--stdio",
        ]);
        let output = output_of(command.env("SLUICEGATE_TOKEN", token), b"");
        assert_eq!(output.status.code(), Some(1));
        assert_eq!(output.stdout, b"");
        String::from_utf8(output.stderr).unwrap()
    };
    let message = |uuid: &str, port: u16, token: &str, words: &str| {
        let stderr = refused(uuid, port, token);
        assert!(stderr.contains(words) && stderr.lines().count() == 1, "`{words}` is not in: {stderr}");
    };
    message(DEVICE, 22, "sg_nobody", "407 Proxy Authentication Required: the token is unknown");
    message(&"f".repeat(32), 22, &site.token, "403 Tunnel Not Permitted: there is no such device, or");
    let closed = Device::closed_port();
    message(
        DEVICE,
        closed,
        &site.token,
        &format!("502 Device Port Closed: nothing listens on port {closed}"),
    );
    message(OTHER_DEVICE, 22, &site.token, "502 Device Address Not Allowed: ");
    message(&offline, 22, &site.token, "503 Device Offline: ");
    message(DEVICE, silent.port, &site.token, "504 Device Timed Out: the device does not answer");
    let _tunnel = site.ask(&relay, echo.port()).opened();
    message(DEVICE, echo.port(), &site.token, "429 Too Many Sessions: ");
}

/// A client that listens, and where.
fn listening(mut command: Command) -> (Running, SocketAddr) {
    let mut running = Running::start(command.stdout(Stdio::piped()).stderr(Stdio::piped()));
    let mut line = String::new();
    BufReader::new(running.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let address = line.trim().strip_prefix("listening on ").expect("it says where it listens");
    (running, address.parse().unwrap())
}

#[test]
fn a_local_port_carries_each_connection_by_itself() {
    let site = Site::new("");
    let relay = site.start();
    let device = Device::echo(V4);
    let mut command = tunnel(&site, &relay.address().to_string(), device.port());
    command.args(["--listen", "127.0.0.1:0"]);
    let (_running, address) = listening(command);
    std::thread::scope(|scope| {
        for seed in 0..8 {
            scope.spawn(move || {
                let content = Content::new(seed, (2 << 20) + seed);
                let local = connect(address);
                std::thread::scope(|scope| {
                    scope.spawn(|| {
                        content.send(&mut &local).unwrap();
                        local.shutdown(Shutdown::Write).unwrap();
                    });
                    assert_eq!(receive(&mut &local), (content.digest(), End::Fin));
                });
            });
        }
    });
    let events = site.audit().wait_for_events(8);
    assert_eq!(events.len(), 8, "one relay connection for each local one");
    assert!(events.iter().all(|event| event["cause"] == "closed"), "{events:?}");
}

#[test]
fn a_refused_local_connection_is_reset_and_told_and_the_next_one_is_tried_anew() {
    let site = Site::new("");
    let relay = site.start();
    let port = Device::closed_port();
    let (mut running, address) = listening(tunnel(&site, &relay.address().to_string(), port));
    assert_eq!(receive(&mut connect(address)).1, End::Reset, "not to be taken for an empty answer");
    let mut message = String::new();
    BufReader::new(running.0.stderr.as_mut().unwrap()).read_line(&mut message).unwrap();
    assert!(message.contains("502 Device Port Closed") && message.contains("start the service"), "{message}");

    // The service is started, on the very port.
    let service = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
    let mut local = connect(address);
    let (mut at_device, _) = service.accept().unwrap();
    local.write_all(b"hello").unwrap();
    let mut received = [0; 5];
    at_device.read_exact(&mut received).unwrap();
    assert_eq!(&received, b"hello");
}

#[test]
fn a_local_connection_that_breaks_is_told_as_that() {
    let site = Site::new("");
    let relay = site.start();
    let device = Device::listening(V4);
    let (mut running, address) = listening(tunnel(&site, &relay.address().to_string(), device.port()));
    let local = connect(address);
    let mut at_device = device.accept();
    reset(local);
    let mut message = String::new();
    BufReader::new(running.0.stderr.as_mut().unwrap()).read_line(&mut message).unwrap();
    assert!(message.contains("the local connection broke"), "{message}");
    assert_eq!(receive(&mut at_device).1, End::Reset);
}

#[test]
fn the_relay_may_be_named_and_may_have_an_ipv6_address() {
    if !ipv6_or_skip("the_relay_may_be_named_and_may_have_an_ipv6_address") {
        return;
    }
    let site = Site::new("listen = [{ address = '127.0.0.1:0' }, { address = '[::1]:0' }]");
    let relay = site.start();
    let device = Device::echo(V4);
    let [v4, v6] = relay.addresses() else { panic!("two listeners") };
    for name in [format!("localhost:{}", v4.port()), v4.to_string(), v6.to_string()] {
        let output = output_of(tunnel(&site, &name, device.port()).arg("--stdio"), b"hello");
        assert_done(&output);
        assert_eq!(output.stdout, b"hello", "{name}");
    }
}

#[test]
fn a_relay_that_is_not_there_or_not_a_relay_is_told() {
    let site = Site::new("");
    let closed = Device::closed_port();
    let stranger = Device::serving(V4, |mut socket: TcpStream| {
        let _gone = socket.write_all(b"220 mail.example ESMTP\r\n\r\n");
        receive(&mut socket);
    });
    let mute = Device::serving(V4, drop);
    for (port, words) in [
        (closed, "cannot be reached"),
        (stranger.port(), "not HTTP"),
        (mute.port(), "gave no complete reply"),
    ] {
        let output = output_of(tunnel(&site, &format!("127.0.0.1:{port}"), 22).arg("--stdio"), b"");
        let message = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1));
        assert!(
            message.contains(words) && message.contains(&port.to_string()),
            "`{words}` is not in: {message}"
        );
    }
}

#[test]
fn the_token_comes_from_the_environment_or_a_file_and_an_open_file_is_warned_of() {
    let site = Site::new("");
    let relay = site.start();
    let device = Device::echo(V4);
    let file = site.folder().join("token");
    std::fs::write(&file, format!("{}\n", site.token)).unwrap();
    let with_file = |mode: u32| {
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
        let mut command = stdio(&site, &relay, device.port());
        command.env("SLUICEGATE_TOKEN", "sg_the_file_goes_first").arg("--token-file").arg(&file);
        output_of(&mut command, b"hello")
    };
    let closed = with_file(0o600);
    assert_eq!((closed.stdout.as_slice(), closed.stderr.as_slice()), (&b"hello"[..], &b""[..]));
    let open = with_file(0o644);
    assert_eq!(open.stdout, b"hello", "a warning is no refusal");
    let message = String::from_utf8_lossy(&open.stderr);
    assert!(message.contains("warning: ") && message.contains("chmod 600"), "{message}");

    let none = output_of(stdio(&site, &relay, device.port()).env_remove("SLUICEGATE_TOKEN"), b"");
    let message = String::from_utf8_lossy(&none.stderr);
    assert_eq!(none.status.code(), Some(1));
    assert!(message.contains("SLUICEGATE_TOKEN") && message.contains("--token-file"), "{message}");
}
