//! Says to the other nodes that this one lives and how many devices it holds, and hears when they last did.
//!
//! On a thread of its own: a slow store must not keep revocations waiting. What was heard last stays in force
//! while the store cannot be read.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded};

use super::refresh::jittered;
use crate::authz::{Authority, Directory, Generation, Holds, NodeEntry};
use crate::config::Config;
use crate::store::{NodeTable, Nodes, StoreError};

/// The thread; dropping it ends it.
pub struct HeartbeatThread {
    /// Dropped to end the thread; nothing is ever sent.
    end: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
    errors: Arc<AtomicU64>,
}

impl HeartbeatThread {
    /// For a node that takes others' requests at `forward`, or, where it takes none, for nobody.
    pub fn start(
        table: Box<dyn NodeTable>,
        authority: Arc<Authority>,
        forward: Option<SocketAddr>,
        config: &Config,
    ) -> io::Result<Self> {
        let errors = Arc::<AtomicU64>::default();
        let (Some(forward), Some(name)) = (forward, &config.vpn.node) else {
            return Ok(Self { end: None, thread: None, errors });
        };
        let mut keeper = Heartbeat {
            table,
            authority,
            name: name.clone(),
            forward,
            heartbeat: config.forward.heartbeat,
            refresh: config.forward.refresh,
            errors: Arc::clone(&errors),
            counted: Counted::default(),
            trouble: None,
            bad: Vec::new(),
        };
        let (end, ended) = bounded(0);
        let thread = std::thread::Builder::new().name("directory".to_owned());
        let thread = thread.spawn(move || keeper.run(&ended))?;
        Ok(Self { end: Some(end), thread: Some(thread), errors })
    }

    /// Reads and writes that failed so far.
    pub fn errors(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.errors)
    }
}

impl Drop for HeartbeatThread {
    fn drop(&mut self) {
        self.end.take();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!(
                "the thread that keeps the directory of nodes ended by a panic; please report it"
            );
        }
    }
}

struct Heartbeat {
    table: Box<dyn NodeTable>,
    authority: Arc<Authority>,
    name: String,
    forward: SocketAddr,
    heartbeat: Duration,
    refresh: Duration,
    errors: Arc<AtomicU64>,
    counted: Counted,
    /// What was told of last.
    trouble: Option<String>,
    bad: Vec<String>,
}

/// How many devices this node held when it last looked.
#[derive(Clone, Copy, Default)]
struct Counted {
    generation: Option<Generation>,
    devices: usize,
}

impl Heartbeat {
    fn run(&mut self, ended: &Receiver<()>) {
        let mut heartbeat_at = Instant::now();
        loop {
            let before = self.counted.devices;
            self.count();
            // Others may be waiting for this node's word that devices are gone.
            let done = if Instant::now() >= heartbeat_at || self.counted.devices < before {
                heartbeat_at = Instant::now() + self.heartbeat;
                let devices = self.authority.is_store_reachable().then_some(self.counted.devices);
                self.table.write(&self.name, self.forward, devices).and_then(|()| self.read())
            } else {
                self.read()
            };
            if done.is_err() {
                // The sign of life comes with the next try, not only when it is due again.
                heartbeat_at = Instant::now();
            }
            self.note(done);
            if ended.recv_timeout(jittered(self.refresh)) != Err(RecvTimeoutError::Timeout) {
                return;
            }
        }
    }

    /// Anew only where something else is in force than when it last did.
    fn count(&mut self) {
        let view = self.authority.pin();
        let Some(view) = view.get() else { return };
        let generation = Some(view.snapshot.generation());
        if generation != self.counted.generation {
            self.counted = Counted { generation, devices: view.snapshot.reached_by(&self.name) };
        }
    }

    fn read(&mut self) -> Result<(), StoreError> {
        let Nodes { nodes, bad } = self.table.read()?;
        let now = Instant::now();
        let entries = nodes.into_iter().map(|node| {
            let age = Duration::from_millis(u64::try_from(node.age_ms).unwrap_or(0));
            let holds = node.devices.zip(now.checked_sub(age));
            let holds = holds.map(|(devices, readable_since)| Holds { devices, readable_since });
            (node.name, NodeEntry { forward: node.forward, age, holds })
        });
        self.authority.directory().replace(Directory::new(entries));
        for row in bad.iter().filter(|row| !self.bad.contains(row)) {
            tracing::warn!("{row}; nothing is forwarded to it");
        }
        self.bad = bad;
        Ok(())
    }

    fn note(&mut self, done: Result<(), StoreError>) {
        match (done, &self.trouble) {
            (Ok(()), None) => {}
            (Ok(()), Some(_)) => {
                self.trouble = None;
                tracing::info!("the directory of nodes can be kept again");
            }
            (Err(error), told) => {
                self.errors.fetch_add(1, Ordering::Relaxed);
                let error = error.to_string();
                if told.as_ref() != Some(&error) {
                    tracing::warn!("the directory of nodes cannot be kept: {error}");
                    self.trouble = Some(error);
                }
            }
        }
    }
}
