//! Builds the TLS settings of a node from the certificate files that its configuration names.
//!
//! The files are read here and only here: when a configuration is read. A file that changes later counts from the
//! next read on, which is a reload or a start.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::crypto::ring::{Ticketer, default_provider};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion, version};

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
    #[error("{}: {source}", .file.display())]
    Unreadable { file: PathBuf, source: std::io::Error },
    #[error("{}: larger than {PEM_BYTES_MAX} bytes, so it is no PEM file of certificates", .0.display())]
    TooLarge(PathBuf),
    #[error("{}: no {what} in PEM: {source}", .file.display())]
    NotPem { file: PathBuf, what: &'static str, source: pem::Error },
    #[error("{}: a key of a kind that is not supported: {source}", .file.display())]
    Key { file: PathBuf, source: rustls::Error },
    #[error("{}: {source}", .file.display())]
    Certificate { file: PathBuf, source: CertificatesError },
    #[error("{}: not usable as certificates of a CA: {detail}", .file.display())]
    Ca { file: PathBuf, detail: String },
    #[error("the certificate is not for {0}, so other nodes would refuse it; make one for that name")]
    OtherName(String),
    #[error("TLS cannot be set up: {0}")]
    Setup(#[from] rustls::Error),
}

impl TlsConfigs {
    /// Reads all certificate files that `config` names.
    pub fn load(config: &Config) -> Result<Self, TlsLoadError> {
        let mut clients = Vec::with_capacity(config.listen.len());
        for (place, listen) in config.listen.iter().enumerate() {
            let Some(ListenTls::Clients(tls)) = &listen.tls else {
                clients.push(None);
                continue;
            };
            let at_key = |source| TlsLoadError { key: format!("listen.{place}.tls"), source };
            clients.push(Some(Arc::new(client_listener(tls).map_err(at_key)?)));
        }
        let peers = config.forward.tls.as_ref().map(|tls| PeerTlsConfigs::load(tls, config)).transpose()?;
        Ok(Self { clients, peers })
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
    fn load(tls: &ForwardTls, config: &Config) -> Result<Self, TlsLoadError> {
        let at_key = |source| TlsLoadError { key: "forward.tls".to_owned(), source };
        let certificates = peer_certificates(tls).map_err(at_key)?;
        // A node without a listener or with a name that cannot be used is refused for that.
        let name =
            config.vpn.node.as_deref().filter(|name| config.forward.listen.is_some() && is_node_name(name));
        if let Some(name) = name
            && !certificates.has(name)
        {
            let source = TlsFileError::OtherName(name.to_owned());
            return Err(TlsLoadError { key: "forward.tls.chain".to_owned(), source });
        }
        Self::new(tls, Arc::new(certificates)).map_err(at_key)
    }

    fn new(tls: &ForwardTls, certificates: Arc<Certificates>) -> Result<Self, TlsFileError> {
        let provider = Arc::new(default_provider());
        let roots = Arc::new(read_roots(&tls.ca)?);
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
            .build()
            .map_err(|error| TlsFileError::Ca { file: tls.ca.clone(), detail: error.to_string() })?;
        let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&version::TLS13])?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::<Certificates>::clone(&certificates));
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&version::TLS13])?
            .with_root_certificates(roots)
            .with_client_cert_resolver(certificates);
        // The kernel needs the secrets where it takes over a connection.
        (server.enable_secret_extraction, client.enable_secret_extraction) = (true, true);
        Ok(Self { server: Arc::new(server), client: Arc::new(client) })
    }
}

fn peer_certificates(tls: &ForwardTls) -> Result<Certificates, TlsFileError> {
    let certified = certified_key(&tls.chain, &tls.key, &default_provider())?;
    Certificates::new(vec![certified])
        .map_err(|source| TlsFileError::Certificate { file: tls.chain.clone(), source })
}

fn client_listener(tls: &ClientListenerTls) -> Result<ServerConfig, TlsFileError> {
    let provider = Arc::new(default_provider());
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
    let mut server = builder.with_cert_resolver(Arc::new(certificates(&tls.certificates, &provider)?));
    server.alpn_protocols = vec![b"http/1.1".to_vec()];
    server.ticketer = Ticketer::new()?;
    // The kernel needs the secrets where it takes over a connection.
    server.enable_secret_extraction = true;
    Ok(server)
}

fn certificates(files: &[CertificateFiles], provider: &CryptoProvider) -> Result<Certificates, TlsFileError> {
    let keys = files.iter().map(|CertificateFiles { chain, key }| certified_key(chain, key, provider));
    Certificates::new(keys.collect::<Result<_, _>>()?).map_err(|source| {
        let file = files.first().map(|files| files.chain.clone()).unwrap_or_default();
        TlsFileError::Certificate { file, source }
    })
}

/// The check of clients' certificates; `None` where clients are not asked for one.
fn client_verifier(
    asked: &ClientCertificates,
    provider: &Arc<CryptoProvider>,
) -> Result<Option<Arc<dyn ClientCertVerifier>>, TlsFileError> {
    let (ClientCertificates::Optional { ca } | ClientCertificates::Required { ca }) = asked else {
        return Ok(None);
    };
    let roots = Arc::new(read_roots(ca)?);
    let builder = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(provider));
    let builder = match asked {
        ClientCertificates::Optional { .. } => builder.allow_unauthenticated(),
        ClientCertificates::NotAsked | ClientCertificates::Required { .. } => builder,
    };
    let unusable = |error: rustls::server::VerifierBuilderError| TlsFileError::Ca {
        file: ca.clone(),
        detail: error.to_string(),
    };
    builder.build().map(Some).map_err(unusable)
}

/// Reads a certificate, the ones between it and its root, and the private key that belongs to it.
fn certified_key(chain: &Path, key: &Path, provider: &CryptoProvider) -> Result<CertifiedKey, TlsFileError> {
    let certified = CertifiedKey::new(read_certificates(chain)?, read_key(key, provider)?);
    Certificates::new(vec![certified.clone()]).map_err(|source| {
        let file = if matches!(source, CertificatesError::OtherKey) { key } else { chain };
        TlsFileError::Certificate { file: file.to_owned(), source }
    })?;
    Ok(certified)
}

/// Reads the certificates of CAs.
fn read_roots(file: &Path) -> Result<RootCertStore, TlsFileError> {
    let mut roots = RootCertStore::empty();
    for certificate in read_certificates(file)? {
        roots
            .add(certificate)
            .map_err(|error| TlsFileError::Ca { file: file.to_owned(), detail: error.to_string() })?;
    }
    Ok(roots)
}

/// Reads all certificates of a PEM file, which has at least one.
fn read_certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsFileError> {
    let not_pem = |source| TlsFileError::NotPem { file: file.to_owned(), what: "certificate", source };
    let text = read(file)?;
    let certificates =
        CertificateDer::pem_slice_iter(&text).collect::<Result<Vec<_>, _>>().map_err(not_pem)?;
    if certificates.is_empty() { Err(not_pem(pem::Error::NoItemsFound)) } else { Ok(certificates) }
}

fn read_key(
    file: &Path,
    provider: &CryptoProvider,
) -> Result<Arc<dyn rustls::sign::SigningKey>, TlsFileError> {
    let key = PrivateKeyDer::from_pem_slice(&read(file)?).map_err(|source| TlsFileError::NotPem {
        file: file.to_owned(),
        what: "private key",
        source,
    })?;
    let unsupported = |source| TlsFileError::Key { file: file.to_owned(), source };
    provider.key_provider.load_private_key(key).map_err(unsupported)
}

fn read(file: &Path) -> Result<Vec<u8>, TlsFileError> {
    let mut text = Vec::new();
    File::open(file)
        .and_then(|opened| opened.take(PEM_BYTES_MAX + 1).read_to_end(&mut text))
        .map_err(|source| TlsFileError::Unreadable { file: file.to_owned(), source })?;
    if text.len() as u64 > PEM_BYTES_MAX { Err(TlsFileError::TooLarge(file.to_owned())) } else { Ok(text) }
}

/// Bytes of a PEM file. A bundle of all public CAs has about 250 KiB.
const PEM_BYTES_MAX: u64 = 4 * 1024 * 1024;
