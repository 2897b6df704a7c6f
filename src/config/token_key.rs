//! A key that verifies the signatures of session tokens, read from its file.
//!
//! A key has one algorithm, which the configuration names and no token can change.

use std::fmt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use ring::hmac;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{SignatureVerificationAlgorithm, SubjectPublicKeyInfoDer};
use serde::Deserialize;
use webpki::RawPublicKeyEntity;

use super::bounded_file::{SECRET_FILE_BYTES_MAX, read_bounded};

/// The key of one signer.
#[derive(Clone, PartialEq, Eq)]
pub struct TokenKey {
    algorithm: TokenAlgorithm,
    /// The secret itself, or the public key as SubjectPublicKeyInfo.
    bytes: Box<[u8]>,
}

/// A signature algorithm, by its name in a token's header (RFC 7518, RFC 8037).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum TokenAlgorithm {
    /// HMAC with SHA-256. The key that checks a token can also make one.
    HS256,
    /// Ed25519.
    #[serde(rename = "EdDSA")]
    EdDsa,
    /// RSA PKCS #1 v1.5 with SHA-256.
    RS256,
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
}

impl TokenKey {
    /// Reads the file of a key: a secret, or a public key in PEM.
    pub fn read(algorithm: TokenAlgorithm, file: &Path) -> Result<Self, TokenKeyError> {
        let text = read_bounded(file, SECRET_FILE_BYTES_MAX).map_err(TokenKeyError::Unreadable)?;
        let bytes = match algorithm.public() {
            None => {
                let metadata = std::fs::metadata(file).map_err(TokenKeyError::Unreadable)?;
                if metadata.permissions().mode() & 0o007 != 0 {
                    return Err(TokenKeyError::Exposed);
                }
                secret(&text)?
            }
            Some(public) => public_key(algorithm, public, &text)?,
        };
        Ok(Self { algorithm, bytes: bytes.into() })
    }

    pub fn algorithm(&self) -> TokenAlgorithm {
        self.algorithm
    }

    /// True where `signature` is a signature of `message` by this key.
    pub fn has_signed(&self, message: &[u8], signature: &[u8]) -> bool {
        match self.algorithm.public() {
            // This compares in constant time.
            None => hmac::verify(&hmac::Key::new(hmac::HMAC_SHA256, &self.bytes), message, signature).is_ok(),
            Some(public) => verify(public, &self.bytes, message, signature).is_ok(),
        }
    }
}

impl TokenAlgorithm {
    pub const fn name(self) -> &'static str {
        match self {
            Self::HS256 => "HS256",
            Self::EdDsa => "EdDSA",
            Self::RS256 => "RS256",
        }
    }

    /// The check of a signature by a public key; `None` for a secret.
    fn public(self) -> Option<&'static dyn SignatureVerificationAlgorithm> {
        match self {
            Self::HS256 => None,
            Self::EdDsa => Some(webpki::ring::ED25519),
            Self::RS256 => Some(webpki::ring::RSA_PKCS1_2048_8192_SHA256),
        }
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
    let is_spki = |der: &[u8]| RawPublicKeyEntity::try_from(&SubjectPublicKeyInfoDer::from(der)).is_ok();
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

fn public_key(
    algorithm: TokenAlgorithm,
    public: &dyn SignatureVerificationAlgorithm,
    text: &[u8],
) -> Result<Vec<u8>, TokenKeyError> {
    let key = SubjectPublicKeyInfoDer::from_pem_slice(text).map_err(|_| TokenKeyError::NoPublicKey)?;
    match verify(public, &key, b"", b"") {
        // The error of a usable key: an empty signature is never valid.
        Err(webpki::Error::InvalidSignatureForPublicKey) => {}
        Err(webpki::Error::UnsupportedSignatureAlgorithmForPublicKeyContext(_)) => {
            return Err(TokenKeyError::OtherAlgorithm { algorithm });
        }
        _ => return Err(TokenKeyError::NoPublicKey),
    }
    // No signature of a shorter key is accepted, but the library reports that only for a signature.
    if algorithm == TokenAlgorithm::RS256 && key.len() < RSA_KEY_BYTES_MIN {
        return Err(TokenKeyError::ShortRsa);
    }
    Ok(key.to_vec())
}

fn verify(
    public: &dyn SignatureVerificationAlgorithm,
    key: &[u8],
    message: &[u8],
    signature: &[u8],
) -> Result<(), webpki::Error> {
    RawPublicKeyEntity::try_from(&SubjectPublicKeyInfoDer::from(key))?
        .verify_signature(public, message, signature)
}

/// How the public keys of OpenSSH begin.
const SSH_KEYS: [&str; 3] = ["ssh-rsa ", "ssh-ed25519 ", "ecdsa-sha2-"];

/// Bytes of a secret at least: as many as the HMAC has (RFC 7518, section 3.2).
const SECRET_BYTES_MIN: usize = 32;

/// Bytes of a SubjectPublicKeyInfo with a modulus of 2048 bits and the smallest exponent. The next shorter modulus in
/// use, of 1536 bits, makes 230.
const RSA_KEY_BYTES_MIN: usize = 290;

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
