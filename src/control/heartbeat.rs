//! Writes this node's heartbeat with its number of devices to the store, and reads those of the other nodes.
//!
//! On a thread of its own: a slow store must not keep revocations waiting. The directory that was read last stays
//! in force while the store cannot be read.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::api::{HoldStatus, Rule};
use super::neighbours::NodeSummary;
use super::readers::jittered;
use super::status::StatusHandle;
use super::write_pause::WritePause;
use crate::authz::{Authority, Directory, Generation, Holds, NodeEntry};
use crate::config::Config;
use crate::store::{NodeList, NodeTable, StoreError};
use crate::sys::service_thread::{ServiceThread, StopSignal};
use crate::telemetry::LogOnChange;

/// The thread; dropping it ends it.
pub struct HeartbeatThread {
    _thread: ServiceThread,
    errors: Arc<AtomicU64>,
    settings: Arc<Mutex<HeartbeatSettings>>,
    pause: WritePause,
}

impl HeartbeatThread {
    /// Starts the thread for a node that takes requests of peers at `forward`. Without an address there is no thread.
    pub fn start(
        table: NodeTable,
        authority: Arc<Authority>,
        status: StatusHandle,
        forward: Option<SocketAddr>,
        config: &Config,
    ) -> io::Result<Self> {
        let errors = Arc::<AtomicU64>::default();
        let settings = Arc::new(Mutex::new(HeartbeatSettings::new(forward, config)));
        let pause = WritePause::default();
        let (Some(_), Some(name)) = (forward, &config.vpn.node) else {
            return Ok(Self { _thread: ServiceThread::default(), errors, settings, pause });
        };
        let mut keeper = Heartbeat {
            table,
            authority,
            status,
            name: name.clone(),
            settings: Arc::clone(&settings),
            errors: Arc::clone(&errors),
            pause: pause.clone(),
            counted: Counted::default(),
            summary: LastSummary::default(),
            trouble: LogOnChange::default(),
            bad: LogOnChange::default(),
        };
        let thread = ServiceThread::start("directory", move |stop| keeper.run(&stop))?;
        Ok(Self { _thread: thread, errors, settings, pause })
    }

    /// The switch that leaves the writing to another process.
    pub fn write_pause(&self) -> WritePause {
        self.pause.clone()
    }

    /// Writes `forward` as this node's address, and keeps the times of `config`, from the next read on.
    pub fn reconfigure(&self, forward: Option<SocketAddr>, config: &Config) {
        *self.settings.lock() = HeartbeatSettings::new(forward, config);
    }

    /// Reads and writes that failed so far.
    pub fn errors(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.errors)
    }
}

struct Heartbeat {
    table: NodeTable,
    authority: Arc<Authority>,
    status: StatusHandle,
    name: String,
    settings: Arc<Mutex<HeartbeatSettings>>,
    errors: Arc<AtomicU64>,
    pause: WritePause,
    counted: Counted,
    summary: LastSummary,
    trouble: LogOnChange,
    bad: LogOnChange<Vec<String>>,
}

/// The settings of a heartbeat that can change while it beats.
#[derive(Clone, Copy)]
struct HeartbeatSettings {
    /// The address by which other nodes reach this one; `None` where it stands alone.
    forward: Option<SocketAddr>,
    heartbeat: Duration,
    refresh: Duration,
}

impl HeartbeatSettings {
    fn new(forward: Option<SocketAddr>, config: &Config) -> Self {
        Self { forward, heartbeat: config.forward.heartbeat, refresh: config.forward.refresh }
    }
}

/// Number of devices that this node held at the last count.
#[derive(Clone, Copy, Default)]
struct Counted {
    generation: Option<Generation>,
    devices: usize,
}

/// The summary that was made last.
#[derive(Default)]
struct LastSummary {
    generation: Option<Generation>,
    summary: NodeSummary,
    made_at: Option<Instant>,
}

impl Heartbeat {
    fn run(&mut self, stop: &StopSignal) {
        let mut heartbeat_at = Instant::now();
        loop {
            let HeartbeatSettings { forward, heartbeat, refresh } = *self.settings.lock();
            let before = self.counted.devices;
            self.count();
            // Others may be waiting for this node's word that devices are gone.
            let is_due = Instant::now() >= heartbeat_at || self.counted.devices < before;
            let done = if is_due && !self.pause.is_on() {
                heartbeat_at = Instant::now() + heartbeat;
                let devices = self.authority.is_store_reachable().then_some(self.counted.devices);
                let written = forward.map(|forward| self.table.write(&self.name, forward, devices));
                written.unwrap_or(Ok(())).and_then(|()| self.read())
            } else {
                self.read()
            };
            if done.is_err() {
                // The sign of life comes with the next try, not only when it is due again.
                heartbeat_at = Instant::now();
            }
            self.log_outcome(done);
            self.summarise();
            if stop.is_stopped_within(jittered(refresh)) {
                return;
            }
        }
    }

    /// Counts the devices again where the generation in force has changed.
    fn count(&mut self) {
        let view = self.authority.pin();
        let Some(view) = view.get() else { return };
        let generation = Some(view.snapshot.generation());
        if generation != self.counted.generation {
            self.counted = Counted { generation, devices: view.snapshot.reached_by(&self.name) };
        }
    }

    /// Makes a summary for peers of what is in force and held, at most once in [`SUMMARY_EVERY`]: it reads every row.
    fn summarise(&mut self) {
        let in_force = {
            let view = self.authority.pin();
            view.get().map(|view| (Arc::clone(&view.snapshot), Arc::clone(&view.revocations)))
        };
        let Some((snapshot, revocations)) = in_force else { return };
        if self.summary.made_at.is_some_and(|at| at.elapsed() < SUMMARY_EVERY) {
            return;
        }
        let status = self.status.get();
        if status.held.iter().any(|held| held.rule == Rule::Peers) {
            // What this node has is no memory yet.
            return;
        }
        let held = held_groups(&status.held);
        let generation = Some(snapshot.generation());
        let is_new = generation != self.summary.generation;
        if !is_new && held == self.summary.summary.held {
            return;
        }
        if is_new {
            self.summary.summary = NodeSummary::of(&snapshot, &revocations);
        }
        self.summary.summary.held = held;
        self.authority.set_summary(self.summary.summary.encode().into());
        (self.summary.generation, self.summary.made_at) = (generation, Some(Instant::now()));
    }

    fn read(&mut self) -> Result<(), StoreError> {
        let NodeList { nodes, bad } = self.table.read()?;
        let now = Instant::now();
        let entries = nodes.into_iter().map(|node| {
            let age = Duration::from_millis(u64::try_from(node.age_ms).unwrap_or(0));
            let holds = node.devices.zip(now.checked_sub(age));
            let holds = holds.map(|(devices, readable_since)| Holds { devices, readable_since });
            (node.name, NodeEntry { forward: node.forward, age, holds })
        });
        self.authority.directory().replace(Directory::new(entries));
        for row in self.bad.new_among(bad) {
            tracing::warn!("{row}; nothing is forwarded to it");
        }
        Ok(())
    }

    fn log_outcome(&mut self, done: Result<(), StoreError>) {
        match done {
            Ok(()) if self.trouble.ends() => tracing::info!("the directory of nodes can be kept again"),
            Ok(()) => {}
            Err(error) => {
                self.errors.fetch_add(1, Ordering::Relaxed);
                if self.trouble.changes_to(error.to_string()) {
                    tracing::warn!("the directory of nodes cannot be kept: {error}");
                }
            }
        }
    }
}

/// Groups that are held, with their rows.
fn held_groups(held: &[HoldStatus]) -> Vec<(String, u64)> {
    let mut groups: Vec<(String, u64)> =
        held.iter().filter_map(|held| Some((held.group?.to_string(), held.rows as u64))).collect();
    groups.sort_unstable();
    groups
}

/// Pause between two summaries. A peer that starts compares counts within budgets, so that older ones serve as well.
const SUMMARY_EVERY: Duration = Duration::from_secs(30);
