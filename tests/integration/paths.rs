//! Directions change their path as their traffic changes, and nothing is lost on the way.
//!
//! Traffic comes from seeds: messages of 1 B to 8 MiB, pauses, slow readers, FINs and resets at any
//! point. A failure names its seed.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::Duration;

use crate::support::{Content, Device, Digest, End, Relay, Signal, Site, V4, receive, reset};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

const PATHS: [&str; 4] = ["auto", "copy", "splice", "ring-splice"];

/// Numbers from a seed, by xorshift64*.
struct Dice(u64);

impl Dice {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn below(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % sides
    }

    /// Mostly small, sometimes large: every power of two is as likely as the next.
    fn size(&mut self, max: u64) -> usize {
        let power = self.below(u64::from(max.ilog2()) + 1);
        (1 + self.below(1 << power)) as usize
    }

    /// Mostly none, sometimes long enough for a direction to fall quiet.
    fn pause(&mut self) {
        if self.below(8) == 0 {
            thread::sleep(Duration::from_micros(self.below(3_000)));
        }
    }
}

/// The way in which one side of a tunnel ends its sending.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Finish {
    Fin,
    Reset,
}

/// The bytes that one side sends, and its way of reading.
#[derive(Clone, Copy, Debug)]
struct Side {
    seed: u64,
    content: Content,
    finish: Finish,
}

const MESSAGE_BYTES_MAX: u64 = 8 << 20;

impl Side {
    fn new(seed: u64, finish: Finish) -> Self {
        let len = Dice::new(seed).size(MESSAGE_BYTES_MAX) as u64;
        Self { seed, content: Content::new(seed, len), finish }
    }

    /// Sends its content in messages of any size.
    fn send(self, mut socket: &TcpStream) {
        let mut dice = Dice::new(self.seed ^ 1);
        let bytes = self.content.to_vec();
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let (message, behind) = rest.split_at(dice.size(MESSAGE_BYTES_MAX).min(rest.len()));
            // A peer that resets ends this too.
            if socket.write_all(message).is_err() {
                return;
            }
            rest = behind;
            dice.pause();
        }
        match self.finish {
            Finish::Fin => {
                let _reset_by_now = socket.shutdown(Shutdown::Write);
            }
            // Its own reader ends, and then nobody holds the socket that `play` resets.
            Finish::Reset => {
                let _reset_by_now = socket.shutdown(Shutdown::Read);
            }
        }
    }

    /// Reads until the stream ends, at a pace of its own.
    fn receive(self, socket: &TcpStream) -> (Digest, End) {
        receive(&mut Paced { socket, dice: Dice::new(self.seed ^ 2) })
    }
}

/// A reader that takes as much as it likes, when it likes.
struct Paced<'a> {
    socket: &'a TcpStream,
    dice: Dice,
}

impl Read for Paced<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.dice.pause();
        let len = self.dice.size(1 << 20).min(buffer.len());
        self.socket.read(&mut buffer[..len])
    }
}

/// One side of a tunnel: sends as `own` says and receives what `other` sends, both at once.
fn play(socket: TcpStream, own: Side, other: Side) -> (Digest, End) {
    let received = thread::scope(|scope| {
        scope.spawn(|| own.send(&socket));
        other.receive(&socket)
    });
    if own.finish == Finish::Reset {
        reset(socket);
    }
    received
}

/// Both sides of a tunnel at once; what the device received, and what the client did.
fn exchange(client: TcpStream, device: TcpStream, up: Side, down: Side) -> [(Digest, End); 2] {
    thread::scope(|scope| {
        let at_device = scope.spawn(move || play(device, down, up));
        let at_client = play(client, up, down);
        [at_device.join().unwrap(), at_client]
    })
}

fn site_with(fragment: &str) -> (Site, Relay) {
    let site = Site::new(fragment);
    let relay = site.start();
    (site, relay)
}

fn tunnel(site: &Site, relay: &Relay, device: &Device) -> (TcpStream, TcpStream) {
    let client = site.request(device).send(relay.address()).opened();
    (client, device.accept())
}

fn raise_descriptor_limit() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
}

#[test]
fn traffic_of_any_shape_arrives_whole() {
    const TUNNELS: u64 = 24;
    for (number, forwarding) in (0u64..).zip(PATHS) {
        let (site, relay) = site_with(&format!("engine.forwarding = '{forwarding}'"));
        let device = Device::listening(V4);
        thread::scope(|scope| {
            for seed in number * 1000..number * 1000 + TUNNELS {
                let (client, device) = tunnel(&site, &relay, &device);
                scope.spawn(move || {
                    let up = Side::new(2 * seed, Finish::Fin);
                    let down = Side::new(2 * seed + 1, Finish::Fin);
                    let [at_device, at_client] = exchange(client, device, up, down);
                    assert_eq!(at_device, (up.content.digest(), End::Fin), "{forwarding}, seed {seed}, up");
                    assert_eq!(
                        at_client,
                        (down.content.digest(), End::Fin),
                        "{forwarding}, seed {seed}, down"
                    );
                });
            }
        });
        assert!(relay.metric_becomes("sluicegate_sessions", |sessions| sessions == 0.0));
    }
}

#[test]
fn a_reset_at_any_point_ends_its_tunnel_and_leaves_nothing_behind() {
    const TUNNELS: u64 = 16;
    for (number, forwarding) in (0u64..).zip(PATHS) {
        let (site, relay) = site_with(&format!("engine.forwarding = '{forwarding}'"));
        let device = Device::listening(V4);
        // One tunnel first, so that what a thread keeps for good is there already.
        drop(tunnel(&site, &relay, &device));
        assert!(relay.metric_becomes("sluicegate_sessions", |sessions| sessions == 0.0));
        let descriptors_before = relay.descriptors().len();
        thread::scope(|scope| {
            for seed in number * 1000..number * 1000 + TUNNELS {
                let (client, device) = tunnel(&site, &relay, &device);
                scope.spawn(move || {
                    let finishes = if seed % 2 == 0 {
                        [Finish::Reset, Finish::Fin]
                    } else {
                        [Finish::Fin, Finish::Reset]
                    };
                    let up = Side::new(2 * seed, finishes[0]);
                    let down = Side::new(2 * seed + 1, finishes[1]);
                    exchange(client, device, up, down);
                });
            }
        });
        assert!(relay.metric_becomes("sluicegate_sessions", |sessions| sessions == 0.0));
        // Pooled pipes are the only descriptors that may have come.
        let pipes = relay.descriptors().len().saturating_sub(descriptors_before);
        assert!(pipes <= 4 * TUNNELS as usize, "{forwarding}: {pipes} descriptors are left");
        let device = Device::echo(V4);
        let mut echo = site.request(&device).send(relay.address()).opened();
        echo.write_all(b"x").unwrap();
        echo.read_exact(&mut [0]).unwrap();
    }
}

#[test]
fn a_direction_that_changes_its_pace_again_and_again_changes_its_path_and_loses_nothing() {
    const ROUNDS: u64 = 20;
    let (site, relay) = site_with("");
    let (client, device) = tunnel(&site, &relay, &Device::listening(V4));
    for round in 0..ROUNDS {
        let burst = Content::new(round, 2 << 20).to_vec();
        thread::scope(|scope| {
            scope.spawn(|| (&client).write_all(&burst).unwrap());
            let mut received = vec![0; burst.len()];
            (&device).read_exact(&mut received).unwrap();
            assert!(received == burst, "round {round}: the burst");
        });
        for number in 0..20u64 {
            (&client).write_all(&number.to_le_bytes()).unwrap();
            let mut received = [0; 8];
            (&device).read_exact(&mut received).unwrap();
            assert_eq!(u64::from_le_bytes(received), number, "round {round}");
        }
    }
    let promotions = relay.metric("sluicegate_promotions_total").unwrap();
    assert!(promotions >= ROUNDS as f64 / 2.0, "only {promotions} changes of path");
}

#[test]
fn thousands_of_short_tunnels_pass_beside_a_few_long_ones_by_every_path() {
    for forwarding in PATHS {
        let (site, relay) = site_with(&format!("engine.forwarding = '{forwarding}'"));
        let long = Device::listening(V4);
        let short = Device::echo(V4);
        thread::scope(|scope| {
            for seed in 0..3 {
                let ends = tunnel(&site, &relay, &long);
                scope.spawn(move || pass_a_long_stream(ends, Content::new(seed, 32 << 20)));
            }
            for thread in 0..4 {
                let (site, relay, short) = (&site, &relay, &short);
                scope.spawn(move || pass_short_messages(site, relay, short, thread));
            }
        });
        assert!(relay.metric_becomes("sluicegate_sessions", |sessions| sessions == 0.0), "{forwarding}");
    }
}

fn pass_a_long_stream((client, device): (TcpStream, TcpStream), content: Content) {
    thread::scope(|scope| {
        scope.spawn(|| {
            content.send(&mut &client).unwrap();
            client.shutdown(Shutdown::Write).unwrap();
        });
        assert_eq!(receive(&mut &device), (content.digest(), End::Fin), "{content:?}");
    });
}

/// Tunnels one after the other, each for one message and its echo.
fn pass_short_messages(site: &Site, relay: &Relay, echo: &Device, seed: u64) {
    const TUNNELS: u64 = 300;
    for number in 0..TUNNELS {
        let mut client = site.request(echo).send(relay.address()).opened();
        let sent = Content::new(seed << 32 | number, 1 + number * 7 % 3000).to_vec();
        client.write_all(&sent).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut received = Vec::new();
        client.read_to_end(&mut received).unwrap();
        assert!(received == sent, "short tunnel {number} of thread {seed}");
    }
}

#[test]
fn running_out_of_receive_buffers_delays_and_loses_nothing() {
    let (site, relay) = site_with("engine = { forwarding = 'copy', buffers = 2, threads = 1 }");
    let device = Device::listening(V4);
    thread::scope(|scope| {
        for seed in 0..16 {
            let (client, device) = tunnel(&site, &relay, &device);
            scope.spawn(move || {
                let (up, down) = (Content::new(seed, 3 << 20), Content::new(seed + 100, 1 << 20));
                thread::scope(|scope| {
                    scope.spawn(|| up.send(&mut &client).unwrap());
                    scope.spawn(|| down.send(&mut &device).unwrap());
                    let mut received = vec![0; 3 << 20];
                    (&device).read_exact(&mut received).unwrap();
                    assert_eq!(Content::digest_of(&received), up.digest());
                    let mut received = vec![0; 1 << 20];
                    (&client).read_exact(&mut received).unwrap();
                    assert_eq!(Content::digest_of(&received), down.digest());
                });
            });
        }
    });
    let exhausted = relay.metric("sluicegate_buffers_exhausted_total").unwrap();
    assert!(exhausted > 0.0, "two buffers were enough, so nothing was tested");
}

#[test]
fn streams_that_use_up_the_receive_buffers_leave_some_for_new_clients_and_quiet_tunnels() {
    let (site, relay) = site_with("engine = { forwarding = 'copy', buffers = 2, threads = 1 }");
    let greedy = Device::serving(V4, |mut socket| drop(std::io::copy(&mut socket, &mut std::io::sink())));
    let echo = Device::echo(V4);
    let mut quiet = site.request(&echo).send(relay.address()).opened();
    let streams: Vec<_> = (0..6).map(|_| site.request(&greedy).send(relay.address()).opened()).collect();
    thread::scope(|scope| {
        for mut stream in &streams {
            scope.spawn(move || while stream.write_all(&[7; 256 * 1024]).is_ok() {});
        }
        for number in 0..20u8 {
            // Answered with 408 where its head finds no buffer for all of `timeouts.head`.
            site.request(&echo).send(relay.address()).opened();
            quiet.write_all(&[number]).unwrap();
            let mut echoed = [0];
            quiet.read_exact(&mut echoed).unwrap();
            assert_eq!(echoed, [number]);
        }
        for stream in &streams {
            let _ended = stream.shutdown(Shutdown::Both);
        }
    });
    let exhausted = relay.metric("sluicegate_buffers_exhausted_total").unwrap();
    assert!(exhausted > 0.0, "two buffers were enough, so nothing was tested");
}

#[test]
fn running_out_of_pipes_falls_back_to_copying() {
    let (site, relay) = site_with("engine = { pipes = 1, threads = 1 }");
    let device = Device::listening(V4);
    // A stalled direction keeps the only pipe.
    let (stalled, _never_read) = tunnel(&site, &relay, &device);
    stalled.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
    let chunk = vec![0; 1 << 20];
    while (&stalled).write(&chunk).is_ok() {}
    thread::scope(|scope| {
        for seed in 0..4 {
            let (client, device) = tunnel(&site, &relay, &device);
            scope.spawn(move || {
                let content = Content::new(seed, 8 << 20);
                thread::scope(|scope| {
                    scope.spawn(|| {
                        content.send(&mut &client).unwrap();
                        client.shutdown(Shutdown::Write).unwrap();
                    });
                    assert_eq!(receive(&mut &device), (content.digest(), End::Fin));
                });
            });
        }
    });
    let exhausted = relay.metric("sluicegate_pipes_exhausted_total").unwrap();
    assert!(exhausted > 0.0, "one pipe was enough, so nothing was tested");
}

#[test]
fn five_thousand_tunnels_are_open_at_once_and_end_in_time_with_their_relay() {
    const TUNNELS: usize = 5_000;
    raise_descriptor_limit();
    let (site, mut relay) = site_with(
        "limits = { sessions = 6000, sessions_per_principal = 6000, sessions_per_device = 6000 }
         timeouts.drain = '1ms'",
    );
    let device = Device::listening(V4);
    let request = site.request(&device);
    let mut tunnels = Vec::with_capacity(TUNNELS);
    for number in 0..TUNNELS as u64 {
        let mut client = request.send(relay.address()).opened();
        let mut device = device.accept();
        client.write_all(&number.to_le_bytes()).unwrap();
        let mut received = [0; 8];
        device.read_exact(&mut received).unwrap();
        assert_eq!(u64::from_le_bytes(received), number);
        tunnels.push((client, device));
    }
    assert_eq!(relay.metric("sluicegate_sessions"), Some(TUNNELS as f64));
    for (number, (client, device)) in (0u64..).zip(&mut tunnels) {
        device.write_all(&number.to_le_bytes()).unwrap();
        let mut received = [0; 8];
        client.read_exact(&mut received).unwrap();
        assert_eq!(u64::from_le_bytes(received), number);
    }
    relay.signal(Signal::SIGTERM);
    let ended = relay.wait().expect("it ends");
    assert_eq!(ended.code(), Some(0));
    for (client, device) in &mut tunnels {
        assert_eq!((receive(client).1, receive(device).1), (End::Reset, End::Reset));
    }
}
