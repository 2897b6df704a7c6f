//! `sluicegate run`: the relay, until a signal ends it.

use std::io;

use crossbeam::channel::{Receiver, bounded};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::Loaded;
use super::doctor;
use super::log;
use super::output::{CommandError, print};
use super::supervised::Supervised;
use crate::config::StoreUrl;
use crate::engine::Inherited;
use crate::node::{Drained, Node};
use crate::store::sqlite::Admin;
use crate::telemetry::AuditReopener;

pub fn run(loaded: &Loaded) -> Result<(), CommandError> {
    let config = &loaded.config;
    log::start(&config.log)?;
    if loaded.file.is_none() {
        create_embedded_store(&config.store.url)?;
    }
    let requests = EndRequests::start().map_err(CommandError::failed)?;
    let inherited = Inherited::take().map_err(CommandError::failed)?;
    let node = Node::start_on(inherited, config.clone()).map_err(CommandError::failed)?;
    reopen_on_hangup(node.audit_reopener()).map_err(CommandError::failed)?;
    doctor::warn_of_the_worst(config);
    announce(&node)?;
    let supervised = Supervised::start(&node).map_err(CommandError::failed)?;
    requests.wait()?;
    supervised.stopping();
    tracing::info!(patience = ?config.timeouts.drain, "draining; another signal ends it at once");
    match node.drain(config.timeouts.drain, || requests.has_one()) {
        Drained::Empty => tracing::info!("drained; the last session has ended"),
        Drained::Left(sessions) => tracing::warn!(sessions, "timeouts.drain is over; ending what is left"),
        Drained::Interrupted => tracing::warn!("a second signal; ending what is left"),
    }
    drop(supervised);
    node.stop();
    Ok(())
}

/// Nobody configured anything, so nobody is asked to run `store init` either.
fn create_embedded_store(url: &StoreUrl) -> Result<(), CommandError> {
    if let StoreUrl::Sqlite(path) = url
        && !path.exists()
    {
        Admin::init(path)?;
        tracing::info!(path = %path.display(), "created an empty store");
    }
    Ok(())
}

/// One line on stdout for programs that wait for the ports, one in the log for people.
fn announce(node: &Node) -> Result<(), CommandError> {
    let clients: Vec<String> = node.client_addresses().iter().map(ToString::to_string).collect();
    let (clients, admin) = (clients.join(","), node.admin_address());
    tracing::info!(%clients, %admin, "listening");
    print(&format!("ready client={clients} admin={admin}\n"))
}

/// SIGHUP says that the audit log was renamed.
fn reopen_on_hangup(reopener: AuditReopener) -> io::Result<()> {
    let mut signals = Signals::new([SIGHUP])?;
    let thread = std::thread::Builder::new().name("hangup".to_owned());
    thread.spawn(move || signals.forever().for_each(|_signal| reopener.reopen()))?;
    Ok(())
}

/// The requests to end that this process gets.
struct EndRequests {
    asked: Receiver<()>,
}

impl EndRequests {
    fn start() -> io::Result<Self> {
        let mut signals = Signals::new([SIGTERM, SIGINT])?;
        let (ask, asked) = bounded(REQUESTS_MAX);
        std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
            for _signal in signals.forever() {
                // A full queue says what one more request would say.
                let _already_full = ask.try_send(());
            }
        })?;
        Ok(Self { asked })
    }

    fn wait(&self) -> Result<(), CommandError> {
        self.asked.recv().map_err(|_| CommandError::failed("the thread that waits for signals has ended"))
    }

    fn has_one(&self) -> bool {
        !self.asked.is_empty()
    }
}

/// The first request drains, the second ends it at once; more have nothing to add.
const REQUESTS_MAX: usize = 2;
