//! `sluicegate tunnel` with TLS, our own client, against a relay whose listener speaks TLS.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use crate::support::{
    Authority, BINARY, Content, DEVICE, Device, End, Fault, Pair, Proxy, Relay, Running, Site, V4,
    assert_done, connect, output_of, receive, receive_slowly, reset, wait_for,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned, version};

const NAME: &str = "relay.example";

/// A relay whose clients speak TLS, and one of its devices.
struct Scene {
    site: Site,
    relay: Relay,
    device: Device,
    authority: Authority,
}

impl Scene {
    fn new(device: Device) -> Self {
        let folder = tempfile::tempdir().unwrap().keep();
        let authority = Authority::new(&folder, "root");
        let (chain, key) = authority.issue(NAME, &[NAME, "127.0.0.1"]).write(&folder, "relay");
        let site = Site::new(&format!(
            "listen = [{{ address = '127.0.0.1:0', tls = {{ certificates = [
             {{ chain = '{}', key = '{}' }}] }} }}, {{ address = '127.0.0.1:0' }}]",
            chain.display(),
            key.display(),
        ));
        let relay = site.start();
        Self { site, relay, device, authority }
    }

    fn folder(&self) -> &Path {
        self.authority.file.parent().unwrap()
    }

    /// The client, without options that TLS needs.
    fn bare(&self, relay: SocketAddr) -> Command {
        let mut command = Command::new(BINARY);
        command.args(["tunnel", &format!("{DEVICE}:{}", self.device.port())]);
        command.args(["--relay", &relay.to_string(), "--tls"]).env("SLUICEGATE_TOKEN", &self.site.token);
        command
    }

    /// The client as it should be started for the relay at `relay`.
    fn client(&self, relay: SocketAddr) -> Command {
        let mut command = self.bare(relay);
        command.arg("--ca").arg(&self.authority.file).args(["--server-name", NAME]);
        command
    }

    fn stdio(&self) -> Command {
        let mut command = self.client(self.relay.address());
        command.arg("--stdio");
        command
    }

    /// The client with pipes that the test holds.
    fn piped(&self) -> Child {
        piped(&mut self.stdio())
    }

    /// The client with a local port, and where that is.
    fn listening(&self) -> (Running, SocketAddr) {
        let mut command = self.client(self.relay.address());
        command.args(["--listen", "127.0.0.1:0"]).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut running = Running::start(&mut command);
        let mut line = String::new();
        BufReader::new(running.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
        (running, line.trim().strip_prefix("listening on ").unwrap().parse().unwrap())
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        std::fs::remove_dir_all(self.folder()).unwrap();
    }
}

fn piped(command: &mut Command) -> Child {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// The one error line of a client that cannot go on.
fn failure(command: &mut Command) -> String {
    let output = output_of(command, b"");
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(1), &b""[..]), "{message}");
    assert_eq!(message.lines().count(), 1, "{message}");
    message
}

/// Waits for a client that was to fail, and gives what it said.
fn end_of(mut client: Child) -> String {
    let status = wait_for(|| client.try_wait().unwrap()).expect("it ends");
    assert_eq!(status.code(), Some(1));
    let mut message = String::new();
    client.stderr.take().unwrap().read_to_string(&mut message).unwrap();
    message
}

#[test]
fn stdin_and_stdout_are_carried_whole_both_ways_at_once() {
    let scene = Scene::new(Device::echo(V4));
    let content = Content::new(1, 16 << 20);
    let output = output_of(&mut scene.stdio(), &content.to_vec());
    assert_done(&output);
    assert_eq!(Content::digest_of(&output.stdout), content.digest());
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    let ended = scene.site.audit().wait_for(|event| event["event"] == "session-end");
    assert_eq!((&ended["cause"], &ended["bytes_up"]), (&"closed".into(), &(16 << 20).into()));
}

#[test]
fn a_local_port_carries_each_connection_by_itself() {
    let scene = Scene::new(Device::echo(V4));
    let (_running, address) = scene.listening();
    std::thread::scope(|scope| {
        for seed in 0..4 {
            scope.spawn(move || {
                let content = Content::new(seed, (16 << 20) + seed);
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
    let events = scene.site.audit().wait_for_events(4);
    assert!(events.iter().all(|event| event["cause"] == "closed"), "{events:?}");
}

#[test]
fn a_program_that_reads_slowly_gets_everything_and_does_not_stop_the_other_way() {
    let content = Content::new(2, 16 << 20);
    let device = Device::listening(V4);
    let scene = Scene::new(device);
    let (_running, address) = scene.listening();
    let mut local = connect(address);
    let mut at_device = scene.device.accept();
    let mut from_device = at_device.try_clone().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            content.send(&mut at_device).unwrap();
            at_device.shutdown(Shutdown::Write).unwrap();
        });
        // All buffers on the way down are full meanwhile.
        std::thread::sleep(Duration::from_millis(300));
        let up = Content::new(3, 4 << 20);
        scope.spawn({
            let mut local = local.try_clone().unwrap();
            move || {
                up.send(&mut local).unwrap();
                local.shutdown(Shutdown::Write).unwrap();
            }
        });
        assert_eq!(receive(&mut from_device), (up.digest(), End::Fin));
        let received = receive_slowly(&mut local, 256 * 1024, Duration::from_millis(2));
        assert_eq!(received, (content.digest(), End::Fin));
    });
}

#[test]
fn a_device_that_reads_slowly_gets_everything_and_does_not_stop_the_other_way() {
    let content = Content::new(4, 16 << 20);
    let scene = Scene::new(Device::listening(V4));
    let mut client = scene.piped();
    let mut at_device = scene.device.accept();
    let mut stdin = client.stdin.take().unwrap();
    let sender = std::thread::spawn(move || content.send(&mut stdin).unwrap());
    std::thread::sleep(Duration::from_millis(300));
    at_device.write_all(b"meanwhile").unwrap();
    let mut said = [0; 9];
    client.stdout.as_mut().unwrap().read_exact(&mut said).unwrap();
    assert_eq!(&said, b"meanwhile");
    let received = receive_slowly(&mut at_device, 256 * 1024, Duration::from_millis(2));
    assert_eq!(received, (content.digest(), End::Fin));
    sender.join().unwrap();
    drop(at_device);
    assert_eq!(client.wait().unwrap().code(), Some(0));
}

#[test]
fn a_device_that_has_said_all_closes_stdout_and_still_hears_stdin() {
    let scene = Scene::new(Device::listening(V4));
    let mut client = scene.piped();
    let mut device = scene.device.accept();
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
fn a_program_that_has_asked_all_still_gets_its_answer() {
    let scene = Scene::new(Device::serving(V4, |mut stream| {
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        all.reverse();
        stream.write_all(&all).unwrap();
    }));
    let (_running, address) = scene.listening();
    let mut local = connect(address);
    local.write_all(b"abc").unwrap();
    local.shutdown(Shutdown::Write).unwrap();
    assert_eq!(receive(&mut local), (Content::digest_of(b"cba"), End::Fin));
}

#[test]
fn a_tunnel_that_breaks_is_a_failure_even_while_stdin_stays_open() {
    let scene = Scene::new(Device::listening(V4));
    let mut client = scene.piped();
    let mut device = scene.device.accept();
    device.write_all(b"x").unwrap();
    client.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    reset(device);
    let stdin = client.stdin.take();
    let message = end_of(client);
    assert!(message.contains("the tunnel broke"), "{message}");
    drop(stdin);
}

#[test]
fn an_end_without_close_notify_is_told_as_a_broken_tunnel() {
    let scene = Scene::new(Device::listening(V4));
    // Cut by somebody on the way, who can make a FIN but no close_notify.
    let wire = Proxy::to(scene.relay.address());
    let mut client = piped(scene.client(([127, 0, 0, 1], wire.port()).into()).arg("--stdio"));
    let mut device = scene.device.accept();
    device.write_all(b"first").unwrap();
    client.stdout.as_mut().unwrap().read_exact(&mut [0; 5]).unwrap();
    wire.set(Fault::Cut { after_bytes: 0 });
    device.write_all(b"second").unwrap();
    let stdin = client.stdin.take();
    let message = end_of(client);
    assert!(message.contains("the tunnel broke") && message.contains("close_notify"), "{message}");
    drop(stdin);
}

/// A relay of somebody else's making, that speaks TLS 1.2 alone, sends back what it gets and ends in order.
fn old_relay(authority: &Authority) -> Device {
    let pair = authority.issue(NAME, &[NAME]);
    let chain = vec![CertificateDer::from_pem_slice(pair.certificate.as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider).with_protocol_versions(&[&version::TLS12]);
    let config = builder.unwrap().with_no_client_auth().with_single_cert(chain, key).unwrap();
    let config = Arc::new(config);
    Device::serving(V4, move |socket| {
        let mut stream = StreamOwned::new(ServerConnection::new(Arc::clone(&config)).unwrap(), socket);
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            stream.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        stream.write_all(b"HTTP/1.1 200 Connection Established\r\n\r\nfirst ").unwrap();
        let mut chunk = vec![0; 100_000];
        while let Ok(len @ 1..) = stream.read(&mut chunk) {
            stream.write_all(&chunk[..len]).unwrap();
        }
        stream.conn.send_close_notify();
        stream.flush().unwrap();
    })
}

#[test]
fn tls_1_2_carries_the_same_tunnel_even_where_its_first_bytes_share_a_record_with_the_reply() {
    let scene = Scene::new(Device::echo(V4));
    let relay = old_relay(&scene.authority);
    let content = Content::new(5, 4 << 20).to_vec();
    let output = output_of(scene.client(relay.address()).arg("--stdio"), &content);
    assert_done(&output);
    let expected = [b"first ".as_slice(), &content].concat();
    assert_eq!(Content::digest_of(&output.stdout), Content::digest_of(&expected));
}

#[test]
fn a_refusal_is_told_as_without_tls() {
    let scene = Scene::new(Device::echo(V4));
    let message = failure(scene.stdio().env("SLUICEGATE_TOKEN", "sg_nobody"));
    assert!(message.contains("407 Proxy Authentication Required: the token is unknown"), "{message}");
}

#[test]
fn a_certificate_of_a_stranger_is_told_with_the_remedy() {
    let scene = Scene::new(Device::echo(V4));
    let relay = scene.relay.address();
    let stranger = Authority::new(scene.folder(), "stranger");
    let message = failure(scene.bare(relay).arg("--ca").arg(&stranger.file).arg("--stdio"));
    assert!(message.contains("not signed by a CA that we trust") && message.contains("--ca"), "{message}");
}

/// What `openssl req -x509` makes: a CA's certificate that a server shows itself.
#[test]
fn a_certificate_that_signed_itself_is_enough_where_it_is_trusted() {
    let scene = Scene::new(Device::echo(V4));
    let (chain, key) = Pair::self_signed(&[NAME]).write(scene.folder(), "own");
    let mut site = Site::new("");
    site.configure(&format!(
        "listen = [{{ address = '127.0.0.1:0', tls = {{ certificates = [{{ chain = '{}', key = '{}' }}] }} }}]",
        chain.display(),
        key.display(),
    ));
    let relay = site.start();
    let client = |name: &str, ca: &Path| {
        let mut command = scene.bare(relay.address());
        command.env("SLUICEGATE_TOKEN", &site.token).args(["--server-name", name, "--stdio", "--ca"]).arg(ca);
        command
    };
    let output = output_of(&mut client(NAME, &chain), b"hello");
    assert_done(&output);
    assert_eq!(output.stdout, b"hello");
    let message = failure(&mut client("other.example", &chain));
    assert!(message.contains(&format!("not for other.example but for {NAME}; ")), "{message}");
    let message = failure(&mut client(NAME, &scene.authority.file));
    assert!(
        message.contains("is a CA's own certificate (CA:TRUE)") || message.contains("not signed by a CA"),
        "{message}"
    );
    assert!(!message.contains("CaUsedAsEndEntity"), "{message}");
}

#[test]
fn a_closed_stdout_is_told_as_that() {
    let scene = Scene::new(Device::listening(V4));
    let mut client = scene.piped();
    let mut device = scene.device.accept();
    drop(client.stdout.take());
    device.write_all(b"for nobody").unwrap();
    let message = end_of(client);
    assert!(message.contains("stdout was closed; the program that reads it has ended"), "{message}");
}

#[test]
fn the_wrong_name_is_told_with_those_that_the_certificate_has() {
    let scene = Scene::new(Device::echo(V4));
    let mut command = scene.bare(scene.relay.address());
    command.arg("--ca").arg(&scene.authority.file).args(["--server-name", "other.example", "--stdio"]);
    let message = failure(&mut command);
    assert!(message.contains(&format!("not for other.example but for {NAME}, ")), "{message}");
    assert!(message.contains("--server-name"), "{message}");
}

#[test]
fn the_relays_own_address_is_the_name_unless_another_is_given() {
    let scene = Scene::new(Device::echo(V4));
    let mut command = scene.bare(scene.relay.address());
    let output = output_of(command.arg("--ca").arg(&scene.authority.file).arg("--stdio"), b"hello");
    assert_done(&output);
    assert_eq!(output.stdout, b"hello");
}

#[test]
fn a_certificate_that_has_expired_is_told() {
    let scene = Scene::new(Device::echo(V4));
    let mut site = Site::new("");
    let (chain, key) = scene.authority.issue_expired(NAME).write(scene.folder(), "old");
    site.configure(&format!(
        "listen = [{{ address = '127.0.0.1:0', tls = {{ certificates = [{{ chain = '{}', key = '{}' }}] }} }}]",
        chain.display(),
        key.display(),
    ));
    let relay = site.start();
    let message = failure(scene.client(relay.address()).arg("--stdio"));
    assert!(message.contains("has expired on 2020-02-01 00:00:00 UTC; renew it"), "{message}");
}

#[test]
fn a_port_without_tls_is_told_and_so_is_one_that_hangs_up() {
    let scene = Scene::new(Device::echo(V4));
    let message = failure(scene.client(scene.relay.addresses()[1]).arg("--stdio"));
    assert!(message.contains("does not speak TLS"), "{message}");
    let mute = Device::serving(V4, |mut socket: TcpStream| {
        let _all = socket.read(&mut [0; 4096]);
    });
    let message = failure(scene.client(mute.address()).arg("--stdio"));
    assert!(message.contains("failed: the connection was closed"), "{message}");
    let mut without = scene.bare(scene.relay.address());
    let arguments: Vec<_> = without.get_args().filter(|one| *one != "--tls").map(ToOwned::to_owned).collect();
    without = Command::new(BINARY);
    without.args(arguments).arg("--stdio").env("SLUICEGATE_TOKEN", &scene.site.token);
    let message = failure(&mut without);
    assert!(message.contains("400 ") && message.contains("--tls"), "{message}");
}

#[test]
fn a_file_without_certificates_and_a_lonely_option_are_told() {
    let scene = Scene::new(Device::echo(V4));
    let empty = scene.folder().join("empty.pem");
    std::fs::write(&empty, "nothing\n").unwrap();
    let mut command = scene.bare(scene.relay.address());
    let message = failure(command.arg("--ca").arg(&empty).arg("--stdio"));
    assert!(message.contains("--ca ") && message.contains("empty.pem: it is not PEM"), "{message}");
    let mut command = Command::new(BINARY);
    command.args(["tunnel", &format!("{DEVICE}:22"), "--relay", "127.0.0.1:1", "--server-name", NAME]);
    let output = output_of(command.arg("--plain"), b"");
    assert_eq!(output.status.code(), Some(2), "it makes no sense with --plain");
}
