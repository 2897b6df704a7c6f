//! A new process takes over from the running one: tunnels that stream, rest or are half closed go on to the byte,
//! nobody is refused, and where the new process fails the old one goes on.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::support::{
    ALL_V4, Answer, Audit, Authority, BINARY, Cluster, Content, DEVICE_V6, Device, End, OTHER_DEVICE, Relay,
    Request, Signal, Site, TlsClient, TlsStream, V4, ask_by_tls, receive, root_or_skip, wait_for,
};
use nix::sys::signal::kill;
use nix::unistd::Pid;

/// A relay whose process may change.
struct Node {
    site: Site,
    relay: Relay,
    /// Processes that took over, the newest last.
    successors: Vec<u32>,
}

impl Node {
    fn start(site: Site) -> Self {
        let relay = site.start();
        Self { site, relay, successors: Vec::new() }
    }

    /// Starts with variables by which a debug build fails where a test wants it.
    fn start_with(site: Site, variables: &[(&str, &str)]) -> Self {
        let mut command = site.command(&["run"]);
        command.envs(variables.iter().copied());
        let relay = Relay::start(command);
        Self { site, relay, successors: Vec::new() }
    }

    fn upgrade(&mut self) -> Value {
        let outcome = self.site.cli(&["upgrade"]);
        self.successors.push(outcome["pid"].as_u64().unwrap() as u32);
        outcome
    }

    /// An upgrade that is expected to fail: what it says.
    fn upgrade_in_vain(&self) -> String {
        let Output { status, stderr, .. } = self.site.command(&["upgrade"]).output().unwrap();
        assert_eq!(status.code(), Some(1));
        String::from_utf8(stderr).unwrap()
    }

    /// What is in the state folder.
    fn kept(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let folder = std::fs::read_dir(self.site.folder().join("state")).unwrap();
        let files = folder.map(|entry| entry.unwrap().path()).filter(|path| path.is_file());
        // A file may be replaced meanwhile.
        let mut kept: Vec<_> =
            files.filter_map(|path| Some((path.clone(), std::fs::read(path).ok()?))).collect();
        kept.sort();
        kept
    }

    fn pid(&self) -> u32 {
        self.successors.last().copied().unwrap_or(self.relay.pid())
    }

    fn sessions(&self) -> Vec<Value> {
        self.site.cli(&["sessions"]).as_array().unwrap().clone()
    }

    fn tunnel(&self, device: &Device) -> TcpStream {
        self.site.request(device).send(self.relay.address()).opened()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        for pid in &self.successors {
            let _gone_already = kill(Pid::from_raw(*pid as i32), Signal::SIGKILL);
        }
    }
}

/// True while the process is there, and is no zombie.
fn runs(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

fn echoes(tunnel: &mut TcpStream) -> bool {
    let mut echoed = [0; 4];
    tunnel.write_all(b"ping").is_ok() && tunnel.read_exact(&mut echoed).is_ok() && &echoed == b"ping"
}

#[test]
fn tunnels_that_stream_both_ways_keep_every_byte_over_ten_hand_overs() {
    for forwarding in ["auto", "ring-splice"] {
        let mut node = Node::start(Site::new(&format!("engine.forwarding = '{forwarding}'")));
        let device = Device::listening(V4);
        let is_over = AtomicBool::new(false);
        let moved = thread::scope(|scope| {
            let mut ends = Vec::new();
            for number in 0..4 {
                let client = node.tunnel(&device);
                let device = device.accept();
                // Each side sends until the last hand-over is done, and then some more.
                let is_over = &is_over;
                let stream = move |seed: u64, socket: TcpStream| {
                    scope.spawn(move || {
                        let mut sent = Vec::new();
                        let mut round = 0;
                        while !is_over.load(Ordering::Relaxed) || round == 0 {
                            let part = Content::new(seed * 1000 + round, 1 << 20);
                            part.send(&mut &socket).unwrap();
                            sent.extend(part.to_vec());
                            round += 1;
                            thread::sleep(Duration::from_millis(10 * number));
                        }
                        socket.shutdown(Shutdown::Write).unwrap();
                        Content::digest_of(&sent)
                    })
                };
                for (seed, from, to) in [(2 * number, &client, &device), (2 * number + 1, &device, &client)] {
                    let sender = stream(seed, from.try_clone().unwrap());
                    let mut to = to.try_clone().unwrap();
                    ends.push((sender, scope.spawn(move || receive(&mut to))));
                }
            }
            let mut moved = Vec::new();
            for _ in 0..10 {
                moved.push(node.upgrade()["moved"].as_u64().unwrap());
            }
            is_over.store(true, Ordering::Relaxed);
            for (sender, receiver) in ends {
                assert_eq!(receiver.join().unwrap(), (sender.join().unwrap(), End::Fin), "{forwarding}");
            }
            moved
        });
        assert_eq!(moved, [4; 10], "{forwarding}");
        let mut old = vec![node.relay.pid()];
        old.extend(&node.successors[..9]);
        assert!(wait_for(|| (!old.iter().any(|pid| runs(*pid))).then_some(())).is_some(), "{old:?}");
        assert!(runs(node.pid()));
        let ends = || {
            let events = node.site.audit().events();
            events.into_iter().filter(|event| event["event"] == "session-end").collect::<Vec<_>>()
        };
        let ends = wait_for(|| Some(ends()).filter(|ends| ends.len() == 4)).unwrap_or_else(ends);
        assert_eq!(ends.iter().filter(|event| event["cause"] == "closed").count(), 4, "{ends:?}");
    }
}

#[test]
fn a_tunnel_that_moved_keeps_its_number_its_start_and_its_counts() {
    let mut node = Node::start(Site::new(""));
    let device = Device::echo(V4);
    let mut tunnel = node.tunnel(&device);
    assert!(echoes(&mut tunnel));
    let before = node.sessions().remove(0);
    let outcome = node.upgrade();
    assert_eq!((&outcome["moved"], &outcome["stayed"]), (&1.into(), &0.into()), "{outcome}");
    assert!(echoes(&mut tunnel));
    let after = node.sessions().remove(0);
    for field in ["id", "client", "principal", "grant", "uuid", "port", "handshake_us"] {
        assert_eq!(before[field], after[field], "{field}");
    }
    let moment = |session: &Value| session["since"].as_i64().unwrap();
    assert!((moment(&before) - moment(&after)).abs() < 100, "{before} {after}");
    assert_eq!((&after["bytes_up"], &after["bytes_down"]), (&8.into(), &8.into()));
    let _other = node.tunnel(&device);
    // A list is served again for a moment.
    let both = wait_for(|| Some(node.sessions()).filter(|sessions| sessions.len() == 2)).unwrap();
    assert_ne!(both[0]["id"], both[1]["id"], "a new session gets a number of its own");
    node.site.cli(&["sessions", "kill", before["id"].as_str().unwrap()]);
    assert_eq!(receive(&mut tunnel).1, End::Reset);
}

#[test]
fn a_half_closed_tunnel_still_receives_in_the_new_process() {
    let mut node = Node::start(Site::new(""));
    let device = Device::listening(V4);
    let mut client = node.tunnel(&device);
    let mut device = device.accept();
    client.write_all(b"the request").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(receive(&mut device), (Content::digest_of(b"the request"), End::Fin));
    node.upgrade();
    let answer = Content::new(1, 5 << 20);
    thread::scope(|scope| {
        let reader = scope.spawn(|| receive(&mut &client));
        answer.send(&mut device).unwrap();
        device.shutdown(Shutdown::Write).unwrap();
        assert_eq!(reader.join().unwrap(), (answer.digest(), End::Fin));
    });
}

#[test]
fn bytes_that_a_stalled_reader_left_in_the_node_arrive_after_the_hand_over() {
    for forwarding in ["auto", "copy", "splice"] {
        let mut node = Node::start(Site::new(&format!("engine.forwarding = '{forwarding}'")));
        let device = Device::listening(V4);
        let client = node.tunnel(&device);
        let device = device.accept();
        let content = Content::new(7, 24 << 20);
        thread::scope(|scope| {
            // More than all sockets on the way take, so that the sender waits.
            let sender = scope.spawn(|| {
                let sent = content.send(&mut &client);
                client.shutdown(Shutdown::Write).unwrap();
                sent.unwrap()
            });
            thread::sleep(Duration::from_millis(300));
            node.upgrade();
            assert_eq!(receive(&mut &device), (content.digest(), End::Fin), "{forwarding}");
            sender.join().unwrap();
        });
    }
}

#[test]
fn nobody_who_comes_while_processes_change_is_refused() {
    let mut node = Node::start(Site::new("engine.threads = 2"));
    let device = Device::echo(V4);
    let (is_over, served) = (AtomicBool::new(false), AtomicUsize::new(0));
    let (request, relay) = (node.site.request(&device), node.relay.address());
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    let mut tunnel = request.send(relay).opened();
                    assert!(echoes(&mut tunnel));
                    served.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for _ in 0..3 {
            node.upgrade();
        }
        is_over.store(true, Ordering::Relaxed);
    });
    assert!(served.load(Ordering::Relaxed) > 20, "{served:?}");
}

#[test]
fn a_signal_hands_over_as_the_command_does() {
    let mut node = Node::start(Site::new(""));
    let device = Device::echo(V4);
    let mut tunnel = node.tunnel(&device);
    node.relay.signal(Signal::SIGUSR2);
    assert!(node.relay.logs("handed over"), "{}", node.relay.log());
    let log = node.relay.log();
    let pid = log.lines().find_map(|line| line.split_once("new=")?.1.split(' ').next()?.parse().ok());
    node.successors.push(pid.unwrap());
    assert!(echoes(&mut tunnel));
    assert_eq!(node.relay.wait().and_then(|status| status.code()), Some(0));
}

#[test]
fn a_new_process_that_fails_at_any_step_leaves_the_old_one_as_it_was() {
    let failures = [
        ("die:checking", "ended while it was to check"),
        ("die:restoring", "ended while it was to restore"),
        ("die:ready", "ended while it was to restore"),
        ("die:committed", "ended while it was to accept"),
        ("hang:restoring", "did not restore"),
    ];
    for (fault, told) in failures {
        let variables = [("SLUICEGATE_TEST_FAULT", fault), ("SLUICEGATE_TEST_READY_MS", "4000")];
        let node = Node::start_with(Site::new(""), &variables);
        let device = Device::echo(V4);
        let mut tunnel = node.tunnel(&device);
        let said = node.upgrade_in_vain();
        assert!(said.contains(told), "{fault}: {said}");
        assert!(node.relay.logs("nothing was handed over"), "{fault}");
        assert!(echoes(&mut tunnel), "{fault}");
        assert!(echoes(&mut node.tunnel(&device)), "{fault}: it accepts clients");
        let kept = node.kept();
        node.site.cli(&["token", "revoke", &node.site.credential]);
        assert_eq!(receive(&mut tunnel).1, End::Reset, "{fault}: it follows the store");
        assert!(wait_for(|| (node.kept() != kept).then_some(())).is_some(), "{fault}: it writes its state");
    }
}

#[test]
fn a_new_process_that_dies_right_after_it_took_over_leaves_its_clients_to_the_old_one() {
    for fault in ["die:accepting", "die:running", "die:batch", "die:adopted"] {
        let mut node = Node::start_with(Site::new(""), &[("SLUICEGATE_TEST_FAULT", fault)]);
        let device = Device::echo(V4);
        let mut tunnel = node.tunnel(&device);
        let first = node.sessions()[0]["session"].as_u64();
        for round in 1..=2 {
            let output = node.site.command(&["upgrade"]).output().unwrap();
            let (said, log) = (String::from_utf8(output.stderr).unwrap(), node.relay.log());
            // It may have said that all is well before the new one died.
            let is_refused = said.contains("ended right after it had taken over") || output.status.success();
            assert!(is_refused, "{fault}: {said} {log}");
            let took_back = || {
                (node.relay.log().matches("this one accepts clients again").count() >= round).then_some(())
            };
            assert!(wait_for(took_back).is_some(), "{fault}: {}", node.relay.log());
            // Only what the dead process had is gone with it.
            assert_eq!(echoes(&mut tunnel), fault != "die:adopted", "{fault}");
            tunnel = node.tunnel(&device);
            let numbers: Vec<_> = node.sessions().iter().map(|row| row["session"].as_u64()).collect();
            assert!(numbers.iter().all(|number| *number >= first), "{fault}: {numbers:?}");
            assert!(node.relay.admin_get("/readyz").starts_with("HTTP/1.1 200"), "{fault}");
        }
        let kept = node.kept();
        node.site.cli(&["token", "revoke", &node.site.credential]);
        assert_eq!(receive(&mut tunnel).1, End::Reset, "{fault}: it follows the store");
        assert!(wait_for(|| (node.kept() != kept).then_some(())).is_some(), "{fault}: it writes its state");
        node.relay.signal(Signal::SIGTERM);
        assert_eq!(node.relay.wait().and_then(|status| status.code()), Some(0), "{fault}");
        assert!(!node.site.folder().join("state/admin.sock").exists(), "{fault}: the path is its own again");
    }
}

#[test]
fn clients_that_come_while_nobody_accepts_are_served_once_the_old_process_does_again() {
    let mut node = Node::start(Site::new("engine.threads = 2"));
    let device = Device::echo(V4);
    node.upgrade();
    kill(Pid::from_raw(node.pid() as i32), Signal::SIGKILL).unwrap();
    assert!(wait_for(|| (!runs(node.pid())).then_some(())).is_some());
    // The kernel takes the dead process's ring down in its own time, and its accept with it.
    std::thread::sleep(Duration::from_millis(300));
    let (request, address) = (node.site.request(&device), node.relay.address());
    thread::scope(|scope| {
        let clients: Vec<_> = (0..8).map(|_| scope.spawn(|| request.send(address))).collect();
        for client in clients {
            assert_eq!(client.join().unwrap().status, 200, "{}", node.relay.log());
        }
    });
    assert!(node.relay.logs("this one accepts clients again"));
}

#[test]
fn a_new_process_that_ends_in_good_order_is_not_replaced_and_one_that_lasts_has_the_listeners() {
    let mut node = Node::start(Site::new(""));
    node.upgrade();
    kill(Pid::from_raw(node.pid() as i32), Signal::SIGTERM).unwrap();
    assert_eq!(node.relay.wait().and_then(|status| status.code()), Some(0));
    assert!(!node.relay.log().contains("this one accepts clients again"), "{}", node.relay.log());
    assert!(TcpStream::connect(node.relay.address()).is_err(), "nobody listens");

    let mut node = Node::start(Site::new(""));
    node.upgrade();
    assert_eq!(node.relay.wait().and_then(|status| status.code()), Some(0), "it has proved itself");
    assert!(node.relay.admin_get("/readyz").starts_with("HTTP/1.1 200"));
}

#[test]
fn an_old_process_that_dies_once_the_new_one_may_accept_leaves_its_clients_to_that_one() {
    for fault in ["die:commit-sent", "die:running-heard", "die:main-sent", "die:capture"] {
        let mut node = Node::start_with(Site::new(""), &[("SLUICEGATE_TEST_FAULT", fault)]);
        let device = Device::echo(V4);
        let _dies_with_its_process = node.tunnel(&device);
        node.relay.signal(Signal::SIGUSR2);
        assert!(node.relay.wait().is_some(), "{fault}");
        node.successors.extend(processes_with(node.site.config_path()));
        assert_eq!(node.successors.len(), 1, "{fault}");
        let mut tunnel = node.tunnel(&device);
        assert!(echoes(&mut tunnel), "{fault}");
        node.site.cli(&["token", "revoke", &node.site.credential]);
        assert_eq!(receive(&mut tunnel).1, End::Reset, "{fault}: it follows the store");
    }
}

#[test]
fn a_new_process_ends_with_an_old_one_that_dies_before_it_may_accept() {
    let node = Node::start_with(Site::new(""), &[("SLUICEGATE_TEST_FAULT", "die:offered")]);
    node.relay.signal(Signal::SIGUSR2);
    let is_over = || processes_with(node.site.config_path()).is_empty().then_some(());
    assert!(wait_for(is_over).is_some(), "a service manager can start the node anew");
    let relay = node.site.start();
    assert!(relay.admin_get("/readyz").starts_with("HTTP/1.1 200"), "{}", relay.log());
}

#[test]
fn a_configuration_that_is_wrong_is_told_and_changes_nothing() {
    let mut node = Node::start(Site::new(""));
    let device = Device::echo(V4);
    let mut tunnel = node.tunnel(&device);
    let right = std::fs::read_to_string(node.site.config_path()).unwrap();
    std::fs::write(node.site.config_path(), right.clone() + "\n[limits]\nsessoins = 5\n").unwrap();
    node.relay.signal(Signal::SIGUSR2);
    assert!(node.relay.logs("the new process refuses"), "{}", node.relay.log());
    assert!(node.relay.logs("sessoins"), "{}", node.relay.log());
    assert!(echoes(&mut tunnel));
    std::fs::write(node.site.config_path(), right).unwrap();
    assert_eq!(node.upgrade()["moved"], 1);
    assert!(echoes(&mut tunnel));
}

#[test]
fn a_tunnel_is_in_exactly_one_process_whichever_dies_between_two_steps() {
    for fault in ["die:batch", "die:adopted", "die:sent", "die:moved"] {
        let mut node = Node::start_with(Site::new(""), &[("SLUICEGATE_TEST_FAULT", fault)]);
        let device = Device::echo(V4);
        let mut tunnel = node.tunnel(&device);
        assert!(echoes(&mut tunnel));
        node.relay.signal(Signal::SIGUSR2);
        let pid = wait_for(|| {
            let log = node.relay.log();
            let line = log.lines().find(|line| line.contains("took over from the process before"))?;
            let line = line.split_once("old=")?.1;
            line.split(' ').next().map(str::to_owned)
        });
        assert!(pid.is_some(), "{fault}: {}", node.relay.log());
        node.successors.extend(processes_with(node.site.config_path()));
        match fault {
            "die:batch" => {
                assert!(node.relay.logs("goes on with its sessions"), "{fault}: {}", node.relay.log());
            }
            "die:adopted" => assert!(node.relay.logs("accepts clients again"), "{}", node.relay.log()),
            _ => assert!(node.relay.wait().is_some(), "{fault}"),
        }
        // One that the dead process had is gone with it.
        assert_eq!(echoes(&mut tunnel), fault != "die:adopted", "{fault}: {}", node.relay.log());
    }
}

/// Processes with this path among their arguments.
fn processes_with(path: PathBuf) -> Vec<u32> {
    let path = path.display().to_string();
    let processes = std::fs::read_dir("/proc").unwrap();
    let pids = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let has_path = |pid: &u32| {
        std::fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.contains(&path))
    };
    pids.filter(has_path).collect()
}

#[test]
fn another_format_moves_sockets_and_leaves_tunnels_where_they_are() {
    let mut node = Node::start_with(Site::new(""), &[("SLUICEGATE_TEST_FORMAT", "2")]);
    let device = Device::echo(V4);
    let mut tunnel = node.tunnel(&device);
    let outcome = node.upgrade();
    assert_eq!((&outcome["moved"], &outcome["stayed"]), (&0.into(), &1.into()), "{outcome}");
    assert!(outcome["remark"].as_str().is_some_and(|remark| remark.contains("format")), "{outcome}");
    assert!(echoes(&mut tunnel), "it goes on in the old process");
    assert!(echoes(&mut node.tunnel(&device)), "the new one accepts");
    node.site.cli(&["token", "revoke", &node.site.credential]);
    assert_eq!(receive(&mut tunnel).1, End::Reset, "the old process follows the store");
    assert!(node.relay.wait().is_some(), "nothing is left in it");
}

/// The points of the status page's last hour.
fn last_hour(node: &Node) -> Vec<Value> {
    let answer = node.relay.admin_get("/history.json");
    let body = answer.split_once("\r\n\r\n").unwrap().1;
    serde_json::from_str::<Value>(body).unwrap()["points"].as_array().unwrap().clone()
}

#[test]
fn the_last_hour_of_the_status_page_goes_on_in_the_new_process() {
    let mut node = Node::start(Site::new(""));
    let device = Device::echo(V4);
    let has_tunnel = |point: &Value| point["opened"].as_u64() > Some(0);
    let before = wait_for(|| {
        // The first point has what changes from the start on.
        assert!(echoes(&mut node.tunnel(&device)));
        std::thread::sleep(Duration::from_millis(100));
        Some(last_hour(&node)).filter(|points| points.iter().any(has_tunnel))
    });
    let before = before.expect("a point every ten seconds");
    node.upgrade();
    let after = last_hour(&node);
    assert_eq!(after[..before.len()], before);
    node.upgrade();
    assert_eq!(last_hour(&node)[..before.len()], before, "and in the one after that");
}

#[test]
fn a_process_that_does_not_take_the_last_hour_takes_over_all_the_same() {
    let mut node = Node::start_with(Site::new(""), &[("SLUICEGATE_TEST_NO_HISTORY", "1")]);
    let device = Device::echo(V4);
    let mut tunnel = node.tunnel(&device);
    assert!(wait_for(|| (!last_hour(&node).is_empty()).then_some(())).is_some());
    assert_eq!(node.upgrade()["moved"], 1);
    assert!(echoes(&mut tunnel));
    assert_eq!(last_hour(&node), Vec::<Value>::new());
}

/// A node whose clients may speak TLS that the relay itself opens and seals, which does not move.
struct MixedScene {
    node: Node,
    client: TlsClient,
    tls_address: SocketAddr,
    device: Device,
}

impl MixedScene {
    fn new(more: &str) -> Self {
        let folder = tempfile::tempdir().unwrap().keep();
        let authority = Authority::new(&folder, "root");
        let (chain, key) = authority.issue("relay.example", &["relay.example"]).write(&folder, "one");
        let site = Site::new(&format!(
            "engine.kernel_tls = 'off'\n{more}\nlisten = [{{ address = '127.0.0.1:0' }}, {{ address = '127.0.0.2:0', \
             tls = {{ certificates = [{{ chain = '{}', key = '{}' }}] }} }}]",
            chain.display(),
            key.display()
        ));
        let node = Node::start(site);
        let tls_address = node.relay.addresses()[1];
        Self { node, client: TlsClient::trusting(&authority), tls_address, device: Device::echo(V4) }
    }

    fn tunnel_by_tls(&mut self) -> TlsStream {
        let request = self.node.site.request(&self.device).bytes();
        let mut stream = self.client.connect(self.tls_address, "relay.example").unwrap();
        let head = ask_by_tls(&mut stream, &request).unwrap();
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        stream
    }
}

fn echoes_by_tls(tunnel: &mut TlsStream) -> bool {
    let mut echoed = [0; 4];
    tunnel.write_all(b"ping").is_ok() && tunnel.read_exact(&mut echoed).is_ok() && &echoed == b"ping"
}

#[test]
fn what_stays_is_listed_and_killed_and_revoked_through_the_new_process() {
    let mut scene = MixedScene::new("");
    let (mut stays, mut killed) = (scene.tunnel_by_tls(), scene.tunnel_by_tls());
    let mut moves = scene.node.tunnel(&scene.device);
    assert!(echoes_by_tls(&mut stays) && echoes(&mut moves));
    for round in 0..2 {
        let outcome = scene.node.upgrade();
        assert_eq!((&outcome["moved"], &outcome["stayed"]), (&1.into(), &(2 - round).into()), "{outcome}");
        assert!(echoes_by_tls(&mut stays) && echoes(&mut moves), "hand-over {round}");
        let listed = wait_for(|| Some(scene.node.sessions()).filter(|all| all.len() == 3 - round));
        let listed = listed.unwrap_or_else(|| panic!("{:?}", scene.node.sessions()));
        if round == 0 {
            let by_tls: Vec<&Value> = listed.iter().filter(|each| each["path_up"] == "tls").collect();
            assert_eq!(by_tls.len(), 2, "{listed:?}");
            scene.node.site.cli(&["sessions", "kill", by_tls[1]["id"].as_str().unwrap()]);
            let ended = [&mut stays, &mut killed].map(|tunnel| !echoes_by_tls(tunnel));
            assert_eq!(ended.iter().filter(|ended| **ended).count(), 1);
            if ended[0] {
                std::mem::swap(&mut stays, &mut killed);
            }
            let counts_one = |sessions: f64| sessions == 1.0;
            assert!(scene.node.relay.metric_becomes("sluicegate_sessions_old_process", counts_one));
        }
    }
    scene.node.site.cli(&["token", "revoke", &scene.node.site.credential]);
    assert_eq!(receive(&mut moves).1, End::Reset);
    let ends = || (!echoes_by_tls(&mut stays)).then_some(());
    assert!(wait_for(ends).is_some(), "the process before the last two asks the newest one");
    assert!(scene.node.relay.wait().is_some(), "nothing is left in the first process");
}

#[test]
fn three_processes_write_one_audit_log_that_is_rotated_and_lose_nothing_when_the_newest_is_killed() {
    let mut scene = MixedScene::new("audit.refusals_per_source = 1000000");
    let mut stay: Vec<_> = (0..12).map(|_| scene.tunnel_by_tls()).collect();
    scene.node.upgrade();
    stay.extend((0..12).map(|_| scene.tunnel_by_tls()));
    scene.node.upgrade();
    let path = scene.node.site.folder().join("audit.jsonl");
    let rotated = |number: usize| path.with_extension(format!("jsonl.{number}"));
    let (is_over, refused) = (AtomicBool::new(false), AtomicUsize::new(0));
    let (address, token) = (scene.node.relay.address(), scene.node.site.token.clone());
    thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                let request = Request::to(OTHER_DEVICE, 22).bearer(&token);
                assert_eq!(request.send(address).status, 403);
                refused.fetch_add(1, Ordering::Relaxed);
            }
        });
        for number in 0..6 {
            // Tunnels of the first two processes end, while the third refuses.
            drop(stay.remove(0));
            drop(stay.pop());
            thread::sleep(Duration::from_millis(40));
            std::fs::rename(&path, rotated(number)).unwrap();
            kill(Pid::from_raw(scene.node.pid() as i32), Signal::SIGHUP).unwrap();
            assert!(wait_for(|| path.exists().then_some(())).is_some());
        }
        is_over.store(true, Ordering::Relaxed);
    });
    let of = |path: PathBuf, kind: &str| -> Vec<u64> {
        let events = Audit::new(path).events().into_iter().filter(|event| event["event"] == kind);
        events.map(|event| event["session"].as_u64().unwrap()).collect()
    };
    let all = |kind: &str| -> Vec<u64> {
        let mut files: Vec<_> = (0..6).map(rotated).collect();
        files.push(path.clone());
        let mut sessions: Vec<_> = files.into_iter().flat_map(|path| of(path, kind)).collect();
        sessions.sort_unstable();
        sessions
    };
    assert!(
        wait_for(|| (all("session-end").len() == 12).then_some(())).is_some(),
        "{:?}",
        all("session-end")
    );
    let refusals = all("refusal");
    assert_eq!(refusals.len(), refused.load(Ordering::Relaxed));
    assert!(refusals.is_sorted_by(|one, next| one < next), "none twice");
    let ended_before = of(path.clone(), "session-end").len();

    // What the old ones have is theirs, whatever becomes of the newest.
    kill(Pid::from_raw(scene.node.pid() as i32), Signal::SIGKILL).unwrap();
    drop(stay);
    let ended = || all("session-end");
    assert!(wait_for(|| (ended().len() == 24).then_some(())).is_some(), "{:?}", ended());
    assert!(ended().is_sorted_by(|one, next| one < next), "none twice: {:?}", ended());
    assert_eq!(of(path.clone(), "session-end").len(), ended_before + 12, "in the file that is at the path");
}

#[test]
fn what_was_used_is_counted_once_whichever_process_had_it() {
    let mut scene = MixedScene::new("usage.interval = '1h'");
    let used = |scene: &MixedScene| scene.node.site.cli(&["usage"])["total"]["bytes_up"].as_u64().unwrap();
    let (mut stays, mut moves) = (scene.tunnel_by_tls(), scene.node.tunnel(&scene.device));
    assert!(echoes_by_tls(&mut stays) && echoes(&mut moves));
    assert_eq!(used(&scene), 8);
    let outcome = scene.node.upgrade();
    assert_eq!((&outcome["moved"], &outcome["stayed"]), (&1.into(), &1.into()), "{outcome}");
    assert_eq!(used(&scene), 8, "from the old process's record");
    assert!(echoes_by_tls(&mut stays) && echoes(&mut moves) && echoes(&mut moves));
    assert_eq!(used(&scene), 16, "what stays is known with the old process's next record");
    drop(stays);
    // The old process ends, and has written its last record.
    assert!(scene.node.relay.wait().is_some());
    assert_eq!(used(&scene), 20);
    let report = scene.node.site.cli(&["usage"]);
    assert_eq!((&report["total"]["opened"], &report["total"]["open"]), (&2.into(), &1.into()));
    drop(moves);
    let ends = || {
        let events = scene.node.site.audit().events();
        let ends: Vec<Value> = events.into_iter().filter(|event| event["event"] == "session-end").collect();
        Some(ends).filter(|ends| ends.len() == 2)
    };
    let ends = wait_for(ends).unwrap();
    let bytes = ends.iter().map(|end| end["bytes_up"].as_u64().unwrap()).sum::<u64>();
    assert_eq!((used(&scene), bytes), (20, 20));
}

#[test]
fn limits_count_the_sessions_of_both_processes_once() {
    let mut scene = MixedScene::new("limits.sessions_per_principal = 3");
    let stays = scene.tunnel_by_tls();
    let mut moves = scene.node.tunnel(&scene.device);
    scene.node.upgrade();
    let request = scene.node.site.request(&scene.device);
    let third = request.send(scene.node.relay.address());
    assert_eq!(third.status, 200, "two of three places are taken");
    assert_eq!(request.send(scene.node.relay.address()).status, 429, "three of three");
    drop(stays);
    let is_free = || (request.send(scene.node.relay.address()).status == 200).then_some(());
    assert!(wait_for(is_free).is_some(), "the place of the one that stayed is free");
    assert!(echoes(&mut moves));
}

#[test]
fn clients_whose_heads_the_old_process_awaits_count_for_their_network() {
    let mut node =
        Node::start(Site::new("limits.heads_per_network = 3\ntimeouts.head = '20s'\nengine.threads = 1"));
    let address = node.relay.address();
    let begin = || {
        let mut client = TcpStream::connect(address).unwrap();
        client.write_all(b"CONNECT ").unwrap();
        client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        client
    };
    let mut begun = vec![begin(), begin()];
    let listed = |count: usize| {
        wait_for(|| {
            (node.sessions().iter().filter(|each| each["state"] == "head").count() == count).then_some(())
        })
    };
    assert!(listed(2).is_some());
    assert_eq!(node.upgrade()["stayed"], 2);
    begun.push(begin());
    let request = Request::to(OTHER_DEVICE, 22).bearer(&node.site.token);
    // The new process cannot have one of the old one's give way, and has one of its own do so, once that has waited.
    std::thread::sleep(Duration::from_millis(700));
    assert_eq!(request.send(address).status, 403);
    let mut end = String::new();
    begun[2].read_to_string(&mut end).unwrap();
    assert!(end.starts_with("HTTP/1.1 429"), "{end}");
    begun.truncate(2);
    let third = begin();
    std::thread::sleep(Duration::from_millis(700));
    let fourth = begin();
    assert!(
        wait_for(|| (third.peek(&mut [0]).is_ok()).then_some(())).is_some(),
        "it gave way: three of three"
    );
    drop((begun, third, fourth));
    assert!(node.relay.wait().is_some());
    let _three = [begin(), begin(), begin()];
    std::thread::sleep(Duration::from_millis(700));
    assert_eq!(Request::to(OTHER_DEVICE, 22).bearer(&node.site.token).send(address).status, 403);
}

#[test]
fn unknown_tokens_that_the_old_process_has_seen_count_on() {
    let mut node = Node::start(Site::new("limits.unknown_tokens_per_minute = 5"));
    let status =
        |node: &Node| Request::to(OTHER_DEVICE, 22).bearer("sg_nobody").send(node.relay.address()).status;
    assert_eq!([(); 3].map(|()| status(&node)), [407; 3]);
    node.upgrade();
    assert_eq!([(); 4].map(|()| status(&node)), [407, 407, 429, 429]);
    node.upgrade();
    assert_eq!(status(&node), 429);
}

#[test]
fn what_was_revoked_before_stays_so_and_the_state_has_one_writer() {
    let mut node = Node::start(Site::new(""));
    let device = Device::echo(V4);
    node.tunnel(&device);
    node.site.cli(&["token", "revoke", &node.site.credential]);
    let request = node.site.request(&device);
    assert!(wait_for(|| (request.send(node.relay.address()).status == 407).then_some(())).is_some());
    node.upgrade();
    assert_eq!(request.send(node.relay.address()).status, 407);
    let status = node.site.cli(&["authz", "status"]);
    assert_eq!(status["state_unsaved"], Value::Null, "the folder was free: {status}");
    let kept = node.kept();
    node.site.cli(&["grant", "revoke", &node.site.grant.to_string()]);
    assert!(wait_for(|| (node.kept() != kept).then_some(())).is_some(), "the new process writes");
}

#[test]
fn the_service_manager_gets_to_know_the_new_process_before_that_one_reports() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let site = Site::new("");
    let mut command: Command = site.command(&["run"]);
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "600000");
    let relay = Relay::start(command);
    let mut node = Node { site, relay, successors: Vec::new() };
    let hears = |wanted: &str| {
        wait_for(|| {
            let mut message = [0; 4096];
            let len = manager.recv(&mut message).ok()?;
            let message = String::from_utf8(message[..len].to_vec()).unwrap();
            message.lines().find(|line| line.starts_with(wanted)).map(str::to_owned)
        })
    };
    assert!(hears("READY=1").is_some());
    let pid = node.upgrade()["pid"].clone();
    assert_eq!(hears("MAINPID=").as_deref(), Some(format!("MAINPID={pid}").as_str()));
    assert!(hears("READY=1").is_some(), "by the new process");
    assert!(node.relay.wait().is_some());
    while manager.recv(&mut [0; 4096]).is_ok() {}
    assert!(hears("WATCHDOG=1").is_some(), "the old process is gone, and the new one reports");

    node.site.configure("engine.threads = 1");
    kill(Pid::from_raw(node.pid() as i32), Signal::SIGHUP).unwrap();
    assert!(hears("RELOADING=1").is_some());
    let main = hears("MAINPID=").unwrap();
    assert_ne!(main, format!("MAINPID={pid}"));
    node.successors.push(main["MAINPID=".len()..].parse().unwrap());
    assert!(hears("READY=1").is_some(), "by the newest process");
}

#[test]
fn the_service_manager_gets_to_know_that_the_old_process_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let site = Site::new("");
    let mut command: Command = site.command(&["run"]);
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "600000");
    let relay = Relay::start(command);
    let mut node = Node { site, relay, successors: Vec::new() };
    let new = node.upgrade()["pid"].as_u64().unwrap();
    kill(Pid::from_raw(new as i32), Signal::SIGKILL).unwrap();
    let hears = |wanted: &str| loop {
        let mut message = [0; 4096];
        let len = manager.recv(&mut message).unwrap();
        let message = String::from_utf8(message[..len].to_vec()).unwrap();
        if message.lines().any(|line| line == wanted) {
            return message;
        }
    };
    hears(&format!("MAINPID={new}"));
    assert!(hears(&format!("MAINPID={}", node.relay.pid())).contains("READY=1"));
    hears("WATCHDOG=1");
}

#[test]
fn the_admin_side_changes_hands_with_its_sockets() {
    let mut node = Node::start(Site::new(""));
    for _ in 0..2 {
        node.upgrade();
        assert!(node.relay.admin_get("/readyz").starts_with("HTTP/1.1 200"), "{}", node.relay.log());
        assert_eq!(node.relay.metric("sluicegate_sessions_old_process"), Some(0.0));
    }
}

#[test]
fn a_reload_of_what_needs_a_new_process_is_a_hand_over_of_the_program_that_runs() {
    let site = Site::new("engine.threads = 2");
    let program = site.folder().join("sluicegate");
    std::fs::copy(BINARY, &program).unwrap();
    let (usual, mut command) = (site.command(&["run"]), Command::new(&program));
    command.args(usual.get_args()).envs(usual.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let relay = Relay::start(command);
    let mut node = Node { site, relay, successors: Vec::new() };
    let device = Device::echo(V4);
    let mut tunnel = node.tunnel(&device);
    let number = node.sessions()[0]["session"].clone();
    // What is on disk now does not run.
    std::fs::remove_file(&program).unwrap();
    std::fs::write(&program, "#!/bin/sh\nexit 7\n").unwrap();
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();

    for (threads, head) in [(1, "200ms"), (2, "300ms")] {
        let reloads = node.relay.metric("sluicegate_config_last_reload_success_timestamp_seconds");
        node.site.configure(&format!("engine.threads = {threads}\ntimeouts.head = '{head}'"));
        let output = node.site.command(&["reload"]).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stderr), "");
        assert_eq!(String::from_utf8_lossy(&output.stdout), "reloaded\n");
        let old = node.pid();
        let has_ended =
            || processes_with(node.site.config_path()).iter().all(|pid| *pid != old).then_some(());
        assert!(wait_for(has_ended).is_some(), "the old process has nothing left");
        node.successors.extend(processes_with(node.site.config_path()));
        assert_ne!(node.pid(), old);
        assert!(echoes(&mut tunnel), "{}", node.relay.log());
        assert_eq!(node.sessions()[0]["session"], number);
        assert_eq!(engine_threads(node.pid()), threads);
        assert_eq!(Answer::to_bytes(node.relay.address(), b"CONNECT ").status, 408);
        assert_eq!(node.relay.metric("sluicegate_config_last_reload_successful"), Some(1.0));
        assert!(node.relay.metric("sluicegate_config_last_reload_success_timestamp_seconds") > reloads);
    }
    let said = node.upgrade_in_vain();
    assert!(said.contains("the new process ended while it was to say hello"), "what is on disk: {said}");
    assert!(echoes(&mut tunnel));
}

/// The engine threads of a process.
fn engine_threads(pid: u32) -> usize {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let names = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
    names.filter(|name| name.starts_with("engine-")).count()
}

#[test]
fn a_reload_that_its_new_process_refuses_changes_nothing_and_says_why() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut node = Node::start(Site::new(""));
    let device = Device::echo(V4);
    let mut tunnel = node.tunnel(&device);
    let address = taken.local_addr().unwrap();
    node.site.configure(&format!("admin.health_address = '{address}'\ntimeouts.head = '1ms'"));
    let output = node.site.command(&["reload"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    let begin = "sluicegate: changes of admin.health_address need a new process, which did not take over: \
                 the new process refuses: ";
    assert!(said.starts_with(begin) && said.contains(&address.to_string()), "{said}");
    assert!(node.relay.log().contains("ERROR") && node.relay.logs("nothing was handed over"));
    assert!(echoes(&mut tunnel));
    assert!(echoes(&mut node.tunnel(&device)), "timeouts.head is as before");
    assert_eq!(node.relay.metric("sluicegate_config_last_reload_successful"), Some(0.0));
    let status = node.site.command(&["status"]).output().unwrap();
    let status = String::from_utf8(status.stdout).unwrap();
    assert!(status.contains("\nconfig    RELOAD REFUSED ") && status.contains("health_address"), "{status}");

    drop(taken);
    assert_eq!(node.site.command(&["reload"]).output().unwrap().status.code(), Some(0));
    node.successors
        .extend(processes_with(node.site.config_path()).into_iter().filter(|pid| *pid != node.relay.pid()));
    assert_eq!(node.relay.metric("sluicegate_config_last_reload_successful"), Some(1.0));
    assert!(echoes(&mut tunnel));
}

#[test]
fn what_stays_ends_when_the_linger_of_the_reload_has_passed() {
    let mut scene = MixedScene::new("timeouts.linger = '1h'");
    let mut stays = scene.tunnel_by_tls();
    scene.node.site.configure("timeouts = { linger = '1s', drain = '300ms' }");
    assert_eq!(scene.node.site.command(&["reload"]).output().unwrap().status.code(), Some(0));
    assert_eq!(scene.node.upgrade()["stayed"], 1);
    assert!(echoes_by_tls(&mut stays));
    assert!(scene.node.relay.wait().is_some(), "the old process has ended");
    assert!(!echoes_by_tls(&mut stays));
}

/// Runs `test` on a store of each kind, as far as they are there, with the schema's name in front of its tables.
fn on_each_store(fragment: &str, test: impl Fn(Site, &str)) {
    test(Site::new(fragment), "");
    if let Some(cluster) = Cluster::shared() {
        let database = cluster.database();
        test(Site::on_postgres(&database, fragment), "sluicegate.");
    }
}

#[test]
fn a_query_that_changes_with_a_key_of_a_new_process_is_compared_before_that_one_takes_over() {
    let fast = "authz = { refresh = '20ms', reread = '100ms' }\nengine.threads = 1";
    on_each_store(fast, |site, schema| {
        // More than a person's work.
        for number in 1..=4 {
            let (uuid, address) = (format!("{number:032x}"), format!("127.0.0.{}", number + 1));
            site.cli(&["device", "add", &uuid, "--address", &address]);
            site.cli(&["grant", "add", "alice", "--any"]);
        }
        let mut node = Node::start(site);
        let device = Device::echo(ALL_V4);
        let mut tunnel = node.tunnel(&device);
        let configure = |node: &mut Node, relation: &str, sql: &str| {
            let file = node.site.folder().join(format!("{relation}.sql"));
            std::fs::write(&file, sql).unwrap();
            let query = format!("authz.queries.{relation} = '{}'", file.display());
            node.site.configure(&format!("engine.threads = 2\n{query}"));
        };
        let devices = format!("SELECT id AS device, uuid, fleet, address, node, online FROM {schema}devices");
        let wrong = [
            ("devices", format!("{devices} WHERE id < 0"), "devices.absent"),
            ("devices", devices.replace("address", "'203.0.113.9' AS address"), "devices.moved"),
            ("devices", devices.replace(" node,", ""), "breaks the contract"),
            (
                "grants",
                format!(
                    "SELECT id AS grant_id, principal, scope, target, port_min, port_max, expires_at, \
                     revoked_at IS NULL AS revoked FROM {schema}grants"
                ),
                "grants.ended",
            ),
        ];
        for (relation, sql, held) in &wrong {
            configure(&mut node, relation, sql);
            let output = node.site.command(&["reload"]).output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(1), "{sql}: {said}");
            let begin = "sluicegate: changes of engine.threads need a new process, which did not take over: \
                         the new process refuses: ";
            assert!(said.starts_with(begin) && said.contains(held), "{sql}: {said}");
            assert!(echoes(&mut tunnel) && echoes(&mut node.tunnel(&device)), "{sql}");
            assert_eq!(node.relay.metric("sluicegate_guard_held"), Some(0.0), "nothing else is held for it");
            node.site.unconfigure("authz", "queries");
        }
        configure(&mut node, "devices", &wrong[0].1);
        let said = node.upgrade_in_vain();
        assert!(said.contains("the new process refuses") && said.contains("devices.absent"), "{said}");

        let moved =
            "CASE uuid WHEN '66666666666666666666666666666666' THEN '127.0.0.8' ELSE address END AS address";
        let reaches_moved = |node: &Node| {
            let request = Request::to(DEVICE_V6, device.port()).bearer(&node.site.token);
            request.send(node.relay.address()).status == 200
        };
        assert!(!reaches_moved(&node));
        configure(&mut node, "devices", &devices.replace("address", moved));
        let output = node.site.command(&["reload"]).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        let old = node.relay.pid();
        node.successors.extend(processes_with(node.site.config_path()).into_iter().filter(|pid| *pid != old));
        assert_ne!(node.pid(), old);
        assert!(wait_for(|| reaches_moved(&node).then_some(())).is_some(), "{}", node.relay.log());
        assert!(echoes(&mut tunnel));
        assert_eq!(node.relay.metric("sluicegate_guard_held"), Some(0.0));
    });
}

#[test]
fn a_changed_query_without_its_store_is_not_taken_over_with_a_new_process_either() {
    let Some(mut cluster) = Cluster::start() else { return };
    let database = cluster.database();
    let site = Site::on_postgres(&database, "authz.refresh = '20ms'");
    drop(database);
    let mut node = Node::start(site);
    let device = Device::echo(V4);
    let mut tunnel = node.tunnel(&device);
    cluster.stop();
    let file = node.site.folder().join("devices.sql");
    std::fs::write(&file, "SELECT id AS device, uuid, fleet, address, node, online FROM sluicegate.devices")
        .unwrap();
    node.site.configure(&format!("engine.threads = 1\nauthz.queries.devices = '{}'", file.display()));
    let output = node.site.command(&["reload"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("the new process refuses") && said.contains("cannot be reached"), "{said}");
    assert!(echoes(&mut tunnel) && echoes(&mut node.tunnel(&device)));
}

#[test]
fn a_port_that_needs_a_capability_is_opened_by_a_reload_of_a_relay_that_was_started_with_it() {
    if !root_or_skip(
        "a_port_that_needs_a_capability_is_opened_by_a_reload_of_a_relay_that_was_started_with_it",
    ) {
        return;
    }
    let free = (600..1024).find(|port| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok()).unwrap();
    let without = ["setpriv", "--bounding-set", "-net_bind_service"];
    for (key, entry) in [
        ("listen", format!("listen = [{{ address = '127.0.0.1:0' }}, {{ address = '127.0.0.1:{free}' }}]")),
        ("admin.health_address", format!("admin.health_address = '127.0.0.1:{free}'")),
    ] {
        let mut site = Site::new("");
        let relay = site.start_through(&without);
        let device = Device::echo(V4);
        let mut tunnel = site.request(&device).send(relay.address()).opened();
        site.configure(&entry);
        let output = site.command(&["reload"]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        let named = format!("127.0.0.1:{free}");
        let is_told = said.contains(&named) && said.contains("ports below 1024 need CAP_NET_BIND_SERVICE");
        assert!(is_told && said.contains(&format!("changes of {key} need a new process")), "{said}");
        assert!(echoes(&mut tunnel));
        let check = site.command(&["check"]);
        let mut unprivileged = Command::new(without[0]);
        unprivileged.args(&without[1..]).arg(check.get_program()).args(check.get_args());
        let said = String::from_utf8(unprivileged.output().unwrap().stderr).unwrap();
        assert!(said.contains(&format!("warning: this user may not listen on {named}")), "{said}");
        drop((relay, tunnel));

        site.unconfigure("admin", "health_address");
        site.configure("listen = [{ address = '127.0.0.1:0' }]");
        let mut node = Node::start(site);
        let mut tunnel = node.tunnel(&device);
        node.site.configure(&entry);
        let output = node.site.command(&["reload"]).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{key}");
        let old = node.relay.pid();
        node.successors.extend(processes_with(node.site.config_path()).into_iter().filter(|pid| *pid != old));
        assert!(echoes(&mut tunnel) && TcpStream::connect(("127.0.0.1", free)).is_ok(), "{key}");
        let said = node.site.command(&["check"]).output().unwrap().stderr;
        assert!(!String::from_utf8(said).unwrap().contains("may not listen"), "root may");
    }
}

#[test]
fn nobody_is_handed_to_a_process_that_has_no_rights_to_decide_by() {
    let mut node = Node::start_with(Site::new(""), &[("SLUICEGATE_TEST_READY_MS", "4000")]);
    let device = Device::echo(V4);
    let mut tunnel = node.tunnel(&device);
    let nowhere = node.site.folder().join("elsewhere");
    node.site.configure(&format!(
        "store.url = 'postgres://nobody@127.0.0.1:1/sluicegate'\nauthz.state = '{}'",
        nowhere.display()
    ));
    let output = node.site.command(&["reload"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("there are no rights to decide by, and the process before has some"), "{said}");
    assert!(said.contains("store.url, authz.state") && said.contains("127.0.0.1"), "{said}");
    assert!(echoes(&mut tunnel));
    assert!(echoes(&mut node.tunnel(&device)), "it accepts clients");
}
