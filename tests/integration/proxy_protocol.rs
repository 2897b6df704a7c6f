//! A listener behind a load balancer: the client that the PROXY header names is the client, and nobody comes
//! past the balancer.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::process::Command;

use crate::support::{
    Answer, Authority, Device, Relay, Running, Site, TlsClient, V4, connect, free_address, reset,
    tools_or_skip, wait_for,
};

const BEHIND: &str = "listen = [{ address = '127.0.0.1:0', proxy_from = ['127.0.0.0/8'] }]";

/// The header, and then a request for the device.
fn ask(site: &Site, relay: &Relay, device: &Device, header: &[u8]) -> Answer {
    let request = site.request(device).bytes();
    Answer::to_bytes(relay.address(), &[header, &request].concat())
}

fn audited_client(site: &Site, cause: &str) -> SocketAddr {
    let event = site.audit().wait_for(|event| event["cause"] == cause);
    event["client"].as_str().unwrap().parse().unwrap()
}

#[test]
fn the_client_is_the_one_that_the_header_names() {
    let (site, device) = (Site::new(BEHIND), Device::echo(V4));
    let relay = site.start();
    let header = b"PROXY TCP4 192.0.2.7 203.0.113.1 51000 443\r\n";
    let tunnel = ask(&site, &relay, &device, header).opened();
    let sessions = site.cli(&["sessions"]);
    assert_eq!(sessions[0]["client"], "192.0.2.7:51000", "{sessions}");
    drop(tunnel);
    assert_eq!(audited_client(&site, "closed"), "192.0.2.7:51000".parse().unwrap());
}

/// A load balancer with a dual-stack socket writes IPv4 clients as IPv6.
#[test]
fn an_ipv4_client_is_one_client_however_the_header_writes_its_address() {
    let (site, device) = (Site::new(BEHIND), Device::echo(V4));
    let relay = site.start();
    let headers: [&[u8]; 3] = [
        b"PROXY TCP4 192.0.2.9 203.0.113.1 51000 443\r\n",
        b"PROXY TCP6 ::ffff:192.0.2.9 ::ffff:203.0.113.1 51000 443\r\n",
        b"\r\n\r\n\0\r\nQUIT\n\x21\x21\0\x24\
          \0\0\0\0\0\0\0\0\0\0\xff\xff\xc0\0\x02\x09\0\0\0\0\0\0\0\0\0\0\xff\xff\xcb\0\x71\x01\xc7\x38\x01\xbb",
    ];
    let tunnels = headers.map(|header| ask(&site, &relay, &device, header).opened());
    let sessions = site.cli(&["sessions"]);
    for session in sessions.as_array().unwrap() {
        assert_eq!(session["client"], "192.0.2.9:51000", "{sessions}");
    }
    for filter in ["192.0.2.9", "::ffff:192.0.2.9", "192.0.2.0/24", "192.0.2.9:51000"] {
        let found = site.cli(&["sessions", "--client", filter]);
        assert_eq!(found.as_array().unwrap().len(), headers.len(), "{filter}");
    }
    for filter in ["192.0.2.90", "192.0.2.9:5100", "::/0"] {
        assert_eq!(site.cli(&["sessions", "--client", filter]).as_array().unwrap().len(), 0, "{filter}");
    }
    drop(tunnels);
    for event in site.audit().wait_for_events(headers.len()) {
        assert_eq!(event["client"], "192.0.2.9:51000", "{event}");
    }
}

#[test]
fn a_network_of_load_balancers_may_be_written_as_ipv6() {
    let behind = "listen = [{ address = '127.0.0.1:0', proxy_from = ['::ffff:127.0.0.0/104'] }]";
    let (site, device) = (Site::new(behind), Device::echo(V4));
    let relay = site.start();
    drop(ask(&site, &relay, &device, b"PROXY TCP4 192.0.2.9 203.0.113.1 51000 443\r\n").opened());
}

#[test]
fn a_header_that_comes_in_pieces_is_waited_for_and_a_balancers_own_look_is_answered() {
    let (site, device) = (Site::new(BEHIND), Device::echo(V4));
    let relay = site.start();
    let mut client = connect(relay.address());
    let bytes = [&b"PROXY UNKNOWN\r\n"[..], &site.request(&device).bytes()].concat();
    for piece in bytes.chunks(7) {
        client.write_all(piece).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    let address = client.local_addr().unwrap();
    drop(Answer::read(client).opened());
    assert_eq!(audited_client(&site, "closed"), address, "the balancer's own");
}

#[test]
fn without_a_header_or_with_a_wrong_one_nobody_is_served() {
    let (site, device) = (Site::new(BEHIND), Device::echo(V4));
    let relay = site.start();
    for (header, cause) in [
        (&b""[..], "proxy-header-missing"),
        (b"PROXY TCP4 192.0.2.777 203.0.113.1 51000 443\r\n", "proxy-header-malformed"),
    ] {
        let answer = ask(&site, &relay, &device, header);
        assert_eq!((answer.status, answer.slug().as_deref()), (400, Some("malformed")), "{cause}");
        assert!(site.audit().has(|event| event["cause"] == cause));
    }
    assert!(!device.was_connected_to());
}

#[test]
fn who_comes_past_the_balancer_is_refused_whatever_they_say() {
    let site = Site::new("listen = [{ address = '127.0.0.1:0', proxy_from = ['10.0.0.0/8'] }]");
    let (relay, device) = (site.start(), Device::echo(V4));
    let forged = b"PROXY TCP4 10.0.0.1 203.0.113.1 51000 443\r\n";
    let answer = ask(&site, &relay, &device, forged);
    assert_eq!((answer.status, answer.slug().as_deref()), (400, Some("malformed")));
    assert!(audited_client(&site, "proxy-untrusted").ip().is_loopback(), "not the one that was forged");
    assert!(!device.was_connected_to());
}

#[test]
fn a_listener_without_a_balancer_takes_no_header() {
    let (site, device) = (Site::new(""), Device::echo(V4));
    let relay = site.start();
    let answer = ask(&site, &relay, &device, b"PROXY TCP4 192.0.2.7 203.0.113.1 51000 443\r\n");
    assert_eq!((answer.status, answer.slug().as_deref()), (400, Some("malformed")), "it is no request");
}

#[test]
fn a_header_that_never_ends_is_given_up() {
    let site = Site::new(&format!("{BEHIND}\ntimeouts.head = '300ms'"));
    let relay = site.start();
    let answer = Answer::to_bytes(relay.address(), b"PROXY TCP4 192.0.2.7 203");
    assert_eq!((answer.status, answer.slug().as_deref()), (408, Some("head-timeout")));
}

#[test]
fn haproxy_in_front_tells_the_client_by_either_version() {
    if !tools_or_skip("haproxy_in_front_tells_the_client_by_either_version", &["haproxy"]) {
        return;
    }
    let (site, device) = (Site::new(BEHIND), Device::echo(V4));
    let relay = site.start();
    for version in ["send-proxy", "send-proxy-v2"] {
        let front = free_address();
        let config = site.folder().join("haproxy.cfg");
        let text = format!(
            "defaults\n mode tcp\n timeout connect 5s\n timeout client 1m\n timeout server 1m\n\
             listen relay\n bind {front}\n server node {} {version} check inter 1s\n",
            relay.address()
        );
        std::fs::write(&config, text).unwrap();
        let _haproxy = Running::start(Command::new("haproxy").arg("-q").arg("-f").arg(&config));
        assert!(wait_for(|| TcpStream::connect(front).ok()).is_some(), "{version}");
        let mut client = connect(front);
        client.write_all(&site.request(&device).bytes()).unwrap();
        let address = client.local_addr().unwrap();
        let tunnel = Answer::read(client).opened();
        let found = wait_for(|| {
            let sessions = site.cli(&["sessions"]);
            let named = sessions.as_array()?.iter().any(|row| row["client"] == address.to_string());
            named.then_some(())
        });
        assert!(found.is_some(), "{version}: {} is not among the sessions", address);
        drop(tunnel);
    }
}

/// The balancer closes with and without a header, by FIN and by reset.
#[test]
fn a_balancer_that_only_looks_is_counted_and_not_noted() {
    let (site, device) = (Site::new(BEHIND), Device::echo(V4));
    let relay = site.start();
    for header in [&b""[..], b"PROXY UNKNOWN\r\n", LOCAL_HEADER] {
        for leave in [drop, reset] {
            let mut balancer = connect(relay.address());
            balancer.write_all(header).unwrap();
            leave(balancer);
        }
    }
    assert!(
        relay.metric_becomes("sluicegate_balancer_checks_total", |checks| checks == 6.0),
        "{}",
        relay.log()
    );
    // A client that leaves is not a balancer that looks.
    connect(relay.address()).write_all(b"PROXY TCP4 192.0.2.7 203.0.113.1 51000 443\r\n").unwrap();
    assert_eq!(audited_client(&site, "client-closed"), "192.0.2.7:51000".parse().unwrap());
    // Nor is a balancer that asks for something.
    assert_eq!(Answer::to_bytes(relay.address(), b"PROXY UNKNOWN\r\nGET / HTTP/1.1\r\n\r\n").status, 405);
    drop(ask(&site, &relay, &device, LOCAL_HEADER).opened());
    assert!(site.audit().has(|event| event["cause"] == "closed"));
    let noted: Vec<_> = site.audit().events().iter().map(|event| event["cause"].clone()).collect();
    assert_eq!(noted.len(), 3, "{noted:?}");
}

/// Without `proxy_from`, a balancer's look is a client that says nothing; by TLS, after the handshake.
#[test]
fn a_balancer_that_only_looks_is_counted_on_a_listener_without_a_header_too() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new(folder.path(), "ca");
    let (chain, key) = authority.issue("relay", &["relay"]).write(folder.path(), "relay");
    let site = Site::new(&format!(
        "listen = [{{ address = '127.0.0.1:0' }}, {{ address = '127.0.0.1:0', tls = {{ certificates = [{{ chain = '{}', \
         key = '{}' }}] }} }}]",
        chain.display(),
        key.display()
    ));
    let relay = site.start();
    let [plain, tls] = *relay.addresses() else { panic!("two listeners") };
    for address in [plain, tls] {
        for leave in [drop, reset] {
            leave(connect(address));
        }
    }
    drop(TlsClient::trusting(&authority).connect(tls, "relay").unwrap());
    let counted =
        |wanted: f64| relay.metric_becomes("sluicegate_balancer_checks_total", |checks| checks == wanted);
    assert!(counted(5.0), "{}", relay.log());
    // A client that begins to ask is none.
    connect(plain).write_all(b"C").unwrap();
    connect(tls).write_all(b"\x16").unwrap();
    let mut causes: Vec<_> = site
        .audit()
        .wait_for_events(2)
        .iter()
        .map(|event| event["cause"].as_str().unwrap().to_owned())
        .collect();
    causes.sort();
    assert_eq!(causes, ["client-closed", "head-truncated"]);
    assert!(counted(5.0));
}

#[test]
fn the_probe_comes_by_a_balanced_listener_as_a_balancer_would() {
    let site = Site::new(&format!("{BEHIND}\nprobe.interval = '1s'"));
    let relay = site.start();
    assert!(relay.metric_becomes("sluicegate_probe_success", |success| success == 1.0), "{}", relay.log());
}

/// Version 2, of a balancer that speaks for itself.
const LOCAL_HEADER: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";
