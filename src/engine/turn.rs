//! One turn of an engine thread: its time, its view, and the parts of the thread that sessions use.

use super::kernel::Kernel;
use super::kernel::io::Io;
use super::peer_pool::{PeerPool, PoolCx};
use super::shared::Shared;
use super::timers::Instant;
use super::tls::handshake_pool::HandshakePool;
use super::tls::scratch::ScratchMemory;
use super::user_data::{InFlight, Slot};
use crate::authz::{DecisionLog, PinnedView};
use crate::config::Config;
use crate::telemetry::{EngineCounters, ListenerCounters, UsageTable};

/// The context of a turn. The worker builds it once per turn and lends it to each session that acts.
pub(super) struct TurnCx<'a, K: Kernel> {
    pub kernel: &'a mut K,
    pub handshakes: &'a mut HandshakePool,
    pub peers: &'a mut PeerPool<K>,
    /// Memory for TLS records.
    pub scratch: &'a mut ScratchMemory,
    pub now: Instant,
    pub view: &'a PinnedView<'a>,
    pub shared: &'a Shared,
    /// The configuration in force.
    pub config: &'a Config,
    pub counters: &'a EngineCounters,
    /// Use of this thread's tunnels since it was asked last.
    pub usage: &'a mut UsageTable,
    pub decision_log: &'a DecisionLog,
    /// Time since which the store knows what has ended; see `Authority::ended_at_us`.
    pub ended_at_us: u64,
}

impl<K: Kernel> TurnCx<'_, K> {
    /// The node counts who uses how much.
    pub fn counts_usage(&self) -> bool {
        !self.config.usage.interval.is_zero()
    }

    /// Counts a session that begins in this process; the index of its listener is known.
    pub fn count_begin(&self, listener: u32) {
        self.counters.sessions.active.add(1);
        self.count_at(listener, |counters| counters.active.add(1));
    }

    /// Counts a session that ends, or leaves this process.
    pub fn count_end(&self, listener: u32) {
        self.counters.sessions.active.sub(1);
        self.count_at(listener, |counters| counters.active.sub(1));
    }

    /// Counts something of the clients of a listener, by its index.
    pub fn count_at(&self, listener: u32, count: impl FnOnce(&ListenerCounters)) {
        if let Some(counters) = self.counters.listeners.get(listener as usize) {
            count(counters);
        }
    }

    /// The kernel, for the session in `slot`.
    pub fn io<'b>(&'b mut self, in_flight: &'b mut InFlight, slot: Slot) -> Io<'b, K> {
        Io { kernel: self.kernel, slot, in_flight, counters: &self.counters.hot }
    }

    /// Runs `act` on the pool of peer connections. A panic in it drops all connections of the pool, and no session.
    pub fn with_peer_pool<T>(
        &mut self,
        act: impl FnOnce(&mut PeerPool<K>, &mut PoolCx<'_, K>) -> T,
    ) -> Option<T> {
        let (peers, mut pool) = self.peer_pool();
        peers.guarded(&mut pool, act)
    }

    /// The pool of peer connections, with the parts of the thread that it needs.
    fn peer_pool(&mut self) -> (&mut PeerPool<K>, PoolCx<'_, K>) {
        let cx = PoolCx { kernel: self.kernel, handshakes: self.handshakes, now: self.now.tick() };
        (self.peers, cx)
    }
}
