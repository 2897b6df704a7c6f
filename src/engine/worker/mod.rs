//! One engine thread: it takes completions, lets sessions act, submits their operations, and sleeps when there is
//! no work.

pub(super) mod delivery_checks;
pub(super) mod driver;
mod heads;
pub(super) mod idle;
pub(super) mod restarts;
pub(super) mod scheduler;
pub(super) mod serve_requests;
pub(super) mod signals;
pub(super) mod slab;
pub(super) mod streams;
pub(super) mod timer_wheel;

use std::io;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use super::clock::Clock;
use super::kernel::thread::ThreadKernel;
use super::kernel::uring::UringKernel;
use super::peer_pool::PeerPool;
use super::shared::Shared;
use super::timers::Tick;
use super::tls::handshake_pool::HandshakePool;
use super::tls::scratch::ScratchMemory;
use super::turn::TurnCx;
use crate::config::Config;
use crate::sys::ring::{Completion, Gather, RingError, Wait};
use crate::telemetry::UsageTable;
use driver::{DriverSeat, SessionDriver};
use idle::IdlePolicy;
use signals::{Recheck, ServicePhase, SignalReader};

/// The state of an engine thread. Only `shared` is shared with other threads.
pub(super) struct Worker<K: ThreadKernel = UringKernel> {
    /// Stands above the sessions, because their operations name their sockets: the kernel is done with all
    /// operations when `run` returns.
    kernel: K,
    handshakes: HandshakePool,
    peers: PeerPool<K>,
    scratch: ScratchMemory,
    usage: UsageTable,
    driver: SessionDriver<K>,
    /// Completions that the ring returned and the scheduler has not taken; empty between two turns.
    completions: Vec<Completion<K::Accepted>>,
    shared: Arc<Shared>,
    /// The configuration in force, and its number.
    config: Arc<Config>,
    config_version: u64,
    number: usize,
    signals: SignalReader,
    /// Time since which the store knows the ends that the sweep under way, or the last one, may close tunnels
    /// for; see [`TurnCx::ended_at_us`].
    ended_at_us: u64,
    /// The value of [`Shared::sheds`] at the last turn.
    sheds_seen: u64,
    idle: IdlePolicy,
    /// The node stops: time at which the thread gives up on the sessions that are left.
    stop_by: Option<Tick>,
    /// Time of the next look at the pool of peer connections.
    tend_peers_at: Option<Tick>,
    clock: Clock,
    /// Time of the last look at the wall clock.
    clock_seen_at: Tick,
}

/// The parts of a worker that outlive it, where its thread begins anew.
pub(super) struct WorkerSeat<K: ThreadKernel = UringKernel> {
    pub driver: DriverSeat<K::Listener>,
    pub handshakes: HandshakePool,
}

/// A worker that could not go on, and what is left of it.
pub(super) struct WorkerFailure<K: ThreadKernel = UringKernel> {
    pub error: TurnError,
    /// Sessions that it ended.
    pub sessions: usize,
    pub seat: WorkerSeat<K>,
}

/// The reason why a worker could not go on.
#[derive(Debug, thiserror::Error)]
pub(super) enum TurnError {
    #[error("io_uring takes no more operations: {0}")]
    Ring(io::Error),
    #[error("a panic outside of any session; please report it")]
    Panic,
    #[error(transparent)]
    NoRing(RingError),
}

impl<K: ThreadKernel> Worker<K> {
    pub fn new(number: usize, mut kernel: K, seat: WorkerSeat<K>, shared: Arc<Shared>) -> Self {
        let WorkerSeat { driver, handshakes } = seat;
        let driver = SessionDriver::new(number, driver, &shared, &mut kernel);
        // The number first: a configuration that comes between the two is read again.
        let config_version = shared.config_version();
        let config = shared.config();
        let idle = IdlePolicy::new(config.engine.busy_poll);
        let peers = PeerPool::new(config.forward.idle_connections);
        let clock = Clock::start(&kernel);
        Self {
            kernel,
            handshakes,
            peers,
            scratch: ScratchMemory::default(),
            usage: UsageTable::default(),
            driver,
            completions: Vec::with_capacity(COMPLETIONS_USUAL),
            shared,
            config,
            config_version,
            number,
            signals: SignalReader::default(),
            ended_at_us: 0,
            sheds_seen: 0,
            idle,
            stop_by: None,
            tend_peers_at: None,
            clock,
            clock_seen_at: Tick(0),
        }
    }

    /// Turns until the node stops and the last session is over, or the stop takes too long. Where a turn fails, every
    /// session has ended by resets.
    pub fn run(mut self) -> Result<(), WorkerFailure<K>> {
        let shared = Arc::clone(&self.shared);
        let error = loop {
            match self.guarded_turn(&shared) {
                Ok(turned) if turned.is_continue() => {}
                Ok(_) => {
                    shared.left_usage.lock().add_table(&self.usage);
                    return Ok(());
                }
                Err(error) => break error,
            }
        };
        Err(self.fail(error, &shared))
    }

    /// One turn; a panic in it is an error.
    pub fn guarded_turn(&mut self, shared: &Shared) -> Result<ControlFlow<()>, TurnError> {
        match catch_unwind(AssertUnwindSafe(|| self.turn(shared))) {
            Ok(turned) => turned.map_err(TurnError::Ring),
            Err(_) => Err(TurnError::Panic),
        }
    }

    /// Ends every session by resets, after a turn that failed.
    pub fn fail(mut self, error: TurnError, shared: &Shared) -> WorkerFailure<K> {
        let now = self.clock.read(&self.kernel, &shared.authority);
        let thread = &shared.threads[self.number];
        let view = shared.authority.pin();
        let mut cx = TurnCx {
            kernel: &mut self.kernel,
            handshakes: &mut self.handshakes,
            peers: &mut self.peers,
            scratch: &mut self.scratch,
            now,
            view: &view,
            shared,
            config: &self.config,
            counters: &thread.counters,
            usage: &mut self.usage,
            decision_log: &thread.decision_log,
            ended_at_us: self.ended_at_us,
        };
        let sessions = self.driver.abandon_sessions(&mut cx);
        shared.left_usage.lock().add_table(&self.usage);
        // The ring goes first: its operations use what the sessions hold.
        drop(self.kernel);
        let seat = WorkerSeat { driver: self.driver.leave(), handshakes: self.handshakes.renewed() };
        WorkerFailure { error, sessions, seat }
    }

    /// Adds a completion that the kernel did not make.
    #[cfg(test)]
    pub fn add_completion(&mut self, completion: Completion<K::Accepted>) {
        self.completions.push(completion);
    }

    #[cfg(simulation)]
    pub fn kernel(&self) -> &K {
        &self.kernel
    }

    /// Sleeps until there is work, and does it; breaks once the thread is to end.
    pub fn turn(&mut self, shared: &Shared) -> io::Result<ControlFlow<()>> {
        self.take_completions()?;
        let thread = &shared.threads[self.number];
        let now = self.clock.read(&self.kernel, &shared.authority);
        self.clock_seen_at = now.tick();
        let has_clock_gained = self.clock.has_gained(now);
        let begins_stop = shared.is_stopping() && self.stop_by.is_none();
        if begins_stop {
            self.stop_by = Some(now.after(STOP_TIME));
        }
        let recheck = self.signals.read(&shared.signals);
        let config_version = shared.config_version();
        if config_version != self.config_version {
            self.config_version = config_version;
            self.reconfigure(shared);
        }
        // The pin lasts for this turn only, and the turn does not block.
        let view = shared.authority.pin();
        if recheck == Recheck::Requested && !self.driver.is_sweeping() {
            self.ended_at_us = shared.authority.ended_at_us();
        }
        let mut cx = TurnCx {
            kernel: &mut self.kernel,
            handshakes: &mut self.handshakes,
            peers: &mut self.peers,
            scratch: &mut self.scratch,
            now,
            view: &view,
            shared,
            config: &self.config,
            counters: &thread.counters,
            usage: &mut self.usage,
            decision_log: &thread.decision_log,
            ended_at_us: self.ended_at_us,
        };
        if begins_stop {
            self.driver.stop_accepting(&mut cx);
        }
        if recheck == Recheck::Requested || (has_clock_gained && self.driver.has_expiring()) {
            self.driver.start_sweep();
        }
        if shared.phase() == ServicePhase::Leaving {
            self.driver.end_idle_peers(&mut cx);
        }
        self.driver.work(&mut self.completions, &mut self.idle, &mut self.signals, &mut cx);
        if cx.config.forward.tls.is_some() && !shared.is_stopping() {
            self.tend_peers_at = cx.with_peer_pool(|peers, pool| peers.tend(pool)).flatten();
        }
        let sheds = shared.sheds();
        if std::mem::replace(&mut self.sheds_seen, sheds) != sheds {
            self.driver.shed_stalled(&mut cx);
        }
        self.driver.resume_accepting(&mut cx);
        thread.counters.hot.turns.add(1);
        cx.kernel.record_use(&thread.counters.hot);
        self.idle.record_turn(driver::spliced_bytes(&thread.counters.hot));
        let Some(stop_by) = self.stop_by else { return Ok(ControlFlow::Continue(())) };
        self.driver.stop_sessions(&mut cx);
        let is_over = self.driver.is_done() || now.tick() >= stop_by;
        Ok(if is_over { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    }

    /// Puts a new configuration in force.
    fn reconfigure(&mut self, shared: &Shared) {
        self.config = shared.config();
        self.kernel.reconfigure(&self.config, shared.kernel_tls());
        self.idle.set_busy_poll(self.config.engine.busy_poll);
        self.peers.set_wanted_each(self.config.forward.idle_connections);
        self.driver.reconfigure(&self.config, &shared.limits, &self.kernel);
        shared.threads[self.number].record_config(self.config_version);
    }

    /// Submits the operations of the last turn and takes completions, after a wait where there are none.
    fn take_completions(&mut self) -> io::Result<()> {
        let wait = self.wait();
        let completions = &mut self.completions;
        if wait == Wait::No {
            return self.kernel.turn(Wait::No, None, completions);
        }
        let Some(budget) = self.idle.spin_time() else {
            let gap = asleep(&mut self.kernel, wait, self.idle.gather(), completions)?;
            self.idle.record_gap(gap);
            return Ok(());
        };
        self.kernel.turn(Wait::No, None, completions)?;
        if !completions.is_empty() {
            return Ok(());
        }
        let counters = &self.shared.threads[self.number].counters.hot;
        if self.kernel.has_work_within(budget) {
            self.idle.record_hit();
            counters.spins_hit.add(1);
            self.kernel.turn(Wait::No, None, completions)
        } else {
            self.idle.record_miss();
            counters.spins_missed.add(1);
            let gap = asleep(&mut self.kernel, wait, self.idle.gather(), completions)?;
            self.idle.record_gap(budget + gap);
            Ok(())
        }
    }

    /// The time that the next turn may sleep.
    fn wait(&self) -> Wait {
        if self.driver.has_work() || !self.signals.is_done() {
            return Wait::No;
        }
        let see_clock_at =
            self.driver.has_expiring().then(|| Tick(self.clock_seen_at.0 + CLOCK_SEEN_EVERY_MS));
        let times = [self.driver.next_timer(), self.stop_by, self.tend_peers_at, see_clock_at];
        match times.into_iter().flatten().min() {
            Some(tick) => {
                let now_us = self.kernel.monotonic_us();
                Wait::Until(Duration::from_micros((tick.0 * 1000).saturating_sub(now_us)))
            }
            None => Wait::Forever,
        }
    }
}

/// Takes completions after a wait. Returns the time that this took.
fn asleep<K: ThreadKernel>(
    kernel: &mut K,
    wait: Wait,
    gather: Option<Gather>,
    completions: &mut Vec<Completion<K::Accepted>>,
) -> io::Result<Duration> {
    let asleep_at_us = kernel.monotonic_us();
    kernel.turn(wait, gather, completions)?;
    Ok(Duration::from_micros(kernel.monotonic_us().saturating_sub(asleep_at_us)))
}

/// Longest sleep while a tunnel's right ends at a time, in ms: the wall clock says when, and nothing wakes a thread when
/// somebody sets it. Two wake-ups a second cost some 0.01 % of a core.
const CLOCK_SEEN_EVERY_MS: u64 = 500;

/// Completions per turn for which memory is taken at the start.
const COMPLETIONS_USUAL: usize = 1024;

/// Time that sessions have to end when the node stops.
const STOP_TIME: Duration = Duration::from_secs(3);
