//! A row that does not decode, or that is there twice, keeps its last good version, and stops no other one.

use crate::support::{Installation, StoreUnderTest, on_both_stores};
use sluicegate::authz::{Decision, Refusal};

on_both_stores! {
    rows_that_do_not_decode_keep_their_right_and_many_are_held,
    a_column_that_decodes_nowhere_holds_and_heals,
    a_row_that_does_not_decode_can_end,
    the_same_row_twice_is_one_row,
    a_join_that_fans_out_into_rows_that_differ_holds,
    two_devices_with_one_uuid_keep_what_they_were,
}

const GRANTS: &str =
    "id, principal, scope, target, port_min, port_max, created_at, expires_at, revoked_at FROM grants_table";

fn rows_that_do_not_decode_keep_their_right_and_many_are_held(store: StoreUnderTest) {
    let installation = Installation::on(store, 30);
    let judged = installation.start();
    installation.sql("UPDATE devices SET uuid = 'zz' || id WHERE id <= 3");
    assert!(judged.comes_to(|judged| judged.status().quarantined == 3));
    judged.read_whole(2);
    assert_eq!((judged.held_by(), judged.allowed()), (None, 30), "within the budget of three");

    installation.sql("UPDATE devices SET uuid = 'zz' || id WHERE id = 4");
    let message = judged.holds_groups(&["devices.undecodable"]);
    assert!(message.contains("4 devices do not decode") && message.contains("which is no uuid"), "{message}");
    judged.read_whole(2);
    assert_eq!(judged.allowed(), 30);
    let mend = |n| format!("UPDATE devices SET uuid = '{}' WHERE id = {};", Installation::uuid(n), n + 1);
    installation.sql(&(0..4).map(mend).collect::<String>());
    judged.read_whole(2);
    assert_eq!((judged.held_by(), judged.allowed(), judged.status().quarantined), (None, 30, 0));
}

fn a_column_that_decodes_nowhere_holds_and_heals(store: StoreUnderTest) {
    let installation = Installation::on(store, 30);
    let judged = installation.start();
    let swapped = GRANTS.replace("scope", "'site' AS scope");
    installation.replace_query("grants", &format!("SELECT {swapped}"));
    judged.holds_groups(&["grants.undecodable"]);
    judged.read_whole(2);
    assert_eq!((judged.allowed(), judged.status().quarantined), (30, 30));
    installation.sql("UPDATE credentials SET revoked_at = 1 WHERE id = 1");
    assert!(judged.comes_to(|judged| judged.decide(0) == Decision::Refuse(Refusal::CredentialRevoked)));
    installation.restore_query("grants");
    judged.read_whole(2);
    assert_eq!((judged.held_by(), judged.allowed(), judged.status().quarantined), (None, 20, 0));
}

fn a_row_that_does_not_decode_can_end(store: StoreUnderTest) {
    let installation = Installation::on(store, 30);
    let judged = installation.start();
    installation.sql("UPDATE grants SET port_min = 0 WHERE id <= 2");
    assert!(judged.comes_to(|judged| judged.status().quarantined == 2));
    judged.read_whole(1);
    assert_eq!(judged.allowed(), 30);
    installation.sql("UPDATE grants SET revoked_at = 1 WHERE id = 1; DELETE FROM grants WHERE id = 2");
    assert!(judged.comes_to(|judged| judged.decide(0) == Decision::Refuse(Refusal::GrantRevoked)));
    assert!(judged.comes_to(|judged| !judged.allows(1)));
    judged.read_whole(2);
    assert_eq!((judged.held_by(), judged.allowed()), (None, 28));
}

fn the_same_row_twice_is_one_row(store: StoreUnderTest) {
    let installation = Installation::on(store, 3);
    let judged = installation.start();
    installation.replace_query("grants", &format!("SELECT {GRANTS} UNION ALL SELECT {GRANTS}"));
    judged.read_whole(2);
    assert_eq!((judged.held_by(), judged.allowed(), judged.status().quarantined), (None, 3, 0));
    installation.sql("UPDATE grants_table SET revoked_at = 1 WHERE id = 1");
    assert!(judged.comes_to(|judged| judged.decide(0) == Decision::Refuse(Refusal::GrantRevoked)));
}

fn a_join_that_fans_out_into_rows_that_differ_holds(store: StoreUnderTest) {
    let installation = Installation::on(store, 30);
    let judged = installation.start();
    let fanned = GRANTS.replace("port_min", "other AS port_min");
    installation.replace_query(
        "grants",
        &format!("SELECT {fanned} CROSS JOIN (SELECT 1 AS other UNION SELECT 443) AS ports WHERE id > 2"),
    );
    // Of each there are two, of which chance would choose; the two that are missing are ended.
    let message = judged.holds_groups(&["grants.undecodable"]);
    assert!(
        message.contains("28 grants do not decode") && message.contains("2 rows have this key"),
        "{message}"
    );
    assert!(judged.comes_to(|judged| judged.allowed() == 28));
    installation.restore_query("grants");
    judged.read_whole(2);
    assert_eq!((judged.held_by(), judged.allowed()), (None, 30));
}

fn two_devices_with_one_uuid_keep_what_they_were(store: StoreUnderTest) {
    let installation = Installation::on(store, 30);
    let judged = installation.start();
    let columns = "fleet, address, node, online, created_at FROM devices_table";
    installation.replace_query(
        "devices",
        &format!(
            "SELECT id, CASE WHEN id = 1 THEN (SELECT uuid FROM devices_table WHERE id = 2) ELSE uuid END AS uuid,
                name, {columns}"
        ),
    );
    assert!(judged.comes_to(|judged| judged.status().quarantined == 2));
    judged.read_whole(2);
    let of = |device: usize| match judged.decide(device) {
        Decision::Allow(route) => Some(route.address.to_string()),
        _ => None,
    };
    assert_eq!((of(0), of(1)), (Some(Installation::address(0)), Some(Installation::address(1))));
    assert_eq!((judged.held_by(), judged.allowed()), (None, 30));
    installation.restore_query("devices");
    assert!(judged.comes_to(|judged| judged.status().quarantined == 0));
}
