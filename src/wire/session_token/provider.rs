//! The signatures that the JWT library verifies, by the same cryptography as TLS: there is one library for both.

use std::sync::Once;

use jsonwebtoken::crypto::{CryptoProvider, JwtSigner, JwtVerifier, KeyUtils};
use jsonwebtoken::errors::{Error, ErrorKind};
use jsonwebtoken::signature::{Error as SignatureError, Verifier};
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey, DecodingKeyKind, EncodingKey};
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ED25519, RSA_PKCS1_2048_8192_SHA256, RSA_PSS_2048_8192_SHA256, RsaParameters,
    RsaPublicKeyComponents, UnparsedPublicKey, VerificationAlgorithm,
};
use ring::{error::Unspecified, hmac};

/// Has the library use this provider. Repeated calls do nothing.
pub(super) fn install() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        // Nothing else in this process uses the library.
        let _this_is_the_first = PROVIDER.install_default();
    });
}

static PROVIDER: CryptoProvider = CryptoProvider {
    signer_factory: no_signer,
    verifier_factory: verifier,
    // The utilities derive keys from other keys, which nothing here does.
    key_utils: KeyUtils::new_unimplemented(),
};

/// The check of signatures by one key.
struct RingVerifier {
    algorithm: Algorithm,
    key: DecodingKeyKind,
}

impl JwtVerifier for RingVerifier {
    fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}

impl Verifier<Vec<u8>> for RingVerifier {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> Result<(), SignatureError> {
        let verified = match (&self.key, self.algorithm) {
            (DecodingKeyKind::RsaModulusExponent { n, e }, algorithm) => {
                rsa(algorithm).and_then(|rsa| RsaPublicKeyComponents { n, e }.verify(rsa, message, signature))
            }
            // This compares in constant time.
            (DecodingKeyKind::SecretOrDer(secret), Algorithm::HS256) => {
                hmac::verify(&hmac::Key::new(hmac::HMAC_SHA256, secret), message, signature)
            }
            (DecodingKeyKind::SecretOrDer(key), algorithm) => elliptic(algorithm)
                .and_then(|curve| UnparsedPublicKey::new(curve, key).verify(message, signature)),
        };
        verified.map_err(|_| SignatureError::new())
    }
}

/// Makes the check for one key. The library has compared the token's algorithm with the key's before, and a key of
/// another family is refused here once more: a public key is no secret.
fn verifier(algorithm: &Algorithm, key: &DecodingKey) -> Result<Box<dyn JwtVerifier>, Error> {
    let is_supported = matches!(
        algorithm,
        Algorithm::HS256 | Algorithm::EdDSA | Algorithm::ES256 | Algorithm::RS256 | Algorithm::PS256
    );
    let is_of_numbers = matches!(key.kind(), DecodingKeyKind::RsaModulusExponent { .. });
    let is_rsa = algorithm.family() == AlgorithmFamily::Rsa;
    if !is_supported || algorithm.family() != key.family() || is_rsa != is_of_numbers {
        return Err(ErrorKind::InvalidAlgorithm.into());
    }
    Ok(Box::new(RingVerifier { algorithm: *algorithm, key: key.kind().clone() }))
}

fn no_signer(_: &Algorithm, _: &EncodingKey) -> Result<Box<dyn JwtSigner>, Error> {
    Err(ErrorKind::Signing("a relay signs no tokens".to_owned()).into())
}

fn rsa(algorithm: Algorithm) -> Result<&'static RsaParameters, Unspecified> {
    match algorithm {
        Algorithm::RS256 => Ok(&RSA_PKCS1_2048_8192_SHA256),
        Algorithm::PS256 => Ok(&RSA_PSS_2048_8192_SHA256),
        _ => Err(Unspecified),
    }
}

fn elliptic(algorithm: Algorithm) -> Result<&'static dyn VerificationAlgorithm, Unspecified> {
    match algorithm {
        Algorithm::ES256 => Ok(&ECDSA_P256_SHA256_FIXED),
        Algorithm::EdDSA => Ok(&ED25519),
        _ => Err(Unspecified),
    }
}
