//! TLS to a relay: trusted certificates, the expected name, and explanations of failures.

use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{AlertDescription, CertificateError, ClientConfig, ClientConnection, Error};

use super::names::RelayName;
use crate::wire::{TrustError, TrustedCertificates, explain, explain_certificate, instead};

/// TLS settings that all connections to one relay share, with sessions that can be resumed.
pub struct ClientTls {
    /// Name that the relay's certificate must have.
    pub name: ServerName<'static>,
    config: Arc<ClientConfig>,
}

/// Reason why TLS to a relay failed. Each text ends in a remedy.
#[derive(Debug, thiserror::Error)]
pub enum ClientTlsError {
    #[error("--ca {0}")]
    Ca(#[from] TrustError),
    #[error("this machine trusts no certificate; install ca-certificates or name a CA's file with --ca")]
    NoRoots,
    #[error("a certificate cannot be for {0}; give another name with --server-name")]
    NoName(RelayName),
    #[error("TLS cannot be set up: {}; please report it", explain(.0))]
    Setup(#[from] Error),
    #[error(
        "the certificate of {relay} is not signed by a CA that we trust; name the file of its CA with --ca, or \
         check which server answers there"
    )]
    UnknownIssuer { relay: RelayName },
    #[error("the certificate of {relay} is not for {wanted}{others}; give the right name with --server-name")]
    WrongName { relay: RelayName, wanted: String, others: String },
    #[error("the certificate of {relay} {detail}; renew it there, or correct this machine's clock")]
    Time { relay: RelayName, detail: String },
    #[error("the certificate of {relay} {detail}; replace it there")]
    Certificate { relay: RelayName, detail: String },
    #[error(
        "{relay} does not speak TLS; use the relay's port for TLS, or --plain, with which everybody on the way can \
         read the token"
    )]
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
        let trusted = match ca {
            Some(file) => TrustedCertificates::read(file)?,
            None => TrustedCertificates::of_machine().ok_or(ClientTlsError::NoRoots)?,
        };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(trusted.server_verifier(provider)?)
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
            other => Self::Handshake { relay, detail: explain(other) },
        }
    }

    fn of_certificate(relay: RelayName, wanted: &ServerName<'_>, problem: &CertificateError) -> Self {
        use CertificateError as Problem;
        let wanted = wanted.to_str().into_owned();
        match problem {
            Problem::UnknownIssuer => Self::UnknownIssuer { relay },
            Problem::NotValidForName => Self::WrongName { relay, wanted, others: String::new() },
            Problem::NotValidForNameContext { presented, .. } if !presented.is_empty() => {
                Self::WrongName { relay, wanted, others: instead(presented) }
            }
            Problem::Expired
            | Problem::ExpiredContext { .. }
            | Problem::NotValidYet
            | Problem::NotValidYetContext { .. } => {
                Self::Time { relay, detail: explain_certificate(problem) }
            }
            other => Self::Certificate { relay, detail: explain_certificate(other) },
        }
    }
}

/// Parses `--server-name`.
pub fn server_name(text: &str) -> Result<ServerName<'static>, &'static str> {
    ServerName::try_from(text.to_owned()).map_err(|_| "write a DNS name or an IP address, without a port")
}
