//! Builds the TLS settings of a node from the certificate files that its configuration names.
//!
//! The files are read here and only here: when a configuration is read. A file that changes later counts from the
//! next read on, which is a reload or a start.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::crypto::ring::{Ticketer, default_provider};
use rustls::server::NoServerSessionStorage;
use rustls::server::danger::ClientCertVerifier;
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ServerConfig, SupportedProtocolVersion, version};

use super::explain::explain;
use super::pem::{PemFileError, read_certificates, read_private_key};
use super::trust::{ClientCertificate, TrustError, TrustedCertificates};
use super::validity::ShownCertificate;
use super::{Certificates, CertificatesError};
use crate::config::{
    CertificateFiles, ClientCertificates, ClientListenerTls, Config, ForwardTls, KeyProblem, Listen,
    ListenTls, MinTlsVersion, is_node_name,
};

/// The TLS settings of a node, ready for connections.
#[derive(Clone, Debug, Default)]
pub struct TlsConfigs {
    /// One for each element of `listen`; `None` for a listener without TLS of its own.
    clients: Vec<Option<Arc<ServerConfig>>>,
    /// `None` for a node that stands alone.
    peers: Option<PeerTlsConfigs>,
    /// The certificates of all of them.
    shown: Vec<ShownCertificate>,
}

#[derive(Clone, Debug)]
struct PeerTlsConfigs {
    /// The side that other nodes call.
    server: Arc<ServerConfig>,
    /// The side that calls other nodes.
    client: Arc<ClientConfig>,
}

/// A certificate file that cannot be used, and the configuration key that names it.
#[derive(Debug, thiserror::Error)]
#[error("{key}: {source}")]
pub struct TlsLoadError {
    /// The dotted key; elements of lists by their place.
    pub key: String,
    pub source: TlsFileError,
}

/// A certificate file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsFileError {
    #[error(transparent)]
    Pem(#[from] PemFileError),
    #[error(
        "{}: a key of a kind that is not supported ({}); use ECDSA (P-256 or P-384), Ed25519, or RSA of 2048 bits or more",
        .file.display(), explain(.source)
    )]
    Key { file: PathBuf, source: rustls::Error },
    #[error("{}: {source}", .file.display())]
    Certificate { file: PathBuf, source: CertificatesError },
    #[error(transparent)]
    Ca(#[from] TrustError),
    #[error("the certificate is not for {0}, so other nodes would refuse it; make one for that name")]
    OtherName(String),
    #[error(
        "{} has a CA that `{key}.client_ca` has too, so a client could pass for a node; make a CA for the nodes alone",
        .file.display()
    )]
    CaOfClients { file: PathBuf, key: String },
    #[error("TLS cannot be set up: {}; please report it", explain(.0))]
    Setup(#[from] rustls::Error),
}

impl TlsConfigs {
    /// Reads all certificate files that `config` names. Fails with the first one that cannot be used.
    pub fn load(config: &Config) -> Result<Self, TlsLoadError> {
        Self::load_all(config).map_err(|mut errors| errors.swap_remove(0))
    }

    /// Reads all certificate files that `config` names. Fails with an error for each listener, and one for the nodes,
    /// whose files cannot be used.
    pub fn load_all(config: &Config) -> Result<Self, Vec<TlsLoadError>> {
        let mut errors = Vec::new();
        let mut clients = Vec::with_capacity(config.listen.len());
        let mut shown = Vec::new();
        for (place, listen) in config.listen.iter().enumerate() {
            let Some(ListenTls::Clients(tls)) = &listen.tls else {
                clients.push(None);
                continue;
            };
            let key = listener_key(place);
            match client_listener(&key, tls) {
                Ok((server, certificates)) => {
                    shown.extend(certificates);
                    clients.push(Some(Arc::new(server)));
                }
                Err(source) => errors.push(TlsLoadError { key, source }),
            }
        }
        let peers = config
            .forward
            .tls
            .as_ref()
            .map(|tls| check_ca(&tls.ca, config).and_then(|()| PeerTlsConfigs::load(tls, config)));
        match peers.transpose() {
            Ok(peers) if errors.is_empty() => {
                let peers = peers.map(|(peers, certificate)| {
                    shown.extend(certificate);
                    peers
                });
                return Ok(Self { clients, peers, shown });
            }
            Ok(_) => {}
            Err(error) => errors.push(error),
        }
        Err(errors)
    }

    /// Reads the files again that `config` names, by which `self` was loaded. Settings whose files cannot be used any
    /// more stay as they are, and have an error in the list.
    pub fn renewed(&self, config: &Config) -> (Self, Vec<TlsLoadError>) {
        let (mut renewed, mut errors) = (self.clone(), Vec::new());
        for (place, listen) in config.listen.iter().enumerate() {
            let Some(ListenTls::Clients(tls)) = &listen.tls else { continue };
            let key = listener_key(place);
            match (client_listener(&key, tls), renewed.clients.get_mut(place)) {
                (Ok((server, certificates)), Some(settings)) => {
                    *settings = Some(Arc::new(server));
                    renewed.replace_shown(&format!("{key}."), certificates);
                }
                (Ok(_), None) => {}
                (Err(source), _) => errors.push(TlsLoadError { key, source }),
            }
        }
        match config.forward.tls.as_ref().map(|tls| PeerTlsConfigs::load(tls, config)).transpose() {
            Ok(Some((peers, certificate))) => {
                renewed.peers = Some(peers);
                renewed.replace_shown(PEERS_KEY, certificate);
            }
            Ok(None) => {}
            Err(error) => errors.push(error),
        }
        (renewed, errors)
    }

    /// Shows `certificates` in place of those whose keys begin with `key`.
    fn replace_shown(&mut self, key: &str, certificates: impl IntoIterator<Item = ShownCertificate>) {
        self.shown.retain(|shown| !shown.key.starts_with(key));
        self.shown.extend(certificates);
    }

    /// The certificates that this node shows to clients and to other nodes.
    pub fn shown(&self) -> &[ShownCertificate] {
        &self.shown
    }

    /// The certificates that clients of the listener at `place` of `listen` may get.
    pub fn shown_by_listener(&self, place: usize) -> impl Iterator<Item = &ShownCertificate> {
        let key = format!("{}.", listener_key(place));
        self.shown.iter().filter(move |shown| shown.key.starts_with(&key))
    }

    /// The settings of the listener at `place` of `listen`; `None` where it speaks no TLS.
    pub fn server(&self, place: usize, listen: &Listen) -> Option<Arc<ServerConfig>> {
        match listen.tls.as_ref()? {
            ListenTls::Clients(_) => self.clients.get(place)?.clone(),
            ListenTls::Peers => self.peers.as_ref().map(|peers| Arc::clone(&peers.server)),
        }
    }

    /// The settings for connections to other nodes; `None` where this node stands alone.
    pub fn peer_client(&self) -> Option<Arc<ClientConfig>> {
        self.peers.as_ref().map(|peers| Arc::clone(&peers.client))
    }
}

impl From<TlsLoadError> for KeyProblem {
    fn from(error: TlsLoadError) -> Self {
        Self { key: error.key, problem: error.source.to_string() }
    }
}

impl PeerTlsConfigs {
    fn load(tls: &ForwardTls, config: &Config) -> Result<(Self, Option<ShownCertificate>), TlsLoadError> {
        let at_key = |source| TlsLoadError { key: PEERS_KEY.to_owned(), source };
        let certified = certified_key(&tls.chain, &tls.key, &default_provider()).map_err(at_key)?;
        let shown = ShownCertificate::of(PEERS_KEY, tls.chain.clone(), &certified.cert);
        let certificates = Certificates::new(vec![certified])
            .map_err(|source| at_key(TlsFileError::Certificate { file: tls.chain.clone(), source }))?;
        // A node without a listener or with a name that cannot be used is refused for that.
        let name =
            config.vpn.node.as_deref().filter(|name| config.forward.listen.is_some() && is_node_name(name));
        if let Some(name) = name
            && !certificates.has(name)
        {
            let source = TlsFileError::OtherName(name.to_owned());
            return Err(TlsLoadError { key: "forward.tls.chain".to_owned(), source });
        }
        Ok((Self::new(tls, Arc::new(certificates)).map_err(at_key)?, shown))
    }

    fn new(tls: &ForwardTls, certificates: Arc<Certificates>) -> Result<Self, TlsFileError> {
        let provider = Arc::new(default_provider());
        let trusted = TrustedCertificates::read(&tls.ca)?;
        let verifier = trusted.client_verifier(Arc::clone(&provider), ClientCertificate::Required)?;
        let of_server = trusted.server_verifier(Arc::clone(&provider))?;
        let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&version::TLS13])?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::<Certificates>::clone(&certificates));
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(of_server)
            .with_client_cert_resolver(certificates);
        // A connection that resumes another one looks at no certificate. Ready connections hide what a handshake costs.
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        client.resumption = Resumption::disabled();
        // The kernel needs the secrets where it takes over a connection.
        (server.enable_secret_extraction, client.enable_secret_extraction) = (true, true);
        Ok(Self { server: Arc::new(server), client: Arc::new(client) })
    }
}

/// Fails where the nodes' CA is that of the clients of a listener too. Files that cannot be read are errors of their own.
fn check_ca(nodes: &Path, config: &Config) -> Result<(), TlsLoadError> {
    let Ok(of_nodes) = TrustedCertificates::read(nodes) else { return Ok(()) };
    for (place, listen) in config.listen.iter().enumerate() {
        if let Some(ListenTls::Clients(tls)) = &listen.tls
            && let ClientCertificates::Optional { ca } | ClientCertificates::Required { ca } =
                &tls.client_certificates
            && TrustedCertificates::read(ca).is_ok_and(|of_clients| of_clients.has_a_root_of(&of_nodes))
        {
            let source = TlsFileError::CaOfClients { file: nodes.to_owned(), key: listener_key(place) };
            return Err(TlsLoadError { key: "forward.tls.ca".to_owned(), source });
        }
    }
    Ok(())
}

/// Returns the settings of the client listener at `key`, and the certificates that it shows.
fn client_listener(
    key: &str,
    tls: &ClientListenerTls,
) -> Result<(ServerConfig, Vec<ShownCertificate>), TlsFileError> {
    let provider = Arc::new(default_provider());
    let keys = certified_keys(&tls.certificates, &provider)?;
    let chains = tls.certificates.iter().zip(&keys).enumerate();
    let shown = chains.filter_map(|(number, (files, own))| {
        ShownCertificate::of(&format!("{key}.certificates.{number}"), files.chain.clone(), &own.cert)
    });
    let shown: Vec<ShownCertificate> = shown.collect();
    let versions: &[&SupportedProtocolVersion] = match tls.min_version {
        MinTlsVersion::Tls12 => &[&version::TLS12, &version::TLS13],
        MinTlsVersion::Tls13 => &[&version::TLS13],
    };
    let builder =
        ServerConfig::builder_with_provider(Arc::clone(&provider)).with_protocol_versions(versions)?;
    let builder = match client_verifier(&tls.client_certificates, &provider)? {
        Some(verifier) => builder.with_client_cert_verifier(verifier),
        None => builder.with_no_client_auth(),
    };
    let certificates = Certificates::new(keys).map_err(|source| {
        let file = tls.certificates.first().map(|files| files.chain.clone()).unwrap_or_default();
        TlsFileError::Certificate { file, source }
    })?;
    let mut server = builder.with_cert_resolver(Arc::new(certificates));
    server.alpn_protocols = vec![b"http/1.1".to_vec()];
    server.ticketer = Ticketer::new()?;
    // The kernel needs the secrets where it takes over a connection.
    server.enable_secret_extraction = true;
    Ok((server, shown))
}

fn certified_keys(
    files: &[CertificateFiles],
    provider: &CryptoProvider,
) -> Result<Vec<CertifiedKey>, TlsFileError> {
    files.iter().map(|CertificateFiles { chain, key }| certified_key(chain, key, provider)).collect()
}

/// The check of clients' certificates; `None` where clients are not asked for one.
fn client_verifier(
    asked: &ClientCertificates,
    provider: &Arc<CryptoProvider>,
) -> Result<Option<Arc<dyn ClientCertVerifier>>, TlsFileError> {
    let (ClientCertificates::Optional { ca } | ClientCertificates::Required { ca }) = asked else {
        return Ok(None);
    };
    let asked = match asked {
        ClientCertificates::Optional { .. } => ClientCertificate::Optional,
        ClientCertificates::NotAsked | ClientCertificates::Required { .. } => ClientCertificate::Required,
    };
    Ok(Some(TrustedCertificates::read(ca)?.client_verifier(Arc::clone(provider), asked)?))
}

/// Reads a certificate, the ones between it and its root, and the private key that belongs to it.
fn certified_key(chain: &Path, key: &Path, provider: &CryptoProvider) -> Result<CertifiedKey, TlsFileError> {
    let unsupported = |source| TlsFileError::Key { file: key.to_owned(), source };
    let certificates = read_certificates(chain)?;
    let own = provider.key_provider.load_private_key(read_private_key(key)?).map_err(unsupported)?;
    let certified = CertifiedKey::new(certificates, own);
    Certificates::new(vec![certified.clone()]).map_err(|source| {
        let file = if matches!(source, CertificatesError::OtherKey) { key } else { chain };
        TlsFileError::Certificate { file: file.to_owned(), source }
    })?;
    Ok(certified)
}

/// The key of a listener's TLS settings.
fn listener_key(place: usize) -> String {
    format!("listen.{place}.tls")
}

/// The key of the TLS settings between nodes.
const PEERS_KEY: &str = "forward.tls";
