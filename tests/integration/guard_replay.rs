//! The guard decides recently allowed requests again with every read of the store, and holds a read that would refuse
//! them. Each scenario runs on SQLite and on PostgreSQL.

use crate::support::{Installation, Judged, StoreUnderTest, on_both_stores};
use sluicegate::authz::{Decision, Refusal};
use sluicegate::control::Rule;

on_both_stores! {
    a_read_that_would_refuse_what_was_just_allowed_holds,
    a_statement_that_moves_devices_to_other_fleets_holds,
    one_grant_may_be_narrowed_and_one_device_moved,
    revocations_and_confirmed_absences_explain_a_refusal,
    a_request_that_another_node_took_over_is_replayed_too,
}

const GRANTS: &str =
    "id, principal, scope, target, port_min, port_max, created_at, expires_at, revoked_at FROM grants_table";

/// Starts a control thread and lets each holder of a grant ask once; returns when the control thread has seen that.
fn with_traffic(installation: &Installation) -> Judged {
    let judged = installation.start();
    for device in 0..installation.devices {
        assert!(matches!(judged.ask(device), Decision::Allow(_)));
    }
    judged.read_whole(2);
    judged
}

fn a_read_that_would_refuse_what_was_just_allowed_holds(store: StoreUnderTest) {
    for (what, select) in [
        ("other ports", GRANTS.replace("port_min, port_max", "443 AS port_min, 443 AS port_max")),
        ("other holders", GRANTS.replace("principal", "principal % 3 + 1 AS principal")),
        ("expired", GRANTS.replace("expires_at", "created_at AS expires_at")),
    ] {
        let installation = Installation::on(store, 9);
        let judged = with_traffic(&installation);
        installation.replace_query("grants", &format!("SELECT {select}"));
        let (rule, message) = judged.hold();
        assert_eq!(rule, Rule::Replay, "{what}: {message}");
        assert!(message.contains("9 of 9 recently allowed decisions"), "{message}");
        let credential = Installation::key(0).credential_id().to_string();
        assert!(message.contains(&format!("credential {credential} on device 1")), "{message}");
        judged.read_whole(2);
        assert_eq!(judged.allowed(), 9, "{what}");
        installation.restore_query("grants");
        assert!(judged.heals());
    }
}

fn a_statement_that_moves_devices_to_other_fleets_holds(store: StoreUnderTest) {
    let installation = Installation::on(store, 9);
    installation.sql(
        "INSERT INTO fleets (name) VALUES ('one'), ('two');
        UPDATE devices SET fleet = 1; UPDATE grants SET scope = 'fleet', target = 1",
    );
    let judged = with_traffic(&installation);
    installation.sql("UPDATE devices SET fleet = 2 WHERE id < 9");
    assert_eq!(judged.hold().0, Rule::Replay);
    assert_eq!(judged.allowed(), 9);
    installation.sql("UPDATE devices SET fleet = 1");
    assert!(judged.heals());
}

fn one_grant_may_be_narrowed_and_one_device_moved(store: StoreUnderTest) {
    let installation = Installation::on(store, 9);
    let judged = with_traffic(&installation);
    installation.sql("UPDATE grants SET port_min = 443 WHERE id = 1");
    assert!(judged.comes_to(|judged| judged.decide(0) == Decision::Refuse(Refusal::PortNotGranted)));
    installation.sql("UPDATE devices SET uuid = 'ffffffffffffffffffffffffffffffff' WHERE id = 2");
    assert!(judged.comes_to(|judged| judged.decide(1) == Decision::Refuse(Refusal::DeviceUnknown)));
    assert_eq!((judged.held_by(), judged.allowed()), (None, 7));
}

fn revocations_and_confirmed_absences_explain_a_refusal(store: StoreUnderTest) {
    let installation = Installation::on(store, 9);
    let judged = with_traffic(&installation);
    installation.sql(
        "BEGIN; UPDATE grants SET revoked_at = 1 WHERE id <= 3; DELETE FROM grants WHERE id = 4;
        UPDATE grants SET port_max = 60000 WHERE id > 4; COMMIT",
    );
    assert!(judged.comes_to(|judged| judged.allowed() == 5));
    assert_eq!(judged.status().holds.iter().sum::<u64>(), 0);
}

fn a_request_that_another_node_took_over_is_replayed_too(store: StoreUnderTest) {
    let installation = Installation::on(store, 9);
    // In some stores only the node that holds a device can read its address.
    installation.sql("UPDATE devices SET node = 'there', address = NULL");
    let judged = installation.start_with(|config| config.vpn.node = Some("here".to_owned()));
    (0..9).for_each(|device| assert_eq!(judged.ask(device), Decision::Refuse(Refusal::DeviceElsewhere)));
    judged.read_whole(2);
    installation.replace_query(
        "grants",
        &format!("SELECT {}", GRANTS.replace("port_min, port_max", "443 AS port_min, 443 AS port_max")),
    );
    let (rule, message) = judged.hold();
    assert_eq!(rule, Rule::Replay, "{message}");
    assert!(message.contains("9 of 9 recently allowed decisions"), "{message}");
    assert_eq!(
        judged.decide(0),
        Decision::Refuse(Refusal::DeviceElsewhere),
        "the other node still serves it"
    );
}
