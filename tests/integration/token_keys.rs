//! Sets of keys of session tokens: from a login service by https, from its description of itself, or from a file. They
//! change while the relay runs, and whatever a server answers, the last good ones count.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::support::{
    DEVICE, Device, KeyAnswer, KeyServer, Relay, Request, Signal, Signer, Site, V4, free_address, in_seconds,
    tools_or_skip, unsigned, wait_for,
};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use sluicegate::config::Config;

const OPEN: u16 = 200;
const CREDENTIALS: u16 = 407;
const UNDECIDED: u16 = 503;

/// The number of [`Site`]'s alice.
const ALICE: i64 = 1;

/// A site, a login service, and a device.
struct Scene {
    site: Site,
    server: KeyServer,
    device: Device,
}

impl Scene {
    fn new() -> Self {
        let site = Site::new("");
        let server = KeyServer::start(site.folder());
        Self { site, server, device: Device::echo(V4) }
    }

    fn signer(&self, name: &str, algorithm: &'static str) -> Signer {
        Signer::new(self.site.folder(), name, algorithm)
    }

    /// A relay that accepts the tokens of these signers.
    fn start(&mut self, entries: &[String]) -> Relay {
        self.site.configure(&format!("authz.tokens = [{}]", entries.join(", ")));
        self.site.start()
    }

    fn status(&self, relay: &Relay, token: &str) -> u16 {
        Request::to(DEVICE, self.device.port()).bearer(token).send(relay.address()).status
    }

    fn open(&self, relay: &Relay, token: &str) -> TcpStream {
        Request::to(DEVICE, self.device.port()).bearer(token).send(relay.address()).opened()
    }

    /// Asks until the answer is `status`. Says whether it came to that.
    fn comes_to(&self, relay: &Relay, token: &str, status: u16) -> bool {
        wait_for(|| (self.status(relay, token) == status).then_some(())).is_some()
    }

    /// The causes of the refusals so far.
    fn causes(&self) -> Vec<String> {
        let events = self.site.audit().events();
        let refused = events.iter().filter(|event| event["event"] == "refusal");
        refused.map(|event| event["cause"].as_str().unwrap().to_owned()).collect()
    }
}

fn claims() -> Value {
    json!({ "sub": ALICE, "exp": in_seconds(600) })
}

fn has_openssl() -> bool {
    tools_or_skip("sets of keys", &["openssl"])
}

fn echoes(tunnel: &mut TcpStream) -> bool {
    let mut echoed = [0; 4];
    tunnel.write_all(b"ping").is_ok() && tunnel.read_exact(&mut echoed).is_ok()
}

/// The condition about keys that an operator sees.
fn condition(site: &Site) -> Option<String> {
    let report = site.command(&["status", "--json"]).output().unwrap();
    let report: Value = serde_json::from_slice(&report.stdout).unwrap();
    let conditions = report["conditions"].as_array().unwrap().clone();
    let found = conditions.iter().find(|each| each["alert"] == "SluicegateTokenKeys")?;
    Some(found["text"].as_str().unwrap().to_owned())
}

#[test]
fn a_set_by_https_verifies_each_algorithm_by_the_key_that_the_token_names() {
    if !has_openssl() {
        return;
    }
    let mut scene = Scene::new();
    let signers: Vec<_> = Signer::PUBLIC.into_iter().map(|each| (scene.signer(each, each), each)).collect();
    let pinned = |(signer, kid): &(Signer, &str)| signer.jwk(kid, &json!({ "alg": signer.algorithm }));
    let mut keys: Vec<_> = signers.iter().map(pinned).collect();
    // Two keys of one name, and what no relay can use.
    let twin = scene.signer("twin", "ES256");
    keys.push(twin.jwk("ES256", &json!({ "use": "sig" })));
    keys.push(
        json!({ "kty": "oct", "kid": "secret", "k": "c2VjcmV0IHNlY3JldCBzZWNyZXQgc2VjcmV0IHNlY3JldA" }),
    );
    keys.push(json!({ "kty": "EC", "crv": "P-521", "kid": "other", "x": "AA", "y": "AA" }));
    scene.server.serves(&keys);
    let entry = scene.server.entry("audience = 'relay', issuer = 'login'");
    let relay = scene.start(&[entry]);
    assert!(relay.logs("confined mode=On"), "it fetches while it is confined: {}", relay.log());

    let good = json!({ "sub": ALICE, "exp": in_seconds(600), "aud": "relay", "iss": "login" });
    for (signer, kid) in &signers {
        let mut tunnel = scene.open(&relay, &signer.sign_as(kid, &good));
        assert!(echoes(&mut tunnel), "{kid}");
    }
    assert_eq!(scene.status(&relay, &twin.sign_as("ES256", &good)), OPEN, "the second of the name");
    let [eddsa, es256, rs256, _] = &signers[..] else { panic!("four") };
    assert_eq!(scene.status(&relay, &eddsa.0.sign(&good)), OPEN, "it is the only one of its algorithm");

    let stranger = scene.signer("stranger", "RS256");
    let by_public_key = Signer::with_secret(&rs256.0.key_file);
    let under =
        |signer: &Signer, alg: &str, kid: &str| signer.sign_under(&json!({ "alg": alg, "kid": kid }), &good);
    let truncated = |token: String| {
        let (signed, signature) = token.rsplit_once('.').unwrap();
        let signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(&signature[..signature.len() - 1]))
    };
    let cases = [
        (under(&stranger, "RS256", "RS256"), "token-signature"),
        (truncated(rs256.0.sign_as("RS256", &good)), "token-signature"),
        (truncated(es256.0.sign_as("ES256", &good)), "token-signature"),
        (truncated(eddsa.0.sign_as("EdDSA", &good)), "token-signature"),
        // An RSA signature of the other padding, and a key that is pinned to one of the two.
        (under(&signers[3].0, "RS256", "PS256"), "token-key"),
        (under(&rs256.0, "PS256", "PS256"), "token-signature"),
        (under(&rs256.0, "ES256", "RS256"), "token-key"),
        (under(&es256.0, "RS256", "ES256"), "token-key"),
        (by_public_key.sign_as("RS256", &good), "token-algorithm"),
        (under(&by_public_key, "HS256", "secret"), "token-algorithm"),
        (format!("{}.", unsigned(&json!({ "alg": "none", "kid": "RS256" }), &good)), "token-algorithm"),
        (rs256.0.sign_as("never-heard-of", &good), "token-key"),
        (twin.sign(&good), "token-key"),
        (rs256.0.sign_as("RS256", &claims()), "token-issuer"),
    ];
    for (token, cause) in &cases {
        assert_eq!(scene.status(&relay, token), CREDENTIALS, "{cause}: {token}");
    }
    let all_told = || Some(scene.causes()).filter(|causes| causes.len() == cases.len());
    let causes = wait_for(all_told).expect("each refusal is in the log");
    assert_eq!(causes, cases.iter().map(|(_, cause)| *cause).collect::<Vec<_>>());
}

#[test]
fn keys_are_rotated_by_the_server_alone_and_no_tunnel_notices() {
    if !has_openssl() {
        return;
    }
    let mut scene = Scene::new();
    let (old, new) = (scene.signer("old", "ES256"), scene.signer("new", "EdDSA"));
    scene.server.serves(&[old.jwk("old", &Value::Null)]);
    let entry = scene.server.entry("keys_refresh = '1s'");
    let relay = scene.start(&[entry]);
    let (old_token, new_token) = (old.sign_as("old", &claims()), new.sign_as("new", &claims()));
    let mut tunnel = scene.open(&relay, &old_token);
    assert_eq!(scene.status(&relay, &new_token), CREDENTIALS);

    scene.server.serves(&[old.jwk("old", &Value::Null), new.jwk("new", &Value::Null)]);
    assert!(scene.comes_to(&relay, &new_token, OPEN), "{}", relay.log());
    assert_eq!(scene.status(&relay, &old_token), OPEN);

    scene.server.serves(&[new.jwk("new", &Value::Null)]);
    assert!(scene.comes_to(&relay, &old_token, CREDENTIALS), "{}", relay.log());
    assert_eq!(scene.status(&relay, &new_token), OPEN);
    assert!(echoes(&mut tunnel), "it ends by the token's exp");
    assert!(relay.logs("have changed"));
}

#[test]
fn a_token_with_a_new_key_has_the_keys_read_early_and_made_up_ones_only_now_and_then() {
    if !has_openssl() {
        return;
    }
    let mut scene = Scene::new();
    let (old, new) = (scene.signer("old", "ES256"), scene.signer("new", "ES256"));
    scene.server.serves(&[old.jwk("old", &Value::Null)]);
    let entry = scene.server.entry("keys_refresh = '1h'");
    let relay = scene.start(&[entry]);
    assert_eq!(scene.status(&relay, &old.sign_as("old", &claims())), OPEN);
    scene.server.serves(&[old.jwk("old", &Value::Null), new.jwk("new", &Value::Null)]);
    let token = new.sign_as("new", &claims());
    assert_eq!(scene.status(&relay, &token), CREDENTIALS, "they were read a moment ago");
    assert_eq!(scene.server.asked(), 1);

    // The pause of ten seconds ends.
    assert!(scene.comes_to(&relay, &token, OPEN), "{}", relay.log());
    assert_eq!(scene.server.asked(), 2);
    let metrics = relay.admin_get("/metrics");
    assert!(metrics.contains("cause=\"token-keys-missing\""), "the first one is to try again: {metrics}");

    let until = Instant::now() + Duration::from_secs(3);
    let mut number = 0;
    while Instant::now() < until {
        number += 1;
        let made_up = old.sign_as(&format!("made-up-{number}"), &claims());
        assert_ne!(scene.status(&relay, &made_up), OPEN);
    }
    assert!(scene.server.asked() <= 3, "{} requests for {number} tokens", scene.server.asked());
    assert_eq!(relay.metric("sluicegate_sessions_undecided_total"), Some(0.0), "nobody is paged for these");
}

#[test]
fn without_the_server_the_kept_keys_count_and_without_any_nobody_is_refused_for_good() {
    if !has_openssl() {
        return;
    }
    let mut scene = Scene::new();
    let signer = scene.signer("one", "PS256");
    let port = free_address().port();
    let server = KeyServer::start_at(scene.site.folder(), port);
    let entry = server.entry("keys_refresh = '1s'");
    drop(server);
    let token = signer.sign_as("one", &claims());

    let mut relay = scene.start(&[entry]);
    let answer = Request::to(DEVICE, scene.device.port()).bearer(&token).send(relay.address());
    assert_eq!((answer.status, answer.slug().as_deref()), (UNDECIDED, Some("undecided")));
    assert_eq!(answer.header("Retry-After").len(), 1);
    assert_eq!(scene.status(&relay, &scene.site.token), OPEN, "opaque tokens need no keys");
    let refused = scene.site.audit().wait_for(|event| event["event"] == "refusal");
    assert_eq!(refused["cause"], "token-keys-missing");
    let shown = condition(&scene.site).expect("a condition");
    let outsiders = relay.admin_get("/status.json");
    assert!(outsiders.contains("SluicegateTokenKeys") && !outsiders.contains("localhost:"), "{outsiders}");
    assert!(shown.contains("there are none") && shown.contains("onnection refused"), "{shown}");
    assert!(relay.admin_get("/metrics").contains("sluicegate_token_key_sets{state=\"missing\"} 1"));
    assert_eq!(relay.metric("sluicegate_sessions_undecided_total"), Some(1.0));

    let server = KeyServer::start_at(scene.site.folder(), port);
    server.serves(&[signer.jwk("one", &Value::Null)]);
    // The CA is a new one, in the same file.
    assert!(scene.comes_to(&relay, &token, OPEN), "{}", relay.log());
    assert!(wait_for(|| condition(&scene.site).is_none().then_some(())).is_some());
    assert!(relay.admin_get("/metrics").contains("sluicegate_token_key_sets{state=\"fresh\"} 1"));
    relay.signal(Signal::SIGTERM);
    assert!(relay.wait().is_some());
    drop(server);

    let relay = scene.site.start();
    assert_eq!(scene.status(&relay, &token), OPEN, "{}", relay.log());
    assert!(relay.logs("that were kept for"));
    assert!(relay.metric_becomes("sluicegate_token_key_sets", |sets| sets == 1.0));
    let kept = || relay.admin_get("/metrics").contains("sluicegate_token_key_sets{state=\"kept\"} 1");
    assert!(wait_for(|| kept().then_some(())).is_some(), "{}", relay.log());
    assert!(condition(&scene.site).unwrap().contains("ago are in force"));
    let unknown = scene.signer("two", "PS256").sign_as("two", &claims());
    assert_eq!(scene.status(&relay, &unknown), UNDECIDED, "it may be a new key");
}

#[test]
fn whatever_the_server_answers_the_last_good_keys_count_and_it_is_told_once() {
    if !has_openssl() {
        return;
    }
    let mut scene = Scene::new();
    let signer = scene.signer("one", "ES256");
    let other = KeyServer::start_at(&scene.site.folder().join("."), 0);
    let good = [signer.jwk("one", &Value::Null)];
    other.serves(&good);
    // `other` has written a CA over that of the server.
    scene.server = KeyServer::start(scene.site.folder());
    scene.server.serves(&good);
    let entry = scene.server.entry("keys_refresh = '1s'");
    let relay = scene.start(&[entry]);
    let token = signer.sign_as("one", &claims());
    assert_eq!(scene.status(&relay, &token), OPEN);

    let body = |text: &str| KeyAnswer::Body(text.as_bytes().to_vec());
    let many = format!("{{\"keys\":[{}]}}", vec![good[0].to_string(); 33].join(","));
    let cases = [
        (body("<html>Sorry</html>"), "no JSON Web Key Set"),
        (body("{\"keys\":[]}"), "it is empty"),
        (body("{\"keys\":[{\"kty\":\"oct\",\"k\":\"AAAA\"}]}"), "it is a secret"),
        (body(&many), "more than 32 keys"),
        (KeyAnswer::Body(vec![b' '; 300 * 1024]), "more than 256 KiB"),
        (KeyAnswer::Status(500), "answers 500"),
        (KeyAnswer::Redirect(scene.server.url("/keys")), "other places one after the other"),
        (KeyAnswer::Redirect(other.url("/keys")), "leads to another server"),
        (KeyAnswer::Redirect("http://localhost/keys".to_owned()), "leads to another server"),
        (KeyAnswer::Redirect("//elsewhere.example/keys".to_owned()), "leads to another server"),
        (KeyAnswer::Closed, "/keys: "),
        (KeyAnswer::Slow(Vec::new(), Duration::from_secs(14)), "has not answered within 10 s"),
    ];
    for (answer, expected) in cases {
        scene.server.answers("/keys", answer);
        let shown = || condition(&scene.site).filter(|text| text.contains(expected));
        assert!(wait_for(shown).is_some(), "{expected}: {:?} {}", condition(&scene.site), relay.log());
        assert_eq!(scene.status(&relay, &token), OPEN, "{expected}");
    }
    scene.server.answers("/keys", KeyAnswer::Status(503));
    assert!(relay.logs("answers 503"));
    let asked = scene.server.asked();
    assert!(wait_for(|| (scene.server.asked() >= asked + 3).then_some(())).is_some());
    assert_eq!(relay.log().matches("answers 503").count(), 1, "{}", relay.log());

    // A redirect on the same server is followed.
    scene.server.answers("/keys", KeyAnswer::Redirect("/moved".to_owned()));
    let next = scene.signer("two", "ES256");
    let set = json!({ "keys": [next.jwk("two", &Value::Null)] }).to_string();
    scene.server.answers("/moved", body(&set));
    assert!(scene.comes_to(&relay, &next.sign_as("two", &claims()), OPEN), "{}", relay.log());
    assert!(relay.logs("are read again"));
    assert_eq!(condition(&scene.site), None);
    assert_eq!(other.asked(), 0, "no other server is asked");
}

#[test]
fn an_issuer_says_itself_where_its_keys_are() {
    if !has_openssl() {
        return;
    }
    let mut scene = Scene::new();
    let signer = scene.signer("one", "RS256");
    scene.server.serves(&[signer.jwk("one", &Value::Null)]);
    let issuer = scene.server.url("/realm");
    let describes = |scene: &Scene, issuer: &str, keys: &str| {
        let description = json!({ "issuer": issuer, "jwks_uri": keys, "token_endpoint": "x" });
        let answer = KeyAnswer::Body(description.to_string().into_bytes());
        scene.server.answers("/realm/.well-known/openid-configuration", answer);
    };
    describes(&scene, &issuer, &scene.server.url("/keys"));
    let entry = scene.server.entry_of_issuer("keys_refresh = '1s'");
    let relay = scene.start(&[entry]);
    let claims = json!({ "sub": ALICE, "exp": in_seconds(600), "iss": issuer });
    assert_eq!(scene.status(&relay, &signer.sign_as("one", &claims)), OPEN, "{}", relay.log());
    let anybody = json!({ "sub": ALICE, "exp": in_seconds(600), "iss": "https://elsewhere.example" });
    assert_eq!(scene.status(&relay, &signer.sign_as("one", &anybody)), CREDENTIALS);

    for (issuer, keys, expected) in [
        ("https://elsewhere.example", "https://localhost/keys", "describes another issuer"),
        (&issuer, "http://localhost/keys", "names no place for its keys"),
    ] {
        describes(&scene, issuer, keys);
        assert!(relay.logs(expected), "{}", relay.log());
    }
    scene.server.answers("/realm/.well-known/openid-configuration", KeyAnswer::Body(b"{}".to_vec()));
    assert!(relay.logs("is not the description of an issuer"), "{}", relay.log());
    assert_eq!(scene.status(&relay, &signer.sign_as("one", &claims)), OPEN);
}

#[test]
fn a_set_in_a_file_is_read_again_and_a_bad_one_leaves_the_last() {
    if !has_openssl() {
        return;
    }
    let mut scene = Scene::new();
    let (old, new) = (scene.signer("old", "EdDSA"), scene.signer("new", "ES256"));
    let file = scene.site.folder().join("keys.json");
    let write = |keys: Value| {
        let next = file.with_extension("next");
        std::fs::write(&next, json!({ "keys": keys }).to_string()).unwrap();
        std::fs::rename(&next, &file).unwrap();
    };
    write(json!([old.jwk("old", &Value::Null)]));
    let entry = format!("{{ keys_file = '{}', keys_refresh = '1s' }}", file.display());
    let relay = scene.start(&[entry]);
    let (old_token, new_token) = (old.sign_as("old", &claims()), new.sign_as("new", &claims()));
    assert_eq!([&old_token, &new_token].map(|token| scene.status(&relay, token)), [OPEN, CREDENTIALS]);
    write(json!([new.jwk("new", &Value::Null)]));
    assert!(scene.comes_to(&relay, &new_token, OPEN), "{}", relay.log());
    assert_eq!(scene.status(&relay, &old_token), CREDENTIALS);
    std::fs::remove_file(&file).unwrap();
    assert!(relay.logs("stay in force: No such file"), "{}", relay.log());
    assert!(relay.admin_comes_to_say("/metrics", "sluicegate_token_key_sets{state=\"kept\"} 1"));
    // What reads the configuration says the same.
    let status = scene.site.command(&["status"]).output().unwrap();
    let said = String::from_utf8_lossy(&status.stderr).into_owned();
    assert!(said.contains("the set of keys in") && said.contains("No such file"), "{said}");
    assert_eq!(scene.status(&relay, &new_token), OPEN);

    relay.signal(Signal::SIGHUP);
    assert!(relay.logs("reload refused"), "{}", relay.log());
    let checked = scene.site.command(&["check"]).output().unwrap();
    let said = String::from_utf8_lossy(&checked.stderr).into_owned();
    assert!(said.contains("the set of keys in") && said.contains("No such file"), "{said}");
}

#[test]
fn a_reload_adds_a_login_service_and_takes_one_away() {
    if !has_openssl() {
        return;
    }
    let mut scene = Scene::new();
    let signer = scene.signer("one", "ES256");
    scene.server.serves(&[signer.jwk("one", &Value::Null)]);
    let token = signer.sign_as("one", &claims());
    // Another login service, so that the process may look names up all the time.
    let other = scene.signer("other", "ES256");
    let set = json!({ "keys": [other.jwk("other", &Value::Null)] }).to_string().into_bytes();
    scene.server.answers("/other", KeyAnswer::Body(set));
    let (entry, always) = (scene.server.entry(""), scene.server.entry("").replace("/keys'", "/other'"));
    let relay = scene.start(std::slice::from_ref(&always));
    assert_eq!(scene.status(&relay, &token), CREDENTIALS);
    for (entries, status) in [(format!("{always}, {entry}"), OPEN), (always, CREDENTIALS)] {
        let asked = scene.server.asked();
        scene.site.configure(&format!("authz.tokens = [{entries}]"));
        relay.signal(Signal::SIGHUP);
        assert!(scene.comes_to(&relay, &token, status), "{}", relay.log());
        assert_eq!(scene.server.asked(), asked + usize::from(status == OPEN), "a set that stays is not read");
    }
    assert!(!scene.causes().contains(&"token-keys-missing".to_owned()), "it counts when it was read");
}

#[test]
fn check_tries_the_set_and_says_what_is_wrong_with_a_signer() {
    if !has_openssl() {
        return;
    }
    let mut scene = Scene::new();
    let signer = scene.signer("one", "ES256");
    scene.server.serves(&[signer.jwk("one", &Value::Null)]);
    let url = scene.server.url("/keys");
    let mut said_of = |entry: &str| {
        scene.site.configure(&format!("authz.tokens = [{entry}]"));
        let checked = scene.site.command(&["check"]).output().unwrap();
        (checked.status.success(), String::from_utf8_lossy(&checked.stderr).into_owned())
    };
    let (is_good, said) = said_of(&scene.server.entry(""));
    assert!(is_good, "{said}");
    let gone = free_address().port();
    let key = signer.key_file.display();
    for (entry, expected) in [
        (format!("{{ keys_url = '{url}' }}"), "is not signed by a CA that is trusted"),
        (scene.server.entry("").replace("/keys'", "/nothing'"), "answers 404, and 200 is needed"),
        (format!("{{ keys_url = 'https://localhost:{gone}/' }}"), "onnection refused"),
        (format!("{{ keys_url = '{url}', keys_ca = '/nowhere' }}"), "/nowhere"),
        ("{ keys_url = 'http://login.example/' }".to_owned(), "is no URL that keys are fetched from"),
        ("{ keys_url = 'https://a:b@login.example/' }".to_owned(), "without a user"),
        ("{ discover = true }".to_owned(), "name it in `issuer`"),
        ("{ discover = true, issuer = 'login' }".to_owned(), "is no URL that keys are fetched from"),
        ("{ audience = 'relay' }".to_owned(), "write exactly one of `key_file`"),
        (format!("{{ keys_url = '{url}', key_file = '{key}' }}"), "write exactly one of `key_file`"),
        (format!("{{ key_file = '{key}' }}"), "name its `algorithm`"),
        (
            format!("{{ key_file = '{key}', algorithm = 'ES256', keys_refresh = '1m' }}"),
            "goes with a set of keys",
        ),
        (format!("{{ keys_url = '{url}', key_id = 'one' }}"), "`key_id` goes with key_file"),
        (format!("{{ keys_url = '{url}', algorithm = 'HS256' }}"), "in no set of public keys"),
        (format!("{{ keys_url = '{url}', keys_refresh = '10ms' }}"), "must be between 1s and 1day"),
        (format!("{{ keys_file = '{key}' }}"), "no JSON Web Key Set"),
        ("{ keys_file = '/dev/zero' }".to_owned(), "larger than 262144 bytes"),
    ] {
        let (is_good, said) = said_of(&entry);
        assert!(!is_good && said.contains(expected), "{entry}: {said}");
    }
}

#[test]
fn the_first_signer_whose_keys_are_fetched_needs_a_new_process_and_a_further_one_does_not() {
    let load = |tokens: &str| {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = format!("vpn.allow = ['127.0.0.0/8']\nauthz.tokens = [{tokens}]\n");
        std::fs::write(file.path(), text).unwrap();
        Config::load(Some(file.path()), std::iter::empty()).unwrap()
    };
    let one = "{ keys_url = 'https://a.example/' }";
    let two = format!("{one}, {{ issuer = 'https://b.example', discover = true }}");
    let [none, one, two] = ["", one, &two].map(load);
    let needs = |before: &Config, after| before.needs_new_process(after);
    assert_eq!(needs(&none, &one), ["authz.tokens"], "it has given up the files of the resolver");
    assert_eq!((needs(&one, &two), needs(&two, &none)), (Vec::new(), Vec::new()));
}
