//! Trusted certificates: those of CAs, and those that are trusted as they are.
//!
//! The library follows a certificate to a CA, and refuses one that is a CA's itself, or one whose CA is unknown. A
//! certificate that was given as trusted needs no CA above it: `openssl req -x509` makes such ones, and OpenSSL accepts
//! them. So one that is in the given file, byte for byte, is accepted here too, for its names, its time and its use.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, VerifierBuilderError, WebPkiClientVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, ExtendedKeyPurpose, RootCertStore,
    SignatureScheme,
};
use x509_cert::Certificate;
use x509_cert::der::Decode;
use x509_cert::der::oid::ObjectIdentifier;
use x509_cert::ext::pkix::ExtendedKeyUsage;

use super::explain::explain;
use super::pem::{PemFileError, read_certificates};

/// The certificates that a connection trusts.
#[derive(Clone, Debug)]
pub struct TrustedCertificates {
    roots: Arc<RootCertStore>,
    /// Those of a file, which are trusted as they are too.
    given: Arc<[CertificateDer<'static>]>,
}

#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    #[error(transparent)]
    Pem(#[from] PemFileError),
    #[error("{file}: not usable as certificates of a CA: {detail}")]
    Unusable { file: String, detail: String },
}

impl TrustedCertificates {
    /// Reads the certificates of a PEM file.
    pub fn read(file: &Path) -> Result<Self, TrustError> {
        let given = read_certificates(file)?;
        let mut roots = RootCertStore::empty();
        for certificate in &given {
            roots.add(certificate.clone()).map_err(|error| TrustError::Unusable {
                file: file.display().to_string(),
                detail: explain(&error),
            })?;
        }
        Ok(Self { roots: Arc::new(roots), given: given.into() })
    }

    /// The CAs that this machine trusts. Unusable ones are skipped, as other programs on the machine do. `None` where
    /// there is none.
    pub fn of_machine() -> Option<Self> {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        (!roots.is_empty()).then(|| Self { roots: Arc::new(roots), given: Arc::new([]) })
    }

    /// True where both trust the same CA, or certificate.
    pub fn has_a_root_of(&self, other: &Self) -> bool {
        let keys = |roots: &RootCertStore| -> Vec<Vec<u8>> {
            roots.roots.iter().map(|root| root.subject_public_key_info.to_vec()).collect()
        };
        let others = keys(&other.roots);
        keys(&self.roots).iter().any(|key| others.contains(key))
    }

    /// Makes the check that a client does of a server's certificate.
    pub fn server_verifier(
        &self,
        provider: Arc<CryptoProvider>,
    ) -> Result<Arc<dyn ServerCertVerifier>, Error> {
        let builder = WebPkiServerVerifier::builder_with_provider(Arc::clone(&self.roots), provider);
        let chain = builder.build().map_err(unbuilt)?;
        Ok(Arc::new(ServerVerifier { chain, given: Arc::clone(&self.given) }))
    }

    /// Makes the check that a server does of a client's certificate.
    pub fn client_verifier(
        &self,
        provider: Arc<CryptoProvider>,
        asked: ClientCertificate,
    ) -> Result<Arc<dyn ClientCertVerifier>, Error> {
        let builder = WebPkiClientVerifier::builder_with_provider(Arc::clone(&self.roots), provider);
        let builder = match asked {
            ClientCertificate::Optional => builder.allow_unauthenticated(),
            ClientCertificate::Required => builder,
        };
        let chain = builder.build().map_err(unbuilt)?;
        Ok(Arc::new(ClientVerifier { chain, given: Arc::clone(&self.given) }))
    }
}

/// Whether a client has to have a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientCertificate {
    Optional,
    Required,
}

#[derive(Debug)]
struct ServerVerifier {
    chain: Arc<WebPkiServerVerifier>,
    given: Arc<[CertificateDer<'static>]>,
}

#[derive(Debug)]
struct ClientVerifier {
    chain: Arc<dyn ClientCertVerifier>,
    given: Arc<[CertificateDer<'static>]>,
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if self.given.contains(end_entity) {
            check_given(end_entity, ExtendedKeyPurpose::ServerAuth, now)?;
            // The name comes last: a caller may accept any name.
            verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
            return Ok(ServerCertVerified::assertion());
        }
        self.chain.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
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

impl ClientCertVerifier for ClientVerifier {
    fn offer_client_auth(&self) -> bool {
        self.chain.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.chain.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        if self.given.contains(end_entity) {
            check_given(end_entity, ExtendedKeyPurpose::ClientAuth, now)?;
            return Ok(ClientCertVerified::assertion());
        }
        self.chain.verify_client_cert(end_entity, intermediates, now)
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

/// Checks the time and the use of a certificate that is trusted as it is.
fn check_given(
    certificate: &CertificateDer<'_>,
    required: ExtendedKeyPurpose,
    now: UnixTime,
) -> Result<(), CertificateError> {
    let parsed = Certificate::from_der(certificate).map_err(|_| CertificateError::BadEncoding)?;
    let validity = parsed.tbs_certificate().validity();
    let (not_before, not_after) =
        (unix_time(validity.not_before.to_system_time()), unix_time(validity.not_after.to_system_time()));
    if now.as_secs() < not_before.as_secs() {
        return Err(CertificateError::NotValidYetContext { time: now, not_before });
    }
    if now.as_secs() > not_after.as_secs() {
        return Err(CertificateError::ExpiredContext { time: now, not_after });
    }
    let purposes = parsed.tbs_certificate().get_extension::<ExtendedKeyUsage>();
    let Some((_, ExtendedKeyUsage(purposes))) = purposes.map_err(|_| CertificateError::BadEncoding)? else {
        return Ok(());
    };
    let wanted = if required == ExtendedKeyPurpose::ServerAuth { SERVER_AUTH } else { CLIENT_AUTH };
    match purposes.iter().any(|purpose| [wanted, ANY_PURPOSE].contains(purpose)) {
        true => Ok(()),
        false => Err(CertificateError::InvalidPurposeContext { required, presented: Vec::new() }),
    }
}

/// Only an empty set of roots gives this error, and there is none.
fn unbuilt(error: VerifierBuilderError) -> Error {
    Error::General(error.to_string())
}

fn unix_time(time: SystemTime) -> UnixTime {
    UnixTime::since_unix_epoch(time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO))
}

/// Uses of a certificate (RFC 5280, section 4.2.1.12).
const SERVER_AUTH: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.3.1");
const CLIENT_AUTH: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.3.2");
const ANY_PURPOSE: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.37.0");

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyPair};

    use super::*;

    const NAME: &str = "relay.example";

    fn provider() -> Arc<CryptoProvider> {
        Arc::new(rustls::crypto::ring::default_provider())
    }

    /// A certificate that has signed itself, changed by `change`.
    fn self_signed(change: impl FnOnce(&mut CertificateParams)) -> CertificateDer<'static> {
        let mut params = CertificateParams::new([NAME.to_owned()]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        change(&mut params);
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().clone()
    }

    fn trusting(certificate: &CertificateDer<'static>) -> TrustedCertificates {
        let mut roots = RootCertStore::empty();
        roots.add(certificate.clone()).unwrap();
        TrustedCertificates { roots: Arc::new(roots), given: Arc::new([certificate.clone()]) }
    }

    fn as_server(
        trusted: &TrustedCertificates,
        shown: &CertificateDer<'static>,
        name: &str,
    ) -> Result<ServerCertVerified, Error> {
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let verifier = trusted.server_verifier(provider()).unwrap();
        verifier.verify_server_cert(shown, &[], &name, &[], UnixTime::now())
    }

    fn as_client(
        trusted: &TrustedCertificates,
        shown: &CertificateDer<'static>,
    ) -> Result<ClientCertVerified, Error> {
        let verifier = trusted.client_verifier(provider(), ClientCertificate::Required).unwrap();
        verifier.verify_client_cert(shown, &[], UnixTime::now())
    }

    #[test]
    fn a_certificate_that_is_trusted_itself_needs_no_ca_above_it() {
        let own = self_signed(|_| {});
        assert!(as_server(&trusting(&own), &own, NAME).is_ok());
        assert!(as_client(&trusting(&own), &own).is_ok());
        let leaf = self_signed(|params| params.is_ca = IsCa::NoCa);
        assert!(as_server(&trusting(&leaf), &leaf, NAME).is_ok());
    }

    #[test]
    fn its_name_its_time_and_its_use_still_count() {
        let own = self_signed(|_| {});
        let refused = |result: Result<ServerCertVerified, Error>| explain(&result.unwrap_err());
        assert!(refused(as_server(&trusting(&own), &own, "other.example")).contains("not for other.example"));
        let nameless = self_signed(|params| params.subject_alt_names.clear());
        assert!(
            refused(as_server(&trusting(&nameless), &nameless, NAME)).contains("it has no subjectAltName")
        );
        let old = self_signed(|params| params.not_after = rcgen::date_time_ymd(2020, 1, 1));
        assert!(refused(as_server(&trusting(&old), &old, NAME)).contains("has expired on 2020-01-01"));
        let new = self_signed(|params| params.not_before = rcgen::date_time_ymd(2100, 1, 1));
        assert!(refused(as_server(&trusting(&new), &new, NAME)).contains("not valid before 2100-01-01"));
        let for_clients =
            self_signed(|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth]);
        let trusted = trusting(&for_clients);
        assert!(refused(as_server(&trusted, &for_clients, NAME)).contains("server authentication"));
        assert!(as_client(&trusted, &for_clients).is_ok());
    }

    #[test]
    fn another_certificate_of_the_same_name_is_not_trusted() {
        let (own, other) = (self_signed(|_| {}), self_signed(|_| {}));
        assert!(as_server(&trusting(&own), &other, NAME).is_err());
        assert!(as_client(&trusting(&own), &other).is_err());
    }
}
