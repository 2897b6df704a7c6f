//! A relay that is stopped in the middle of anything at all ends within its bound, leaves nobody waiting,
//! and serves again once it is back.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::support::{Device, Request, Signal, Silent, Site, V4, connect};
use crossbeam::channel::bounded;
use sluicegate::config::Config;
use sluicegate::node::Node;

const PATHS: [&str; 4] = ["auto", "copy", "splice", "ring-splice"];

/// Stops by each path, of the library and of the binary.
const ROUNDS: u32 = 5;

/// Traffic has had this time per round before the stop: none at first, enough to fill all buffers at last.
const SETTLING: Duration = Duration::from_millis(20);

/// Time that an engine gives its sessions to end, doubled for a busy machine.
const STOP_TIME_MAX: Duration = Duration::from_secs(6);

/// Devices of every temper.
struct Devices {
    echoes: Device,
    reads: Device,
    writes: Device,
    does_neither: Device,
    silent: Silent,
}

impl Devices {
    fn start() -> Self {
        Self {
            echoes: Device::echo(V4),
            reads: Device::serving(V4, |mut socket| drop(read_on(&mut socket))),
            writes: Device::serving(V4, |mut socket| drop(write_on(&mut socket))),
            does_neither: Device::serving(V4, |socket| {
                // Until the connection is gone; what arrives stays where it is.
                while matches!(socket.take_error(), Ok(None)) {
                    thread::sleep(Duration::from_millis(20));
                }
            }),
            silent: Device::silent(),
        }
    }
}

/// Clients in every state that a session can be in, each in a thread that gives what ended it.
struct Traffic {
    clients: Vec<JoinHandle<io::Result<()>>>,
}

impl Traffic {
    fn start(site: &Site, relay: SocketAddr, devices: &Devices) -> Self {
        let mut traffic = Self { clients: Vec::new() };
        for _ in 0..2 {
            traffic.tunnel(site, relay, &devices.echoes, chat);
            traffic.tunnel(site, relay, &devices.reads, write_on);
            traffic.tunnel(site, relay, &devices.writes, read_on);
            // Everything on the way is full, one way or both ways.
            traffic.tunnel(site, relay, &devices.does_neither, write_on);
            traffic.tunnel(site, relay, &devices.echoes, write_on);
            traffic.tunnel(site, relay, &devices.writes, write_on);
            let to_silent = Request::to(crate::support::DEVICE, devices.silent.port).bearer(&site.token);
            traffic.saying(relay, &to_silent.bytes());
            traffic.saying(relay, b"CONNECT half of a he");
            traffic.saying(relay, b"");
            traffic.coming_again_and_again(relay, site.request(&devices.echoes));
        }
        traffic
    }

    fn tunnel(
        &mut self,
        site: &Site,
        relay: SocketAddr,
        device: &Device,
        talk: impl FnOnce(&mut TcpStream) -> io::Result<()> + Send + 'static,
    ) {
        let mut client = site.request(device).send(relay).opened();
        self.clients.push(thread::spawn(move || talk(&mut client)));
    }

    /// A client that says so much, waits for an answer, and closes when it is told to.
    fn saying(&mut self, relay: SocketAddr, bytes: &[u8]) {
        let mut client = connect(relay);
        client.write_all(bytes).unwrap();
        self.clients.push(thread::spawn(move || read_on(&mut client)));
    }

    /// One client after the other, also while the relay stops, until nobody listens there.
    fn coming_again_and_again(&mut self, relay: SocketAddr, request: Request) {
        let come = move || {
            while let Ok(mut client) = TcpStream::connect(relay) {
                client.set_read_timeout(Some(crate::support::PATIENCE))?;
                // The relay may be gone in between.
                let _answered =
                    client.write_all(&request.bytes()).and_then(|()| crate::support::read_head(&mut client));
            }
            Ok(())
        };
        self.clients.push(thread::spawn(come));
    }

    /// True if each client has got an answer, an end or a reset.
    fn told_all(self) -> bool {
        let waits_in_vain =
            |error: &io::Error| matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut);
        let ends: Vec<_> = self.clients.into_iter().map(|client| client.join().unwrap()).collect();
        !ends.iter().any(|end| end.as_ref().is_err_and(waits_in_vain))
    }
}

/// Reads to the end, whichever it is.
fn read_on(socket: &mut TcpStream) -> io::Result<()> {
    let mut chunk = vec![0; 64 * 1024];
    while socket.read(&mut chunk)? > 0 {}
    Ok(())
}

/// Writes until nobody takes it any more.
fn write_on(socket: &mut TcpStream) -> io::Result<()> {
    let chunk = vec![7; 256 * 1024];
    loop {
        socket.write_all(&chunk)?;
    }
}

/// Sends and gets back a word until the tunnel breaks.
fn chat(socket: &mut TcpStream) -> io::Result<()> {
    loop {
        socket.write_all(b"word")?;
        socket.read_exact(&mut [0; 4])?;
    }
}

fn site_with(forwarding: &str) -> Site {
    Site::new(&format!("engine.forwarding = '{forwarding}'\ntimeouts.drain = '50ms'\nlog.level = 'info'"))
}

/// Stops the node; how long it took, or `None` where it still stops when nobody should wait any longer.
fn stop(node: Node) -> Option<Duration> {
    let began = Instant::now();
    let (stopped, is_stopped) = bounded(1);
    thread::spawn(move || {
        node.stop();
        let _nobody_waits = stopped.send(());
    });
    is_stopped.recv_timeout(STOP_TIME_MAX).ok().map(|()| began.elapsed())
}

fn start(site: &Site) -> Node {
    Node::start(Config::load(Some(&site.config_path()), []).unwrap()).unwrap()
}

#[test]
fn a_node_that_is_stopped_in_traffic_ends_in_time_and_starts_again() {
    let devices = Devices::start();
    for forwarding in PATHS {
        let site = site_with(forwarding);
        for round in 0..ROUNDS {
            let node = start(&site);
            let traffic = Traffic::start(&site, node.client_addresses()[0], &devices);
            thread::sleep(SETTLING * round);
            assert!(stop(node).is_some(), "{forwarding}, round {round}: it does not end");
            assert!(traffic.told_all(), "{forwarding}, round {round}: a client waits in vain");
        }
    }
}

#[test]
fn clients_that_neither_read_nor_close_do_not_keep_a_node_from_stopping() {
    let site = site_with("auto");
    let devices = Devices::start();
    let node = start(&site);
    let relay = node.client_addresses()[0];
    let mut deaf: Vec<_> = (0..4).map(|_| connect(relay)).collect();
    for client in &mut deaf[2..] {
        client
            .write_all(&Request::to(crate::support::DEVICE, devices.silent.port).bearer(&site.token).bytes())
            .unwrap();
    }
    let tunnel = site.request(&devices.writes).send(relay).opened();
    assert!(stop(node).is_some(), "it does not end");
    drop((deaf, tunnel));
}

#[test]
fn a_relay_that_is_told_to_end_in_traffic_exits_0_in_time_and_starts_again() {
    let devices = Devices::start();
    for forwarding in PATHS {
        let site = site_with(forwarding);
        for round in 0..ROUNDS {
            let mut relay = site.start();
            let traffic = Traffic::start(&site, relay.address(), &devices);
            thread::sleep(SETTLING * round);
            let began = Instant::now();
            relay.signal(Signal::SIGTERM);
            let code = relay.wait().and_then(|status| status.code());
            let took = began.elapsed();
            assert_eq!(code, Some(0), "{forwarding}, round {round}");
            assert!(took < STOP_TIME_MAX, "{forwarding}, round {round}: it took {took:?}");
            assert!(traffic.told_all(), "{forwarding}, round {round}: a client waits in vain");
        }
    }
}
