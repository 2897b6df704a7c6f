//! The data plane: one pinned thread per CPU, each with its own ring, listeners, sessions and timers.
//!
//! Decides from the shared [`Authority`](crate::authz::Authority) and never asks a store.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::authz::Authority;
use crate::config::Config;
use crate::telemetry::{AuditSender, EngineCounters};

#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error("cannot listen on {address}: {source}; is another process there?")]
    Listen { address: SocketAddr, source: std::io::Error },
}

/// The running engine threads.
pub struct Engine {}

/// A way to command the engines from any thread. Cheap to clone.
#[derive(Clone)]
pub struct EngineHandle {}

impl Engine {
    /// Binds every listener and starts the threads; returns once all of them accept.
    pub fn start(
        config: Arc<Config>,
        authority: Arc<Authority>,
        audit: AuditSender,
    ) -> Result<Self, EngineError> {
        let _ = (config, authority, audit);
        todo!()
    }

    /// Where clients reach this node, in the order of `listen`; real ports where the config said 0.
    pub fn client_addresses(&self) -> &[SocketAddr] {
        todo!()
    }

    pub fn handle(&self) -> EngineHandle {
        todo!()
    }

    /// Ends every session and waits for the threads.
    pub fn stop(self) {
        todo!()
    }
}

impl EngineHandle {
    /// Puts every session's decision again to the view in force; tunnels that it no longer allows end.
    pub fn recheck(&self) {
        todo!()
    }

    /// From now on new clients are told that the relay drains; running tunnels go on.
    pub fn drain(&self) {
        todo!()
    }

    pub fn is_draining(&self) -> bool {
        todo!()
    }

    /// Sessions that exist now, on all threads.
    pub fn sessions_active(&self) -> u64 {
        todo!()
    }

    /// One per thread.
    pub fn counters(&self) -> &[Arc<EngineCounters>] {
        todo!()
    }
}
