//! `[forward]`: this node's connections to its peers, the other nodes of the installation.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use serde::Deserialize;

use super::{Listen, ListenTls, ListenerKind, StoreUrl};
use crate::sys::address::any_contains;

/// The section `[forward]`. Without `listen` the node stands alone.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Forward {
    /// The address that listens for other nodes.
    pub listen: Option<SocketAddr>,
    /// The address by which other nodes reach this one. `None` stands for that of `listen`.
    pub advertise: Option<SocketAddr>,
    /// The certificates between nodes.
    pub tls: Option<ForwardTls>,
    /// Networks that peers may be in. Empty allows every address.
    pub allow: Vec<IpNet>,
    /// Names of nodes that are no peers any more, whatever certificate they show.
    pub refuse: Vec<String>,
    /// The store with the table of nodes, for a role that may write only there. `None` stands for `store.url`.
    pub directory_url: Option<StoreUrl>,
    /// The file with that role's password, read for each connection.
    pub directory_password_file: Option<PathBuf>,
    /// Time between two heartbeats of this node.
    #[serde(with = "humantime_serde")]
    pub heartbeat: Duration,
    /// Time between two reads of the other nodes' heartbeats.
    #[serde(with = "humantime_serde")]
    pub refresh: Duration,
    /// Age of its last heartbeat at which a node counts as gone.
    #[serde(with = "humantime_serde")]
    pub max_age: Duration,
    /// Nodes that a request may pass before the node that has the device.
    pub hops_max: usize,
    /// Connections that each engine thread keeps ready for each node that it forwards to.
    pub idle_connections: usize,
}

impl Default for Forward {
    fn default() -> Self {
        Self {
            listen: None,
            advertise: None,
            tls: None,
            allow: Vec::new(),
            refuse: Vec::new(),
            directory_url: None,
            directory_password_file: None,
            heartbeat: Duration::from_secs(5),
            refresh: Duration::from_secs(1),
            max_age: Duration::from_secs(15),
            hops_max: 3,
            idle_connections: 2,
        }
    }
}

impl Forward {
    /// The listener for other nodes, which is served as those for clients are. `None` where the node stands alone.
    pub(super) fn listener(&self) -> Option<Listen> {
        let (address, _) = (self.listen?, self.tls.as_ref()?);
        let tls = Some(ListenTls::Peers);
        Some(Listen { address, suffixes: Vec::new(), proxy_from: Vec::new(), from: ListenerKind::Peer, tls })
    }

    /// Returns whether the node `name`, at `address`, may be a peer.
    pub fn allows(&self, name: &str, address: IpAddr) -> bool {
        let is_allowed = self.allow.is_empty() || any_contains(&self.allow, address);
        is_allowed && !self.refuse.iter().any(|refused| refused == name)
    }

    /// The address by which other nodes reach this one; `None` where it stands alone.
    pub fn advertised(&self) -> Option<SocketAddr> {
        self.listen.map(|listen| self.advertise.unwrap_or(listen))
    }
}

/// The certificate files of a node, which nodes know each other by.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ForwardTls {
    /// This node's certificate, which has its name (`vpn.node`), and the ones between it and the root, in PEM.
    pub chain: PathBuf,
    /// The private key of that certificate, in PEM.
    pub key: PathBuf,
    /// The certificate of the CA that signs the nodes' certificates, and nobody else's, in PEM.
    pub ca: PathBuf,
}
