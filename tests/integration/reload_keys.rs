//! Keys that a running relay takes over: the new value acts, and open tunnels go on.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::kill;
use nix::unistd::Pid;

use crate::support::{
    Answer, Authority, BINARY, DEVICE, Device, End, Relay, Request, Signal, Site, TlsClient, V4, ask_by_tls,
    connect, receive, wait_for,
};

/// A relay with an open tunnel.
struct Scene {
    site: Site,
    relay: Relay,
    device: Device,
    tunnel: TcpStream,
}

impl Scene {
    fn new(fragment: &str) -> Self {
        let site = Site::new(fragment);
        let (relay, device) = (site.start(), Device::echo(V4));
        let tunnel = site.request(&device).send(relay.address()).opened();
        Self { site, relay, device, tunnel }
    }

    /// Has the relay take over `fragment`.
    #[track_caller]
    fn reload(&mut self, fragment: &str) {
        self.site.configure(fragment);
        let output = self.site.command(&["reload"]).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(String::from_utf8_lossy(&output.stdout), "reloaded\n");
    }

    fn ask(&self) -> Answer {
        self.site.ask(&self.relay, self.device.port())
    }

    #[track_caller]
    fn assert_tunnel_goes_on(&mut self) {
        assert!(echoes(&mut self.tunnel), "the tunnel has ended");
    }
}

fn echoes(tunnel: &mut (impl Read + Write)) -> bool {
    let mut echoed = [0; 4];
    tunnel.write_all(b"ping").and_then(|()| tunnel.read_exact(&mut echoed)).is_ok() && &echoed == b"ping"
}

#[test]
fn limits_act_from_the_reload_on() {
    let mut scene = Scene::new("");
    for limit in ["sessions", "sessions_per_principal", "sessions_per_device"] {
        scene.reload(&format!("limits.{limit} = 1"));
        assert_eq!(scene.ask().status, 429, "{limit}");
        scene.reload(&format!("limits.{limit} = 500"));
        assert!(wait_for(|| (scene.ask().status == 200).then_some(())).is_some(), "{limit}");
    }
    assert_eq!(scene.relay.metric("sluicegate_sessions_max"), Some(500.0));
    let unknown = || Request::to(DEVICE, 1).bearer("sg_nobody").send(scene.relay.address()).status;
    assert_eq!([unknown(), unknown()], [407, 407]);
    scene.reload("limits.unknown_tokens_per_minute = 1");
    let unknown = || Request::to(DEVICE, 1).bearer("sg_nobody").send(scene.relay.address()).status;
    assert_eq!(unknown(), 429);
    scene.reload("limits.heads_per_network = 1");
    let begun = [(); 2].map(|()| {
        let mut client = connect(scene.relay.address());
        client.write_all(b"CONNECT ").unwrap();
        client.set_nonblocking(true).unwrap();
        client
    });
    let gives_way = || begun.iter().any(|client| client.peek(&mut [0]).is_ok()).then_some(());
    assert!(wait_for(gives_way).is_some(), "one of them gets 429");
    scene.assert_tunnel_goes_on();
}

#[test]
fn timeouts_act_on_new_clients_and_on_open_tunnels() {
    let mut scene = Scene::new("");
    scene.reload("timeouts.head = '200ms'");
    assert_eq!(Answer::to_bytes(scene.relay.address(), b"CONNECT ").status, 408);
    scene.assert_tunnel_goes_on();
    scene.reload("timeouts.half_closed = '300ms'");
    let device = Device::listening(V4);
    let mut client = scene.site.ask(&scene.relay, device.port()).opened();
    let mut device = device.accept();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(receive(&mut device).1, End::Fin);
    assert_eq!(receive(&mut client).1, End::Reset);
    scene.reload("timeouts.idle = '300ms'");
    assert_eq!(receive(&mut scene.tunnel).1, End::Reset);
    for cause in ["half-closed-timeout", "idle-timeout"] {
        assert!(scene.site.audit().has(|event| event["cause"] == cause), "{cause}");
    }
}

#[test]
fn a_drain_and_a_stop_take_the_times_of_the_reload() {
    let mut scene = Scene::new("timeouts.drain = '1h'");
    scene.reload("timeouts.lame_duck = '1h'");
    assert_eq!(scene.site.cli(&["drain"])["lame_duck"], "1h");
    assert_eq!(scene.ask().status, 200, "it still serves new clients");
    scene.site.cli(&["drain", "--cancel"]);
    scene.reload("timeouts = { lame_duck = '0s', drain = '300ms' }");
    scene.relay.signal(Signal::SIGTERM);
    assert_eq!(receive(&mut scene.tunnel).1, End::Reset);
    assert_eq!(scene.relay.wait().and_then(|status| status.code()), Some(0));
}

#[test]
fn new_tunnels_move_their_bytes_by_the_new_path() {
    let mut scene = Scene::new("engine.forwarding = 'copy'");
    for path in ["splice", "copy"] {
        scene.reload(&format!("engine.forwarding = '{path}'"));
        let mut new = scene.ask().opened();
        assert!(echoes(&mut new));
        let by_path = || {
            let sessions = scene.site.cli(&["sessions"]).as_array().unwrap().clone();
            sessions.iter().any(|each| each["path_up"] == path).then_some(())
        };
        assert!(wait_for(by_path).is_some(), "{path}: {:?}", scene.site.cli(&["sessions"]));
    }
    scene.assert_tunnel_goes_on();
}

#[test]
fn threads_spin_once_they_are_to() {
    let mut scene = Scene::new("engine = { threads = 1, busy_poll = '0s' }");
    let spins = |scene: &Scene| {
        let metrics = ["sluicegate_engine_spins_hit_total", "sluicegate_engine_spins_missed_total"];
        metrics.map(|name| scene.relay.metric(name).unwrap()).iter().sum::<f64>()
    };
    (0..50).for_each(|_| scene.assert_tunnel_goes_on());
    assert_eq!(spins(&scene), 0.0);
    scene.reload("engine.busy_poll = '10ms'");
    (0..50).for_each(|_| scene.assert_tunnel_goes_on());
    assert!(wait_for(|| (spins(&scene) > 0.0).then_some(())).is_some());
}

#[test]
fn devices_are_dialled_by_the_new_interface() {
    let mut scene = Scene::new("");
    scene.reload("vpn.interface = 'nowhere0'");
    let refused = scene.ask();
    assert_eq!((refused.status, refused.slug().as_deref()), (502, Some("device-unreachable")));
    scene.assert_tunnel_goes_on();
    scene.reload("vpn.interface = 'lo'");
    assert_eq!(scene.ask().status, 200);
}

#[test]
fn the_store_is_read_on_by_the_new_time() {
    let mut scene = Scene::new("authz.refresh = '1h'");
    let issue =
        |scene: &Scene| scene.site.cli(&["token", "issue", "alice"])["token"].as_str().unwrap().to_owned();
    let status = |scene: &Scene, token: &str| {
        Request::to(DEVICE, scene.device.port()).bearer(token).send(scene.relay.address()).status
    };
    scene.reload("authz.refresh = '20ms'");
    for _ in 0..3 {
        let token = issue(&scene);
        assert!(wait_for(|| (status(&scene, &token) == 200).then_some(())).is_some());
    }
}

/// The time until the kernel probes the client of the relay's connection with `client`, in 1/100 s.
fn keepalive(relay: SocketAddr, client: SocketAddr) -> Option<u64> {
    let sockets = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let ends = [relay, client].map(|address| format!(":{:04X}", address.port()));
    let fields = sockets.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let timer = fields.filter(|fields| fields[1].ends_with(&ends[0]) && fields[2].ends_with(&ends[1]));
    let timer = timer.map(|fields| fields[5].to_owned()).next()?;
    u64::from_str_radix(timer.strip_prefix("02:")?, 16).ok()
}

#[test]
fn a_new_keepalive_is_that_of_new_connections() {
    let mut scene = Scene::new("timeouts.keepalive = '1h'");
    let relay = scene.relay.address();
    let until = |tunnel: &TcpStream| wait_for(|| keepalive(relay, tunnel.local_addr().unwrap())).unwrap();
    assert!(until(&scene.tunnel) > 300_000);
    scene.reload("timeouts.keepalive = '20s'");
    let new = scene.ask().opened();
    let left = until(&new);
    assert!(left <= 2_000, "{left}");
    scene.assert_tunnel_goes_on();
}

#[test]
fn networks_that_are_allowed_no_more_are_not_dialled_any_more() {
    let mut scene = Scene::new("");
    scene.reload("vpn.allow = ['10.0.0.0/8']");
    let refused = scene.ask();
    assert_eq!((refused.status, refused.slug().as_deref()), (502, Some("device-address")));
    scene.assert_tunnel_goes_on();
    scene.reload("vpn.allow = ['127.0.0.0/8']");
    assert_eq!(scene.ask().status, 200);
}

#[test]
fn a_listener_gets_tls_and_a_balancer_and_loses_them_again() {
    let mut scene = Scene::new("");
    let authority = Authority::new(scene.site.folder(), "ca");
    let (chain, key) = authority.issue("relay", &["relay"]).write(scene.site.folder(), "relay");
    let files = format!("chain = '{}', key = '{}'", chain.display(), key.display());
    let listen =
        format!("listen = [{{ address = '127.0.0.1:0', tls = {{ certificates = [{{ {files} }}] }} }}]");
    scene.reload(&listen);
    let mut stream = TlsClient::trusting(&authority).connect(scene.relay.address(), "relay").unwrap();
    stream.write_all(&scene.site.request(&scene.device).bytes()).unwrap();
    let mut reply = [0; 12];
    stream.read_exact(&mut reply).unwrap();
    assert_eq!(&reply, b"HTTP/1.1 200");
    assert_eq!(scene.site.cli(&["status"])["node"]["listeners"][0]["tls"], true);

    scene.reload("listen = [{ address = '127.0.0.1:0', proxy_from = ['127.0.0.0/8'] }]");
    assert_eq!(scene.ask().status, 400, "the balancer's header is missing");
    let proxied = [b"PROXY UNKNOWN\r\n".to_vec(), scene.site.request(&scene.device).bytes()].concat();
    assert_eq!(Answer::to_bytes(scene.relay.address(), &proxied).status, 200);

    scene.reload("listen = [{ address = '127.0.0.1:0', suffixes = ['example'] }]");
    assert_eq!(scene.ask().status, 400, "`balena` is no suffix any more");
    scene.assert_tunnel_goes_on();
}

#[test]
fn a_listener_begins_to_want_certificates_of_clients() {
    let mut scene = Scene::new("");
    let authority = Authority::new(scene.site.folder(), "ca");
    let (chain, key) = authority.issue("relay", &["relay"]).write(scene.site.folder(), "relay");
    let files = format!("certificates = [{{ chain = '{}', key = '{}' }}]", chain.display(), key.display());
    let listen = |more: &str| format!("listen = [{{ address = '127.0.0.1:0', tls = {{ {files}{more} }} }}]");
    let request = scene.site.request(&scene.device).bytes();
    let opens = |scene: &Scene, client: &mut TlsClient| {
        let stream = client.connect(scene.relay.address(), "relay");
        stream
            .and_then(|mut stream| ask_by_tls(&mut stream, &request))
            .is_ok_and(|head| head.contains(" 200 "))
    };
    let anybody = || TlsClient::trusting(&authority);
    scene.reload(&listen(""));
    assert!(opens(&scene, &mut anybody()) && opens(&scene, &mut anybody().only(&rustls::version::TLS12)));
    scene.reload(&listen(", min_version = '1.3'"));
    assert!(opens(&scene, &mut anybody()) && !opens(&scene, &mut anybody().only(&rustls::version::TLS12)));
    let ca = scene.site.folder().join("ca.pem");
    let wanted = format!(", client_certificates = 'required', client_ca = '{}'", ca.display());
    scene.reload(&listen(&wanted));
    assert!(!opens(&scene, &mut anybody()));
    assert!(opens(&scene, &mut anybody().showing(&authority.issue("laptop", &["laptop"]))));
    scene.assert_tunnel_goes_on();
}

#[test]
fn a_new_admin_token_counts_and_the_old_one_does_not() {
    let mut scene = Scene::new("");
    let file = scene.site.folder().join("admin-token");
    let write = |token: &str| {
        std::fs::write(&file, token).unwrap();
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
    };
    let (old, new) = ("a".repeat(32), "b".repeat(32));
    write(&old);
    scene.reload(&format!("admin.token_file = '{}'", file.display()));
    let status = |relay: &Relay, token: &str| {
        let mut socket = connect(relay.admin());
        write!(socket, "GET /sessions HTTP/1.1\r\nHost: admin\r\nAuthorization: Bearer {token}\r\n\r\n")
            .unwrap();
        Answer::read(socket).status
    };
    assert_eq!([status(&scene.relay, &old), status(&scene.relay, &new)], [200, 401]);
    write(&new);
    scene.reload("");
    assert_eq!([status(&scene.relay, &old), status(&scene.relay, &new)], [401, 200]);
}

#[test]
fn the_audit_log_goes_to_another_file() {
    let mut scene = Scene::new("");
    let file = scene.site.folder().join("other.jsonl");
    scene.reload(&format!("audit = {{ path = '{}', refusals_per_source = 2 }}", file.display()));
    for _ in 0..4 {
        assert_eq!(Request::to(DEVICE, 1).bearer("sg_nobody").send(scene.relay.address()).status, 407);
    }
    scene.tunnel.shutdown(std::net::Shutdown::Both).unwrap();
    let other = crate::support::Audit::new(file);
    let ended = other.wait_for(|event| event["event"] == "session-end");
    assert_eq!(ended["cause"], "closed");
    let refusals = other.events().into_iter().filter(|event| event["event"] == "refusal").count();
    assert_eq!(refusals, 2, "the others are summed up");
    assert!(!scene.site.audit().events().iter().any(|event| event["event"] == "session-end"));
}

#[test]
fn the_log_changes_its_format() {
    let mut scene = Scene::new("");
    scene.reload("log.format = 'json'");
    let last = wait_for(|| {
        let log = scene.relay.log();
        let line = log.lines().find(|line| line.starts_with('{') && line.contains("reloaded"))?;
        serde_json::from_str::<serde_json::Value>(line).ok()
    });
    assert_eq!(last.expect("the line is JSON")["level"], "INFO");
    scene.assert_tunnel_goes_on();
}

#[test]
fn the_probe_begins_and_stops() {
    let mut scene = Scene::new("");
    scene.reload("probe.interval = '1s'");
    let succeeded = |site: &Site| site.cli(&["status"])["probe"]["local"]["succeeded"].as_u64().unwrap();
    assert!(wait_for(|| (succeeded(&scene.site) > 0).then_some(())).is_some());
    scene.reload("probe.interval = '0s'");
    let before = succeeded(&scene.site);
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(succeeded(&scene.site), before);
}

#[test]
fn the_guard_is_turned_on_and_max_stale_counts() {
    let mut scene = Scene::new("authz = { reconcile = '100ms', guard.enabled = false }");
    scene.reload("authz.guard.bounds.devices.max = 1");
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(scene.relay.metric("sluicegate_guard_held"), Some(0.0));
    scene.reload("authz.guard.enabled = true");
    assert!(scene.relay.metric_becomes("sluicegate_guard_held", |held| held == 1.0));
    scene.reload("authz.max_stale = '10s'");
    let status = scene.site.cli(&["status"]);
    let at = |value: &serde_json::Value| value.as_i64().unwrap();
    let left = at(&status["decides_until"]) - at(&status["source"]["confirmed_at"]);
    assert!((0..=11_000).contains(&left), "{status}");
    scene.assert_tunnel_goes_on();
}

/// A relay with a certificate that can be replaced.
fn with_tls() -> (TlsScene, Authority) {
    let mut site = Site::new("");
    let authority = Authority::new(site.folder(), "ca");
    let (chain, key) = authority.issue("relay", &["relay"]).write(site.folder(), "relay");
    let files = format!("chain = '{}', key = '{}'", chain.display(), key.display());
    site.configure(&format!(
        "listen = [{{ address = '127.0.0.1:0', tls = {{ certificates = [{{ {files} }}] }} }}]"
    ));
    let relay = site.start();
    (TlsScene { site, relay }, authority)
}

struct TlsScene {
    site: Site,
    relay: Relay,
}

impl TlsScene {
    /// Puts another authority's certificate in the place of the one that is shown. Returns whether it is shown after
    /// `reload`.
    fn renews(&self, reload: impl FnOnce(&Self)) -> bool {
        let other = Authority::new(self.site.folder(), "other");
        other.issue("relay", &["relay"]).write(self.site.folder(), "relay");
        reload(self);
        let mut client = TlsClient::trusting(&other);
        wait_for(|| client.connect(self.relay.address(), "relay").ok()).is_some()
    }
}

#[test]
fn certificates_are_renewed_whatever_else_is_pending() {
    let (mut scene, _authority) = with_tls();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    // A new process refuses it.
    scene.site.configure(&format!("admin.health_address = '{}'", taken.local_addr().unwrap()));
    assert!(scene.renews(|scene| {
        let output = scene.site.command(&["reload"]).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
    }));
}

#[test]
fn certificates_are_renewed_although_the_file_is_broken() {
    let (scene, _authority) = with_tls();
    std::fs::write(scene.site.config_path(), "listen = [[[\n").unwrap();
    let renewed = scene.renews(|scene| {
        let mut reload = scene.site.command(&["reload"]);
        let output = reload.env("MAINPID", scene.relay.pid().to_string()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(&format!("{}:1:", scene.site.config_path().display())), "{said}");
        assert!(said.contains("SIGHUP was sent instead"), "{said}");
    });
    assert!(renewed);
    assert!(scene.relay.logs("reload refused"));
}

#[test]
fn a_certificate_that_cannot_be_used_keeps_no_other_from_being_renewed() {
    let (mut scene, authority) = with_tls();
    drop(scene.relay);
    let (chain, key) = authority.issue("second", &["second"]).write(scene.site.folder(), "second");
    let listen = |name: &str| {
        let folder = scene.site.folder().display();
        let files = format!("chain = '{folder}/{name}.crt', key = '{folder}/{name}.key'");
        format!("{{ address = '127.0.0.1:0', tls = {{ certificates = [{{ {files} }}] }} }}")
    };
    assert!(chain.ends_with("second.crt") && key.ends_with("second.key"));
    let listen = format!("listen = [{}, {}]", listen("relay"), listen("second"));
    scene.site.configure(&listen);
    scene.relay = scene.site.start();
    std::fs::write(key, "no key").unwrap();
    assert!(scene.renews(|scene| scene.relay.signal(Signal::SIGHUP)));
    assert!(scene.relay.logs("certificates stay as they are: listen.1.tls: "), "{}", scene.relay.log());
    assert!(TlsClient::trusting(&authority).connect(scene.relay.addresses()[1], "second").is_ok());
}

#[test]
fn a_relay_that_is_not_there_cannot_reload() {
    let site = Site::new("");
    let output = site.command(&["reload"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("no relay can be asked at"), "{said}");
}

/// A relay whose stderr is a stream of the journal, as systemd makes one.
struct JournaledRelay {
    process: crate::support::Running,
    log: std::path::PathBuf,
}

impl JournaledRelay {
    fn start(site: &Site) -> Self {
        let log = site.folder().join("journal");
        let file = std::fs::File::create(&log).unwrap();
        let metadata = file.metadata().unwrap();
        let mut command = site.command(&["run"]);
        command.env("JOURNAL_STREAM", format!("{}:{}", metadata.dev(), metadata.ino()));
        let process = crate::support::Running::start(command.stdout(Stdio::null()).stderr(file));
        Self { process, log }
    }

    /// The first three bytes of the line that has `text`.
    fn prefix(&self, text: &str) -> Option<String> {
        wait_for(|| {
            let log = std::fs::read_to_string(&self.log).unwrap();
            Some(log.lines().find(|line| line.contains(text))?[..3].to_owned())
        })
    }
}

#[test]
fn lines_in_the_journal_have_their_priorities() {
    for format in ["text", "json"] {
        let mut site = Site::new(&format!("log.format = '{format}'"));
        let relay = JournaledRelay::start(&site);
        assert_eq!(relay.prefix("listening").as_deref(), Some("<6>"), "{format}");
        site.configure("limits.sessoins = 1");
        kill(Pid::from_raw(relay.process.0.id() as i32), Signal::SIGHUP).unwrap();
        assert_eq!(relay.prefix("reload refused").as_deref(), Some("<3>"), "{format}");
    }
    let site = Site::new("admin.token_file = '/nowhere'");
    let relay = JournaledRelay::start(&site);
    assert_eq!(relay.prefix("/nowhere").as_deref(), Some("<3>"), "a relay that does not start says why");
}

#[test]
fn reload_takes_no_arguments() {
    let output = Command::new(BINARY).args(["reload", "now"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
}
