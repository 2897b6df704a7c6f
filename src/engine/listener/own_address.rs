//! The addresses of this machine, and those to listen on that it does not have (yet).

use std::collections::HashSet;
use std::fs;
use std::net::{IpAddr, SocketAddr};

use nix::ifaddrs::getifaddrs;
use nix::sys::socket::SockaddrStorage;

/// Those of `addresses` that this machine does not have, so that nobody can connect to them. Empty where that cannot be
/// found out. An address that the kernel lets a program listen on before it comes (`ip_nonlocal_bind`, as with
/// keepalived) is expected to come and go.
pub fn not_here(addresses: impl IntoIterator<Item = SocketAddr>) -> Vec<IpAddr> {
    let candidates = addresses.into_iter().map(|address| address.ip().to_canonical());
    let candidates: Vec<IpAddr> = candidates.filter(|ip| !ip.is_unspecified() && !ip.is_loopback()).collect();
    if candidates.is_empty() {
        return Vec::new();
    }
    let Ok(interfaces) = getifaddrs() else { return Vec::new() };
    let own: HashSet<IpAddr> = interfaces.filter_map(|each| ip(&each.address?)).collect();
    candidates.into_iter().filter(|ip| !own.contains(ip) && !may_listen_anywhere(*ip)).collect()
}

fn ip(address: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
    v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
}

/// True where the kernel lets a program listen on an address that comes later, such as one of keepalived.
fn may_listen_anywhere(ip: IpAddr) -> bool {
    let family = if ip.is_ipv4() { "ipv4" } else { "ipv6" };
    let setting = fs::read_to_string(format!("/proc/sys/net/{family}/ip_nonlocal_bind"));
    setting.is_ok_and(|value| value.trim() == "1")
}
