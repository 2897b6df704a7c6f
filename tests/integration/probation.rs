//! Probation undoes a publication that passed the guard as soon as clients notice it, and never undoes a revocation.
//! Each scenario runs on SQLite and on PostgreSQL.

use std::time::{Duration, Instant};

use crate::support::{Installation, Judged, StoreUnderTest, on_both_stores};
use sluicegate::authz::{Decision, Refusal};
use sluicegate::config::{Config, OnRegression, Regressions};
use sluicegate::control::Rule;

on_both_stores! {
    a_publication_that_refuses_what_was_allowed_is_rolled_back_within_seconds,
    what_has_ended_since_does_not_come_back_with_a_rollback,
    nobody_brings_a_right_back_by_knocking,
    a_large_share_of_all_decisions_is_enough,
    an_operator_can_choose_an_alarm_without_a_rollback,
    after_probation_a_refusal_is_a_refusal,
    what_changes_all_the_time_is_compared_with_what_was_there_before_it_began,
    devices_that_are_lost_one_by_one_come_back_where_they_answer,
    devices_that_went_offline_one_by_one_stay_so,
    an_address_that_another_device_has_got_is_not_dialled_after_a_rollback,
    a_publication_that_refuses_what_another_node_served_is_rolled_back_too,
    a_device_that_stays_on_another_node_is_no_regression,
}

/// Moves every grant to another port. No client has asked lately, so the guard has nothing to replay and lets it pass.
const NARROWED: &str = "UPDATE grants SET port_min = 443";

fn narrowed(installation: &Installation, configure: impl FnOnce(&mut Config)) -> Judged {
    let judged = installation.start_with(configure);
    installation.sql(NARROWED);
    assert!(judged.comes_to(|judged| judged.allowed() == 0), "it passes the guard");
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

fn a_publication_that_refuses_what_was_allowed_is_rolled_back_within_seconds(store: StoreUnderTest) {
    let installation = Installation::on(store, 9);
    let judged = narrowed(&installation, |_| {});
    let noticed = Instant::now();
    (0..5).for_each(|device| assert_eq!(judged.ask(device), Decision::Refuse(Refusal::PortNotGranted)));

    let (rule, message) = judged.hold();

    assert!(noticed.elapsed() < Duration::from_secs(5), "took {:?}", noticed.elapsed());
    assert_eq!((rule, judged.allowed()), (Rule::Probation, 9), "{message}");
    assert!(message.contains("5 pairs") && message.contains("(port-not-granted)"), "{message}");
    judged.read_whole(3);
    assert_eq!(
        (judged.held_by(), judged.allowed()),
        (Some(Rule::Probation), 9),
        "the same rows are not published again"
    );
    assert_eq!(judged.status().rollbacks, 1);

    // An unrelated change does not end the hold either.
    installation.sql("UPDATE devices SET address = '127.9.9.9' WHERE id = 9");
    judged.read_whole(2);
    assert_eq!(judged.held_by(), Some(Rule::Probation));

    installation.sql("UPDATE grants SET port_min = 1");
    assert!(judged.heals());
    assert_eq!(judged.allowed(), 9);
}

fn what_has_ended_since_does_not_come_back_with_a_rollback(store: StoreUnderTest) {
    let installation = Installation::on(store, 30);
    let judged = narrowed(&installation, |_| {});
    installation.sql(
        "BEGIN; UPDATE grants SET revoked_at = 1 WHERE id = 10; UPDATE grants SET expires_at = 1 WHERE id = 11;
        DELETE FROM grants WHERE id = 12; DELETE FROM devices WHERE id = 13; COMMIT",
    );
    assert!(judged.comes_to(|judged| judged.status().absences_honoured == 2));
    ask_for(&judged, 0..5);
    assert_eq!(judged.hold().0, Rule::Probation);
    assert_eq!(judged.decide(9), Decision::Refuse(Refusal::GrantRevoked));
    assert_eq!(judged.decide(10), Decision::Refuse(Refusal::GrantExpired), "the store named this end");
    assert_eq!(judged.decide(11), Decision::Refuse(Refusal::NoGrant), "an absence that two reads confirmed");
    assert_eq!(judged.decide(12), Decision::Refuse(Refusal::DeviceUnknown), "and the same for a device");
    assert_eq!(judged.allowed(), 26);

    installation.sql("UPDATE grants SET revoked_at = 1 WHERE id = 1");
    assert!(judged.comes_to(|judged| judged.decide(0) == Decision::Refuse(Refusal::GrantRevoked)));
}

fn nobody_brings_a_right_back_by_knocking(store: StoreUnderTest) {
    let installation = Installation::on(store, 30);
    let judged = narrowed(&installation, |_| {});
    // All pairs of one principal, and two pairs of a second one.
    ask_for(&judged, (0..30).filter(|device| device % 3 == 0).chain([1, 4]));
    judged.read_whole(2);
    assert_eq!((judged.held_by(), judged.allowed()), (None, 0));
    assert!(judged.status().regressions > 30);
}

fn a_large_share_of_all_decisions_is_enough(store: StoreUnderTest) {
    let installation = Installation::on(store, 30);
    let judged = narrowed(&installation, |config| {
        config.authz.guard.max_regressions =
            Regressions { pairs: 1_000, principals: 3, share: 0.05, decisions: 20 };
    });
    ask_once(&judged, 0..19);
    judged.read_whole(2);
    assert_eq!(judged.held_by(), None, "nineteen are too few");
    ask_for(&judged, 0..3);
    let (rule, message) = judged.hold();
    assert_eq!(rule, Rule::Probation);
    assert!(message.contains("decisions within 10 s"), "{message}");
}

fn an_operator_can_choose_an_alarm_without_a_rollback(store: StoreUnderTest) {
    let installation = Installation::on(store, 9);
    let judged = narrowed(&installation, |config| config.authz.guard.on_regression = OnRegression::Alarm);
    ask_for(&judged, 0..9);
    judged.read_whole(2);
    let status = judged.status();
    assert_eq!((status.hold.is_none(), status.rollbacks, judged.allowed()), (true, 0, 0));
    assert!(status.regressions >= 9);
}

fn after_probation_a_refusal_is_a_refusal(store: StoreUnderTest) {
    let installation = Installation::on(store, 9);
    let judged = narrowed(&installation, |config| config.authz.guard.probation = Duration::from_millis(200));
    assert!(judged.comes_to(|judged| !judged.status().on_probation));
    ask_for(&judged, 0..9);
    assert_eq!((judged.held_by(), judged.allowed(), judged.status().regressions), (None, 0, 0));
}

fn what_changes_all_the_time_is_compared_with_what_was_there_before_it_began(store: StoreUnderTest) {
    let installation = Installation::on(store, 9);
    let judged = installation.start();
    for id in 1..=9 {
        installation.sql(&format!("UPDATE grants SET port_min = 443 WHERE id = {id}"));
        assert!(judged.comes_to(|judged| judged.allowed() == 9 - id));
    }
    ask_for(&judged, 0..9);
    assert_eq!(judged.hold().0, Rule::Probation);
    assert_eq!(judged.allowed(), 9);
}

fn devices_that_are_lost_one_by_one_come_back_where_they_answer(store: StoreUnderTest) {
    let installation = Installation::on(store, 9);
    let judged = installation.start();
    for id in 1..=6 {
        installation.sql(&format!("UPDATE devices SET online = false WHERE id = {id}"));
        assert!(judged.comes_to(|judged| judged.allowed() == 9 - id));
    }
    ask_for(&judged, 0..6);
    let (rule, message) = judged.hold();
    assert_eq!((rule, judged.allowed()), (Rule::Probation, 9), "{message}");
    assert!(message.contains("6 of 6 devices that were asked answer"), "{message}");
    installation.sql("UPDATE devices SET online = true");
    assert!(judged.heals());
}

fn devices_that_went_offline_one_by_one_stay_so(store: StoreUnderTest) {
    let installation = Installation::on(store, 9);
    // A connection to a multicast address cannot be opened, so no device answers.
    installation.sql("UPDATE devices SET address = '224.0.0.' || id");
    let judged = installation.start_with(|config| config.vpn.allow.push("224.0.0.0/8".parse().unwrap()));
    for id in 1..=6 {
        installation.sql(&format!("UPDATE devices SET online = false WHERE id = {id}"));
        assert!(judged.comes_to(|judged| judged.allowed() == 9 - id));
    }
    ask_for(&judged, 0..6);
    assert_eq!((judged.held_by(), judged.allowed()), (None, 3));
    assert!(judged.status().regressions >= 6);
}

fn an_address_that_another_device_has_got_is_not_dialled_after_a_rollback(store: StoreUnderTest) {
    let installation = Installation::on(store, 9);
    let judged = installation.start();
    installation.sql(&format!(
        "BEGIN; {NARROWED}; UPDATE devices SET address = NULL WHERE id = 9;
        UPDATE devices SET address = '{}' WHERE id = 8; COMMIT",
        Installation::address(8)
    ));
    assert!(judged.comes_to(|judged| judged.allowed() == 0));
    ask_for(&judged, 0..5);
    assert_eq!(judged.hold().0, Rule::Probation);
    assert_eq!(judged.decide(8), Decision::Refuse(Refusal::DeviceOffline));
    assert_eq!(judged.allowed(), 8);
}

fn a_publication_that_refuses_what_another_node_served_is_rolled_back_too(store: StoreUnderTest) {
    let installation = Installation::on(store, 9);
    installation.sql("UPDATE devices SET node = 'there', address = NULL");
    let judged = installation.start_with(|config| config.vpn.node = Some("here".to_owned()));
    installation.sql(NARROWED);
    assert!(judged.comes_to(|judged| judged.decide(0) == Decision::Refuse(Refusal::PortNotGranted)));
    (0..5).for_each(|device| assert_eq!(judged.ask(device), Decision::Refuse(Refusal::PortNotGranted)));
    let (rule, message) = judged.hold();
    assert_eq!(rule, Rule::Probation, "{message}");
    assert_eq!(judged.decide(0), Decision::Refuse(Refusal::DeviceElsewhere), "{message}");
}

fn a_device_that_stays_on_another_node_is_no_regression(store: StoreUnderTest) {
    let installation = Installation::on(store, 9);
    installation.sql("UPDATE devices SET node = 'there', address = NULL");
    let judged = installation.start_with(|config| config.vpn.node = Some("here".to_owned()));
    // Any change starts a probation.
    installation.sql("UPDATE devices SET node = 'yonder' WHERE id < 6");
    judged.read_whole(2);
    ask_for(&judged, 0..9);
    judged.read_whole(2);
    assert_eq!((judged.status().regressions, judged.held_by()), (0, None));
}
