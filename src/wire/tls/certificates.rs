//! Chooses the certificate for a client: the first one that has the name which the client asked for.

use std::sync::Arc;

use rustls::SignatureScheme;
use rustls::client::{ResolvesClientCert, verify_server_name};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::{ClientHello, ParsedCertificate, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::explain::{explain, explain_certificate};

/// Certificate chains with their keys; at least one.
#[derive(Debug)]
pub struct Certificates(Vec<Arc<CertifiedKey>>);

#[derive(Debug, thiserror::Error)]
pub enum CertificatesError {
    #[error("there is no certificate")]
    None,
    #[error("its key does not belong to the certificate; name the two files that were made together")]
    OtherKey,
    #[error(
        "the chain is in the wrong order: the key belongs to certificate {place} of the file; put that one first, and then \
         each one's signer"
    )]
    Order { place: usize },
    #[error("the certificate {}", explain_malformed(.0))]
    Malformed(rustls::Error),
}

impl Certificates {
    pub fn new(keys: Vec<CertifiedKey>) -> Result<Self, CertificatesError> {
        if keys.is_empty() {
            return Err(CertificatesError::None);
        }
        for key in &keys {
            check(key)?;
        }
        Ok(Self(keys.into_iter().map(Arc::new).collect()))
    }

    /// True where one of the certificates is valid for `name`.
    pub fn has(&self, name: &str) -> bool {
        ServerName::try_from(name).is_ok_and(|name| self.0.iter().any(|key| has_name(key, &name)))
    }

    /// The certificate for `name`. The first of all where no certificate has that name, or the client gave none.
    fn for_name(&self, name: Option<&str>) -> Option<Arc<CertifiedKey>> {
        let name = name.and_then(|name| ServerName::try_from(name).ok());
        let fitting = name.and_then(|name| self.0.iter().find(|key| has_name(key, &name)));
        fitting.or_else(|| self.0.first()).cloned()
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.for_name(hello.server_name())
    }
}

impl ResolvesClientCert for Certificates {
    fn resolve(&self, _roots: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.first().cloned()
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Finds faults that a client would notice only during a handshake.
fn check(key: &CertifiedKey) -> Result<(), CertificatesError> {
    let certificate = key.end_entity_cert().map_err(|_| CertificatesError::None)?;
    ParsedCertificate::try_from(certificate).map_err(CertificatesError::Malformed)?;
    match key.keys_match() {
        // Some keys cannot be compared.
        Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => Ok(()),
        Err(_) => Err(match place_of_key(key) {
            Some(place) => CertificatesError::Order { place },
            None => CertificatesError::OtherKey,
        }),
    }
}

/// The place in the chain of the certificate that the key belongs to, from 1.
fn place_of_key(key: &CertifiedKey) -> Option<usize> {
    let belongs = |certificate: &CertificateDer<'static>| {
        CertifiedKey::new(vec![certificate.clone()], Arc::clone(&key.key)).keys_match().is_ok()
    };
    key.cert.iter().position(belongs).map(|place| place + 1)
}

fn explain_malformed(error: &rustls::Error) -> String {
    match error {
        rustls::Error::InvalidCertificate(problem) => explain_certificate(problem),
        other => format!("cannot be used: {}", explain(other)),
    }
}

fn has_name(key: &CertifiedKey, name: &ServerName<'_>) -> bool {
    key.cert
        .first()
        .and_then(|certificate| ParsedCertificate::try_from(certificate).ok())
        .is_some_and(|certificate| verify_server_name(&certificate, name).is_ok())
}

#[cfg(test)]
mod tests {
    use rustls::crypto::ring::sign::any_supported_type;
    use rustls::pki_types::PrivateKeyDer;

    use super::*;

    fn key(names: &[&str]) -> CertifiedKey {
        let pair = rcgen::KeyPair::generate().unwrap();
        key_with(names, &pair, &pair)
    }

    fn key_with(names: &[&str], signed: &rcgen::KeyPair, held: &rcgen::KeyPair) -> CertifiedKey {
        let names = names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let certificate = rcgen::CertificateParams::new(names).unwrap().self_signed(signed).unwrap();
        let der = PrivateKeyDer::try_from(held.serialize_der()).unwrap();
        CertifiedKey::new(vec![certificate.der().clone()], any_supported_type(&der).unwrap())
    }

    #[test]
    fn a_client_is_shown_the_certificate_that_has_its_name_and_else_the_first() {
        let keys = [&["first.example"][..], &["a.example", "*.wide.example"]].map(key);
        let certificates = Certificates::new(keys.into()).unwrap();
        let shown = |name| {
            let shown = certificates.for_name(name).unwrap();
            certificates.0.iter().position(|key| Arc::ptr_eq(key, &shown)).unwrap()
        };
        let names = ["a.example", "x.wide.example", "first.example", "other.example", "wide.example", "?"];
        assert_eq!(names.map(|name| shown(Some(name))), [1, 1, 0, 0, 0, 0]);
        assert_eq!(shown(None), 0);
    }

    #[test]
    fn a_chain_that_does_not_begin_with_the_keys_certificate_is_told() {
        let (mut own, other) = (key(&["a.example"]), key(&["b.example"]));
        own.cert.insert(0, other.cert[0].clone());
        let refused = Certificates::new(vec![own]).unwrap_err().to_string();
        assert!(refused.contains("wrong order: the key belongs to certificate 2"), "{refused}");
    }

    #[test]
    fn a_key_of_another_certificate_and_no_certificate_at_all_are_refused() {
        let [one, other] = [(); 2].map(|()| rcgen::KeyPair::generate().unwrap());
        let refused = Certificates::new(vec![key_with(&["a.example"], &one, &other)]).unwrap_err();
        assert!(matches!(refused, CertificatesError::OtherKey), "{refused}");
        assert!(matches!(Certificates::new(vec![]).unwrap_err(), CertificatesError::None));
        let mut broken = key(&["a.example"]);
        broken.cert = vec![vec![0x30, 0x00].into()];
        assert!(matches!(Certificates::new(vec![broken]).unwrap_err(), CertificatesError::Malformed(_)));
    }
}
