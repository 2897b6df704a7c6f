//! Engine threads that cannot go on: what becomes of their tunnels, of the others, of the process, and what health says.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::support::{Device, Faults, Relay, Signal, Site, V4, tools_or_skip, wait_for};

/// Tunnels that the kernel has spread over two threads by their ports.
const TUNNELS: usize = 24;

fn tunnels(site: &Site, relay: &Relay, device: &Device) -> Vec<TcpStream> {
    (0..TUNNELS).map(|_| site.ask(relay, device.port()).opened()).collect()
}

/// Sends a byte and reads it back. `None` where the tunnel was reset.
fn exchanges(mut tunnel: &TcpStream) -> Option<()> {
    let mut byte = [0];
    let exchanged = tunnel.write_all(b"x").and_then(|()| tunnel.read_exact(&mut byte));
    match exchanged {
        Ok(()) => Some(()),
        Err(error) if matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => None,
        Err(error) => panic!("a tunnel ended as if all its bytes had come: {error}"),
    }
}

/// Opens a site with two engine threads.
fn two_threads() -> Site {
    Site::new("engine.threads = 2\ntimeouts.drain = '0s'")
}

#[test]
fn a_thread_that_the_kernel_refuses_for_a_moment_goes_on_with_all_its_tunnels() {
    if !tools_or_skip("a_thread_that_the_kernel_refuses_for_a_moment_goes_on_with_all_its_tunnels", &["cc"]) {
        return;
    }
    let site = two_threads();
    let faults = Faults::new(&site);
    let relay = faults.start(&site);
    let device = Device::echo(V4);
    let tunnels = tunnels(&site, &relay, &device);
    for errno in [libc::ENOMEM, libc::EAGAIN, libc::EBUSY, libc::EINTR] {
        faults.fail_enter(&relay, "engine-0", errno, 50);
        assert!(tunnels.iter().all(|tunnel| exchanges(tunnel).is_some()), "errno {errno}");
        assert_eq!(faults.left(), 0, "errno {errno} came to all calls");
    }
    assert_eq!(relay.metric("sluicegate_thread_restarts_total"), Some(0.0));
}

#[test]
fn a_thread_that_lost_its_ring_resets_its_own_tunnels_alone_and_begins_anew() {
    if !tools_or_skip("a_thread_that_lost_its_ring_resets_its_own_tunnels_alone_and_begins_anew", &["cc"]) {
        return;
    }
    let site = two_threads();
    let faults = Faults::new(&site);
    let relay = faults.start(&site);
    let device = Device::echo(V4);
    let first = tunnels(&site, &relay, &device);
    faults.fail_enter(&relay, "engine-0", libc::EBADR, 1);
    let alive = first.iter().filter(|tunnel| exchanges(tunnel).is_some()).count();
    assert!((1..TUNNELS).contains(&alive), "{alive} of {TUNNELS} are alive");
    assert!(relay.logs("an engine thread has failed; its sessions were reset, and it begins anew"));

    let second = tunnels(&site, &relay, &device);
    assert!(second.iter().all(|tunnel| exchanges(tunnel).is_some()));
    assert_eq!(relay.metric("sluicegate_thread_restarts_total"), Some(1.0));
    assert_eq!(relay.metric("sluicegate_sessions"), Some((alive + TUNNELS) as f64));
    assert!(relay.admin_get("/livez").ends_with("ok\n"));
    let ended = |event: &serde_json::Value| event["cause"] == "node-thread";
    let events = wait_for(|| {
        let events = site.audit().events();
        let count = events.iter().filter(|event| ended(event)).count();
        (count == TUNNELS - alive).then_some(events)
    });
    let events = events.expect("one event for each tunnel that was reset");
    let mut sessions: Vec<_> = events.iter().filter_map(|event| event["session"].as_u64()).collect();
    sessions.sort_unstable();
    sessions.dedup();
    assert_eq!(sessions.len(), events.len(), "no session has the number of another");
}

#[test]
fn a_thread_that_fails_again_and_again_ends_the_process_by_an_error_and_its_tunnels_by_resets() {
    let name = "a_thread_that_fails_again_and_again_ends_the_process_by_an_error_and_its_tunnels_by_resets";
    if !tools_or_skip(name, &["cc"]) {
        return;
    }
    let site = two_threads();
    let faults = Faults::new(&site);
    let mut relay = faults.start(&site);
    let device = Device::echo(V4);
    let tunnels = tunnels(&site, &relay, &device);
    faults.fail_enter(&relay, "engine-0", libc::EBADF, -1);
    tunnels.iter().filter_map(exchanges).for_each(drop);
    let status = relay.wait().expect("the process ends");
    assert_eq!(status.code(), Some(1));
    let log = relay.log();
    assert!(log.contains("sluicegate: engine thread 0 has failed 5 times within 60 s, last by: "), "{log}");
    assert!(tunnels.iter().all(|tunnel| exchanges(tunnel).is_none()), "every tunnel ended by a reset");
}

#[test]
fn health_says_which_thread_does_not_turn() {
    if !tools_or_skip("health_says_which_thread_does_not_turn", &["cc"]) {
        return;
    }
    let site = two_threads();
    let faults = Faults::new(&site);
    let relay = faults.start(&site);
    assert!(relay.admin_get("/livez").ends_with("ok\n"));
    faults.block_enter(&relay, "engine-1");
    for path in ["/livez", "/readyz"] {
        assert!(relay.admin_comes_to_say(path, "503 Service Unavailable"));
        let answer = relay.admin_get(path);
        assert!(answer.ends_with("\nengine thread 1 has not turned for 2s\n"), "{answer}");
    }
    faults.pass();
    assert!(relay.admin_comes_to_say("/livez", "ok\n"));
    assert!(relay.admin_comes_to_say("/readyz", "ready\n"));
}

#[test]
fn a_stop_does_not_wait_for_a_thread_that_does_not_turn() {
    if !tools_or_skip("a_stop_does_not_wait_for_a_thread_that_does_not_turn", &["cc"]) {
        return;
    }
    let site = two_threads();
    let faults = Faults::new(&site);
    let mut relay = faults.start(&site);
    faults.block_enter(&relay, "engine-1");
    assert!(relay.admin_comes_to_say("/livez", "503 Service Unavailable"));
    relay.signal(Signal::SIGTERM);
    let asked_at = Instant::now();
    assert!(relay.wait().is_some_and(|status| status.success()));
    assert!(asked_at.elapsed() < Duration::from_secs(20), "{:?}", asked_at.elapsed());
    let log = relay.log();
    assert!(log.contains("the thread `engine-1` has not stopped within 5s, and is left behind"), "{log}");
}
