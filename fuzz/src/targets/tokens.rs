//! Session tokens, and the files of the keys that verify them.

use std::cell::OnceCell;
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL;
use ring::hmac;
use sluicegate::config::{
    KEYS_MAX, KeySet, KeySetError, SignerKeys, SubjectClaims, TokenAlgorithm, TokenKey, TokenKeyError,
    TokenSigner,
};
use sluicegate::wire::{KeySets, SessionTokenError, Verifier};

use super::{KIB, Memory, Target, no_seeds};

pub const SESSION_TOKEN: Target = Target {
    name: "session_token",
    run: session_token,
    seeds: no_seeds,
    words: &[
        r#""exp":"#,
        r#""nbf":"#,
        r#""iss":"login""#,
        r#""aud":["relay"]"#,
        r#""sub":"1""#,
        r#""roles":[""#,
        r#""access":{"actor":1,"permissions":["#,
        r#""service":true"#,
        r#""apikey":""#,
        "9223372036854775807",
        "1e999",
        "null",
        "eyJhbGciOiJIUzI1NiJ9.",
        r#"{"alg":"HS256","crit":[]}"#,
    ],
    bytes_max: 5 * KIB,
    // The three parts decoded, and the claims as values of JSON: an empty list in a list takes 32 bytes and more.
    memory: Memory { fixed: 8 * KIB, per_byte: 120 },
};

pub const TOKEN_KEY: Target = Target {
    name: "token_key",
    run: token_key,
    seeds: no_seeds,
    words: &[
        "-----BEGIN PUBLIC KEY-----\n",
        "-----END PUBLIC KEY-----\n",
        "-----BEGIN CERTIFICATE-----\n",
        r#"{"kty":"RSA","n":""#,
        r#"{"keys":["#,
        r#""d":"#,
        r#""k":"#,
        "ssh-rsa ",
        "MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=",
    ],
    bytes_max: 8 * KIB,
    memory: Memory { fixed: 16 * KIB, per_byte: 160 },
};

pub const KEY_SET: Target = Target {
    name: "key_set",
    run: key_set,
    seeds: no_seeds,
    words: &[
        r#"{"keys":["#,
        r#"{"kty":"RSA","n":""#,
        r#"","e":"AQAB"}"#,
        r#"{"kty":"EC","crv":"P-256","x":""#,
        r#"{"kty":"OKP","crv":"Ed25519","x":""#,
        r#"{"kty":"oct","k":""#,
        r#""kid":""#,
        r#""alg":"PS256""#,
        r#""use":"sig""#,
        r#""key_ops":["verify"]"#,
        r#""x5c":[""#,
    ],
    bytes_max: 16 * KIB,
    // The keys as values of JSON, then each once more: an empty list in a list takes 32 bytes and more.
    memory: Memory { fixed: 64 * KIB, per_byte: 240 },
};

/// Now, in ms since 1970, for every input.
const NOW_MS: i64 = 1_795_455_640_000;

const SECRET: &str = "0123456789abcdef0123456789abcdef0123456789abcdef";

const ED25519_PUBLIC: &str = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n-----END PUBLIC KEY-----\n";

struct Signers {
    all: Verifier,
    openbalena: Verifier,
    secret: hmac::Key,
}

impl Signers {
    fn new() -> Self {
        let folder = folder();
        let key = |algorithm, text: &str| {
            let path = folder.join(format!("{algorithm}"));
            write_secret(&path, text.as_bytes());
            TokenKey::read(algorithm, &path).expect("a key")
        };
        let signer = |key, who| TokenSigner {
            // Read already.
            keys: SignerKeys::One { key, file: folder.clone(), id: Some("one".to_owned()) },
            issuer: None,
            audience: Some("relay".to_owned()),
            leeway: Duration::from_secs(30),
            who,
        };
        let ours = key(TokenAlgorithm::HS256, SECRET);
        let ed25519 = key(TokenAlgorithm::EdDsa, ED25519_PUBLIC);
        let principal = SubjectClaims::Principal("sub".to_owned());
        let secret = SubjectClaims::Secret { secret: "key".to_owned(), principal: Some("sub".to_owned()) };
        let none = KeySets::default();
        let signers = vec![
            signer(ed25519, principal.clone()),
            signer(ours.clone(), principal),
            TokenSigner { audience: None, ..signer(ours.clone(), secret) },
        ];
        let all = Verifier::new(signers, &none);
        let openbalena = TokenSigner { audience: None, ..signer(ours, SubjectClaims::OpenBalena) };
        Self {
            all,
            openbalena: Verifier::new(vec![openbalena], &none),
            secret: hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes()),
        }
    }

    /// The token with this payload, signed by the secret.
    fn signed(&self, payload: &[u8]) -> String {
        let signed = format!("{}.{}", BASE64URL.encode(r#"{"alg":"HS256"}"#), BASE64URL.encode(payload));
        let signature = hmac::sign(&self.secret, signed.as_bytes());
        format!("{signed}.{}", BASE64URL.encode(signature))
    }
}

/// An input is a token as it comes, and the payload of one that is genuine.
fn session_token(input: &[u8]) {
    thread_local!(static SIGNERS: OnceCell<Signers> = const { OnceCell::new() });
    SIGNERS.with(|signers| {
        let signers = signers.get_or_init(Signers::new);
        check(&signers.all, input, false);
        let genuine = signers.signed(input);
        check(&signers.all, genuine.as_bytes(), true);
        check(&signers.openbalena, genuine.as_bytes(), true);
        // No other payload has this signature.
        let (signed, signature) = genuine.rsplit_once('.').expect("three parts");
        let (header, _) = signed.split_once('.').expect("three parts");
        let forged = format!("{header}.{}.{signature}", BASE64URL.encode([input, b" "].concat()));
        let refused = signers.all.verify(forged.as_bytes(), NOW_MS).expect("a token");
        assert!(refused.is_err_and(SessionTokenError::is_unproven));
    });
}

fn check(verifier: &Verifier, token: &[u8], is_genuine: bool) {
    match verifier.verify(token, NOW_MS) {
        None => assert!(!is_genuine, "three parts are a session token"),
        Some(Ok(claims)) => {
            assert!(is_genuine, "only the signer's tokens are accepted");
            assert!(claims.expires_at_ms > NOW_MS, "a time that is over");
            let later = verifier.verify(token, claims.expires_at_ms).expect("a token");
            assert_eq!(later, Err(SessionTokenError::Expired), "at its end it ends");
        }
        Some(Err(error)) => assert_eq!(error.is_unproven(), !is_genuine, "{error}"),
    }
}

/// An input is the file of a key.
fn token_key(input: &[u8]) {
    thread_local!(static PATH: OnceCell<PathBuf> = const { OnceCell::new() });
    PATH.with(|path| {
        let path = path.get_or_init(|| {
            let path = folder().join("key");
            write_secret(&path, b"");
            path
        });
        std::fs::write(path, input).expect("a file in memory");
        for algorithm in TokenAlgorithm::ALL {
            match TokenKey::read(algorithm, path) {
                Ok(key) => {
                    assert_eq!(key.algorithm(), algorithm);
                    assert!(algorithm != TokenAlgorithm::HS256 || input.trim_ascii().len() >= 32);
                }
                Err(TokenKeyError::Unreadable(error)) => panic!("the file is there: {error}"),
                Err(error) => assert!(!error.to_string().is_empty()),
            }
        }
        // What is a public key for one algorithm is no secret for another.
        let is_public = |algorithm| TokenKey::read(algorithm, path).is_ok();
        let mut public = TokenAlgorithm::ALL.into_iter().filter(|each| *each != TokenAlgorithm::HS256);
        if public.any(is_public) {
            assert!(matches!(
                TokenKey::read(TokenAlgorithm::HS256, path),
                Err(TokenKeyError::PublicSecret(_))
            ));
        }
    });
}

/// An input is a set of keys.
fn key_set(input: &[u8]) {
    match KeySet::parse(input) {
        Ok(set) => {
            // An RSA key counts for each of its algorithms.
            assert!((1..=2 * KEYS_MAX).contains(&set.keys().len()));
            assert!(set.keys().iter().all(|each| each.key.algorithm() != TokenAlgorithm::HS256), "a secret");
            assert_eq!(KeySet::parse(input).as_ref(), Ok(&set), "it is read as before");
            assert!(!set.ids().is_empty());
        }
        Err(KeySetError::NoSet) => {}
        Err(error) => {
            assert!(!error.to_string().is_empty());
            assert!(serde_json::from_slice::<serde_json::Value>(input).is_ok(), "what is no JSON is no set");
        }
    }
}

/// A folder of this thread, in memory where there is a file system for that.
pub fn folder() -> PathBuf {
    let memory = std::path::Path::new("/dev/shm");
    let folder = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    thread_local!(static FOLDERS: std::cell::RefCell<Vec<tempfile::TempDir>> = const { std::cell::RefCell::new(Vec::new()) });
    let folder = folder.expect("a folder");
    let path = folder.path().to_owned();
    FOLDERS.with_borrow_mut(|folders| folders.push(folder));
    path
}

fn write_secret(path: &std::path::Path, text: &[u8]) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::write(path, text).expect("a file in memory");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).expect("a file in memory");
}
