//! Reads certificates and private keys from PEM files, and finds out why a file has none.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// A PEM file that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {problem}", .file.display())]
pub struct PemFileError {
    pub file: PathBuf,
    pub problem: PemProblem,
}

/// Reason why a text has no certificate or no key. Each text ends in the remedy.
#[derive(Debug, thiserror::Error)]
pub enum PemProblem {
    #[error("it cannot be read: {0}; check the path and its permissions")]
    Unreadable(io::Error),
    #[error(
        "it is larger than {PEM_BYTES_MAX} bytes, so it is no PEM file of certificates; name another one"
    )]
    TooLarge,
    #[error("it is empty; write the {0} into it")]
    Empty(PemItem),
    #[error("it is not PEM, which begins with `-----BEGIN`, but DER; `openssl {} -inform der -in FILE -out NEW` converts it", .0.command())]
    Der(PemItem),
    #[error("it is not PEM, which begins with `-----BEGIN`; name the file of the {0}")]
    NotPem(PemItem),
    #[error(
        "its private key has a password, which nobody is there to type; `openssl pkey -in FILE -out NEW` writes it \
         without one"
    )]
    Encrypted,
    #[error(
        "it ends in the middle of its {label}: the line `-----END {label}-----` is missing; copy the whole file again"
    )]
    Cut { label: String },
    #[error("its {label} is not base64, as PEM is; copy the file again")]
    NotBase64 { label: String },
    #[error("there is no {wanted} in it, but {found}; name the file of the {wanted}")]
    Other { wanted: PemItem, found: String },
}

/// The kind of item that a file must have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PemItem {
    Certificate,
    PrivateKey,
}

/// Reads all certificates of a file, which has at least one.
pub fn read_certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, PemFileError> {
    let unusable = |problem| PemFileError { file: file.to_owned(), problem };
    let text = read(file).map_err(unusable)?;
    let certificates = CertificateDer::pem_slice_iter(&text).collect::<Result<Vec<_>, _>>();
    match certificates {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        unread => Err(unusable(problem(&text, PemItem::Certificate, unread.err()))),
    }
}

/// Reads the first private key of a file.
pub fn read_private_key(file: &Path) -> Result<PrivateKeyDer<'static>, PemFileError> {
    let unusable = |problem| PemFileError { file: file.to_owned(), problem };
    let text = read(file).map_err(unusable)?;
    PrivateKeyDer::from_pem_slice(&text)
        .map_err(|error| unusable(problem(&text, PemItem::PrivateKey, Some(error))))
}

impl PemItem {
    /// The subcommand of openssl for this kind.
    const fn command(self) -> &'static str {
        match self {
            Self::Certificate => "x509",
            Self::PrivateKey => "pkey",
        }
    }
}

impl std::fmt::Display for PemItem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Certificate => "certificate",
            Self::PrivateKey => "private key",
        })
    }
}

fn read(file: &Path) -> Result<Vec<u8>, PemProblem> {
    let mut text = Vec::new();
    File::open(file)
        .and_then(|opened| opened.take(PEM_BYTES_MAX + 1).read_to_end(&mut text))
        .map_err(PemProblem::Unreadable)?;
    if text.len() as u64 > PEM_BYTES_MAX { Err(PemProblem::TooLarge) } else { Ok(text) }
}

/// Finds out why a text has no `wanted`.
fn problem(text: &[u8], wanted: PemItem, error: Option<pem::Error>) -> PemProblem {
    let sections = sections(&String::from_utf8_lossy(text));
    let Some(last) = sections.last() else {
        return match text.trim_ascii().first() {
            None => PemProblem::Empty(wanted),
            // Every DER file of these kinds is a SEQUENCE.
            Some(&DER_SEQUENCE) => PemProblem::Der(wanted),
            Some(_) => PemProblem::NotPem(wanted),
        };
    };
    if wanted == PemItem::PrivateKey && sections.iter().any(|section| section.is_encrypted) {
        return PemProblem::Encrypted;
    }
    if let Some(cut) = sections.iter().find(|section| !section.has_end) {
        return PemProblem::Cut { label: cut.label.clone() };
    }
    match error {
        Some(pem::Error::NoItemsFound) | None => {
            let mut found: Vec<&str> = sections.iter().map(|section| section.label.as_str()).collect();
            found.dedup();
            PemProblem::Other { wanted, found: found.join(", ") }
        }
        Some(_) => PemProblem::NotBase64 { label: last.label.clone() },
    }
}

/// A section of a PEM text.
struct Section {
    label: String,
    has_end: bool,
    is_encrypted: bool,
}

fn sections(text: &str) -> Vec<Section> {
    let mut sections: Vec<Section> = Vec::new();
    for line in text.lines().map(str::trim_end) {
        if let Some(rest) = line.strip_prefix("-----BEGIN ") {
            let label = rest.trim_end_matches('-').to_owned();
            let is_encrypted = label.starts_with("ENCRYPTED");
            sections.push(Section { label, has_end: false, is_encrypted });
        } else if let Some(section) = sections.last_mut() {
            section.has_end |= line == format!("-----END {}-----", section.label);
            // RFC 1421, which openssl writes with -traditional.
            section.is_encrypted |= line.starts_with("Proc-Type:") && line.ends_with("ENCRYPTED");
        }
    }
    sections
}

/// First byte of a DER file of a certificate or a key.
const DER_SEQUENCE: u8 = 0x30;

/// Bytes of a PEM file. A bundle of all public CAs has about 250 KiB.
const PEM_BYTES_MAX: u64 = 4 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn written(text: &[u8]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file
    }

    fn of_certificate(text: &[u8]) -> String {
        read_certificates(written(text).path()).unwrap_err().problem.to_string()
    }

    fn of_key(text: &[u8]) -> String {
        read_private_key(written(text).path()).unwrap_err().problem.to_string()
    }

    #[test]
    fn each_file_that_is_of_no_use_is_told_by_its_cause() {
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = rcgen::CertificateParams::new([]).unwrap().self_signed(&key).unwrap();
        let pem = certificate.pem();
        let without_end = &pem[..pem.len() / 2];
        let encrypted = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMAA=\n-----END ENCRYPTED PRIVATE KEY-----\n";
        let traditional = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\nMAA=\n\
                           -----END RSA PRIVATE KEY-----\n";
        let letters = "-----BEGIN CERTIFICATE-----\n***\n-----END CERTIFICATE-----\n";
        for (said, expected) in [
            (of_certificate(b" \n"), "it is empty"),
            (of_certificate(certificate.der()), "`openssl x509 -inform der"),
            (of_key(&key.serialize_der()), "`openssl pkey -inform der"),
            (of_certificate(b"nothing\n"), "it is not PEM"),
            (of_key(encrypted.as_bytes()), "its private key has a password"),
            (of_key(traditional.as_bytes()), "its private key has a password"),
            (of_certificate(without_end.as_bytes()), "the line `-----END CERTIFICATE-----` is missing"),
            (of_certificate(letters.as_bytes()), "its CERTIFICATE is not base64"),
            (of_certificate(key.serialize_pem().as_bytes()), "no certificate in it, but PRIVATE KEY"),
            (of_key(pem.as_bytes()), "no private key in it, but CERTIFICATE"),
        ] {
            assert!(said.contains(expected), "`{expected}` is not in: {said}");
            assert!(said.contains("; "), "no remedy: {said}");
        }
        assert!(read_certificates(written(pem.as_bytes()).path()).is_ok());
        let missing = read_certificates(Path::new("/nowhere.pem")).unwrap_err().to_string();
        assert!(missing.contains("/nowhere.pem: it cannot be read: No such file"), "{missing}");
    }
}
