//! Single turns of a worker on a real ring: the share of a turn that each kind of work gets.

use std::time::Instant;

use super::*;
use crate::config::KernelTls;
use crate::engine::forward::SLICE_BYTES;
use crate::engine::moved_tunnel::Unsent;
use crate::engine::requests::WorkerRequest;
use crate::engine::tls::handshake_pool::HandshakePool;
use crate::engine::user_data::UserData;
use crate::engine::worker::driver::DriverSeat;
use crate::engine::worker::scheduler::{ARRIVALS_PER_TURN, REQUESTS_PER_TURN};
use crate::engine::worker::serve_requests::SESSIONS_PER_TURN;
use crate::engine::worker::streams::TURN_BYTES;
use crate::engine::worker::{TurnError, WorkerSeat};
use crate::sys::buffers::BUFFER_BYTES;
use crate::sys::ring::{Completion, RECEIVE_BYTES_MAX};

/// A worker that the test drives turn by turn, and a device that it can reach.
struct Bench {
    worker: Worker,
    shared: Arc<Shared>,
    relay: SocketAddr,
    device: TcpListener,
}

impl Bench {
    fn new(forwarding: Forwarding) -> Self {
        let mut config = config(forwarding);
        config.limits.sessions_per_device = CLIENTS as u32 + 10;
        let config = Arc::new(config);
        let (addresses, mut listeners) = bind_all(&config, 1, Inherited::none()).unwrap();
        let limits = Arc::new(SessionLimits::new(&config.limits, client_share(&config, 1)));
        let authority = authority();
        let thread = ThreadShared::new(authority.decision_log(), 1).unwrap();
        let shared = Arc::new(Shared::new(
            Arc::clone(&config),
            TlsConfigs::default(),
            authority,
            AuditSender::disabled(),
            limits,
            vec![thread],
        ));
        let kernel = UringKernel::new(&config, KernelTls::Off).unwrap();
        let handshakes = HandshakePool::without_threads(Arc::clone(&shared.threads[0].wake));
        let driver = DriverSeat { listeners: listeners.remove(0), sessions_begun: 0 };
        let worker = Worker::new(0, kernel, WorkerSeat { driver, handshakes }, Arc::clone(&shared));
        let device = TcpListener::bind("127.0.0.1:0").unwrap();
        Self { worker, shared, relay: addresses[0], device }
    }

    fn turn(&mut self) {
        let shared = Arc::clone(&self.shared);
        assert!(self.worker.turn(&shared).unwrap().is_continue());
    }

    /// A turn that does not sleep.
    fn nudged_turn(&mut self) {
        self.shared.wake_all();
        self.turn();
    }

    fn counters(&self) -> &EngineCounters {
        &self.shared.threads[0].counters
    }

    /// A client that has sent its head and waits.
    fn client(&self) -> TcpStream {
        connect(self.relay, self.device.local_addr().unwrap().port())
    }

    /// Opens a tunnel. Returns its two ends: the client and the device.
    fn tunnel(&mut self) -> (TcpStream, TcpStream) {
        let opened = self.counters().sessions.tunnels_opened.get();
        let mut client = self.client();
        while self.counters().sessions.tunnels_opened.get() == opened {
            self.turn();
        }
        assert!(read_head(&mut client).starts_with("HTTP/1.0 200"));
        let (device, _) = self.device.accept().unwrap();
        device.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        (client, device)
    }
}

/// A tunnel that always has one short message in flight.
struct Quiet {
    client: TcpStream,
    device: TcpStream,
    passed: usize,
}

impl Quiet {
    fn start((mut client, device): (TcpStream, TcpStream)) -> Self {
        device.set_nonblocking(true).unwrap();
        client.write_all(b"x").unwrap();
        Self { client, device, passed: 0 }
    }

    fn look(&mut self) {
        if self.device.read(&mut [0]).is_ok() {
            self.passed += 1;
            self.client.write_all(b"x").unwrap();
        }
    }
}

const CLIENTS: usize = 1_000;

/// Messages of a quiet tunnel that must pass while other work never ends. There are far more turns than messages,
/// since the system decides when a message arrives.
const MESSAGES_MIN: usize = 10;

#[test]
fn a_thousand_clients_that_come_at_once_have_a_share_of_each_turn_and_all_are_served() {
    let mut bench = Bench::new(Forwarding::Auto);
    let mut quiet = Quiet::start(bench.tunnel());
    bench.device.set_nonblocking(true).unwrap();
    let mut clients: Vec<_> = (0..CLIENTS).map(|_| bench.client()).collect();
    let give_up_at = Instant::now() + Duration::from_secs(60);
    let (mut accepted, mut dialled) = (1, 1);
    while bench.counters().sessions.tunnels_opened.get() < CLIENTS as u64 + 1 {
        assert!(Instant::now() < give_up_at, "{accepted} accepted, {dialled} dialled, and no more");
        bench.turn();
        quiet.look();
        let accepted_now = bench.counters().sessions.accepted.get();
        let dialled_now = bench.counters().accept_to_dial.total().len();
        assert!(accepted_now - accepted <= ARRIVALS_PER_TURN as u64, "{accepted_now} after {accepted}");
        assert!(dialled_now - dialled <= REQUESTS_PER_TURN as u64, "{dialled_now} after {dialled}");
        (accepted, dialled) = (accepted_now, dialled_now);
        // An accept makes room in the device's backlog.
        while bench.device.accept().is_ok() {}
    }
    for client in &mut clients {
        assert!(read_head(client).starts_with("HTTP/1.0 200"));
    }
    assert!(quiet.passed >= MESSAGES_MIN, "only {} messages passed", quiet.passed);
}

/// Checks that endless streams get at most `share` bytes of a turn together, and that a quiet tunnel is served beside
/// them.
fn streams_have(share: usize, forwarding: Forwarding) {
    const TURNS: usize = 1_000;
    let mut bench = Bench::new(forwarding);
    let mut quiet = Quiet::start(bench.tunnel());
    let streams: Vec<_> = (0..STREAMS).map(|_| Stream::start(bench.tunnel())).collect();
    let moved = |bench: &Bench| {
        let hot = &bench.counters().hot;
        hot.bytes_up_copied.get() + hot.bytes_up_spliced.get()
    };
    let (mut before, mut most) = (moved(&bench), 0);
    for _ in 0..TURNS {
        bench.turn();
        quiet.look();
        most = most.max(moved(&bench) - before);
        before = moved(&bench);
    }
    assert!(most as usize <= share + 1, "{most} bytes in one turn");
    assert!(most as usize > share / 100, "the streams hardly moved: {most} bytes in one turn");
    assert!(quiet.passed >= MESSAGES_MIN, "only {} messages passed", quiet.passed);
    drop(streams);
}

const STREAMS: usize = 8;

/// A client that sends and a device that receives as fast as possible, until this is dropped.
struct Stream {
    ends: [TcpStream; 2],
}

impl Stream {
    fn start((client, device): (TcpStream, TcpStream)) -> Self {
        let ends = [client.try_clone().unwrap(), device.try_clone().unwrap()];
        let (mut client, mut device) = (client, device);
        std::thread::spawn(move || while client.write_all(&[7; 256 * 1024]).is_ok() {});
        std::thread::spawn(move || std::io::copy(&mut device, &mut std::io::sink()));
        Self { ends }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        for end in &self.ends {
            let _gone_already = end.shutdown(std::net::Shutdown::Both);
        }
    }
}

#[test]
fn spliced_streams_have_a_share_of_each_turn_and_a_quiet_tunnel_is_served_beside_them() {
    let pipe_bytes = config(Forwarding::Splice).engine.pipe_bytes;
    // The last slice is finished once it has begun, and so is its last pipe.
    streams_have((TURN_BYTES + SLICE_BYTES) as usize + pipe_bytes, Forwarding::Splice);
}

#[test]
fn copied_streams_have_a_share_of_each_turn_and_a_quiet_tunnel_is_served_beside_them() {
    // Bytes that were kept for want of room are sent in addition to the next ones.
    streams_have(STREAMS * 2 * (RECEIVE_BYTES_MAX + BUFFER_BYTES), Forwarding::Copy);
}

#[test]
fn a_list_of_sessions_takes_a_share_of_each_turn_and_holds_every_one_once() {
    let mut bench = Bench::new(Forwarding::Auto);
    let tunnels: Vec<_> = (0..3 * SESSIONS_PER_TURN).map(|_| bench.tunnel()).collect();
    let mut under_way = bench.shared.list_sessions().unwrap();
    let mut turns = 0;
    let list = loop {
        bench.turn();
        turns += 1;
        match under_way.poll() {
            Some(list) => break list,
            None => assert!(turns < 100, "no list"),
        }
    };
    assert!(turns >= 3, "the whole list in {turns} turns");
    let mut listed: Vec<u64> = list.rows.iter().map(|row| row.facts.session).collect();
    listed.sort_unstable();
    listed.dedup();
    assert_eq!((listed.len(), list.left_out), (tunnels.len(), 0));
}

#[test]
fn the_end_of_one_session_ends_no_other() {
    let mut bench = Bench::new(Forwarding::Auto);
    let mut tunnels: Vec<_> = (0..SESSIONS_PER_TURN + 2).map(|_| bench.tunnel()).collect();
    let wanted = SESSIONS_PER_TURN as u64 + 1;
    let ended = |bench: &mut Bench, session: u64| {
        let mut under_way = bench.shared.end_session(session).unwrap();
        loop {
            bench.turn();
            if let Some(found) = under_way.poll() {
                return found;
            }
        }
    };
    assert_eq!(ended(&mut bench, wanted), EndResult::Ended);
    assert_eq!(ended(&mut bench, wanted), EndResult::NotFound, "it is over");
    assert_eq!(ended(&mut bench, u64::MAX), EndResult::NotFound, "of a thread that is not there");
    let (mut gone, _) = tunnels.remove(wanted as usize - 1);
    assert_eq!(gone.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    assert_eq!(bench.counters().sessions.tunnels_closed.get(), 1);
    let mut quiet = Quiet::start(tunnels.pop().unwrap());
    while quiet.passed == 0 {
        bench.turn();
        quiet.look();
    }
}

#[test]
fn a_panic_outside_of_any_session_resets_the_threads_sessions_and_a_new_worker_goes_on_with_its_listeners() {
    let mut bench = Bench::new(Forwarding::Auto);
    let (mut client, mut device) = bench.tunnel();
    let mut waiting = bench.client();
    let user_data = UserData::Accept { listener: 99 }.into_bits();
    let defect = Completion { user_data, result: -libc::EINVAL, more: false, buffer: None, accepted: None };
    let Bench { mut worker, shared, relay, device: listener } = bench;
    worker.add_completion(defect);
    let failed = worker.run().expect_err("the panic ends the worker");
    assert!(matches!(failed.error, TurnError::Panic));
    for end in [&mut client, &mut device] {
        assert_eq!(end.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }
    assert_eq!(shared.threads[0].counters.sessions.active.get(), 0);

    let kernel = UringKernel::new(&shared.config(), KernelTls::Off).unwrap();
    let worker = Worker::new(0, kernel, failed.seat, Arc::clone(&shared));
    let mut bench = Bench { worker, shared, relay, device: listener };
    // This one came before: it waited for an accept, or was reset as the others.
    let _either = waiting.read(&mut [0]);
    let _tunnel = bench.tunnel();
    let mut list = bench.shared.list_sessions().unwrap();
    let list = loop {
        bench.turn();
        if let Some(list) = list.poll() {
            break list;
        }
    };
    assert!(list.rows.iter().all(|row| row.facts.session > 1), "no number is used twice");
}

#[test]
fn a_tunnel_that_is_captured_goes_on_where_it_is_adopted_to_the_byte() {
    for forwarding in [Forwarding::Auto, Forwarding::Copy, Forwarding::Splice, Forwarding::RingSplice] {
        let mut bench = Bench::new(forwarding);
        let (mut client, mut device) = bench.tunnel();
        for socket in [&client, &device] {
            socket.set_nonblocking(true).unwrap();
        }
        // More than the sockets take at once, so that the node holds some of it.
        let sent: Vec<u8> = (0..8_000_000u32).map(|at| (at ^ at >> 11) as u8).collect();
        let (mut written, mut received) = (0, Vec::new());
        let (mut moves, mut has_held) = (0, false);
        while received.len() < sent.len() {
            if written < sent.len() {
                written += client.write(&sent[written..]).unwrap_or(0);
            }
            bench.nudged_turn();
            // How much is in the node at a move is the kernel's to say: it is moved until it was caught with some.
            let is_moved_enough = moves >= 20 && has_held || moves >= 1_000;
            if !is_moved_enough {
                let (answer, captured) = bounded(1);
                let capture = WorkerRequest::Capture { tunnels_max: 8, answer };
                bench.shared.threads[0].requests.send(capture).unwrap();
                let tunnels = loop {
                    bench.nudged_turn();
                    if let Ok(tunnels) = captured.try_recv() {
                        break tunnels;
                    }
                };
                assert_eq!((tunnels.len(), bench.counters().sessions.active.get()), (1, 0));
                has_held |= !matches!(tunnels[0].up.unsent, Unsent::Nothing);
                let (answer, adopted) = bounded(1);
                let adopt = WorkerRequest::Adopt { tunnels, answer };
                bench.shared.threads[0].requests.send(adopt).unwrap();
                while adopted.try_recv().is_err() {
                    bench.nudged_turn();
                }
                moves += 1;
                // The scan of the table begins anew with the next request once it has seen all.
                drain_scan(&mut bench);
            }
            let mut room = [0; 65_536];
            if is_moved_enough || moves % 3 == 0 {
                let len = device.read(&mut room).unwrap_or(0);
                received.extend_from_slice(&room[..len]);
            }
        }
        assert!(received == sent, "{forwarding:?}: the bytes changed on their way");
        assert!(has_held, "{forwarding:?}: nothing was in the node at any move");
        drop(client);
        while device.read(&mut [0]).is_err() {
            bench.nudged_turn();
        }
        assert_eq!(bench.counters().sessions.accepted.get(), 1);
    }
}

/// Captures until the thread says that it has seen all sessions, and brings back what was captured.
fn drain_scan(bench: &mut Bench) {
    loop {
        let (answer, captured) = bounded(1);
        let capture = WorkerRequest::Capture { tunnels_max: 8, answer };
        bench.shared.threads[0].requests.send(capture).unwrap();
        let tunnels = loop {
            bench.nudged_turn();
            if let Ok(tunnels) = captured.try_recv() {
                break tunnels;
            }
        };
        if tunnels.is_empty() {
            return;
        }
        let (answer, adopted) = bounded(1);
        bench.shared.threads[0].requests.send(WorkerRequest::Adopt { tunnels, answer }).unwrap();
        while adopted.try_recv().is_err() {
            bench.nudged_turn();
        }
    }
}

#[test]
fn a_thread_with_a_full_queue_refuses_requests() {
    let bench = Bench::new(Forwarding::Auto);
    let asked = (0..100).map_while(|_| bench.shared.list_sessions().ok()).count();
    assert!((1..100).contains(&asked), "{asked} lists wait at once");
}
