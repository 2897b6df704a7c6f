//! More rights than before wait beyond a budget, and taking them back is never held, however many there are.

use crate::support::{Installation, StoreUnderTest, on_both_stores};
use sluicegate::authz::{Decision, Query, UnixMillis};
use sluicegate::config::Config;

on_both_stores! {
    each_grant_once_more_for_the_next_principal_holds,
    grants_of_anything_hold,
    an_expiry_that_is_lost_or_late_holds,
    grants_that_change_hands_hold,
    credentials_that_change_hands_hold,
    grants_that_lead_elsewhere_hold,
    rights_within_the_budget_count_and_their_mend_is_never_held,
    rights_that_people_add_count_at_once,
    a_reload_of_the_true_query_is_not_refused,
}

const GRANTS: &str =
    "id, principal, scope, target, port_min, port_max, created_at, expires_at, revoked_at FROM grants_table";

/// Once more for the next of three principals, under other numbers.
fn doubled(which: &str) -> String {
    let again = GRANTS.replace("id, principal", "id + 1000, principal % 3 + 1");
    format!("SELECT {GRANTS} UNION ALL SELECT {again} WHERE {which}")
}

/// Pairs of a principal and a device that are allowed. There are three principals.
fn allowed_pairs(judged: &crate::support::Judged, devices: usize) -> usize {
    let view = judged.authority.pin();
    let is_allowed = |principal: usize, device: usize| {
        let subject = Some(Installation::key(principal).into());
        let query = Query { subject, device: Some(Installation::uuid(device)), port: 22 };
        matches!(view.decide(&query, UnixMillis::now()), Decision::Allow(_))
    };
    (0..3)
        .flat_map(|principal| (0..devices).map(move |device| (principal, device)))
        .filter(|(principal, device)| is_allowed(*principal, *device))
        .count()
}

/// Puts `select` in the place of the relation, and asserts that it is held as `group`, changes no decision, and heals at
/// the second read after the mend.
#[track_caller]
fn is_held_and_heals(store: StoreUnderTest, relation: &str, select: &str, group: &str) {
    let installation = Installation::on(store, 30);
    installation.sql("UPDATE grants SET expires_at = 1 WHERE id > 20");
    let judged = installation.start();
    assert_eq!(allowed_pairs(&judged, 30), 20);
    installation.replace_query(relation, select);
    judged.holds_groups(&[group]);
    judged.read_whole(2);
    assert_eq!(allowed_pairs(&judged, 30), 20);
    installation.restore_query(relation);
    judged.read_whole(2);
    assert_eq!((judged.held_by(), allowed_pairs(&judged, 30)), (None, 20));
}

fn each_grant_once_more_for_the_next_principal_holds(store: StoreUnderTest) {
    is_held_and_heals(store, "grants", &doubled("id <= 20"), "grants.gained");
}

fn grants_of_anything_hold(store: StoreUnderTest) {
    let any = GRANTS.replace("scope, target", "'any' AS scope, NULL AS target");
    let any = any.replace("NULL AS target", "CASE WHEN false THEN target END AS target");
    is_held_and_heals(store, "grants", &format!("SELECT {any} WHERE id <= 20"), "grants.widened");
}

fn an_expiry_that_is_lost_or_late_holds(store: StoreUnderTest) {
    let never = GRANTS.replace("expires_at", "CASE WHEN false THEN expires_at END AS expires_at");
    is_held_and_heals(store, "grants", &format!("SELECT {never}"), "grants.gained");

    // In three hours, while they would end in two.
    let installation = Installation::on(store, 30);
    let later = |hours: i64| UnixMillis::now().0 + hours * 3_600_000;
    let at = |hours| match store {
        StoreUnderTest::Sqlite => later(hours).to_string(),
        StoreUnderTest::Postgres(_) => format!("to_timestamp({} / 1000.0)", later(hours)),
    };
    installation.sql(&format!("UPDATE grants SET expires_at = {}", at(2)));
    let judged = installation.start();
    let late = GRANTS.replace("expires_at", &format!("{} AS expires_at", at(5)));
    installation.replace_query("grants", &format!("SELECT {late}"));
    judged.holds_groups(&["grants.widened"]);
    installation.restore_query("grants");
    judged.read_whole(2);
    assert_eq!((judged.held_by(), judged.allowed()), (None, 30));
}

fn grants_that_change_hands_hold(store: StoreUnderTest) {
    let select = GRANTS.replace("principal", "principal % 3 + 1 AS principal");
    is_held_and_heals(store, "grants", &format!("SELECT {select}"), "grants.reassigned");
}

fn credentials_that_change_hands_hold(store: StoreUnderTest) {
    let select =
        "SELECT id, key_sha256, principal % 3 + 1 AS principal, label, created_at, expires_at, revoked_at
        FROM credentials_table";
    is_held_and_heals(store, "credentials", select, "credentials.reassigned");
}

fn grants_that_lead_elsewhere_hold(store: StoreUnderTest) {
    let select = GRANTS.replace("target", "target % 30 + 1 AS target");
    is_held_and_heals(store, "grants", &format!("SELECT {select}"), "grants.reassigned");
}

fn rights_within_the_budget_count_and_their_mend_is_never_held(store: StoreUnderTest) {
    let installation = Installation::on(store, 30);
    let judged = installation.start();
    // Six may be new at thirty; all six go again with one read, which is more than may be missing.
    installation.replace_query("grants", &doubled("id <= 6"));
    assert!(judged.comes_to(|judged| allowed_pairs(judged, 30) == 36));
    assert_eq!(judged.held_by(), None);
    installation.restore_query("grants");
    judged.read_whole(2);
    assert_eq!((judged.held_by(), allowed_pairs(&judged, 30)), (None, 30));
}

fn rights_that_people_add_count_at_once(store: StoreUnderTest) {
    let installation = Installation::on(store, 30);
    let judged = installation.start();
    installation.sql(
        "INSERT INTO grants (principal, scope, target, port_min, port_max, created_at)
            SELECT principal % 3 + 1, scope, target, port_min, port_max, 0 FROM grants",
    );
    assert!(judged.comes_to(|judged| allowed_pairs(judged, 30) == 60));
    // A whole answer may have shown them before the words, and held them for that moment.
    assert!(judged.comes_to(|judged| judged.held_by().is_none()));
}

fn a_reload_of_the_true_query_is_not_refused(store: StoreUnderTest) {
    let installation = Installation::on(store, 30);
    installation.sql("CREATE TABLE others AS SELECT * FROM grants");
    let (others, grants) = (installation.readable("others"), installation.readable("grants"));
    let query = |principal: &str, from: &str| {
        let query = Installation::query(&format!(
            "SELECT id AS grant_id, {principal} AS principal, scope, target, port_min, port_max, expires_at,
                revoked_at IS NOT NULL AS revoked FROM {from}"
        ));
        move |config: &mut Config| config.authz.queries.grants = query
    };
    let judged = installation.start_with(query("principal", &others));
    // What the query reads turns wrong: every grant is somebody else's, or gone.
    installation.sql("UPDATE others SET principal = principal % 3 + 1; DELETE FROM others WHERE id > 20");
    judged.holds_groups(&["grants.absent", "grants.reassigned"]);
    let reload = |principal: &str| {
        let mut config = installation.config();
        query(principal, &grants)(&mut config);
        judged.control.commands().reload(config)
    };

    reload("principal").unwrap();

    assert!(judged.heals());
    assert_eq!(judged.allowed(), 30);
    let refused = reload("principal % 3 + 1").unwrap_err().to_string();
    assert!(refused.contains("grants.reassigned"), "{refused}");
}
