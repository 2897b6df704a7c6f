//! TLS to a server by rustls, with the meaning that libpq gives `sslmode`.

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

/// Reason why TLS to a server cannot be set up.
#[derive(Debug, thiserror::Error)]
pub(super) enum PostgresTlsError {
    #[error("{path} cannot be read as PEM: {detail}")]
    Pem { path: String, detail: String },
    #[error("this machine trusts no certificate; name one by sslrootcert")]
    NoRoots,
    #[error("{0}")]
    Refused(#[from] Error),
}

/// Makes a connector for `tls`. It reads the files each time, so that the next connection uses a renewed
/// certificate.
pub(super) fn connector(tls: &PostgresTls) -> Result<MakeRustlsConnect, PostgresTlsError> {
    let provider = Arc::new(ring::default_provider());
    let builder =
        ClientConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions()?;
    let verifier: Arc<dyn ServerCertVerifier> = match verification(tls) {
        // This is `prefer`, and `require` without a root.
        Verification::None => Arc::new(AnyCertificate::new(&provider)),
        Verification::Chain => Arc::new(AnyNameVerifier { chain: chain_verifier(&tls.root, provider)? }),
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

/// The part of `sslmode` that the driver itself carries out.
pub(super) fn driver_mode(mode: TlsMode) -> SslMode {
    match mode {
        TlsMode::Disable => SslMode::Disable,
        TlsMode::Prefer => SslMode::Prefer,
        TlsMode::Require | TlsMode::VerifyCa | TlsMode::VerifyFull => SslMode::Require,
    }
}

/// Checks on a server's certificate.
enum Verification {
    None,
    Chain,
    ChainAndName,
}

fn verification(tls: &PostgresTls) -> Verification {
    match (tls.mode, &tls.root) {
        // As with libpq, a root that is given is checked against.
        (TlsMode::VerifyCa, _) | (TlsMode::Require, RootCertificates::File(_)) => Verification::Chain,
        (TlsMode::VerifyFull, _) => Verification::ChainAndName,
        (TlsMode::Disable | TlsMode::Prefer | TlsMode::Require, _) => Verification::None,
    }
}

fn chain_verifier(
    root: &RootCertificates,
    provider: Arc<CryptoProvider>,
) -> Result<Arc<WebPkiServerVerifier>, PostgresTlsError> {
    let mut roots = RootCertStore::empty();
    match root {
        RootCertificates::File(path) => {
            for certificate in certificates(path)? {
                roots.add(certificate)?;
            }
        }
        RootCertificates::System => {
            // A certificate that does not parse is left out, as other programs on the machine do.
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    if roots.is_empty() {
        return Err(PostgresTlsError::NoRoots);
    }
    WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .map_err(|error| PostgresTlsError::Refused(Error::General(error.to_string())))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, PostgresTlsError> {
    let certificates = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    match certificates.map_err(|error| pem(path, &error))? {
        none if Vec::is_empty(&none) => Err(PostgresTlsError::Pem {
            path: path.display().to_string(),
            detail: "there is no certificate in it".to_owned(),
        }),
        certificates => Ok(certificates),
    }
}

fn pem(path: &Path, error: &rustls::pki_types::pem::Error) -> PostgresTlsError {
    PostgresTlsError::Pem { path: path.display().to_string(), detail: error.to_string() }
}

/// Follows the certificate to a root, and accepts it for any host: `verify-ca`.
#[derive(Debug)]
struct AnyNameVerifier {
    chain: Arc<WebPkiServerVerifier>,
}

impl ServerCertVerifier for AnyNameVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        // The verifier checks the name last, so an error about it means that the chain holds.
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
