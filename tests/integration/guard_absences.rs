//! A row that is missing ends its right only within a budget, only when a second read confirms it, and never for good.

use std::time::Duration;

use crate::support::{Installation, Judged, StoreUnderTest, on_both_stores};
use sluicegate::authz::{Decision, Refusal};
use sluicegate::config::{Allowance, Config};
use sluicegate::control::api::{ChangeKind, ExpectRequest};

on_both_stores! {
    rows_within_the_budget_are_missed_at_the_second_read_and_come_back,
    a_row_that_one_read_alone_does_not_give_loses_nothing,
    a_slow_drift_stops_at_the_budget,
    a_budget_that_is_configured_holds_beyond_it,
    a_join_that_no_longer_finds_the_principal_holds_and_heals,
    a_few_principals_that_are_not_found_come_back,
    a_table_that_is_refilled_in_steps_refuses_nobody,
    a_truncated_key_holds_and_heals,
    an_absence_that_was_announced_is_no_incident,
    a_number_that_names_another_right_is_another_row,
}

/// A view of the grants that lacks those with `lost`.
fn without(lost: &str) -> String {
    format!("SELECT * FROM grants_table WHERE NOT ({lost})")
}

/// Lets a test decide what the second read after a change finds: reads are a second apart.
fn rarely_reading_whole(config: &mut Config) {
    config.authz.reconcile = Duration::from_millis(800);
}

/// Waits until two more reads have found no other decisions than these.
#[track_caller]
fn settles(judged: &Judged, allowed: usize, held: &[&str]) {
    assert!(judged.comes_to(|judged| judged.allowed() == allowed), "{} are allowed", judged.allowed());
    judged.read_whole(2);
    assert_eq!(
        (judged.allowed(), judged.held_groups()),
        (allowed, held.iter().map(ToString::to_string).collect())
    );
}

fn rows_within_the_budget_are_missed_at_the_second_read_and_come_back(store: StoreUnderTest) {
    let installation = Installation::on(store, 30);
    let judged = installation.start();
    for again in 1..=3 {
        installation.replace_query("grants", &without("id <= 3"));
        settles(&judged, 27, &[]);
        assert_eq!(judged.decide(0), Decision::Refuse(Refusal::NoGrant), "nothing says that it was revoked");
        assert_eq!(judged.status().absences_honoured, 3 * again);
        installation.restore_query("grants");
        judged.read_whole(2);
        assert_eq!((judged.held_by(), judged.allowed()), (None, 30));
    }
}

fn a_row_that_one_read_alone_does_not_give_loses_nothing(store: StoreUnderTest) {
    let installation = Installation::on(store, 30);
    let judged = installation.start_with(rarely_reading_whole);
    for (relation, lost) in [("grants", "id = 1"), ("credentials", "id = 1"), ("devices", "id = 1")] {
        installation.replace_query(relation, &format!("SELECT * FROM {relation}_table WHERE NOT ({lost})"));
        assert!(judged.comes_to(|judged| judged.status().absences_waiting == 1), "{relation}");
        assert!(judged.allows(0), "one read alone does not end a right");
        installation.restore_query(relation);
        assert!(judged.comes_to(|judged| judged.status().absences_waiting == 0), "{relation}");
        assert_eq!((judged.allows(0), judged.status().absences_honoured), (true, 0), "{relation}");
    }
}

fn a_slow_drift_stops_at_the_budget(store: StoreUnderTest) {
    let installation = Installation::on(store, 40);
    let judged = installation.start();
    installation.replace_query("grants", &without("false"));
    for lost in 1..=8 {
        installation.change_query("grants", &without(&format!("id <= {lost}")));
        judged.read_whole(2);
    }
    settles(&judged, 36, &["grants.absent"]);
    installation.restore_query("grants");
    judged.read_whole(2);
    assert_eq!((judged.held_by(), judged.allowed()), (None, 40));
}

fn a_budget_that_is_configured_holds_beyond_it(store: StoreUnderTest) {
    let installation = Installation::on(store, 40);
    let judged = installation.start_with(|config| {
        config.authz.guard.budgets.absent = Some(Allowance { share: 0.01, rows: 6 });
    });
    installation.replace_query("grants", &without("id <= 7"));
    let message = judged.holds_groups(&["grants.absent"]);
    assert!(
        message.contains("7 of 40 grants are missing") && message.contains("the budget is 6"),
        "{message}"
    );
    installation.change_query("grants", &without("id <= 6"));
    settles(&judged, 34, &[]);
}

fn a_join_that_no_longer_finds_the_principal_holds_and_heals(store: StoreUnderTest) {
    let installation = Installation::on(store, 30);
    let judged = installation.start();
    // Row-level security, as a role that loses its right to see most rows has it.
    installation.replace_query("principals", "SELECT * FROM principals_table WHERE id = 1");
    let message = judged.holds_groups(&["credentials.absent", "grants.absent"]);
    assert!(message.contains("are missing"), "{message}");
    settles(&judged, 30, &["credentials.absent", "grants.absent"]);
    installation.restore_query("principals");
    judged.read_whole(2);
    assert_eq!((judged.held_by(), judged.allowed()), (None, 30));
}

fn a_few_principals_that_are_not_found_come_back(store: StoreUnderTest) {
    let installation = Installation::on(store, 300);
    let state = installation.state_folder();
    let judged = installation.start_with(|config| config.authz.state = Some(state.clone()));
    installation.replace_query("principals", "SELECT * FROM principals_table WHERE id <> 7");
    // One credential goes, and its ten grants stay, for they are more than may.
    assert!(judged.comes_to(|judged| judged.status().absences_honoured == 1));
    settles(&judged, 290, &["grants.absent"]);
    drop(judged);
    installation.restore_query("principals");
    let judged = installation.start_with(|config| config.authz.state = Some(state));
    judged.read_whole(2);
    assert_eq!((judged.held_by(), judged.allowed()), (None, 300), "after a restart as well");
}

fn a_table_that_is_refilled_in_steps_refuses_nobody(store: StoreUnderTest) {
    let installation = Installation::on(store, 30);
    let judged = installation.start();
    installation.replace_query("grants", &without("true"));
    for filled in [5, 15, 25] {
        judged.read_whole(2);
        assert_eq!(judged.allowed(), 30, "before {filled} are there");
        installation.change_query("grants", &without(&format!("id > {filled}")));
    }
    judged.read_whole(2);
    assert_eq!(judged.allowed(), 30);
    installation.restore_query("grants");
    judged.read_whole(2);
    assert_eq!((judged.held_by(), judged.allowed()), (None, 30));
}

fn a_truncated_key_holds_and_heals(store: StoreUnderTest) {
    let installation = Installation::on(store, 30);
    let judged = installation.start();
    let key = match store {
        StoreUnderTest::Sqlite => "CAST(substr(key_sha256, 1, 31) || x'00' AS BLOB)",
        StoreUnderTest::Postgres(_) => "substr(key_sha256, 1, 31) || '\\x00'::bytea",
    };
    installation.replace_query(
        "credentials",
        &format!(
            "SELECT id, {key} AS key_sha256, principal, label, created_at, expires_at, revoked_at
            FROM credentials_table"
        ),
    );
    assert!(judged.comes_to(|judged| judged.held_groups().contains(&"credentials.absent".to_owned())));
    judged.read_whole(2);
    assert_eq!(judged.allowed(), 30);
    installation.restore_query("credentials");
    judged.read_whole(2);
    assert_eq!((judged.held_by(), judged.allowed()), (None, 30));
}

fn an_absence_that_was_announced_is_no_incident(store: StoreUnderTest) {
    let installation = Installation::on(store, 30);
    let judged = installation.start();
    let request = ExpectRequest {
        relation: "devices".to_owned(),
        kind: ChangeKind::Absent,
        rows: 12,
        lasts: Duration::from_secs(60),
    };
    judged.command(|commands| async move { commands.expect(request).await }).unwrap();
    installation.replace_query("devices", "SELECT * FROM devices_table WHERE id > 12");
    settles(&judged, 18, &[]);
    let expected = judged.status().expectations;
    assert_eq!((expected.len(), expected[0].used), (1, 9), "three of them are within the budget");
}

fn a_number_that_names_another_right_is_another_row(store: StoreUnderTest) {
    let installation = Installation::on(store, 30);
    let judged = installation.start();
    installation.sql("DELETE FROM grants WHERE id = 1");
    assert!(judged.comes_to(|judged| !judged.allows(0)));
    // A restored store gives the number away again, and no outbox says so.
    let columns = "id, principal, scope, target, port_min, port_max, created_at, expires_at, revoked_at";
    let with = |target: usize| {
        format!(
            "SELECT {columns} FROM grants_table
                UNION ALL SELECT 1, {}, scope, {target}, port_min, port_max, created_at, expires_at, revoked_at
                FROM grants_table WHERE id = 2",
            (target - 1) % 3 + 1
        )
    };
    installation.sql("DELETE FROM grants WHERE id = 5");
    assert!(judged.comes_to(|judged| !judged.allows(4)));
    installation.replace_query("grants", &with(5));
    assert!(judged.comes_to(|judged| judged.allows(4)), "{:?}", judged.decide(4));
    assert_eq!(judged.held_by(), None);
    installation.change_query("grants", &with(1));
    judged.holds_groups(&["grants.revived"]);
    assert!(!judged.allows(0), "the same right that had ended");
}
