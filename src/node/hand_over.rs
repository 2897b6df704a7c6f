//! A node's part in a hand-over: the order in which it gives its parts to another process, or takes over those of one.

use std::path::Path;
use std::time::{Duration, Instant};

use super::{Node, NodeError};
use crate::admin::NodeRequests;
use crate::authz::Undecided;
use crate::config::Config;
use crate::control::{Following, Writing};
use crate::engine::Accepting;
use crate::handover::{
    ArrivalsThread, Committed, DepartureProgress, DeparturesThread, HandoverError, Offer, PassedReloads,
    Predecessor, Program, Successor, Terms,
};
use crate::sys::launcher::StartedProgram;

/// A hand-over that has succeeded. This process keeps what could not move.
pub struct HandedOver {
    pub pid: u32,
    pub version: String,
    /// Why no tunnel moves, where there is a reason.
    pub remark: Option<String>,
    progress: DepartureProgress,
}

/// A new process that accepts clients, and has not done so for long.
pub(super) struct Proof {
    pid: u32,
    child: StartedProgram,
    progress: DepartureProgress,
    has_local_socket: bool,
    /// Numbers of sessions that the new process gives are above this one.
    numbers_from: u64,
    until: Instant,
}

/// What is known of a new process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Succession {
    /// It has to prove itself until then.
    Unproven(Instant),
    /// It has the listeners to itself.
    Final,
    /// It has ended, and not in good order. This process may go on in its place.
    Failed,
}

impl Node {
    /// Hands over to `program`, with the reloads that were asked for. `make_main` tells the service manager of the new
    /// process.
    ///
    /// Where it fails, the new process is ended, and this one goes on as before. It takes up to a minute; `is_interrupted`
    /// ends it early. Afterwards this process accepts nobody, writes nothing, and moves its tunnels in the background.
    pub fn hand_over(
        &mut self,
        program: &Program,
        reloads: PassedReloads,
        make_main: impl FnOnce(u32),
        is_interrupted: &dyn Fn() -> bool,
    ) -> Result<HandedOver, HandoverError> {
        if self.departures.is_some() || self.proof.is_some() {
            return Err(HandoverError::Here("it has handed over already".to_owned()));
        }
        let successor = Successor::start(program, is_interrupted)?;
        let committed =
            self.give_up_writing().and_then(|()| self.give_up_clients(successor, reloads, is_interrupted));
        let committed = match committed {
            Ok(committed) => committed,
            Err(error) => {
                self.go_on_as_before();
                return Err(error);
            }
        };
        make_main(committed.pid);
        committed.make_main();
        Ok(self.leave_to(committed))
    }

    /// Leaves all that one process alone may write to another one. What is in force is on disk then.
    fn give_up_writing(&self) -> Result<(), HandoverError> {
        self.writers.iter().for_each(|writer| writer.set(true));
        let stopped = self.control.commands().write(Writing::ByAnother);
        stopped.map_err(|error| HandoverError::Here(error.to_string()))
    }

    /// Waits until the new process is ready, and lets it accept clients instead of this one.
    fn give_up_clients(
        &self,
        mut successor: Successor,
        reloads: PassedReloads,
        is_interrupted: &dyn Fn() -> bool,
    ) -> Result<Committed, HandoverError> {
        let here = |error: &dyn std::fmt::Display| HandoverError::Here(error.to_string());
        let sockets = self.admin.copies().map_err(|error| here(&error))?;
        let listeners = self.handle.listeners().map_err(|error| here(&error))?;
        let offer = Offer {
            listeners,
            admin: sockets.tcp,
            health: sockets.health,
            local_socket: sockets.local,
            decides: self.has_rights(),
            queries: self.queries.lock().clone(),
        };
        let has_local_socket = successor.make_ready(&offer, is_interrupted)?;
        drop(offer);
        self.handle.accept_clients(Accepting::Paused).map_err(|error| here(&error))?;
        let terms = Terms {
            next_number: self.handle.next_number(),
            reloads,
            unknown_tokens: vec![self.handle.unknown_tokens()],
            history: self.admin.history(),
        };
        successor.commit(terms, has_local_socket)
    }

    /// Tests whether there are rights to decide by, however old.
    fn has_rights(&self) -> bool {
        self.handle.trouble() != Some(Undecided::NoSnapshot)
    }

    /// Takes back what was given up.
    fn go_on_as_before(&self) {
        if let Err(error) = self.handle.accept_clients(Accepting::Yes) {
            tracing::error!("an engine thread does not accept clients: {error}");
        }
        if let Err(error) = self.control.commands().write(Writing::ByThisProcess) {
            tracing::error!("the state is not kept on disk any more: {error}");
        }
        self.writers.iter().for_each(|writer| writer.set(false));
    }

    /// Leaves the listeners, the decisions and the tunnels to the new process.
    fn leave_to(&mut self, mut committed: Committed) -> HandedOver {
        let (pid, version, has_local_socket) =
            (committed.pid, committed.version.clone(), committed.has_local_socket);
        self.probe.lock().pause();
        let child = committed.child.take();
        match child {
            Some(_) => self.admin.pause(),
            None => self.leave_listeners(has_local_socket),
        }
        let remark = (!committed.moves_tunnels).then(|| {
            "its format of tunnels is another one, so that every tunnel stays with the old process".to_owned()
        });
        if committed.moves_tunnels
            && let Err(error) = self.control.commands().follow(Following::No)
        {
            tracing::error!("this process goes on to follow the store: {error}");
        }
        let commands = self.control.commands();
        let on_lost = move || {
            if let Err(error) = commands.follow(Following::Yes) {
                tracing::error!("this process does not follow the store: {error}");
            }
        };
        let departures = DeparturesThread::start(committed, self.handle.clone(), self.other.clone(), on_lost);
        let (progress, failure) = match departures {
            Ok(thread) => {
                let progress = thread.progress();
                self.departures = Some(thread);
                (progress, None)
            }
            Err(error) => {
                let failure = format!("no tunnel moves, since a thread cannot be started ({error})");
                (DepartureProgress::default(), Some(failure))
            }
        };
        self.proof = child.map(|child| Proof {
            pid,
            child,
            progress: progress.clone(),
            has_local_socket,
            numbers_from: self.handle.next_number(),
            until: Instant::now() + PROOF_TIME,
        });
        HandedOver { pid, version, remark: failure.or(remark), progress }
    }

    fn leave_listeners(&mut self, has_local_socket: bool) {
        self.admin.leave(has_local_socket);
        if let Err(error) = self.handle.accept_clients(Accepting::Ended) {
            tracing::error!("an engine thread does not close its listeners: {error}");
        }
    }

    /// Looks at the new process. Once it has proved itself, or with `is_trusted`, this process closes its listeners.
    pub fn watch_successor(&mut self, is_trusted: bool) -> Succession {
        let Some(proof) = &mut self.proof else { return Succession::Final };
        let is_lost = proof.progress.has_lost_successor() && !proof.progress.has_said_farewell();
        if is_lost && !is_trusted && proof.ends() {
            return Succession::Failed;
        }
        // One that is there and silent serves all the same.
        if !is_lost && !is_trusted && !proof.progress.has_said_farewell() && Instant::now() < proof.until {
            return Succession::Unproven(proof.until);
        }
        if let Some(proof) = self.proof.take() {
            proof.child.leave();
            self.leave_listeners(proof.has_local_socket);
        }
        Succession::Final
    }

    /// Accepts clients again in the place of a new process that has [failed](Succession::Failed), and follows the store
    /// and the VPN by itself. `config` is what was in force before.
    pub fn take_back(&mut self, config: &Config) {
        let Some(proof) = self.proof.take() else { return };
        self.departures = None;
        self.handle.begin_numbers_at(proof.numbers_from + PROOF_NUMBERS_MAX);
        self.heartbeat.succeed(proof.pid);
        if let Err(error) = self.control.commands().follow(Following::Again) {
            tracing::error!("this process does not follow the store: {error}");
        }
        self.go_on_as_before();
        self.admin.begin();
        self.restart_probe(config);
    }

    /// Waits for rights to decide by, without which nobody should be taken from a process that has some.
    pub(super) fn wait_for_rights(&self) -> Result<(), NodeError> {
        let give_up_at = Instant::now() + Predecessor::rights_time();
        while !self.has_rights() {
            if Instant::now() >= give_up_at {
                let why = self.control.status().get().last_error;
                return Err(NodeError::NoRights(
                    why.unwrap_or_else(|| "the store has not answered".to_owned()),
                ));
            }
            std::thread::sleep(LOOK_EVERY);
        }
        Ok(())
    }

    /// The last steps of a node that takes over: the process before stops to accept, and this one begins.
    pub(super) fn take_over(
        &mut self,
        mut predecessor: Predecessor,
        passed_path: Option<&Path>,
        requests: &NodeRequests,
    ) -> Result<(), NodeError> {
        let has_local_socket = passed_path.is_some_and(|path| self.admin.has_local_socket_at(path));
        let Terms { next_number, reloads, unknown_tokens, history } =
            predecessor.wait_for_commit(has_local_socket)?;
        self.handle.begin_numbers_at(next_number);
        unknown_tokens.iter().for_each(|counts| self.handle.count_unknown_tokens(counts));
        requests.take_over(reloads);
        self.admin.continue_history(&history);
        self.handle
            .accept_clients(Accepting::Yes)
            .map_err(|error| NodeError::Thread(std::io::Error::other(error)))?;
        self.admin.begin();
        predecessor.wait_for_main();
        tracing::info!(
            old = predecessor.pid,
            version = predecessor.version,
            "took over from the process before"
        );
        let arrivals =
            ArrivalsThread::start(predecessor, self.handle.clone(), self.authority.clone(), &self.other);
        self.arrivals = Some(arrivals.map_err(NodeError::Thread)?);
        Ok(())
    }
}

impl HandedOver {
    /// Waits until all tunnels have moved that can, or `patience` has passed. Returns how many have moved.
    pub fn wait_until_moved(&self, patience: Duration) -> u64 {
        let give_up_at = std::time::Instant::now() + patience;
        while !self.progress.is_settled() && std::time::Instant::now() < give_up_at {
            std::thread::sleep(LOOK_EVERY);
        }
        self.progress.moved()
    }
}

impl Proof {
    /// Waits a moment for the end of a process that does not speak any more. False where it is there all the same.
    fn ends(&mut self) -> bool {
        let give_up_at = Instant::now() + END_TIME_MAX;
        while !self.child.has_ended() {
            if Instant::now() >= give_up_at {
                return false;
            }
            std::thread::sleep(LOOK_EVERY);
        }
        true
    }
}

/// Time for which the old process keeps its listeners. If the new one dies meanwhile, of its first clients or its first
/// answers of the store, the old one goes on, and clients that came in between have waited in the queue.
const PROOF_TIME: Duration = Duration::from_secs(3);

/// Sessions of a thread that a new process may have had when it dies within that time, so that none gets a number twice.
const PROOF_NUMBERS_MAX: u64 = 1 << 24;

/// Time in which a process that has closed its connection has ended, if that is why it did.
const END_TIME_MAX: Duration = Duration::from_secs(1);

/// Time between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(2);
