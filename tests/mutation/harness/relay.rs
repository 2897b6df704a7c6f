//! A relay in this process, on the database of a scene.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use sluicegate::authz::{Decision, Query, Refusal, UnixMillis};
use sluicegate::config::{Audit, Authz, Config, EngineConfig, Limits, Listen, SelfProbeConfig, Vpn};
use sluicegate::engine::EngineError;
use sluicegate::node::{Node, NodeError};
use sluicegate::store::Relation;
use sluicegate::sys::ring::RingError;

use super::bed::Scene;
use super::rights::{HERE, Question, Verdict};
use crate::support::store_at;

/// True where the guard is on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Guard {
    On,
    Off,
}

pub struct RunningRelay {
    node: Node,
}

impl RunningRelay {
    pub fn start(scene: &Scene<'_>, guard: Guard, probe_port: u16, read_every: Duration) -> Self {
        let authz = Authz {
            refresh: Duration::from_millis(10),
            reconcile: read_every,
            reread: read_every,
            queries: scene.queries(),
            state: Some(scene.state_folder()),
            ..Authz::default()
        };
        let any_port = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut config = Config {
            store: store_at(&scene.url()),
            listen: vec![Listen { address: any_port, ..Listen::default() }],
            engine: EngineConfig { threads: 1, pipes: 8, buffers: 64, ..EngineConfig::default() },
            // Clients show tokens that were deleted.
            limits: Limits { unknown_tokens_per_minute: 0, ..Limits::default() },
            vpn: Vpn { node: Some(HERE.to_owned()), ..Vpn::loopback() },
            probe: SelfProbeConfig { interval: Duration::ZERO, ..SelfProbeConfig::default() },
            audit: Audit { path: None, journald: false, ..Audit::default() },
            authz,
            ..Config::default()
        };
        config.admin.address = any_port;
        config.authz.guard.enabled = guard == Guard::On;
        config.authz.guard.probe_port = probe_port;
        Self { node: started(&config) }
    }

    pub fn address(&self) -> SocketAddr {
        self.node.client_addresses()[0]
    }

    /// The decision of the engine.
    pub fn decide(&self, question: &Question) -> Verdict {
        let Question { key, uuid, port } = *question;
        let query = Query { subject: Some(key.into()), device: Some(uuid), port };
        match self.node.authority().pin().decide(&query, UnixMillis::now()) {
            Decision::Allow(route) => Verdict::Allow(route.address),
            Decision::Refuse(Refusal::DeviceDisputed) => Verdict::Disputed,
            Decision::Refuse(_) | Decision::Undecided(_) => Verdict::Refuse,
        }
    }

    /// Waits until a relation has been read so many times more, with or without success. False where it is not read any
    /// more.
    pub fn is_read(&self, relation: Relation, times: usize) -> bool {
        let give_up_at = Instant::now() + PATIENCE;
        let mut stamp = self.stamp(relation);
        let mut left = times;
        while left > 0 {
            if Instant::now() > give_up_at {
                return false;
            }
            std::thread::sleep(Duration::from_millis(1));
            let now = self.stamp(relation);
            left -= usize::from(now != stamp);
            stamp = now;
        }
        true
    }

    /// The guard's view, for people who look for the cause of a failure.
    pub fn holds(&self) -> String {
        let held = self.node.status().get().held;
        held.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    }

    /// True where probation has undone something.
    pub fn has_undone(&self) -> bool {
        self.node.status().get().rollbacks > 0
    }

    /// Changes with each read of a relation.
    fn stamp(&self, relation: Relation) -> Option<(Option<UnixMillis>, u64)> {
        let status = self.node.status().get();
        let its = status.relations.iter().find(|status| status.relation == relation.name())?;
        Some((its.read_at, its.errors))
    }
}

/// Starts a node. The kernel counts the memory of rings that were closed a moment ago as locked, so a start may fail for
/// lack of it; then it is tried again.
fn started(config: &Config) -> Node {
    let give_up_at = Instant::now() + PATIENCE;
    loop {
        match Node::start(config.clone()) {
            Ok(node) => return node,
            Err(NodeError::Engine(EngineError::Ring(RingError::Memory))) if Instant::now() < give_up_at => {
                std::thread::sleep(Duration::from_millis(50));
            }
            Err(error) => panic!("the relay does not start: {error}"),
        }
    }
}

/// Longest wait for a read.
const PATIENCE: Duration = Duration::from_secs(20);
