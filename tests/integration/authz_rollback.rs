//! An operator goes back to before what a query came to, and accepts exactly what was looked at, whatever the store does
//! meanwhile.

use std::time::{Duration, Instant};

use crate::support::{Installation, Judged, StoreUnderTest, on_both_stores};
use sluicegate::authz::{Decision, Generation, Refusal};
use sluicegate::control::GuardCommandError;
use sluicegate::control::api::{Accepted, RolledBack, Rule};

on_both_stores! {
    only_what_was_inferred_is_undone,
    what_was_undone_stays_so_over_a_restart_and_heals,
    a_generation_is_gone_back_to_and_no_further,
    nothing_to_undo_is_said,
    a_slow_query_delays_no_command_and_no_end,
    what_was_not_looked_at_is_not_accepted,
    one_group_is_accepted_and_the_other_waits,
    an_accepted_change_is_not_undone,
}

/// Gives the grants of `which` other ports.
fn narrowed(which: &str) -> String {
    format!(
        "SELECT id, principal, scope, target, CASE WHEN {which} THEN 443 ELSE port_min END AS port_min, port_max,
            created_at, expires_at, revoked_at FROM grants_table"
    )
}

fn roll_back(judged: &Judged, to: Option<Generation>) -> Result<RolledBack, GuardCommandError> {
    judged.command(|commands| async move { commands.roll_back(to).await })
}

/// The digest of what is held now.
fn digest(judged: &Judged) -> String {
    judged.command(|commands| async move { commands.diff().await }).unwrap().digest
}

fn accept(judged: &Judged, digest: &str, group: Option<&str>) -> Result<Accepted, GuardCommandError> {
    let (digest, group) = (digest.to_owned(), group.map(|group| group.parse().unwrap()));
    judged.command(|commands| async move { commands.accept(digest, group).await })
}

fn only_what_was_inferred_is_undone(store: StoreUnderTest) {
    let installation = Installation::on(store, 30);
    let judged = installation.start();
    installation.replace_query("grants", &narrowed("id <= 3"));
    assert!(judged.comes_to(|judged| judged.allowed() == 27));
    installation.sql(
        "UPDATE grants_table SET port_min = 443 WHERE id = 10; UPDATE grants_table SET revoked_at = 1 WHERE id = 1;
        INSERT INTO grants_table (principal, scope, target, port_min, port_max, created_at)
            VALUES (1, 'device', 2, 1, 65535, 0)",
    );
    assert!(judged.comes_to(|judged| !judged.allows(9) && judged.status().rows.grants == 31));

    let undone = roll_back(&judged, None).unwrap();

    assert_eq!(undone.rows, 2, "{undone:?}");
    assert!(undone.in_force > undone.from && undone.to < undone.from);
    assert!(!judged.allows(0), "it was revoked");
    assert_eq!(judged.decide(9), Decision::Refuse(Refusal::PortNotGranted), "somebody has written that");
    assert_eq!((judged.allowed(), judged.status().rows.grants), (28, 31));
    assert_eq!(judged.held_groups(), ["grants.narrowed"]);
    assert_eq!(judged.held_by(), Some(Rule::Operator));
}

fn what_was_undone_stays_so_over_a_restart_and_heals(store: StoreUnderTest) {
    let installation = Installation::on(store, 30);
    let start = || installation.start_with(|config| config.authz.state = Some(installation.state_folder()));
    let judged = start();
    installation.replace_query("grants", &narrowed("id <= 3"));
    assert!(judged.comes_to(|judged| judged.allowed() == 27));
    roll_back(&judged, None).unwrap();
    judged.read_whole(2);
    assert_eq!((judged.allowed(), judged.held_by()), (30, Some(Rule::Operator)));
    drop(judged);

    let judged = start();
    judged.read_whole(2);
    assert_eq!((judged.allowed(), judged.held_by()), (30, Some(Rule::Operator)), "the restart remembers");
    installation.restore_query("grants");
    judged.read_whole(2);
    assert_eq!((judged.allowed(), judged.held_by()), (30, None));
}

fn a_generation_is_gone_back_to_and_no_further(store: StoreUnderTest) {
    let installation = Installation::on(store, 30);
    let judged = installation.start();
    installation.replace_query("grants", &narrowed("false"));
    let mut generations = Vec::new();
    for lost in 1..=3 {
        generations.push(judged.status().generation.unwrap());
        installation.change_query("grants", &narrowed(&format!("id <= {lost}")));
        assert!(judged.comes_to(|judged| judged.allowed() == 30 - lost));
    }
    let history = judged.command(|commands| async move { commands.history().await }).unwrap();
    assert_eq!(history.iter().filter(|publication| publication.by == "read").count(), 3, "{history:?}");
    assert!(history[0].can_be_undone && history[0].changes[0].0.to_string() == "grants.narrowed");

    assert_eq!(roll_back(&judged, Some(generations[2])).unwrap().rows, 1);
    assert_eq!(judged.allowed(), 28, "the last one alone");
    assert_eq!(roll_back(&judged, Some(generations[0])).unwrap().rows, 2);
    assert_eq!(judged.allowed(), 30);
}

fn nothing_to_undo_is_said(store: StoreUnderTest) {
    let installation = Installation::on(store, 3);
    let judged = installation.start();
    assert_eq!(roll_back(&judged, None), Err(GuardCommandError::NoHistory));
    installation.sql("UPDATE grants SET revoked_at = 1 WHERE id = 1");
    assert!(judged.comes_to(|judged| judged.allowed() == 2));
    // A whole read may have found it before the outbox named it.
    judged.read_whole(2);
    assert_eq!(roll_back(&judged, None), Err(GuardCommandError::NoHistory));
    let first = Generation(1);
    assert_eq!(roll_back(&judged, Some(first)), Err(GuardCommandError::NoSuchGeneration(first)));
    assert_eq!(judged.decide(0), Decision::Refuse(Refusal::GrantRevoked));
}

fn a_slow_query_delays_no_command_and_no_end(store: StoreUnderTest) {
    let installation = Installation::on(store, 30);
    let judged = installation.start();
    installation.replace_query("grants", &narrowed("id <= 3"));
    assert!(judged.comes_to(|judged| judged.allowed() == 27));
    // A query of devices that takes longer than the time limit of a read.
    installation.replace_query(
        "devices",
        "SELECT * FROM devices_table WHERE (WITH RECURSIVE numbers (n) AS
            (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < 1000000000) SELECT max(n) FROM numbers) > 0",
    );
    std::thread::sleep(Duration::from_millis(300));

    let asked = Instant::now();
    roll_back(&judged, None).unwrap();
    assert!(asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());
    assert_eq!(judged.allowed(), 30);
    let asked = Instant::now();
    installation.sql("UPDATE credentials SET revoked_at = 1 WHERE id = 1");
    assert!(judged.comes_to(|judged| judged.decide(0) == Decision::Refuse(Refusal::CredentialRevoked)));
    assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
    let asked = Instant::now();
    digest(&judged);
    assert!(asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());
}

fn what_was_not_looked_at_is_not_accepted(store: StoreUnderTest) {
    let installation = Installation::on(store, 30);
    let judged = installation.start();
    assert_eq!(accept(&judged, "0000000000000000", None), Err(GuardCommandError::NothingHeld));
    installation.replace_query("grants", &narrowed("id <= 10"));
    judged.holds_groups(&["grants.narrowed"]);
    let seen = digest(&judged);
    installation.change_query("grants", &narrowed("id <= 20"));
    assert!(judged.comes_to(|judged| digest(judged) != seen));
    assert_eq!(accept(&judged, &seen, None), Err(GuardCommandError::OtherDigest));
    assert_eq!(judged.allowed(), 30);
    assert_eq!(accept(&judged, &digest(&judged), None).unwrap().rows, 20);
    assert_eq!((judged.allowed(), judged.held_by()), (10, None));
}

fn one_group_is_accepted_and_the_other_waits(store: StoreUnderTest) {
    let installation = Installation::on(store, 30);
    let judged = installation.start();
    installation.replace_query("grants", &narrowed("id <= 10"));
    installation.replace_query("devices", "SELECT * FROM devices_table WHERE id <= 20");
    judged.holds_groups(&["devices.absent", "grants.narrowed"]);
    let seen = digest(&judged);
    let absent = "credentials.absent";
    let refused = accept(&judged, &seen, Some(absent)).unwrap_err();
    assert_eq!(refused, GuardCommandError::NotHeld(absent.parse().unwrap()));
    let accepted = accept(&judged, &seen, Some("devices.absent")).unwrap();
    assert_eq!(accepted.rows, 10);
    assert_eq!((judged.allowed(), judged.held_groups()), (20, vec!["grants.narrowed".to_owned()]));
}

fn an_accepted_change_is_not_undone(store: StoreUnderTest) {
    let installation = Installation::on(store, 30);
    let start = || installation.start_with(|config| config.authz.state = Some(installation.state_folder()));
    let judged = start();
    installation.replace_query("grants", &narrowed("id <= 10"));
    judged.holds_groups(&["grants.narrowed"]);
    judged.accept().unwrap();
    assert_eq!(roll_back(&judged, None), Err(GuardCommandError::NoHistory), "a person has looked at it");
    drop(judged);
    let judged = start();
    judged.read_whole(2);
    assert_eq!((judged.allowed(), judged.held_by()), (20, None));
    // The mend is a change like any other: ten rows that give more.
    installation.restore_query("grants");
    judged.holds_groups(&["grants.widened"]);
}
