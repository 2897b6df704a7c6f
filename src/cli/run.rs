//! `sluicegate run`: runs the relay until a signal ends it.

use std::io;

use crossbeam::channel::{Receiver, bounded};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::Loaded;
use super::doctor;
use super::log;
use super::output::{CommandError, print};
use super::reload::Reload;
use super::systemd::ServiceReporter;
use crate::config::StoreUrl;
use crate::engine::Inherited;
use crate::node::{Drained, Node};
use crate::store::sqlite;

pub fn run(loaded: &Loaded) -> Result<(), CommandError> {
    let config = &loaded.config;
    let log = log::start(&config.log)?;
    if loaded.file.is_none() {
        create_embedded_store(&config.store.url)?;
    }
    let requests = SignalRequests::start().map_err(CommandError::failed)?;
    let inherited = Inherited::take().map_err(CommandError::failed)?;
    let node = Node::start_on(inherited, config.clone(), loaded.tls.clone()).map_err(CommandError::failed)?;
    doctor::log_limits(config);
    announce(&node)?;
    let service = ServiceReporter::start(&node).map_err(CommandError::failed)?;
    let mut reload = Reload { file: loaded.file.as_deref(), config: config.clone(), log };
    while requests.next()? == SignalRequest::Reload {
        service.reloading(|| reload.reload(&node));
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

struct SignalRequests {
    queue: Receiver<SignalRequest>,
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
        Ok(Self { queue })
    }

    fn next(&self) -> Result<SignalRequest, CommandError> {
        self.queue.recv().map_err(|_| CommandError::failed("the thread that waits for signals has stopped"))
    }

    /// Tests whether another request to end has come. Requests to reload are dropped.
    fn has_end(&self) -> bool {
        self.queue.try_iter().any(|request| request == SignalRequest::End)
    }
}

/// Requests that wait while another runs. A reload may take as long as two full reads of the store.
const REQUESTS_MAX: usize = 8;
