//! A key that verifies the signatures of session tokens, read from its file or from a JSON Web Key.
//!
//! A key has one algorithm, which the configuration or the set of keys names and no token can change.

use std::fmt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use jsonwebtoken::{Algorithm, DecodingKey, DecodingKeyKind};
use rustls::pki_types::SubjectPublicKeyInfoDer;
use rustls::pki_types::pem::PemObject;
use serde::Deserialize;
use x509_cert::der::asn1::{ObjectIdentifier, UintRef};
use x509_cert::der::{Decode, Reader, SliceReader};
use x509_cert::spki::SubjectPublicKeyInfoRef;

use super::bounded_file::{SECRET_FILE_BYTES_MAX, read_bounded};

/// The key of one signer.
#[derive(Clone)]
pub struct TokenKey {
    algorithm: TokenAlgorithm,
    key: DecodingKey,
}

/// A signature algorithm, by its name in a token's header (RFC 7518, RFC 8037).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum TokenAlgorithm {
    /// HMAC with SHA-256. The key that checks a token can also make one.
    HS256,
    /// Ed25519.
    #[serde(rename = "EdDSA")]
    EdDsa,
    /// ECDSA with the curve P-256 and SHA-256.
    ES256,
    /// RSA PKCS #1 v1.5 with SHA-256.
    RS256,
    /// RSA-PSS with SHA-256.
    PS256,
}

#[derive(Debug, thiserror::Error)]
pub enum TokenKeyError {
    #[error("it cannot be read: {0}")]
    Unreadable(std::io::Error),
    #[error("it can be read by everybody, who could then make tokens; run `chmod o= FILE`")]
    Exposed,
    #[error(
        "it is {0}, which anybody may have, and whoever has an HS256 secret can make tokens; set the algorithm of that key, \
         or make a secret with `openssl rand -hex 32`"
    )]
    PublicSecret(&'static str),
    #[error("its secret is shorter than {SECRET_BYTES_MIN} bytes; make one with `openssl rand -hex 32`")]
    Weak,
    #[error(
        "there is no public key in it; `openssl pkey -in PRIVATE -pubout` writes one, which begins with \
         `-----BEGIN PUBLIC KEY-----`"
    )]
    NoPublicKey,
    #[error("its public key is not for {algorithm}; set the algorithm that it was made for")]
    OtherAlgorithm { algorithm: TokenAlgorithm },
    #[error("its RSA key has fewer than 2048 bits; make a longer one")]
    ShortRsa,
    #[error("its RSA key has more than 8192 bits; make a shorter one")]
    LongRsa,
}

impl TokenKey {
    /// Reads the file of a key: a secret, or a public key in PEM.
    pub fn read(algorithm: TokenAlgorithm, file: &Path) -> Result<Self, TokenKeyError> {
        let text = read_bounded(file, SECRET_FILE_BYTES_MAX).map_err(TokenKeyError::Unreadable)?;
        if algorithm != TokenAlgorithm::HS256 {
            return Self::of_pem(algorithm, &text);
        }
        let metadata = std::fs::metadata(file).map_err(TokenKeyError::Unreadable)?;
        if metadata.permissions().mode() & 0o007 != 0 {
            return Err(TokenKeyError::Exposed);
        }
        let key = DecodingKey::from_secret(&secret(&text)?).map_err(|_| TokenKeyError::Weak)?;
        Ok(Self { algorithm, key })
    }

    fn of_pem(algorithm: TokenAlgorithm, text: &[u8]) -> Result<Self, TokenKeyError> {
        let der = SubjectPublicKeyInfoDer::from_pem_slice(text).map_err(|_| TokenKeyError::NoPublicKey)?;
        let info = SubjectPublicKeyInfoRef::from_der(&der).map_err(|_| TokenKeyError::NoPublicKey)?;
        let key = info.subject_public_key.as_bytes().ok_or(TokenKeyError::NoPublicKey)?;
        let curve = || info.algorithm.parameters.as_ref().and_then(|curve| curve.decode_as().ok());
        match info.algorithm.oid {
            RSA if algorithm.is_rsa() => {
                let (n, e) = rsa_numbers(key).ok_or(TokenKeyError::NoPublicKey)?;
                Self::rsa(algorithm, n, e)
            }
            ELLIPTIC_CURVE if algorithm == TokenAlgorithm::ES256 && curve() == Some(P256) => {
                Self::p256(key).ok_or(TokenKeyError::NoPublicKey)
            }
            ED25519 if algorithm == TokenAlgorithm::EdDsa => {
                Self::ed25519(key).ok_or(TokenKeyError::NoPublicKey)
            }
            _ => Err(TokenKeyError::OtherAlgorithm { algorithm }),
        }
    }

    /// A key of RSA, from its modulus and exponent.
    pub(super) fn rsa(algorithm: TokenAlgorithm, n: &[u8], e: &[u8]) -> Result<Self, TokenKeyError> {
        let (n, e) = (without_zeros(n), without_zeros(e));
        let bits = n.len() * 8 - n.first().map_or(0, |byte| byte.leading_zeros() as usize);
        match bits {
            ..RSA_BITS_MIN => Err(TokenKeyError::ShortRsa),
            RSA_BITS_MIN..=RSA_BITS_MAX => {
                Ok(Self { algorithm, key: DecodingKey::from_rsa_raw_components(n, e) })
            }
            _ => Err(TokenKeyError::LongRsa),
        }
    }

    /// A key of the curve P-256, from its point in the uncompressed form.
    pub(super) fn p256(point: &[u8]) -> Option<Self> {
        let is_point = point.len() == POINT_BYTES && point[0] == POINT_UNCOMPRESSED;
        is_point.then(|| Self { algorithm: TokenAlgorithm::ES256, key: DecodingKey::from_ec_der(point) })
    }

    pub(super) fn ed25519(key: &[u8]) -> Option<Self> {
        let is_key = key.len() == ED25519_BYTES;
        is_key.then(|| Self { algorithm: TokenAlgorithm::EdDsa, key: DecodingKey::from_ed_der(key) })
    }

    pub fn algorithm(&self) -> TokenAlgorithm {
        self.algorithm
    }

    /// The key as the library takes it.
    pub fn decoding_key(&self) -> &DecodingKey {
        &self.key
    }
}

impl TokenAlgorithm {
    pub const ALL: [Self; 5] = [Self::HS256, Self::EdDsa, Self::ES256, Self::RS256, Self::PS256];

    pub const fn name(self) -> &'static str {
        match self {
            Self::HS256 => "HS256",
            Self::EdDsa => "EdDSA",
            Self::ES256 => "ES256",
            Self::RS256 => "RS256",
            Self::PS256 => "PS256",
        }
    }

    /// The algorithm with this name. `None` for one that no key here has.
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|algorithm| algorithm.name() == name)
    }

    /// The algorithm as the library names it.
    pub const fn of_library(self) -> Algorithm {
        match self {
            Self::HS256 => Algorithm::HS256,
            Self::EdDsa => Algorithm::EdDSA,
            Self::ES256 => Algorithm::ES256,
            Self::RS256 => Algorithm::RS256,
            Self::PS256 => Algorithm::PS256,
        }
    }

    const fn is_rsa(self) -> bool {
        matches!(self, Self::RS256 | Self::PS256)
    }
}

impl fmt::Display for TokenAlgorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TokenKey({}, …)", self.algorithm)
    }
}

impl PartialEq for TokenKey {
    fn eq(&self, other: &Self) -> bool {
        use DecodingKeyKind::{RsaModulusExponent, SecretOrDer};
        let is_same_key = match (self.key.kind(), other.key.kind()) {
            (SecretOrDer(ours), SecretOrDer(theirs)) => ours == theirs,
            (RsaModulusExponent { n, e }, RsaModulusExponent { n: their_n, e: their_e }) => {
                (n, e) == (their_n, their_e)
            }
            _ => false,
        };
        self.algorithm == other.algorithm && is_same_key
    }
}

impl Eq for TokenKey {}

/// The secret in a file's text, without the white space around it.
fn secret(text: &[u8]) -> Result<Vec<u8>, TokenKeyError> {
    let secret = text.trim_ascii();
    if let Some(kind) = public_kind(text) {
        return Err(TokenKeyError::PublicSecret(kind));
    }
    if secret.len() < SECRET_BYTES_MIN { Err(TokenKeyError::Weak) } else { Ok(secret.to_vec()) }
}

/// The kind of public key or certificate that a text is, in any of the usual forms.
fn public_kind(text: &[u8]) -> Option<&'static str> {
    let secret = text.trim_ascii();
    let line = String::from_utf8_lossy(secret);
    let is_spki = |der: &[u8]| SubjectPublicKeyInfoRef::from_der(der).is_ok();
    let jwk = || serde_json::from_slice::<serde_json::Value>(secret).ok();
    // A JSON Web Key has `d` where it is private, and `k` where it is a secret (RFC 7518, section 6).
    let is_public_jwk =
        |key: &serde_json::Value| key.get("kty").is_some() && key.get("d").or(key.get("k")).is_none();
    let is_pem_or_ssh =
        line.contains("PUBLIC KEY-----") || SSH_KEYS.iter().any(|kind| line.starts_with(kind));
    if line.contains("-----BEGIN CERTIFICATE-----") {
        Some("a certificate")
    } else if is_pem_or_ssh || is_spki(secret) || BASE64.decode(secret).is_ok_and(|der| is_spki(&der)) {
        Some("a public key")
    } else if jwk().is_some_and(|key| is_public_jwk(&key) || key.get("keys").is_some()) {
        Some("a public JSON Web Key")
    } else {
        None
    }
}

/// Modulus and exponent of an `RSAPublicKey` (RFC 8017, appendix A.1.1).
fn rsa_numbers(der: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut reader = SliceReader::new(der).ok()?;
    let numbers = reader.sequence(|numbers| {
        let (n, e) = (UintRef::decode(numbers)?, UintRef::decode(numbers)?);
        Ok::<_, x509_cert::der::Error>((n.as_bytes(), e.as_bytes()))
    });
    numbers.ok()
}

fn without_zeros(number: &[u8]) -> &[u8] {
    let first = number.iter().position(|byte| *byte != 0).unwrap_or(number.len());
    &number[first..]
}

/// `rsaEncryption` (RFC 8017), `id-ecPublicKey` and `secp256r1` (RFC 5480), `id-Ed25519` (RFC 8410).
const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
const ELLIPTIC_CURVE: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const P256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
const ED25519: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.112");

/// How the public keys of OpenSSH begin.
const SSH_KEYS: [&str; 3] = ["ssh-rsa ", "ssh-ed25519 ", "ecdsa-sha2-"];

/// Bytes of a secret at least: as many as the HMAC has (RFC 7518, section 3.2).
const SECRET_BYTES_MIN: usize = 32;

/// Bits of an RSA key's modulus: no shorter one is good (RFC 7518, section 3.3), and a longer one takes an engine thread
/// milliseconds.
const RSA_BITS_MIN: usize = 2048;
const RSA_BITS_MAX: usize = 8192;

/// Bytes of a point of P-256: its form and two coordinates (SEC 1, section 2.3.3).
const POINT_BYTES: usize = 65;
const POINT_UNCOMPRESSED: u8 = 4;

const ED25519_BYTES: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_that_anybody_may_have_is_refused() {
        let pair = rcgen::KeyPair::generate().unwrap();
        let certificate = rcgen::CertificateParams::new([]).unwrap().self_signed(&pair).unwrap();
        let der = rcgen::PublicKeyData::subject_public_key_info(&pair);
        let jwk = r#"{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#;
        for (public, kind) in [
            (pair.public_key_pem().into_bytes(), "a public key"),
            (certificate.pem().into_bytes(), "a certificate"),
            (der.clone(), "a public key"),
            (BASE64.encode(&der).into_bytes(), "a public key"),
            (b"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ0 relay@example\n".to_vec(), "a public key"),
            (jwk.into(), "a public JSON Web Key"),
            (format!("{{\"keys\":[{jwk}]}}").into_bytes(), "a public JSON Web Key"),
        ] {
            let refused = secret(&public).unwrap_err();
            assert!(matches!(refused, TokenKeyError::PublicSecret(found) if found == kind), "{refused}");
        }
        let secrets =
            ["0123456789abcdef0123456789abcdef", r#"{"kty":"oct","k":"c2VjcmV0IHNlY3JldCBzZWNyZXQ"}"#];
        assert!(secrets.iter().all(|text| secret(text.as_bytes()).is_ok()));
    }

    #[test]
    fn a_key_is_never_shown() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("secret");
        std::fs::write(&file, "0123456789abcdef0123456789abcdef\n").unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        let key = TokenKey::read(TokenAlgorithm::HS256, &file).unwrap();
        assert_eq!(format!("{key:?}"), "TokenKey(HS256, …)");
    }
}
