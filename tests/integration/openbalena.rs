//! Profile `openbalena` on a real server: who may do what is what openBalena says, under a role that has exactly
//! the rights that the documentation gives it.

use std::io::{Read, Write};

use sluicegate::authz::{DeviceId, FleetId, Grant, KeyHash, PortRange, Scope, UnixMillis};

use crate::support::{
    Cluster, Device, OpenBalena, Request, Signer, V4, assert_done, tools_or_skip, wait_for,
};

/// The device and the port are open, there is nobody on the port, one is not permitted, nobody is known.
const OPEN: u16 = 200;
const PERMITTED: u16 = 502;
const REFUSED: u16 = 403;
const UNKNOWN: u16 = 407;

const A: &str = OpenBalena::DEVICE;
const B: &str = OpenBalena::OTHER_DEVICE;

/// Replies to a key with these permissions, for that port of device A, another port of it, and that port of device B.
fn reach(world: &mut OpenBalena<'_>, permissions: &[&str], port: u16) -> Vec<[u16; 3]> {
    for (n, permission) in permissions.iter().enumerate() {
        let key = world.device_key(&format!("key {n}"), A);
        world.permit_key(key, permission);
    }
    let relay = world.start();
    let other_port = Device::closed_port();
    let status = |n: usize, uuid, port| OpenBalena::status(&relay, &format!("key {n}"), uuid, port);
    let reach = |n| [status(n, A, port), status(n, A, other_port), status(n, B, port)];
    (0..permissions.len()).map(reach).collect()
}

#[test]
fn a_permission_opens_what_its_name_says_and_nothing_more() {
    let Some(cluster) = Cluster::shared() else { return };
    let mut world = OpenBalena::new(cluster);
    let device = Device::echo(V4);
    let port = device.port();
    let everything = [OPEN, PERMITTED, PERMITTED];
    let that_port = [OPEN, REFUSED, PERMITTED];
    let that_device = [OPEN, PERMITTED, REFUSED];
    let nothing = [REFUSED; 3];
    let expected = [
        ("resin.device.tunnel-any".to_owned(), everything),
        ("resin.tunnel-any".to_owned(), everything),
        ("resource.tunnel-any".to_owned(), everything),
        ("resin.device.all".to_owned(), everything),
        ("resin.all".to_owned(), everything),
        ("resource.all".to_owned(), everything),
        (format!("resin.device.tunnel-{port}"), that_port),
        (format!("resource.tunnel-{port}"), that_port),
        ("resin.device.all?id eq 1".to_owned(), that_device),
        ("resin.device.all?belongs_to__application eq 1".to_owned(), everything),
        ("resin.device.all?belongs_to__application eq 2".to_owned(), nothing),
        ("resin.device.all?true".to_owned(), everything),
        ("all".to_owned(), nothing),
        ("tunnel-any".to_owned(), nothing),
        (format!("tunnel-{port}"), nothing),
        (format!("resin.device.tunnel-80-{port}"), nothing),
        ("resin.device.tunnel-firewall".to_owned(), nothing),
        ("resin.device.tunnel-all".to_owned(), nothing),
        ("resin.device.tunnel-any?actor eq @__ACTOR_ID".to_owned(), that_device),
        (format!("resin.tunnel-{port}?actor eq @__ACTOR_ID"), [OPEN, REFUSED, REFUSED]),
        ("resin.device.tunnel-any?id ne 2".to_owned(), nothing),
        ("resin.device.all?actor eq @__ACTOR_ID or true".to_owned(), nothing),
        ("resin.device.all?".to_owned(), nothing),
        (format!("resin.device.tunnel-0{port}"), nothing),
        ("resin.device.tunnel-99999999999".to_owned(), nothing),
        ("resin.device.tunnel-65536".to_owned(), nothing),
        ("resin.device.read".to_owned(), nothing),
        ("resin.application.all".to_owned(), nothing),
        ("resin.device.tunnel-anyone".to_owned(), nothing),
        ("xresin.device.all".to_owned(), nothing),
        ("resinxall".to_owned(), nothing),
    ];
    let permissions: Vec<&str> = expected.iter().map(|(permission, _)| permission.as_str()).collect();

    let found = reach(&mut world, &permissions, port);

    for ((permission, expected), found) in expected.iter().zip(found) {
        assert_eq!(found, *expected, "{permission}");
    }
}

#[test]
fn what_is_not_understood_is_counted_and_told() {
    let Some(cluster) = Cluster::shared() else { return };
    let mut world = OpenBalena::new(cluster);
    let (first, second) = (world.key("first", "admin"), world.key("second", "admin"));
    for key in [first, second] {
        world.permit_key(key, "resin.device.tunnel-any?is_online");
    }
    world.permit_key(first, "resin.device.tunnel-7000?is_online");
    // That opens nothing in openBalena either.
    world.permit_key(first, "resin.device.tunnel-70000?is_online");
    world.permit_key(first, "resin.device.tunnel-firewall?is_online");
    world.permit_key(first, "resin.device.read?id eq 1");
    // Nobody holds it.
    world.role("retired", "resin.device.all?false");
    let message = "2 permissions grant nothing, since they are not understood: \
        `resin.device.tunnel-7000?is_online`, held 1 times; `resin.device.tunnel-any?is_online`, held 2 times";

    let checked = world.command(&["check"]).output().unwrap();
    assert_done(&checked);
    let said = String::from_utf8_lossy(&checked.stderr) + String::from_utf8_lossy(&checked.stdout);
    assert!(said.contains(&format!("warning: {message}")), "{said}");
    assert!(said.contains("(openBalena): fine, 42 credentials, 40 grants, 2 devices"), "{said}");

    let relay = world.start();
    assert_eq!(relay.metric("sluicegate_store_rights_not_understood"), Some(2.0));
    assert!(relay.logs(message), "{}", relay.log());
    let status = world.command(&["authz", "status"]).output().unwrap();
    assert_done(&status);
    assert!(String::from_utf8_lossy(&status.stdout).contains(message));

    world.by_hand(
        r#"UPDATE "permission" SET "name" = 'resin.device.tunnel-7000' WHERE "name" LIKE '%-7000?%'"#,
    );
    assert!(relay.metric_becomes("sluicegate_store_rights_not_understood", |count| count == 1.0));
}

#[test]
fn a_key_has_the_rights_of_its_roles_and_not_those_of_its_user() {
    let Some(cluster) = Cluster::shared() else { return };
    let mut world = OpenBalena::new(cluster);
    let device = Device::echo(V4);
    let role = world.role("named-user-api-key", "resin.device.all");
    let user = world.user("alice");
    world.give_user_role(user, role);
    world.permit_user(user, "resin.device.tunnel-any");
    world.key("limited", "alice");
    let key = world.key("named", "alice");
    world.give_key_role(key, role);
    let relay = world.start();
    assert_eq!(OpenBalena::status(&relay, "named", A, device.port()), OPEN);
    assert_eq!(OpenBalena::status(&relay, "limited", A, device.port()), REFUSED);
}

#[test]
fn the_guests_rights_are_everyones_who_has_a_key() {
    let Some(cluster) = Cluster::shared() else { return };
    let mut world = OpenBalena::new(cluster);
    let device = Device::echo(V4);
    world.key("anyone", "admin");
    let relay = world.start();
    let ask = |key| OpenBalena::status(&relay, key, A, device.port());
    assert_eq!(ask("anyone"), REFUSED);

    let guest = world.user("guest");
    world.permit_user(guest, "resin.device.tunnel-any?actor eq @__ACTOR_ID");
    assert!(relay.metric_becomes("sluicegate_store_rights_not_understood", |count| count == 1.0));
    let role = world.role("public", &format!("resin.device.tunnel-{}", device.port()));
    world.give_user_role(guest, role);

    assert!(wait_for(|| (ask("anyone") == OPEN).then_some(())).is_some());
    assert_eq!(OpenBalena::status(&relay, "anyone", A, 80), REFUSED);
    assert_eq!(ask("nobody's"), UNKNOWN);

    // As a date to come; every grant that follows from it ends by itself.
    world.by_hand(r#"UPDATE "user-has-role" SET "expiry date" = now() - interval '1 second'"#);
    assert!(wait_for(|| (ask("anyone") == REFUSED).then_some(())).is_some());
}

#[test]
fn users_are_principals_of_their_own_until_their_rights_expire() {
    let Some(cluster) = Cluster::shared() else { return };
    let mut world = OpenBalena::new(cluster);
    let alice = world.user("alice");
    world.permit_user(alice, "resin.device.tunnel-22");
    let role = world.role("default-user", "resin.device.all");
    world.give_user_role(alice, role);
    world.by_hand(r#"UPDATE "user-has-role" SET "expiry date" = '2100-01-01T00:00:00.123Z'"#);
    let principal = sluicegate::authz::PrincipalId((2 << 32) + 5);

    let rows = world.source().read_all().unwrap();

    let mut held: Vec<&Grant> = rows.grants.iter().filter(|grant| grant.principal == principal).collect();
    held.sort_by_key(|grant| grant.ports.min());
    let held: Vec<_> = held.iter().map(|grant| (grant.scope, grant.ports, grant.expires_at)).collect();
    let port = PortRange::new(22, 22).unwrap();
    let expires_at = Some(UnixMillis(4_102_444_800_123));
    assert_eq!(held, [(Scope::Any, PortRange::ANY, expires_at), (Scope::Any, port, None)]);
}

#[test]
fn devices_and_keys_are_read_as_the_contract_has_them() {
    let Some(cluster) = Cluster::shared() else { return };
    let mut world = OpenBalena::new(cluster);
    world.by_hand(
        r#"DELETE FROM "api key-has-permission"; DELETE FROM "api key";
        UPDATE "device" SET "is connected to vpn" = false, "is managed by-service instance" = NULL,
            "belongs to-application" = NULL WHERE "id" = 2"#,
    );
    world.key("schlüssel", "admin");

    let mut rows = world.source().read_all().unwrap();

    assert_eq!(rows.quarantined, []);
    assert_eq!(
        (rows.credentials.len(), rows.credentials[0].key),
        (1, KeyHash::of_token("schlüssel".as_bytes()))
    );
    rows.devices.sort_by_key(|device| device.id);
    let [first, second] = &*rows.devices else { panic!("{:?}", rows.devices) };
    assert_eq!((first.id, first.uuid.to_string().as_str(), first.fleet), (DeviceId(1), A, Some(FleetId(1))));
    assert_eq!((first.address, first.node.as_deref(), first.online), (None, Some("10.0.0.7"), true));
    assert_eq!((second.fleet, second.node.as_deref(), second.online), (None, None, false));
}

#[test]
fn only_a_vpn_server_that_has_an_address_holds_a_device() {
    let Some(cluster) = Cluster::shared() else { return };
    let mut world = OpenBalena::new(cluster);
    world.by_hand(
        r#"INSERT INTO "service instance" ("service type", "ip address") VALUES ('api', '10.0.0.9'), ('vpn', '')"#,
    );
    for instance in [2, 3] {
        world.by_hand(&format!(
            r#"UPDATE "device" SET "is managed by-service instance" = {instance} WHERE "id" = 2"#
        ));
        let rows = world.source().read_all().unwrap();
        assert_eq!(rows.quarantined, []);
        let device = rows.devices.iter().find(|device| device.id == DeviceId(2)).unwrap();
        assert_eq!(device.node, None, "service instance {instance}");
    }
}

#[test]
fn the_guests_rights_are_every_users_but_for_those_on_a_device_of_its_own() {
    let Some(cluster) = Cluster::shared() else { return };
    let mut world = OpenBalena::new(cluster);
    world.user("alice");
    let guest = world.user("guest");
    world.permit_user(guest, "resin.device.tunnel-22");
    world.permit_user(guest, "resin.device.tunnel-23?actor eq @__ACTOR_ID");
    world.by_hand(
        r#"UPDATE "device" SET "actor" = (SELECT "actor" FROM "user" WHERE "username" = 'guest') WHERE "id" = 2"#,
    );

    let grants = world.source().read_all().unwrap().grants;

    let holders = |port| {
        let of_port = grants.iter().filter(move |grant| grant.ports.min() == port);
        let (keys, users): (Vec<&Grant>, Vec<&Grant>) =
            of_port.partition(|grant| (1 << 31..1 << 32).contains(&grant.principal.0));
        (keys.len(), users.len())
    };
    assert_eq!(holders(22), (40, 4), "of admin, alice, the guest and whoever may do no more, once each");
    assert_eq!(holders(23), (0, 0));
}

#[test]
fn the_numbers_of_grants_last() {
    let Some(cluster) = Cluster::shared() else { return };
    let mut world = OpenBalena::new(cluster);
    let numbers = |world: &OpenBalena<'_>| {
        let mut numbers: Vec<_> =
            world.source().read_all().unwrap().grants.iter().map(|row| row.id).collect();
        numbers.sort();
        numbers
    };
    let before = numbers(&world);
    let key = world.key("new", "admin");
    world.permit_key(key, "resin.device.all");
    world.by_hand(r#"UPDATE "permission" SET "name" = "name""#);
    world.by_hand(r#"VACUUM FULL "api key-has-permission""#);
    let after = numbers(&world);
    assert_eq!(after.len(), before.len() + 1);
    assert!(before.iter().all(|number| after.contains(number)));
}

#[test]
fn what_is_deleted_in_openbalena_closes_its_tunnels() {
    let Some(cluster) = Cluster::shared() else { return };
    let mut world = OpenBalena::new(cluster);
    let device = Device::echo(V4);
    let role = world.role("operator", "resin.device.all");
    let endings = [
        r#"DELETE FROM "api key-has-permission" WHERE "api key" = KEY"#,
        r#"DELETE FROM "api key-has-role" WHERE "api key" = KEY"#,
        r#"DELETE FROM "api key-has-role" WHERE "api key" = KEY; DELETE FROM "api key" WHERE "id" = KEY"#,
        r#"UPDATE "api key" SET "expiry date" = now() WHERE "id" = KEY"#,
        "SELECT 'this one stays'",
    ];
    let mut keys = Vec::new();
    for n in 0..endings.len() {
        let key = world.key(&format!("key {n}"), "admin");
        match n {
            0 => world.permit_key(key, "resin.device.tunnel-any"),
            _ => world.give_key_role(key, role),
        }
        keys.push(key);
    }
    let relay = world.start();
    let mut tunnels: Vec<_> = (0..endings.len())
        .map(|n| {
            let request = Request::to(A, device.port()).bearer(&format!("key {n}"));
            request.send(relay.address()).opened()
        })
        .collect();
    let mut kept = tunnels.pop().unwrap();

    for (ending, (key, tunnel)) in endings.iter().zip(keys.iter().zip(&mut tunnels)) {
        world.by_hand(&ending.replace("KEY", &key.to_string()));
        let ended = tunnel.read(&mut [0; 1]);
        assert!(
            matches!(&ended, Ok(0))
                || ended.is_err_and(|error| error.kind() != std::io::ErrorKind::WouldBlock),
            "{ending}"
        );
    }
    kept.write_all(b"still here").unwrap();
    kept.read_exact(&mut [0; 10]).unwrap();

    assert_eq!(OpenBalena::status(&relay, "key 0", A, device.port()), REFUSED);
    assert_eq!(OpenBalena::status(&relay, "key 2", A, device.port()), UNKNOWN);
    world.permit_key(keys[0], "resin.device.tunnel-any");
    let ask = || OpenBalena::status(&relay, "key 0", A, device.port());
    assert!(wait_for(|| (ask() == OPEN).then_some(())).is_some(), "given anew, it counts");
}

#[test]
fn only_a_device_that_is_connected_to_this_nodes_vpn_is_dialled() {
    let Some(cluster) = Cluster::shared() else { return };
    let mut world = OpenBalena::new(cluster);
    let device = Device::echo(V4);
    let key = world.key("all", "admin");
    world.permit_key(key, "resin.device.all");
    let relay = world.start();
    let becomes = |wanted: u16| {
        wait_for(|| (OpenBalena::status(&relay, "all", A, device.port()) == wanted).then_some(())).is_some()
    };
    assert!(becomes(OPEN));
    // One device; of a mass the network is asked first, and these answer.
    let set = |is_connected: bool| {
        format!(r#"UPDATE "device" SET "is connected to vpn" = {is_connected} WHERE "uuid" = '{A}'"#)
    };
    world.by_hand(&set(false));
    assert!(becomes(503), "{}", relay.log());
    world.by_hand(&set(true));
    assert!(becomes(OPEN));
    world.by_hand(r#"UPDATE "service instance" SET "ip address" = '10.0.0.8'"#);
    assert!(becomes(503), "{}", relay.log());
}

#[test]
fn devices_that_move_are_followed_while_the_database_cannot_be_read() {
    let Some(cluster) = Cluster::shared() else { return };
    let mut world = OpenBalena::new(cluster);
    let device = Device::echo(V4);
    let key = world.key("all", "admin");
    world.permit_key(key, "resin.device.all");
    let relay = world.start();
    let ask = |uuid| OpenBalena::status(&relay, "all", uuid, device.port());
    assert_eq!((ask(A), ask(B)), (OPEN, PERMITTED));
    let role = world.database.relay();
    world.by_hand(&format!(r#"REVOKE ALL ON "service instance" FROM {role}"#));
    assert!(relay.metric_becomes("sluicegate_store_reachable", |reachable| reachable == 0.0));

    world.write_addresses(&[(A, "127.0.0.2"), (B, "127.0.0.1")]);

    assert!(wait_for(|| ((ask(A), ask(B)) == (PERMITTED, OPEN)).then_some(())).is_some(), "{}", relay.log());
    assert_eq!(relay.metric("sluicegate_store_reachable"), Some(0.0));
}

#[test]
fn what_the_relays_role_may_not_read_is_told() {
    let Some(cluster) = Cluster::shared() else { return };
    let mut world = OpenBalena::new(cluster);
    let relay = world.database.relay();
    world.by_hand(&format!(r#"REVOKE ALL ON "user-has-role" FROM {relay}"#));
    let error = world.source().read_all().unwrap_err().to_string();
    assert!(error.contains("permission denied for table user-has-role"), "{error}");
    let secret = world
        .database
        .cluster
        .try_client(&relay, &world.database.name)
        .unwrap()
        .query("SELECT \"jwt secret\" FROM \"user\"", &[]);
    assert!(secret.is_err(), "no more is granted than is read");
}

#[test]
fn a_schema_of_the_relays_role_shadows_no_table() {
    if !tools_or_skip("a role's own schema", &["openssl"]) {
        return;
    }
    let Some(cluster) = Cluster::shared() else { return };
    let mut world = OpenBalena::new(cluster);
    let signer = Signer::new(world.folder(), "api", "HS256");
    world.do_as_documented(3);
    let relay = world.database.relay();
    let tables = [
        "api key",
        "user",
        "permission",
        "api key-has-permission",
        "api key-has-role",
        "user-has-permission",
    ];
    let more = ["user-has-role", "role", "role-has-permission", "device", "service instance"];
    let shadow = |table| format!(r#"CREATE TABLE {relay}."{table}" (LIKE public."{table}");"#);
    let shadows: String = tables.into_iter().chain(more).map(shadow).collect();
    let read = |world: &OpenBalena<'_>| {
        let rows = world.source_with_logins(&signer).read_all().unwrap();
        (rows.credentials.len(), rows.grants.len(), rows.devices.len())
    };
    let before = read(&world);
    world.by_hand(&format!(
        r#"CREATE SCHEMA AUTHORIZATION {relay}; {shadows}
        GRANT SELECT ON ALL TABLES IN SCHEMA {relay} TO {relay}"#
    ));
    assert_eq!(read(&world), before);
    assert_eq!(before, (41, 40, 2));
}

#[test]
fn keys_can_be_kept_from_the_relays_role_behind_a_view() {
    let Some(cluster) = Cluster::shared() else { return };
    let mut world = OpenBalena::new(cluster);
    let relay = world.database.relay();
    let text = include_str!("../../docs/openbalena.md");
    let view = text.split("```sql\n").nth(2).unwrap().split("```").next().unwrap();
    world.by_hand(&view.replace("sluicegate_relay", &relay));
    world.by_hand(&format!(r#"REVOKE SELECT ("key") ON "api key" FROM {relay}"#));
    assert!(world.source().read_all().is_err(), "the key cannot be read");
    let folder = tempfile::tempdir().unwrap();
    let query = folder.path().join("credentials.sql");
    std::fs::write(&query, "SELECT * FROM tunnel_keys").unwrap();
    let mut command = world.command(&["check"]);
    command.env("SLUICEGATE_AUTHZ__QUERIES__CREDENTIALS", &query);
    let checked = command.output().unwrap();
    assert_done(&checked);
    assert!(String::from_utf8_lossy(&checked.stdout).contains("40 credentials, 40 grants"));
}

#[test]
fn store_commands_leave_openbalenas_database_alone() {
    let Some(cluster) = Cluster::shared() else { return };
    let world = OpenBalena::new(cluster);
    for command in [&["store", "init"][..], &["principal", "list"]] {
        let output = world.command(command).output().unwrap();
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            !output.status.success() && message.contains("openBalena itself keeps the rights"),
            "{message}"
        );
    }
}
