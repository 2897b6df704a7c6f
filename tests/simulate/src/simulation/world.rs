//! The world around a simulated worker: its kernel, the network, clients, devices, and what else the node does. Time is
//! virtual, and a tape decides what happens next.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use crossbeam::channel::Receiver;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::connection::{Connection, Dial, Progress, Side};
use super::operations::{Completed, InFlight, Submission};
use super::plan::Plan;
use super::remote::{Acted, Remote};
use super::rights::{DEVICES, Rights, TOKENS, token, uuid};
use super::tape::Tape;
use super::trace::Trace;
use crate::authz::UnixMillis;
use crate::engine::requests::PendingList;
use crate::engine::shared::Shared;
use crate::engine::tls::handshake_pool::HandshakeJob;
use crate::engine::worker::signals::ServicePhase;
use crate::sys::wake::Wake;
use crate::telemetry::{AuditEvent, Cause};

/// See the module.
pub struct World {
    pub plan: Plan,
    pub tape: Tape,
    pub trace: Trace,
    pub now_us: u64,
    /// The wall clock, and the latest time that the relay has read from it.
    pub wall_lead_ms: i64,
    /// Time of the last step of the wall clock.
    pub stepped_at_us: u64,
    pub latest: UnixMillis,
    pub connections: Vec<Connection>,
    pub pipes: Vec<PipeState>,
    /// The uses of the process's descriptors, by their numbers.
    pub descriptors: Vec<Option<Descriptor>>,
    pub submissions: VecDeque<Submission>,
    pub in_flight: Vec<InFlight>,
    pub completed: VecDeque<Completed>,
    /// Completions that found the queue full.
    pub overflown: VecDeque<Completed>,
    pub free_buffers: Vec<u16>,
    /// Clients that wait for an accept.
    pub backlog: VecDeque<usize>,
    pub tunnels: Vec<Tunnel>,
    /// All rights so far; the last are in force.
    pub rights: Vec<Rights>,
    /// The rights and the time at which the turn under way began.
    pub turn_began: (usize, UnixMillis),
    /// The turn under way has a completion of the wake-up.
    pub is_turn_woken: bool,
    pub shared: Option<Arc<Shared>>,
    pub wake: Option<Arc<Wake>>,
    pub jobs: Option<Receiver<HandshakeJob>>,
    pub audit: Option<Receiver<AuditEvent>>,
    pub audited: u64,
    pub lists: Vec<PendingList>,
    pub done: Done,
    pub steps: u64,
    /// Nothing will happen any more.
    pub is_at_rest: bool,
    pub violation: Option<String>,
}

/// What operators and the node have done so far.
#[derive(Default)]
pub struct Done {
    pub has_ended_sessions: bool,
    pub has_shed: bool,
    pub stops: bool,
    pub phase: Option<ServicePhase>,
    pub ring_losses: u64,
}

/// A pipe of the kernel.
#[derive(Default)]
pub struct PipeState {
    pub bytes: VecDeque<u8>,
    pub is_open: bool,
    /// Operations of the ring on it.
    pub operations: usize,
}

/// The use of a descriptor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Descriptor {
    Connection(usize),
    PipeEnd(usize),
}

/// One client's try.
pub struct Tunnel {
    pub token: usize,
    pub device: usize,
    pub client: usize,
    pub dialled: Option<usize>,
    /// The rights and the time at which the client came.
    pub came: (usize, UnixMillis),
    pub is_valid: bool,
    pub end: Option<Cause>,
    pub audits: usize,
}

impl World {
    pub fn new(plan: Plan, tape: Tape, trace: Trace) -> Self {
        let free_buffers = (0..plan.buffers).collect();
        let start = UnixMillis((STARTS_AT_US / 1000) as i64 + STARTS_AT_WALL_MS);
        Self {
            plan,
            tape,
            trace,
            now_us: STARTS_AT_US,
            wall_lead_ms: STARTS_AT_WALL_MS,
            stepped_at_us: 0,
            latest: start,
            connections: Vec::new(),
            pipes: Vec::new(),
            descriptors: Vec::new(),
            submissions: VecDeque::new(),
            in_flight: Vec::new(),
            completed: VecDeque::new(),
            overflown: VecDeque::new(),
            free_buffers,
            backlog: VecDeque::new(),
            tunnels: Vec::new(),
            rights: vec![Rights::all()],
            turn_began: (0, start),
            is_turn_woken: false,
            shared: None,
            wake: None,
            jobs: None,
            audit: None,
            audited: 0,
            lists: Vec::new(),
            done: Done::default(),
            steps: 0,
            is_at_rest: false,
            violation: None,
        }
    }

    /// Records that an invariant does not hold. The first counts.
    pub fn fail(&mut self, what: impl FnOnce() -> String) {
        if self.violation.is_none() {
            let what = what();
            self.trace.note(|| format!("VIOLATION: {what}"));
            self.violation = Some(what);
        }
    }

    pub fn record(&mut self, name: &'static str, a: usize, b: i64) {
        self.trace.record(self.now_us, name, a as u64, b as u64);
    }

    pub fn wall(&self) -> UnixMillis {
        UnixMillis((self.now_us / 1000) as i64 + self.wall_lead_ms)
    }

    /// True where a call or an operation has trouble, once in some multiple of the plan's times.
    pub fn has_fault(&mut self, multiple: usize) -> bool {
        self.tape.chance(multiple * self.plan.fault_times)
    }

    /// True where the system refuses a resource.
    pub fn is_refused(&mut self) -> bool {
        self.tape.chance(self.plan.refusal_times)
    }

    pub fn loses_ring(&mut self) -> bool {
        self.tape.chance(self.plan.ring_loss_times)
    }

    /// The number of the rights in force.
    pub fn version(&self) -> usize {
        self.rights.len() - 1
    }

    /// Sleeps as the kernel does: until a completion is there, or until `until_us`.
    pub fn sleep(&mut self, until_us: Option<u64>) {
        let mut gathered = self.tape.roll(4);
        while self.violation.is_none() {
            if !self.completed.is_empty() {
                if gathered == 0 {
                    return;
                }
                gathered -= 1;
            }
            if until_us.is_some_and(|until| self.now_us >= until) {
                return;
            }
            if self.step() {
                continue;
            }
            if !self.completed.is_empty() {
                return;
            }
            self.check_rest();
            let next = [self.next_remote_us(), until_us].into_iter().flatten().min();
            match next {
                Some(at) => self.now_us = self.now_us.max(at),
                None => {
                    self.is_at_rest = true;
                    return;
                }
            }
        }
    }

    /// Time at which a remote end goes on after a pause.
    fn next_remote_us(&self) -> Option<u64> {
        let live = self.connections.iter().filter(|each| !each.remote.is_over() && each.can_act());
        live.map(|each| each.remote.not_before_us()).filter(|at| *at > self.now_us).min()
    }

    /// Lets one thing happen. Returns false where nothing can.
    pub fn step(&mut self) -> bool {
        self.steps += 1;
        if self.steps > STEPS_MAX {
            self.fail(|| "it never comes to rest".to_owned());
            return false;
        }
        self.now_us += 1 + self.tape.roll(60) as u64;
        if self.tape.chance(self.plan.change_times) {
            self.change();
        }
        if self.tape.chance(self.plan.admin_times) {
            self.administer();
        }
        const KINDS: [fn(&mut World) -> bool; 5] = [
            World::complete_some,
            World::deliver_some,
            World::remote_acts,
            World::run_job,
            World::client_comes,
        ];
        let first = [0, 0, 0, 1, 1, 2, 2, 2, 3, 4][self.tape.roll(10)];
        (0..KINDS.len()).any(|each| KINDS[(first + each) % KINDS.len()](self))
    }

    fn deliver_some(&mut self) -> bool {
        let count = self.connections.len();
        let first = self.tape.roll(count.max(1));
        for each in 0..count {
            let id = (first + each) % count;
            if self.connections[id].deliver(self.now_us, &mut self.tape) {
                let arrived = self.connections[id].arrived.len();
                self.record("arrives", id, arrived as i64);
                return true;
            }
        }
        false
    }

    fn remote_acts(&mut self) -> bool {
        let count = self.connections.len();
        let first = self.tape.roll(count.max(1));
        for each in 0..count {
            let id = (first + each) % count;
            let connection = &mut self.connections[id];
            if !connection.can_act() {
                continue;
            }
            let acted = connection.remote_acts(self.now_us, &mut self.tape);
            if acted == Acted::Nothing {
                continue;
            }
            let remote = &self.connections[id].remote;
            let (sent, got) = (remote.sent, remote.got);
            self.record("remote", id, (sent << 20 ^ got) as i64);
            match acted {
                Acted::SawFin => self.check_fin(id),
                Acted::Corrupt => self.fail(|| format!("connection {id} got bytes that nobody sent it")),
                Acted::Nothing | Acted::Something => {}
            }
            return true;
        }
        false
    }

    /// A handshake thread takes a step.
    fn run_job(&mut self) -> bool {
        let Some(job) = self.jobs.as_ref().and_then(|jobs| jobs.try_recv().ok()) else { return false };
        self.record("handshake", 0, 0);
        job.run();
        true
    }

    /// The next client connects.
    fn client_comes(&mut self) -> bool {
        let number = self.tunnels.len();
        let present = self.connections.iter().filter(|each| each.side == Side::Client && !each.is_closed);
        if self.done.stops || number >= self.plan.tunnels || present.count() >= self.plan.concurrent {
            return false;
        }
        // A few ask by or for what does not exist.
        let token_number = if self.tape.chance(30) { TOKENS } else { self.tape.roll(TOKENS) };
        let device = if self.tape.chance(30) { DEVICES } else { self.tape.roll(DEVICES) };
        let (head, is_valid) = self.head(token_number, device, number);
        let remote = Remote::draw(Side::Client, number, head, &self.plan, &mut self.tape);
        let id = self.connect(number, Side::Client, remote);
        self.backlog.push_back(id);
        self.tunnels.push(Tunnel {
            token: token_number,
            device,
            client: id,
            dialled: None,
            came: (self.version(), self.latest),
            is_valid,
            end: None,
            audits: 0,
        });
        self.record("client", id, number as i64);
        if self.plan.stops_after == Some(number)
            && let Some(shared) = &self.shared
        {
            self.done.stops = true;
            shared.stop();
        }
        true
    }

    fn head(&mut self, token_number: usize, device: usize, number: usize) -> (Vec<u8>, bool) {
        let (token, uuid, port) = (token(token_number), uuid(device), port(number));
        match self.tape.roll(60) {
            56 => (b"GET / HTTP/1.1\r\n\r\n".to_vec(), false),
            57 => (b"CONNECT nothing\r\n\r\n".to_vec(), false),
            58 => (format!("CONNECT {uuid}:{port} HTTP/1.1\r\n").into_bytes(), false),
            59 => (Vec::new(), false),
            _ => {
                let head =
                    format!("CONNECT {uuid}:{port} HTTP/1.1\r\nProxy-Authorization: Bearer {token}\r\n\r\n");
                (head.into_bytes(), true)
            }
        }
    }

    /// Makes a connection. Returns its number.
    pub fn connect(&mut self, tunnel: usize, side: Side, remote: Remote) -> usize {
        let room_max = [64 * 1024, 4096, 16 * 1024, 200_000, 1_000][self.tape.roll(5)];
        self.connections.push(Connection::new(tunnel, side, room_max, remote));
        self.connections.len() - 1
    }

    /// The rights change, or the wall clock is set; the engine is told as by the control thread.
    fn change(&mut self) {
        let Some(shared) = self.shared.clone() else { return };
        if self.tape.roll(4) == 3 {
            self.wall_lead_ms += self.tape.roll(20_000) as i64 - 10_000;
            self.stepped_at_us = self.now_us;
            return self.record("clock", 0, self.wall_lead_ms);
        }
        let mut rights = self.rights[self.version()].clone();
        let wall = self.wall();
        rights.change(&mut self.tape, wall);
        self.rights.push(rights);
        let version = self.version();
        shared.authority.publish(self.rights[version].view(version as u64 + 1));
        shared.recheck();
        self.record("rights", version, 0);
    }

    /// An operator, or another part of the node, wants something.
    fn administer(&mut self) {
        let Some(shared) = self.shared.clone() else { return };
        let what = self.tape.roll(8);
        self.record("admin", what, 0);
        match what {
            0..=2 => {
                self.lists.retain_mut(|list| list.poll().is_none());
                self.lists.extend(shared.list_sessions().ok());
            }
            3 | 4 => {
                let session = 1 + self.tape.roll(self.tunnels.len().max(1)) as u64;
                self.done.has_ended_sessions |= shared.end_session(session).is_ok();
            }
            5 | 6 => {
                self.done.has_shed = true;
                shared.shed_stalled();
            }
            _ => {
                let phase = [ServicePhase::LameDuck, ServicePhase::Draining, ServicePhase::Leaving];
                let phase = phase[self.tape.roll(3)];
                if self.done.phase.is_none_or(|now| now < phase) {
                    self.done.phase = Some(phase);
                    shared.set_phase(phase);
                }
            }
        }
    }

    /// Something happens while the worker runs: another thread's work, or a segment that arrives.
    pub fn interrupt(&mut self) {
        // Most of all in a turn that was woken: what comes before it clears the wake-up must not be missed.
        let times = if self.is_turn_woken { 8 } else { 40 * self.plan.change_times };
        if self.plan.change_times > 0 && self.tape.chance(times) {
            self.change();
        }
        if self.tape.chance(64) {
            self.deliver_some();
        }
    }

    /// True where the thread was woken and has not cleared that.
    pub fn is_woken(&self) -> bool {
        let Some(wake) = &self.wake else { return false };
        let mut polled = [PollFd::new(wake.as_fd(), PollFlags::POLLIN)];
        poll(&mut polled, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }

    /// Takes the lowest free descriptor.
    pub fn open(&mut self, descriptor: Descriptor) -> Result<usize, i32> {
        let free = self.descriptors.iter().position(Option::is_none);
        let number = free.unwrap_or(self.descriptors.len());
        if number >= self.plan.descriptors {
            return Err(libc::EMFILE);
        }
        if free.is_none() {
            self.descriptors.push(None);
        }
        self.descriptors[number] = Some(descriptor);
        Ok(number)
    }

    /// Closes a descriptor of a connection.
    pub fn close_connection(&mut self, number: usize, id: usize) {
        self.descriptors[number] = None;
        self.connections[id].descriptors -= 1;
        self.record("close", id, number as i64);
        self.let_go(id);
    }

    /// The kernel closes a connection that nothing uses any more.
    pub fn let_go(&mut self, id: usize) {
        let connection = &mut self.connections[id];
        if !connection.is_unused() || connection.is_closed {
            return;
        }
        let closed = connection.close();
        connection.settle_close(closed, &mut self.tape);
        self.record("closed", id, closed as i64);
    }

    /// Opens a socket for a connect to `address`.
    pub fn open_socket(&mut self, address: SocketAddr) -> Result<(usize, usize), i32> {
        if self.tape.chance(self.plan.refusal_times) {
            return Err([libc::EMFILE, libc::ENOBUFS, libc::ENOMEM][self.tape.roll(3)]);
        }
        let number = usize::from(address.port()).wrapping_sub(usize::from(PORTS_FROM));
        if number >= self.tunnels.len() {
            self.fail(|| format!("a dial of {address}, which nobody asked for"));
            return Err(libc::ENETUNREACH);
        }
        self.check_dial(number, address);
        let id = self.connections.len();
        let descriptor = self.open(Descriptor::Connection(id))?;
        let remote = Remote::draw(Side::Device, number, Vec::new(), &self.plan, &mut self.tape);
        let made = self.connect(number, Side::Device, remote);
        debug_assert_eq!(made, id);
        self.connections[id].descriptors = 1;
        if self.tunnels[number].dialled.replace(id).is_some() {
            self.fail(|| format!("tunnel {number} dials its device twice"));
        }
        self.record("socket", id, descriptor as i64);
        Ok((id, descriptor))
    }

    /// The address of the client that a connection is of; `None` where it has gone already.
    pub fn client_address(&self, id: usize) -> Option<SocketAddr> {
        let connection = &self.connections[id];
        let number = connection.tunnel;
        let address = Ipv4Addr::new(10, 0, (number % 3) as u8, 1);
        (!connection.is_dead).then(|| SocketAddr::from((address, CLIENT_PORTS_FROM + number as u16)))
    }

    /// The connection of the other side of a tunnel.
    pub fn other_side(&self, id: usize) -> Option<&Connection> {
        let connection = &self.connections[id];
        let tunnel = &self.tunnels[connection.tunnel];
        match connection.side {
            Side::Client => tunnel.dialled.map(|other| &self.connections[other]),
            Side::Device => Some(&self.connections[tunnel.client]),
        }
    }
}

impl Connection {
    /// The remote end has a connection to act on.
    fn can_act(&self) -> bool {
        match self.side {
            Side::Client => true,
            Side::Device => self.dial == Dial::Open,
        }
    }

    /// The remote end has sent a reset that has arrived, or its connection failed.
    pub fn has_been_reset(&self) -> bool {
        self.remote_reset == Progress::Arrived
    }
}

/// The port by which a client asks for its device, which names the tunnel.
pub fn port(tunnel: usize) -> u16 {
    PORTS_FROM + tunnel as u16
}

const STARTS_AT_US: u64 = 10_000_000;

const STARTS_AT_WALL_MS: i64 = 1_700_000_000_000;

const PORTS_FROM: u16 = 10_000;

pub const CLIENT_PORTS_FROM: u16 = 20_000;

/// Steps of one history. The longest that ends by itself has a tenth.
const STEPS_MAX: u64 = 400_000;
