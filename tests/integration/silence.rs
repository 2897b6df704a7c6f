//! A side of a tunnel that answers and does not read is waited for; one that is gone is found. Whatever the direction,
//! the path, and with TLS or without.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use crate::support::{
    Answer, Authority, Content, Device, End, Namespace, OTHER_DEVICE, Relay, Request, Site, Switch,
    TlsClient, V4, ask_by_tls, receive, root_or_skip,
};

/// Far shorter than the pause of a reader below.
const SHORT: &str = "timeouts = { user_timeout = '1s', keepalive = '1s', half_closed = '1s' }";

/// Longer than all short timeouts together.
const PAUSE: Duration = Duration::from_secs(6);

/// More than the buffers of the relay and of both sides hold.
const CONTENT: Content = Content::new(7, 24 << 20);

fn fragment(forwarding: &str) -> String {
    format!("{SHORT}\nengine.forwarding = '{forwarding}'")
}

/// The reader gets all of `content`, and then the FIN, although it pauses first.
fn read_after_pause(reader: &mut impl Read, content: Content, case: &str) {
    thread::sleep(PAUSE);
    let (digest, end) = receive(reader);
    assert_eq!(end, End::Fin, "{case}: after {digest:?}");
    assert_eq!(digest, content.digest(), "{case}");
}

/// Sends all of `content` and its end; fails where the relay resets.
fn send(mut writer: TcpStream) {
    CONTENT.send(&mut writer).unwrap();
    writer.shutdown(Shutdown::Write).unwrap();
    // Until the other side has ended too.
    let _end = writer.read(&mut [0]);
}

fn a_client_pauses(forwarding: &str) {
    let site = Site::new(&fragment(forwarding));
    let relay = site.start();
    let device = Device::listening(V4);
    let mut client = site.request(&device).send(relay.address()).opened();
    let device = device.accept();
    let sender = thread::spawn(move || send(device));
    read_after_pause(&mut client, CONTENT, &format!("down by {forwarding}"));
    drop(client);
    sender.join().unwrap();
}

fn a_device_pauses(forwarding: &str) {
    let site = Site::new(&fragment(forwarding));
    let relay = site.start();
    let device = Device::listening(V4);
    let client = site.request(&device).send(relay.address()).opened();
    let mut device = device.accept();
    let sender = thread::spawn(move || send(client));
    read_after_pause(&mut device, CONTENT, &format!("up by {forwarding}"));
    drop(device);
    sender.join().unwrap();
}

fn a_tls_client_pauses(kernel_tls: &str) {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new(folder.path(), "ca");
    let (chain, key) = authority.issue("relay", &["relay"]).write(folder.path(), "relay");
    let site = Site::new(&format!(
        "{SHORT}\nengine.kernel_tls = '{kernel_tls}'\nlisten = [{{ address = '127.0.0.1:0', tls = {{ certificates = [\
         {{ chain = '{}', key = '{}' }}] }} }}]",
        chain.display(),
        key.display()
    ));
    let relay = site.start();
    let device = Device::listening(V4);
    let mut client = TlsClient::trusting(&authority).connect(relay.address(), "relay").unwrap();
    let head = ask_by_tls(&mut client, &site.request(&device).bytes()).unwrap();
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    let device = device.accept();
    let sender = thread::spawn(move || send(device));
    read_after_pause(&mut client, CONTENT, &format!("down by TLS, the kernel's {kernel_tls}"));
    drop(client);
    sender.join().unwrap();
}

#[test]
fn a_reader_that_pauses_for_longer_than_the_user_timeout_loses_nothing() {
    thread::scope(|scope| {
        for forwarding in ["copy", "splice", "ring-splice"] {
            scope.spawn(move || a_client_pauses(forwarding));
            scope.spawn(move || a_device_pauses(forwarding));
        }
        for kernel_tls in ["auto", "off"] {
            scope.spawn(move || a_tls_client_pauses(kernel_tls));
        }
    });
}

/// A connection whose side holds a few bytes, so that the relay's holds the rest.
fn connect_with_little_room(relay: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.connect(&relay.into()).unwrap();
    socket.into()
}

#[test]
fn a_reader_that_pauses_gets_what_the_relay_has_sent_after_one_direction_has_ended() {
    let site = Site::new(SHORT);
    let relay = site.start();
    let device = Device::listening(V4);
    let content = Content::new(8, 300 << 10);
    let mut client = connect_with_little_room(relay.address());
    client.write_all(&site.request(&device).bytes()).unwrap();
    let mut client = Answer::read(client).opened();
    let mut device = device.accept();
    // All of it fits into the relay's buffer for the client, so the relay is done with this direction.
    content.send(&mut device).unwrap();
    device.shutdown(Shutdown::Write).unwrap();
    read_after_pause(&mut client, content, "what the relay had sent already");
}

#[test]
fn a_client_that_has_ended_its_side_may_pause_as_well() {
    let site = Site::new(SHORT);
    let relay = site.start();
    let device = Device::listening(V4);
    let mut client = site.request(&device).send(relay.address()).opened();
    client.shutdown(Shutdown::Write).unwrap();
    let mut device = device.accept();
    assert_eq!(receive(&mut device).1, End::Fin);
    let sender = thread::spawn(move || {
        CONTENT.send(&mut device).unwrap();
    });
    read_after_pause(&mut client, CONTENT, "half closed");
    sender.join().unwrap();
}

#[test]
fn a_reader_that_pauses_for_ever_is_idle_in_the_end() {
    let site =
        Site::new("timeouts = { user_timeout = '1s', keepalive = '1s', half_closed = '1s', idle = '4s' }");
    let relay = site.start();
    let device = Device::listening(V4);
    let client = site.request(&device).send(relay.address()).opened();
    let mut device = device.accept();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(receive(&mut device).1, End::Fin);
    let began = Instant::now();
    assert!(CONTENT.send(&mut device).is_err(), "the relay ends it");
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(3900), "ended after {took:?} already");
    assert_eq!(site.audit().wait_for_events(1)[0]["cause"], "half-closed-timeout");
}

const RELAY: &str = "10.77.0.1";
const DEVICE_ADDRESS: &str = "10.77.0.3";

/// A relay, a client and a device, each on a machine of its own; the cables of the latter two can be pulled.
struct Network {
    switch: Switch,
    _relays: Namespace,
    clients: Namespace,
    devices: Namespace,
    site: Site,
    relay: Relay,
}

impl Network {
    fn new(fragment: &str) -> Self {
        let switch = Switch::new();
        let relays = switch.plug("relay", RELAY);
        let clients = switch.plug("client", "10.77.0.2");
        let devices = switch.plug("device", DEVICE_ADDRESS);
        let site = Site::new(&format!(
            "listen = [{{ address = '{RELAY}:3128' }}]\nvpn.allow = ['10.77.0.0/24']\n{fragment}"
        ));
        site.cli(&["device", "add", OTHER_DEVICE, "--address", DEVICE_ADDRESS]);
        let relay = relays.enter(|| site.start());
        Self { switch, _relays: relays, clients, devices, site, relay }
    }

    fn open(&self) -> (TcpStream, TcpStream) {
        let device = self.devices.enter(|| Device::listening(DEVICE_ADDRESS.parse().unwrap()));
        let request = Request::to(OTHER_DEVICE, device.port()).bearer(&self.site.token);
        let client = self.clients.enter(|| request.send(self.relay.address())).opened();
        (client, device.accept())
    }

    /// Pulls the cable of a machine, from which no word comes any more; the cause with which the tunnel ends.
    fn pull(&self, name: &str) -> String {
        let began = Instant::now();
        self.switch.set_link(name, "down");
        let events = self.site.audit().wait_for_events(1);
        assert!(began.elapsed() < Duration::from_secs(50), "took {:?}", began.elapsed());
        events[0]["cause"].as_str().unwrap().to_owned()
    }
}

/// Sends until nobody takes more, and goes on in a thread of its own.
fn flood(mut writer: TcpStream) {
    thread::spawn(move || while writer.write_all(&[b'x'; 64 * 1024]).is_ok() {});
}

const QUICK: &str = "timeouts = { user_timeout = '2s', keepalive = '2s' }";

#[test]
fn a_side_that_is_gone_while_its_window_is_shut_is_found() {
    if !root_or_skip("a_side_that_is_gone_while_its_window_is_shut_is_found") {
        return;
    }
    thread::scope(|scope| {
        for forwarding in ["copy", "splice"] {
            scope.spawn(move || {
                let network = Network::new(&format!("{QUICK}\nengine.forwarding = '{forwarding}'"));
                let (_client, device) = network.open();
                flood(device);
                thread::sleep(Duration::from_secs(4));
                assert_eq!(network.site.audit().events().len(), 0, "it answers, and is only slow");
                assert_eq!(network.pull("client"), "client-timeout", "{forwarding}");
            });
            scope.spawn(move || {
                let network = Network::new(&format!("{QUICK}\nengine.forwarding = '{forwarding}'"));
                let (client, _device) = network.open();
                flood(client);
                thread::sleep(Duration::from_secs(4));
                assert_eq!(network.pull("device"), "device-timeout", "{forwarding}");
            });
        }
    });
}

#[test]
fn a_side_that_is_gone_while_bytes_are_on_their_way_to_it_is_found() {
    if !root_or_skip("a_side_that_is_gone_while_bytes_are_on_their_way_to_it_is_found") {
        return;
    }
    // Keepalives come too late to find it.
    let network = Network::new("timeouts = { user_timeout = '2s', keepalive = '1h' }");
    let (mut client, mut device) = network.open();
    network.switch.set_link("device", "down");
    client.write_all(b"lost").unwrap();
    assert_eq!(network.pull("device"), "device-timeout");
    let mut rest = [0; 1];
    assert!(client.read(&mut rest).is_err(), "the other side gets a reset");
    let _gone = device.write_all(b"x");
}

#[test]
fn a_side_that_is_gone_while_the_tunnel_is_idle_is_found() {
    if !root_or_skip("a_side_that_is_gone_while_the_tunnel_is_idle_is_found") {
        return;
    }
    for name in ["client", "device"] {
        let network = Network::new(QUICK);
        let _tunnel = network.open();
        // The device is watched once the tunnel has lasted.
        thread::sleep(Duration::from_secs(6));
        assert_eq!(network.pull(name), format!("{name}-timeout"));
    }
}
