//! `[admin]`, `[probe]`, `[audit]` and `[log]`: the sections for operating a node.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use super::CanaryUuid;

/// The section `[admin]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Admin {
    pub address: SocketAddr,
    /// An address that serves `/livez` and `/readyz` alone, for load balancers. `None` opens none.
    pub health_address: Option<SocketAddr>,
    /// The local socket, for commands that change something or show sessions. Only this user's processes may open it.
    /// Loading a configuration sets it to `admin.sock` in the state folder where it is absent; `None` opens none.
    pub socket: Option<PathBuf>,
    /// A group whose members may open the socket too.
    pub socket_group: Option<String>,
    /// A file with the token for changes and for the list of sessions over TCP. Without it, the admin address is
    /// read-only.
    pub token_file: Option<PathBuf>,
}

/// The self probe: the node as a client of its own listener.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SelfProbeConfig {
    /// Time between two probes; 0 turns them off.
    #[serde(with = "humantime_serde")]
    pub interval: Duration,
    /// The uuid of a device to open a tunnel to. Without it, a probe ends with the decision.
    pub device: Option<CanaryUuid>,
    pub port: u16,
    /// A file with a token that may reach the device, read for each probe.
    pub token_file: Option<PathBuf>,
}

/// The destinations of audit events. Each one that is set gets every event.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Audit {
    /// A file that gets one JSON object per line. It is opened again on SIGHUP.
    pub path: Option<PathBuf>,
    /// Writes events to the system's journal, with a field for each member.
    pub journald: bool,
    /// Refusals of one IPv4 address or IPv6 /64 in 10 s that are written one by one; further ones are summed up.
    pub refusals_per_source: u32,
}

/// The section `[log]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    pub level: LogLevel,
    pub format: LogFormat,
    /// Writes to the system's journal, with fields, instead of stderr.
    pub journald: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    Text,
    Json,
}

impl Default for Admin {
    fn default() -> Self {
        Self {
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, 9128)),
            health_address: None,
            socket: None,
            socket_group: None,
            token_file: None,
        }
    }
}

impl Default for SelfProbeConfig {
    fn default() -> Self {
        Self { interval: Duration::from_secs(30), device: None, port: DEVICE_PORT, token_file: None }
    }
}

impl Default for Audit {
    fn default() -> Self {
        Self { path: None, journald: false, refusals_per_source: 100 }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { level: LogLevel::Info, format: LogFormat::Text, journald: false }
    }
}

/// Port of the SSH server on a balenaOS device.
const DEVICE_PORT: u16 = 22_222;
