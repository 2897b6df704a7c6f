//! `[engine]`, `[limits]` and `[timeouts]`: the resources of the engine threads, and the bounds of sessions.

use std::time::Duration;

use serde::Deserialize;

/// The section `[engine]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EngineConfig {
    /// Engine threads; 0 means one per CPU that this process may use.
    pub threads: usize,
    pub forwarding: Forwarding,
    pub kernel_tls: KernelTls,
    /// Time that a thread which was busy a moment ago spins before it sleeps; 0 turns it off.
    #[serde(with = "humantime_serde")]
    pub busy_poll: Duration,
    /// Capacity of one splice pipe, in bytes; the kernel rounds up to a power of two of pages.
    pub pipe_bytes: usize,
    /// Pipes that one thread may hold, in use and pooled.
    pub pipes: usize,
    /// Receive buffers of 4 KiB that one thread shares among its sessions; a power of two, at most 32768.
    pub buffers: u16,
}

/// The path of the bytes. Values other than `auto` exist to compare the paths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Forwarding {
    /// Copy first, splice once a direction streams.
    Auto,
    Copy,
    Splice,
    /// The ring's own splice operation, which the kernel always runs on a worker thread.
    RingSplice,
}

/// The place where the records of a TLS tunnel are opened and sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KernelTls {
    /// The kernel opens and seals them, where it can.
    Auto,
    /// The relay opens and seals them.
    Off,
}

/// The section `[limits]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Sessions on this node, from accept to close. Each holds up to 288 KiB while its reader stalls.
    pub sessions: u32,
    pub sessions_per_principal: u32,
    pub sessions_per_device: u32,
    /// Sessions of one IPv4 /24 or IPv6 /64 that have not sent a whole head; for further ones the oldest gives way. 0 is no
    /// bound.
    pub heads_per_network: u32,
    /// Unknown tokens that one IPv4 /24 or IPv6 /64 may show per minute; further ones get 429. 0 is no bound.
    pub unknown_tokens_per_minute: u32,
}

/// The section `[timeouts]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Timeouts {
    /// Time from accept to the end of the head.
    #[serde(with = "humantime_serde")]
    pub head: Duration,
    /// Time from the decision to the connection with the device.
    #[serde(with = "humantime_serde")]
    pub connect: Duration,
    /// Time without a byte in either direction, after which a tunnel ends.
    #[serde(with = "humantime_serde")]
    pub idle: Duration,
    /// Time without a byte after one direction has ended, after which a tunnel ends where no side is slow.
    #[serde(with = "humantime_serde")]
    pub half_closed: Duration,
    /// Time from the begin of a drain in which new clients are still served, while `/readyz` says 503.
    #[serde(with = "humantime_serde")]
    pub lame_duck: Duration,
    /// Time from the end of `lame_duck` to the end of the tunnels that are still open, where the node is to stop.
    #[serde(with = "humantime_serde")]
    pub drain: Duration,
    /// Time after a hand-over for which the old process keeps the tunnels that could not move.
    #[serde(with = "humantime_serde")]
    pub linger: Duration,
    /// Time that a peer has to answer a forwarded request, its own dial included.
    #[serde(with = "humantime_serde")]
    pub forward: Duration,
    /// Silence after which TCP probes the other end, for clients and devices. The kernel counts whole seconds.
    #[serde(with = "humantime_serde")]
    pub keepalive: Duration,
    /// Time that a client or a device may answer nothing before it counts as gone. One that answers and does not read
    /// is slow, and waits until `idle`.
    #[serde(with = "humantime_serde")]
    pub user_timeout: Duration,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            threads: 0,
            forwarding: Forwarding::Auto,
            kernel_tls: KernelTls::Auto,
            busy_poll: Duration::from_micros(50),
            pipe_bytes: 256 * 1024,
            pipes: 512,
            buffers: 1024,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            sessions: 8_000,
            sessions_per_principal: 4_000,
            sessions_per_device: 1_000,
            heads_per_network: 1_000,
            unknown_tokens_per_minute: 60,
        }
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            head: Duration::from_secs(10),
            connect: Duration::from_secs(5),
            idle: Duration::from_secs(3600),
            half_closed: Duration::from_secs(60),
            lame_duck: Duration::from_secs(5),
            drain: Duration::from_secs(30),
            linger: Duration::from_secs(24 * 3600),
            forward: Duration::from_secs(7),
            keepalive: Duration::from_secs(60),
            user_timeout: Duration::from_secs(60),
        }
    }
}
