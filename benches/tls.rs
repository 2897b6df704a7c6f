//! What TLS costs a relay, beside HAProxy in the same run: streams through either, one TLS connection in front and
//! plain TCP behind, and what handshakes do to the messages of other tunnels.
//!
//! `cargo bench --bench tls`, on two CPUs: the relay or HAProxy has the first, everything else the second.

#[path = "../tests/support/mod.rs"]
mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use support::{Authority, Device, Relay, Running, Site, TlsClient, V4, ask_by_tls, wait_for};

const NAME: &str = "relay.example";

fn main() {
    // `cargo test --benches` calls benches, too; this one takes a machine of its own.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let mut second = CpuSet::new();
    second.set(1).unwrap();
    sched_setaffinity(Pid::from_raw(0), &second).unwrap();
    let scene = Scene::new();
    throughput(&scene);
    handshakes(&scene);
}

/// The relay and HAProxy, with one certificate, in front of one device.
struct Scene {
    site: Site,
    relay: Relay,
    /// Speaks plain TCP.
    plain: SocketAddr,
    haproxy: Running,
    front: SocketAddr,
    authority: Authority,
    source: Device,
    echo: Device,
}

impl Scene {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap().keep();
        let authority = Authority::new(&folder, "root");
        let pair = authority.issue(NAME, &[NAME]);
        let (chain, key) = pair.write(&folder, "relay");
        let both = folder.join("both.pem");
        std::fs::write(&both, format!("{}{}", pair.certificate, pair.key)).unwrap();
        let site = Site::new(&format!(
            "log.level = 'warn'\nlisten = [{{ address = '127.0.0.1:0', tls = {{ certificates = [{{ chain = '{}', key = '{}' }}] }} }},
             {{ address = '127.0.0.1:0' }}]",
            chain.display(),
            key.display()
        ));
        let relay = site.start_through(&["taskset", "-c", "0"]);
        let source = Device::serving(V4, |mut stream| {
            let zeros = vec![0; 256 * 1024];
            while stream.write_all(&zeros).is_ok() {}
        });
        let front = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let config = folder.join("haproxy.cfg");
        let text = format!(
            "global\n nbthread 1\n tune.bufsize 65536\n maxconn 2000\ndefaults\n mode tcp\n timeout connect 5s\n timeout client 1m\n \
             timeout server 1m\nlisten relay\n bind {front} ssl crt {}\n server device 127.0.0.1:{}\n",
            both.display(),
            source.port()
        );
        std::fs::write(&config, text).unwrap();
        let mut command = Command::new("taskset");
        let haproxy = Running::start(command.args(["-c", "0", "haproxy", "-q", "-f"]).arg(&config));
        assert!(wait_for(|| TcpStream::connect(front).ok()).is_some());
        let plain = relay.addresses()[1];
        Self { site, relay, plain, haproxy, front, authority, source, echo: Device::echo(V4) }
    }

    fn stream(&self, by: By) -> support::TlsStream {
        let mut client = TlsClient::trusting(&self.authority);
        match by {
            By::Sluicegate => {
                let mut stream = client.connect(self.relay.address(), NAME).unwrap();
                let head = ask_by_tls(&mut stream, &self.site.request(&self.source).bytes()).unwrap();
                assert!(head.contains(" 200 "), "{head}");
                stream
            }
            By::Haproxy => client.connect(self.front, NAME).unwrap(),
        }
    }

    fn cpu_seconds(&self, by: By) -> f64 {
        let pid = match by {
            By::Sluicegate => self.relay.pid(),
            By::Haproxy => self.haproxy.0.id(),
        };
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
        let ticks: f64 = [11, 12].iter().map(|field| fields[*field].parse::<f64>().unwrap()).sum();
        ticks / 100.0
    }
}

#[derive(Clone, Copy)]
enum By {
    Sluicegate,
    Haproxy,
}

fn throughput(scene: &Scene) {
    for streams in [1, 8] {
        let mut runs = [Vec::new(), Vec::new()];
        for _ in 0..ROUNDS {
            for (by, runs) in [By::Sluicegate, By::Haproxy].into_iter().zip(&mut runs) {
                runs.push(download(scene, by, streams));
            }
        }
        for (name, mut runs) in ["sluicegate", "HAProxy"].into_iter().zip(runs) {
            runs.sort_by(|one, other| one.0.total_cmp(&other.0));
            let (rate, _) = runs[ROUNDS / 2];
            runs.sort_by(|one, other| one.1.total_cmp(&other.1));
            let (_, cost) = runs[ROUNDS / 2];
            println!(
                "{streams} streams down by {name}: {rate:.2} GB/s, {cost:.2} CPU s/GB (medians of {ROUNDS})"
            );
        }
    }
}

/// GB/s, and CPU seconds per GB.
fn download(scene: &Scene, by: By, streams: usize) -> (f64, f64) {
    let bytes = Arc::new(AtomicU64::new(0));
    let stop = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = (0..streams)
        .map(|_| {
            let (mut stream, bytes, stop) = (scene.stream(by), Arc::clone(&bytes), Arc::clone(&stop));
            std::thread::spawn(move || {
                let mut buffer = vec![0; 64 * 1024];
                while !stop.load(Ordering::Relaxed) {
                    bytes.fetch_add(stream.read(&mut buffer).unwrap() as u64, Ordering::Relaxed);
                }
            })
        })
        .collect();
    std::thread::sleep(Duration::from_millis(300));
    let (began, before, cpu_before) = (Instant::now(), bytes.load(Ordering::Relaxed), scene.cpu_seconds(by));
    std::thread::sleep(RUN);
    let gb = (bytes.load(Ordering::Relaxed) - before) as f64 / 1e9;
    let outcome = (gb / began.elapsed().as_secs_f64(), (scene.cpu_seconds(by) - cpu_before) / gb);
    stop.store(true, Ordering::Relaxed);
    readers.into_iter().for_each(|reader| reader.join().unwrap());
    outcome
}

/// Messages of a tunnel without TLS while others shake hands.
fn handshakes(scene: &Scene) {
    let rounds = (0..ROUNDS).map(|_| (exchange(scene, 0).0, exchange(scene, 500)));
    let (quiet, busy) = rounds.unzip::<_, _, Vec<_>, Vec<_>>();
    let median = |of: &mut Vec<u64>| {
        of.sort_unstable();
        of[of.len() / 2]
    };
    let at = |runs: &[&Histogram<u64>], quantile| {
        median(&mut runs.iter().map(|run| run.value_at_quantile(quantile)).collect())
    };
    let quiet: Vec<_> = quiet.iter().collect();
    let done: Vec<u64> = busy.iter().map(|(_, done)| *done / RUN.as_secs()).collect();
    let busy: Vec<_> = busy.iter().map(|(run, _)| run).collect();
    for (name, runs) in [("no handshakes", quiet), ("500 handshakes a second wanted", busy)] {
        println!("128 B there and back, {name}: p50 {} us, p99 {} us", at(&runs, 0.5), at(&runs, 0.99));
    }
    println!("handshakes a second that were done: {done:?}");
}

/// Round trips in microseconds, and the handshakes that others did meanwhile.
fn exchange(scene: &Scene, per_second: u32) -> (Histogram<u64>, u64) {
    let mut tunnel = scene.site.request(&scene.echo).send(scene.plain).opened();
    let stop = Arc::new(AtomicBool::new(false));
    let done = Arc::new(AtomicU64::new(0));
    let address = scene.relay.address();
    // A ticket would make the next one cheaper.
    let config = TlsClient::trusting(&scene.authority).without_resumption().config();
    let shaker = (per_second > 0).then(|| {
        let (stop, done) = (Arc::clone(&stop), Arc::clone(&done));
        std::thread::spawn(move || {
            let began = Instant::now();
            for number in 0.. {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                let due = began + Duration::from_secs(1) * number / per_second;
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
                drop(support::shake_hands(&config, address, NAME).unwrap());
                done.fetch_add(1, Ordering::Relaxed);
            }
        })
    });
    let mut histogram = Histogram::new(3).unwrap();
    let mut message = [7; 128];
    let began = Instant::now();
    while began.elapsed() < RUN {
        let sent = Instant::now();
        tunnel.write_all(&message).unwrap();
        tunnel.read_exact(&mut message).unwrap();
        histogram.record(sent.elapsed().as_micros() as u64).unwrap();
        // An interactive person, not a flood.
        std::thread::sleep(Duration::from_micros(500));
    }
    stop.store(true, Ordering::Relaxed);
    if let Some(shaker) = shaker {
        shaker.join().unwrap();
    }
    (histogram, done.load(Ordering::Relaxed))
}

/// Rounds of each measurement, taken in turns.
const ROUNDS: usize = 5;

const RUN: Duration = Duration::from_secs(2);
