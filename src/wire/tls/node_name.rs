//! The name of a node, by the certificate that it shows.

use rustls::client::verify_server_name;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::ParsedCertificate;
use x509_cert::Certificate;
use x509_cert::der::Decode;

use super::validity::name_of;

/// Returns the first of `names` that the certificate is valid for, as if that node were dialled.
pub fn node_name<'n>(
    certificate: &CertificateDer<'_>,
    names: impl IntoIterator<Item = &'n str>,
) -> Option<&'n str> {
    let certificate = ParsedCertificate::try_from(certificate).ok()?;
    let is_valid_for = |name: &&str| {
        ServerName::try_from(*name).is_ok_and(|name| verify_server_name(&certificate, &name).is_ok())
    };
    names.into_iter().find(is_valid_for)
}

/// The name that the certificate gives first, for people to read.
pub fn certificate_name(certificate: &CertificateDer<'_>) -> String {
    match Certificate::from_der(certificate) {
        Ok(certificate) => name_of(&certificate),
        Err(_) => "nobody".to_owned(),
    }
}
