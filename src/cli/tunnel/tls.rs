//! TLS to a relay: trusted certificates, the expected name, and explanations of failures.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{AlertDescription, CertificateError, ClientConfig, ClientConnection, Error, RootCertStore};

use super::names::RelayName;

/// TLS settings that all connections to one relay share, with sessions that can be resumed.
pub struct ClientTls {
    /// Name that the relay's certificate must have.
    pub name: ServerName<'static>,
    config: Arc<ClientConfig>,
}

/// Reason why TLS to a relay failed. Each text ends in a remedy.
#[derive(Debug, thiserror::Error)]
pub enum ClientTlsError {
    #[error("{} cannot be read as PEM: {detail}; name the file of the CA's certificate with --ca", path.display())]
    Pem { path: PathBuf, detail: String },
    #[error("this machine trusts no certificate; install ca-certificates or name a CA's file with --ca")]
    NoRoots,
    #[error("a certificate cannot be for {0}; give another name with --server-name")]
    NoName(RelayName),
    #[error("TLS cannot be set up: {0}; please report it")]
    Setup(Error),
    #[error(
        "the certificate of {relay} is not signed by a CA that we trust; name the file of its CA with --ca, or \
         check which server answers there"
    )]
    UnknownIssuer { relay: RelayName },
    #[error("the certificate of {relay} is not for {wanted}{others}; give the right name with --server-name")]
    WrongName { relay: RelayName, wanted: String, others: String },
    #[error("the certificate of {relay} has expired; renew it there, or correct this machine's clock")]
    Expired { relay: RelayName },
    #[error("the certificate of {relay} is not valid yet; correct this machine's clock, or the relay's")]
    NotYet { relay: RelayName },
    #[error("the certificate of {relay} cannot be used: {detail}; replace it there")]
    Certificate { relay: RelayName, detail: String },
    #[error("{relay} does not speak TLS; use the relay's port for TLS, or connect without TLS")]
    NotSpoken { relay: RelayName },
    #[error("{relay} requires a client certificate, and this program has none; use another port of it")]
    ClientCertificate { relay: RelayName },
    #[error("the TLS handshake with {relay} failed: {detail}; check that it speaks TLS 1.2 or 1.3")]
    Handshake { relay: RelayName, detail: String },
}

impl ClientTls {
    /// Trusts the certificates in `ca`, or those of this machine. Expects `name`, or the host of `relay`.
    pub fn new(
        relay: &RelayName,
        ca: Option<&Path>,
        name: Option<&ServerName<'static>>,
    ) -> Result<Self, ClientTlsError> {
        let name = match name {
            Some(name) => name.clone(),
            None => ServerName::try_from(relay.host().to_owned())
                .map_err(|_| ClientTlsError::NoName(relay.clone()))?,
        };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(ClientTlsError::Setup)?
            .with_root_certificates(roots(ca)?)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { name, config: Arc::new(config) })
    }

    pub(super) fn connection(&self) -> Result<ClientConnection, Error> {
        ClientConnection::new(Arc::clone(&self.config), self.name.clone())
    }
}

impl ClientTlsError {
    /// Explains `failure` of a connection to `relay`, where `wanted` is the expected name.
    pub(super) fn of(relay: &RelayName, wanted: &ServerName<'_>, failure: io::Error) -> Self {
        let relay = relay.clone();
        let Some(error) = failure.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) else {
            let detail = match failure.kind() {
                io::ErrorKind::UnexpectedEof => "the connection was closed".to_owned(),
                _ => failure.to_string(),
            };
            return Self::Handshake { relay, detail };
        };
        match error {
            Error::InvalidCertificate(problem) => Self::of_certificate(relay, wanted, problem),
            Error::InvalidMessage(_) => Self::NotSpoken { relay },
            Error::AlertReceived(AlertDescription::CertificateRequired) => Self::ClientCertificate { relay },
            other => Self::Handshake { relay, detail: other.to_string() },
        }
    }

    fn of_certificate(relay: RelayName, wanted: &ServerName<'_>, problem: &CertificateError) -> Self {
        use CertificateError as Problem;
        let wanted = wanted.to_str().into_owned();
        match problem {
            Problem::UnknownIssuer => Self::UnknownIssuer { relay },
            Problem::NotValidForName => Self::WrongName { relay, wanted, others: String::new() },
            Problem::NotValidForNameContext { presented, .. } => {
                Self::WrongName { relay, wanted, others: named(presented) }
            }
            Problem::Expired | Problem::ExpiredContext { .. } => Self::Expired { relay },
            Problem::NotValidYet | Problem::NotValidYetContext { .. } => Self::NotYet { relay },
            other => Self::Certificate { relay, detail: other.to_string() },
        }
    }
}

/// Parses `--server-name`.
pub fn server_name(text: &str) -> Result<ServerName<'static>, &'static str> {
    ServerName::try_from(text.to_owned()).map_err(|_| "write a DNS name or an IP address, without a port")
}

fn roots(ca: Option<&Path>) -> Result<RootCertStore, ClientTlsError> {
    let mut roots = RootCertStore::empty();
    if let Some(path) = ca {
        let unusable = |detail: String| ClientTlsError::Pem { path: path.to_owned(), detail };
        let certificates =
            CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        for certificate in certificates.map_err(|error| unusable(error.to_string()))? {
            roots.add(certificate).map_err(|error| unusable(error.to_string()))?;
        }
        if roots.is_empty() {
            return Err(unusable("there is no certificate in it".to_owned()));
        }
        return Ok(roots);
    }
    // Unusable certificates are skipped, as other programs on this machine do.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() { Err(ClientTlsError::NoRoots) } else { Ok(roots) }
}

/// Names that a certificate is for instead, such as ` but for a.example`.
fn named(presented: &[String]) -> String {
    // The library writes them as DnsName("a.example").
    let bare = |name: &String| match name.split_once('"').and_then(|(_, rest)| rest.rsplit_once('"')) {
        Some((name, _)) => name.to_owned(),
        None => name.clone(),
    };
    let names: Vec<String> = presented.iter().take(NAMES_SHOWN_MAX).map(bare).collect();
    match names.as_slice() {
        [] => " nor for any name".to_owned(),
        names => format!(" but for {}", names.join(", ")),
    }
}

/// Number of names that the text lists. Some certificates have hundreds.
const NAMES_SHOWN_MAX: usize = 4;
