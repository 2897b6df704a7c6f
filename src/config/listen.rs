//! `[[listen]]`: the listeners for clients.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ipnet::IpNet;
use serde::Deserialize;

use super::ListenTls;
use super::network::networks;
use crate::sys::address::any_contains;

/// One client listener, served by every engine thread.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listen {
    pub address: SocketAddr,
    /// Suffixes that may follow a uuid in the CONNECT target, without the dot.
    #[serde(default = "default_suffixes")]
    pub suffixes: Vec<String>,
    /// Networks of load balancers, which name their client by a PROXY header (version 1 or 2). Where this is set, a
    /// connection from elsewhere or without a header is refused.
    #[serde(default, deserialize_with = "networks")]
    pub proxy_from: Vec<IpNet>,
    /// The kind of its clients.
    #[serde(skip)]
    pub from: ListenerKind,
    /// TLS with the clients. Behind a load balancer it begins after the PROXY header.
    #[serde(default)]
    pub tls: Option<ListenTls>,
}

/// The clients of a listener.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ListenerKind {
    #[default]
    Client,
    /// Other nodes, with requests of their clients: the listener of `forward.listen`.
    Peer,
}

impl Listen {
    /// True where clients are behind a load balancer.
    pub fn is_proxied(&self) -> bool {
        !self.proxy_from.is_empty()
    }

    /// True where a PROXY header precedes the head.
    pub fn has_proxy_header(&self) -> bool {
        self.is_proxied() || self.from == ListenerKind::Peer
    }

    pub fn trusts_proxy(&self, address: IpAddr) -> bool {
        any_contains(&self.proxy_from, address)
    }
}

impl Default for Listen {
    fn default() -> Self {
        Self {
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, 3128)),
            suffixes: default_suffixes(),
            proxy_from: Vec::new(),
            from: ListenerKind::Client,
            tls: None,
        }
    }
}

fn default_suffixes() -> Vec<String> {
    ["balena", "vpn", "resin"].map(String::from).to_vec()
}
