//! The wall clock steps past the end of a right while its tunnel is open, as a client sees it. Only the relay sees the
//! step; this machine's clock stays as it is.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use crate::support::{DEVICE, Device, End, Relay, Request, Site, V4, receive, tools_or_skip};

/// A relay whose wall clock a test can set.
struct ClockScene {
    site: Site,
    relay: Relay,
}

impl ClockScene {
    fn new(fill: impl FnOnce(&Site)) -> Self {
        // The library that steps the clock reads a file of its own, which a confined relay may not.
        let site = Site::new("security.confine = 'off'");
        fill(&site);
        let lead = site.folder().join("lead");
        std::fs::write(&lead, "+0\n").unwrap();
        let relay = site.start_through(&[
            "env".to_owned(),
            format!("LD_PRELOAD={}", library().display()),
            format!("FAKETIME_TIMESTAMP_FILE={}", lead.display()),
            "FAKETIME_NO_CACHE=1".to_owned(),
            "FAKETIME_DONT_FAKE_MONOTONIC=1".to_owned(),
        ]);
        Self { site, relay }
    }

    /// Sets the relay's wall clock forward by so much.
    fn step(&self, lead: &str) {
        std::fs::write(self.site.folder().join("lead"), format!("{lead}\n")).unwrap();
    }

    fn open(&self, token: &str, device: &Device) -> TcpStream {
        Request::to(DEVICE, device.port()).bearer(token).send(self.relay.address()).opened()
    }
}

/// Where Debian's `faketime` has its library.
fn library() -> PathBuf {
    let folders = std::fs::read_dir("/usr/lib").unwrap().filter_map(Result::ok);
    let places = folders.map(|folder| folder.path().join("faketime/libfaketimeMT.so.1"));
    places.into_iter().find(|place| place.exists()).expect("faketime has its library in /usr/lib")
}

fn echoes(tunnel: &mut TcpStream) -> bool {
    tunnel.write_all(b"still here").and_then(|()| tunnel.read_exact(&mut [0; 10])).is_ok()
}

#[test]
fn a_step_of_the_clock_past_the_end_of_a_right_ends_its_open_tunnels() {
    if !tools_or_skip("a_step_of_the_clock_past_the_end_of_a_right_ends_its_open_tunnels", &["faketime"]) {
        return;
    }
    let (mut token, mut bob) = (String::new(), String::new());
    let scene = ClockScene::new(|site| {
        let issue = |more: &[&str]| {
            let issued = site.cli(&[&["token", "issue"], more].concat());
            issued["token"].as_str().unwrap().to_owned()
        };
        token = issue(&["alice", "--expires", "1h"]);
        site.cli(&["principal", "add", "bob"]);
        bob = issue(&["bob"]);
        site.cli(&["grant", "add", "bob", "--device", DEVICE, "--ports", "1-65535", "--expires", "1h"]);
    });
    let device = Device::echo(V4);
    let mut by_token = scene.open(&token, &device);
    let mut by_grant = scene.open(&bob, &device);
    let mut without_end = scene.open(&scene.site.token, &device);
    // Tunnels that have lasted have their timers set.
    thread::sleep(Duration::from_secs(6));
    assert!([&mut by_token, &mut by_grant, &mut without_end].into_iter().all(echoes));

    scene.step("+2h");
    let began = Instant::now();
    for (tunnel, cause) in [(&mut by_token, "credential-expired"), (&mut by_grant, "grant-expired")] {
        assert_eq!(receive(tunnel).1, End::Reset, "{cause}");
        assert!(began.elapsed() < Duration::from_secs(10), "{cause}: took {:?}", began.elapsed());
        assert!(scene.site.audit().has(|event| event["cause"] == cause && event["event"] == "session-end"));
    }
    assert!(echoes(&mut without_end), "a right without an end has none");
    let refused = Request::to(DEVICE, device.port()).bearer(&token).send(scene.relay.address());
    assert_eq!(refused.status, 407, "and a new client is refused");
}
