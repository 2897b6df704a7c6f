//! One simulated history: a worker in its world, turn by turn, from the first client to the last end.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::kernel::{SharedWorld, WorldKernel};
use super::plan::Plan;
use super::tape::Tape;
use super::tls::SETTINGS;
use super::trace::Trace;
use super::world::World;
use crate::authz::Authority;
use crate::engine::fd_budget::ClientShare;
use crate::engine::limits::SessionLimits;
use crate::engine::listener::{Listener, Sharing};
use crate::engine::shared::{Shared, ThreadShared};
use crate::engine::tls::handshake_pool::HandshakePool;
use crate::engine::worker::driver::DriverSeat;
use crate::engine::worker::{Worker, WorkerSeat};
use crate::telemetry::AuditSender;
use crate::wire::TlsConfigs;

/// What came of a history.
pub struct Outcome {
    pub violation: Option<String>,
    pub tunnels: usize,
    /// Tunnels that were open.
    pub opened: u64,
    pub choices: Vec<u32>,
    pub trace: Trace,
}

/// Plays the history that `tape` decides.
pub fn play(mut tape: Tape, has_lines: bool) -> Outcome {
    let plan = Plan::draw(&mut tape);
    let (plan_has_tls, is_shared) = (plan.has_tls, plan.is_listener_shared);
    let mut trace = Trace::new(has_lines);
    trace.note(|| format!("{plan:?}"));
    let config = Arc::new(plan.config());
    let share = ClientShare { sessions_max: config.limits.sessions, refused_max: plan.limits.refused };
    let world: SharedWorld = Rc::new(RefCell::new(World::new(plan, tape, trace)));
    let authority = Authority::new(Duration::from_secs(1 << 40), None);
    authority.publish(world.borrow().rights[0].view(1));
    authority.confirm(world.borrow().wall());
    // As after a restart: before it has kept a time, a node may believe a clock that goes back.
    authority.restore_latest_time(world.borrow().wall());
    let limits = Arc::new(SessionLimits::new(&config.limits, share));
    let thread = ThreadShared::new(authority.decision_log(), 1).expect("an eventfd");
    let (audit, events) = AuditSender::to_channel(256);
    let wake = Arc::clone(&thread.wake);
    let tls = if plan_has_tls { SETTINGS.node.clone() } else { TlsConfigs::default() };
    let shared =
        Arc::new(Shared::new(Arc::clone(&config), tls, Arc::new(authority), audit, limits, vec![thread]));
    let (handshakes, jobs) = HandshakePool::for_tests_on(Arc::clone(&wake));
    {
        let mut world = world.borrow_mut();
        world.shared = Some(Arc::clone(&shared));
        world.wake = Some(wake);
        world.jobs = Some(jobs);
        world.audit = Some(events);
    }
    let listeners = vec![Listener::new((), 0, if is_shared { Sharing::Shared } else { Sharing::Own })];
    let driver = DriverSeat { listeners, sessions_begun: 0 };
    let kernel = WorldKernel::new(Rc::clone(&world), &config);
    let mut worker = Worker::new(0, kernel, WorkerSeat { driver, handshakes }, Arc::clone(&shared));
    let mut turns: u64 = 0;
    let has_stopped = loop {
        let turned = worker.guarded_turn(&shared);
        turns += 1;
        let is_over = {
            let mut world = world.borrow_mut();
            world.take_audit();
            world.check_turn();
            if let Some(panic) = super::panics::take() {
                world.fail(|| format!("a panic: {panic}"));
            }
            if turns > TURNS_MAX {
                world.fail(|| "the worker spins".to_owned());
            }
            world.violation.is_some() || world.is_at_rest
        };
        match turned {
            Ok(turned) if turned.is_break() => break true,
            Ok(_) if is_over => break false,
            Ok(_) => {}
            Err(error) => {
                let failed = worker.fail(error, &shared);
                world.borrow_mut().take_audit();
                let kernel = WorldKernel::new(Rc::clone(&world), &config);
                worker = Worker::new(0, kernel, failed.seat, Arc::clone(&shared));
            }
        }
    };
    if world.borrow().violation.is_none() {
        check_end(&worker, &shared, &world, has_stopped);
    }
    drop(worker);
    let opened = shared.threads[0].counters.sessions.tunnels_opened.get();
    let mut world = world.borrow_mut();
    world.shared = None;
    let violation = world.violation.take();
    let tunnels = world.tunnels.len();
    let tape = std::mem::replace(&mut world.tape, Tape::of_choices(Vec::new()));
    let trace = std::mem::replace(&mut world.trace, Trace::new(false));
    Outcome { violation, tunnels, opened, choices: tape.into_choices(), trace }
}

/// Checks that nothing is left once the history is over.
fn check_end(worker: &Worker<WorldKernel>, shared: &Shared, world: &SharedWorld, has_stopped: bool) {
    let sessions = &shared.threads[0].counters.sessions;
    let (buffers, pipes, dirty) = worker.kernel().left_over();
    let mut world = world.borrow_mut();
    let active = sessions.active.get();
    if active > 0 {
        return world.fail(|| format!("{active} sessions are left (stopped: {has_stopped})"));
    }
    if (buffers, pipes, dirty) != (0, 0, 0) {
        return world.fail(|| format!("{buffers} buffers, {pipes} pipes, {dirty} dirty pipes are left"));
    }
    if !has_stopped && !world.backlog.is_empty() {
        return world.fail(|| "a client waits, and nothing will accept it".to_owned());
    }
    if !shared.limits.is_unused() {
        return world.fail(|| "a place within the limits is left".to_owned());
    }
    let accounted = world.audited + sessions.balancer_checks.get();
    let accepted = sessions.accepted.get();
    if accounted != accepted {
        return world.fail(|| format!("{accepted} sessions began, and {accounted} are accounted for"));
    }
    world.check_left();
}

/// Turns of one history. Few need a tenth of them.
const TURNS_MAX: u64 = 200_000;
