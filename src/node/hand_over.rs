//! A node's part in a hand-over: the order in which it gives its parts to another process, or takes over those of one.

use std::path::Path;
use std::time::{Duration, Instant};

use super::{Node, NodeError};
use crate::admin::NodeRequests;
use crate::authz::Undecided;
use crate::control::{Following, Writing};
use crate::engine::Accepting;
use crate::handover::{
    ArrivalsThread, Committed, DepartureProgress, DeparturesThread, HandoverError, Offer, PassedReloads,
    Predecessor, Program, Successor, Terms,
};

/// A hand-over that has succeeded. This process keeps what could not move.
pub struct HandedOver {
    pub pid: u32,
    pub version: String,
    /// Why no tunnel moves, where there is a reason.
    pub remark: Option<String>,
    progress: DepartureProgress,
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
        if self.departures.is_some() {
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
        successor.commit(self.handle.next_number(), reloads, has_local_socket)
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
    fn leave_to(&mut self, committed: Committed) -> HandedOver {
        let (pid, version) = (committed.pid, committed.version.clone());
        *self.probe.lock() = None;
        self.admin.leave(committed.has_local_socket);
        if let Err(error) = self.handle.accept_clients(Accepting::Ended) {
            tracing::error!("an engine thread does not close its listeners: {error}");
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
        HandedOver { pid, version, remark: failure.or(remark), progress }
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
        let Terms { next_number, reloads } = predecessor.wait_for_commit(has_local_socket)?;
        self.handle.begin_numbers_at(next_number);
        requests.take_over(reloads);
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

/// Time between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(2);
