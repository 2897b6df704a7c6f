//! Users of openBalena who log in: a session token of its API opens what the user may reach until the user logs out,
//! and their secrets are read nowhere but there, hashed.

use std::io::{Read, Write};
use std::net::TcpStream;

use crate::support::{
    Cluster, Device, End, OpenBalena, Request, Signer, assert_done, in_seconds, receive, tools_or_skip,
};
use serde_json::{Value, json};
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

/// Their numbers, and those of their actors. The administrator of every world is the first.
const ALICE: i64 = 2;
const ALICES_ACTOR: i64 = 5;
const BOB: i64 = 3;
const BOBS_ACTOR: i64 = 6;

impl<'a> Scene<'a> {
    /// `None` where PostgreSQL or openssl is missing.
    fn new() -> Option<Self> {
        if !tools_or_skip("logins of openBalena", &["openssl"]) {
            return None;
        }
        let mut world = OpenBalena::new(Cluster::shared()?);
        let (alice, bob) = (world.user("alice"), world.user("bob"));
        world.permit_user(alice, "resin.device.all");
        world.set_login_secret(alice, Some(ALICES));
        world.set_login_secret(bob, Some(BOBS));
        let api = Signer::new(world.folder(), "api", "HS256");
        world.accept_tokens(&api);
        Some(Self { world, api, alice, bob, device: Device::echo(crate::support::V4) })
    }

    /// The same as [`Scene::new`], where the relay may read logins as the documentation says.
    fn permitted() -> Option<Self> {
        let scene = Self::new()?;
        scene.world.do_as_documented(3);
        Some(scene)
    }

    /// Makes a login as the API does.
    fn login(&self, user: i64, secret: &str) -> String {
        self.token(json!({ "id": user, "jwt_secret": secret, "authTime": 1_700_000_000_000_i64 }))
    }

    /// Signs claims, valid for ten minutes.
    fn token(&self, mut claims: Value) -> String {
        claims["exp"] = in_seconds(600).into();
        self.api.sign(&claims)
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
    let Some(mut scene) = Scene::permitted() else { return };
    let key = scene.world.key("alice's key", "alice");
    scene.world.permit_key(key, "resin.device.all");
    let relay = scene.world.start();
    let (alice, bob) = (scene.login(ALICE, ALICES), scene.login(BOB, BOBS));
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
    let again = scene.login(ALICE, "another, by which nobody has logged in");
    assert_eq!(status(&again), OPEN, "the next login counts");

    scene.world.set_login_secret(scene.bob, None);
    assert!(crate::support::wait_for(|| (status(&bob) == UNKNOWN).then_some(())).is_some());
}

#[test]
fn a_secret_is_worth_nothing_but_in_a_token_of_the_api() {
    let Some(scene) = Scene::permitted() else { return };
    let relay = scene.world.start();
    let stranger = Signer::new(scene.world.folder(), "stranger", "HS256");
    let genuine = json!({ "id": ALICE, "jwt_secret": ALICES, "exp": in_seconds(600) });
    for (token, what) in [
        (ALICES.to_owned(), "the secret"),
        (format!("jwt_secret:{ALICES}"), "what is hashed"),
        (hex::encode(KeyHash::of_login_secret(ALICES).as_bytes()), "the hash"),
        (stranger.sign(&genuine), "a token of somebody else's"),
        (scene.login(ALICE, "made up"), "an unknown secret"),
        (scene.login(ALICE, ""), "an empty secret"),
        (scene.token(json!({ "id": ALICE, "jwt_secret": null })), "no secret"),
        (scene.token(json!({ "jwt_secret": ALICES })), "no user"),
        (scene.login(BOB, ALICES), "another user"),
    ] {
        assert_eq!(scene.request(&token).send(relay.address()).status, UNKNOWN, "{what}");
    }
    assert_eq!(scene.request(&scene.login(ALICE, ALICES)).send(relay.address()).status, OPEN);
}

#[test]
fn a_login_for_roles_has_their_rights_until_the_logout_of_its_user() {
    let Some(mut scene) = Scene::permitted() else { return };
    let role = scene.world.role("tunnels", "resin.device.all");
    let relay = scene.world.start();
    let port = scene.device.port();
    let status = |token: &str| OpenBalena::status(&relay, token, A, port);
    let roles = |actor, secret: Option<&str>| {
        scene.token(
            json!({ "actor": actor, "roles": ["none", "tunnels"], "bindings": {}, "jwt_secret": secret }),
        )
    };
    let (bobs, anothers) = (roles(BOBS_ACTOR, Some(BOBS)), roles(ALICES_ACTOR, Some(BOBS)));
    let nobodys = roles(BOBS_ACTOR, None);
    let mut tunnels = [&bobs, &nobodys].map(|token| scene.request(token).send(relay.address()).opened());
    assert_eq!(status(&anothers), UNKNOWN, "the secret is another user's");

    scene.world.set_login_secret(scene.bob, Some("another"));

    assert_eq!(receive(&mut tunnels[0]).1, End::Reset);
    assert!(echoes(&mut tunnels[1]), "nothing names its user");
    assert_eq!([status(&bobs), status(&nobodys)], [UNKNOWN, OPEN]);

    scene.world.by_hand(&format!(r#"DELETE FROM "role-has-permission" WHERE "role" = {role}"#));

    assert_eq!(receive(&mut tunnels[1]).1, End::Reset);
    assert_eq!(status(&nobodys), NOT_PERMITTED);
}

#[test]
fn a_secret_that_two_users_have_logs_neither_in() {
    let Some(mut scene) = Scene::permitted() else { return };
    scene.world.set_login_secret(scene.bob, Some(ALICES));
    let relay = scene.world.start();
    let status = |token: &str| scene.request(token).send(relay.address()).status;
    assert_eq!([ALICE, BOB].map(|user| status(&scene.login(user, ALICES))), [UNKNOWN; 2]);
}

#[test]
fn a_token_that_lists_too_much_is_refused() {
    let Some(scene) = Scene::permitted() else { return };
    let relay = scene.world.start();
    let listing = |count: usize| {
        let mut names = vec!["resin.device.read"; count - 1];
        names.push("resin.device.all");
        scene.token(json!({ "access": { "actor": BOBS_ACTOR, "permissions": names } }))
    };
    let status = |token: &str| scene.request(token).send(relay.address()).status;
    assert_eq!([64_usize, 65].map(|count| status(&listing(count))), [OPEN, UNKNOWN]);
}

#[test]
fn logins_of_openbalena_are_configured_by_their_kind_alone() {
    let Some(mut scene) = Scene::new() else { return };
    let old = scene.api.entry("secret_claim = 'jwt_secret'");
    let both = scene.api.entry("claims = 'openbalena', principal_claim = 'actor'");
    for (entry, message) in [(old, "write `claims = \"openbalena\"`"), (both, "leave out `secret_claim`")] {
        scene.world.replace_configuration(&format!("authz.tokens = [{entry}]"));
        let checked = scene.world.command(&["check"]).output().unwrap();
        let shown = String::from_utf8_lossy(&checked.stderr).into_owned();
        assert!(!checked.status.success() && shown.contains(message), "{shown}");
    }
}

#[test]
fn secrets_are_hashed_in_the_database_and_read_only_where_they_are_wanted() {
    let Some(scene) = Scene::new() else { return };
    let refused = scene.world.command(&["check"]).output().unwrap();
    let message = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && message.contains("permission denied for table user"), "{message}");
    let without = scene.world.source().read_all().unwrap();
    assert_eq!(without.credentials.len(), 40, "without the signer");

    scene.world.do_as_documented(3);
    let checked = scene.world.command(&["check"]).output().unwrap();
    assert_done(&checked);
    let shown = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert!(shown.contains("43 credentials"), "40 keys, and three users: {shown}");
    let rows = scene.world.source_with_logins(&scene.api).read_all().unwrap();
    let alices = rows.credentials.iter().find(|row| row.key == KeyHash::of_login_secret(ALICES));
    assert_eq!(alices.map(|row| row.principal), Some(PrincipalId((ALICE << 32) + ALICES_ACTOR)));
}

#[test]
fn secrets_can_be_kept_from_the_relays_role_behind_a_view() {
    let Some(scene) = Scene::new() else { return };
    scene.world.do_as_documented(2);
    scene.world.do_as_documented(4);
    let query = scene.world.folder().join("credentials.sql");
    std::fs::write(&query, "SELECT * FROM tunnel_keys").unwrap();
    let mut command = scene.world.command(&["check"]);
    command.env("SLUICEGATE_AUTHZ__QUERIES__CREDENTIALS", &query);
    let checked = command.output().unwrap();
    assert_done(&checked);
    let shown = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert!(shown.contains("43 credentials"), "40 keys, and three users: {shown}");
}
