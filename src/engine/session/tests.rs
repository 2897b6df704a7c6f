//! Whole sessions against a simulated kernel: the replies of clients, and the things that are left afterwards.

use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel::Receiver;

use super::*;
use crate::authz::*;
use crate::config::{Config, Listen};
use crate::engine::fd_budget::ClientShare;
use crate::engine::kernel::simulated::{SimulatedKernel, Socket};
use crate::engine::kernel::uring::UringKernel;
use crate::engine::limits::{HeadPermit, NoPlace, SessionLimits, SessionPermit};
use crate::engine::peer_pool::PeerPool;
use crate::engine::shared::Shared;
use crate::engine::shared::ThreadShared;
use crate::engine::timers::Instant;
use crate::engine::tls::handshake_pool::{HandshakeDone, HandshakeJob, HandshakePool};
use crate::engine::tls::scratch::ScratchMemory;
use crate::telemetry::{AuditSender, RefusalLabel, UsageTable};
use crate::wire::{Reply, TlsConfigs};

const UUID: &str = "0123456789abcdef0123456789abcdef";
pub(super) const HEAD: &str =
    "CONNECT 0123456789abcdef0123456789abcdef:80 HTTP/1.1\r\nProxy-Authorization: Bearer t\r\n\r\n";

/// A session with its kernel, its client and the thread's shared state.
pub(super) struct Bench {
    pub kernel: SimulatedKernel,
    pub shared: Shared,
    pub client: Socket,
    pub handshakes: HandshakePool,
    handshake_jobs: Receiver<HandshakeJob>,
    pub peers: PeerPool<SimulatedKernel>,
    scratch: ScratchMemory,
    usage: UsageTable,
    now: Instant,
}

impl Bench {
    fn new(seed: u64) -> Self {
        Self::listening(seed, Listen::default())
    }

    pub fn listening(seed: u64, listen: Listen) -> Self {
        let vpn = crate::config::Vpn::loopback();
        let config = Config { vpn, listen: vec![listen], ..Config::default() };
        let tls = TlsConfigs::load(&config).unwrap();
        Self::with(seed, config, tls, view(true))
    }

    pub fn with(seed: u64, config: Config, tls: TlsConfigs, view: Arc<View>) -> Self {
        let authority = Authority::new(Duration::from_secs(60), config.vpn.node.as_deref());
        authority.publish(view);
        authority.confirm(UnixMillis(0));
        let limits =
            Arc::new(SessionLimits::new(&config.limits, ClientShare { sessions_max: 10, refused_max: 9 }));
        let thread = ThreadShared::new(authority.decision_log(), 1).unwrap();
        let (config, audit) = (Arc::new(config), AuditSender::disabled());
        let shared = Shared::new(config, tls, Arc::new(authority), audit, limits, vec![thread]);
        let client = Socket::default();
        client.state().room.set(usize::MAX / 2);
        let kernel = SimulatedKernel::new(seed);
        kernel.device.state().room.set(usize::MAX / 2);
        let now = Instant { monotonic_us: 0, wall: UnixMillis(0), latest: UnixMillis(0) };
        let (handshakes, handshake_jobs) = HandshakePool::for_tests();
        let (peers, scratch, usage) = (PeerPool::new(1), ScratchMemory::default(), UsageTable::default());
        Self { kernel, shared, client, handshakes, handshake_jobs, peers, scratch, usage, now }
    }

    pub fn turn<T>(&mut self, act: impl FnOnce(&mut TurnCx<'_, SimulatedKernel>) -> T) -> T {
        let (view, config) = (self.shared.authority.pin(), self.shared.config());
        act(&mut TurnCx {
            kernel: &mut self.kernel,
            handshakes: &mut self.handshakes,
            peers: &mut self.peers,
            scratch: &mut self.scratch,
            now: self.now,
            view: &view,
            shared: &self.shared,
            config: &config,
            counters: &self.shared.threads[0].counters,
            usage: &mut self.usage,
            decision_log: &self.shared.threads[0].decision_log,
            ended_at_us: self.shared.authority.ended_at_us(),
        })
    }

    /// Lets time pass, in which nothing happens.
    pub fn pass(&mut self, time: Duration) {
        self.now.monotonic_us += time.as_micros() as u64;
    }

    fn enter(&self) -> Result<(SessionPermit, HeadPermit), NoPlace> {
        let head = self.shared.limits.await_head(None).ok_or(NoPlace::Network)?;
        Ok((self.shared.limits.enter().ok_or(NoPlace::Node)?, head))
    }

    pub fn begin(&mut self) -> Session<SimulatedKernel> {
        let (client, at_us) = (self.client.clone(), self.now.monotonic_us);
        let accepted =
            Accepted { client, address: None, network: None, listener: 0, place: self.enter(), at_us };
        self.turn(|turn| Session::begin(1, Slot(0), accepted, turn))
    }

    /// Lets up to `steps` things happen; stops when nothing can.
    pub fn run(&mut self, session: &mut Session<SimulatedKernel>, steps: usize) {
        for _ in 0..steps {
            if session.wants_turn() {
                self.turn(|turn| session.resume(turn));
            }
            let Some((purpose, outcome)) = self.kernel.step() else { return };
            self.turn(|turn| session.complete(purpose, outcome, turn));
        }
    }

    pub fn recheck(&mut self, session: &mut Session<SimulatedKernel>) {
        self.turn(|turn| {
            assert_eq!(session.standing_query(), session.core.query);
            session.recheck(session.core.decide(turn), turn);
        });
    }

    /// The next step of a handshake, which a handshake thread would have taken by now.
    pub fn next_handshake(&mut self) -> Option<HandshakeDone> {
        self.handshake_jobs.try_iter().for_each(HandshakeJob::run);
        self.handshakes.next()
    }

    pub fn client_sends(&self, bytes: &[u8]) {
        self.client.state().incoming.borrow_mut().extend(bytes);
    }

    pub fn client_got(&self) -> String {
        String::from_utf8_lossy(&self.client.state().sent.borrow()).into_owned()
    }
}

fn view(is_granted: bool) -> Arc<View> {
    view_of(is_granted, device())
}

/// The device that clients ask for.
pub(super) fn device() -> Device {
    Device {
        id: DeviceId(1),
        uuid: DeviceUuid::parse(UUID).unwrap(),
        fleet: None,
        address: Some([127, 0, 0, 1].into()),
        node: None,
        online: true,
        disputed: false,
    }
}

pub(super) fn view_of(is_granted: bool, device: Device) -> Arc<View> {
    let grants = if is_granted { vec![grant(None)] } else { Vec::new() };
    view_with(grants, device)
}

/// A view in which the right to `device` ends.
fn view_until(expires_at: Option<UnixMillis>, device: Device) -> Arc<View> {
    view_with(vec![grant(expires_at)], device)
}

fn grant(expires_at: Option<UnixMillis>) -> Grant {
    Grant {
        id: GrantId(1),
        principal: PrincipalId(1),
        scope: Scope::Any,
        ports: PortRange::ANY,
        expires_at,
        revoked: false,
    }
}

fn view_with(grants: Vec<Grant>, device: Device) -> Arc<View> {
    let principal = PrincipalId(1);
    let credential = Credential { key: KeyHash::of_token(b"t"), principal, expires_at: None, revoked: false };
    Arc::new(View {
        snapshot: Arc::new(Snapshot::build(Generation(1), vec![credential], grants, vec![device])),
        revocations: Arc::default(),
        previous: None,
    })
}

#[test]
fn a_session_leaves_nothing_behind_whatever_the_kernel_does() {
    for seed in 0..300 {
        let mut bench = Bench::new(seed);
        let mut session = bench.begin();
        bench.client_sends(HEAD.as_bytes());
        bench.client_sends(b"early");
        bench.client_sends(&[7; 150_000]);
        bench.kernel.device.state().incoming.borrow_mut().extend([9; 90_000]);
        let steps = bench.kernel.roll(200);
        bench.run(&mut session, steps);
        bench.client.state().peer_ended.set(true);
        bench.kernel.device.state().peer_ended.set(true);
        bench.run(&mut session, 10_000);
        assert!(session.is_over(), "seed {seed}: {:?} in flight", session.core.in_flight);
        let device_got = bench.kernel.device.state().sent.borrow().clone();
        assert_eq!(device_got.len(), 150_005, "seed {seed}: {:.60}", bench.client_got());
        assert!(device_got.starts_with(b"early\x07"));
        assert!(bench.client_got().starts_with("HTTP/1.1 200 Connection Established\r\n\r\n\t"));
        bench.turn(|turn| session.release(turn));
        let counters = &bench.shared.threads[0].counters.sessions;
        assert_eq!((counters.active.get(), counters.tunnels_closed.get()), (0, 1));
        assert_eq!((bench.kernel.buffers_out(), bench.kernel.pipes_left), (0, 2), "seed {seed}");
        assert!(bench.shared.limits.enter().is_some());
    }
}

#[test]
fn a_right_that_ends_resets_both_sides_of_its_tunnel() {
    let mut bench = Bench::new(5);
    let mut session = bench.begin();
    bench.client_sends(HEAD.as_bytes());
    bench.run(&mut session, 50);
    assert!(bench.client_got().starts_with("HTTP/1.1 200"), "{}", bench.client_got());
    bench.recheck(&mut session);
    assert!(!session.is_over(), "nothing has changed");

    bench.shared.authority.publish(view(false));
    bench.recheck(&mut session);
    bench.run(&mut session, 50);

    assert!(session.is_over());
    assert!(bench.client.state().reset_on_close.get());
    assert!(bench.kernel.device.state().reset_on_close.get());
}

#[test]
fn the_client_of_a_disputed_device_gets_a_reply_of_its_own_and_nobody_is_dialled() {
    let mut bench = Bench::new(5);
    bench.shared.authority.publish(view_of(true, Device { disputed: true, ..device() }));
    let mut session = bench.begin();
    bench.client_sends(HEAD.as_bytes());
    bench.run(&mut session, 50);
    let reply = bench.client_got();
    assert!(reply.starts_with("HTTP/1.1 503 Device Address Disputed\r\n"), "{reply}");
    assert!(reply.contains("\r\nSluicegate-Reason: device-disputed\r\n"), "{reply}");
    assert!(reply.contains("\r\nRetry-After: 5\r\n"), "{reply}");
    assert_eq!(bench.kernel.device.holders(), 1, "no socket was opened for the device");
    let refusals = &bench.shared.threads[0].counters.refusals;
    let label = RefusalLabel { reply: Reply::DeviceDisputed, cause: Cause::DeviceDisputed };
    assert_eq!(refusals.get(label), 1);
}

#[test]
fn a_device_that_becomes_disputed_keeps_its_tunnels_and_gets_no_new_one() {
    let disputed = || view_of(true, Device { disputed: true, ..device() });
    let mut bench = Bench::new(5);
    let mut session = bench.begin();
    bench.client_sends(HEAD.as_bytes());
    bench.run(&mut session, 50);
    assert!(bench.client_got().starts_with("HTTP/1.1 200"), "{}", bench.client_got());
    bench.shared.authority.publish(disputed());
    bench.recheck(&mut session);
    bench.client_sends(b"more");
    bench.run(&mut session, 50);
    assert!(matches!(session.state, State::Tunnel(_)));
    assert_eq!(bench.kernel.device.state().sent.borrow().as_slice(), b"more");

    let mut bench = Bench::new(5);
    bench.kernel.connects = false;
    let mut session = bench.begin();
    bench.client_sends(HEAD.as_bytes());
    bench.run(&mut session, 50);
    assert!(matches!(session.state, State::Connect(_)));
    bench.shared.authority.publish(disputed());
    bench.recheck(&mut session);
    assert!(bench.client_got().contains("Sluicegate-Reason: device-disputed"), "{}", bench.client_got());
}

#[test]
fn a_right_that_was_cut_short_ends_the_tunnel_of_a_device_that_is_offline_or_disputed() {
    for hidden in [
        Device { online: false, ..device() },
        Device { address: None, ..device() },
        Device { disputed: true, ..device() },
    ] {
        let mut bench = Bench::new(5);
        let mut session = bench.begin();
        bench.client_sends(HEAD.as_bytes());
        bench.run(&mut session, 50);
        assert!(matches!(session.state, State::Tunnel(_)), "{}", bench.client_got());

        bench.shared.authority.publish(view_until(Some(UnixMillis(2_000)), hidden.clone()));
        bench.recheck(&mut session);
        assert_eq!(session.deadline(), Some(Tick(2_001)), "{hidden:?}");
        bench.now = Instant { monotonic_us: 2_001_000, wall: UnixMillis(2_001), latest: UnixMillis(2_001) };
        bench.turn(|turn| session.on_deadline(turn));
        bench.run(&mut session, 50);
        assert!(session.is_over(), "{hidden:?}");
    }
}

#[test]
fn the_client_of_a_silent_device_gets_a_reply_and_the_connect_is_cancelled() {
    let mut bench = Bench::new(5);
    bench.kernel.connects = false;
    let mut session = bench.begin();
    bench.client_sends(HEAD.as_bytes());
    bench.run(&mut session, 50);
    assert_eq!(bench.client_got(), "");
    let deadline = session.deadline().unwrap();
    assert_eq!(deadline, Tick(5_001));

    bench.now.monotonic_us = deadline.0 * 1000;
    bench.turn(|turn| session.on_deadline(turn));
    bench.run(&mut session, 50);

    assert!(bench.client_got().starts_with("HTTP/1.1 504 Device Timed Out\r\n"), "{}", bench.client_got());
    let State::Reject(rejecting) = &session.state else { panic!("it is not rejected") };
    assert!(rejecting.leaving.is_none(), "the late device's socket is closed");
    bench.client.state().peer_ended.set(true);
    bench.run(&mut session, 50);
    assert!(session.is_over());
}

#[test]
fn a_panic_ends_its_own_session_alone() {
    let mut bench = Bench::new(5);
    let mut session = bench.begin();
    bench.client_sends(HEAD.as_bytes());
    bench.run(&mut session, 50);
    bench.turn(|turn| session.guarded(turn, |_, _| panic!("a defect")));
    bench.run(&mut session, 50);
    assert!(session.is_over());
    assert!(bench.client.state().reset_on_close.get());
    assert_eq!(bench.shared.threads[0].counters.sessions.tunnels_closed.get(), 1);
}

#[test]
fn a_panic_at_the_begin_of_a_session_ends_that_session_alone() {
    let mut bench = Bench::new(5);
    let client = bench.client.clone();
    let accepted =
        Accepted { client, address: None, network: None, listener: 7, place: bench.enter(), at_us: 0 };
    let session = bench.turn(|turn| Session::begin(1, Slot(0), accepted, turn));
    assert!(session.is_over());
    assert!(bench.client.state().reset_on_close.get());
    bench.turn(|turn| session.release(turn));
    assert_eq!(bench.shared.threads[0].counters.sessions.active.get(), 0);
}

#[test]
fn an_abandoned_session_is_reset_whatever_its_state() {
    for tunnel in [false, true] {
        let mut bench = Bench::new(5);
        let mut session = bench.begin();
        if tunnel {
            bench.client_sends(HEAD.as_bytes());
            bench.run(&mut session, 50);
        }
        assert_eq!(matches!(session.state, State::Tunnel(_)), tunnel);
        bench.turn(|turn| session.abandon(turn));
        assert!(bench.client.state().reset_on_close.get());
        assert_eq!(bench.kernel.device.state().reset_on_close.get(), tunnel);
        assert_eq!(bench.shared.threads[0].counters.sessions.active.get(), 0);
    }
}

#[test]
fn a_connect_that_completes_after_its_session_was_rejected_opens_nothing() {
    for seed in 0..40 {
        let mut bench = Bench::new(seed);
        bench.kernel.connects = false;
        let mut session = bench.begin();
        bench.client_sends(HEAD.as_bytes());
        bench.run(&mut session, 50);
        assert!(matches!(session.state, State::Connect(_)));

        bench.shared.authority.publish(view(false));
        bench.recheck(&mut session);
        let reply = bench.client_got();
        assert!(reply.starts_with("HTTP/1.1 403"), "{reply}");
        // The cancel comes too late, or it does not: the kernel's dice decide.
        bench.kernel.connects = true;
        bench.run(&mut session, 50);

        assert!(matches!(session.state, State::Reject(_)), "seed {seed}");
        assert_eq!(bench.client_got(), reply, "seed {seed}");
        assert_eq!(bench.kernel.device.holders(), 1, "the relay has closed the device's socket");
        assert!(bench.kernel.device.state().sent.borrow().is_empty());
        assert_eq!(bench.shared.threads[0].counters.sessions.tunnels_opened.get(), 0);
    }
}

#[test]
fn a_session_that_ends_during_its_connect_keeps_the_device_socket_until_the_connect_has_ended() {
    let mut bench = Bench::new(5);
    bench.kernel.connects = false;
    let mut session = bench.begin();
    bench.client_sends(HEAD.as_bytes());
    bench.run(&mut session, 50);
    bench.turn(|cx| session.end_by_admin(cx));
    assert!(!session.is_live() && !session.is_over());
    assert_eq!(bench.kernel.device.holders(), 2);

    bench.run(&mut session, 50);
    assert!(session.is_over());
    bench.turn(|cx| session.release(cx));
    assert_eq!(bench.kernel.device.holders(), 1);
}

#[test]
fn a_panic_between_two_states_resets_both_sides_and_ends_the_session_once_nothing_is_in_flight() {
    let mut bench = Bench::new(5);
    bench.kernel.connects = false;
    let mut session = bench.begin();
    bench.client_sends(HEAD.as_bytes());
    bench.run(&mut session, 50);
    assert!(matches!(session.state, State::Connect(_)));
    bench.turn(|cx| {
        session.guarded(cx, |session, cx| session.transition(cx, |_lost, _, _| panic!("a defect")))
    });
    assert!(bench.client.state().reset_on_close.get());
    assert!(bench.kernel.device.state().reset_on_close.get());
    assert!(!session.is_live() && !session.is_over(), "the connect is in flight");

    bench.run(&mut session, 50);
    assert!(session.is_over());
    bench.turn(|cx| session.release(cx));
    assert_eq!(bench.shared.threads[0].counters.sessions.active.get(), 0);
}

#[test]
fn an_expired_right_ends_its_tunnel_even_where_nothing_can_be_decided() {
    let mut bench = Bench::new(5);
    let mut session = bench.begin();
    bench.client_sends(HEAD.as_bytes());
    bench.run(&mut session, 50);
    let State::Tunnel(tunnel) = &mut session.state else { panic!("{}", bench.client_got()) };
    tunnel.expires_at = UnixMillis(30);
    // Far beyond `authz.max_stale`: every decision is `Undecided` now.
    let late = UnixMillis(1_000_000_000);
    bench.now = Instant { monotonic_us: 1, wall: late, latest: late };
    bench.turn(|turn| session.on_deadline(turn));
    bench.run(&mut session, 50);
    assert!(session.is_over());
}

#[test]
fn a_clock_that_goes_forward_ends_the_tunnel_of_an_expired_right_and_one_that_goes_back_revives_none() {
    let mut bench = Bench::new(5);
    bench.shared.authority.publish(view_until(Some(UnixMillis(3_600_000)), device()));
    let mut session = bench.begin();
    bench.client_sends(HEAD.as_bytes());
    bench.run(&mut session, 50);
    assert!(matches!(session.state, State::Tunnel(_)) && session.expires(), "{}", bench.client_got());

    // Set back: the end is an hour away by the wall clock, whatever was seen before.
    bench.now = Instant { monotonic_us: 1_000, wall: UnixMillis(-3_600_000), latest: UnixMillis(1) };
    bench.shared.authority.confirm(UnixMillis(1));
    bench.recheck(&mut session);
    assert!(matches!(session.state, State::Tunnel(_)));

    for (decided, confirmed) in [("decided", 7_200_000), ("undecided", 0)] {
        let mut bench = Bench::new(5);
        bench.shared.authority.publish(view_until(Some(UnixMillis(3_600_000)), device()));
        let mut session = bench.begin();
        bench.client_sends(HEAD.as_bytes());
        bench.run(&mut session, 50);
        // A millisecond later it is two hours later, and then the clock is set right.
        let latest = UnixMillis(7_200_000);
        bench.now = Instant { monotonic_us: 1_000, wall: UnixMillis(2), latest };
        bench.shared.authority.confirm(UnixMillis(confirmed));
        bench.recheck(&mut session);
        bench.run(&mut session, 50);
        assert!(session.is_over() && !session.expires(), "{decided}");
    }
}

#[test]
fn an_idle_tunnel_takes_less_than_half_a_kibibyte() {
    let session = size_of::<Option<Session<UringKernel>>>();
    let tunnel = size_of::<Tunnel<UringKernel>>();
    assert!(session + tunnel <= 504, "{session} + {tunnel} bytes");
}
