//! A network that shows one unknown token after the other is told to come back later; nobody else is, and no token
//! that somebody holds.

use std::collections::BTreeSet;

use crate::support::{
    Answer, DEVICE, Device, Relay, Request, Signer, Site, V4, in_seconds, tools_or_skip, wait_for,
};
use serde_json::json;

const OPEN: u16 = 200;
const CREDENTIALS: u16 = 407;
const LIMIT: u16 = 429;

/// Unknown tokens allowed per minute.
const BOUND: usize = 3;

/// The answer to `token` from a client that a load balancer says is at `client`.
fn ask_from(relay: &Relay, client: &str, token: &str, port: u16) -> Answer {
    let family = if client.contains(':') { "TCP6" } else { "TCP4" };
    let header = format!("PROXY {family} {client} {client} 40000 3128\r\n");
    let request = Request::to(DEVICE, port).bearer(token).bytes();
    Answer::to_bytes(relay.address(), &[header.as_bytes(), &request].concat())
}

/// A site behind a load balancer, with the bound.
fn site() -> Site {
    Site::new(&format!(
        "listen = [{{ address = '127.0.0.1:0', proxy_from = ['127.0.0.0/8'] }}]
        limits.unknown_tokens_per_minute = {BOUND}"
    ))
}

#[test]
fn a_network_beyond_the_bound_is_told_to_come_back_and_no_other_is() {
    let (site, device) = (site(), Device::echo(V4));
    let relay = site.start();
    let ask = |client: &str, token: &str| ask_from(&relay, client, token, device.port()).status;
    for networks in
        [["192.0.2.1", "192.0.2.200", "192.0.3.1"], ["2001:db8::1", "2001:db8::2:1", "2001:db8:0:1::1"]]
    {
        let [client, neighbour, other] = networks;
        for n in 0..BOUND {
            assert_eq!(ask(client, &format!("guess {n}")), CREDENTIALS);
        }
        let answer = ask_from(&relay, neighbour, "another guess", device.port());
        assert_eq!((answer.status, answer.slug().as_deref()), (LIMIT, Some("limit")));
        assert_eq!(ask(other, "a guess"), CREDENTIALS, "{other}");
        assert_eq!([ask(client, &site.token), ask(neighbour, &site.token)], [OPEN; 2]);
    }
    let refused = site.audit().wait_for(|event| event["cause"] == "unknown-tokens");
    assert_eq!((&refused["slug"], &refused["detail"]), (&json!("limit"), &json!("it is credential-unknown")));
    assert!(relay.admin_get("/metrics").contains("cause=\"unknown-tokens\"} 2"));
}

#[test]
fn what_somebody_holds_or_held_is_never_counted() {
    let (site, device) = (site(), Device::echo(V4));
    let revoked = site.cli(&["token", "issue", "alice"]);
    site.cli(&["token", "revoke", revoked["credential"].as_str().unwrap()]);
    let relay = site.start();
    let ask = |token: &str| ask_from(&relay, "192.0.2.1", token, device.port()).status;
    for _ in 0..BOUND + 2 {
        assert_eq!([ask(&site.token), ask(revoked["token"].as_str().unwrap())], [OPEN, CREDENTIALS]);
    }
    for _ in 0..BOUND {
        assert_eq!(ask("a guess"), CREDENTIALS, "none of the bound is used");
    }
    assert_eq!([ask("a guess"), ask(revoked["token"].as_str().unwrap())], [LIMIT, CREDENTIALS]);
}

#[test]
fn forged_session_tokens_count_and_genuine_ones_are_still_told_apart() {
    if !tools_or_skip("session tokens beyond the bound", &["openssl"]) {
        return;
    }
    let (mut site, device) = (site(), Device::echo(V4));
    let signer = Signer::new(site.folder(), "login", "EdDSA");
    let stranger = Signer::new(site.folder(), "stranger", "EdDSA");
    site.configure(&format!("authz.tokens = [{}]", signer.entry("leeway = '0s'")));
    let relay = site.start();
    let ask = |token: &str| ask_from(&relay, "192.0.2.1", token, device.port()).status;
    let claims = |seconds| json!({ "sub": 1, "exp": in_seconds(seconds) });
    let (genuine, over) = (signer.sign(&claims(600)), signer.sign(&claims(-10)));
    let forged = stranger.sign(&claims(600));
    for _ in 0..BOUND + 2 {
        assert_eq!([ask(&genuine), ask(&over)], [OPEN, CREDENTIALS]);
    }

    for _ in 0..BOUND {
        assert_eq!(ask(&forged), CREDENTIALS);
    }

    assert_eq!(ask(&forged), LIMIT);
    assert_eq!(ask("jwt_secret:guess"), LIMIT);
    assert_eq!([ask(&genuine), ask(&over)], [OPEN, CREDENTIALS]);
    // The two over the bound may have been on different threads, whose events come in any order.
    let events = || site.audit().events().into_iter().filter(|event| event["cause"] == "unknown-tokens");
    let details = || events().map(|event| event["detail"].to_string()).collect::<BTreeSet<_>>();
    let both = wait_for(|| Some(details()).filter(|details| details.len() == 2));
    assert_eq!(
        both.unwrap_or_else(details),
        BTreeSet::from(["it is token-reserved", "it is token-signature"].map(|text| format!("{text:?}")))
    );
}

#[test]
fn the_nodes_own_probe_is_never_a_stranger() {
    let site = Site::new("probe.interval = '1s'\nlimits.unknown_tokens_per_minute = 1");
    let relay = site.start();
    let ask = || Request::to(DEVICE, 80).bearer("a guess").send(relay.address()).status;
    let runs = |count: f64| relay.metric_becomes("sluicegate_probe_runs_total", |runs| runs >= count);
    assert!(runs(2.0));
    assert_eq!([ask(), ask()], [CREDENTIALS, LIMIT], "probes use none of the bound");

    let so_far = relay.metric("sluicegate_probe_runs_total").unwrap();
    assert!(runs(so_far + 2.0));

    assert_eq!(relay.metric("sluicegate_probe_success"), Some(1.0), "{}", relay.log());
}

#[test]
fn without_a_bound_every_guess_is_answered_as_one() {
    let site = Site::new("limits.unknown_tokens_per_minute = 0");
    let relay = site.start();
    let ask = |n| Request::to(DEVICE, 80).bearer(&format!("guess {n}")).send(relay.address()).status;
    assert!((0..100).all(|n| ask(n) == CREDENTIALS));
}
