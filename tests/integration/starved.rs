//! A machine that has no more to give: no ports to dial from. Tunnels that are open go on, the client and the audit log
//! are told what is missing, and tunnels open again by themselves once it is there.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use socket2::{Domain, Socket, Type};

use crate::support::{
    Answer, DEVICE, Device, Namespace, PATIENCE, Request, Site, V4, root_or_skip, wait_for,
};

/// Sends a request from a port that the caller chooses, since the kernel may have none to give.
fn ask_from(port: u16, relay: SocketAddr, request: &Request) -> Answer {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((V4, port)).into()).unwrap();
    socket.connect(&relay.into()).unwrap();
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(&request.bytes()).unwrap();
    Answer::read(stream)
}

fn echoes(tunnel: &mut TcpStream) -> bool {
    tunnel.write_all(b"ping").is_ok() && tunnel.read_exact(&mut [0; 4]).is_ok()
}

/// Sets the ports that the kernel gives to outgoing connections of this thread's network namespace.
fn set_ports(range: &str) {
    std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", range).unwrap();
}

#[test]
fn without_a_port_to_dial_from_tunnels_go_on_and_new_ones_open_once_there_is_one() {
    if !root_or_skip("without_a_port_to_dial_from_tunnels_go_on_and_new_ones_open_once_there_is_one") {
        return;
    }
    let namespace = Namespace::new();
    namespace.enter(|| {
        set_ports("60000 60003");
        let site = Site::new("engine.threads = 1");
        let relay = site.start();
        let device = Device::echo(V4);
        let request = Request::to(DEVICE, device.port()).bearer(&site.token);
        let mut tunnels = Vec::new();
        let refused = (20_000..20_010).find_map(|port| {
            let answer = ask_from(port, relay.address(), &request);
            match answer.status {
                200 => {
                    tunnels.push(answer.stream);
                    None
                }
                _ => Some(answer),
            }
        });

        let refused = refused.expect("four ports are not enough for ten tunnels");
        assert_eq!((refused.status, refused.slug().as_deref()), (429, Some("limit")));
        assert!(site.audit().has(|event| event["cause"] == "local-ports"));
        assert!(!tunnels.is_empty() && tunnels.iter_mut().all(echoes));
        assert!(relay.admin_get("/livez").ends_with("ok\n"));

        set_ports("60000 60900");
        let opened = wait_for(|| {
            let answer = ask_from(20_020, relay.address(), &request);
            (answer.status == 200).then_some(answer.stream)
        });
        assert!(opened.is_some_and(|mut tunnel| echoes(&mut tunnel)));
        assert!(tunnels.iter_mut().all(echoes));
    });
}
