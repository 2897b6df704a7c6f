//! Memory for TCP that runs short: tunnels that stand still make room for those that move.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use crate::support::{Device, Faults, Site, V4, tools_or_skip, wait_for};

/// Sends until the tunnel takes no more: nobody reads at its other end.
fn fill(mut writer: TcpStream) -> TcpStream {
    writer.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
    let bytes = [7; 64 * 1024];
    while writer.write(&bytes).is_ok() {}
    writer
}

fn is_reset(end: &mut TcpStream) -> bool {
    end.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
    matches!(end.read(&mut [0; 4096]), Err(error) if error.kind() == ErrorKind::ConnectionReset)
}

#[test]
fn tunnels_that_stand_still_in_either_direction_make_room_the_longest_first_and_others_go_on() {
    let name = "tunnels_that_stand_still_in_either_direction_make_room_the_longest_first_and_others_go_on";
    if !tools_or_skip(name, &["cc"]) {
        return;
    }
    for forwarding in ["copy", "splice"] {
        let site = Site::new(&format!("engine.threads = 1\nengine.forwarding = '{forwarding}'"));
        let faults = Faults::new(&site);
        faults.set_tcp_memory(10);
        let relay = faults.start(&site);
        let (echo, silent) = (Device::echo(V4), Device::listening(V4));
        let mut moving = site.ask(&relay, echo.port()).opened();
        let idle = site.ask(&relay, echo.port()).opened();
        // Clients that send and devices that do not read, and the other way round.
        let mut stalled: Vec<(TcpStream, TcpStream)> = (0..4)
            .map(|number| {
                let (client, device) = (site.ask(&relay, silent.port()).opened(), silent.accept());
                if number % 2 == 0 { (fill(client), device) } else { (client, fill(device)) }
            })
            .collect();
        std::thread::sleep(Duration::from_millis(1200));
        faults.set_tcp_memory(749);
        std::thread::sleep(Duration::from_millis(500));
        assert!(!stalled.iter_mut().any(|(client, device)| is_reset(client) && is_reset(device)), "enough");

        faults.set_tcp_memory(750);
        let ended = |event: &serde_json::Value| event["cause"] == "tcp-memory";
        let count = || site.audit().events().iter().filter(|event| ended(event)).count();
        assert!(wait_for(|| (count() == 4).then_some(())).is_some(), "{} of 4", count());
        assert!(relay.logs("TCP memory runs short"));
        for (client, device) in &mut stalled {
            assert!(wait_for(|| is_reset(client).then_some(())).is_some());
            assert!(wait_for(|| is_reset(device).then_some(())).is_some());
        }
        for tunnel in [&mut moving, &mut { idle }] {
            let mut byte = [0];
            tunnel.write_all(b"x").and_then(|()| tunnel.read_exact(&mut byte)).unwrap();
        }
        faults.set_tcp_memory(10);
        assert!(relay.logs("TCP memory is enough again"));
    }
}
