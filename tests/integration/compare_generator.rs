//! The load that `make compare` makes: what it counts, what it charges, and what it says when nothing works.

use std::io::Write;
use std::net::SocketAddr;
use std::process::{Child, Command};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};

use crate::generator::{Backend, MeasureError, Opening, Target, Timing, measure};
use crate::record::{Cost, Load};
use crate::support::forwarder::{self, Stall, Tamper};
use crate::support::{Device, V4, read_head};
use crate::works::{Direction, Pace, Work};

/// Tests that measure take turns: they count this process's descriptors, and time.
static TURN: Mutex<()> = Mutex::new(());

#[test]
fn each_byte_that_arrives_is_counted_once() {
    const STREAMS: usize = 3;
    for (direction, arrived) in
        [(Direction::Down, DOWN_BYTES), (Direction::Up, UP_BYTES), (Direction::Both, DOWN_BYTES + UP_BYTES)]
    {
        let mut bench = Bench::new();
        let relay = bench.forwarder(|| Tamper::swallow_after(UP_BYTES + ROLE_BYTES, DOWN_BYTES));

        let load = bench.load(Work::Bulk { direction, streams: STREAMS }, &relay, Timing::of_ms(0, 1_000));

        assert_eq!(load.bytes, STREAMS as u64 * arrived, "{direction}");
        assert_eq!((load.exchanges, load.latency_us), (0, None), "{direction}");
        assert_eq!(load.first_error, None, "{direction}");
    }
}

#[test]
fn each_answer_is_counted_once_with_its_bytes_both_ways() {
    const CONNECTIONS: usize = 5;
    for bytes in [1, 64, 16 * 1024] {
        let mut bench = Bench::new();
        let relay = bench.forwarder(move || Tamper::swallow_after(ROLE_BYTES + 7 * bytes, u64::MAX));
        let work = Work::Exchange { bytes: bytes as usize, connections: CONNECTIONS, pace: Pace::Closed };

        let load = bench.load(work, &relay, Timing::of_ms(0, 1_000));

        let answers = CONNECTIONS as u64 * 7;
        assert_eq!((load.exchanges, load.bytes), (answers, answers * bytes * 2), "{bytes} B");
        assert_eq!(load.first_error, None, "{bytes} B");
        let latency = load.latency_us.unwrap();
        assert!(0.0 < latency.p50 && latency.p50 <= latency.p99 && latency.p99 <= latency.max, "{latency:?}");
    }
}

#[test]
fn what_the_warm_up_moved_is_not_counted() {
    let mut bench = Bench::new();
    let relay = bench.forwarder(|| Tamper::delayed(Duration::from_millis(10)));
    let work = Work::Exchange { bytes: 64, connections: 1, pace: Pace::Closed };

    let load = bench.load(work, &relay, Timing::of_ms(600, 300));

    assert!(load.exchanges <= 31, "{} answers of 10 ms in {} s", load.exchanges, load.seconds);
    assert!((0.3..0.6).contains(&load.seconds), "{} s", load.seconds);
}

#[test]
fn streams_and_exchanges_beside_them_are_counted_apart() {
    let mut bench = Bench::new();
    let work = Work::Mixed { streams: 2, connections: 3 };

    let load = bench.load(work, &bench.direct(), Timing::of_ms(100, 400));

    assert!(load.exchanges > 0);
    assert!(load.bytes > 1024 * 1024, "{} bytes of bulk", load.bytes);
    assert_eq!(load.first_error, None);
}

#[test]
fn a_stall_in_an_open_loop_is_charged_for_all_who_had_to_wait() {
    let mut bench = Bench::new();
    let stall = Stall::new();
    let relay = bench.stalling_forwarder(&stall);

    let load = thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(Duration::from_millis(500));
            stall.hold(Duration::from_millis(300));
        });
        bench.open_load(500.0, 4, &relay, Timing::of_ms(200, 1_000))
    });

    // Of those due in the measured second, three in ten fell into the stall.
    let latency = load.latency_us.unwrap();
    assert!(latency.p90 > 150_000.0, "{latency:?}");
    assert!(latency.p99 > 250_000.0, "{latency:?}");
    assert!((495..=505).contains(&load.exchanges), "all that was due is answered, {} were", load.exchanges);
}

#[test]
fn a_stall_at_the_end_of_an_open_loop_is_charged_too() {
    let mut bench = Bench::new();
    let stall = Stall::new();
    let relay = bench.stalling_forwarder(&stall);

    let load = thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(Duration::from_millis(600));
            stall.hold(Duration::from_millis(1_500));
        });
        bench.open_load(500.0, 4, &relay, Timing::of_ms(200, 800))
    });

    let latency = load.latency_us.unwrap();
    assert!(latency.p99 > 1_000_000.0, "{latency:?}");
}

#[test]
fn an_open_loop_keeps_to_its_rate() {
    let mut bench = Bench::new();

    let load = bench.open_load(2_000.0, 8, &bench.direct(), Timing::of_ms(100, 1_000));

    let per_second = load.exchanges as f64 / load.seconds;
    assert!((1_900.0..=2_010.0).contains(&per_second), "{per_second}");
    assert_eq!(load.first_error, None);
}

#[test]
fn a_new_tunnel_leaves_nothing_behind() {
    let mut bench = Bench::new();
    let direct = bench.direct();
    let before = descriptors();

    let load = bench.load(Work::NewTunnels { in_flight: 8 }, &direct, Timing::of_ms(100, 400));

    assert!(load.exchanges > 100, "{} tunnels", load.exchanges);
    assert!(load.latency_us.is_some());
    assert_eq!(load.first_error, None);
    assert_eq!(descriptors(), before);
    assert_eq!(waiting(direct.address), 0, "connections in TIME_WAIT");
}

#[test]
fn a_tunnel_is_asked_for_by_connect_and_only_then_used() {
    let mut bench = Bench::new();
    let relay = bench.connect_relay("HTTP/1.1 200 Connection Established\r\n\r\n");

    let tunnels = bench.load(Work::NewTunnels { in_flight: 2 }, &relay, Timing::of_ms(50, 300));
    let bulk = Work::Bulk { direction: Direction::Down, streams: 1 };
    let bulk = bench.load(bulk, &relay, Timing::of_ms(50, 300));

    assert!(tunnels.exchanges > 0);
    assert!(bulk.bytes > 0);
    assert_eq!((tunnels.first_error, bulk.first_error), (None, None));
    let port = bench.backend.address().port();
    let asked = format!("CONNECT 0011.balena:{port} HTTP/1.1\r\nProxy-Authorization: Bearer secret\r\n\r\n");
    assert_eq!(*relay.asked.lock(), asked);
}

#[test]
fn a_refusal_is_told_in_the_relays_words() {
    let refused = "the relay said \"HTTP/1.1 403 Tunnel Not Permitted\"";
    for work in [
        Work::Exchange { bytes: 64, connections: 2, pace: Pace::Closed },
        Work::NewTunnels { in_flight: 2 },
        Work::Idle { sessions: 10 },
    ] {
        let mut bench = Bench::new();
        let relay = bench.connect_relay("HTTP/1.1 403 Tunnel Not Permitted\r\nContent-Length: 0\r\n\r\n");

        let error = bench.error(work, &relay);

        assert!(error.contains(refused), "{work}: {error}");
    }
}

#[test]
fn a_port_where_nobody_listens_is_told() {
    for work in [Work::Bulk { direction: Direction::Up, streams: 1 }, Work::NewTunnels { in_flight: 3 }] {
        let mut bench = Bench::new();
        let nobody = Relay::at(SocketAddr::from((V4, Device::closed_port())), Opening::Plain);

        let error = bench.error(work, &nobody);

        assert!(error.contains("Connection refused"), "{work}: {error}");
    }
}

#[test]
fn an_answer_with_a_changed_byte_is_an_error() {
    let mut bench = Bench::new();
    let relay = bench.forwarder(|| Tamper::flip_at(ROLE_BYTES + 2 * 64 + 3));
    let work = Work::Exchange { bytes: 64, connections: 1, pace: Pace::Closed };

    let load = bench.load(work, &relay, Timing::of_ms(0, 300));

    assert_eq!((load.exchanges, load.errors), (2, 1));
    assert_eq!(load.first_error.unwrap(), "an answer differs from its message in byte 3 of 64");
}

#[test]
fn a_connection_that_ends_within_an_answer_is_an_error() {
    let mut bench = Bench::new();
    let relay = bench.forwarder(|| Tamper::close_after(ROLE_BYTES + 2 * 64 + 3));
    let work = Work::Exchange { bytes: 64, connections: 1, pace: Pace::Closed };

    let load = bench.load(work, &relay, Timing::of_ms(0, 300));

    assert_eq!((load.exchanges, load.errors), (2, 1));
    assert_eq!(load.first_error.unwrap(), "a connection ended after 3 of an answer's 64 bytes");
}

#[test]
fn a_work_in_which_nothing_moved_is_an_error_that_says_so() {
    let mut bench = Bench::new();
    let relay = bench.forwarder(|| Tamper::swallow_after(ROLE_BYTES, 0));

    let error = bench.error(Work::Bulk { direction: Direction::Down, streams: 2 }, &relay);

    assert!(error.starts_with("nothing came through"), "{error}");
}

#[test]
fn idle_sessions_are_all_open_and_their_memory_is_the_relays() {
    const SESSIONS: usize = 200;
    let mut bench = Bench::new();
    let direct = bench.direct();
    // This process is the relay: its sockets are the kernel's, so that next to nothing comes with each.
    let (load, cost) = bench
        .measure(
            Work::Idle { sessions: SESSIONS },
            None,
            &direct,
            Some(std::process::id()),
            Timing::of_ms(0, 300),
        )
        .unwrap();

    let cost = cost.unwrap();
    assert_eq!(load.first_error, None);
    let rss_kib = cost.rss_kib_per_session.unwrap();
    assert!((0.0..8.0).contains(&rss_kib), "{rss_kib} KiB");
    let share = cost.idle_cpu_share.unwrap();
    assert!((0.0..0.5).contains(&share), "{share} of a core");
    assert!(cost.rss_kib > 1_000, "{cost:?}");
}

#[test]
fn what_a_relays_children_take_is_the_relays_cost() {
    let mut bench = Bench::new();
    let direct = bench.direct();
    let busy = Busy::start();
    let work = Work::Exchange { bytes: 64, connections: 1, pace: Pace::Closed };

    let (load, cost) =
        bench.measure(work, None, &direct, Some(busy.0.id()), Timing::of_ms(100, 1_000)).unwrap();

    let Cost { cpu_user_seconds, cpu_system_seconds, rss_kib, .. } = cost.unwrap();
    let cpu_seconds = cpu_user_seconds + cpu_system_seconds;
    // Others may want the core as well, so only "much" and "not more than one" can be told.
    assert!((0.1..1.1).contains(&(cpu_seconds / load.seconds)), "{cpu_seconds} s of {} s", load.seconds);
    assert!(cpu_user_seconds > cpu_system_seconds, "a loop in user space");
    assert!(rss_kib > 0);
}

/// Bytes towards the backend that are not payload: the first byte says what a connection is for.
const ROLE_BYTES: u64 = 1;

const DOWN_BYTES: u64 = 3_000_001;
const UP_BYTES: u64 = 2_000_003;

struct Bench {
    backend: Backend,
    _turn: MutexGuard<'static, ()>,
}

/// A relay that clients connect to.
struct Relay {
    target: Target,
    address: SocketAddr,
    /// The head of the first request that came.
    asked: Arc<Mutex<String>>,
}

impl Relay {
    fn at(address: SocketAddr, opening: Opening) -> Self {
        Self { target: Target { address, opening }, address, asked: Arc::default() }
    }
}

impl Bench {
    fn new() -> Self {
        let turn = TURN.lock();
        Self { backend: Backend::start().unwrap(), _turn: turn }
    }

    fn direct(&self) -> Relay {
        Relay::at(self.backend.address(), Opening::Plain)
    }

    /// Forwards to the backend, and does to each connection what `tamper` says.
    fn forwarder(&self, tamper: impl Fn() -> Tamper + Send + Sync + 'static) -> Relay {
        let backend = self.backend.address();
        let address = forwarder::serve(move |client| forwarder::forward(client, backend, tamper()));
        Relay::at(address, Opening::Plain)
    }

    fn stalling_forwarder(&self, stall: &Arc<Stall>) -> Relay {
        let stall = Arc::clone(stall);
        self.forwarder(move || Tamper::stalling(&stall))
    }

    /// Reads a CONNECT, replies, and forwards where that was a 200.
    fn connect_relay(&self, reply: &'static str) -> Relay {
        let backend = self.backend.address();
        let asked: Arc<Mutex<String>> = Arc::default();
        let heard = Arc::clone(&asked);
        let address = forwarder::serve(move |mut client| {
            *heard.lock() = String::from_utf8_lossy(&read_head(&mut client)?).into_owned();
            client.write_all(reply.as_bytes())?;
            if reply.contains(" 200 ") {
                forwarder::forward(client, backend, Tamper::default())?;
            }
            Ok(())
        });
        let opening = Opening::Connect { uuid: "0011".to_owned(), token: "secret".to_owned() };
        Relay { asked, ..Relay::at(address, opening) }
    }

    fn measure(
        &mut self,
        work: Work,
        rate: Option<f64>,
        relay: &Relay,
        process: Option<u32>,
        timing: Timing,
    ) -> Result<(Load, Option<Cost>), MeasureError> {
        measure(work, rate, &relay.target, &mut self.backend, process, timing)
    }

    #[track_caller]
    fn load(&mut self, work: Work, relay: &Relay, timing: Timing) -> Load {
        let (load, cost) = self.measure(work, None, relay, None, timing).unwrap();
        assert_eq!(cost, None, "there was no process to look at");
        load
    }

    #[track_caller]
    fn open_load(&mut self, rate: f64, connections: usize, relay: &Relay, timing: Timing) -> Load {
        let work = Work::Exchange { bytes: 64, connections, pace: Pace::Open { percent: 50 } };
        self.measure(work, Some(rate), relay, None, timing).unwrap().0
    }

    #[track_caller]
    fn error(&mut self, work: Work, relay: &Relay) -> String {
        self.measure(work, None, relay, None, Timing::of_ms(100, 200)).unwrap_err().to_string()
    }
}

impl Timing {
    fn of_ms(warm_up: u64, measure: u64) -> Self {
        Self { warm_up: Duration::from_millis(warm_up), measure: Duration::from_millis(measure) }
    }
}

/// A shell whose child never rests.
struct Busy(Child);

impl Busy {
    fn start() -> Self {
        let script = "(while :; do :; done) & child=$!; trap 'kill $child' TERM; wait";
        Self(Command::new("sh").args(["-c", script]).spawn().unwrap())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let _terminated = Command::new("kill").arg(self.0.id().to_string()).status();
        let _ended = self.0.wait();
    }
}

/// Open descriptors of this process.
fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Connections of this machine in TIME_WAIT with `end` at one of their ends. The port alone would not do: others that run
/// beside this have clients at addresses of their own.
fn waiting(end: SocketAddr) -> usize {
    const TIME_WAIT: &str = "06";
    let SocketAddr::V4(end) = end else { panic!("the table is of IPv4") };
    let end = format!("{:08X}:{:04X}", u32::from_ne_bytes(end.ip().octets()), end.port());
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let is_waiting = |line: &&str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields[3] == TIME_WAIT && (fields[1] == end || fields[2] == end)
    };
    table.lines().skip(1).filter(is_waiting).count()
}
