//! The RFCs' example tokens, and arbitrary bytes.

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use proptest::prelude::*;

use super::*;
use crate::config::{HttpsUrl, KeyPlace, KeySet, KeySource, SubjectClaims};

/// The token of RFC 7515, appendix A.1, which has an issuer and an expiry only.
const HS256_TOKEN: &str = "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.\
    eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.\
    dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
const HS256_SECRET: &str =
    "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow";

/// The token of RFC 8037, appendix A.4, whose payload is no JSON.
const ED25519_TOKEN: &str = "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc.\
    hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg";
const ED25519_PUBLIC: &str = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";

/// `exp` of [`HS256_TOKEN`].
const EXP_MS: i64 = 1_300_819_380_000;

fn signer(algorithm: TokenAlgorithm, file: &[u8], who: &str) -> TokenSigner {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("key");
    std::fs::write(&path, file).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    TokenSigner {
        keys: SignerKeys::One { key: TokenKey::read(algorithm, &path).unwrap(), file: path, id: None },
        issuer: None,
        audience: None,
        leeway: Duration::from_secs(1),
        who: SubjectClaims::Principal(who.to_owned()),
    }
}

fn hs256(who: &str) -> TokenSigner {
    signer(TokenAlgorithm::HS256, &URL_SAFE_NO_PAD.decode(HS256_SECRET).unwrap(), who)
}

/// A signer with the Ed25519 key as a SubjectPublicKeyInfo (RFC 8410, section 4).
fn ed25519() -> TokenSigner {
    let mut key = hex::decode("302a300506032b6570032100").unwrap();
    key.extend(URL_SAFE_NO_PAD.decode(ED25519_PUBLIC).unwrap());
    let pem = format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", STANDARD.encode(key));
    signer(TokenAlgorithm::EdDsa, pem.as_bytes(), "sub")
}

fn verify(signers: &[TokenSigner], token: &str, now_ms: i64) -> Option<Result<Claims, SessionTokenError>> {
    Verifier::new(signers.to_vec(), &KeySets::default()).verify(token.as_bytes(), now_ms)
}

#[test]
fn the_tokens_of_the_rfcs_are_genuine() {
    let by = |who, now_ms| verify(&[hs256(who)], HS256_TOKEN, now_ms).unwrap();
    assert_eq!(by("sub", EXP_MS), Err(SessionTokenError::Nobody));
    let claims = Claims { who: TokenSubject::Principal(1_300_819_380), expires_at_ms: EXP_MS + 1_000 };
    assert_eq!(by("exp", EXP_MS + 999), Ok(claims), "within the leeway");
    assert_eq!(by("exp", EXP_MS + 1_000), Err(SessionTokenError::Expired));
    assert_eq!(verify(&[ed25519()], ED25519_TOKEN, 0), Some(Err(SessionTokenError::Malformed)), "genuine");
}

#[test]
fn the_signer_that_accepted_most_of_a_token_gives_the_reason() {
    let elsewhere = TokenSigner { issuer: Some("ann".to_owned()), ..hs256("exp") };
    let signers = [ed25519(), elsewhere.clone(), ed25519()];
    assert_eq!(verify(&signers, HS256_TOKEN, 0), Some(Err(SessionTokenError::Issuer)));
    let signers = [elsewhere, TokenSigner { issuer: Some("joe".to_owned()), ..hs256("exp") }];
    assert!(verify(&signers, HS256_TOKEN, 0).unwrap().is_ok(), "the same key, for another issuer");
}

#[test]
fn a_token_without_the_form_of_a_jwt_is_opaque() {
    let (header, rest) = HS256_TOKEN.split_once('.').unwrap();
    let no_header = URL_SAFE_NO_PAD.encode("{\"typ\":\"JWT\"}");
    for token in [
        String::new(),
        "..".to_owned(),
        "sg_0123456789".to_owned(),
        format!("{header}."),
        format!("{HS256_TOKEN}."),
        format!("{HS256_TOKEN}="),
        format!("{no_header}.{rest}"),
        format!("x{header}.{rest}"),
    ] {
        assert_eq!(verify(&[hs256("sub")], &token, 0), None, "{token}");
    }
    assert_eq!(verify(&[], HS256_TOKEN, 0), None, "there is no signer");
}

/// A token by the JOSE header, the RFC's payload and a signature of HS256.
fn token_under(header: &str) -> String {
    let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), HS256_TOKEN.split('.').nth(1).unwrap());
    let secret = URL_SAFE_NO_PAD.decode(HS256_SECRET).unwrap();
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &secret);
    let signature = ring::hmac::sign(&key, signed.as_bytes());
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}

#[test]
fn a_header_that_the_relay_does_not_know_proves_nothing() {
    let judged = |header| verify(&[hs256("exp")], &token_under(header), 0).unwrap();
    assert!(
        judged(r#"{"alg":"HS256","kid":"any","jku":"https://elsewhere.example/"}"#).is_ok(),
        "not looked up"
    );
    for header in [
        r#"{"alg":"HS256","crit":["exp"],"exp":1}"#,
        r#"{"alg":"HS256","crit":["b64"],"b64":true}"#,
        r#"{"alg":"HS256","crit":[]}"#,
        r#"{"alg":"HS256","b64":false}"#,
        r#"{"alg":"HS256","typ":7}"#,
    ] {
        let refused = judged(header).unwrap_err();
        assert!(refused == SessionTokenError::Header && refused.is_unproven(), "{header}: {refused}");
    }
    for header in [r#"{"alg":"none"}"#, r#"{"alg":"HS512"}"#, r#"{"alg":"hs256"}"#] {
        assert_eq!(judged(header), Err(SessionTokenError::Algorithm), "{header}");
    }
}

/// The public key of [`ED25519_TOKEN`] in a set, with this name, beside another one.
fn set_of_ed25519(id: &str) -> KeySet {
    let key = |id: &str, x: &str| format!(r#"{{"kty":"OKP","crv":"Ed25519","kid":"{id}","x":"{x}"}}"#);
    let other = URL_SAFE_NO_PAD.encode([9; 32]);
    KeySet::parse(format!(r#"{{"keys":[{},{}]}}"#, key("other", &other), key(id, ED25519_PUBLIC)).as_bytes())
        .unwrap()
}

#[test]
fn a_set_of_keys_decides_by_the_key_that_the_token_names() {
    let place = KeyPlace::Url(HttpsUrl::parse("https://login.example/").unwrap());
    let source = KeySource { place, ca: None, refresh: Duration::from_secs(60), algorithm: None };
    let sets = KeySets::default();
    sets.replace([&source].into_iter());
    let by_set = TokenSigner { keys: SignerKeys::Set(source.clone()), ..ed25519() };
    let verifier = Verifier::new(vec![by_set], &sets);
    let judged = || verifier.verify(ED25519_TOKEN.as_bytes(), 0).unwrap();
    assert_eq!(judged(), Err(SessionTokenError::NoKeys), "nothing was read");
    let read = |id| sets.of(&source).unwrap().end_read(Ok(Arc::new(set_of_ed25519(id))), 0);
    read("one");
    assert_eq!(judged(), Err(SessionTokenError::Key), "it names none of two");
    // The library's header of the RFC's token names no key, so the set has to have one of its algorithm alone.
    let alone = format!(r#"{{"keys":[{{"kty":"OKP","crv":"Ed25519","kid":"one","x":"{ED25519_PUBLIC}"}}]}}"#);
    sets.of(&source).unwrap().end_read(Ok(Arc::new(KeySet::parse(alone.as_bytes()).unwrap())), 0);
    assert_eq!(judged(), Err(SessionTokenError::Malformed), "genuine");
    let hs256 = verifier.verify(HS256_TOKEN.as_bytes(), 0).unwrap();
    assert_eq!(hs256, Err(SessionTokenError::Algorithm), "a set has no secrets");
}

proptest! {
    #[test]
    fn any_bytes_are_refused_without_a_panic(token in prop::collection::vec(any::<u8>(), 0..300)) {
        let verifier = Verifier::new(vec![hs256("sub"), ed25519()], &KeySets::default());
        prop_assert!(verifier.verify(&token, 0).is_none_or(|judged| judged.is_err()));
    }

    #[test]
    fn made_up_and_altered_tokens_are_refused(header in "\\PC{0,40}", payload in "\\PC{0,60}", place in 0..200_usize, byte: u8) {
        let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
        let made_up = format!("{}.{}.{}", part(&header), part(&payload), part(&payload));
        let mut bent = HS256_TOKEN.as_bytes().to_vec();
        let place = place % bent.len();
        prop_assume!(bent[place] != byte);
        bent[place] = byte;
        let verifier = Verifier::new(vec![hs256("exp"), ed25519()], &KeySets::default());
        for token in [made_up.as_bytes(), &bent] {
            prop_assert!(verifier.verify(token, 0).is_none_or(|judged| judged.is_err()));
        }
    }

    #[test]
    fn claims_of_every_kind_are_read_or_refused(exp in any_claim(), nbf in any_claim(), sub in any_claim()) {
        let mut payload = serde_json::Map::new();
        payload.insert("exp".to_owned(), exp);
        payload.insert("nbf".to_owned(), nbf);
        payload.insert("sub".to_owned(), sub);
        if let Ok(claims) = Claims::read(&payload, &hs256("sub"), 0) {
            prop_assert!(claims.expires_at_ms > 0);
        }
    }
}

fn any_claim() -> impl Strategy<Value = serde_json::Value> {
    use serde_json::{Value, json};
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[-+0-9]{0,25}".prop_map(Value::from),
        prop::collection::vec(any::<i64>(), 0..3).prop_map(|numbers| json!(numbers)),
    ]
}
