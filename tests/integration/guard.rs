//! The guard holds a read of the store that cannot be right, and says why. Each scenario breaks one rule alone, in a
//! real store, and mends it again. Each runs on SQLite and on PostgreSQL.

use std::time::Duration;

use crate::support::{Installation, Judged, StoreUnderTest, on_both_stores};
use sluicegate::authz::{Decision, Refusal};
use sluicegate::config::{Allowance, Bound, Canary, CanaryUuid, Config};
use sluicegate::control::Rule;

on_both_stores! {
    a_row_that_does_not_decode_keeps_its_right_and_too_many_hold,
    a_join_that_fans_out_holds,
    two_devices_with_one_uuid_hold,
    a_relation_outside_its_bounds_holds,
    a_canary_that_dies_holds,
    a_device_that_another_node_holds_has_a_location,
    an_answer_that_empties_a_relation_holds_however_small_it_is,
    a_statement_that_deletes_half_of_a_relation_holds,
    more_than_the_loss_budget_holds_and_no_more_is_honoured_once_a_second_read_confirms_it,
    a_row_that_one_read_alone_does_not_give_loses_nothing,
    grants_that_turn_to_targets_that_are_not_there_hold,
    grants_of_principals_who_lose_their_credentials_to_others_hold,
    rights_that_point_to_no_principal_are_absent_and_not_revoked,
    a_right_that_points_to_no_principal_for_one_read_is_kept,
    a_revocation_counts_through_a_hold,
    an_inverted_flag_that_revokes_everybody_holds,
    a_query_that_fails_is_reported_as_a_broken_contract_and_not_as_an_outage_alone,
    a_node_whose_first_read_is_held_decides_nothing_and_heals,
    with_the_guard_off_the_same_answer_takes_every_tunnel_down,
}

/// The columns of a table, for a view that takes its place.
const DEVICES: &str = "id, uuid, name, fleet, address, node, online, created_at FROM devices_table";
const GRANTS: &str =
    "id, principal, scope, target, port_min, port_max, created_at, expires_at, revoked_at FROM grants_table";

/// Asserts that the guard holds by `rule` and still allows all `devices`, and that `heal` ends the hold. Returns the
/// hold's message.
#[track_caller]
fn holds_and_heals(judged: &Judged, rule: Rule, devices: usize, heal: impl FnOnce()) -> String {
    let (held_by, message) = judged.hold();
    assert_eq!(held_by, rule, "{message}");
    judged.read_whole(2);
    assert_eq!(judged.held_by(), Some(rule), "it holds until the store is mended");
    assert_eq!(judged.allowed(), devices, "{message}");
    heal();
    assert!(judged.heals());
    message
}

/// Lets a test decide what the second read after a change finds: reads are a second apart.
fn rarely_reading_whole(config: &mut Config) {
    config.authz.refresh = Duration::from_secs(1);
    config.authz.reconcile = Duration::from_secs(3600);
}

fn a_row_that_does_not_decode_keeps_its_right_and_too_many_hold(store: StoreUnderTest) {
    let installation = Installation::on(store, 30);
    let judged = installation.start();
    installation.sql("UPDATE devices SET uuid = 'zz' || id WHERE id <= 10");
    assert!(judged.comes_to(|judged| judged.status().quarantined == 10));
    assert_eq!((judged.held_by(), judged.allowed()), (None, 30), "within the allowance");

    installation.sql("UPDATE devices SET uuid = 'zz' || id WHERE id = 11");
    let mend = |n| format!("UPDATE devices SET uuid = '{}' WHERE id = {};", Installation::uuid(n), n + 1);
    let message = holds_and_heals(&judged, Rule::Decode, 30, || {
        installation.sql(&(0..11).map(mend).collect::<String>());
    });
    assert!(message.contains("11 rows") && message.contains("which is no uuid"), "{message}");
}

fn a_join_that_fans_out_holds(store: StoreUnderTest) {
    let installation = Installation::on(store, 3);
    let judged = installation.start();
    installation
        .replace_query("devices", &format!("SELECT {DEVICES} CROSS JOIN (SELECT 1 UNION SELECT 2) AS twice"));
    let message = holds_and_heals(&judged, Rule::Unique, 3, || installation.restore_query("devices"));
    assert!(message.contains("devices 1"), "{message}");
}

fn two_devices_with_one_uuid_hold(store: StoreUnderTest) {
    let installation = Installation::on(store, 3);
    let judged = installation.start();
    let twins = format!("SELECT {DEVICES} UNION ALL SELECT 9, {} WHERE id = 1", &DEVICES["id, ".len()..]);
    installation.replace_query("devices", &twins);
    let message = holds_and_heals(&judged, Rule::Unique, 3, || installation.restore_query("devices"));
    assert!(message.contains(&Installation::uuid(0).to_string()), "{message}");
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

    installation.sql(
        "INSERT INTO devices (uuid, created_at)
            VALUES ('00000000000000000000000000000001', 0), ('00000000000000000000000000000002', 0)",
    );
    let message = holds_and_heals(&judged, Rule::Bounds, 5, || {
        installation.sql("DELETE FROM devices WHERE id = (SELECT max(id) FROM devices)");
    });
    assert!(message.contains("bounds.devices.max is 6"), "{message}");
}

fn a_canary_that_dies_holds(store: StoreUnderTest) {
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
    for (broken, mended, named) in [
        (
            "UPDATE grants SET port_min = 443 WHERE target = 1",
            "UPDATE grants SET port_min = 1",
            "principal:1",
        ),
        (
            "UPDATE credentials SET principal = 1 WHERE principal = 2",
            "UPDATE credentials SET principal = id",
            "credential:",
        ),
        (
            "UPDATE grants SET scope = 'any', target = NULL WHERE target = 3",
            "UPDATE grants SET scope = 'device', target = 3 WHERE target IS NULL",
            "must be refused",
        ),
        (
            "UPDATE devices SET online = false WHERE id = 3",
            "UPDATE devices SET online = true",
            "must have a location",
        ),
    ] {
        installation.sql(broken);
        let message = holds_and_heals(&judged, Rule::Canaries, 5, || installation.sql(mended));
        assert!(message.contains("1 of 4 canaries") && message.contains(named), "{message}");
    }
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
    installation.sql("UPDATE devices SET online = false WHERE id = 3");
    assert_eq!(judged.hold().0, Rule::Canaries);
}

fn an_answer_that_empties_a_relation_holds_however_small_it_is(store: StoreUnderTest) {
    for relation in ["devices", "grants", "credentials"] {
        let installation = Installation::on(store, 3);
        let judged = installation.start();
        installation.replace_query(relation, &format!("SELECT * FROM {relation}_table WHERE false"));
        let message = holds_and_heals(&judged, Rule::Loss, 3, || installation.restore_query(relation));
        assert!(message.contains(&format!("3 of 3 {relation} have vanished")), "{message}");
    }
}

fn a_statement_that_deletes_half_of_a_relation_holds(store: StoreUnderTest) {
    let installation = Installation::on(store, 30);
    let judged = installation.start();
    installation.sql("CREATE TABLE backup AS SELECT * FROM grants; DELETE FROM grants WHERE id > 15");
    let message = holds_and_heals(&judged, Rule::Loss, 30, || {
        installation.sql("INSERT INTO grants SELECT * FROM backup WHERE id > 15");
    });
    assert!(message.contains("15 of 30 grants"), "{message}");
    // The examples are any five of them.
    let (_, examples) = message.split_once("; such as ").unwrap();
    let ids = examples.split(", ").map(|example| example.strip_prefix("grants ").unwrap().parse().unwrap());
    assert!(ids.clone().all(|id: u32| (16..=30).contains(&id)) && ids.count() == 5, "{message}");
}

fn more_than_the_loss_budget_holds_and_no_more_is_honoured_once_a_second_read_confirms_it(
    store: StoreUnderTest,
) {
    let installation = Installation::on(store, 300);
    let judged = installation.start_with(|config| {
        config.authz.guard.max_loss = Allowance { share: 0.01, rows: 20 };
    });
    installation.replace_query("grants", &format!("SELECT {GRANTS} WHERE id > 21"));
    holds_and_heals(&judged, Rule::Loss, 300, || installation.restore_query("grants"));

    installation.replace_query("grants", &format!("SELECT {GRANTS} WHERE id > 20"));
    assert!(judged.comes_to(|judged| judged.allowed() == 280));
    assert_eq!((judged.held_by(), judged.status().absences_honoured), (None, 20));

    // From now on the absence is a revocation, which the return of the rows does not undo.
    installation.restore_query("grants");
    judged.read_whole(3);
    assert_eq!(judged.decide(0), Decision::Refuse(Refusal::GrantRevoked));
    assert_eq!(judged.allowed(), 280);
}

fn a_row_that_one_read_alone_does_not_give_loses_nothing(store: StoreUnderTest) {
    let installation = Installation::on(store, 30);
    let judged = installation.start_with(rarely_reading_whole);
    let row = "INSERT INTO grants SELECT * FROM aside";
    installation
        .sql("CREATE TABLE aside AS SELECT * FROM grants WHERE id = 1; DELETE FROM grants WHERE id = 1");
    assert!(judged.comes_to(|judged| judged.status().absences_waiting == 1));
    assert!(judged.allows(0), "one read alone does not end a right");
    installation.sql(row);
    assert!(judged.comes_to(|judged| judged.status().absences_waiting == 0));
    assert_eq!((judged.allows(0), judged.status().absences_honoured), (true, 0));
}

fn grants_that_turn_to_targets_that_are_not_there_hold(store: StoreUnderTest) {
    let installation = Installation::on(store, 30);
    let judged = installation.start();
    installation.sql("UPDATE grants SET target = target + 1000 WHERE id = 1");
    assert!(judged.comes_to(|judged| judged.decide(0) == Decision::Refuse(Refusal::NoGrant)));
    assert_eq!(judged.held_by(), None, "one may be a person's work");
    installation.sql("UPDATE grants SET target = id");
    assert!(judged.comes_to(|judged| judged.allows(0)));

    installation.sql("UPDATE grants SET target = target + 1000 WHERE id <= 21");
    let message = holds_and_heals(&judged, Rule::References, 30, || {
        installation.sql("UPDATE grants SET target = id");
    });
    assert!(message.contains("21 of 30 grants"), "{message}");

    let swapped =
        GRANTS.replace("principal, scope, target", "target AS principal, scope, principal AS target");
    installation.replace_query("grants", &format!("SELECT {swapped}"));
    let message = holds_and_heals(&judged, Rule::Loss, 30, || installation.restore_query("grants"));
    assert!(message.contains("27 of 30 grants"), "a grant that no principal holds is absent: {message}");
}

fn grants_of_principals_who_lose_their_credentials_to_others_hold(store: StoreUnderTest) {
    let installation = Installation::on(store, 30);
    let judged = installation.start();
    installation.sql("UPDATE credentials SET principal = 1");
    let message = holds_and_heals(&judged, Rule::References, 30, || {
        installation.sql("UPDATE credentials SET principal = id");
    });
    assert!(message.contains("20 of 30 grants"), "{message}");
}

fn rights_that_point_to_no_principal_are_absent_and_not_revoked(store: StoreUnderTest) {
    for relation in ["grants", "credentials"] {
        let installation = Installation::on(store, 300);
        let judged = installation.start();
        installation.sql(&format!("UPDATE {relation} SET principal = principal + 1000"));
        let message = holds_and_heals(&judged, Rule::Loss, 300, || {
            installation.sql(&format!("UPDATE {relation} SET principal = principal - 1000"));
        });
        assert!(message.contains(&format!("{relation} have vanished")), "{message}");
        judged.read_whole(2);
        assert_eq!(judged.allowed(), 300, "none of the {relation} was revoked");
    }
}

fn a_right_that_points_to_no_principal_for_one_read_is_kept(store: StoreUnderTest) {
    for relation in ["grants", "credentials"] {
        let installation = Installation::on(store, 3);
        let judged = installation.start_with(rarely_reading_whole);
        installation.sql(&format!("UPDATE {relation} SET principal = 1000 WHERE id = 1"));
        assert!(judged.comes_to(|judged| judged.status().absences_waiting == 1), "{relation}");
        assert!(judged.allows(0), "one read alone does not end a right");
        installation.sql(&format!("UPDATE {relation} SET principal = 1 WHERE id = 1"));
        assert!(judged.comes_to(|judged| judged.status().absences_waiting == 0), "{relation}");
        assert_eq!((judged.allows(0), judged.status().absences_honoured), (true, 0), "{relation}");
    }
}

fn a_revocation_counts_through_a_hold(store: StoreUnderTest) {
    let installation = Installation::on(store, 30);
    let judged = installation.start();
    installation.replace_query("devices", &format!("SELECT {DEVICES} WHERE id = 1"));
    assert_eq!(judged.hold().0, Rule::Loss);

    installation.sql(
        "UPDATE grants SET revoked_at = 1 WHERE target = 1;
        UPDATE credentials SET revoked_at = 1 WHERE principal = 2;
        UPDATE principals SET removed_at = 1 WHERE id = 3",
    );

    assert!(judged.comes_to(|judged| judged.decide(0) == Decision::Refuse(Refusal::GrantRevoked)));
    assert!(judged.comes_to(|judged| judged.decide(1) == Decision::Refuse(Refusal::CredentialRevoked)));
    assert!(judged.comes_to(|judged| !judged.allows(2)));
    assert!(judged.allows(3));
    assert_eq!(judged.held_by(), Some(Rule::Loss));
}

fn an_inverted_flag_that_revokes_everybody_holds(store: StoreUnderTest) {
    for relation in ["grants", "credentials"] {
        let installation = Installation::on(store, 3);
        let judged = installation.start();
        let columns = match relation {
            "grants" => "id, principal, scope, target, port_min, port_max, created_at, expires_at",
            _ => "id, key_sha256, principal, label, created_at, expires_at",
        };
        installation.replace_query(
            relation,
            &format!("SELECT {columns}, CASE WHEN revoked_at IS NULL THEN 1 END AS revoked_at FROM {relation}_table"),
        );
        let message = holds_and_heals(&judged, Rule::Loss, 3, || installation.restore_query(relation));
        assert!(message.contains(&format!("every live row of {relation}")), "{message}");
    }
}

fn a_query_that_fails_is_reported_as_a_broken_contract_and_not_as_an_outage_alone(store: StoreUnderTest) {
    let installation = Installation::on(store, 3);
    let judged = installation.start();
    installation.sql("ALTER TABLE grants RENAME COLUMN scope TO reach");
    let (rule, message) = judged.hold();
    assert_eq!(rule, Rule::Contract);
    assert!(message.contains("scope"), "{message}");
    assert_eq!(judged.allowed(), 3);
    installation.sql("ALTER TABLE grants RENAME COLUMN reach TO scope");
    assert!(judged.heals());
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

fn with_the_guard_off_the_same_answer_takes_every_tunnel_down(store: StoreUnderTest) {
    let installation = Installation::on(store, 3);
    let judged = installation.start_with(|config| config.authz.guard.enabled = false);
    installation.replace_query("devices", &format!("SELECT {DEVICES} WHERE false"));
    assert!(judged.comes_to(|judged| judged.allowed() == 0));
    assert_eq!(judged.held_by(), None);
}
