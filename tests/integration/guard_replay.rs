//! What was allowed a moment ago is put to every read of the store, and must be allowed still.

use crate::support::{Installation, Judged};
use sluicegate::authz::{Decision, Refusal};
use sluicegate::control::Rule;

const GRANTS: &str =
    "id, principal, scope, target, port_min, port_max, created_at, expires_at, revoked_at FROM grants_table";

/// Everybody who may asks once, and the control thread has seen it.
fn with_traffic(installation: &Installation) -> Judged {
    let judged = installation.start();
    for device in 0..installation.devices {
        assert!(matches!(judged.ask(device), Decision::Allow(_)));
    }
    judged.read_whole(2);
    judged
}

#[test]
fn a_read_that_would_refuse_what_was_just_allowed_holds() {
    for (what, select) in [
        ("other ports", GRANTS.replace("port_min, port_max", "443 AS port_min, 443 AS port_max")),
        ("other holders", GRANTS.replace("principal", "principal % 3 + 1 AS principal")),
        ("expired", GRANTS.replace("expires_at", "created_at AS expires_at")),
    ] {
        let installation = Installation::new(9);
        let judged = with_traffic(&installation);
        installation.replace_query("grants", &format!("SELECT {select}"));
        let (rule, told) = judged.hold();
        assert_eq!(rule, Rule::Replay, "{what}: {told}");
        assert!(told.contains("9 of 9 recently allowed decisions"), "{told}");
        let credential = Installation::key(0).credential_id().to_string();
        assert!(told.contains(&format!("credential {credential} on device 1")), "{told}");
        judged.read_whole(2);
        assert_eq!(judged.allowed(), 9, "{what}");
        installation.restore_query("grants");
        assert!(judged.heals());
    }
}

#[test]
fn a_statement_that_moves_devices_to_other_fleets_holds() {
    let installation = Installation::new(9);
    installation.sql(
        "INSERT INTO fleets (id, name) VALUES (1, 'one'), (2, 'two');
        UPDATE devices SET fleet = 1; UPDATE grants SET scope = 'fleet', target = 1",
    );
    let judged = with_traffic(&installation);
    installation.sql("UPDATE devices SET fleet = 2 WHERE id < 9");
    assert_eq!(judged.hold().0, Rule::Replay);
    assert_eq!(judged.allowed(), 9);
    installation.sql("UPDATE devices SET fleet = 1");
    assert!(judged.heals());
}

#[test]
fn one_grant_may_be_narrowed_and_one_device_moved() {
    let installation = Installation::new(9);
    let judged = with_traffic(&installation);
    installation.sql("UPDATE grants SET port_min = 443 WHERE id = 1");
    assert!(judged.comes_to(|judged| judged.decide(0) == Decision::Refuse(Refusal::PortNotGranted)));
    installation.sql("UPDATE devices SET uuid = 'ffffffffffffffffffffffffffffffff' WHERE id = 2");
    assert!(judged.comes_to(|judged| judged.decide(1) == Decision::Refuse(Refusal::DeviceUnknown)));
    assert_eq!((judged.held_by(), judged.allowed()), (None, 7));
}

#[test]
fn revocations_and_confirmed_absences_explain_a_refusal() {
    let installation = Installation::new(9);
    let judged = with_traffic(&installation);
    installation.sql(
        "BEGIN; UPDATE grants SET revoked_at = 1 WHERE id <= 3; DELETE FROM grants WHERE id = 4;
        UPDATE grants SET port_max = 60000 WHERE id > 4; COMMIT",
    );
    assert!(judged.comes_to(|judged| judged.allowed() == 5));
    assert_eq!(judged.status().holds.iter().sum::<u64>(), 0);
}

#[test]
fn what_was_handed_to_the_node_that_holds_the_device_is_put_to_it_too() {
    let installation = Installation::new(9);
    // Some stores tell a device's address to the node that holds it and to nobody else.
    installation.sql("UPDATE devices SET node = 'there', address = NULL");
    let judged = installation.start_with(|config| config.vpn.node = Some("here".to_owned()));
    (0..9).for_each(|device| assert_eq!(judged.ask(device), Decision::Refuse(Refusal::DeviceElsewhere)));
    judged.read_whole(2);
    installation.replace_query(
        "grants",
        &format!("SELECT {}", GRANTS.replace("port_min, port_max", "443 AS port_min, 443 AS port_max")),
    );
    let (rule, told) = judged.hold();
    assert_eq!(rule, Rule::Replay, "{told}");
    assert!(told.contains("9 of 9 recently allowed decisions"), "{told}");
    assert_eq!(judged.decide(0), Decision::Refuse(Refusal::DeviceElsewhere), "and still is handed on");
}
