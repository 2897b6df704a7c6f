//! `sluicegate run`: the relay, until a signal ends it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tracing_subscriber::EnvFilter;

use super::Loaded;
use super::output::{CommandError, print};
use crate::config::{Log, LogFormat, LogLevel, StoreUrl};
use crate::node::{Drained, Node};
use crate::store::sqlite::Admin;

pub fn run(loaded: &Loaded) -> Result<(), CommandError> {
    let config = &loaded.config;
    start_log(&config.log);
    if loaded.file.is_none() {
        create_embedded_store(&config.store.url)?;
    }
    let signals = SignalCount::start().map_err(CommandError::failed)?;
    let node = Node::start(config.clone()).map_err(CommandError::failed)?;
    announce(&node)?;
    signals.wait_for_one();
    tracing::info!(patience = ?config.timeouts.drain, "draining; another signal ends it at once");
    match node.drain(config.timeouts.drain, || signals.count() > 1) {
        Drained::Empty => tracing::info!("drained; the last session has ended"),
        Drained::Left(sessions) => tracing::warn!(sessions, "timeouts.drain is over; ending what is left"),
        Drained::Interrupted => tracing::warn!("a second signal; ending what is left"),
    }
    node.stop();
    Ok(())
}

/// Starts the log on stderr; `RUST_LOG` goes before the configuration.
fn start_log(log: &Log) {
    let level = match log.level {
        LogLevel::Error => "error",
        LogLevel::Warn => "warn",
        LogLevel::Info => "info",
        LogLevel::Debug => "debug",
        LogLevel::Trace => "trace",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match log.format {
        LogFormat::Text => builder.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).init(),
        LogFormat::Json => builder.json().init(),
    }
}

/// Nobody configured anything, so nobody is asked to run `store init` either.
fn create_embedded_store(url: &StoreUrl) -> Result<(), CommandError> {
    let StoreUrl::Sqlite(path) = url;
    if !path.exists() {
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

/// How often this process was asked to end.
struct SignalCount {
    count: Arc<AtomicUsize>,
}

impl SignalCount {
    fn start() -> std::io::Result<Self> {
        let count = Arc::new(AtomicUsize::new(0));
        let mut signals = Signals::new([SIGTERM, SIGINT])?;
        let counted = Arc::clone(&count);
        std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
            for _signal in signals.forever() {
                counted.fetch_add(1, Ordering::Relaxed);
            }
        })?;
        Ok(Self { count })
    }

    fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    fn wait_for_one(&self) {
        while self.count() == 0 {
            std::thread::sleep(SIGNAL_LOOK);
        }
    }
}

const SIGNAL_LOOK: Duration = Duration::from_millis(50);
