//! `listen.tls`: the certificates of a listener, and the certificates that it asks its clients for.
//!
//! Values only: `wire::tls` reads the files.

use std::path::PathBuf;

use serde::Deserialize;

/// TLS on a listener.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "ListenTlsKeys")]
pub enum ListenTls {
    Clients(ClientListenerTls),
    /// The listener of `forward.listen`, which has the files of `forward.tls`.
    Peers,
}

/// TLS on a listener for clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientListenerTls {
    /// At least one. A client gets the first one that has the name which it asked for, or else the first of all.
    pub certificates: Vec<CertificateFiles>,
    pub client_certificates: ClientCertificates,
    pub min_version: MinTlsVersion,
}

/// The files of one certificate.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CertificateFiles {
    /// The certificate, and the ones between it and a root, in PEM.
    pub chain: PathBuf,
    /// The private key, in PEM: PKCS#8, SEC1 or PKCS#1, without a password.
    pub key: PathBuf,
}

/// The certificates that a listener asks its clients for. `ca` is a PEM file with the certificates of the CAs that
/// may sign them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientCertificates {
    NotAsked,
    /// A client may come without one. A certificate that it does show must be valid.
    Optional {
        ca: PathBuf,
    },
    Required {
        ca: PathBuf,
    },
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum MinTlsVersion {
    #[default]
    #[serde(rename = "1.2")]
    Tls12,
    #[serde(rename = "1.3")]
    Tls13,
}

impl ListenTls {
    /// True where a client without a certificate is refused.
    pub fn wants_client_certificate(&self) -> bool {
        match self {
            Self::Clients(tls) => matches!(tls.client_certificates, ClientCertificates::Required { .. }),
            Self::Peers => true,
        }
    }
}

/// The keys of `listen.tls`, as they stand in the file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ListenTlsKeys {
    certificates: Vec<CertificateFiles>,
    #[serde(default)]
    client_ca: Option<PathBuf>,
    #[serde(default)]
    client_certificates: ClientCertificatesKey,
    #[serde(default)]
    min_version: MinTlsVersion,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum ClientCertificatesKey {
    #[default]
    None,
    Optional,
    Required,
}

/// Keys of `listen.tls` that contradict each other.
#[derive(Debug, thiserror::Error)]
enum ListenTlsError {
    #[error("`certificates` is empty; give `certificates = [{{ chain = \"FILE\", key = \"FILE\" }}]`")]
    NoCertificate,
    #[error("`client_certificates` takes `client_ca`, the file of those who sign them")]
    NoClientCa,
    #[error("`client_ca` is not used; set `client_certificates` to `optional` or `required`")]
    UnusedClientCa,
}

impl TryFrom<ListenTlsKeys> for ListenTls {
    type Error = ListenTlsError;

    fn try_from(keys: ListenTlsKeys) -> Result<Self, ListenTlsError> {
        let ListenTlsKeys { certificates, client_ca, client_certificates, min_version } = keys;
        let client_certificates = match (client_certificates, client_ca) {
            (ClientCertificatesKey::None, None) => ClientCertificates::NotAsked,
            (ClientCertificatesKey::None, Some(_)) => return Err(ListenTlsError::UnusedClientCa),
            (ClientCertificatesKey::Optional, Some(ca)) => ClientCertificates::Optional { ca },
            (ClientCertificatesKey::Required, Some(ca)) => ClientCertificates::Required { ca },
            (_, None) => return Err(ListenTlsError::NoClientCa),
        };
        if certificates.is_empty() {
            return Err(ListenTlsError::NoCertificate);
        }
        Ok(Self::Clients(ClientListenerTls { certificates, client_certificates, min_version }))
    }
}
