//! Bytes arrive whole and in order, both ways, whoever speaks, stalls, closes or resets first.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::{
    Answer, Content, Device, Digest, End, Relay, Site, V4, V6, connect, ipv6_or_skip, receive,
    receive_slowly, reset,
};
use sluicegate::engine::SESSION_BYTES_MAX;

const PATHS: [&str; 4] = ["copy", "splice", "auto", "ring-splice"];

/// Enough to fill every socket buffer and pipe on the way several times over.
const BULK_BYTES: u64 = 24 << 20;

fn site_with(forwarding: &str) -> Site {
    Site::new(&format!("engine.forwarding = '{forwarding}'"))
}

/// A tunnel by its two ends: the client's socket and the device's.
fn tunnel(site: &Site, relay: &Relay, device: &Device) -> (TcpStream, TcpStream) {
    let client = site.request(device).send(relay.address()).opened();
    (client, device.accept())
}

/// Sends `content` and then a FIN; what was sent.
fn send_all(mut socket: &TcpStream, content: Content) -> Digest {
    let sent = content.send(&mut socket).unwrap();
    socket.shutdown(Shutdown::Write).unwrap();
    sent
}

fn bulk_both_ways(forwarding: &str, ip: IpAddr) {
    let (up, down) = (Content::new(1, BULK_BYTES), Content::new(2, BULK_BYTES + 1));
    let site = site_with(forwarding);
    let relay = site.start();
    let device = Device::listening(ip);
    let (client, device) = tunnel(&site, &relay, &device);
    thread::scope(|scope| {
        scope.spawn(|| send_all(&client, up));
        scope.spawn(|| send_all(&device, down));
        let at_device = scope.spawn(|| receive(&mut &device));
        let at_client = receive(&mut &client);
        assert_eq!(at_device.join().unwrap(), (up.digest(), End::Fin), "{forwarding}");
        assert_eq!(at_client, (down.digest(), End::Fin), "{forwarding}");
    });
    let event = &site.audit().wait_for_events(1)[0];
    assert_eq!(event["event"], "session-end", "{event}");
    assert_eq!(event["cause"], "closed", "{event}");
    assert_eq!((&event["bytes_up"], &event["bytes_down"]), (&BULK_BYTES.into(), &(BULK_BYTES + 1).into()));
}

#[test]
fn bulk_arrives_whole_both_ways_at_once_by_every_path() {
    for forwarding in PATHS {
        bulk_both_ways(forwarding, V4);
    }
}

#[test]
fn bulk_arrives_whole_from_a_device_with_an_ipv6_address() {
    if ipv6_or_skip("bulk_arrives_whole_from_a_device_with_an_ipv6_address") {
        for forwarding in PATHS {
            bulk_both_ways(forwarding, V6);
        }
    }
}

#[test]
fn clients_come_by_either_family_and_every_listener() {
    if !ipv6_or_skip("clients_come_by_either_family_and_every_listener") {
        return;
    }
    let site = Site::new("listen = [{ address = '127.0.0.1:0' }, { address = '[::1]:0' }]");
    let relay = site.start();
    let device = Device::echo(V4);
    assert_eq!(relay.addresses().iter().map(|address| address.is_ipv6()).collect::<Vec<_>>(), [false, true]);
    for address in relay.addresses() {
        let mut client = site.request(&device).send(*address).opened();
        client.write_all(b"hello").unwrap();
        let mut echoed = [0; 5];
        client.read_exact(&mut echoed).unwrap();
        assert_eq!(&echoed, b"hello");
    }
}

#[test]
fn what_the_metrics_count_is_what_went_through_each_path() {
    for (forwarding, path) in [("copy", "copy"), ("splice", "splice"), ("ring-splice", "splice")] {
        let site = site_with(forwarding);
        let relay = site.start();
        let device = Device::listening(V4);
        let (client, device) = tunnel(&site, &relay, &device);
        thread::scope(|scope| {
            scope.spawn(|| send_all(&client, Content::new(3, BULK_BYTES)));
            receive(&mut &device);
        });
        let line =
            format!("sluicegate_forwarded_bytes_total{{direction=\"up\",path=\"{path}\"}} {BULK_BYTES}");
        let metrics = relay.admin_get("/metrics");
        assert!(metrics.contains(&line), "{line}\n{metrics}");
    }
}

#[test]
fn a_stream_is_promoted_to_splicing_and_a_quiet_one_is_not() {
    let site = site_with("auto");
    let relay = site.start();
    let device = Device::echo(V4);
    let mut client = site.request(&device).send(relay.address()).opened();
    for _ in 0..100 {
        client.write_all(b"a line\n").unwrap();
        client.read_exact(&mut [0; 7]).unwrap();
    }
    assert_eq!(relay.metric("sluicegate_promotions_total"), Some(0.0));
    let content = Content::new(4, BULK_BYTES);
    thread::scope(|scope| {
        scope.spawn(|| send_all(&client, content));
        assert_eq!(receive(&mut &client), (content.digest(), End::Fin));
    });
    assert_eq!(relay.metric("sluicegate_promotions_total"), Some(2.0), "one for each direction");
}

#[test]
fn a_device_that_speaks_first_is_heard_behind_the_reply() {
    for forwarding in PATHS {
        let site = site_with(forwarding);
        let relay = site.start();
        let device = Device::serving(V4, |mut socket| {
            socket.write_all(b"SSH-2.0-device\r\n").unwrap();
            receive(&mut socket);
        });
        let mut client = site.request(&device).send(relay.address()).opened();
        let mut banner = [0; 16];
        client.read_exact(&mut banner).unwrap();
        assert_eq!(&banner, b"SSH-2.0-device\r\n", "{forwarding}");
    }
}

#[test]
fn what_a_client_sends_along_with_its_head_reaches_the_device() {
    // From one byte to more than any buffer of the relay; the rest comes in later segments.
    for forwarding in PATHS {
        let site = site_with(forwarding);
        let relay = site.start();
        let device = Device::listening(V4);
        for len in [1, 100, 5_000, 20_000, 300_000] {
            let early = Content::new(len, len);
            let request = site.request(&device).early(&early.to_vec());
            thread::scope(|scope| {
                let client = scope.spawn(|| {
                    let client = request.send(relay.address()).opened();
                    client.shutdown(Shutdown::Write).unwrap();
                    client
                });
                let mut at_device = device.accept();
                assert_eq!(receive(&mut at_device), (early.digest(), End::Fin), "{forwarding}, {len} bytes");
                client.join().unwrap();
            });
        }
    }
}

#[test]
fn a_client_that_sends_all_it_has_and_closes_its_side_at_once_gets_its_answer() {
    for forwarding in PATHS {
        let site = site_with(forwarding);
        let relay = site.start();
        let device = Device::echo(V4);
        let mut client = connect(relay.address());
        client.write_all(&site.request(&device).early(b"one shot").bytes()).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut answer = Answer::read(client);
        assert_eq!(answer.status, 200, "{forwarding}");
        assert_eq!(answer.rest().unwrap(), b"one shot", "{forwarding}");
    }
}

#[test]
fn a_head_cut_at_every_byte_means_the_same() {
    let site = Site::new("");
    let relay = site.start();
    let device = Device::echo(V4);
    let bytes = site.request(&device).header("Host: device").early(b"payload").bytes();
    for cut in 1..bytes.len() {
        let mut client = connect(relay.address());
        client.write_all(&bytes[..cut]).unwrap();
        // Long enough for the relay to have read the first part by itself, most of the time.
        thread::sleep(Duration::from_millis(2));
        client.write_all(&bytes[cut..]).unwrap();
        let mut client = Answer::read(client).opened();
        let mut echoed = [0; 7];
        client.read_exact(&mut echoed).unwrap();
        assert_eq!(&echoed, b"payload", "cut at {cut}");
    }
}

#[test]
fn a_head_that_comes_byte_by_byte_is_a_head() {
    let site = Site::new("");
    let relay = site.start();
    let device = Device::echo(V4);
    let mut client = connect(relay.address());
    for byte in site.request(&device).bytes() {
        client.write_all(&[byte]).unwrap();
        thread::sleep(Duration::from_micros(300));
    }
    let mut client = Answer::read(client).opened();
    client.write_all(b"x").unwrap();
    client.read_exact(&mut [0]).unwrap();
}

/// The end that acts first, in a test that runs both ways round.
#[derive(Clone, Copy, Debug)]
enum First {
    Client,
    Device,
}

impl First {
    const BOTH: [Self; 2] = [Self::Client, Self::Device];

    /// The two ends of a tunnel, the one that acts first in front.
    fn order(self, (client, device): (TcpStream, TcpStream)) -> (TcpStream, TcpStream) {
        match self {
            Self::Client => (client, device),
            Self::Device => (device, client),
        }
    }
}

#[test]
fn whoever_half_closes_first_still_receives() {
    let (question, answer) = (Content::new(5, 1 << 20), Content::new(6, 3 << 20));
    for forwarding in PATHS {
        let site = site_with(forwarding);
        let relay = site.start();
        let device = Device::listening(V4);
        for first in First::BOTH {
            let (mut one, mut other) = first.order(tunnel(&site, &relay, &device));
            thread::scope(|scope| {
                scope.spawn(|| send_all(&one, question));
                assert_eq!(receive(&mut &other), (question.digest(), End::Fin), "{forwarding}, {first:?}");
            });
            // Nothing moves for a while: a relay that ends both directions has time to do so.
            thread::sleep(Duration::from_millis(100));
            thread::scope(|scope| {
                scope.spawn(|| answer.send(&mut other).unwrap());
                one.read_exact(&mut [0; 1000]).unwrap();
            });
            other.shutdown(Shutdown::Write).unwrap();
            let (rest, end) = receive(&mut one);
            assert_eq!((rest.len, end), ((3 << 20) - 1000, End::Fin), "{forwarding}, {first:?}");
        }
        let events = site.audit().wait_for_events(2);
        assert!(events.iter().all(|event| event["cause"] == "closed"), "{events:?}");
    }
}

#[test]
fn a_tunnel_that_says_nothing_and_closes_from_either_side_ends_cleanly() {
    for forwarding in PATHS {
        let site = site_with(forwarding);
        let relay = site.start();
        let device = Device::listening(V4);
        for first in First::BOTH {
            let (mut one, mut other) = first.order(tunnel(&site, &relay, &device));
            one.shutdown(Shutdown::Write).unwrap();
            assert_eq!(receive(&mut other).1, End::Fin, "{forwarding}, {first:?}");
            drop(other);
            assert_eq!(receive(&mut one).1, End::Fin, "{forwarding}, {first:?}");
        }
        assert!(relay.metric_becomes("sluicegate_sessions", |sessions| sessions == 0.0));
    }
}

#[test]
fn both_sides_may_close_at_once() {
    for forwarding in PATHS {
        let site = site_with(forwarding);
        let relay = site.start();
        let device = Device::listening(V4);
        for _ in 0..20 {
            let (mut client, mut device) = tunnel(&site, &relay, &device);
            client.write_all(b"up").unwrap();
            device.write_all(b"down").unwrap();
            client.shutdown(Shutdown::Write).unwrap();
            device.shutdown(Shutdown::Write).unwrap();
            assert_eq!(receive(&mut client), (Content::digest_of(b"down"), End::Fin), "{forwarding}");
            assert_eq!(receive(&mut device), (Content::digest_of(b"up"), End::Fin), "{forwarding}");
        }
    }
}

#[test]
fn a_reset_is_passed_on_as_a_reset() {
    for forwarding in PATHS {
        for (first, cause) in [(First::Client, "client-reset"), (First::Device, "device-reset")] {
            let site = site_with(forwarding);
            let relay = site.start();
            let device = Device::listening(V4);
            let (mut one, mut other) = first.order(tunnel(&site, &relay, &device));
            // Seen to work in both directions, so that the reset is not one of the handshake.
            one.write_all(b"x").unwrap();
            other.read_exact(&mut [0]).unwrap();
            other.write_all(b"y").unwrap();
            one.read_exact(&mut [0]).unwrap();
            reset(one);
            assert_eq!(receive(&mut other).1, End::Reset, "{forwarding}, {first:?}");
            let event = &site.audit().wait_for_events(1)[0];
            assert_eq!(event["cause"], cause, "{forwarding}: {event}");
        }
    }
}

#[test]
fn a_reset_is_passed_on_while_the_other_side_does_not_read() {
    for forwarding in PATHS {
        let site = site_with(forwarding);
        let relay = site.start();
        let device = Device::listening(V4);
        for first in First::BOTH {
            let (one, mut other) = first.order(tunnel(&site, &relay, &device));
            fill(&one);
            reset(one);
            // It may still get what was under way, but never a FIN: something is missing.
            assert_eq!(receive(&mut other).1, End::Reset, "{forwarding}, {first:?}");
        }
        assert!(relay.metric_becomes("sluicegate_sessions", |sessions| sessions == 0.0));
    }
}

#[test]
fn a_reset_after_a_half_close_is_passed_on_too() {
    for forwarding in PATHS {
        let site = site_with(forwarding);
        let relay = site.start();
        let device = Device::listening(V4);
        for first in First::BOTH {
            let (one, mut other) = first.order(tunnel(&site, &relay, &device));
            other.shutdown(Shutdown::Write).unwrap();
            assert_eq!(receive(&mut &one).1, End::Fin, "{forwarding}, {first:?}");
            reset(one);
            assert_eq!(receive(&mut other).1, End::Reset, "{forwarding}, {first:?}");
        }
    }
}

/// Writes to a peer that does not read until nothing has been taken for a while; how much was taken.
fn fill(mut socket: &TcpStream) -> u64 {
    let chunk = vec![7; 64 * 1024];
    socket.set_nonblocking(true).unwrap();
    let mut taken = 0;
    let mut moved_at = Instant::now();
    while moved_at.elapsed() < Duration::from_millis(500) {
        match socket.write(&chunk) {
            Ok(len) => {
                taken += len as u64;
                moved_at = Instant::now();
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(Duration::from_millis(5)),
            Err(error) => panic!("the tunnel broke while it was being filled: {error}"),
        }
        assert!(taken < STALLED_BYTES_MAX, "nobody reads, and still {taken} bytes were taken");
    }
    socket.set_nonblocking(false).unwrap();
    taken
}

/// Bytes that four sockets at their largest and the relay between them can hold, with a margin.
const STALLED_BYTES_MAX: u64 = 128 << 20;

#[test]
fn a_slow_reader_on_either_side_gets_every_byte() {
    let content = Content::new(8, 4 << 20);
    for forwarding in PATHS {
        let site = site_with(forwarding);
        let relay = site.start();
        let device = Device::listening(V4);
        for fast in First::BOTH {
            let (sender, reader) = fast.order(tunnel(&site, &relay, &device));
            thread::scope(|scope| {
                scope.spawn(|| send_all(&sender, content));
                // Nothing is read until everything on the way is full.
                thread::sleep(Duration::from_millis(200));
                let received = receive_slowly(&mut &reader, 8 * 1024, Duration::from_micros(500));
                assert_eq!(received, (content.digest(), End::Fin), "{forwarding}, {fast:?} is the fast one");
            });
        }
    }
}

#[test]
fn readers_that_stall_leave_the_relay_with_the_memory_per_session_that_is_documented() {
    const TUNNELS: usize = 32;
    /// Growth of tables, and of what the allocator rounds up.
    const OTHER_BYTES_MAX: u64 = 2 << 20;
    for forwarding in ["copy", "splice", "auto"] {
        let site = site_with(forwarding);
        let mut run = site.command(&["run"]);
        // Else a kilobyte in use here and there would count as two megabytes each.
        run.env("MIMALLOC_ALLOW_THP", "0");
        let relay = Relay::start(run);
        let device = Device::listening(V4);
        let tunnels: Vec<_> = (0..TUNNELS).map(|_| tunnel(&site, &relay, &device)).collect();
        let before = relay.rss_bytes();
        let taken: u64 = thread::scope(|scope| {
            let fillers: Vec<_> = tunnels
                .iter()
                .flat_map(|(client, device)| [scope.spawn(|| fill(client)), scope.spawn(|| fill(device))])
                .collect();
            fillers.into_iter().map(|filler| filler.join().unwrap()).sum()
        });
        let grown = relay.rss_bytes().saturating_sub(before);
        println!("{forwarding}: {TUNNELS} stalled tunnels took {taken} bytes; the relay grew by {grown}");
        let documented = (TUNNELS * SESSION_BYTES_MAX) as u64;
        assert!(grown <= documented + OTHER_BYTES_MAX, "{forwarding}: grew by {grown} bytes");
        // And it serves others meanwhile.
        let echo = Device::echo(V4);
        let mut neighbour = site.request(&echo).send(relay.address()).opened();
        neighbour.write_all(b"x").unwrap();
        neighbour.read_exact(&mut [0]).unwrap();
    }
}

#[test]
fn a_stalled_direction_does_not_hold_up_the_other() {
    let content = Content::new(9, 8 << 20);
    for forwarding in PATHS {
        let site = site_with(forwarding);
        let relay = site.start();
        let device = Device::listening(V4);
        for stalled in First::BOTH {
            let (writer, peer) = stalled.order(tunnel(&site, &relay, &device));
            fill(&writer);
            thread::scope(|scope| {
                scope.spawn(|| send_all(&peer, content));
                let received = receive(&mut &writer);
                assert_eq!(
                    received,
                    (content.digest(), End::Fin),
                    "{forwarding}, {stalled:?} writes in vain"
                );
            });
        }
    }
}

#[test]
fn a_gigabyte_flows_each_way_at_once() {
    const BYTES: u64 = 1 << 30;
    let site = Site::new("");
    let relay = site.start();
    let device = Device::listening(V4);
    let (client, device) = tunnel(&site, &relay, &device);
    let began = Instant::now();
    thread::scope(|scope| {
        let up = scope.spawn(|| send_all(&client, Content::new(10, BYTES)));
        let down = scope.spawn(|| send_all(&device, Content::new(11, BYTES)));
        let at_device = scope.spawn(|| receive(&mut &device));
        let at_client = receive(&mut &client);
        assert_eq!(at_device.join().unwrap(), (up.join().unwrap(), End::Fin));
        assert_eq!(at_client, (down.join().unwrap(), End::Fin));
    });
    println!("1 GiB each way at once in {:.1} s", began.elapsed().as_secs_f64());
}
