//! Writes this node's heartbeat with its number of devices to the store, and reads those of the other nodes.
//!
//! On a thread of its own: a slow store must not keep revocations waiting. The directory that was read last stays
//! in force while the store cannot be read, and is kept on disk for a start without the store.
//!
//! One process at a time writes under a node's name. A second one waits as a stand-by, serves nobody, and takes over
//! once the first has ended.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::api::{HoldStatus, Rule};
use super::kept_directory::KeptDirectory;
use super::neighbours::NodeSummary;
use super::process_identity::ProcessIdentity;
use super::readers::jittered;
use super::status::StatusHandle;
use super::write_pause::WritePause;
use crate::authz::{Authority, Directory, Generation, Holds, NodeEntry};
use crate::config::Config;
use crate::store::{HeartbeatOutcome, NodeHeartbeat, NodeList, NodeTable, Rival, StoreError};
use crate::sys::service_thread::{ServiceThread, StopSignal};
use crate::telemetry::LogOnChange;

/// The thread; dropping it ends it.
pub struct HeartbeatThread {
    _thread: ServiceThread,
    counts: DirectoryErrors,
    settings: Arc<Mutex<HeartbeatSettings>>,
    pause: WritePause,
}

/// Troubles with the directory. Cheap to clone.
#[derive(Clone, Default)]
pub struct DirectoryErrors {
    /// Reads and writes that failed so far.
    pub failed: Arc<AtomicU64>,
    /// 1 while another process wants this node's name.
    pub rivals: Arc<AtomicU64>,
}

impl HeartbeatThread {
    /// Starts the thread for a node that takes requests of peers at `forward`. Without an address there is no thread.
    /// `predecessor` is the number of the process that this one takes over from.
    pub fn start(
        table: NodeTable,
        authority: Arc<Authority>,
        status: StatusHandle,
        forward: Option<SocketAddr>,
        predecessor: Option<u32>,
        config: &Config,
    ) -> io::Result<Self> {
        let counts = DirectoryErrors::default();
        let settings = Arc::new(Mutex::new(HeartbeatSettings::new(forward, predecessor, config)));
        let pause = WritePause::default();
        let (Some(_), Some(name)) = (forward, &config.vpn.node) else {
            return Ok(Self { _thread: ServiceThread::default(), counts, settings, pause });
        };
        let kept = config.authz.state.as_deref().map(KeptDirectory::in_folder);
        if let Some(directory) = kept.as_ref().and_then(KeptDirectory::load) {
            authority.directory().replace(directory);
        }
        let mut keeper = Heartbeat {
            table,
            process: ProcessIdentity::own(),
            kept,
            has_name: false,
            authority,
            status,
            name: name.clone(),
            settings: Arc::clone(&settings),
            counts: counts.clone(),
            pause: pause.clone(),
            counted: Counted::default(),
            summary: LastSummary::default(),
            trouble: LogOnChange::default(),
            bad: LogOnChange::default(),
            name_taken: LogOnChange::default(),
            rival: LogOnChange::default(),
        };
        let thread = ServiceThread::start("directory", move |stop| keeper.run(&stop))?;
        Ok(Self { _thread: thread, counts, settings, pause })
    }

    /// The switch that leaves the writing to another process.
    pub fn write_pause(&self) -> WritePause {
        self.pause.clone()
    }

    /// Writes `forward` as this node's address, and keeps the times of `config`, from the next read on.
    pub fn reconfigure(&self, forward: Option<SocketAddr>, config: &Config) {
        self.settings.lock().replace(forward, config);
    }

    /// Takes the name from the process with this number, which has ended.
    pub fn succeed(&self, predecessor: u32) {
        self.settings.lock().predecessor = Some(predecessor);
    }

    /// What went wrong so far.
    pub fn errors(&self) -> DirectoryErrors {
        self.counts.clone()
    }
}

struct Heartbeat {
    table: NodeTable,
    authority: Arc<Authority>,
    status: StatusHandle,
    name: String,
    settings: Arc<Mutex<HeartbeatSettings>>,
    process: ProcessIdentity,
    kept: Option<KeptDirectory>,
    /// This process writes under the name.
    has_name: bool,
    counts: DirectoryErrors,
    pause: WritePause,
    counted: Counted,
    summary: LastSummary,
    trouble: LogOnChange,
    bad: LogOnChange<Vec<String>>,
    /// The process that has the name, and the address of one that wants it.
    name_taken: LogOnChange,
    rival: LogOnChange,
}

/// The settings of a heartbeat that can change while it beats.
#[derive(Clone, Copy)]
struct HeartbeatSettings {
    /// The address by which other nodes reach this one; `None` where it stands alone.
    forward: Option<SocketAddr>,
    /// Number of the process whose name this one takes.
    predecessor: Option<u32>,
    heartbeat: Duration,
    refresh: Duration,
    max_age: Duration,
}

impl HeartbeatSettings {
    fn new(forward: Option<SocketAddr>, predecessor: Option<u32>, config: &Config) -> Self {
        let crate::config::Forward { heartbeat, refresh, max_age, .. } = config.forward;
        Self { forward, predecessor, heartbeat, refresh, max_age }
    }

    fn replace(&mut self, forward: Option<SocketAddr>, config: &Config) {
        *self = Self::new(forward, self.predecessor, config);
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
            let settings = *self.settings.lock();
            let before = self.counted.devices;
            self.count();
            // Others may be waiting for this node's word that devices are gone.
            let is_due = Instant::now() >= heartbeat_at || self.counted.devices < before;
            let written = match settings.forward.filter(|_| is_due && !self.pause.is_on()) {
                Some(forward) => {
                    heartbeat_at = Instant::now() + settings.heartbeat;
                    self.beat(forward, settings)
                }
                None => Ok(()),
            };
            // A node that may not write can still find its peers.
            let done = self.read(settings.max_age).and(written);
            if done.is_err() || self.authority.is_stand_by() {
                // The sign of life comes with the next try, not only when it is due again.
                heartbeat_at = Instant::now();
            }
            self.log_outcome(done);
            self.summarise();
            if stop.is_stopped_within(jittered(settings.refresh)) {
                return self.release();
            }
        }
    }

    /// Writes a heartbeat, unless another process has the name and lives.
    fn beat(&mut self, forward: SocketAddr, settings: HeartbeatSettings) -> Result<(), StoreError> {
        let HeartbeatSettings { max_age, predecessor, .. } = settings;
        let devices = self.authority.is_store_reachable().then_some(self.counted.devices);
        let heartbeat =
            NodeHeartbeat { name: &self.name, forward, devices, process: Some(self.process.text()), max_age };
        let mut outcome = self.table.write(&heartbeat, None)?;
        if let HeartbeatOutcome::NameTaken { process } = &outcome
            && self.process.succeeds(process, predecessor)
        {
            outcome = self.table.write(&heartbeat, Some(process))?;
        }
        self.has_name = outcome == HeartbeatOutcome::Written;
        self.authority.set_stand_by(!self.has_name);
        match outcome {
            HeartbeatOutcome::Written if self.name_taken.ends() => {
                tracing::warn!("this process is {} from now on: the other one has ended", self.name);
            }
            HeartbeatOutcome::Written => {}
            HeartbeatOutcome::NameTaken { process } => {
                if self.name_taken.changes_to(process) {
                    tracing::error!(
                        "another process is {} and lives, so that this one waits as a stand-by and serves nobody; give this \
                         node another vpn.node if it is to be another node",
                        self.name
                    );
                }
            }
        }
        Ok(())
    }

    /// Gives up the name at the end, so that the next process has it at once.
    fn release(&mut self) {
        if self.has_name
            && !self.pause.is_on()
            && self.trouble.get().is_none()
            && let Err(error) = self.table.release(&self.name, self.process.text())
        {
            tracing::debug!("the name of this node cannot be given up: {error}");
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

    fn read(&mut self, max_age: Duration) -> Result<(), StoreError> {
        let NodeList { nodes, bad } = self.table.read()?;
        let now = Instant::now();
        let own = nodes.iter().find(|node| *node.name == *self.name && self.has_name);
        let is_recent = |rival: &&Rival| i128::from(rival.age_ms) <= max_age.as_millis() as i128;
        self.log_rival(
            own.and_then(|node| node.rival.as_ref()).filter(is_recent).map(|rival| &*rival.forward),
        );
        let entries = nodes.into_iter().map(|node| {
            let age = Duration::from_millis(u64::try_from(node.age_ms).unwrap_or(0));
            let holds = node.devices.zip(now.checked_sub(age));
            let holds = holds.map(|(devices, readable_since)| Holds { devices, readable_since });
            (node.name, NodeEntry { forward: node.forward, age, holds })
        });
        let directory = Directory::new(entries);
        if let Some(kept) = self.kept.as_mut().filter(|_| !self.pause.is_on()) {
            kept.keep(&directory);
        }
        self.authority.directory().replace(directory);
        for row in self.bad.new_among(bad) {
            tracing::warn!("{row}; nothing is forwarded to it");
        }
        Ok(())
    }

    /// Logs that another process wants this node's name, when it begins and when it ends.
    fn log_rival(&mut self, forward: Option<&str>) {
        self.counts.rivals.store(u64::from(forward.is_some()), Ordering::Relaxed);
        let Some(forward) = forward else {
            if self.rival.ends() {
                tracing::info!("no other process wants the name {} any more", self.name);
            }
            return;
        };
        if self.rival.changes_to(forward.to_owned()) {
            tracing::error!(
                "another process, at {forward}, has vpn.node = {} too; it waits as a stand-by, and takes over when this one \
                 ends. If it is another node, give it another name",
                self.name
            );
        }
    }

    fn log_outcome(&mut self, done: Result<(), StoreError>) {
        match done {
            Ok(()) if self.trouble.ends() => tracing::info!("the directory of nodes can be kept again"),
            Ok(()) => {}
            Err(error) => {
                self.counts.failed.fetch_add(1, Ordering::Relaxed);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_heartbeat_goes_by_the_section_that_was_read_again() {
        let mut config = Config::default();
        let second = Duration::from_secs(1);
        let mut settings = HeartbeatSettings::new(None, Some(3), &config);
        (config.forward.heartbeat, config.forward.refresh, config.forward.max_age) =
            (second, 2 * second, 3 * second);
        let advertised = Some(SocketAddr::from(([192, 0, 2, 1], 7)));
        settings.replace(advertised, &config);
        assert_eq!((settings.forward, settings.predecessor), (advertised, Some(3)));
        assert_eq!(
            (settings.heartbeat, settings.refresh, settings.max_age),
            (second, 2 * second, 3 * second)
        );
    }
}
