//! What a hand-over costs tunnels: their pauses, their bytes by checksum, its time, and the memory afterwards.
//!
//! 5,000 tunnels, of which 100 stream and 500 exchange small messages, unless `TUNNELS` says otherwise. Each process needs two
//! descriptors for each tunnel. Run it by `cargo bench --bench handover`.

#[path = "../tests/support/mod.rs"]
mod support;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Builder, Scope, ScopedJoinHandle, scope};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sha2::{Digest, Sha256};
use support::{Device, Relay, Site, V4};

/// A tunnel with both of its ends.
struct Tunnel {
    client: TcpStream,
    device: TcpStream,
}

fn main() {
    let count = std::env::var("TUNNELS").ok().and_then(|text| text.parse().ok()).unwrap_or(TUNNELS);
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("the limit on open files");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("the soft limit can be raised to the hard one");
    let site = Site::new(
        "log.level = 'info'\nlimits = { sessions_per_device = 8000, sessions_per_principal = 8000 }",
    );
    let relay = site.start();
    let device = Device::listening(V4);
    let mut tunnels = open(&site, &relay, &device, count);
    let fresh_rss = rss_bytes(relay.pid());
    println!("{count} tunnels, {STREAMS} of them stream, {EXCHANGES} exchange; open files: {hard} at most");
    let idle = tunnels.split_off((STREAMS + EXCHANGES).min(count));
    let exchanging = tunnels.split_off(STREAMS.min(tunnels.len()));
    let is_over = AtomicBool::new(false);
    let mut pid = relay.pid();
    scope(|scope| {
        let mut threads = Vec::new();
        for tunnel in &tunnels {
            threads.push(spawn(scope, || send_stream(&tunnel.client, &is_over)));
            threads.push(spawn(scope, || receive_stream(&tunnel.device)));
        }
        for tunnel in &exchanging {
            threads.push(spawn(scope, || echo(&tunnel.device)));
            threads.push(spawn(scope, || exchange(&tunnel.client, &is_over)));
        }
        std::thread::sleep(Duration::from_secs(2));
        for round in 1..=ROUNDS {
            let began = Instant::now();
            let outcome = site.cli(&["upgrade"]);
            let took = began.elapsed();
            let new = outcome["pid"].as_u64().expect("a process") as u32;
            println!(
                "hand-over {round}: {:.2} s from the command to its answer; {} moved, {} stayed; RSS {:.1} MiB \
                 (process that opened them: {:.1} MiB)",
                took.as_secs_f64(),
                outcome["moved"],
                outcome["stayed"],
                mib(rss_bytes(new)),
                mib(fresh_rss),
            );
            pid = new;
            std::thread::sleep(Duration::from_millis(500));
        }
        is_over.store(true, Ordering::Relaxed);
        let sums: Vec<Sums> = threads.into_iter().map(|thread| thread.join().expect("a worker")).collect();
        let (streams, exchanges) = sums.split_at(2 * tunnels.len());
        let whole = streams.chunks(2).filter(|pair| pair[0].digest == pair[1].digest).count();
        let bytes: u64 = streams.chunks(2).map(|pair| pair[1].bytes).sum();
        println!("streams: {whole} of {} whole by checksum, {bytes} bytes", tunnels.len());
        let mut worst = Histogram::<u64>::new_with_max(LONGEST_US_MAX, 3).expect("a histogram");
        let right = exchanges.chunks(2).filter(|pair| pair[1].is_whole).count();
        exchanges.chunks(2).for_each(|pair| worst.saturating_record(pair[1].longest_us));
        println!(
            "exchanges: {right} of {} with every answer right; longest round trip of a tunnel over {ROUNDS} hand-overs: \
             p50 {:.1} ms, p99 {:.1} ms, most {:.1} ms",
            exchanging.len(),
            worst.value_at_quantile(0.5) as f64 / 1000.0,
            worst.value_at_quantile(0.99) as f64 / 1000.0,
            worst.max() as f64 / 1000.0,
        );
    });
    let alive = idle.iter().filter(|tunnel| passes(tunnel)).count();
    println!("idle tunnels: {alive} of {} still pass bytes", idle.len());
    let _gone_already = kill(Pid::from_raw(pid as i32), Signal::SIGKILL);
}

fn spawn<'scope>(
    scope: &'scope Scope<'scope, '_>,
    work: impl FnOnce() -> Sums + Send + 'scope,
) -> ScopedJoinHandle<'scope, Sums> {
    Builder::new().stack_size(STACK_BYTES).spawn_scoped(scope, work).expect("a thread")
}

fn open(site: &Site, relay: &Relay, device: &Device, count: usize) -> Vec<Tunnel> {
    let request = site.request(device);
    let open = |_| {
        let client = request.send(relay.address()).opened();
        Tunnel { client, device: device.accept() }
    };
    (0..count).map(open).collect()
}

/// What one end of a tunnel has seen.
#[derive(Default)]
struct Sums {
    digest: Vec<u8>,
    bytes: u64,
    longest_us: u64,
    is_whole: bool,
}

fn send_stream(mut client: &TcpStream, is_over: &AtomicBool) -> Sums {
    let (mut hash, mut bytes, mut block) = (Sha256::new(), 0, vec![0; BLOCK_BYTES]);
    while !is_over.load(Ordering::Relaxed) {
        for (at, byte) in block.iter_mut().enumerate() {
            *byte = (at as u64 ^ bytes >> 10) as u8;
        }
        client.write_all(&block).expect("a stream goes on");
        hash.update(&block);
        bytes += block.len() as u64;
        std::thread::sleep(STREAM_PAUSE);
    }
    client.shutdown(Shutdown::Write).expect("a stream ends");
    Sums { digest: hash.finalize().to_vec(), bytes, ..Sums::default() }
}

fn receive_stream(mut device: &TcpStream) -> Sums {
    let (mut hash, mut bytes, mut room) = (Sha256::new(), 0, vec![0; BLOCK_BYTES]);
    loop {
        match device.read(&mut room).expect("a stream goes on") {
            0 => return Sums { digest: hash.finalize().to_vec(), bytes, ..Sums::default() },
            len => {
                hash.update(&room[..len]);
                bytes += len as u64;
            }
        }
    }
}

fn echo(mut device: &TcpStream) -> Sums {
    let mut room = [0; MESSAGE_BYTES];
    while let Ok(len @ 1..) = device.read(&mut room) {
        device.write_all(&room[..len]).expect("an exchange goes on");
    }
    Sums::default()
}

fn exchange(mut client: &TcpStream, is_over: &AtomicBool) -> Sums {
    let mut sums = Sums { is_whole: true, ..Sums::default() };
    let (mut number, mut answer) = (0u64, [0; MESSAGE_BYTES]);
    while !is_over.load(Ordering::Relaxed) {
        number += 1;
        let mut message = [number as u8; MESSAGE_BYTES];
        message[..8].copy_from_slice(&number.to_be_bytes());
        let began = Instant::now();
        client.write_all(&message).expect("an exchange goes on");
        client.read_exact(&mut answer).expect("an exchange goes on");
        sums.longest_us = sums.longest_us.max(began.elapsed().as_micros() as u64);
        sums.is_whole &= answer == message;
        std::thread::sleep(EXCHANGE_PAUSE);
    }
    client.shutdown(Shutdown::Write).expect("an exchange ends");
    sums
}

fn passes(tunnel: &Tunnel) -> bool {
    let mut answer = [0; 4];
    (&tunnel.client).write_all(b"ping").is_ok()
        && (&tunnel.device).read_exact(&mut answer).is_ok()
        && &answer == b"ping"
}

fn rss_bytes(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or("0 kB");
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0) * 1024
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// Longest round trip that is told apart, 60 s.
const LONGEST_US_MAX: u64 = 60_000_000;

const TUNNELS: usize = 5000;
const STREAMS: usize = 100;
const EXCHANGES: usize = 500;
const ROUNDS: usize = 5;
const BLOCK_BYTES: usize = 16 * 1024;
const MESSAGE_BYTES: usize = 128;
const STACK_BYTES: usize = 128 * 1024;

/// Pauses that leave a core to the relay: some 80 MB/s, and 25,000 messages per second.
const STREAM_PAUSE: Duration = Duration::from_millis(20);
const EXCHANGE_PAUSE: Duration = Duration::from_millis(20);
