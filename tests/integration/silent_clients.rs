//! Clients that connect and say nothing: they take places from nobody who speaks.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use nix::sys::signal::Signal;
use socket2::{Domain, Socket, Type};

use crate::support::{Answer, DEVICE, Device, Relay, Request, Site, V4, ipv6_or_skip, wait_for};

/// Connects from an address of this machine.
fn connect_from(source: IpAddr, relay: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::for_address(relay), Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::new(source, 0).into()).unwrap();
    socket.connect(&relay.into()).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    socket.into()
}

fn silent(source: [u8; 4], relay: &Relay, count: usize) -> Vec<TcpStream> {
    (0..count).map(|_| connect_from(Ipv4Addr::from(source).into(), relay.address())).collect()
}

/// Waits until so many clients wait for nothing but their own heads.
fn are_accepted(relay: &Relay, count: usize) {
    assert!(relay.metric_becomes("sluicegate_sessions", |sessions| sessions as usize == count));
}

/// Longer than nobody gives way.
const PATIENCE_OVER: Duration = Duration::from_millis(700);

#[test]
fn silent_clients_of_one_network_take_no_place_from_others_however_many_they_are() {
    let site = Site::new("limits.sessions = 100\nlimits.heads_per_network = 20\nengine.threads = 1");
    let relay = site.start();
    let device = Device::echo(V4);
    let mut first = silent([127, 9, 9, 1], &relay, 20);
    are_accepted(&relay, 20);
    let refused = Answer::read(connect_from([127, 9, 9, 200].into(), relay.address()));
    assert_eq!((refused.status, refused.slug().as_deref()), (429, Some("limit")), "nobody has waited yet");
    assert!(site.audit().has(|event| event["cause"] == "limit-network"));

    std::thread::sleep(PATIENCE_OVER);
    let mut more = silent([127, 9, 9, 2], &relay, 10);
    let opened: Vec<_> = (0..50).map(|_| site.ask(&relay, device.port()).opened()).collect();
    let dropped = Answer::read(first.remove(0));
    assert_eq!((dropped.status, dropped.slug().as_deref()), (429, Some("limit")), "the oldest gives way");
    assert!(site.audit().has(|event| event["cause"] == "head-dropped" && event["status"] == 429));
    more[9].set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    assert!(more[9].read(&mut [0]).is_err(), "the newest waits on");
    are_accepted(&relay, 50 + 20);
    drop((first, more, opened));
}

#[test]
fn silent_clients_of_many_networks_give_way_to_each_client_that_speaks() {
    let site = Site::new("limits.sessions = 100\nengine.threads = 1");
    let relay = site.start();
    let device = Device::echo(V4);
    let mut clients: Vec<_> = (0..100).map(|place| silent([127, 9, place, 1], &relay, 1).remove(0)).collect();
    are_accepted(&relay, 100);
    assert!(relay.admin_get("/readyz").ends_with("ready\n"), "it can serve a client");
    std::thread::sleep(PATIENCE_OVER);
    let tunnels: Vec<_> = (0..100).map(|_| site.ask(&relay, device.port()).opened()).collect();
    assert!(relay.admin_get("/readyz").contains("there is no room for another session"));
    for client in &mut clients {
        let mut reply = String::new();
        client.read_to_string(&mut reply).unwrap();
        assert!(reply.starts_with("HTTP/1.1 429 "), "{reply}");
    }
    let refused = site.ask(&relay, device.port());
    assert_eq!(
        (refused.status, refused.slug().as_deref()),
        (429, Some("limit")),
        "tunnels give way to nobody"
    );
    drop(tunnels);
    assert!(relay.metric_becomes("sluicegate_sessions", |sessions| sessions == 0.0), "every place came back");
}

#[test]
fn a_flood_of_silent_clients_locks_nobody_out() {
    let site = Site::new("limits.sessions = 400\nlimits.heads_per_network = 100");
    let relay = site.start();
    let device = Device::echo(V4);
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let address = relay.address();
    let flood = std::thread::spawn(move || {
        let mut held = std::collections::VecDeque::new();
        while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
            held.push_back(connect_from([127, 9, 9, 1].into(), address));
            if held.len() > 1_000 {
                held.pop_front();
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    });
    let is_under_way = || relay.metric("sluicegate_sessions").is_some_and(|sessions| sessions >= 100.0);
    assert!(wait_for(|| is_under_way().then_some(())).is_some());
    let statuses: Vec<u16> = (0..300).map(|_| site.ask(&relay, device.port()).status).collect();
    drop(stop);
    flood.join().unwrap();
    assert!(statuses.iter().all(|status| *status == 200), "{statuses:?}");
}

#[test]
fn clients_behind_a_load_balancer_count_for_their_own_networks() {
    let site = Site::new(
        "limits.heads_per_network = 5\nlisten = [{ address = '127.0.0.1:0', proxy_from = ['127.0.0.0/8'] }]",
    );
    let relay = site.start();
    let device = Device::echo(V4);
    let behind = |client: &str| {
        use std::io::Write;
        let mut stream = connect_from([127, 0, 0, 1].into(), relay.address());
        let family = if client.contains(':') { "TCP6" } else { "TCP4" };
        let own = if client.contains(':') { "::1" } else { "127.0.0.1" };
        write!(stream, "PROXY {family} {client} {own} 40000 3128\r\n").unwrap();
        stream
    };
    for (network, same, other) in
        [("192.0.2.1", "192.0.2.9", "192.0.3.1"), ("2001:db8::1", "2001:db8::2", "2001:db8:1::1")]
    {
        let held: Vec<_> = (0..5).map(|_| behind(network)).collect();
        // Which of the first six is one too many is for the threads to say, so those that wait are kept.
        let mut waiting = Vec::new();
        let refused = wait_for(|| {
            let mut stream = behind(same);
            stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
            let mut reply = [0; 12];
            let refused = stream.read_exact(&mut reply).ok().map(|()| reply);
            waiting.push(stream);
            refused
        });
        assert_eq!(refused.as_ref(), Some(b"HTTP/1.1 429"));
        use std::io::Write;
        let mut spoken = behind(other);
        let request = Request::to(crate::support::DEVICE, device.port()).bearer(&site.token);
        spoken.write_all(&request.bytes()).unwrap();
        assert_eq!(Answer::read(spoken).status, 200);
        drop((held, waiting));
    }
}

#[test]
fn silent_clients_by_ipv6_share_the_places_of_their_64() {
    if !ipv6_or_skip("silent_clients_by_ipv6_share_the_places_of_their_64") {
        return;
    }
    let site =
        Site::new("limits.heads_per_network = 3\nlisten = [{ address = '[::1]:0' }]\nengine.threads = 1");
    let relay = site.start();
    let source = IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1]);
    let _held: Vec<_> = (0..3).map(|_| connect_from(source, relay.address())).collect();
    are_accepted(&relay, 3);
    assert_eq!(Answer::read(connect_from(source, relay.address())).status, 429);
}

#[test]
fn connections_that_are_closed_at_once_take_no_place_from_who_comes_after_them() {
    // More than there are places; and more than a thread accepts ahead.
    for (sessions, gone) in [(64, 250), (8000, 1000)] {
        let site = Site::new(&format!("limits.sessions = {sessions}\nengine.threads = 1"));
        let relay = site.start();
        let device = Device::echo(V4);
        // All come before the relay looks.
        relay.signal(Signal::SIGSTOP);
        (0..gone).for_each(|number| drop(silent([127, 9, (number % 250) as u8, 1], &relay, 1)));
        let mut client = connect_from(V4, relay.address());
        client.write_all(&Request::to(DEVICE, device.port()).bearer(&site.token).bytes()).unwrap();
        relay.signal(Signal::SIGCONT);

        let answer = Answer::read(client);

        assert_eq!((answer.status, answer.slug()), (200, None), "{gone} before it");
        assert!(
            relay.metric("sluicegate_sessions_accepted_total") > Some(f64::from(gone)),
            "all were accepted"
        );
        site.ask(&relay, device.port()).opened();
    }
}
