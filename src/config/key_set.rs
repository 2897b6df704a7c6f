//! A set of public keys (JSON Web Key Set, RFC 7517), as a login service publishes them.
//!
//! Only the keys that can verify a session token are kept: keys of other kinds, for encryption, or secrets are left out.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyOperations, PublicKeyUse};
use serde::Deserialize;

use super::token_key::{TokenAlgorithm, TokenKey, TokenKeyError};

/// The usable keys of a set. There is at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeySet {
    keys: Vec<SetKey>,
}

/// One key of a set, for one algorithm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetKey {
    /// Its name (`kid`). Several keys may have the same one.
    pub id: Option<String>,
    pub key: TokenKey,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeySetError {
    #[error("it is no JSON Web Key Set: an object with `keys`, a list")]
    NoSet,
    #[error("it has more than {KEYS_MAX} keys; a forged token could be tried against each")]
    TooManyKeys,
    #[error("it has no key that verifies session tokens ({})", Excuse(.0))]
    NoUsableKey(Option<String>),
}

/// Shows why the first key of a set cannot be used.
struct Excuse<'a>(&'a Option<String>);

/// The outer form of a set. Its keys are read one by one, so that one of an unknown kind spoils no other.
#[derive(Deserialize)]
struct Raw {
    keys: Vec<serde_json::Value>,
}

impl KeySet {
    /// Reads a set of at most [`KEY_SET_BYTES_MAX`] bytes, which the caller ensures.
    pub fn parse(text: &[u8]) -> Result<Self, KeySetError> {
        let Raw { keys } = serde_json::from_slice(text).map_err(|_| KeySetError::NoSet)?;
        if keys.len() > KEYS_MAX {
            return Err(KeySetError::TooManyKeys);
        }
        let (mut usable, mut excuse) = (Vec::new(), None);
        for key in keys {
            match usable_keys(key) {
                Ok(keys) => usable.extend(keys),
                Err(why) => excuse = excuse.or(Some(why)),
            }
        }
        if usable.is_empty() { Err(KeySetError::NoUsableKey(excuse)) } else { Ok(Self { keys: usable }) }
    }

    pub fn keys(&self) -> &[SetKey] {
        &self.keys
    }

    /// The names of the keys, each once.
    pub fn ids(&self) -> Vec<&str> {
        let mut ids: Vec<&str> =
            self.keys.iter().map(|key| key.id.as_deref().unwrap_or("(no kid)")).collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }
}

impl std::fmt::Display for Excuse<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(why) => write!(f, "the first one: {why}"),
            None => f.write_str("it is empty"),
        }
    }
}

/// The keys that a JSON Web Key is: an RSA key without `alg` is good for two algorithms. Fails with the reason.
fn usable_keys(key: serde_json::Value) -> Result<Vec<SetKey>, String> {
    let jwk: Jwk = serde_json::from_value(key).map_err(|_| "it is no JSON Web Key".to_owned())?;
    if !matches!(jwk.common.public_key_use, None | Some(PublicKeyUse::Signature)) {
        return Err("its `use` is not `sig`".to_owned());
    }
    let operations = jwk.common.key_operations.as_ref();
    if operations.is_some_and(|operations| !operations.contains(&KeyOperations::Verify)) {
        return Err("its `key_ops` lack `verify`".to_owned());
    }
    let id = jwk.common.key_id.clone().filter(|id| id.len() <= KEY_ID_BYTES_MAX);
    if id.is_none() && jwk.common.key_id.is_some() {
        return Err(format!("its `kid` has more than {KEY_ID_BYTES_MAX} bytes"));
    }
    let named = jwk.common.key_algorithm.map(|algorithm| algorithm.to_string());
    let is_for = |algorithm: &TokenAlgorithm| named.as_deref().is_none_or(|named| named == algorithm.name());
    let algorithms: Vec<_> = algorithms(&jwk.algorithm)?.iter().copied().filter(is_for).collect();
    if algorithms.is_empty() {
        return Err(format!("its algorithm {} is not supported for it", named.unwrap_or_default()));
    }
    let keys = algorithms.into_iter().map(|algorithm| {
        let key = key_for(algorithm, &jwk.algorithm)?;
        Ok(SetKey { id: id.clone(), key })
    });
    keys.collect()
}

/// The algorithms that a key can have. A secret has no business in a set that others read.
fn algorithms(key: &AlgorithmParameters) -> Result<&'static [TokenAlgorithm], String> {
    match key {
        AlgorithmParameters::RSA(_) => Ok(&[TokenAlgorithm::RS256, TokenAlgorithm::PS256]),
        AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P256 => {
            Ok(&[TokenAlgorithm::ES256])
        }
        AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => {
            Ok(&[TokenAlgorithm::EdDsa])
        }
        AlgorithmParameters::OctetKey(_) => Err("it is a secret".to_owned()),
        _ => Err("its `kty` or `crv` is not supported".to_owned()),
    }
}

fn key_for(algorithm: TokenAlgorithm, key: &AlgorithmParameters) -> Result<TokenKey, String> {
    let bytes = |text: &str| BASE64URL.decode(text).map_err(|_| "a number in it is no base64url".to_owned());
    let of_curve = || "its coordinates have another length".to_owned();
    match key {
        AlgorithmParameters::RSA(key) => {
            let why = |error: TokenKeyError| error.to_string();
            TokenKey::rsa(algorithm, &bytes(&key.n)?, &bytes(&key.e)?).map_err(why)
        }
        AlgorithmParameters::EllipticCurve(key) => {
            let (x, y) = (bytes(&key.x)?, bytes(&key.y)?);
            if x.len() != y.len() {
                return Err(of_curve());
            }
            TokenKey::p256(&[&[4], &*x, &*y].concat()).ok_or_else(of_curve)
        }
        AlgorithmParameters::OctetKeyPair(key) => TokenKey::ed25519(&bytes(&key.x)?).ok_or_else(of_curve),
        _ => Err("its `kty` is not supported".to_owned()),
    }
}

/// Bytes of a set at most. The largest in use, with chains of certificates in it, have some 20 KiB.
pub const KEY_SET_BYTES_MAX: u64 = 256 * 1024;

/// Keys of a set at most. Those of large login services have fewer than ten.
pub const KEYS_MAX: usize = 32;

/// Bytes of a key's name at most.
const KEY_ID_BYTES_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    const ED25519: &str =
        r#"{"kty":"OKP","crv":"Ed25519","kid":"a","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#;
    /// The key of RFC 7517, appendix A.1.
    const P256: &str = r#"{"kty":"EC","crv":"P-256","kid":"1",
        "x":"MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4","y":"4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM"}"#;

    fn set(keys: &[&str]) -> Result<KeySet, KeySetError> {
        KeySet::parse(format!("{{\"keys\":[{}]}}", keys.join(",")).as_bytes())
    }

    fn rsa(bytes: usize, more: &str) -> String {
        let n = BASE64URL.encode(vec![0xc5; bytes]);
        format!(r#"{{"kty":"RSA","n":"{n}","e":"AQAB"{more}}}"#)
    }

    #[test]
    fn the_keys_of_a_set_have_the_algorithms_that_they_are_good_for() {
        let (any, pss) = (rsa(256, ""), rsa(256, r#","alg":"PS256","kid":"p","use":"sig""#));
        let set = set(&[ED25519, P256, &any, &pss]).unwrap();
        let names = set.keys().iter().map(|each| (each.id.as_deref(), each.key.algorithm().name()));
        let expected = [
            (Some("a"), "EdDSA"),
            (Some("1"), "ES256"),
            (None, "RS256"),
            (None, "PS256"),
            (Some("p"), "PS256"),
        ];
        assert_eq!(names.collect::<Vec<_>>(), expected);
        assert_eq!(set.ids(), ["(no kid)", "1", "a", "p"]);
    }

    #[test]
    fn a_key_that_cannot_be_used_spoils_no_other() {
        let unusable = [
            r#"{"kty":"oct","k":"c2VjcmV0IHNlY3JldCBzZWNyZXQgc2VjcmV0IHNlY3JldA"}"#.to_owned(),
            r#"{"kty":"EC","crv":"P-384","x":"AA","y":"AA"}"#.to_owned(),
            r#"{"kty":"EC","crv":"P-256","x":"AA","y":"AA"}"#.to_owned(),
            r#"{"kty":"EC","crv":"secp256k1","x":"AA","y":"AA"}"#.to_owned(),
            r#"{"kty":"LMS","pub":"AA"}"#.to_owned(),
            r#"{"kty":"OKP","crv":"X25519","x":"AA"}"#.to_owned(),
            P256.replace("\"kid\":\"1\"", "\"use\":\"enc\""),
            P256.replace("\"kid\":\"1\"", "\"key_ops\":[\"sign\"]"),
            P256.replace("\"kid\":\"1\"", "\"alg\":\"ES384\""),
            P256.replace("\"kid\":\"1\"", "\"alg\":\"RS256\""),
            P256.replace("\"kid\":\"1\"", &format!("\"kid\":\"{}\"", "k".repeat(KEY_ID_BYTES_MAX + 1))),
            rsa(255, ""),
            rsa(1025, ""),
            rsa(256, r#","alg":"HS256""#),
            "7".to_owned(),
        ];
        for each in &unusable {
            let refused = set(&[each]).unwrap_err();
            assert!(matches!(refused, KeySetError::NoUsableKey(Some(_))), "{each}: {refused}");
            assert_eq!(set(&[each, ED25519]).unwrap().keys().len(), 1, "{each}");
        }
    }

    #[test]
    fn what_is_no_set_or_has_too_many_keys_is_refused() {
        for text in ["", "[]", "{}", "{\"keys\":{}}", "<html>", ED25519] {
            assert_eq!(KeySet::parse(text.as_bytes()), Err(KeySetError::NoSet), "{text}");
        }
        assert_eq!(set(&[]), Err(KeySetError::NoUsableKey(None)));
        assert_eq!(set(&[ED25519; KEYS_MAX]).unwrap().keys().len(), KEYS_MAX);
        assert_eq!(set(&[ED25519; KEYS_MAX + 1]), Err(KeySetError::TooManyKeys));
    }
}
