//! TLS to a server by rustls, with the meaning that libpq gives `sslmode`.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use tokio_postgres::config::SslMode;
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::config::postgres::{PostgresTls, RootCertificates, TlsMode};
use crate::wire::{
    AnyCertificate, PemFileError, TrustError, TrustedCertificates, explain, read_certificates,
    read_private_key,
};

/// Reason why TLS to a server cannot be set up.
#[derive(Debug, thiserror::Error)]
pub(super) enum PostgresTlsError {
    #[error("sslrootcert {0}")]
    Root(TrustError),
    #[error("sslcert {0}")]
    Certificate(PemFileError),
    #[error("sslkey {0}")]
    Key(PemFileError),
    #[error("this machine trusts no certificate; name one by sslrootcert")]
    NoRoots,
    #[error("{}", explain(.0))]
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
            let key = read_private_key(&client.key).map_err(PostgresTlsError::Key)?;
            let chain = read_certificates(&client.certificate).map_err(PostgresTlsError::Certificate)?;
            builder.with_client_auth_cert(chain, key)?
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
) -> Result<Arc<dyn ServerCertVerifier>, PostgresTlsError> {
    let trusted = match root {
        RootCertificates::File(path) => TrustedCertificates::read(path).map_err(PostgresTlsError::Root)?,
        RootCertificates::System => TrustedCertificates::of_machine().ok_or(PostgresTlsError::NoRoots)?,
    };
    Ok(trusted.server_verifier(provider)?)
}

/// Follows the certificate to a root, and accepts it for any host: `verify-ca`.
#[derive(Debug)]
struct AnyNameVerifier {
    chain: Arc<dyn ServerCertVerifier>,
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
