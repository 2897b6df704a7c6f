//! A look at the addresses of this machine, before anything listens.

use std::collections::HashSet;
use std::fs;
use std::net::{IpAddr, SocketAddr};

use nix::ifaddrs::getifaddrs;
use nix::sys::socket::SockaddrStorage;

use crate::config::{Config, KeyProblem};

/// Returns a problem for each address to listen on that is not one of this machine's. Opens no listener.
pub fn check(config: &Config) -> Vec<KeyProblem> {
    let Ok(interfaces) = getifaddrs() else { return Vec::new() };
    let own: HashSet<IpAddr> = interfaces.filter_map(|each| ip(&each.address?)).collect();
    let clients = config.listen.iter().enumerate();
    let clients = clients.map(|(place, listen)| (format!("listen.{place}.address"), listen.address));
    let nodes = config.forward.listen.map(|address| ("forward.listen".to_owned(), address));
    let admin = ("admin.address".to_owned(), config.admin.address);
    let health = config.admin.health_address.map(|address| ("admin.health_address".to_owned(), address));
    clients
        .chain(nodes)
        .chain([admin])
        .chain(health)
        .filter_map(|(key, address)| problem(key, address, &own))
        .collect()
}

fn problem(key: String, address: SocketAddr, own: &HashSet<IpAddr>) -> Option<KeyProblem> {
    let ip = address.ip().to_canonical();
    let is_usable = ip.is_unspecified() || ip.is_loopback() || own.contains(&ip) || may_listen_anywhere(ip);
    let problem = || {
        format!("{ip} is no address of this machine, so nothing can listen on it; `ip address` lists them")
    };
    (!is_usable).then(|| KeyProblem { key, problem: problem() })
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
