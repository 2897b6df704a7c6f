//! The network that `make compare` measures in.

use std::net::{TcpListener, TcpStream};
use std::thread;

use crate::support::{V4, root_or_skip, tools_or_skip};

const CONGESTION_CONTROL: &str = "/proc/sys/net/ipv4/tcp_congestion_control";

#[test]
fn a_comparison_has_a_network_of_its_own_and_leaves_the_machines_alone() {
    let name = "a_comparison_has_a_network_of_its_own_and_leaves_the_machines_alone";
    if !root_or_skip(name) || !tools_or_skip(name, &["ip"]) {
        return;
    }
    let outside = TcpListener::bind((V4, 0)).unwrap().local_addr().unwrap();
    let occupied = TcpListener::bind(outside).unwrap();
    let before = std::fs::read_to_string(CONGESTION_CONTROL).unwrap();

    let inside = thread::spawn(move || {
        crate::network::isolate().unwrap();
        // The same port is free here, and loopback works.
        let listener = TcpListener::bind(outside).unwrap();
        TcpStream::connect(outside).unwrap();
        listener.accept().unwrap();
        crate::network::congestion_control().unwrap()
    });

    assert_eq!(inside.join().unwrap(), "cubic");
    assert_eq!(std::fs::read_to_string(CONGESTION_CONTROL).unwrap(), before);
    drop(occupied);
}
