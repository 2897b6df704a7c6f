//! The incident, again and again: a query that locates devices or says who may do what is changed on a live
//! installation, in every way that we could think of, while clients go on. Nobody notices; the relay says which
//! rule caught it; and the true query is all that it takes to heal.
//!
//! The database is a real one and the relay the real binary. A change gets in underneath the relay's queries,
//! through the views that they read, or with the query itself when a relay is restarted. That a changed query
//! ran is told by the database's own log. With the guard off the same changes do take tunnels away.

mod changes;
mod installation;
mod table;
mod traffic;

use std::sync::LazyLock;
use std::time::Instant;

use crate::support::{Cluster, Relay, wait_for};
use changes::{CaughtBy, Change, Proof};
use installation::{Guard, Installation, Size};
use table::{Row, Table};
use traffic::Traffic;

/// A cluster whose log names the database in each line.
fn cluster() -> Option<&'static Cluster> {
    static SHARED: LazyLock<Option<Cluster>> =
        LazyLock::new(|| Cluster::configured("log_line_prefix = '[%d] '\n"));
    SHARED.as_ref()
}

#[test]
fn no_change_is_noticed_by_anybody_at_an_installation_of_3_devices() {
    no_change_is_noticed(Size(3));
}

#[test]
fn no_change_is_noticed_by_anybody_at_an_installation_of_300_devices() {
    no_change_is_noticed(Size(300));
}

#[test]
fn no_change_is_noticed_by_anybody_at_an_installation_of_30000_devices() {
    no_change_is_noticed(Size(30_000));
}

fn no_change_is_noticed(size: Size) {
    let Some(cluster) = cluster() else { return };
    let installation = Installation::new(cluster, size, Guard::On);
    let relay = installation.start();
    let mut traffic = Traffic::start(&installation, &relay);
    traffic.stand(&installation, &relay);
    let mut table = Table::new(size);
    for change in Change::all() {
        let began = Instant::now();
        let since = installation.server_log_bytes();
        installation.change(change);
        let by = change.caught_by(size);
        let caught = caught(&installation, &relay, &by);
        let caught_after = began.elapsed();
        runs_again(&installation, &relay, change, since);
        traffic.goes_on_for(20);

        assert_eq!(caught.as_ref(), Some(&by), "{change}: {}", installation.status());
        assert_eq!(traffic.refusals(), [""; 0], "{change}");
        assert!(traffic.stands(), "{change} ended a tunnel");
        let revoked = installation.revoked_request().send(relay.address());
        assert_eq!(revoked.status, 407, "{change} brought a revoked right back");

        let mended = Instant::now();
        installation.mend(change);
        assert!(wait_for(|| is_well(&relay).then_some(())).is_some(), "{change} does not heal");
        table.push(Row { change, caught_by: by, caught_after, healed_after: mended.elapsed() });
        traffic.goes_on_for(20);
        assert_eq!(traffic.refusals(), [""; 0], "after {change}");
    }
    assert!(traffic.stands());
    assert_eq!(installation.revoked_request().send(relay.address()).status, 407);
    table.write();
}

#[test]
fn a_changed_query_that_a_restart_brings_is_held_against_what_was_kept_or_rolled_back() {
    let Some(cluster) = cluster() else { return };
    let installation = Installation::new(cluster, Size(300), Guard::On);
    drop(Traffic::start(&installation, &installation.start()));
    for change in Change::all().filter(|change| change.kind.may_be_deployed()) {
        installation.deploy(change.relation, &change.select());
        let relay = installation.start();
        let traffic = Traffic::start(&installation, &relay);
        let by = match change.caught_by(installation.size) {
            // Nobody has been allowed anything of late, until clients notice.
            CaughtBy::Rule(rule) if rule == "replay" => CaughtBy::Rule("probation".to_owned()),
            by => by,
        };
        let caught = caught(&installation, &relay, &by);
        assert_eq!(caught.as_ref(), Some(&by), "{change}: {}", installation.status());
        let refusals = traffic.refusals();
        let is_noticed = by == CaughtBy::Rule("probation".to_owned());
        assert!(refusals.is_empty() || is_noticed, "{change}: {:?}", refusals[0]);
        traffic.goes_on_for(300);
        assert_eq!(traffic.refusals(), [""; 0], "{change}");
        installation.deploy(change.relation, change.relation.select());
    }
}

#[test]
fn with_the_guard_off_the_same_changes_are_noticed() {
    let Some(cluster) = cluster() else { return };
    let installation = Installation::new(cluster, Size(300), Guard::Off);
    for change in Change::all() {
        let relay = installation.start();
        assert!(relay.logs("authz.guard.enabled is false"));
        let traffic = Traffic::start(&installation, &relay);
        let since = installation.server_log_bytes();
        installation.change(change);
        runs_again(&installation, &relay, change, since);
        traffic.goes_on_for(300);
        let refusals = traffic.refusals().len();
        assert_eq!(refusals > 0, change.is_up_to_the_guard(), "{change}: {refusals} refusals");
        installation.mend(change);
        drop((traffic, relay));
        installation.forget();
    }
}

/// Waits until the relay says what is to catch a change, and gives its last word.
fn caught(installation: &Installation, relay: &Relay, by: &CaughtBy) -> Option<CaughtBy> {
    wait_for(|| (!is_well(relay)).then_some(()))?;
    let said = || {
        let status = installation.status();
        match status["holds"][0]["rule"].as_str() {
            Some(rule) => Some(CaughtBy::Rule(rule.to_owned())),
            None if !status["last_error"].is_null() => Some(CaughtBy::Outage),
            None => (status["quarantined"].as_u64() > Some(0)).then_some(CaughtBy::Quarantine),
        }
    };
    wait_for(|| said().filter(|said| said == by)).or_else(said)
}

/// Waits until a changed query has run three times `since` so many bytes of the server's log: what one read does not give, the second or the third could
/// take for ended. One that gives no answer has nothing to confirm.
fn runs_again(installation: &Installation, relay: &Relay, change: Change, since: u64) {
    let times = if change.kind.gives_an_answer() { 3 } else { 1 };
    let has_run = match change.proof() {
        Proof::Server(mark) => {
            wait_for(|| (installation.server_said(&mark, since) >= times).then_some(())).is_some()
        }
        Proof::Relay(text) => relay.logs(text),
    };
    assert!(has_run, "{change} has not run");
}

/// True if the store can be read and everything in it is in force.
fn is_well(relay: &Relay) -> bool {
    let metrics = relay.admin_get("/metrics");
    let is_held =
        metrics.lines().any(|line| line.starts_with("sluicegate_guard_held{") && line.ends_with(" 1"));
    let has = |sample: &str| metrics.lines().any(|line| line == sample);
    !is_held && has("sluicegate_store_reachable 1") && has("sluicegate_store_quarantined_rows 0")
}
