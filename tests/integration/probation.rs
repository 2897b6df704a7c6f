//! Probation undoes what a query came to within its budgets as soon as several clients notice it, and never an end that
//! the store recorded.

use std::time::{Duration, Instant};

use crate::support::{Installation, Judged, StoreUnderTest, on_both_stores};
use sluicegate::authz::{Decision, Refusal};
use sluicegate::config::{Allowance, Config, OnRegression, Regressions};
use sluicegate::control::api::Rule;

on_both_stores! {
    losses_that_clients_notice_are_undone_within_seconds,
    what_the_store_recorded_does_not_come_back,
    nobody_brings_a_right_back_by_knocking,
    subjects_are_counted_and_not_keys,
    a_large_share_of_all_decisions_is_enough,
    one_token_that_carries_all_traffic_is_judged_as_well,
    an_operator_can_choose_an_alarm_without_a_rollback,
    after_the_window_a_refusal_is_a_refusal,
    losses_one_by_one_are_undone_together,
    devices_that_were_deleted_or_went_offline_are_no_regressions,
    explicit_changes_of_many_are_no_regressions,
    what_another_node_served_is_compared_too,
    what_was_mended_is_no_evidence_against_what_is_left,
}

/// Gives each grant of `which` other ports.
fn narrowed(which: &str) -> String {
    format!(
        "SELECT id, principal, scope, target, CASE WHEN {which} THEN 443 ELSE port_min END AS port_min, port_max,
            created_at, expires_at, revoked_at FROM grants_table"
    )
}

/// A node on which nine of thirty grants may be narrowed by a query, and are.
fn nine_narrowed(installation: &Installation, configure: impl FnOnce(&mut Config)) -> Judged {
    let judged = installation.start_with(|config| {
        config.authz.guard.budgets.narrowed = Some(Allowance { share: 0.0, rows: 9 });
        configure(config);
    });
    installation.replace_query("grants", &narrowed("id <= 9"));
    assert!(judged.comes_to(|judged| judged.allowed() == 21), "it is within the budget");
    judged
}

/// Asks for `devices` again and again, for longer than a rollback needs.
fn ask_for(judged: &Judged, devices: impl Iterator<Item = usize> + Clone) {
    for _ in 0..30 {
        ask_once(judged, devices.clone());
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn ask_once(judged: &Judged, devices: impl Iterator<Item = usize>) {
    for device in devices {
        let _any_decision = judged.ask(device);
    }
}

#[track_caller]
fn is_undone(judged: &Judged) -> String {
    let (rule, message) = judged.hold();
    assert_eq!(rule, Rule::Probation, "{message}");
    message
}

fn losses_that_clients_notice_are_undone_within_seconds(store: StoreUnderTest) {
    let installation = Installation::on(store, 30);
    let judged = nine_narrowed(&installation, |_| {});
    let noticed = Instant::now();
    (0..5).for_each(|device| assert_eq!(judged.ask(device), Decision::Refuse(Refusal::PortNotGranted)));

    let message = is_undone(&judged);

    assert!(noticed.elapsed() < Duration::from_secs(5), "took {:?}", noticed.elapsed());
    assert!(message.contains("9 grants give less"), "{message}");
    assert_eq!((judged.allowed(), judged.status().rollbacks), (30, 1));
    judged.read_whole(2);
    assert_eq!(judged.allowed(), 30, "the same rows are not put in force again");
    // What has nothing to do with it takes effect, and the hold stays.
    installation.sql("UPDATE devices SET address = '127.1.9.9' WHERE id = 9");
    assert!(judged.comes_to(
        |judged| matches!(judged.decide(8), Decision::Allow(route) if route.address.to_string() == "127.1.9.9")
    ));
    assert_eq!(judged.held_by(), Some(Rule::Probation));
    installation.restore_query("grants");
    judged.read_whole(2);
    assert_eq!((judged.held_by(), judged.allowed()), (None, 30));
}

fn what_the_store_recorded_does_not_come_back(store: StoreUnderTest) {
    let installation = Installation::on(store, 30);
    let judged = nine_narrowed(&installation, |_| {});
    installation.sql(
        "UPDATE grants_table SET revoked_at = 1 WHERE id = 6; UPDATE grants_table SET expires_at = 1 WHERE id = 7;
        DELETE FROM grants_table WHERE id = 8; DELETE FROM devices WHERE id = 9;
        UPDATE credentials SET revoked_at = 1 WHERE id = 3",
    );
    assert!(judged.comes_to(|judged| judged.decide(2) == Decision::Refuse(Refusal::CredentialRevoked)));
    assert!(judged.comes_to(|judged| judged.decide(5) == Decision::Refuse(Refusal::GrantRevoked)
        || judged.decide(5) == Decision::Refuse(Refusal::CredentialRevoked)));
    assert!(judged.comes_to(|judged| judged.decide(8) != Decision::Refuse(Refusal::PortNotGranted)));
    judged.read_whole(2);
    judged.command(|commands| async move { commands.roll_back(None).await }).unwrap();
    assert!(!judged.allows(5) && !judged.allows(6) && !judged.allows(7) && !judged.allows(8));
    assert!(judged.allows(0) && judged.allows(1) && judged.allows(3) && judged.allows(4));
    assert!(!judged.allows(2) && !judged.allows(29), "the third principal's key has ended");

    installation.sql("UPDATE grants_table SET revoked_at = 1 WHERE id = 1");
    assert!(judged.comes_to(|judged| !judged.allows(0)));
}

fn nobody_brings_a_right_back_by_knocking(store: StoreUnderTest) {
    let installation = Installation::on(store, 30);
    let judged = nine_narrowed(&installation, |_| {});
    // All pairs of one principal, and one pair of a second one, who also use what is left to them.
    ask_for(
        &judged,
        (0..30).filter(|device| device % 3 == 0).chain([1]).chain((9..29).filter(|n| n % 3 == 1)),
    );
    judged.read_whole(2);
    assert_eq!((judged.held_by(), judged.allowed()), (None, 21));
    assert!(judged.status().regressions > 30);
}

fn subjects_are_counted_and_not_keys(store: StoreUnderTest) {
    let installation = Installation::on(store, 30);
    let judged = nine_narrowed(&installation, |_| {});
    // Two principals and five pairs; three pairs of three.
    ask_for(&judged, [0, 1, 3, 4, 6].into_iter().chain(9..30));
    judged.read_whole(2);
    assert_eq!(judged.held_by(), None);
    ask_once(&judged, [2].into_iter());
    is_undone(&judged);
}

fn a_large_share_of_all_decisions_is_enough(store: StoreUnderTest) {
    let installation = Installation::on(store, 30);
    let judged = nine_narrowed(&installation, |config| {
        config.authz.guard.max_regressions =
            Regressions { pairs: 1_000, principals: 3, share: 0.05, decisions: 20 };
    });
    ask_once(&judged, (0..9).chain(0..9).chain([0]));
    judged.read_whole(2);
    assert_eq!(judged.held_by(), None, "nineteen are too few");
    ask_for(&judged, 0..3);
    is_undone(&judged);
}

fn one_token_that_carries_all_traffic_is_judged_as_well(store: StoreUnderTest) {
    let installation = Installation::on(store, 30);
    let judged = nine_narrowed(&installation, |_| {});
    ask_for(&judged, [0, 3, 6].into_iter());
    is_undone(&judged);
    assert_eq!(judged.allowed(), 30);
}

fn an_operator_can_choose_an_alarm_without_a_rollback(store: StoreUnderTest) {
    let installation = Installation::on(store, 30);
    let judged =
        nine_narrowed(&installation, |config| config.authz.guard.on_regression = OnRegression::Alarm);
    ask_for(&judged, 0..9);
    judged.read_whole(2);
    let status = judged.status();
    assert_eq!((status.held.len(), status.rollbacks, judged.allowed()), (0, 0, 21));
    assert!(status.regressions >= 9);
}

fn after_the_window_a_refusal_is_a_refusal(store: StoreUnderTest) {
    let installation = Installation::on(store, 30);
    let judged =
        nine_narrowed(&installation, |config| config.authz.guard.window = Duration::from_millis(200));
    assert!(judged.comes_to(|judged| !judged.status().on_probation));
    ask_for(&judged, 0..9);
    assert_eq!((judged.held_by(), judged.allowed(), judged.status().regressions), (None, 21, 0));
}

fn losses_one_by_one_are_undone_together(store: StoreUnderTest) {
    let installation = Installation::on(store, 30);
    let judged = nine_narrowed(&installation, |_| {});
    for lost in [8, 7, 6] {
        installation.change_query("grants", &narrowed(&format!("id <= {lost}")));
        assert!(judged.comes_to(|judged| judged.allowed() == 30 - lost));
    }
    ask_for(&judged, 0..6);
    is_undone(&judged);
    assert_eq!(judged.allowed(), 30);
}

fn devices_that_were_deleted_or_went_offline_are_no_regressions(store: StoreUnderTest) {
    let installation = Installation::on(store, 30);
    let judged = installation.start();
    installation
        .sql("DELETE FROM devices WHERE id <= 6; UPDATE devices SET online = false WHERE id BETWEEN 7 AND 9");
    assert!(judged.comes_to(|judged| judged.allowed() == 21));
    installation.replace_query("devices", "SELECT * FROM devices_table WHERE id NOT IN (10, 11)");
    assert!(judged.comes_to(|judged| judged.allowed() == 19), "two are missing as well");
    ask_for(&judged, 0..11);
    judged.read_whole(2);
    assert_eq!((judged.held_by(), judged.allowed(), judged.status().regressions), (None, 19, 0));
}

fn explicit_changes_of_many_are_no_regressions(store: StoreUnderTest) {
    let installation = Installation::on(store, 30);
    let judged = installation.start();
    installation.sql("UPDATE grants SET port_min = 443 WHERE id <= 18");
    assert!(judged.comes_to(|judged| judged.allowed() == 12));
    ask_for(&judged, 0..18);
    judged.read_whole(2);
    assert_eq!((judged.held_by(), judged.allowed(), judged.status().regressions), (None, 12, 0));
}

fn what_another_node_served_is_compared_too(store: StoreUnderTest) {
    let installation = Installation::on(store, 30);
    installation.sql("UPDATE devices SET node = 'there', address = NULL");
    let judged = installation.start_with(|config| {
        config.vpn.node = Some("here".to_owned());
        config.authz.guard.budgets.narrowed = Some(Allowance { share: 0.0, rows: 9 });
    });
    installation.replace_query("grants", &narrowed("id <= 9"));
    assert!(judged.comes_to(|judged| judged.decide(0) == Decision::Refuse(Refusal::PortNotGranted)));
    // That a device stays on another node is no regression.
    ask_for(&judged, 9..30);
    assert_eq!(judged.status().regressions, 0);
    (0..5).for_each(|device| assert_eq!(judged.ask(device), Decision::Refuse(Refusal::PortNotGranted)));
    is_undone(&judged);
    assert_eq!(judged.decide(0), Decision::Refuse(Refusal::DeviceElsewhere));
}

fn what_was_mended_is_no_evidence_against_what_is_left(store: StoreUnderTest) {
    let installation = Installation::on(store, 30);
    let judged = nine_narrowed(&installation, |_| {});
    ask_once(&judged, 0..4);
    installation.restore_query("grants");
    assert!(judged.comes_to(|judged| judged.allowed() == 30));
    installation.replace_query("grants", &narrowed("id IN (9, 10)"));
    assert!(judged.comes_to(|judged| judged.allowed() == 28));

    ask_for(&judged, 8..30);

    judged.read_whole(2);
    assert_eq!((judged.held_by(), judged.allowed()), (None, 28));
    assert!(judged.status().regressions > 5, "they were counted");
}
