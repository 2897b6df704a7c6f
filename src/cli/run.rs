//! `sluicegate run`: runs the relay until a signal ends it.

use std::io;

use crossbeam::channel::{Receiver, bounded, select};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::Loaded;
use super::doctor;
use super::log;
use super::output::{CommandError, print};
use super::reloader::Reloader;
use super::systemd::ServiceReporter;
use crate::admin::{NodeRequest, NodeRequests};
use crate::config::StoreUrl;
use crate::engine::Inherited;
use crate::node::{Drained, Node};
use crate::store::sqlite;

pub fn run(loaded: &Loaded) -> Result<(), CommandError> {
    let config = &loaded.config;
    let log = log::start(&config.log).map_err(CommandError::failed)?;
    if loaded.file.is_none() {
        create_embedded_store(&config.store.url)?;
    }
    let (requests, queue) = NodeRequests::new();
    let ends = EndRequests::start(requests.clone()).map_err(CommandError::failed)?;
    let inherited = Inherited::take().map_err(CommandError::failed)?;
    let node = Node::start_on(inherited, config.clone(), loaded.tls.clone(), requests.clone())
        .map_err(CommandError::failed)?;
    doctor::log_limits(config);
    announce(&node)?;
    let service = ServiceReporter::start(&node).map_err(CommandError::failed)?;
    let mut reloader = Reloader { file: loaded.file.as_deref(), config: config.clone(), log };
    while let Some(NodeRequest::Reload(number)) = next_request(&ends, &queue)? {
        service.reloading(|| {
            let outcome = reloader.reload(&node);
            requests.record(number, outcome.map_err(|error| error.to_string()));
        });
    }
    service.stopping();
    let patience = reloader.config.timeouts.drain;
    tracing::info!(?patience, "draining; another signal stops the relay at once");
    match node.drain(patience, || ends.has_next()) {
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

/// Waits for the next request; `None` where it is to end.
fn next_request(
    ends: &EndRequests,
    requests: &Receiver<NodeRequest>,
) -> Result<Option<NodeRequest>, CommandError> {
    select! {
        recv(ends.signals) -> end => match end {
            Ok(()) => Ok(None),
            Err(_) => Err(CommandError::failed("the thread that waits for signals has stopped")),
        },
        // There are senders as long as the node runs.
        recv(requests) -> request => Ok(request.ok()),
    }
}

/// Requests to end this process, by SIGTERM or SIGINT: the first drains the node, the second ends it at once.
struct EndRequests {
    signals: Receiver<()>,
}

impl EndRequests {
    /// Starts the thread that waits for signals. SIGHUP becomes a request to reload.
    fn start(requests: NodeRequests) -> io::Result<Self> {
        let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP])?;
        let (send, ends) = bounded(END_REQUESTS_MAX);
        std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
            for signal in signals.forever() {
                // Where many reloads wait already, they do what this one would.
                if signal == SIGHUP {
                    let _waits_already = requests.reload();
                } else {
                    let _has_enough = send.try_send(());
                }
            }
        })?;
        Ok(Self { signals: ends })
    }

    /// Tests whether another request has come.
    fn has_next(&self) -> bool {
        self.signals.try_recv().is_ok()
    }
}

/// The first request, and the one that ends a drain.
const END_REQUESTS_MAX: usize = 2;
