//! `sluicegate run`: runs the relay until a signal ends it.

use std::cell::Cell;
use std::io;

use crossbeam::channel::{Receiver, bounded, select};
use nix::sys::prctl::set_dumpable;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::Loaded;
use super::doctor;
use super::log;
use super::output::{CommandError, print};
use super::reload::Reload;
use super::systemd::ServiceReporter;
use crate::config::StoreUrl;
use crate::engine::{EngineFailure, Inherited};
use crate::node::{Drained, Node};
use crate::store::sqlite;

pub fn run(loaded: &Loaded) -> Result<(), CommandError> {
    let config = &loaded.config;
    let log = log::start(&config.log)?;
    // Memory holds tokens: no core dump, and no look into it by other programs of this user.
    if let Err(error) = set_dumpable(false) {
        tracing::warn!(%error, "a core dump of this process would hold tokens of clients");
    }
    if loaded.file.is_none() {
        create_embedded_store(&config.store.url)?;
    }
    let requests = SignalRequests::start().map_err(CommandError::failed)?;
    let inherited = Inherited::take().map_err(CommandError::failed)?;
    let (to_start, tls) = (config.clone(), loaded.tls.clone());
    let started = requests.until_started(move || Node::start_on(inherited, to_start, tls))?;
    let Some(node) = started else {
        tracing::warn!("a signal came before the relay was ready; it ends without a node to drain");
        return Ok(());
    };
    let node = node.map_err(CommandError::failed)?;
    doctor::log_limits(config);
    config.vpn.warnings().iter().for_each(|warning| tracing::warn!("{warning}"));
    announce(&node)?;
    let service = ServiceReporter::start(&node).map_err(CommandError::failed)?;
    let mut reload = Reload { file: loaded.file.as_deref(), config: config.clone(), log };
    loop {
        match requests.next(&node)? {
            Request::Reload => service.reloading(|| reload.reload(&node)),
            Request::End => break,
            Request::EndFailed(failure) => {
                tracing::error!("{failure}");
                drop(service);
                node.stop();
                return Err(CommandError::failed(failure));
            }
        }
    }
    service.stopping();
    tracing::info!(patience = ?config.timeouts.drain, "draining; another signal stops the relay at once");
    match node.drain(config.timeouts.drain, || requests.has_end()) {
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

/// Prints the ports, for programs that wait for them, and logs them.
fn announce(node: &Node) -> Result<(), CommandError> {
    let clients: Vec<String> = node.client_addresses().iter().map(ToString::to_string).collect();
    let (clients, admin) = (clients.join(","), node.admin_address());
    let nodes = node.forward_address().map(|nodes| format!(" nodes={nodes}")).unwrap_or_default();
    let for_nodes = node.forward_address().map(tracing::field::display);
    tracing::info!(%clients, %admin, nodes = for_nodes, "listening");
    print(&format!("ready client={clients} admin={admin}{nodes}\n"))
}

/// Request to this process by a signal.
#[derive(Clone, Copy, PartialEq, Eq)]
enum SignalRequest {
    /// SIGTERM or SIGINT. The first drains the node, the second ends it at once.
    End,
    /// SIGHUP.
    Reload,
}

/// A request to the main thread, once there is a node.
enum Request {
    End,
    Reload,
    /// An engine thread is lost: the node is to end at once.
    EndFailed(EngineFailure),
}

struct SignalRequests {
    queue: Receiver<SignalRequest>,
    /// A reload was requested before there was a node.
    has_early_reload: Cell<bool>,
}

impl SignalRequests {
    fn start() -> io::Result<Self> {
        let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP])?;
        let (send, queue) = bounded(REQUESTS_MAX);
        std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
            for signal in signals.forever() {
                let request = if signal == SIGHUP { SignalRequest::Reload } else { SignalRequest::End };
                // A full queue already holds the same request, unless this is the first to end.
                if send.try_send(request).is_err() && request == SignalRequest::End {
                    let _nobody_waits = send.send(request);
                }
            }
        })?;
        Ok(Self { queue, has_early_reload: Cell::new(false) })
    }

    /// Runs `start`, which may wait for a store or a disk, on a thread of its own. `None` where a signal to end comes
    /// first; `start` is then left behind, and ends with the process.
    fn until_started<T: Send + 'static>(
        &self,
        start: impl FnOnce() -> T + Send + 'static,
    ) -> Result<Option<T>, CommandError> {
        let (send, started) = bounded(1);
        std::thread::Builder::new()
            .name("start".to_owned())
            .spawn(move || _ = send.send(start()))
            .map_err(CommandError::failed)?;
        loop {
            select! {
                recv(started) -> node => {
                    return node.map(Some).map_err(|_| CommandError::failed("the start of the node has panicked"));
                }
                recv(self.queue) -> request => match request.map_err(|_| no_signals())? {
                    SignalRequest::End => return Ok(None),
                    SignalRequest::Reload => self.has_early_reload.set(true),
                }
            }
        }
    }

    fn next(&self, node: &Node) -> Result<Request, CommandError> {
        if self.has_early_reload.take() {
            return Ok(Request::Reload);
        }
        select! {
            recv(self.queue) -> request => match request.map_err(|_| no_signals())? {
                SignalRequest::End => Ok(Request::End),
                SignalRequest::Reload => Ok(Request::Reload),
            },
            recv(node.engine_failures()) -> failure => match failure {
                Ok(failure) => Ok(Request::EndFailed(failure)),
                Err(_) => Err(CommandError::failed("every engine thread has stopped")),
            },
        }
    }

    /// Tests whether another request to end has come. Requests to reload are dropped.
    fn has_end(&self) -> bool {
        self.queue.try_iter().any(|request| request == SignalRequest::End)
    }
}

fn no_signals() -> CommandError {
    CommandError::failed("the thread that waits for signals has stopped")
}

/// Requests that wait while another runs. A reload may take as long as two full reads of the store.
const REQUESTS_MAX: usize = 8;
