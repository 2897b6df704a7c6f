//! TLS on a listener: its files, read and checked where the configuration is read. A file that changes later
//! counts from when the configuration is read again.

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
use rustls::{RootCertStore, ServerConfig, SupportedProtocolVersion, version};
use serde::Deserialize;

use crate::wire::{Certificates, CertificatesError};

/// What a listener with TLS needs of its files.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "TlsKeys")]
pub struct ListenTls {
    /// `None` where they are those of `forward.tls`.
    keys: Option<TlsKeys>,
    server: Arc<ServerConfig>,
}

/// The keys of `listen.tls`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct TlsKeys {
    /// A client is shown the first that has the name which it asked for, or else the first of all.
    certificates: Vec<CertificateFiles>,
    /// Certificates of those who may sign clients' ones, in PEM.
    #[serde(default)]
    client_ca: Option<PathBuf>,
    #[serde(default)]
    client_certificates: ClientCertificates,
    #[serde(default)]
    min_version: MinVersion,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct CertificateFiles {
    /// The certificate and what leads from it to a root, in PEM.
    chain: PathBuf,
    /// In PEM: PKCS#8, SEC1 or PKCS#1, without a password.
    key: PathBuf,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum ClientCertificates {
    /// Not asked for.
    #[default]
    None,
    /// A client may do without; one that it shows must be good.
    Optional,
    Required,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
enum MinVersion {
    #[default]
    #[serde(rename = "1.2")]
    Tls12,
    #[serde(rename = "1.3")]
    Tls13,
}

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsFileError {
    #[error("`certificates` is empty; give `certificates = [{{ chain = \"FILE\", key = \"FILE\" }}]`")]
    NoCertificate,
    #[error("`client_certificates` takes `client_ca`, the file of those who sign them")]
    NoClientCa,
    #[error("`client_ca` is not used; set `client_certificates` to `optional` or `required`")]
    UnusedClientCa,
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
    #[error("TLS cannot be set up: {0}")]
    Setup(#[from] rustls::Error),
}

impl ListenTls {
    /// As nodes speak it with each other.
    pub(super) fn between_nodes(server: Arc<ServerConfig>) -> Self {
        Self { keys: None, server }
    }

    pub fn server(&self) -> &Arc<ServerConfig> {
        &self.server
    }

    /// Nobody comes in without one.
    pub fn wants_client_certificate(&self) -> bool {
        self.keys.as_ref().is_none_or(|keys| keys.client_certificates == ClientCertificates::Required)
    }
}

/// By what the configuration says. What the files hold may differ, and is taken over by a reload.
impl PartialEq for ListenTls {
    fn eq(&self, other: &Self) -> bool {
        self.keys == other.keys
    }
}

impl Eq for ListenTls {}

impl TryFrom<TlsKeys> for ListenTls {
    type Error = TlsFileError;

    fn try_from(keys: TlsKeys) -> Result<Self, TlsFileError> {
        let provider = Arc::new(default_provider());
        let versions: &[&SupportedProtocolVersion] = match keys.min_version {
            MinVersion::Tls12 => &[&version::TLS12, &version::TLS13],
            MinVersion::Tls13 => &[&version::TLS13],
        };
        let builder =
            ServerConfig::builder_with_provider(Arc::clone(&provider)).with_protocol_versions(versions)?;
        let builder = match keys.client_verifier(&provider)? {
            Some(verifier) => builder.with_client_cert_verifier(verifier),
            None => builder.with_no_client_auth(),
        };
        let mut server = builder.with_cert_resolver(Arc::new(keys.certificates(&provider)?));
        server.alpn_protocols = vec![b"http/1.1".to_vec()];
        server.ticketer = Ticketer::new()?;
        // For the kernel, where it takes over a connection.
        server.enable_secret_extraction = true;
        Ok(Self { keys: Some(keys), server: Arc::new(server) })
    }
}

impl TlsKeys {
    fn certificates(&self, provider: &CryptoProvider) -> Result<Certificates, TlsFileError> {
        let mut keys = Vec::with_capacity(self.certificates.len());
        for CertificateFiles { chain, key } in &self.certificates {
            keys.push(certified_key(chain, key, provider)?);
        }
        Certificates::new(keys).map_err(|_| TlsFileError::NoCertificate)
    }

    /// `None` where clients are not asked for a certificate.
    fn client_verifier(
        &self,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Option<Arc<dyn ClientCertVerifier>>, TlsFileError> {
        let file = match (self.client_certificates, &self.client_ca) {
            (ClientCertificates::None, None) => return Ok(None),
            (ClientCertificates::None, Some(_)) => return Err(TlsFileError::UnusedClientCa),
            (_, None) => return Err(TlsFileError::NoClientCa),
            (_, Some(file)) => file,
        };
        let refused = |detail: String| TlsFileError::Ca { file: file.clone(), detail };
        let mut roots = RootCertStore::empty();
        for certificate in read_certificates(file)? {
            roots.add(certificate).map_err(|error| refused(error.to_string()))?;
        }
        let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider));
        let builder = match self.client_certificates {
            ClientCertificates::Optional => builder.allow_unauthenticated(),
            ClientCertificates::None | ClientCertificates::Required => builder,
        };
        builder.build().map(Some).map_err(|error| refused(error.to_string()))
    }
}

/// A certificate with what leads to its root, and the key that belongs to it.
pub(super) fn certified_key(
    chain: &Path,
    key: &Path,
    provider: &CryptoProvider,
) -> Result<CertifiedKey, TlsFileError> {
    let certified = CertifiedKey::new(read_certificates(chain)?, read_key(key, provider)?);
    Certificates::new(vec![certified.clone()]).map_err(|source| {
        let file = if matches!(source, CertificatesError::OtherKey) { key } else { chain };
        TlsFileError::Certificate { file: file.to_owned(), source }
    })?;
    Ok(certified)
}

/// All certificates of a PEM file, of which there is at least one.
pub(super) fn read_certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsFileError> {
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

/// Of a PEM file; a bundle of all public CAs has about 250 KiB.
const PEM_BYTES_MAX: u64 = 4 * 1024 * 1024;
