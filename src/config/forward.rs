//! `[forward]`: how this node and the others hand requests to each other.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::ring::default_provider;
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig, version};
use serde::Deserialize;

use super::tls::{ListenTls, TlsFileError, certified_key, read_certificates};
use super::{Listen, ListenerKind, StoreUrl};
use crate::wire::Certificates;

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
    /// The listener for other nodes, which is served as those for clients are.
    pub(super) fn listener(&self) -> Option<Listen> {
        let (address, tls) = (self.listen?, self.tls.as_ref()?);
        let tls = Some(ListenTls::between_nodes(Arc::clone(&tls.server)));
        Some(Listen { address, suffixes: Vec::new(), proxy_from: Vec::new(), from: ListenerKind::Peer, tls })
    }

    /// By what address others reach this node; `None` where it stands alone.
    pub fn advertised(&self) -> Option<SocketAddr> {
        self.listen.map(|listen| self.advertise.unwrap_or(listen))
    }
}

/// Certificates between nodes, read where the configuration is.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "ForwardTlsKeys")]
pub struct ForwardTls {
    keys: ForwardTlsKeys,
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
    shown: Arc<Certificates>,
}

/// The keys of `forward.tls`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct ForwardTlsKeys {
    /// This node's certificate, which has its name (`vpn.node`), in PEM.
    chain: PathBuf,
    key: PathBuf,
    /// Of whoever signs the nodes' certificates, and nobody else's.
    ca: PathBuf,
}

impl ForwardTls {
    /// For those who come.
    pub fn server(&self) -> &Arc<ServerConfig> {
        &self.server
    }

    /// Whether others take this node for the one with that name.
    pub fn is_for(&self, name: &str) -> bool {
        self.shown.has(name)
    }

    /// For those whom this node calls.
    pub fn client(&self) -> &Arc<ClientConfig> {
        &self.client
    }
}

/// By what the configuration says. What the files hold may differ, and is taken over by a reload.
impl PartialEq for ForwardTls {
    fn eq(&self, other: &Self) -> bool {
        self.keys == other.keys
    }
}

impl Eq for ForwardTls {}

impl TryFrom<ForwardTlsKeys> for ForwardTls {
    type Error = TlsFileError;

    fn try_from(keys: ForwardTlsKeys) -> Result<Self, TlsFileError> {
        let provider = Arc::new(default_provider());
        let certified = certified_key(&keys.chain, &keys.key, &provider)?;
        let unusable = |detail: String| TlsFileError::Ca { file: keys.ca.clone(), detail };
        let mut roots = RootCertStore::empty();
        for certificate in read_certificates(&keys.ca)? {
            roots.add(certificate).map_err(|error| unusable(error.to_string()))?;
        }
        let roots = Arc::new(roots);
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
            .build()
            .map_err(|error| unusable(error.to_string()))?;
        let shown = Arc::new(
            Certificates::new(vec![certified])
                .map_err(|source| TlsFileError::Certificate { file: keys.chain.clone(), source })?,
        );
        let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&version::TLS13])?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::<Certificates>::clone(&shown));
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&version::TLS13])?
            .with_root_certificates(roots)
            .with_client_cert_resolver(Arc::<Certificates>::clone(&shown));
        // For the kernel, where it takes over a connection.
        (server.enable_secret_extraction, client.enable_secret_extraction) = (true, true);
        Ok(Self { keys, server: Arc::new(server), client: Arc::new(client), shown })
    }
}
