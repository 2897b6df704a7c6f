//! Who opens and seals the records of a tunnel by TLS: the kernel where it can, else the relay. These tests say
//! the same of both; `make kernels` runs them where the kernel can.

use std::io::{ErrorKind, Read, Write};

use crate::support::{
    Authority, Device, Relay, Site, TlsClient, TlsStream, V4, ask_by_tls, exchange_all, kernel_has_tls,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustls::crypto::ring::ALL_CIPHER_SUITES;
use tempfile::TempDir;

const NAME: &str = "relay.example";

struct Scene {
    site: Site,
    relay: Relay,
    device: Device,
    client: TlsClient,
    successors: Successors,
    /// The relay's certificate is in it.
    _folder: TempDir,
}

/// Processes that took over. They are ended with this.
#[derive(Default)]
struct Successors(Vec<i32>);

impl Scene {
    fn new(engine: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::new(folder.path(), "root");
        let (chain, key) = authority.issue(NAME, &[NAME]).write(folder.path(), "relay");
        let site = Site::new(&format!(
            "engine = {{ {engine} }}\nlisten = [{{ address = '127.0.0.1:0', tls = {{ certificates = [
             {{ chain = '{}', key = '{}' }} ] }} }}]",
            chain.display(),
            key.display()
        ));
        let relay = site.start();
        Self {
            site,
            relay,
            device: Device::echo(V4),
            client: TlsClient::trusting(&authority),
            successors: Successors::default(),
            _folder: folder,
        }
    }

    fn tunnel(&mut self) -> TlsStream {
        let request = self.site.request(&self.device).bytes();
        let mut stream = self.client.connect(self.relay.address(), NAME).unwrap();
        let head = ask_by_tls(&mut stream, &request).unwrap();
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        stream
    }

    fn tunnels(&self, records: &str) -> f64 {
        self.relay.metric(&format!("sluicegate_tls_tunnels_total{{records=\"{records}\"}}")).unwrap_or(0.0)
    }
}

impl Drop for Successors {
    fn drop(&mut self) {
        for pid in &self.0 {
            let _gone_already = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
    }
}

fn echoes(tunnel: &mut TlsStream) -> bool {
    let mut back = [0; 4];
    tunnel.write_all(b"ping").unwrap();
    tunnel.read_exact(&mut back).unwrap();
    back == *b"ping"
}

#[test]
fn every_cipher_of_every_version_carries_a_tunnel_both_ways() {
    // Enough to be promoted; emulated machines take their time for more.
    let bytes = 256 << 10;
    for forwarding in ["auto", "copy", "splice", "ring-splice"] {
        let mut scene = Scene::new(&format!("forwarding = '{forwarding}'"));
        for suite in ALL_CIPHER_SUITES {
            scene.client = scene.client.only_suite(*suite);
            let mut tunnel = scene.tunnel();
            assert!(echoes(&mut tunnel), "{suite:?}");
            let (sent, back) = exchange_all(tunnel, bytes);
            assert_eq!(sent, back, "{suite:?} by {forwarding}");
        }
        let keeper = if kernel_has_tls() { "kernel" } else { "process" };
        assert_eq!(scene.tunnels(keeper), ALL_CIPHER_SUITES.len() as f64);
    }
}

#[test]
fn tunnels_whose_records_the_kernel_keeps_move_to_a_new_process_and_no_others_do() {
    let mut scene = Scene::new("forwarding = 'auto'");
    let mut tunnels = Vec::new();
    for suite in ALL_CIPHER_SUITES {
        scene.client = scene.client.only_suite(*suite);
        tunnels.push(scene.tunnel());
    }
    assert!(tunnels.iter_mut().all(echoes));
    let all = ALL_CIPHER_SUITES.len() as u64;
    let (moved, stayed) = if kernel_has_tls() { (all, 0) } else { (0, all) };
    let outcome = scene.site.cli(&["upgrade"]);
    scene.successors.0.push(outcome["pid"].as_i64().unwrap() as i32);
    let figures = (outcome["moved"].as_u64(), outcome["stayed"].as_u64());
    assert_eq!(figures, (Some(moved), Some(stayed)), "{outcome}");
    assert!(tunnels.iter_mut().all(echoes), "{}", scene.relay.log());
    for tunnel in tunnels {
        let (sent, back) = exchange_all(tunnel, 64 << 10);
        assert_eq!(sent, back);
    }
}

#[test]
fn an_end_by_tls_is_passed_on_in_both_directions() {
    for forwarding in ["copy", "splice"] {
        let mut scene = Scene::new(&format!("forwarding = '{forwarding}'"));
        let mut tunnel = scene.tunnel();
        assert!(echoes(&mut tunnel));
        tunnel.conn.send_close_notify();
        tunnel.conn.complete_io(&mut tunnel.sock).unwrap();
        assert_eq!(tunnel.read(&mut [0; 8]).unwrap(), 0, "an end without close_notify would be an error");
        let end = scene.site.audit().wait_for(|event| event["event"] == "session-end");
        assert_eq!((&end["cause"], &end["bytes_up"]), (&"closed".into(), &4.into()));
    }
}

#[test]
fn a_client_that_changes_its_keys_is_followed_or_told_apart() {
    let mut scene = Scene::new("");
    let mut tunnel = scene.tunnel();
    assert!(echoes(&mut tunnel));
    tunnel.conn.refresh_traffic_keys().unwrap();
    if kernel_has_tls() {
        let _it_may_end_meanwhile = tunnel.write_all(b"ping");
        let error = tunnel.read(&mut [0; 4]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        assert!(scene.site.audit().has(|event| event["cause"] == "client-tls"));
    } else {
        assert!(echoes(&mut tunnel));
    }
}

#[test]
fn an_operator_can_keep_the_kernel_out_of_it() {
    let mut scene = Scene::new("kernel_tls = 'off'");
    let mut tunnel = scene.tunnel();
    assert!(echoes(&mut tunnel));
    tunnel.conn.refresh_traffic_keys().unwrap();
    assert!(echoes(&mut tunnel));
    assert_eq!((scene.tunnels("process"), scene.tunnels("kernel")), (1.0, 0.0));
    assert_eq!(scene.site.cli(&["sessions"])[0]["path_up"], "tls");
}
