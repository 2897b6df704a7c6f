//! TLS to a server, as libpq's `sslmode` means it, by rustls.

use std::path::Path;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use tokio_postgres::config::SslMode;
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::config::postgres::{PostgresTls, RootCertificates, TlsMode};
use crate::wire::AnyCertificate;

/// What of TLS cannot be set up, and with which file.
#[derive(Debug, thiserror::Error)]
pub(super) enum TlsError {
    #[error("{path} cannot be read as PEM: {detail}")]
    Pem { path: String, detail: String },
    #[error("this machine trusts no certificate; name one by sslrootcert")]
    NoRoots,
    #[error("{0}")]
    Refused(#[from] Error),
}

/// A connector for `tls`. Reads its files, so that a certificate that was renewed counts from the next
/// connection on.
pub(super) fn connector(tls: &PostgresTls) -> Result<MakeRustlsConnect, TlsError> {
    let provider = Arc::new(ring::default_provider());
    let builder =
        ClientConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions()?;
    let verifier: Arc<dyn ServerCertVerifier> = match verification(tls) {
        // `prefer`, and `require` without a root.
        Verification::None => Arc::new(AnyCertificate::new(&provider)),
        Verification::Chain => Arc::new(AnyName { chain: chain_verifier(&tls.root, provider)? }),
        Verification::ChainAndName => chain_verifier(&tls.root, provider)?,
    };
    let builder = builder.dangerous().with_custom_certificate_verifier(verifier);
    let config = match &tls.client {
        Some(client) => {
            let key = PrivateKeyDer::from_pem_file(&client.key).map_err(|error| pem(&client.key, &error))?;
            builder.with_client_auth_cert(certificates(&client.certificate)?, key)?
        }
        None => builder.with_no_client_auth(),
    };
    Ok(MakeRustlsConnect::new(config))
}

/// What the driver itself has to know.
pub(super) fn driver_mode(mode: TlsMode) -> SslMode {
    match mode {
        TlsMode::Disable => SslMode::Disable,
        TlsMode::Prefer => SslMode::Prefer,
        TlsMode::Require | TlsMode::VerifyCa | TlsMode::VerifyFull => SslMode::Require,
    }
}

/// How closely a server's certificate is looked at.
enum Verification {
    None,
    Chain,
    ChainAndName,
}

fn verification(tls: &PostgresTls) -> Verification {
    match (tls.mode, &tls.root) {
        // As with libpq, a root that is given is one to go by.
        (TlsMode::VerifyCa, _) | (TlsMode::Require, RootCertificates::File(_)) => Verification::Chain,
        (TlsMode::VerifyFull, _) => Verification::ChainAndName,
        (TlsMode::Disable | TlsMode::Prefer | TlsMode::Require, _) => Verification::None,
    }
}

fn chain_verifier(
    root: &RootCertificates,
    provider: Arc<CryptoProvider>,
) -> Result<Arc<WebPkiServerVerifier>, TlsError> {
    let mut roots = RootCertStore::empty();
    match root {
        RootCertificates::File(path) => {
            for certificate in certificates(path)? {
                roots.add(certificate)?;
            }
        }
        RootCertificates::System => {
            // One that is odd is passed over, as everywhere else on the machine.
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    if roots.is_empty() {
        return Err(TlsError::NoRoots);
    }
    WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .map_err(|error| TlsError::Refused(Error::General(error.to_string())))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let certificates = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    match certificates.map_err(|error| pem(path, &error))? {
        none if Vec::is_empty(&none) => Err(TlsError::Pem {
            path: path.display().to_string(),
            detail: "there is no certificate in it".to_owned(),
        }),
        certificates => Ok(certificates),
    }
}

fn pem(path: &Path, error: &rustls::pki_types::pem::Error) -> TlsError {
    TlsError::Pem { path: path.display().to_string(), detail: error.to_string() }
}

/// Follows the certificate to a root, and does not ask which host it is for: `verify-ca`.
#[derive(Debug)]
struct AnyName {
    chain: Arc<WebPkiServerVerifier>,
}

impl ServerCertVerifier for AnyName {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        // The name comes last: who stumbles over it has a chain that holds.
        match self.chain.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}
