//! The plan of a history: its size, its configuration, and the kinds of trouble that it has.
//!
//! Each history has some kinds and not others. Where all are there at once, most histories end early by the same few.

use std::time::Duration;

use super::tape::Tape;
use super::tls::SETTINGS;
use crate::config::{Config, Forwarding, KernelTls, Limits, Listen, Vpn};

/// See the module. Numbers that end in `_times` are for [`Tape::chance`]; 0 is never.
#[derive(Debug)]
pub struct Plan {
    pub tunnels: usize,
    /// Clients that are there at the same time.
    pub concurrent: usize,
    pub forwarding: Forwarding,
    pub pipes: usize,
    pub pipe_bytes: usize,
    pub buffers: u16,
    pub descriptors: usize,
    pub limits: LimitPlan,
    pub busy_poll: Duration,
    /// The kernel counts the bytes of a stream receive, as since 6.17.
    pub has_counted_receives: bool,
    /// Completions that fit into the queue.
    pub completions_max: usize,
    /// Operations that fit into the submission queue.
    pub submissions_max: usize,
    /// Calls and operations that come short, are interrupted or come to nothing.
    pub fault_times: usize,
    /// Sockets, connects, pipes and buffers that the system refuses.
    pub refusal_times: usize,
    /// Remote ends that reset or close in the middle.
    pub reset_times: usize,
    /// Remote ends that go silent, and clients that never send a whole head.
    pub silence_times: usize,
    /// Changes of rights, of addresses and of the wall clock.
    pub change_times: usize,
    /// What operators and the rest of the node do: lists, ends, sheds, reloads, captures.
    pub admin_times: usize,
    /// Turns of the ring that fail, after which the thread begins anew.
    pub ring_loss_times: usize,
    /// The node stops once this many clients have come.
    pub stops_after: Option<usize>,
    /// Clients speak TLS.
    pub has_tls: bool,
    /// Several threads accept from the listener, so that each takes one client at a time.
    pub is_listener_shared: bool,
}

/// The bounds of sessions; `None` leaves those that no history reaches.
#[derive(Default, Clone, Copy, Debug)]
pub struct LimitPlan {
    pub sessions: Option<u32>,
    pub per_principal: Option<u32>,
    pub per_device: Option<u32>,
    pub heads_per_network: Option<u32>,
    pub refused: usize,
}

impl Plan {
    pub fn draw(tape: &mut Tape) -> Self {
        let forwarding = [Forwarding::Auto, Forwarding::Copy, Forwarding::Splice, Forwarding::RingSplice];
        let often = |tape: &mut Tape, times: &[usize]| match tape.roll(2) {
            0 => 0,
            _ => times[tape.roll(times.len())],
        };
        let tunnels = 1 + tape.roll(32);
        Self {
            tunnels,
            concurrent: 1 + tape.roll(10),
            forwarding: forwarding[tape.roll(4)],
            pipes: [16, 2, 1, 0, 4][tape.roll(5)],
            pipe_bytes: [64 * 1024, 4096, 16 * 1024, 256 * 1024][tape.roll(4)],
            buffers: [64, 4, 1, 16][tape.roll(4)],
            descriptors: if tape.chance(4) { 4 + tape.roll(16) } else { 1000 },
            limits: if tape.chance(3) { LimitPlan::draw(tape) } else { LimitPlan::none() },
            busy_poll: Duration::from_micros([0, 50][tape.roll(2)]),
            has_counted_receives: tape.roll(4) < 3,
            completions_max: [256, 4, 1, 16][tape.roll(4)],
            submissions_max: [256, 2, 8][tape.roll(3)],
            fault_times: often(tape, &[16, 6]),
            refusal_times: often(tape, &[12, 40]),
            reset_times: often(tape, &[3, 8]),
            silence_times: often(tape, &[5, 12]),
            change_times: often(tape, &[40, 10]),
            admin_times: often(tape, &[60, 15]),
            ring_loss_times: if tape.chance(12) { 200 } else { 0 },
            stops_after: tape.chance(6).then(|| tape.roll(tunnels)),
            has_tls: tape.chance(12),
            is_listener_shared: tape.roll(2) == 1,
        }
    }

    /// The configuration of the node.
    pub fn config(&self) -> Config {
        let mut config =
            Config { vpn: Vpn::loopback(), listen: vec![Listen::default()], ..Config::default() };
        if self.has_tls {
            config.listen = vec![SETTINGS.listen.clone()];
        }
        config.engine.forwarding = self.forwarding;
        config.engine.kernel_tls = KernelTls::Off;
        config.engine.pipes = self.pipes;
        config.engine.pipe_bytes = self.pipe_bytes;
        config.engine.buffers = self.buffers;
        config.engine.busy_poll = self.busy_poll;
        let Limits { sessions, sessions_per_principal, sessions_per_device, heads_per_network, .. } =
            &mut config.limits;
        *sessions = self.limits.sessions.unwrap_or(1_000);
        *sessions_per_principal = self.limits.per_principal.unwrap_or(1_000);
        *sessions_per_device = self.limits.per_device.unwrap_or(1_000);
        *heads_per_network = self.limits.heads_per_network.unwrap_or(1_000);
        config.limits.unknown_tokens_per_minute = 0;
        config
    }
}

impl LimitPlan {
    fn none() -> Self {
        Self { refused: 9, ..Self::default() }
    }

    fn draw(tape: &mut Tape) -> Self {
        let mut bound = || tape.chance(2).then(|| 1 + tape.roll(4) as u32);
        let (sessions, per_principal, per_device, heads_per_network) = (bound(), bound(), bound(), bound());
        Self { sessions, per_principal, per_device, heads_per_network, refused: tape.roll(4) }
    }
}
