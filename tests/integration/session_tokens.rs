//! Session tokens: a JWT of a configured signer opens what the principal that it names may reach, until it expires;
//! any other is refused, and the audit log says why.

use std::io::{Read, Write};
use std::net::TcpStream;

use crate::support::{
    DEVICE, Device, End, Relay, Request, Signal, Signer, Site, V4, assert_done, in_seconds, receive,
    tools_or_skip, unsigned, wait_for,
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const OPEN: u16 = 200;
const NOT_PERMITTED: u16 = 403;
const CREDENTIALS: u16 = 407;

/// The number of [`Site`]'s alice.
const ALICE: i64 = 1;

/// A relay that takes the tokens of one signer, and alice's device.
struct Scene {
    site: Site,
    signer: Signer,
    relay: Relay,
    device: Device,
}

impl Scene {
    /// Makes a scene with `more` keys for the signer.
    fn new(algorithm: &'static str, more: &str) -> Self {
        let mut site = Site::new("");
        let signer = Signer::new(site.folder(), "login", algorithm);
        site.configure(&format!("authz.tokens = [{}]", signer.entry(more)));
        let relay = site.start();
        Self { site, signer, relay, device: Device::echo(V4) }
    }

    fn status(&self, token: &str) -> u16 {
        Request::to(DEVICE, self.device.port()).bearer(token).send(self.relay.address()).status
    }

    fn open(&self, token: &str) -> TcpStream {
        Request::to(DEVICE, self.device.port()).bearer(token).send(self.relay.address()).opened()
    }
}

fn has_openssl() -> bool {
    tools_or_skip("session tokens", &["openssl"])
}

fn echoes(tunnel: &mut TcpStream) -> bool {
    let mut echoed = [0; 4];
    tunnel.write_all(b"ping").is_ok() && tunnel.read_exact(&mut echoed).is_ok()
}

#[test]
fn a_signed_token_opens_what_the_principal_that_it_names_may_reach() {
    if !has_openssl() {
        return;
    }
    for algorithm in Signer::ALGORITHMS {
        let scene = Scene::new(algorithm, "");
        for subject in [json!(ALICE), json!(ALICE.to_string())] {
            let token = scene.signer.sign(&json!({ "sub": subject, "exp": in_seconds(60) }));
            assert!(echoes(&mut scene.open(&token)), "{algorithm}, {subject}");
        }
        let nobody = scene.signer.sign(&json!({ "sub": 77, "exp": in_seconds(60) }));
        assert_eq!(scene.status(&nobody), NOT_PERMITTED, "{algorithm}: nobody has no grant");
        assert_eq!(scene.status(&scene.site.token), OPEN, "{algorithm}: opaque tokens count beside");

        let ended = scene.site.audit().wait_for(|event| event["event"] == "session-end");
        assert_eq!((&ended["principal"], &ended["grant"]), (&json!(ALICE), &json!(scene.site.grant)));
        let refused = scene.site.audit().wait_for(|event| event["event"] == "refusal");
        assert_eq!((&refused["cause"], &refused["principal"]), (&json!("no-grant"), &json!(77)));
    }
}

#[test]
fn every_refusal_has_its_cause() {
    if !has_openssl() {
        return;
    }
    let scene = Scene::new("RS256", "issuer = 'login', audience = 'relay', key_id = 'one', leeway = '5s'");
    let stranger = Signer::new(scene.site.folder(), "stranger", "RS256");
    // What takes a public key for a secret takes this.
    let by_public_key = Signer::with_secret(&scene.signer.key_file);
    let good = json!({
        "sub": ALICE, "iss": "login", "aud": ["other", "relay"], "exp": in_seconds(60), "nbf": in_seconds(0)
    });
    let but = |key: &str, value: Value| {
        let mut claims = good.clone();
        match value {
            Value::Null => drop(claims.as_object_mut().unwrap().remove(key)),
            value => claims[key] = value,
        }
        scene.signer.sign(&claims)
    };
    let under = |header: Value| scene.signer.sign_under(&header, &good);
    let cases = [
        (format!("{}.", unsigned(&json!({ "alg": "none" }), &good)), "token-algorithm"),
        (by_public_key.sign(&good), "token-algorithm"),
        (under(json!({ "alg": "RS384" })), "token-algorithm"),
        (under(json!({ "alg": "RS256", "kid": "two" })), "token-key"),
        (stranger.sign(&good), "token-signature"),
        (format!("{}AAAA", scene.signer.sign(&good)), "token-signature"),
        (under(json!({ "alg": "RS256", "crit": ["exp"], "exp": 1 })), "token-malformed"),
        (scene.signer.sign(&json!([1])), "token-malformed"),
        (but("iss", json!("another")), "token-issuer"),
        (but("iss", Value::Null), "token-issuer"),
        (but("aud", json!("another")), "token-audience"),
        (but("aud", Value::Null), "token-audience"),
        (but("exp", Value::Null), "token-no-expiry"),
        (but("exp", json!("tomorrow")), "token-no-expiry"),
        (but("exp", json!(in_seconds(-6))), "token-expired"),
        (but("nbf", json!(in_seconds(30))), "token-not-yet-valid"),
        (but("nbf", json!("yesterday")), "token-not-yet-valid"),
        (but("sub", Value::Null), "token-claims"),
        (but("sub", json!("alice")), "token-claims"),
        (but("sub", json!("01")), "token-claims"),
        (but("sub", json!(1.5)), "token-claims"),
        ("jwt_secret:0123456789".to_owned(), "token-reserved"),
        (format!("{}.x", scene.signer.sign(&good)), "credential-unknown"),
    ];

    for (token, _) in &cases {
        assert_eq!(scene.status(token), CREDENTIALS, "{token}");
    }

    assert_eq!(scene.status(&but("exp", json!(in_seconds(-1)))), OPEN, "within the leeway");
    assert_eq!(scene.status(&under(json!({ "alg": "RS256", "kid": "one" }))), OPEN);
    assert_eq!(scene.status(&under(json!({ "alg": "RS256" }))), OPEN, "a token need not name its key");
    let events = scene.site.audit().wait_for_events(cases.len());
    let refused: Vec<_> = events.iter().filter(|event| event["event"] == "refusal").collect();
    assert_eq!(refused.len(), cases.len());
    for (event, (_, cause)) in refused.iter().zip(&cases) {
        assert_eq!(event["cause"], *cause, "{event}");
        assert_eq!((&event["slug"], &event["uuid"]), (&json!("credentials"), &json!(DEVICE)), "{event}");
        assert!(event["credential"].is_string(), "by which one can be told from another: {event}");
    }
    let metrics = scene.relay.admin_get("/metrics");
    assert!(metrics.contains("cause=\"token-signature\"} 2"), "{metrics}");
}

#[test]
fn a_tunnel_ends_with_the_token_that_opened_it() {
    if !has_openssl() {
        return;
    }
    let scene = Scene::new("HS256", "leeway = '0s'");
    let sign = |seconds| scene.signer.sign(&json!({ "sub": ALICE, "exp": in_seconds(seconds) }));
    let (mut short, mut long) = (scene.open(&sign(3)), scene.open(&sign(600)));
    assert!(echoes(&mut short));

    let (_, end) = receive(&mut short);

    assert_eq!(end, End::Reset);
    assert!(echoes(&mut long));
    let ended = scene.site.audit().wait_for(|event| event["event"] == "session-end");
    assert_eq!(ended["cause"], "credential-expired");
}

#[test]
fn a_tunnel_ends_when_its_principal_is_removed_or_loses_its_grant() {
    if !has_openssl() {
        return;
    }
    for (command, cause, status) in [
        (&["principal", "remove", "alice"][..], "principal-revoked", CREDENTIALS),
        (&["grant", "revoke", "1"], "grant-revoked", NOT_PERMITTED),
    ] {
        let scene = Scene::new("EdDSA", "");
        let token = scene.signer.sign(&json!({ "sub": ALICE, "exp": in_seconds(600) }));
        let mut tunnel = scene.open(&token);

        scene.site.cli(command);

        assert_eq!(receive(&mut tunnel).1, End::Reset, "{command:?}");
        let ended = scene.site.audit().wait_for(|event| event["event"] == "session-end");
        assert_eq!((&ended["cause"], &ended["principal"]), (&json!(cause), &json!(ALICE)));
        assert_eq!(scene.status(&token), status);
    }
}

#[test]
fn one_token_can_be_ended_before_its_time_and_no_other_of_its_principal_is() {
    if !has_openssl() {
        return;
    }
    let scene = Scene::new("HS256", "");
    let sign = |number| scene.signer.sign(&json!({ "sub": ALICE, "jti": number, "exp": in_seconds(600) }));
    let (lost, kept) = (sign(1), sign(2));
    let (mut tunnel, mut other) = (scene.open(&lost), scene.open(&kept));

    let store = rusqlite::Connection::open(scene.site.store_path()).unwrap();
    store.busy_timeout(crate::support::PATIENCE).unwrap();
    let hash: [u8; 32] = Sha256::digest(&lost).into();
    let row = "INSERT INTO credentials (key_sha256, principal, created_at, revoked_at) VALUES (?1, ?2, 0, 1)";
    store.execute(row, (hash, ALICE)).unwrap();

    assert_eq!(receive(&mut tunnel).1, End::Reset);
    assert!(echoes(&mut other));
    assert_eq!([scene.status(&lost), scene.status(&kept)], [CREDENTIALS, OPEN]);
    let ended = scene.site.audit().wait_for(|event| event["event"] == "session-end");
    assert_eq!(ended["cause"], "credential-revoked");
}

#[test]
fn keys_are_rotated_by_listing_two_and_no_tunnel_notices() {
    if !has_openssl() {
        return;
    }
    let mut scene = Scene::new("HS256", "key_id = 'old'");
    let next = Signer::new(scene.site.folder(), "next", "EdDSA");
    let claims = json!({ "sub": ALICE, "exp": in_seconds(600) });
    let (old_token, next_token) = (scene.signer.sign(&claims), next.sign(&claims));
    let mut tunnel = scene.open(&old_token);
    assert_eq!(scene.status(&next_token), CREDENTIALS);
    let becomes = |scene: &Scene, old, new| {
        let statuses = || [&old_token, &next_token].map(|token| scene.status(token));
        wait_for(|| (statuses() == [old, new]).then_some(())).is_some()
    };

    let both = format!("authz.tokens = [{}, {}]", scene.signer.entry("key_id = 'old'"), next.entry(""));
    scene.site.configure(&both);
    scene.relay.signal(Signal::SIGHUP);
    assert!(becomes(&scene, OPEN, OPEN), "{}", scene.relay.log());

    scene.site.configure(&format!("authz.tokens = [{}]", next.entry("")));
    scene.relay.signal(Signal::SIGHUP);
    assert!(becomes(&scene, CREDENTIALS, OPEN), "{}", scene.relay.log());
    assert!(echoes(&mut tunnel));

    std::fs::remove_file(&next.key_file).unwrap();
    scene.relay.signal(Signal::SIGHUP);
    assert!(scene.relay.logs("reload refused"), "{}", scene.relay.log());
    assert_eq!(scene.status(&next_token), OPEN, "what was read stays");
}

#[test]
fn without_a_signer_a_jwt_is_a_token_like_any_other() {
    if !has_openssl() {
        return;
    }
    let site = Site::new("");
    let signer = Signer::new(site.folder(), "login", "HS256");
    let token = signer.sign(&json!({ "sub": ALICE, "exp": in_seconds(600) }));
    let relay = site.start();
    assert_eq!(Request::to(DEVICE, 80).bearer(&token).send(relay.address()).status, CREDENTIALS);
    let refused = site.audit().wait_for(|event| event["event"] == "refusal");
    assert_eq!(refused["cause"], "credential-unknown");
}

#[test]
fn a_key_that_cannot_be_used_is_told_with_its_file_and_what_to_do() {
    if !has_openssl() {
        return;
    }
    let mut site = Site::new("");
    let rsa = Signer::new(site.folder(), "rsa", "RS256");
    let ed25519 = Signer::new(site.folder(), "ed25519", "EdDSA");
    let secret = Signer::new(site.folder(), "secret", "HS256");
    let file = |name: &str| site.folder().join(name).display().to_string();
    let (short, weak, open) = (file("short"), file("weak"), file("open"));
    std::fs::write(&weak, "0123456789\n").unwrap();
    std::fs::write(&open, "0123456789abcdef0123456789abcdef").unwrap();
    for (path, mode) in [(&weak, 0o600), (&open, 0o644)] {
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    }
    let private = site.folder().join("1024");
    let openssl = |arguments: &[&str]| {
        assert_done(&std::process::Command::new("openssl").args(arguments).output().unwrap());
    };
    let private = private.to_str().unwrap();
    openssl(&["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:1024", "-out", private]);
    openssl(&["pkey", "-in", private, "-pubout", "-out", &short]);
    let path = |signer: &Signer| signer.key_file.display().to_string();
    let cases = [
        ("RS256", file("nowhere"), "it cannot be read: No such file"),
        ("HS256", weak, "shorter than 32 bytes; make one with `openssl rand -hex 32`"),
        ("HS256", open, "it can be read by everybody"),
        ("EdDSA", path(&secret), "there is no public key in it; `openssl pkey -in PRIVATE -pubout`"),
        ("RS256", private.to_owned(), "there is no public key in it"),
        ("EdDSA", path(&rsa), "its public key is not for EdDSA"),
        ("RS256", path(&ed25519), "its public key is not for RS256"),
        ("RS256", short, "fewer than 2048 bits"),
    ];
    for (algorithm, file, message) in cases {
        site.configure(&format!("authz.tokens = [{{ algorithm = '{algorithm}', key_file = '{file}' }}]"));
        let checked = site.command(&["check"]).output().unwrap();
        let said = String::from_utf8_lossy(&checked.stderr).into_owned();
        assert!(!checked.status.success() && said.contains(message) && said.contains(&file), "{said}");
        assert!(said.contains("sluicegate.toml:") && said.contains("authz.tokens.0"), "{said}");
        let (_, said) = site.start_in_vain().expect("it gives up");
        assert!(said.contains(message), "{said}");
    }
}
