//! Counters with one writer and any number of readers: an engine thread adds, a scrape sums.

use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam::utils::CachePadded;

use super::{Cause, LabelCounts, Latency, RefusalLabel, SlowestRequests, TlsHandshakeOutcome, TlsRecordsBy};

/// A count that one thread alone writes, so that adding needs no locked instruction.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`. Only the owning thread may call this; a second writer would lose counts.
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    pub fn sub(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_sub(n), Ordering::Relaxed);
    }

    /// Sets a value that goes up and down by itself.
    pub fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Counters of one engine thread, padded so that two threads never write the same cache line.
#[derive(Default)]
pub struct EngineCounters {
    pub hot: CachePadded<HotCounters>,
    pub sessions: CachePadded<SessionCounters>,
    /// Time from accept to the end of the TLS handshake, in µs.
    pub accept_to_secured: Latency,
    /// TLS handshakes by outcome.
    pub tls_handshakes: LabelCounts<TlsHandshakeOutcome>,
    /// TLS tunnels by what opens and seals their records.
    pub tls_tunnels: LabelCounts<TlsRecordsBy>,
    /// Time from accept until the kernel has the connect to the device, in µs.
    pub accept_to_dial: Latency,
    /// Time from accept to the first byte of the reply, in µs; refusals are included.
    pub accept_to_reply: Latency,
    /// Time that a decision for a new client takes, in ns.
    pub decision_ns: Latency,
    /// Time from the connect to the device to its outcome, in µs.
    pub dial: Latency,
    /// Time from handing a request to a peer to its reply, in µs.
    pub handover: Latency,
    /// Refusals by reply and true cause.
    pub refusals: LabelCounts<RefusalLabel>,
    /// Tunnels that ended, by the cause that the audit log names.
    pub ends: LabelCounts<Cause>,
    pub slowest_requests: SlowestRequests,
    /// Time from when a revocation could be read in the store to the end of a tunnel by it, in µs.
    pub revoked_to_closed: Latency,
    /// Counts by listener, in the order of the configuration's `listen`.
    pub listeners: Box<[ListenerCounters]>,
}

/// Counts of the clients of one listener.
#[derive(Debug, Default)]
pub struct ListenerCounters {
    /// Sessions that exist now.
    pub active: Counter,
    pub tunnels_opened: Counter,
    pub refused: Counter,
}

impl EngineCounters {
    pub fn for_listeners(count: usize) -> Self {
        let listeners = (0..count).map(|_| ListenerCounters::default()).collect();
        Self { listeners, ..Self::default() }
    }
}

/// Written in every turn.
#[derive(Debug, Default)]
pub struct HotCounters {
    pub turns: Counter,
    /// Times that a thread spun instead of sleeping, and work came.
    pub spins_hit: Counter,
    /// Times that a thread spun, and no work came.
    pub spins_missed: Counter,
    /// Client to device.
    pub bytes_up_copied: Counter,
    pub bytes_up_spliced: Counter,
    /// Bytes of tunnels with TLS on either side.
    pub bytes_up_tls: Counter,
    /// Device to client.
    pub bytes_down_copied: Counter,
    pub bytes_down_spliced: Counter,
    pub bytes_down_tls: Counter,
    /// Directions that went from copying to splicing.
    pub promotions: Counter,
    /// Receives that found no free buffer and had to wait for one.
    pub buffers_exhausted: Counter,
    /// Directions that wanted a pipe and kept copying because every pipe was in use.
    pub pipes_exhausted: Counter,
    /// Buffers and pipes that are with sessions at the end of the last turn.
    pub buffers_in_use: Counter,
    pub pipes_in_use: Counter,
    /// Turns that found more completions than their queue holds; the kernel keeps the rest aside.
    pub ring_overflows: Counter,
}

/// Written once or twice in a session's life.
#[derive(Debug, Default)]
pub struct SessionCounters {
    pub accepted: Counter,
    pub refused: Counter,
    pub undecided: Counter,
    /// Connections that closed without a word of their client: a load balancer looked whether the node lives.
    pub balancer_checks: Counter,
    pub tunnels_opened: Counter,
    /// Tunnels that were opened by way of a peer; `tunnels_opened` includes them.
    pub tunnels_forwarded: Counter,
    /// Requests that were handed on by a connection that was there before.
    pub pooled_connections_used: Counter,
    /// Pauses before a peer was asked again.
    pub peer_pauses: Counter,
    /// Sessions that are connections which peers keep ready.
    pub idle_peers: Counter,
    pub tunnels_closed: Counter,
    /// Sessions that exist now, from accept to close.
    pub active: Counter,
    /// Times that accept stopped because descriptors or memory had run out.
    pub accept_pauses: Counter,
    /// Connections closed with no reply because not even a refusal had room.
    pub accept_dropped: Counter,
    /// Times that the thread failed, reset its sessions and began anew.
    pub thread_restarts: Counter,
    /// Audit events that found their queue full.
    pub audit_dropped: Counter,
}
