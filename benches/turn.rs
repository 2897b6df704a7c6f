//! What turns of an engine thread cost: 128-byte requests and responses through 1 and 64 tunnels, copied and
//! spliced, and whole new tunnels.
//!
//! A real engine of one thread, on its own CPU, with sockets on loopback. Its worker is nobody else's to
//! drive, so what is measured from outside holds the bench's own calls as well: for each round trip a
//! client's write and read and a device's read and write. `direct` does the same four calls with no relay
//! between; what is beyond it is the relay's.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use sluicegate::authz::{
    Authority, Credential, Device, DeviceId, DeviceUuid, Generation, Grant, GrantId, KeyHash, PortRange,
    PrincipalId, Scope, Snapshot, UnixMillis, View,
};
use sluicegate::config::{Config, Forwarding, Listen, Vpn};
use sluicegate::engine::Engine;
use sluicegate::sys::cpu;
use sluicegate::telemetry::AuditSender;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const TUNNELS: [usize; 2] = [1, 64];

const MESSAGE_BYTES: usize = 128;

const TOKEN: &str = "sg_bench";

const UUID: &str = "0123456789abcdef0123456789abcdef";

/// A client and a device, with a tunnel between them or a connection of their own.
struct Pair {
    client: TcpStream,
    device: TcpStream,
}

/// One request and response on each pair: all requests first, so that the relay finds them together.
fn exchange(pairs: &mut [Pair]) {
    let mut message = [7; MESSAGE_BYTES];
    for pair in &mut *pairs {
        pair.client.write_all(&message).expect("the client's side is open");
    }
    for pair in &mut *pairs {
        pair.device.read_exact(&mut message).expect("the request comes through");
        pair.device.write_all(&message).expect("the device's side is open");
    }
    for pair in pairs {
        pair.client.read_exact(&mut message).expect("the response comes through");
    }
}

/// An engine of one thread, and the device that its tunnels end at.
struct Bench {
    engine: Engine,
    device: TcpListener,
}

impl Bench {
    fn start(forwarding: Forwarding) -> Self {
        let mut config = Config { vpn: Vpn::loopback(), ..Config::default() };
        config.engine.forwarding = forwarding;
        config.engine.threads = 1;
        config.listen = vec![Listen {
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            suffixes: Vec::new(),
            ..Listen::default()
        }];
        let engine = Engine::start(Arc::new(config), Arc::new(authority()), AuditSender::disabled())
            .expect("an engine can be started here");
        Self { engine, device: TcpListener::bind("127.0.0.1:0").expect("loopback is there") }
    }

    fn tunnel(&self) -> Pair {
        let client = TcpStream::connect(self.engine.client_addresses()[0]).expect("the relay listens");
        client.set_nodelay(true).expect("a TCP socket");
        let mut client = client;
        let port = self.device.local_addr().expect("a bound socket").port();
        let head = format!("CONNECT {UUID}:{port} HTTP/1.0\r\nProxy-Authorization: Bearer {TOKEN}\r\n\r\n");
        client.write_all(head.as_bytes()).expect("the relay reads");
        let (device, _) = self.device.accept().expect("the relay dials");
        device.set_nodelay(true).expect("a TCP socket");
        let mut reply = [0; REPLY.len()];
        client.read_exact(&mut reply).expect("the relay replies");
        assert_eq!(&reply, REPLY);
        Pair { client, device }
    }
}

fn direct() -> Pair {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback is there");
    let client = TcpStream::connect(listener.local_addr().expect("a bound socket")).expect("it listens");
    let (device, _) = listener.accept().expect("a client is there");
    for socket in [&client, &device] {
        socket.set_nodelay(true).expect("a TCP socket");
    }
    Pair { client, device }
}

/// One principal that may reach every port of the one device.
fn authority() -> Authority {
    let principal = PrincipalId(1);
    let credential =
        Credential { key: KeyHash::of_token(TOKEN.as_bytes()), principal, expires_at: None, revoked: false };
    let grant = Grant {
        id: GrantId(1),
        principal,
        scope: Scope::Any,
        ports: PortRange::ANY,
        expires_at: None,
        revoked: false,
    };
    let device = Device {
        id: DeviceId(1),
        uuid: DeviceUuid::parse(UUID).expect("32 hex digits"),
        fleet: None,
        address: Some([127, 0, 0, 1].into()),
        node: None,
        online: true,
        disputed: false,
    };
    let authority = Authority::new(Duration::from_secs(3600), None);
    let snapshot = Snapshot::build(Generation(1), vec![credential], vec![grant], vec![device]);
    authority.publish(Arc::new(View {
        snapshot: Arc::new(snapshot),
        revocations: Arc::default(),
        previous: None,
    }));
    authority.confirm(UnixMillis::now());
    authority
}

fn turn(criterion: &mut Criterion) {
    let cpus = cpu::allowed().expect("this process may run somewhere");
    // The engine's one thread takes the first.
    cpu::pin_thread(cpus[cpus.len() - 1]).expect("a CPU of ours");
    round_trips(criterion);
    new_tunnels(criterion);
}

fn round_trips(criterion: &mut Criterion) {
    for tunnels in TUNNELS {
        let mut group = criterion.benchmark_group(format!("{MESSAGE_BYTES} B through {tunnels}"));
        group.throughput(Throughput::Elements(tunnels as u64));
        let mut pairs: Vec<_> = (0..tunnels).map(|_| direct()).collect();
        group.bench_function("direct", |bencher| bencher.iter(|| exchange(&mut pairs)));
        for (name, forwarding) in [("copy", Forwarding::Copy), ("splice", Forwarding::Splice)] {
            let bench = Bench::start(forwarding);
            let mut pairs: Vec<_> = (0..tunnels).map(|_| bench.tunnel()).collect();
            group.bench_function(name, |bencher| bencher.iter(|| exchange(&mut pairs)));
            drop(pairs);
            bench.engine.stop();
        }
        group.finish();
    }
}

fn new_tunnels(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("new tunnels, one at a time");
    group.throughput(Throughput::Elements(1));
    group.bench_function("direct", |bencher| bencher.iter(|| exchange(&mut [direct()])));
    let bench = Bench::start(Forwarding::Auto);
    group.bench_function("open, exchange, close", |bencher| bencher.iter(|| exchange(&mut [bench.tunnel()])));
    group.finish();
    bench.engine.stop();
}

const REPLY: &[u8; 39] = b"HTTP/1.0 200 Connection Established\r\n\r\n";

criterion_group!(benches, turn);
criterion_main!(benches);
