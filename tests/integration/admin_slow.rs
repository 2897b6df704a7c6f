//! Slow clients of the admin side: health answers all the same.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use crate::support::Site;

/// Time in which health is to answer, also on a busy machine.
const SOON: Duration = Duration::from_secs(2);

#[test]
fn slow_clients_keep_no_health_check_waiting() {
    let site = Site::new("");
    let relay = site.start();
    // Silent ones, ones that send a byte at a time, and ones that do not read a long answer.
    let mut slow = Vec::new();
    for number in 0..200 {
        let mut client = TcpStream::connect(relay.admin()).unwrap();
        match number % 3 {
            0 => {}
            1 => client.write_all(b"GET /liv").unwrap(),
            _ => client.write_all(b"GET /metrics HTTP/1.1\r\nHost: node\r\n\r\n").unwrap(),
        }
        slow.push(client);
    }
    for _ in 0..5 {
        let asked_at = Instant::now();
        assert!(relay.admin_get("/livez").ends_with("ok\n"));
        assert!(asked_at.elapsed() < SOON, "{:?}", asked_at.elapsed());
    }
    drop(slow);
}

#[test]
fn silent_programs_on_the_socket_keep_no_command_waiting() {
    let site = Site::new("");
    let socket = site.folder().join("admin.sock");
    let mut site = site;
    site.configure(&format!("admin.socket = '{}'", socket.display()));
    let relay = site.start();
    let silent: Vec<_> = (0..40).map(|_| UnixStream::connect(&socket).unwrap()).collect();
    let asked_at = Instant::now();
    let mut command = UnixStream::connect(&socket).unwrap();
    command.write_all(b"GET /livez HTTP/1.1\r\nHost: node\r\n\r\n").unwrap();
    let mut answer = String::new();
    command.read_to_string(&mut answer).unwrap();
    assert!(answer.ends_with("ok\n"), "{answer}");
    assert!(asked_at.elapsed() < 2 * SOON, "{:?}", asked_at.elapsed());
    drop((silent, relay));
}
