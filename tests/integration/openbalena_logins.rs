//! Users of openBalena who log in: a session token of its API opens what the user may reach until the user logs out,
//! and their secrets are read nowhere but there, hashed.

use std::io::{Read, Write};
use std::net::TcpStream;

use crate::support::{
    Cluster, Device, End, OpenBalena, Request, Signer, assert_done, in_seconds, receive, tools_or_skip,
};
use serde_json::json;
use sluicegate::authz::{KeyHash, PrincipalId};

const OPEN: u16 = 200;
const NOT_PERMITTED: u16 = 403;
const UNKNOWN: u16 = 407;

const A: &str = OpenBalena::DEVICE;

/// A database with alice, who may reach every device, and bob, who may reach none, both logged in; and its API, which
/// logs them in.
struct Scene<'a> {
    world: OpenBalena<'a>,
    api: Signer,
    alice: i32,
    bob: i32,
    device: Device,
}

const ALICES: &str = "ALICESSECRETALICESSECRETALICES22";
const BOBS: &str = "BOBSSECRETBOBSSECRETBOBSSECRET22";

/// The numbers of their actors.
const ALICES_ACTOR: i64 = 5;
const BOBS_ACTOR: i64 = 6;

impl<'a> Scene<'a> {
    /// Makes a scene with `more` keys for the API's tokens. `None` where PostgreSQL or openssl is missing.
    fn new(more: &str) -> Option<Self> {
        if !tools_or_skip("logins of openBalena", &["openssl"]) {
            return None;
        }
        let mut world = OpenBalena::new(Cluster::shared()?);
        let (alice, bob) = (world.user("alice"), world.user("bob"));
        world.permit_user(alice, "resin.device.all");
        world.set_login_secret(alice, Some(ALICES));
        world.set_login_secret(bob, Some(BOBS));
        let api = Signer::new(world.folder(), "api", "HS256");
        world.take_tokens(&api, &format!("secret_claim = 'jwt_secret', {more}"));
        Some(Self { world, api, alice, bob, device: Device::echo(crate::support::V4) })
    }

    /// The same as [`Scene::new`], where the relay may read logins as the documentation says.
    fn permitted(more: &str) -> Option<Self> {
        let scene = Self::new(more)?;
        scene.do_as_documented(3);
        Some(scene)
    }

    /// Runs one of the documentation's pieces of SQL.
    fn do_as_documented(&self, place: usize) {
        let text = include_str!("../../docs/openbalena.md");
        let statements = text.split("```sql\n").nth(place).unwrap().split("```").next().unwrap();
        let database = &self.world.database;
        database.by_hand(&statements.replace("sluicegate_relay", &database.relay()));
    }

    /// Makes a login as the API does.
    fn login(&self, actor: i64, secret: &str) -> String {
        self.api.sign(&json!({ "id": 1, "actor": actor, "jwt_secret": secret, "exp": in_seconds(600) }))
    }

    fn request(&self, token: &str) -> Request {
        Request::to(A, self.device.port()).bearer(token)
    }
}

fn echoes(tunnel: &mut TcpStream) -> bool {
    tunnel.write_all(b"ping").is_ok() && tunnel.read_exact(&mut [0; 4]).is_ok()
}

#[test]
fn a_login_opens_what_its_user_may_reach_and_a_logout_ends_it() {
    let Some(mut scene) = Scene::permitted("") else { return };
    let key = scene.world.key("alice's key", "alice");
    scene.world.permit_key(key, "resin.device.all");
    let relay = scene.world.start();
    let (alice, bob) = (scene.login(ALICES_ACTOR, ALICES), scene.login(BOBS_ACTOR, BOBS));
    let port = scene.device.port();
    let status = |token: &str| OpenBalena::status(&relay, token, A, port);
    let mut tunnel = scene.request(&alice).send(relay.address()).opened();
    let mut by_key = scene.request("alice's key").send(relay.address()).opened();
    assert!(echoes(&mut tunnel));
    assert_eq!(status(&bob), NOT_PERMITTED);

    scene.world.set_login_secret(scene.alice, Some("another, by which nobody has logged in"));

    assert_eq!(receive(&mut tunnel).1, End::Reset);
    assert!(echoes(&mut by_key), "a logout ends no key");
    assert_eq!([status(&alice), status(&bob)], [UNKNOWN, NOT_PERMITTED]);
    let again = scene.login(ALICES_ACTOR, "another, by which nobody has logged in");
    assert_eq!(status(&again), OPEN, "the next login counts");

    scene.world.set_login_secret(scene.bob, None);
    assert!(crate::support::wait_for(|| (status(&bob) == UNKNOWN).then_some(())).is_some());
}

#[test]
fn a_secret_is_worth_nothing_but_in_a_token_of_the_api() {
    let Some(scene) = Scene::permitted("principal_claim = 'actor'") else { return };
    let relay = scene.world.start();
    let stranger = Signer::new(scene.world.folder(), "stranger", "HS256");
    let claims = |secret| json!({ "actor": ALICES_ACTOR, "jwt_secret": secret, "exp": in_seconds(600) });
    let mut nameless = claims(json!(ALICES));
    nameless.as_object_mut().unwrap().remove("actor");
    for (token, what) in [
        (ALICES.to_owned(), "the secret"),
        (format!("jwt_secret:{ALICES}"), "what is hashed"),
        (hex::encode(KeyHash::of_login_secret(ALICES).as_bytes()), "the hash"),
        (stranger.sign(&claims(json!(ALICES))), "a token of somebody else's"),
        (scene.api.sign(&claims(json!("made up"))), "an unknown secret"),
        (scene.api.sign(&claims(json!(""))), "an empty secret"),
        (scene.api.sign(&claims(json!(null))), "no secret"),
        (scene.api.sign(&nameless), "no actor"),
        (scene.login(BOBS_ACTOR, ALICES), "another's actor"),
    ] {
        assert_eq!(scene.request(&token).send(relay.address()).status, UNKNOWN, "{what}");
    }
    assert_eq!(scene.request(&scene.login(ALICES_ACTOR, ALICES)).send(relay.address()).status, OPEN);
}

#[test]
fn secrets_are_hashed_in_the_database_and_read_only_where_they_are_wanted() {
    let Some(scene) = Scene::new("") else { return };
    let refused = scene.world.command(&["check"]).output().unwrap();
    let message = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && message.contains("permission denied for table user"), "{message}");
    let without = scene.world.source().read_all().unwrap();
    assert_eq!(without.credentials.len(), 40, "without the signer");

    scene.do_as_documented(3);
    let checked = scene.world.command(&["check"]).output().unwrap();
    assert_done(&checked);
    assert!(String::from_utf8_lossy(&checked.stdout).contains("42 credentials"));
    let rows = scene.world.source_with_logins(&scene.api).read_all().unwrap();
    let alices = rows.credentials.iter().find(|row| row.key == KeyHash::of_login_secret(ALICES));
    assert_eq!(alices.map(|row| row.principal), Some(PrincipalId(ALICES_ACTOR)));
}

#[test]
fn secrets_can_be_kept_from_the_relays_role_behind_a_view() {
    let Some(scene) = Scene::new("") else { return };
    scene.do_as_documented(2);
    scene.do_as_documented(4);
    let query = scene.world.folder().join("credentials.sql");
    std::fs::write(&query, "SELECT * FROM tunnel_keys").unwrap();
    let mut command = scene.world.command(&["check"]);
    command.env("SLUICEGATE_AUTHZ__QUERIES__CREDENTIALS", &query);
    let checked = command.output().unwrap();
    assert_done(&checked);
    assert!(String::from_utf8_lossy(&checked.stdout).contains("42 credentials"));
}
