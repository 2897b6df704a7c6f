//! `[forward]`: how this node and the others hand requests to each other.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use super::{Listen, ListenTls, ListenerKind, StoreUrl};

/// The whole section; without `listen` the node stands alone.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Forward {
    /// Where other nodes come to.
    pub listen: Option<SocketAddr>,
    /// By what address they reach it; that of `listen` where that is one address.
    pub advertise: Option<SocketAddr>,
    /// What this node shows the others, and what it wants of theirs.
    pub tls: Option<ForwardTls>,
    /// Where it writes that it lives, by a role that may do only that; `store.url` where there is none.
    pub directory_url: Option<StoreUrl>,
    /// That role's password, read again with every connection.
    pub directory_password_file: Option<PathBuf>,
    /// Between two signs of life.
    #[serde(with = "humantime_serde")]
    pub heartbeat: Duration,
    /// Between two looks at those of the others.
    #[serde(with = "humantime_serde")]
    pub refresh: Duration,
    /// A node without a sign of life for so long is gone.
    #[serde(with = "humantime_serde")]
    pub max_age: Duration,
    /// Nodes that a request may come by before the one that holds the device.
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

    /// By what address others reach this node; `None` where it stands alone.
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
