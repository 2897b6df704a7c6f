//! A listener that speaks TLS: who gets in and how, that a tunnel through it is the same tunnel, and how its
//! certificates are replaced.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::support::{
    Authority, BINARY, Content, DEVICE, Device, End, Pair, Relay, Request, Signal, Site, TlsClient,
    TlsStream, V4, ask_by_tls, assert_done, connect, exchange_all, kernel_has_tls, output_of, receive,
    tools_or_skip, wait_for,
};
use rustls::version;

const NAME: &str = "relay.example";

/// A relay whose clients speak TLS, and one of its devices.
struct Scene {
    site: Site,
    relay: Relay,
    device: Device,
    authority: Authority,
    client: TlsClient,
}

impl Scene {
    /// Further keys of the listener are `more`, of `listen.tls` are `tls`; `CA` stands for the file of whom
    /// clients' certificates are signed by.
    fn with(device: Device, more: &str, tls: &str) -> Self {
        let folder = tempfile::tempdir().unwrap().keep();
        let authority = Authority::new(&folder, "root");
        let tls = tls.replace("CA", &authority.file.display().to_string());
        authority.issue(NAME, &[NAME]).write(&folder, "one");
        authority.issue("two", &["two.example", "*.two.example"]).write(&folder, "two");
        let at = folder.display();
        let site = Site::new(&format!(
            "listen = [{{ address = '127.0.0.1:0', {more} tls = {{ {tls} certificates = [
             {{ chain = '{at}/one.crt', key = '{at}/one.key' }},
             {{ chain = '{at}/two.crt', key = '{at}/two.key' }} ] }} }}]"
        ));
        let relay = site.start();
        let client = TlsClient::trusting(&authority);
        Self { site, relay, device, authority, client }
    }

    fn new(device: Device) -> Self {
        Self::with(device, "", "")
    }

    /// Starts the relay again, with `fragment` in its configuration as well.
    fn configured(mut self, fragment: &str) -> Self {
        self.relay.signal(Signal::SIGTERM);
        self.relay.wait().unwrap();
        self.site.configure(fragment);
        self.relay = self.site.start();
        self
    }

    fn folder(&self) -> &Path {
        self.authority.file.parent().unwrap()
    }

    fn connect(&mut self) -> TlsStream {
        self.client.connect(self.relay.address(), NAME).unwrap()
    }

    fn tunnel(&mut self) -> TlsStream {
        let request = self.site.request(&self.device).bytes();
        let mut stream = self.connect();
        let head = ask_by_tls(&mut stream, &request).unwrap();
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        stream
    }

    fn outcomes(&self, outcome: &str) -> f64 {
        self.relay.metric(&format!("sluicegate_tls_handshakes_total{{outcome=\"{outcome}\"}}")).unwrap_or(0.0)
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        std::fs::remove_dir_all(self.folder()).unwrap();
    }
}

fn echoes(tunnel: &mut TlsStream) -> bool {
    let mut back = [0; 4];
    tunnel.write_all(b"ping").unwrap();
    tunnel.read_exact(&mut back).unwrap();
    back == *b"ping"
}

#[test]
fn a_tunnel_opens_by_either_version_and_its_session_says_how_it_moves() {
    let mut scene = Scene::new(Device::echo(V4));
    for version in [&version::TLS12, &version::TLS13] {
        scene.client = TlsClient::trusting(&scene.authority).only(version);
        let mut tunnel = scene.tunnel();
        assert!(echoes(&mut tunnel));
        let sessions = scene.site.cli(&["sessions"]);
        let path = if kernel_has_tls() { "copy" } else { "tls" };
        assert_eq!((&sessions[0]["path_up"], &sessions[0]["bytes_up"]), (&path.into(), &4.into()));
        tunnel.conn.send_close_notify();
        tunnel.conn.complete_io(&mut tunnel.sock).unwrap();
        assert_eq!(tunnel.read(&mut [0; 8]).unwrap(), 0, "the device's own end, told by TLS");
        assert!(scene.site.audit().has(|event| event["cause"] == "closed"));
    }
    assert_eq!(scene.outcomes("full"), 2.0);
}

#[test]
fn megabytes_go_both_ways_at_once_whole_and_in_order() {
    let mut scene = Scene::new(Device::echo(V4));
    let tunnel = scene.tunnel();
    let (sent, back) = exchange_all(tunnel, 64 << 20);
    assert_eq!(sent, back);
    let sessions = scene.site.audit().wait_for(|event| event["event"] == "session-end");
    assert_eq!((&sessions["bytes_up"], &sessions["bytes_down"]), (&(64 << 20).into(), &(64 << 20).into()));
}

#[test]
fn a_slow_client_stops_the_device_and_loses_nothing() {
    let sent = Content::new(7, 48 << 20);
    let expected = sent.digest();
    let device = Device::serving(V4, move |mut stream| {
        let _client_gone = sent.send(&mut stream);
        let _client_gone = stream.shutdown(Shutdown::Write);
    });
    let mut scene = Scene::new(device);
    let mut tunnel = scene.tunnel();
    // Long enough for all buffers on the way to fill.
    std::thread::sleep(Duration::from_millis(300));
    let before = scene.relay.rss_bytes();
    std::thread::sleep(Duration::from_millis(200));
    assert!(scene.relay.rss_bytes() < before + (1 << 20), "what is held does not grow");
    assert_eq!(receive(&mut tunnel), (expected, End::Fin));
}

#[test]
fn one_direction_ends_and_the_other_goes_on() {
    let device = Device::serving(V4, |mut stream| {
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        all.reverse();
        stream.write_all(&all).unwrap();
    });
    let mut scene = Scene::new(device);
    let mut tunnel = scene.tunnel();
    tunnel.write_all(b"abc").unwrap();
    tunnel.conn.send_close_notify();
    tunnel.flush().unwrap();
    let mut back = Vec::new();
    tunnel.read_to_end(&mut back).unwrap();
    assert_eq!(back, b"cba");
}

#[test]
fn a_client_that_is_cut_off_is_told_from_one_that_has_ended() {
    let device = Device::listening(V4);
    let mut scene = Scene::new(device);
    let mut tunnel = scene.tunnel();
    tunnel.write_all(b"and then").unwrap();
    let mut at_device = scene.device.accept();
    at_device.read_exact(&mut [0; 8]).unwrap();
    tunnel.sock.shutdown(Shutdown::Write).unwrap();
    assert_eq!(at_device.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert!(scene.site.audit().has(|event| event["cause"] == "client-truncated"));
}

#[test]
fn a_record_that_was_changed_on_its_way_ends_the_tunnel() {
    let mut scene = Scene::new(Device::listening(V4));
    let mut tunnel = scene.tunnel();
    let mut at_device = scene.device.accept();
    tunnel
        .sock
        .write_all(&[23, 3, 3, 0, 20, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0])
        .unwrap();
    assert_eq!(at_device.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert!(scene.site.audit().has(|event| event["cause"] == "client-tls"));
}

#[test]
fn a_refusal_is_read_to_its_end() {
    let mut scene = Scene::new(Device::echo(V4));
    for (request, status) in [
        (Request::to(DEVICE, 80).bytes(), "407"),
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), "405"),
        (b"nonsense\r\n\r\n".to_vec(), "400"),
    ] {
        let mut stream = scene.connect();
        let head = ask_by_tls(&mut stream, &request).unwrap();
        assert!(head.contains(&format!(" {status} ")), "{head}");
        let mut body = String::new();
        stream.read_to_string(&mut body).expect("the end is told, too");
        assert!(
            head.contains(&format!("Content-Length: {}\r\n", body.len())) && body.len() > 20,
            "{head}{body}"
        );
    }
}

#[test]
fn bytes_in_one_record_with_the_head_reach_the_device() {
    let mut scene = Scene::new(Device::echo(V4));
    let request = scene.site.request(&scene.device).early(b"early").bytes();
    let mut stream = scene.connect();
    ask_by_tls(&mut stream, &request).unwrap();
    let mut back = [0; 5];
    stream.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"early");
}

#[test]
fn the_head_of_a_reply_is_one_record_and_payload_another() {
    let device = Device::serving(V4, |mut stream| {
        stream.write_all(b"SSH-2.0-first\r\n").unwrap();
        let _end = stream.read(&mut [0]);
    });
    let mut scene = Scene::new(device);
    let request = scene.site.request(&scene.device).bytes();
    let mut stream = scene.connect();
    stream.write_all(&request).unwrap();
    let (mut records, mut raw, mut part) = (Vec::new(), Vec::new(), [0; 4096]);
    while records.len() < 2 {
        let count = stream.sock.read(&mut part).unwrap();
        raw.extend_from_slice(&part[..count]);
        // One by one, since the library does not keep apart what came together.
        while let Some(&[high, low]) = raw.get(3..5).and_then(|length| length.first_chunk()) {
            let len = 5 + usize::from(u16::from_be_bytes([high, low]));
            if raw.len() < len {
                break;
            }
            let record: Vec<u8> = raw.drain(..len).collect();
            stream.conn.read_tls(&mut record.as_slice()).unwrap();
            stream.conn.process_new_packets().unwrap();
            if let Ok(count @ 1..) = stream.conn.reader().read(&mut part) {
                records.push(String::from_utf8(part[..count].to_vec()).unwrap());
            }
        }
    }
    assert!(records[0].starts_with("HTTP/1.1 200 ") && records[0].ends_with("\r\n\r\n"), "{records:?}");
    assert_eq!(records[1], "SSH-2.0-first\r\n");
}

#[test]
fn who_speaks_no_tls_is_told_so_in_words() {
    let scene = Scene::new(Device::echo(V4));
    let answer = scene.site.request(&scene.device).send(scene.relay.address());
    assert_eq!((answer.status, answer.slug().as_deref()), (400, Some("malformed")));
    assert!(scene.site.audit().has(|event| event["cause"] == "not-tls"));
    assert!(!scene.device.was_connected_to());
}

#[test]
fn a_client_is_shown_the_certificate_of_the_name_that_it_wants() {
    let mut scene = Scene::new(Device::echo(V4));
    let address = scene.relay.address();
    for name in [NAME, "two.example", "a.two.example"] {
        scene.client.connect(address, name).unwrap();
    }
    let error = scene.client.connect(address, "three.example").unwrap_err();
    assert!(error.to_string().contains("not valid for name"), "{error}");
    assert!(wait_for(|| (scene.outcomes("failed") == 1.0).then_some(())).is_some());
    assert!(scene.site.audit().has(|event| event["cause"] == "tls-handshake"));
}

#[test]
fn a_handshake_that_does_not_come_to_its_end_is_given_up() {
    let mut scene = Scene::new(Device::echo(V4)).configured("timeouts.head = '300ms'");
    let mut stalled = connect(scene.relay.address());
    stalled.write_all(&[22, 3, 1, 1, 0]).unwrap();
    assert_eq!(stalled.read(&mut [0]).unwrap(), 0);
    assert!(scene.site.audit().has(|event| event["cause"] == "tls-timeout"));
    let mut endless = connect(scene.relay.address());
    endless.write_all(&[22; 70_000]).ok();
    assert!(matches!(endless.read(&mut [0; 64]), Ok(_) | Err(_)));
    assert!(
        wait_for(|| (scene.outcomes("failed") + scene.outcomes("too-large") == 1.0).then_some(())).is_some()
    );
    assert!(echoes(&mut scene.tunnel()), "nobody else has noticed");
}

#[test]
fn a_session_is_resumed() {
    let mut scene = Scene::new(Device::echo(V4));
    // The tickets come behind the handshake.
    assert!(echoes(&mut scene.tunnel()));
    assert!(echoes(&mut scene.tunnel()));
    assert_eq!((scene.outcomes("full"), scene.outcomes("resumed")), (1.0, 1.0));
}

#[test]
fn certificates_of_clients_are_wanted_or_asked_for_as_configured() {
    let required = Scene::with(Device::echo(V4), "", "client_ca = 'CA', client_certificates = 'required',");
    let optional = Scene::with(Device::echo(V4), "", "client_ca = 'CA', client_certificates = 'optional',");
    for (scene, without_one) in [(required, false), (optional, true)] {
        let good = scene.authority.issue("somebody", &[]);
        let stranger = Authority::new(scene.folder(), "stranger").issue("nobody", &[]);
        let opens = |own: Option<&Pair>| {
            let client = TlsClient::trusting(&scene.authority);
            let mut client = if let Some(own) = own { client.showing(own) } else { client };
            let request = scene.site.request(&scene.device).bytes();
            let opened = client
                .connect(scene.relay.address(), NAME)
                .and_then(|mut stream| ask_by_tls(&mut stream, &request));
            opened.is_ok_and(|head| head.contains(" 200 "))
        };
        assert!(opens(Some(&good)));
        assert!(!opens(Some(&stranger)));
        assert_eq!(opens(None), without_one);
    }
}

#[test]
fn a_load_balancer_tells_the_client_before_the_handshake() {
    let mut scene = Scene::with(Device::echo(V4), "proxy_from = ['127.0.0.0/8'],", "");
    let mut stream = connect(scene.relay.address());
    stream.write_all(b"PROXY TCP4 192.0.2.7 203.0.113.1 51000 443\r\n").unwrap();
    let mut stream = scene.client.connect_over(stream, NAME).unwrap();
    let request = scene.site.request(&scene.device).bytes();
    assert!(ask_by_tls(&mut stream, &request).unwrap().contains(" 200 "));
    assert_eq!(scene.site.cli(&["sessions"])[0]["client"], "192.0.2.7:51000");
}

#[test]
fn new_certificates_are_shown_after_a_reload_and_a_bad_one_changes_nothing() {
    let mut scene = Scene::new(Device::echo(V4));
    let mut before = scene.tunnel();
    let other = Authority::new(scene.folder(), "other");
    std::fs::write(scene.folder().join("one.key"), "no key at all").unwrap();
    scene.relay.signal(Signal::SIGHUP);
    assert!(scene.relay.logs("reload refused, and nothing but certificates has changed"));
    assert!(scene.relay.logs("one.key: it is not PEM"));
    assert!(echoes(&mut scene.tunnel()));

    other.issue(NAME, &[NAME]).write(scene.folder(), "one");
    scene.relay.signal(Signal::SIGHUP);
    assert!(scene.relay.logs("reloaded"));
    let error = scene.client.connect(scene.relay.address(), NAME).unwrap_err();
    assert!(error.to_string().contains("UnknownIssuer"), "{error}");
    scene.client = TlsClient::trusting(&other);
    assert!(echoes(&mut scene.tunnel()));
    assert!(echoes(&mut before), "a running tunnel goes on");
}

#[test]
fn files_that_cannot_be_used_are_told_with_their_place() {
    let scene = Scene::new(Device::echo(V4));
    let at = scene.folder();
    for (certificates, message) in [
        ("[]", "`certificates` is empty"),
        ("[{ chain = 'DIR/none.crt', key = 'DIR/one.key' }]", "none.crt: it cannot be read: No such file"),
        (
            "[{ chain = 'DIR/one.key', key = 'DIR/one.key' }]",
            "one.key: there is no certificate in it, but PRIVATE KEY",
        ),
        ("[{ chain = 'DIR/one.crt', key = 'DIR/two.key' }]", "two.key: its key does not belong"),
    ] {
        let certificates = certificates.replace("DIR", &at.display().to_string());
        let file = at.join("wrong.toml");
        let listen =
            format!("[[listen]]\naddress = '127.0.0.1:0'\ntls = {{ certificates = {certificates} }}\n");
        std::fs::write(&file, format!("vpn.allow = []\n{listen}")).unwrap();
        let output = Command::new(BINARY).arg("check").arg("--config").arg(&file).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(&format!("{}:4:", file.display())) && said.contains(message), "{said}");
    }
}

#[test]
fn what_openssl_makes_and_no_client_takes_is_told_by_its_cause() {
    if !tools_or_skip("what_openssl_makes_and_no_client_takes_is_told_by_its_cause", &["openssl", "sh"]) {
        return;
    }
    let scene = Scene::new(Device::echo(V4));
    let script = "openssl pkey -in one.key -aes128 -passout pass:secret -out locked.key
        head -c 300 one.crt >cut.crt
        openssl req -new -key one.key -subj /CN=relay.example -out one.csr
        openssl x509 -req -in one.csr -signkey one.key -days 9 -out v1.crt
        cat root.pem one.crt >turned.crt";
    assert_done(&output_of(Command::new("sh").args(["-ec", script]).current_dir(scene.folder()), b""));
    for (chain, key, message) in [
        (
            "one.crt",
            "locked.key",
            "locked.key: its private key has a password, which nobody is there to type",
        ),
        ("cut.crt", "one.key", "cut.crt: it ends in the middle of its CERTIFICATE"),
        ("v1.crt", "one.key", "v1.crt: the certificate is of X.509 version 1"),
        (
            "turned.crt",
            "one.key",
            "turned.crt: the chain is in the wrong order: the key belongs to certificate 2",
        ),
    ] {
        let file = scene.folder().join("wrong.toml");
        let at = scene.folder().display();
        let tls = format!("{{ certificates = [{{ chain = '{at}/{chain}', key = '{at}/{key}' }}] }}");
        let text = format!("vpn.allow = ['10.0.0.1']\n[[listen]]\naddress = '127.0.0.1:0'\ntls = {tls}\n");
        std::fs::write(&file, text).unwrap();
        let output = Command::new(BINARY).arg("check").arg("--config").arg(&file).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(message) && said.contains("; "), "`{message}` is not in: {said}");
    }
}

#[test]
fn a_full_node_tells_so_by_tls() {
    let mut scene = Scene::new(Device::echo(V4)).configured("limits.sessions = 1");
    let mut only = scene.tunnel();
    let mut second = scene.connect();
    let head = ask_by_tls(&mut second, b"").unwrap();
    assert!(head.contains(" 429 "), "{head}");
    assert!(echoes(&mut only));
}

#[test]
fn the_probe_speaks_tls_to_its_own_listener() {
    let scene = Scene::new(Device::echo(V4)).configured("probe.interval = '1s'");
    assert!(scene.relay.metric_becomes("sluicegate_probe_success", |value| value == 1.0));
}

#[test]
fn curl_and_openssl_come_by_tls() {
    if !tools_or_skip("curl_and_openssl_come_by_tls", &["curl", "openssl"]) {
        return;
    }
    let scene = Scene::new(Device::http(b"a page\n"));
    let address = scene.relay.address();
    let resolve = format!("{NAME}:{}:127.0.0.1", address.port());
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--show-error", "--max-time", "60", "--noproxy", "", "--proxytunnel"])
        .args(["--resolve", &resolve, "--proxy", &format!("https://{NAME}:{}", address.port())])
        .arg("--proxy-cacert")
        .arg(&scene.authority.file)
        .args(["--proxy-header", &format!("Proxy-Authorization: Bearer {}", scene.site.token)])
        .arg(format!("http://{DEVICE}.balena:{}/", scene.device.port()));
    let output = output_of(&mut curl, b"");
    assert_done(&output);
    assert_eq!(output.stdout, b"a page\n");

    for version in ["-tls1_2", "-tls1_3"] {
        let mut openssl = Command::new("openssl");
        openssl
            .args([
                "s_client",
                "-quiet",
                "-verify_return_error",
                "-servername",
                NAME,
                "-verify_hostname",
                NAME,
            ])
            .args([version, "-alpn", "http/1.1", "-connect", &address.to_string(), "-CAfile"])
            .arg(&scene.authority.file);
        let output = output_of(&mut openssl, b"GET / HTTP/1.0\r\n\r\n");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            text.starts_with("HTTP/1.0 405 "),
            "{version}: {text} {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}
