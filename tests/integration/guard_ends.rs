//! An end that the store recorded counts at once, whatever is held; an end that a query came to lasts as long as the query
//! says so, and a mass of either waits.

use std::time::Duration;

use crate::support::{Installation, Judged, StoreUnderTest, on_both_stores};
use sluicegate::authz::{Decision, Refusal};
use sluicegate::config::Preference;
use sluicegate::control::api::{ChangeKind, ExpectRequest};

on_both_stores! {
    a_mass_of_flags_by_a_wrong_query_holds_and_heals,
    a_few_flags_by_a_wrong_query_count_and_heal,
    flags_that_outlasted_the_window_heal,
    what_a_query_came_to_heals_after_a_restart,
    every_explicit_end_counts_through_every_hold,
    three_keys_that_expire_at_once_are_refused,
    one_more_end_of_a_held_kind_counts,
    a_mass_of_explicit_ends_waits_and_an_operator_accepts_it,
    a_mass_of_explicit_ends_that_was_taken_back_heals,
    a_mass_of_explicit_ends_that_was_announced_counts,
    with_preference_for_security_a_mass_of_ends_counts,
    what_has_ended_does_not_come_back_by_a_query,
}

/// A view that reads the rows of `relation` where `condition` holds as revoked.
fn flagged(relation: &str, condition: &str) -> String {
    let columns = match relation {
        "grants" => "id, principal, scope, target, port_min, port_max, created_at, expires_at",
        _ => "id, key_sha256, principal, label, created_at, expires_at",
    };
    format!(
        "SELECT {columns}, CASE WHEN {condition} THEN created_at ELSE revoked_at END AS revoked_at
            FROM {relation}_table"
    )
}

/// Most grants give other ports.
const NARROWED: &str =
    "SELECT id, principal, scope, target, CASE WHEN id > 10 THEN 443 ELSE port_min END AS port_min,
    port_max, created_at, expires_at, revoked_at FROM grants_table";

const DEVICES: &str = "SELECT * FROM devices_table WHERE id > 27";

fn a_mass_of_flags_by_a_wrong_query_holds_and_heals(store: StoreUnderTest) {
    let wrong = [
        ("grants", "id % 3 = 0", 10),
        ("grants", "id <= 18", 18),
        ("grants", "revoked_at IS NULL", 30),
        ("credentials", "id > 1", 2),
    ];
    let installation = Installation::on(store, 30);
    let judged = installation.start();
    for (relation, condition, rows) in wrong {
        installation.replace_query(relation, &flagged(relation, condition));
        let message = judged.holds_groups(&[&format!("{relation}.ended")]);
        assert!(message.contains(&format!("{rows} of ")) && message.contains("read as ended"), "{message}");
        judged.read_whole(2);
        assert_eq!(judged.allowed(), 30, "{condition}");
        installation.restore_query(relation);
        judged.read_whole(2);
        assert_eq!((judged.held_by(), judged.allowed()), (None, 30), "{condition}");
    }
}

fn a_few_flags_by_a_wrong_query_count_and_heal(store: StoreUnderTest) {
    let installation = Installation::on(store, 30);
    let judged = installation.start();
    for _again in 0..3 {
        installation.replace_query("grants", &flagged("grants", "id <= 3"));
        assert!(judged.comes_to(|judged| judged.decide(0) == Decision::Refuse(Refusal::GrantRevoked)));
        assert_eq!((judged.allowed(), judged.held_by()), (27, None), "three are within the budget of three");
        installation.restore_query("grants");
        judged.read_whole(2);
        assert_eq!((judged.held_by(), judged.allowed()), (None, 30), "and none is for ever");
    }
}

fn flags_that_outlasted_the_window_heal(store: StoreUnderTest) {
    let installation = Installation::on(store, 30);
    let judged = installation.start_with(|config| config.authz.guard.window = Duration::from_millis(300));
    installation.replace_query("grants", &flagged("grants", "id <= 3"));
    assert!(judged.comes_to(|judged| judged.allowed() == 27));
    // The window passes, and with it the state before is no baseline any more.
    assert!(judged.comes_to(|judged| judged.status().budgets.is_empty()));
    installation.restore_query("grants");
    judged.read_whole(2);
    assert_eq!((judged.held_groups(), judged.allowed()), (vec![], 30));
}

fn what_a_query_came_to_heals_after_a_restart(store: StoreUnderTest) {
    let installation = Installation::on(store, 30);
    let start = || installation.start_with(|config| config.authz.state = Some(installation.state_folder()));
    let judged = start();
    installation.replace_query("grants", &flagged("grants", "id <= 3"));
    assert!(judged.comes_to(|judged| judged.allowed() == 27));
    installation.sql("UPDATE grants_table SET revoked_at = 1 WHERE id = 30");
    assert!(judged.comes_to(|judged| judged.allowed() == 26));
    drop(judged);

    let judged = start();
    judged.read_whole(2);
    assert_eq!((judged.allowed(), judged.held_by()), (26, None));
    drop(judged);
    installation.restore_query("grants");

    let judged = start();
    judged.read_whole(2);
    assert_eq!((judged.allowed(), judged.held_by()), (29, None));
    assert_eq!(
        judged.decide(29),
        Decision::Refuse(Refusal::GrantRevoked),
        "what the store recorded stays ended"
    );
}

fn every_explicit_end_counts_through_every_hold(store: StoreUnderTest) {
    for (relation, select) in [
        ("devices", DEVICES.to_owned()),
        ("grants", "SELECT * FROM grants_table WHERE id > 27 OR id <= 10".to_owned()),
        ("grants", NARROWED.to_owned()),
    ] {
        let installation = Installation::on(store, 30);
        let judged = installation.start();
        installation.replace_query(relation, &select);
        judged.hold();
        let held = judged.held_groups();
        let table = |name: &str| if name == relation { format!("{name}_table") } else { name.to_owned() };
        let (grants, devices) = (table("grants"), table("devices"));

        let refuses = |device: usize, refusal| {
            let came = judged.comes_to(|judged| judged.decide(device) == Decision::Refuse(refusal));
            assert!(came, "{:?} and not {refusal:?} during {held:?}", judged.decide(device));
        };
        installation.sql(&format!("UPDATE {grants} SET revoked_at = 1 WHERE id = 1"));
        refuses(0, Refusal::GrantRevoked);
        installation.sql(&format!("UPDATE {grants} SET expires_at = 1 WHERE id = 2"));
        refuses(1, Refusal::GrantExpired);
        installation.sql(&format!("DELETE FROM {grants} WHERE id = 4"));
        refuses(3, Refusal::NoGrant);
        installation.sql(&format!("UPDATE {grants} SET port_min = 443 WHERE id = 5"));
        refuses(4, Refusal::PortNotGranted);
        installation.sql(&format!("DELETE FROM {devices} WHERE id = 6"));
        refuses(5, Refusal::DeviceUnknown);
        installation.sql(&format!("UPDATE {devices} SET online = false WHERE id = 30"));
        refuses(29, Refusal::DeviceOffline);
        installation.sql("DELETE FROM credentials WHERE id = 3");
        refuses(2, Refusal::CredentialRevoked);
        installation.sql("UPDATE credentials SET expires_at = 1 WHERE id = 2");
        refuses(7, Refusal::CredentialExpired);
        installation.sql("UPDATE principals SET removed_at = 1 WHERE id = 1");
        assert!(judged.comes_to(|judged| !judged.allows(9)));
        // A whole read may have shown some of these ends before the outbox named them.
        assert!(judged.comes_to(|judged| judged.held_groups() == held), "the hold stands all the same");
    }
}

fn three_keys_that_expire_at_once_are_refused(store: StoreUnderTest) {
    let installation = Installation::on(store, 30);
    let judged = installation.start();
    installation.sql("UPDATE credentials SET expires_at = 1");
    assert!(judged.comes_to(|judged| judged.allowed() == 0));
    assert_eq!(judged.decide(0), Decision::Refuse(Refusal::CredentialExpired));
    assert_eq!(judged.held_by(), None, "somebody has written each of them");
}

fn one_more_end_of_a_held_kind_counts(store: StoreUnderTest) {
    let installation = Installation::on(store, 30);
    let judged = installation.start();
    let select = |lost: &str| format!("SELECT * FROM grants_table WHERE id > 20 AND id <> {lost}");
    installation.replace_query("grants", &select("0"));
    judged.holds_groups(&["grants.absent"]);
    judged.read_whole(2);
    // A schema without an outbox has one more row deleted.
    installation.change_query("grants", &select("30"));
    judged.read_whole(3);
    assert_eq!(judged.decide(29), Decision::Refuse(Refusal::NoGrant), "the one that went by itself");
    assert_eq!((judged.allowed(), judged.held_groups()), (29, vec!["grants.absent".to_owned()]));
    installation.restore_query("grants");
    judged.read_whole(2);
    assert_eq!((judged.allowed(), judged.held_by()), (30, None));
}

/// More than 20 grants are revoked by one statement that has lost its condition.
fn revoke_25(installation: &Installation, judged: &Judged) {
    installation.sql("UPDATE grants SET revoked_at = 1 WHERE id <= 25");
    let message = judged.holds_groups(&["grants.ended.explicit"]);
    assert!(message.contains("the end of 25 grants at once"), "{message}");
    judged.read_whole(2);
    assert_eq!(judged.allowed(), 30);
}

fn a_mass_of_explicit_ends_waits_and_an_operator_accepts_it(store: StoreUnderTest) {
    let installation = Installation::on(store, 30);
    let judged = installation.start();
    revoke_25(&installation, &judged);
    installation.sql("UPDATE grants SET revoked_at = 1 WHERE id = 30");
    assert!(judged.comes_to(|judged| judged.allowed() == 29), "one more is no mass");
    assert_eq!(judged.accept().unwrap().rows, 25);
    assert_eq!((judged.allowed(), judged.held_by()), (4, None));
    judged.read_whole(2);
    assert_eq!((judged.allowed(), judged.held_by()), (4, None));
}

fn a_mass_of_explicit_ends_that_was_taken_back_heals(store: StoreUnderTest) {
    let installation = Installation::on(store, 30);
    installation.let_revocations_be_taken_back();
    let judged = installation.start();
    revoke_25(&installation, &judged);
    installation.sql("UPDATE grants SET revoked_at = NULL WHERE id <= 25");
    assert!(judged.heals());
    assert_eq!(judged.allowed(), 30);
}

fn a_mass_of_explicit_ends_that_was_announced_counts(store: StoreUnderTest) {
    let installation = Installation::on(store, 30);
    let judged = installation.start();
    let request = ExpectRequest {
        relation: "grants".to_owned(),
        kind: ChangeKind::Ended,
        rows: 25,
        lasts: Duration::from_secs(60),
    };
    judged.command(|commands| async move { commands.expect(request).await }).unwrap();
    installation.sql("UPDATE grants SET revoked_at = 1 WHERE id <= 25");
    assert!(judged.comes_to(|judged| judged.allowed() == 5));
    assert_eq!(judged.held_by(), None);
}

fn with_preference_for_security_a_mass_of_ends_counts(store: StoreUnderTest) {
    let installation = Installation::on(store, 30);
    let judged = installation.start_with(|config| config.authz.guard.prefer = Preference::Security);
    installation.sql("UPDATE grants SET revoked_at = 1 WHERE id <= 25");
    assert!(judged.comes_to(|judged| judged.allowed() == 5));
    installation.replace_query("devices", DEVICES);
    assert!(judged.comes_to(|judged| judged.allowed() == 3));
    // More rights are held all the same.
    installation.replace_query(
        "credentials",
        "SELECT id, key_sha256, 1 + id % 3 AS principal, label, created_at, expires_at, revoked_at
            FROM credentials_table",
    );
    judged.holds_groups(&["credentials.reassigned"]);
    assert_eq!(judged.allowed(), 3);
}

fn what_has_ended_does_not_come_back_by_a_query(store: StoreUnderTest) {
    let installation = Installation::on(store, 30);
    let judged = installation.start();
    installation.sql("CREATE TABLE backup AS SELECT * FROM grants");
    installation.sql("UPDATE grants SET revoked_at = 1 WHERE id = 1; DELETE FROM grants WHERE id = 2");
    assert!(judged.comes_to(|judged| judged.allowed() == 28));
    // A whole read may be faster than the words of the ends; these have come by now.
    std::thread::sleep(std::time::Duration::from_millis(500));
    // A replica that is behind, or a backup, has both of them as they were.
    installation.replace_query("grants", "SELECT * FROM backup");
    let message = judged.holds_groups(&["grants.revived"]);
    assert!(message.contains("2 grants that have ended read as live"), "{message}");
    assert_eq!(judged.decide(0), Decision::Refuse(Refusal::GrantRevoked));
    assert!(!judged.allows(1));
    installation.restore_query("grants");
    judged.read_whole(2);
    assert_eq!((judged.held_by(), judged.allowed()), (None, 28));
}
