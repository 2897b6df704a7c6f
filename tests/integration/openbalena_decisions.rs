//! Profile `openbalena` opens what openBalena's own API opens: tests/openbalena/decisions.tsv has the API's answers,
//! and a relay on the same rows gives the same ones, except for those in [`differs`].

use serde_json::Value;

use crate::support::{Cluster, OpenBalena, Relay, Signer, in_seconds, tools_or_skip};

const DECISIONS: &str = include_str!("../openbalena/decisions.tsv");
const DEVICES: [&str; 3] = [OpenBalena::DEVICE, OpenBalena::OTHER_DEVICE, "33333333333333333333333333333333"];
const PORTS: [u16; 3] = [22222, 80, 48484];

/// What is asked of the API, and its answer: for each device, whether each port is open.
struct Decision<'a> {
    guest: &'a str,
    holder: &'a str,
    /// Permissions, or the claims of a token.
    held: &'a str,
    opens: &'a str,
}

impl<'a> Decision<'a> {
    fn parse(line: &'a str) -> Self {
        let parts: Vec<&str> = line.split('\t').collect();
        let [guest, holder, held, opens] = *parts else { panic!("{line}") };
        Self { guest, holder, held, opens }
    }

    fn permissions(&self) -> Vec<String> {
        serde_json::from_str(self.held).unwrap()
    }

    /// The relay's answer where it is not the API's, and why.
    fn differs(&self) -> Option<(&'static str, &'static str)> {
        const NOTHING: &str = "--- --- ---";
        let of_token = |claims| self.holder == "token" && self.held == claims;
        let not_understood = |permission: &String| {
            let filter = permission.split('?').nth(1);
            permission.starts_with("resin.device.tunnel-22222?")
                && !matches!(
                    filter,
                    Some("true" | "actor eq @__ACTOR_ID" | "id eq 2" | "belongs_to__application eq 2")
                )
        };
        if self.holder == "unknown" || self.holder.starts_with("expired") {
            return Some((NOTHING, "nobody is refused, and not taken for the guest"));
        }
        if of_token(r#"{"service":"vpn","apikey":"unknown"}"#)
            || of_token(r#"{"service":"vpn","apikey":"expired-key"}"#)
        {
            return Some((NOTHING, "an API key that is none is refused, and not taken for the guest"));
        }
        if of_token(r#"{"service":"vpn","apikey":"own-key-of-A"}"#) {
            let opens =
                if self.guest == r#"["resin.device.tunnel-80"]"# { "xxx -x- -x-" } else { "xxx --- ---" };
            return Some((
                opens,
                "a service token has all rights of its key, which whoever holds it can read",
            ));
        }
        if of_token(r#"{"access":{"actor":101,"permissions":["resin.device.all?actor eq @__ACTOR_ID"]}}"#) {
            let opens = if self.guest == r#"["resin.device.tunnel-80"]"# { "-x- -x- -x-" } else { NOTHING };
            return Some((opens, "a filter in an access token is not understood"));
        }
        if self.holder == "key of A" {
            let permissions = self.permissions();
            match permissions.as_slice() {
                [one] if not_understood(one) => return Some((NOTHING, "the filter is not understood")),
                [bad, own] if bad.contains("?nonsense(") && own.contains("?actor") => {
                    return Some(("x-- --- ---", "the API fails on a filter that it cannot parse"));
                }
                _ => {}
            }
        }
        None
    }
}

/// A world in which the holders of decisions are made.
struct Holders<'a> {
    world: OpenBalena<'a>,
    api: Signer,
    made: usize,
}

impl<'a> Holders<'a> {
    fn new(cluster: &'a Cluster, guest: &str) -> Self {
        let mut world = OpenBalena::new(cluster);
        let [a, b, c] = DEVICES;
        // The numbers are those that facts.mjs has.
        world.by_hand(&format!(
            r#"INSERT INTO "actor" ("id") VALUES (92), (101), (102), (103), (201), (202), (203);
            INSERT INTO "application" ("actor", "slug") VALUES (92, 'us/other');
            UPDATE "device" SET "actor" = 100 + "id";
            INSERT INTO "device" ("uuid", "actor", "belongs to-application", "is connected to vpn",
                "is managed by-service instance") VALUES ('{c}', 103, 2, true, 1);
            INSERT INTO "user" ("id", "actor", "username", "jwt secret")
            VALUES (11, 201, 'eleven', 'eleven'), (12, 202, 'twelve', NULL), (13, 203, 'thirteen', '');
            SELECT setval('actor_id_seq', 300), setval('user_id_seq', 300)"#
        ));
        world.write_addresses(&[(a, "127.0.0.1"), (b, "127.0.0.2"), (c, "127.0.0.3")]);
        let guest_user = world.user("guest");
        for permission in serde_json::from_str::<Vec<String>>(guest).unwrap() {
            world.permit_user(guest_user, &permission);
        }
        for user in 11..=13 {
            world.permit_user(user, "resin.device.tunnel-22222");
        }
        world.role("tunnels", "resin.device.tunnel-80");
        world.role("own", "resin.device.all?actor eq @__ACTOR_ID");
        world.role("nothing", "resin.device.read");
        let keys = [
            ("key-of-A", "resin.device.tunnel-48484"),
            ("own-key-of-A", "resin.device.all?actor eq @__ACTOR_ID"),
            ("expired-key", "resin.device.all"),
        ];
        for (key, permission) in keys {
            let id = world.device_key(key, a);
            world.permit_key(id, permission);
        }
        world.by_hand(r#"UPDATE "api key" SET "expiry date" = 'epoch' WHERE "key" = 'expired-key'"#);
        let api = Signer::new(world.folder(), "api", "HS256");
        world.accept_tokens(&api);
        world.configure("limits.unknown_tokens_per_minute = 0");
        world.do_as_documented(3);
        Self { world, api, made: 0 }
    }

    /// Makes the holder of a decision; returns the token that it sends.
    fn make(&mut self, decision: &Decision<'_>) -> String {
        self.made += 1;
        let name = format!("holder-{}", self.made);
        match decision.holder {
            "token" => {
                let mut claims: Value = serde_json::from_str(decision.held).unwrap();
                claims["exp"] = in_seconds(600).into();
                self.api.sign(&claims)
            }
            "unknown" => serde_json::from_str(decision.held).unwrap(),
            user if user.starts_with("user") => {
                let id = self.world.user(&name);
                self.world.set_login_secret(id, Some(&name));
                self.give(
                    &name,
                    decision,
                    |world, permission| world.permit_user(id, permission),
                    |world, role| {
                        world.give_user_role(id, role);
                    },
                );
                let until = user.split("until ").nth(1).unwrap_or("infinity");
                for held in ["user-has-permission", "user-has-role"] {
                    let sql = format!(
                        r#"UPDATE "{held}" SET "expiry date" = nullif('{until}'::timestamptz, 'infinity') WHERE "user" = {id}"#
                    );
                    self.world.by_hand(&sql);
                }
                let claims = serde_json::json!({ "id": id, "jwt_secret": name, "exp": in_seconds(600) });
                self.api.sign(&claims)
            }
            key => {
                let id = match key {
                    _ if key.contains("of A") => self.world.device_key(&name, DEVICES[0]),
                    _ if key.contains("of guest") => self.world.key(&name, "guest"),
                    _ => self.world.key(&name, "eleven"),
                };
                self.give(
                    &name,
                    decision,
                    |world, permission| world.permit_key(id, permission),
                    |world, role| {
                        world.give_key_role(id, role);
                    },
                );
                if key.starts_with("expired") {
                    self.world
                        .by_hand(&format!(r#"UPDATE "api key" SET "expiry date" = now() WHERE "id" = {id}"#));
                }
                name
            }
        }
    }

    /// Gives a holder its permissions: one by one, or each by a role.
    fn give(
        &mut self,
        name: &str,
        decision: &Decision<'_>,
        permit: impl Fn(&mut OpenBalena<'a>, &str),
        give_role: impl Fn(&mut OpenBalena<'a>, i32),
    ) {
        for permission in decision.permissions() {
            if decision.holder.contains("by role") {
                let role = self.world.role(&format!("{name} {permission}"), &permission);
                give_role(&mut self.world, role);
            } else {
                permit(&mut self.world, &permission);
            }
        }
    }
}

/// The relay's answer to a token, in the form of the table.
fn opens(relay: &Relay, token: &str) -> String {
    let is_open = |uuid, port| match OpenBalena::status(relay, token, uuid, port) {
        // Whoever may, finds nobody on the port.
        200 | 502 => 'x',
        403 | 407 => '-',
        other => panic!("{other} for {token}: {}", relay.log()),
    };
    DEVICES.map(|uuid| PORTS.map(|port| is_open(uuid, port)).iter().collect::<String>()).join(" ")
}

/// Compares every decision for a guest with these permissions.
fn compare(guest: &str) {
    if !tools_or_skip("decisions of openBalena", &["openssl"]) {
        return;
    }
    let Some(cluster) = Cluster::shared() else { return };
    let decisions: Vec<Decision<'_>> = DECISIONS
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(Decision::parse)
        .filter(|decision| decision.guest == guest)
        .collect();
    assert!(decisions.len() > 10, "of {guest}");
    let mut holders = Holders::new(cluster, guest);
    let tokens: Vec<String> = decisions.iter().map(|decision| holders.make(decision)).collect();
    let relay = holders.world.start();

    let mut wrong = Vec::new();
    for (decision, token) in decisions.iter().zip(&tokens) {
        let Decision { holder, held, opens: api, .. } = decision;
        let (expected, why) = decision.differs().unwrap_or((api, "as the API"));
        let found = opens(&relay, token);
        if found != expected {
            wrong.push(format!("{holder} {held}: {found}, not {expected} ({why})"));
        }
    }

    assert!(wrong.is_empty(), "guest {guest}:\n{}", wrong.join("\n"));
}

#[test]
fn tunnels_open_as_openbalena_decides() {
    compare("[]");
}

#[test]
fn tunnels_open_as_openbalena_decides_with_a_guest_of_one_port() {
    compare(r#"["resin.device.tunnel-80"]"#);
}

#[test]
fn tunnels_open_as_openbalena_decides_with_a_guest_of_everything() {
    compare(r#"["resource.all"]"#);
}

#[test]
fn tunnels_open_as_openbalena_decides_with_a_guest_of_one_device() {
    compare(r#"["resin.device.tunnel-80?id eq 2"]"#);
}
