//! Under systemd: what the units are worth, listeners by activation, and what the service manager is told.

use std::net::SocketAddr;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use crate::support::{
    Device, Relay, Request, Signal, Site, V4, free_address, ipv6_or_skip, tools_or_skip, wait_for,
};

/// Largest exposure on the scale of `systemd-analyze security`: 0 is nothing, 10 everything.
const EXPOSURE_MAX: f64 = 2.0;

/// All that are shipped.
const UNITS: [&str; 4] =
    ["sluicegate.service", "sluicegate.socket", "sluicegate-canary.service", "sluicegate-canary.timer"];

fn unit(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd").join(name)
}

/// The text that a tool wrote to both of its outputs.
fn told_by(command: &mut Command) -> String {
    let output = command.output().unwrap();
    String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
}

/// A service manager's socket for the messages of its service.
struct Manager {
    folder: tempfile::TempDir,
    socket: UnixDatagram,
}

impl Manager {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = UnixDatagram::bind(folder.path().join("notify")).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        Self { folder, socket }
    }

    fn path(&self) -> String {
        self.folder.path().join("notify").display().to_string()
    }

    /// Waits until it is told `wanted` at the start of a line, and gives that line.
    fn hears(&self, wanted: &str) -> Option<String> {
        wait_for(|| {
            let mut message = [0; 4096];
            let len = self.socket.recv(&mut message).ok()?;
            let message = String::from_utf8(message[..len].to_vec()).unwrap();
            message.lines().find(|line| line.starts_with(wanted)).map(str::to_owned)
        })
    }

    /// Forgets what it was told so far.
    fn forget(&self) {
        while self.socket.recv(&mut [0; 4096]).is_ok() {}
    }

    /// A relay that reports here, and is expected to do so every `watchdog`.
    fn start(&self, site: &Site, watchdog: Duration) -> Relay {
        let mut command = site.command(&["run"]);
        command.env("NOTIFY_SOCKET", self.path());
        command.env("WATCHDOG_USEC", watchdog.as_micros().to_string());
        Relay::start(command)
    }
}

/// Starts `site` as systemd does for a socket unit on `addresses`: once a first client has come.
fn start_activated(site: &Site, addresses: &[SocketAddr], manager: &Manager) -> Relay {
    let listen: Vec<String> = addresses.iter().map(|address| format!("--listen={address}")).collect();
    let state = format!("--setenv=STATE_DIRECTORY={}", site.folder().join("state").display());
    let notify = format!("--setenv=NOTIFY_SOCKET={}", manager.path());
    let mut wrapper = vec!["systemd-socket-activate", &state, &notify];
    wrapper.extend(listen.iter().map(String::as_str));
    let first = addresses[0];
    thread::scope(|scope| {
        scope.spawn(move || wait_for(|| std::net::TcpStream::connect(first).ok()));
        site.start_through(&wrapper)
    })
}

#[test]
fn a_reload_is_told_from_its_beginning_to_its_end() {
    let manager = Manager::new();
    let mut site = Site::new("");
    let relay = manager.start(&site, Duration::from_secs(30));
    assert!(manager.hears("READY=1").is_some());
    for (fragment, outcome) in [("log.level = 'info'", "reloaded"), ("limits.sessoins = 1", "reload refused")]
    {
        manager.forget();
        site.configure(fragment);
        relay.signal(Signal::SIGHUP);
        assert!(manager.hears("RELOADING=1").is_some());
        assert!(manager.hears("READY=1").is_some(), "whatever came of it, the relay goes on");
        assert!(relay.logs(outcome), "{}", relay.log());
    }
}

#[test]
fn the_units_hold_nothing_that_systemd_does_not_understand() {
    if !tools_or_skip("the_units_hold_nothing_that_systemd_does_not_understand", &["systemd-analyze"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for name in UNITS {
        let text = std::fs::read_to_string(unit(name)).unwrap();
        let text = text.replace("/usr/bin/sluicegate", crate::support::BINARY);
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    let mut verify = Command::new("systemd-analyze");
    verify.args(["verify", "--man=no"]);
    verify.args(UNITS.map(|name| folder.path().join(name)));
    let reported = told_by(&mut verify);
    let complaints: Vec<&str> = reported
        .lines()
        // Of a machine's own units, wherever it has some that are wrong.
        .filter(|line| line.contains("sluicegate"))
        .collect();
    assert_eq!(complaints, [""; 0]);
}

#[test]
fn the_services_are_locked_in() {
    if !tools_or_skip("the_services_are_locked_in", &["systemd-analyze"]) {
        return;
    }
    for name in UNITS.into_iter().filter(|name| name.ends_with(".service")) {
        let mut security = Command::new("systemd-analyze");
        security.args(["security", "--offline=true", "--no-pager"]).arg(unit(name));
        let reported = told_by(&mut security);
        let level = format!("Overall exposure level for {name}: ");
        let exposure = reported.lines().find_map(|line| line.split_once(&level)?.1.split(' ').next());
        let exposure = exposure.and_then(|level| level.parse::<f64>().ok());
        assert!(exposure.is_some_and(|exposure| exposure <= EXPOSURE_MAX), "{reported}");
    }
}

#[test]
fn clients_come_by_the_sockets_that_a_manager_opened() {
    if !tools_or_skip("clients_come_by_the_sockets_that_a_manager_opened", &["systemd-socket-activate"]) {
        return;
    }
    let addresses = [free_address(), free_address()];
    let [first, second] = addresses;
    let site = Site::new(&format!(
        "listen = [{{ address = '{second}', suffixes = ['second'] }}, {{ address = '{first}', suffixes = ['first'] }}]"
    ));
    let manager = Manager::new();
    let relay = start_activated(&site, &addresses, &manager);
    // In the order of the configuration, whatever the unit's is.
    assert_eq!(relay.addresses(), [second, first]);
    assert_eq!(manager.hears("READY="), Some("READY=1".to_owned()));
    let device = Device::echo(V4);
    for (address, suffix) in [(first, "first"), (second, "second")] {
        let asked = format!(
            "CONNECT {}.{suffix}:{} HTTP/1.1\r\nProxy-Authorization: Bearer {}\r\n\r\n",
            crate::support::DEVICE,
            device.port(),
            site.token
        );
        for _ in 0..CLIENTS {
            assert_eq!(crate::support::Answer::to_bytes(address, asked.as_bytes()).status, 200, "{suffix}");
        }
    }
}

/// systemd's `[::]` takes both families by default, the relay's own does not; each says so.
#[test]
fn a_listener_on_all_ipv6_addresses_says_which_families_it_takes() {
    let name = "a_listener_on_all_ipv6_addresses_says_which_families_it_takes";
    if !ipv6_or_skip(name) || !tools_or_skip(name, &["systemd-socket-activate"]) {
        return;
    }
    let device = Device::echo(V4);
    let all = |port: u16| SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, port));
    let by_v4 = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
    let ask = |site: &Site, address| site.request(&device).send(address);

    let own = Site::new("listen = [{ address = '[::]:0' }]");
    let relay = own.start();
    assert!(relay.logs("this listener takes IPv6 clients alone; for IPv4, add one on 0.0.0.0 to `listen`"));
    assert!(std::net::TcpStream::connect(by_v4(relay.address().port())).is_err());
    let by_v6 = SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, relay.address().port()));
    drop(ask(&own, by_v6).opened());
    assert!(own.audit().wait_for_events(1)[0]["client"].as_str().unwrap().starts_with("[::1]:"));

    let port = free_address().port();
    let passed = Site::new(&format!("listen = [{{ address = '[::]:{port}' }}]"));
    let relay = start_activated(&passed, &[all(port)], &Manager::new());
    assert!(relay.logs("this listener takes IPv4 and IPv6 clients; its socket unit says so (BindIPv6Only=)"));
    drop(ask(&passed, by_v4(port)).opened());
    let event = passed.audit().wait_for(|event| event["cause"] == "closed");
    assert!(event["client"].as_str().unwrap().starts_with("127.0.0.1:"), "{event}");
}

#[test]
fn one_socket_feeds_every_engine_thread() {
    if !tools_or_skip("one_socket_feeds_every_engine_thread", &["systemd-socket-activate"]) {
        return;
    }
    let address = free_address();
    let site = Site::new(&format!("listen = [{{ address = '{address}' }}]\nengine.threads = {THREADS}"));
    let relay = start_activated(&site, &[address], &Manager::new());
    let device = Device::echo(V4);
    // Many at a time, so that a thread which is awake could take all.
    let open = || -> Vec<_> {
        (0..TUNNELS / CLIENTS_AT_ONCE).map(|_| site.request(&device).send(relay.address()).opened()).collect()
    };
    let tunnels: Vec<_> = thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS_AT_ONCE).map(|_| scope.spawn(open)).collect();
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    });
    drop(tunnels);
    let events = site.audit().wait_for_events(TUNNELS);
    // A session's number says which thread it is on.
    let thread = |event: &serde_json::Value| event["session"].as_u64().unwrap() >> 48;
    for number in 0..THREADS {
        let share = events.iter().filter(|event| thread(event) == number).count();
        assert!(share >= TUNNELS / THREADS as usize / 2, "thread {number} has {share} of {TUNNELS}");
    }
}

#[test]
fn a_socket_that_the_configuration_does_not_know_is_refused() {
    if !tools_or_skip(
        "a_socket_that_the_configuration_does_not_know_is_refused",
        &["systemd-socket-activate"],
    ) {
        return;
    }
    let (known, unknown) = (free_address(), free_address());
    let site = Site::new(&format!("listen = [{{ address = '{known}' }}]"));
    let run = site.command(&["run"]);
    let mut command = Command::new("systemd-socket-activate");
    command.arg(format!("--listen={unknown}")).arg(run.get_program()).args(run.get_args());
    let output = thread::scope(|scope| {
        scope.spawn(move || wait_for(|| std::net::TcpStream::connect(unknown).ok()));
        command.output().unwrap()
    });
    let reported = String::from_utf8(output.stderr).unwrap();
    let expected = format!(
        "sluicegate: the socket unit listens on {unknown}, which is not in the configuration; add it to \
         `listen` or take it out of the unit\n"
    );
    assert_eq!(output.status.code(), Some(1), "{reported}");
    assert!(reported.ends_with(&expected), "{reported}");
}

#[test]
fn the_manager_hears_that_the_node_is_ready_lives_and_stops() {
    let site = Site::new("");
    let manager = Manager::new();
    let mut relay = manager.start(&site, WATCHDOG);
    assert_eq!(manager.hears("READY="), Some("READY=1".to_owned()));
    let device = Device::echo(V4);
    let tunnel = site.request(&device).send(relay.address()).opened();
    let status = manager.hears("STATUS=serving, 1 sessions; ");
    assert_eq!(status, Some("STATUS=serving, 1 sessions; generation 1 in force".to_owned()));
    // Beats of a node that has nothing else to do: its threads turn because they are asked to.
    manager.forget();
    for _ in 0..3 {
        assert_eq!(manager.hears("WATCHDOG="), Some("WATCHDOG=1".to_owned()));
    }
    relay.signal(Signal::SIGTERM);
    assert_eq!(manager.hears("STOPPING="), Some("STOPPING=1".to_owned()));
    // Longer than the unit's own patience, where the configuration wants that.
    assert!(manager.hears("EXTEND_TIMEOUT_USEC=").is_some());
    drop(tunnel);
    assert!(relay.wait().is_some_and(|status| status.success()));
}

#[test]
fn a_store_that_is_gone_never_has_the_node_restarted() {
    let site = Site::new("authz = { refresh = '50ms', max_stale = '200ms' }");
    let manager = Manager::new();
    let relay = manager.start(&site, WATCHDOG);
    std::fs::remove_file(site.store_path()).unwrap();
    assert!(manager.hears("STATUS=serving, 0 sessions; nothing can be decided").is_some());
    let refused = Request::to(crate::support::DEVICE, 22).bearer(&site.token).send(relay.address());
    assert_eq!(refused.slug().as_deref(), Some("undecided"));
    manager.forget();
    for _ in 0..3 {
        assert_eq!(manager.hears("WATCHDOG="), Some("WATCHDOG=1".to_owned()));
    }
}

/// Enough that both threads of a small machine take some.
const CLIENTS: usize = 20;

const THREADS: u64 = 3;

const TUNNELS: usize = 60;

const CLIENTS_AT_ONCE: usize = 6;

/// Three beats in this time.
const WATCHDOG: Duration = Duration::from_millis(600);
