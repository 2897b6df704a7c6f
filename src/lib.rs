//! A relay node for device tunnels.
//!
//! A client opens an authenticated HTTP CONNECT to `<device uuid>.balena:<port>`. The node decides in memory whether
//! the client may reach that device and port, dials the device's VPN-side address, and moves bytes both ways.
//!
//! Each module imports only from those below it in this list. `ARCHITECTURE.md` shows the ways through them.
#![deny(clippy::unwrap_used)]

/// Version of this build. `make deb` adds the day and the commit, such as `0.1.0+20261130.545e576a1b2c`.
pub const VERSION: &str = match option_env!("SLUICEGATE_VERSION") {
    Some(version) => version,
    None => env!("CARGO_PKG_VERSION"),
};

pub mod cli;

pub mod node;

pub mod admin;

pub mod handover;

pub mod control;

pub mod usage;

pub mod engine;

pub mod store;

pub mod telemetry;

pub mod authz;

pub mod wire;

pub mod config;

pub mod sys;
