//! `sluicegate run`: runs the relay until a signal ends it.

use std::convert::Infallible;
use std::io;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, at, bounded, never, select};
use nix::sys::prctl::set_dumpable;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR2};
use signal_hook::iterator::Signals;

use super::confine::confine;
use super::doctor;
use super::log;
use super::maintenance::Maintenance;
use super::output::{CommandError, print};
use super::reloader::{Reloaded, Reloader};
use super::systemd::ServiceReporter;
use super::upgrade::{hand_over, linger, takes_back};
use super::{Global, Loaded};
use crate::admin::{NodeRequest, NodeRequests};
use crate::config::{StoreUrl, Timeouts};
use crate::engine::{EngineFailure, Inherited};
use crate::handover::{Predecessor, Program};
use crate::node::{Drained, Node, NodeStart};
use crate::store::sqlite;

/// Runs the relay. Where another process hands over to this one, that one hears of a configuration that is wrong.
pub fn run(global: &Global) -> Result<(), CommandError> {
    let program = Program::of_this_process().map_err(CommandError::failed)?;
    let predecessor = Predecessor::of_this_process().map_err(CommandError::failed)?;
    match global.loaded() {
        Ok(loaded) => run_as(&loaded, &program, predecessor),
        Err(error) => {
            if let Some(predecessor) = predecessor {
                predecessor.refuse(&error.to_string());
            }
            Err(error)
        }
    }
}

fn run_as(loaded: &Loaded, program: &Program, predecessor: Option<Predecessor>) -> Result<(), CommandError> {
    let config = &loaded.config;
    let log = log::start(&config.log).map_err(CommandError::failed)?;
    // Memory holds tokens: no core dump, and no look into it by other programs of this user.
    if let Err(error) = set_dumpable(false) {
        tracing::warn!(%error, "a core dump of this process would hold tokens of clients");
    }
    if loaded.file.is_none() {
        create_embedded_store(&config.store.url)?;
    }
    let inherited = Inherited::take().map_err(CommandError::failed)?;
    confine(loaded, program)?;
    let (requests, queue) = NodeRequests::new();
    let has_started = Arc::<AtomicBool>::default();
    let ends = EndRequests::start(requests.clone(), Arc::clone(&has_started)).map_err(no_signals)?;
    let takes_over = predecessor.is_some();
    let start = NodeStart { inherited, predecessor, requests: requests.clone() };
    let mut node =
        Node::start_with(start, config.clone(), loaded.tls.clone()).map_err(CommandError::failed)?;
    has_started.store(true, Ordering::Release);
    doctor::log_limits(config);
    config.vpn.warnings().iter().for_each(|warning| tracing::warn!("{warning}"));
    announce(&node, takes_over)?;
    let service = ServiceReporter::start(&node).map_err(CommandError::failed)?;
    let mut reloader = Reloader { file: loaded.file.as_deref(), config: config.clone(), log };
    let mut maintenance = Maintenance::default();
    let end = loop {
        let lame_duck = reloader.config.timeouts.lame_duck;
        match next_task(&node, &ends, &queue, maintenance.next_at(&node))? {
            MainTask::End(end) => break end,
            MainTask::EndFailed(failure) => {
                tracing::error!("{failure}");
                drop(service);
                node.stop();
                return Err(CommandError::failed(failure));
            }
            MainTask::Request(NodeRequest::Reload(number)) => {
                let outcome = service.reloading(|| match reloader.reload(&node) {
                    Ok(Reloaded::Here) => Ok(Reloaded::Here),
                    Ok(Reloaded::NeedsNewProcess(keys)) => {
                        let (program, passed) = (program.as_it_runs(), requests.passed(Some(number)));
                        hand_over(&mut node, &program, passed, &service, &reloader.config, &|| {
                            ends.has_waiting()
                        })
                        .map_err(|why| no_new_process(&keys, &why))
                        .map(|_| Reloaded::NeedsNewProcess(keys))
                    }
                    Err(error) => Err(error.to_string()),
                });
                match outcome {
                    Ok(Reloaded::Here) => requests.record(number, Ok(())),
                    Ok(Reloaded::NeedsNewProcess(keys)) => {
                        let config = &reloader.config;
                        if !takes_back(&mut node, &service, config, || ends.has_waiting()) {
                            return linger_to_the_end(node, &service, &ends, &config.timeouts);
                        }
                        requests.record(number, Err(no_new_process(&keys, "it ended right after it had")));
                    }
                    Err(why) => requests.record(number, Err(why)),
                }
            }
            MainTask::Request(NodeRequest::Drain(lasts, answer)) => {
                let _gave_up = answer.send(maintenance.begin(lasts, lame_duck, &node));
            }
            MainTask::Request(NodeRequest::Serve(answer)) => {
                let _gave_up = answer.send(maintenance.end(&node));
            }
            MainTask::Request(NodeRequest::Upgrade(ticket)) => {
                let config = &reloader.config;
                let passed = requests.passed(None);
                let outcome = hand_over(&mut node, program, passed, &service, config, &|| ends.has_waiting());
                let is_handed_over = outcome.is_ok();
                if let Some(ticket) = ticket {
                    ticket.answer(outcome);
                }
                if is_handed_over && !takes_back(&mut node, &service, config, || ends.has_waiting()) {
                    return linger_to_the_end(node, &service, &ends, &config.timeouts);
                }
            }
            MainTask::PassTime => maintenance.pass_time(&node),
        }
    };
    service.stopping();
    let Timeouts { lame_duck, drain: patience, .. } = reloader.config.timeouts;
    // A person at a terminal does not want to wait, and nobody waits for a node that serves nothing.
    let is_in_service = end == EndRequest::Terminate && node.engine().trouble().is_none();
    let lame_duck = if is_in_service { maintenance.lame_duck_left(lame_duck) } else { Duration::ZERO };
    tracing::info!(?lame_duck, ?patience, "draining; another signal stops the relay at once");
    match node.drain(lame_duck, patience, || ends.has_next()) {
        Drained::Empty => tracing::info!("drained; the last session has ended"),
        Drained::Left(sessions) => {
            tracing::warn!(sessions, "timeouts.drain has passed; ending the remaining sessions")
        }
        Drained::Interrupted => tracing::warn!("a second signal came; ending the remaining sessions"),
    }
    drop(service);
    node.stop();
    Ok(())
}

fn no_new_process(keys: &[String], why: &str) -> String {
    format!("changes of {} need a new process, which did not take over: {why}", keys.join(", "))
}

/// What an old process does after a hand-over: it keeps the sessions that could not move.
fn linger_to_the_end(
    node: Node,
    service: &ServiceReporter,
    ends: &EndRequests,
    timeouts: &Timeouts,
) -> Result<(), CommandError> {
    if linger(&node, timeouts.linger, || ends.has_next()) {
        service.stopping();
        node.drain(Duration::ZERO, timeouts.drain, || ends.has_next());
    }
    tracing::info!("nothing is left in this process, which ends");
    node.stop();
    Ok(())
}

/// Creates the store of a relay without a configuration, so that `run` works without `store init`.
fn create_embedded_store(url: &StoreUrl) -> Result<(), CommandError> {
    if let StoreUrl::Sqlite(path) = url
        && !path.exists()
    {
        sqlite::init(path)?;
        tracing::info!(path = %path.display(), "created an empty store");
    }
    Ok(())
}

/// Prints the ports, for programs that wait for them, and logs them. A process that takes over prints nothing: who
/// waited knows them, and may be gone.
fn announce(node: &Node, takes_over: bool) -> Result<(), CommandError> {
    let clients: Vec<String> = node.client_addresses().iter().map(ToString::to_string).collect();
    let (clients, admin) = (clients.join(","), node.admin_address());
    let nodes = node.forward_address().map(|nodes| format!(" nodes={nodes}")).unwrap_or_default();
    let for_nodes = node.forward_address().map(tracing::field::display);
    let health = node.health_address().map(|health| format!(" health={health}")).unwrap_or_default();
    let for_health = node.health_address().map(tracing::field::display);
    tracing::info!(%clients, %admin, nodes = for_nodes, health = for_health, "listening");
    if takes_over {
        return Ok(());
    }
    print(&format!("ready client={clients} admin={admin}{nodes}{health}\n"))
}

/// What the main thread is to do next.
enum MainTask {
    End(EndRequest),
    /// An engine thread is lost: the node is to end at once.
    EndFailed(EngineFailure),
    Request(NodeRequest),
    /// The time has come that it waited for.
    PassTime,
}

/// Waits for the next task, at most until `wake_at`.
fn next_task(
    node: &Node,
    ends: &EndRequests,
    requests: &Receiver<NodeRequest>,
    wake_at: Option<Instant>,
) -> Result<MainTask, CommandError> {
    let stopped = |_| CommandError::failed("the thread that waits for signals has stopped");
    select! {
        recv(ends.signals) -> end => end.map(MainTask::End).map_err(stopped),
        recv(requests) -> request => request.map(MainTask::Request).map_err(stopped),
        recv(node.engine_failures()) -> failure => match failure {
            Ok(failure) => Ok(MainTask::EndFailed(failure)),
            Err(_) => Err(CommandError::failed("every engine thread has stopped")),
        },
        recv(wake_at.map_or_else(never, at)) -> _ => Ok(MainTask::PassTime),
    }
}

/// Requests to end this process: the first drains the node, the second ends it at once.
struct EndRequests {
    signals: Receiver<EndRequest>,
}

fn no_signals(error: io::Error) -> CommandError {
    CommandError::failed(format!(
        "nothing can wait for signals ({error}); raise the limits on open files and on threads (LimitNOFILE=, TasksMax=)"
    ))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum EndRequest {
    /// SIGTERM, of a service manager.
    Terminate,
    /// SIGINT, of a person at a terminal.
    Interrupt,
}

impl EndRequests {
    /// Starts the thread that waits for signals. SIGHUP and SIGUSR2 become requests.
    /// Before the node has started, a signal to end is obeyed at once: there is nothing to drain.
    fn start(requests: NodeRequests, has_started: Arc<AtomicBool>) -> io::Result<Self> {
        let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP, SIGUSR2])?;
        let (send, ends) = bounded(END_REQUESTS_MAX);
        std::thread::Builder::new().name("signals".to_owned()).spawn(move || -> Infallible {
            loop {
                let serve = || {
                    for signal in signals.forever() {
                        // Where many requests wait already, they do what this one would.
                        if ![SIGHUP, SIGUSR2].contains(&signal) && !has_started.load(Ordering::Acquire) {
                            tracing::info!("ended by a signal before the start was over");
                            std::process::exit(0);
                        }
                        match signal {
                            SIGHUP => drop(requests.reload()),
                            SIGUSR2 => drop(requests.upgrade(None)),
                            SIGINT => drop(send.try_send(EndRequest::Interrupt)),
                            _ => drop(send.try_send(EndRequest::Terminate)),
                        }
                    }
                };
                // The iterator panics where the system refuses its read. A later one may pass.
                let _refused = std::panic::catch_unwind(AssertUnwindSafe(serve));
                std::thread::sleep(SIGNALS_PAUSE);
            }
        })?;
        Ok(Self { signals: ends })
    }

    /// Tests whether another request has come.
    fn has_next(&self) -> bool {
        self.signals.try_recv().is_ok()
    }

    /// Tests whether another request waits, and leaves it there.
    fn has_waiting(&self) -> bool {
        !self.signals.is_empty()
    }
}

/// The first request, and the one that ends a drain.
const END_REQUESTS_MAX: usize = 2;

/// Pause before signals are waited for again, after the system has refused it.
const SIGNALS_PAUSE: Duration = Duration::from_millis(100);
