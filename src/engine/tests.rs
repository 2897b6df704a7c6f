//! The engine on a real ring and real sockets, with a snapshot made by hand.

mod reload;
mod turns;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use super::*;
use crate::authz::*;
use crate::config::{Forwarding, Listen};

const TOKEN: &str = "sg_test";
const UUID: &str = "0123456789abcdef0123456789abcdef";

fn authority() -> Arc<Authority> {
    let credential = Credential {
        key: KeyHash::of_token(TOKEN.as_bytes()),
        principal: PrincipalId(1),
        expires_at: None,
        revoked: false,
    };
    let grant = Grant {
        id: GrantId(1),
        principal: PrincipalId(1),
        scope: Scope::Any,
        ports: PortRange::ANY,
        expires_at: None,
        revoked: false,
    };
    let device = Device {
        id: DeviceId(1),
        uuid: DeviceUuid::parse(UUID).unwrap(),
        fleet: None,
        address: Some([127, 0, 0, 1].into()),
        node: None,
        online: true,
        disputed: false,
    };
    let authority = Authority::new(Duration::from_secs(60), None);
    authority.publish(Arc::new(View {
        snapshot: Arc::new(Snapshot::build(Generation(1), vec![credential], vec![grant], vec![device])),
        revocations: Arc::new(Revocations::default()),
        previous: None,
    }));
    authority.confirm(UnixMillis::now());
    Arc::new(authority)
}

fn config(forwarding: Forwarding) -> Config {
    let mut config = Config { vpn: crate::config::Vpn::loopback(), ..Config::default() };
    config.engine.forwarding = forwarding;
    config.listen = vec![Listen {
        address: "127.0.0.1:0".parse().unwrap(),
        suffixes: vec!["balena".into()],
        ..Listen::default()
    }];
    config
}

fn engine(forwarding: Forwarding) -> Engine {
    Engine::start(Arc::new(config(forwarding)), authority(), AuditSender::disabled()).unwrap()
}

fn connect(relay: SocketAddr, port: u16) -> TcpStream {
    let mut client = TcpStream::connect(relay).unwrap();
    client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let head =
        format!("CONNECT {UUID}.balena:{port} HTTP/1.0\r\nProxy-Authorization: Bearer {TOKEN}\r\n\r\n");
    client.write_all(head.as_bytes()).unwrap();
    client
}

fn read_head(client: &mut TcpStream) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        client.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}

#[test]
fn bytes_come_back_through_every_path() {
    for forwarding in [Forwarding::Auto, Forwarding::Copy, Forwarding::Splice, Forwarding::RingSplice] {
        let device = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = device.local_addr().unwrap().port();
        let echo = std::thread::spawn(move || {
            let (mut socket, _) = device.accept().unwrap();
            let mut from = socket.try_clone().unwrap();
            std::io::copy(&mut from, &mut socket).unwrap();
        });
        let engine = engine(forwarding);
        let mut client = connect(engine.client_addresses()[0], port);
        assert_eq!(read_head(&mut client), "HTTP/1.0 200 Connection Established\r\n\r\n");
        let sent: Vec<u8> = (0..16_000_000u32).map(|i| (i.wrapping_mul(2654435761) >> 24) as u8).collect();
        let mut writer = client.try_clone().unwrap();
        let to_send = sent.clone();
        let sender = std::thread::spawn(move || {
            writer.write_all(&to_send).unwrap();
            writer.shutdown(std::net::Shutdown::Write).unwrap();
        });
        let mut received = Vec::new();
        client.read_to_end(&mut received).unwrap();
        assert!(received == sent, "{forwarding:?} changed the bytes");
        sender.join().unwrap();
        echo.join().unwrap();
        engine.stop();
    }
}

#[test]
fn the_reply_says_that_the_port_is_closed() {
    let engine = engine(Forwarding::Auto);
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut client = connect(engine.client_addresses()[0], port);
    let head = read_head(&mut client);
    assert!(head.starts_with("HTTP/1.0 502 Device Port Closed\r\n"), "{head}");
    assert!(head.contains("device-port-closed"), "{head}");
    let mut body = String::new();
    client.read_to_string(&mut body).unwrap();
    assert!(body.starts_with("Device Port Closed: "), "{body}");
    engine.stop();
}

#[test]
fn a_socket_that_threads_share_is_handed_over_once_and_its_clients_wait_until_somebody_accepts() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let mut config = config(Forwarding::Auto);
    config.engine.threads = 2;
    config.listen[0].address = address;
    let inherited = Inherited::of_predecessor([(address, listener.into())]).unwrap();
    let (config, audit) = (Arc::new(config), AuditSender::disabled());
    let engine =
        Engine::start_on(inherited, config, TlsConfigs::default(), Arc::default(), authority(), audit)
            .unwrap();
    let device = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut client = connect(address, device.local_addr().unwrap().port());
    client.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    assert!(client.read(&mut [0]).is_err(), "another process accepts");

    let handle = engine.handle();
    let passed = handle.listeners().unwrap();
    assert_eq!(passed.iter().map(|each| each.configured).collect::<Vec<_>>(), [address]);
    handle.accept_clients(Accepting::Yes).unwrap();
    client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    assert!(read_head(&mut client).starts_with("HTTP/1.0 200"));

    handle.accept_clients(Accepting::Ended).unwrap();
    assert!(handle.listeners().unwrap().is_empty());
    drop(passed);
    assert!(TcpStream::connect(address).is_err(), "no copy is left");
    engine.stop();
}
