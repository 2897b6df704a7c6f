//! A group that exceeds its budget waits by itself: everything else takes effect, and it heals when the store is mended.

use crate::support::{Installation, Judged, StoreUnderTest, on_both_stores};
use sluicegate::authz::{Decision, Refusal};
use sluicegate::config::{Bound, Canary, CanaryUuid};
use sluicegate::control::api::Rule;

on_both_stores! {
    a_query_that_loses_most_devices_holds_that_group_and_nothing_else,
    an_answer_that_empties_a_relation_holds_however_small_it_is,
    two_groups_are_held_and_heal_each_by_itself,
    a_relation_outside_its_bounds_holds,
    a_query_that_kills_a_canary_holds,
    a_canary_that_was_waived_counts_again_once_it_is_right,
    a_device_that_another_node_holds_has_a_location,
    a_broken_relation_stops_no_other_one,
    a_node_whose_first_read_is_held_decides_nothing_and_heals,
    a_mass_that_an_operator_accepts_takes_effect,
    with_the_guard_off_the_same_answer_takes_every_tunnel_down,
}

/// The columns of a table, for a view that takes its place.
const DEVICES: &str = "id, uuid, name, fleet, address, node, online, created_at FROM devices_table";
const GRANTS: &str =
    "id, principal, scope, target, port_min, port_max, created_at, expires_at, revoked_at FROM grants_table";

/// Asserts that the guard holds by `rule`, also after two more reads, and still allows all `devices`, and that `heal`
/// ends the hold at the second read. Returns the hold's message.
#[track_caller]
fn holds_and_heals(judged: &Judged, rule: Rule, devices: usize, heal: impl FnOnce()) -> String {
    let (held_by, message) = judged.hold();
    assert_eq!(held_by, rule, "{message}");
    judged.read_whole(2);
    assert_eq!(judged.held_by(), Some(rule), "it holds until the store is mended");
    assert_eq!(judged.allowed(), devices, "{message}");
    heal();
    judged.read_whole(2);
    assert_eq!((judged.held_by(), judged.allowed()), (None, devices));
    message
}

fn a_query_that_loses_most_devices_holds_that_group_and_nothing_else(store: StoreUnderTest) {
    let installation = Installation::on(store, 30);
    let judged = installation.start();
    installation.replace_query("devices", &format!("SELECT {DEVICES} WHERE id > 27"));
    let message = judged.holds_groups(&["devices.absent"]);
    assert!(
        message.contains("27 of 30 devices are missing") && message.contains("such as devices "),
        "{message}"
    );

    // A new right, a wider one and a new place take effect meanwhile, and so does an end.
    installation.sql(
        "INSERT INTO grants (principal, scope, target, port_min, port_max, created_at)
            VALUES (1, 'device', 30, 1, 65535, 0);
        UPDATE devices_table SET address = '127.1.9.9' WHERE id = 30;
        UPDATE grants SET revoked_at = 1 WHERE target = 1",
    );
    assert!(judged.comes_to(|judged| judged.decide(0) == Decision::Refuse(Refusal::GrantRevoked)));
    let address = |decision| match decision {
        Decision::Allow(route) => Some(route.address.to_string()),
        _ => None,
    };
    assert!(judged.comes_to(|judged| address(judged.decide(29)).as_deref() == Some("127.1.9.9")));
    assert!(judged.comes_to(|judged| judged.status().rows.grants == 31));
    assert_eq!((judged.held_groups(), judged.allowed()), (vec!["devices.absent".to_owned()], 29));

    installation.restore_query("devices");
    judged.read_whole(2);
    assert_eq!((judged.held_by(), judged.allowed()), (None, 29));
}

fn an_answer_that_empties_a_relation_holds_however_small_it_is(store: StoreUnderTest) {
    for relation in ["devices", "grants", "credentials"] {
        let installation = Installation::on(store, 3);
        let judged = installation.start();
        installation.replace_query(relation, &format!("SELECT * FROM {relation}_table WHERE false"));
        judged.holds_groups(&[&format!("{relation}.absent")]);
        let message = holds_and_heals(&judged, Rule::Budget, 3, || installation.restore_query(relation));
        assert!(message.contains(&format!("3 of 3 {relation} are missing")), "{message}");
    }
}

fn two_groups_are_held_and_heal_each_by_itself(store: StoreUnderTest) {
    let installation = Installation::on(store, 30);
    let judged = installation.start();
    installation.replace_query("devices", &format!("SELECT {DEVICES} WHERE id > 20"));
    installation
        .replace_query("grants", &format!("SELECT {}", GRANTS.replace("port_min", "443 AS port_min")));
    judged.holds_groups(&["devices.absent", "grants.narrowed"]);
    assert_eq!(judged.allowed(), 30);
    installation.restore_query("grants");
    judged.holds_groups(&["devices.absent"]);
    installation.restore_query("devices");
    assert!(judged.heals());
    assert_eq!(judged.allowed(), 30);
}

fn a_relation_outside_its_bounds_holds(store: StoreUnderTest) {
    let installation = Installation::on(store, 5);
    let judged = installation.start_with(|config| {
        config.authz.guard.bounds.devices = Bound { min: Some(5), max: Some(6) };
    });
    installation.replace_query("devices", &format!("SELECT {DEVICES} WHERE id <> 5"));
    let message = holds_and_heals(&judged, Rule::Bounds, 5, || installation.restore_query("devices"));
    assert!(
        message.contains("devices has 4 rows") && message.contains("bounds.devices.min is 5"),
        "{message}"
    );

    installation.replace_query(
        "devices",
        &format!(
            "SELECT {DEVICES} UNION ALL SELECT id + 9, replace(uuid, 'd00d', 'beef'), name, fleet,
            CASE WHEN false THEN address END, node, online, created_at
            FROM devices_table WHERE id < 3"
        ),
    );
    let message = holds_and_heals(&judged, Rule::Bounds, 5, || installation.restore_query("devices"));
    assert!(message.contains("bounds.devices.max is 6"), "{message}");
}

fn a_query_that_kills_a_canary_holds(store: StoreUnderTest) {
    let installation = Installation::on(store, 5);
    let canary = |device: usize| {
        Canary::try_from(format!("principal:{} {}:22", device % 3 + 1, Installation::uuid(device))).unwrap()
    };
    let credential = Installation::key(1).credential_id();
    let by_credential =
        Canary::try_from(format!("credential:{credential} {}:22", Installation::uuid(1))).unwrap();
    let foreign = Canary::try_from(format!("principal:3 {}:22", Installation::uuid(0))).unwrap();
    let judged = installation.start_with(|config| {
        let guard = &mut config.authz.guard;
        guard.must_allow = vec![canary(0), by_credential];
        guard.must_refuse = vec![foreign];
        guard.must_locate = vec![CanaryUuid(Installation::uuid(2).to_string())];
    });
    assert_eq!((judged.held_by(), judged.allowed()), (None, 5));
    for (relation, broken, named) in [
        (
            "grants",
            GRANTS.replace("port_min", "CASE WHEN target = 1 THEN 443 ELSE port_min END AS port_min"),
            "principal:1",
        ),
        (
            "credentials",
            "id, key_sha256, CASE WHEN principal = 2 THEN 1 ELSE principal END AS principal, label, created_at, \
             expires_at, revoked_at FROM credentials_table"
                .to_owned(),
            "credential:",
        ),
        (
            "grants",
            GRANTS.replace(
                "scope, target",
                "CASE WHEN target = 3 THEN 'any' ELSE scope END AS scope, \
                 CASE WHEN target = 3 THEN NULL ELSE target END AS target",
            ),
            "must be refused",
        ),
        ("devices", DEVICES.replace("online", "online AND id <> 3 AS online"), "must have a location"),
    ] {
        // On PostgreSQL `online` is a boolean and on SQLite a number; both know AND.
        installation.replace_query(relation, &format!("SELECT {broken}"));
        let message = holds_and_heals(&judged, Rule::Canaries, 5, || installation.restore_query(relation));
        assert!(message.contains("1 of 4 canaries") && message.contains(named), "{message}");
    }
}

fn a_canary_that_was_waived_counts_again_once_it_is_right(store: StoreUnderTest) {
    let installation = Installation::on(store, 5);
    let judged = installation.start_with(|config| {
        config.authz.guard.must_locate = vec![CanaryUuid(Installation::uuid(2).to_string())];
    });
    let offline = format!("SELECT {}", DEVICES.replace("online", "online AND id <> 3 AS online"));
    installation.replace_query("devices", &offline);
    assert_eq!(judged.hold().0, Rule::Canaries);
    judged.accept().unwrap();
    judged.read_whole(2);
    assert_eq!((judged.held_by(), judged.allowed()), (None, 4));

    installation.restore_query("devices");
    assert!(judged.comes_to(|judged| judged.allowed() == 5));
    judged.read_whole(1);
    installation.replace_query("devices", &offline);
    assert_eq!(judged.hold().0, Rule::Canaries, "it was waived for one mistake, and not for ever");
    assert_eq!(judged.allowed(), 5);
}

fn a_device_that_another_node_holds_has_a_location(store: StoreUnderTest) {
    let installation = Installation::on(store, 3);
    installation.sql("UPDATE devices SET node = 'there', address = NULL WHERE id = 3");
    let judged = installation.start_with(|config| {
        config.vpn.node = Some("here".to_owned());
        config.authz.guard.must_locate = vec![CanaryUuid(Installation::uuid(2).to_string())];
    });
    judged.read_whole(2);
    assert_eq!((judged.held_by(), judged.decide(2)), (None, Decision::Refuse(Refusal::DeviceElsewhere)));
    let offline = DEVICES.replace("online", "online AND id <> 3 AS online");
    installation.replace_query("devices", &format!("SELECT {offline}"));
    assert_eq!(judged.hold().0, Rule::Canaries);
}

fn a_broken_relation_stops_no_other_one(store: StoreUnderTest) {
    let installation = Installation::on(store, 9);
    let judged = installation.start();
    let renamed = GRANTS.replace("scope", "scope AS reach");
    installation.replace_query("grants", &format!("SELECT {renamed}"));
    let (rule, message) = judged.hold();
    assert_eq!(rule, Rule::Contract);
    assert!(message.starts_with("grants by rule contract") && message.contains("scope"), "{message}");
    assert_eq!(judged.allowed(), 9);

    // The outbox names a grant, whose row cannot be read, before it names a credential and a device.
    installation.sql(
        "UPDATE grants_table SET revoked_at = 1 WHERE id = 9;
        UPDATE credentials SET revoked_at = 1 WHERE id = 1; UPDATE devices SET online = false WHERE id = 2",
    );
    assert!(judged.comes_to(|judged| judged.decide(0) == Decision::Refuse(Refusal::CredentialRevoked)));
    assert!(judged.comes_to(|judged| judged.decide(1) == Decision::Refuse(Refusal::DeviceOffline)));
    assert_eq!(judged.held_by(), Some(Rule::Contract));

    installation.restore_query("grants");
    assert!(judged.heals());
    assert!(judged.comes_to(|judged| judged.decide(8) == Decision::Refuse(Refusal::GrantRevoked)));
    installation.sql("UPDATE grants SET revoked_at = 1 WHERE id = 3");
    assert!(judged.comes_to(|judged| judged.decide(2) == Decision::Refuse(Refusal::GrantRevoked)));
}

fn a_node_whose_first_read_is_held_decides_nothing_and_heals(store: StoreUnderTest) {
    let installation = Installation::on(store, 3);
    installation.replace_query("devices", &format!("SELECT {DEVICES} WHERE false"));
    let judged = installation
        .start_with(|config| config.authz.guard.bounds.devices = Bound { min: Some(1), max: None });
    assert_eq!(judged.hold().0, Rule::Bounds);
    assert!(matches!(judged.decide(0), Decision::Undecided(_)));
    installation.restore_query("devices");
    assert!(judged.heals());
    assert_eq!(judged.allowed(), 3);
}

fn a_mass_that_an_operator_accepts_takes_effect(store: StoreUnderTest) {
    let installation = Installation::on(store, 30);
    let judged = installation.start();
    installation.replace_query("devices", &format!("SELECT {DEVICES} WHERE id > 27"));
    judged.holds_groups(&["devices.absent"]);
    let accepted = judged.accept().unwrap();
    assert_eq!((accepted.rows, accepted.groups.len()), (27, 1), "{accepted:?}");
    assert_eq!((judged.allowed(), judged.held_by()), (3, None));
    judged.read_whole(2);
    assert_eq!((judged.allowed(), judged.held_by()), (3, None));
}

fn with_the_guard_off_the_same_answer_takes_every_tunnel_down(store: StoreUnderTest) {
    let installation = Installation::on(store, 3);
    let judged = installation.start_with(|config| config.authz.guard.enabled = false);
    installation.replace_query("devices", &format!("SELECT {DEVICES} WHERE false"));
    assert!(judged.comes_to(|judged| judged.allowed() == 0));
    assert_eq!(judged.held_by(), None);
}
