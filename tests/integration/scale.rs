//! Thousands of tunnels at once.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::Instant;

use crate::support::{Device, Site, V4, connect, wait_for};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use sluicegate::config::Config;
use sluicegate::node::Node;

const TUNNELS: usize = 5_000;

/// Our own side needs both ends of every tunnel; the usual soft limit of 1,024 is not enough.
fn raise_descriptor_limit() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    assert!(hard as usize > 2 * TUNNELS + 200, "this needs `ulimit -Hn` above {}", 2 * TUNNELS + 200);
}

/// Each end sends the other the tunnel's number, and both must get it.
fn exchange_numbers(tunnels: &mut [(TcpStream, TcpStream)]) {
    for (number, (client, _)) in tunnels.iter_mut().enumerate() {
        client.write_all(&(number as u64).to_le_bytes()).unwrap();
    }
    for (number, (client, device)) in tunnels.iter_mut().enumerate() {
        let mut received = [0; 8];
        device.read_exact(&mut received).unwrap();
        assert_eq!(u64::from_le_bytes(received), number as u64, "upwards");
        device.write_all(&received).unwrap();
        received = [0; 8];
        client.read_exact(&mut received).unwrap();
        assert_eq!(u64::from_le_bytes(received), number as u64, "downwards");
    }
}

#[test]
fn five_thousand_tunnels_are_open_at_once_and_each_carries_its_own_bytes() {
    raise_descriptor_limit();
    let site = Site::new("limits = { sessions_per_device = 5000, sessions_per_principal = 5000 }");
    let relay = site.start();
    let device = Device::listening(V4);
    let request = site.request(&device);
    let before = relay.rss_bytes();
    let began = Instant::now();
    let mut tunnels = Vec::with_capacity(TUNNELS);
    for _ in 0..TUNNELS {
        let client = request.send(relay.address()).opened();
        // The relay answers once the device has taken the connection, so this one is the client's.
        tunnels.push((client, device.accept()));
    }
    println!("{TUNNELS} tunnels opened one by one in {:.1} s", began.elapsed().as_secs_f64());
    assert_eq!(relay.metric("sluicegate_sessions"), Some(TUNNELS as f64));
    exchange_numbers(&mut tunnels);
    let per_tunnel = relay.rss_bytes().saturating_sub(before) / TUNNELS as u64;
    println!("{per_tunnel} bytes of RSS for each idle, once used tunnel");

    // Every other one goes; those that stay are still whole.
    let mut stays = false;
    tunnels.retain(|_| {
        stays = !stays;
        stays
    });
    assert!(relay.metric_becomes("sluicegate_sessions", |sessions| sessions == (TUNNELS / 2) as f64));
    exchange_numbers(&mut tunnels);
    drop(tunnels);
    assert!(relay.metric_becomes("sluicegate_sessions", |sessions| sessions == 0.0));
    assert_eq!(site.audit().wait_for_events(TUNNELS).len(), TUNNELS, "each has ended once");
    assert_eq!(relay.metric("sluicegate_audit_dropped_total"), Some(0.0));
}

#[test]
fn clients_that_come_at_once_from_many_threads_are_all_served() {
    const THREADS: usize = 8;
    const TUNNELS_EACH: usize = 100;
    raise_descriptor_limit();
    let site = Site::new("");
    let relay = site.start();
    let device = Device::echo(V4);
    let request = site.request(&device);
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let (request, relay) = (&request, relay.address());
            scope.spawn(move || {
                for number in 0..TUNNELS_EACH {
                    let mut client = request.send(relay).opened();
                    let sent = ((thread * TUNNELS_EACH + number) as u64).to_le_bytes();
                    client.write_all(&sent).unwrap();
                    let mut received = [0; 8];
                    client.read_exact(&mut received).unwrap();
                    assert_eq!(received, sent);
                }
            });
        }
    });
    let opened = relay.metric("sluicegate_tunnels_opened_total");
    assert_eq!(opened, Some((THREADS * TUNNELS_EACH) as f64));
    assert!(relay.metric_becomes("sluicegate_sessions", |sessions| sessions == 0.0));
}

#[test]
fn sessions_spread_evenly_over_the_engine_threads() {
    const SESSIONS: usize = 1_000;
    raise_descriptor_limit();
    for threads in [2, 4] {
        let site = Site::new(&format!("engine.threads = {threads}"));
        let node = Node::start(Config::load(Some(&site.config_path()), []).unwrap()).unwrap();
        let _clients: Vec<_> = (0..SESSIONS).map(|_| connect(node.client_addresses()[0])).collect();
        assert!(wait_for(|| (node.engine().sessions_active() == SESSIONS as u64).then_some(())).is_some());
        let by_thread: Vec<_> =
            node.engine().counters().map(|counters| counters.sessions.active.get()).collect();
        // The kernel spreads by a hash of both addresses: with four threads, 1.25 is 4.6 sigma away.
        let most = *by_thread.iter().max().unwrap() as f64;
        let mean = SESSIONS as f64 / f64::from(threads);
        println!("{by_thread:?}: max / mean {:.3}", most / mean);
        assert!(most / mean <= 1.25, "{by_thread:?}");
    }
}
