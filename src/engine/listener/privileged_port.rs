//! Ports that a process needs a capability for, and what is to be said where it has none.

use std::fs;
use std::io;
use std::net::SocketAddr;

/// Those of `addresses` on whose ports this process may not listen. Empty where that cannot be found out.
pub fn not_permitted(addresses: impl IntoIterator<Item = SocketAddr>) -> Vec<SocketAddr> {
    let Some(first_free) = first_free_port() else { return Vec::new() };
    if has_capability() {
        return Vec::new();
    }
    let is_privileged = |address: &SocketAddr| (1..first_free).contains(&address.port());
    addresses.into_iter().filter(is_privileged).collect()
}

/// What to do about a listener that cannot be opened.
pub fn advice(address: SocketAddr, error: &io::Error) -> String {
    let first_free = first_free_port().filter(|first| (1..*first).contains(&address.port()));
    match first_free {
        Some(first) if error.kind() == io::ErrorKind::PermissionDenied => format!(
            "ports below {first} need CAP_NET_BIND_SERVICE from the start of the relay on; give it that \
             (AmbientCapabilities= of its unit), or have a socket unit open the port"
        ),
        _ => "does another process use it?".to_owned(),
    }
}

/// The first port that needs no capability.
fn first_free_port() -> Option<u16> {
    let text = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").ok()?;
    text.trim().parse().ok()
}

/// True unless this process is known to have no CAP_NET_BIND_SERVICE.
fn has_capability() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok());
    effective.is_none_or(|bits| bits & NET_BIND_SERVICE != 0)
}

/// The bit of CAP_NET_BIND_SERVICE, capabilities(7).
const NET_BIND_SERVICE: u64 = 1 << 10;
