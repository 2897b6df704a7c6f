//! A store on PostgreSQL, on a real server: what a relay reads of what was written, under a role that has
//! exactly the rights that the documentation gives it.

use sluicegate::authz::{DeviceUuid, KeyHash, PortRange, PrincipalId, UnixMillis};
use sluicegate::store::StoreError;
use sluicegate::store::admin::GrantTarget;

use crate::support::{Cluster, Rights, UUID};

#[test]
fn everything_that_was_written_is_read() {
    let Some(cluster) = Cluster::shared() else { return };
    let mut rights = Rights::new(cluster);
    let key = rights.issue();
    rights.add_device(UUID);
    let uuid = DeviceUuid::parse(UUID).unwrap();
    let ports = PortRange::new(22, 80).unwrap();
    let expires_at = Some(UnixMillis(4_102_444_800_123));
    rights.admin.add_grant("alice", &GrantTarget::Device(uuid), ports, expires_at).unwrap();

    let rows = rights.source().read_all().unwrap();

    assert_eq!((rows.credentials.len(), rows.grants.len(), rows.devices.len()), (1, 1, 1));
    let credential = rows.credentials[0];
    assert_eq!((credential.key, credential.revoked, credential.expires_at), (key, false, None));
    let grant = rows.grants[0];
    assert_eq!((grant.ports, grant.principal, grant.expires_at), (ports, PrincipalId(1), expires_at));
    let device = &rows.devices[0];
    assert_eq!((device.uuid, device.address), (uuid, Some("127.0.0.1".parse().unwrap())));
    assert_eq!((rows.quarantined, rows.ended), (vec![], vec![]));
}

#[test]
fn a_time_that_never_comes_is_no_expiry() {
    let Some(cluster) = Cluster::shared() else { return };
    let mut rights = Rights::new(cluster);
    rights.issue();
    rights.by_hand("UPDATE sluicegate.credentials SET expires_at = 'infinity'");
    assert_eq!(rights.source().read_all().unwrap().credentials[0].expires_at, None);
    rights.by_hand("UPDATE sluicegate.credentials SET expires_at = '1969-12-31T23:59:59.5Z'");
    let expires_at = rights.source().read_all().unwrap().credentials[0].expires_at;
    assert_eq!(expires_at, Some(UnixMillis(-500)));
}

#[test]
fn what_is_held_by_nobody_is_absent_and_not_revoked() {
    let Some(cluster) = Cluster::shared() else { return };
    let mut rights = Rights::new(cluster);
    rights.issue();
    rights.grant_any();
    rights.without_checks("DELETE FROM sluicegate.principals");
    let rows = rights.source().read_all().unwrap();
    assert_eq!((rows.credentials, rows.grants), (vec![], vec![]));
    assert_eq!((rows.quarantined, rows.ended), (vec![], vec![]));
}

#[test]
fn bad_rows_are_quarantined_and_the_others_read() {
    let Some(cluster) = Cluster::shared() else { return };
    let mut rights = Rights::new(cluster);
    rights.add_device(UUID);
    rights.grant_any();

    rights.without_checks(
        "UPDATE sluicegate.devices SET address = '10.0.0.0/8';
        INSERT INTO sluicegate.devices (uuid) VALUES ('xyz');
        INSERT INTO sluicegate.grants (principal, scope, port_min, port_max) VALUES
            (1, 'planet', 1, 2), (1, 'any', 0, 70000), (1, 'any', 5, 6);
        INSERT INTO sluicegate.credentials (key_sha256, principal) VALUES ('\\x01', 1);",
    );

    let rows = rights.source().read_all().unwrap();
    assert_eq!((rows.credentials.len(), rows.grants.len(), rows.devices.len()), (0, 2, 0));
    let mut quarantined: Vec<_> =
        rows.quarantined.iter().map(|row| format!("{}: {}", row.key, row.reason)).collect();
    quarantined.sort();
    assert_eq!(
        quarantined,
        [
            "credentials 1 bytes: key_sha256 is 1 bytes, which is no SHA-256 (32 bytes)",
            "devices 1: address is 10.0.0.0/8, which is no IP address",
            "devices 2: uuid is `xyz`, which is no uuid of 32 or 62 hex digits",
            "grants 2: scope `planet` is none of any, fleet, device",
            "grants 3: port_max is 70000, which is no port",
        ]
    );
}

#[test]
fn the_relays_role_can_change_nothing() {
    let Some(cluster) = Cluster::shared() else { return };
    let mut rights = Rights::new(cluster);
    rights.issue();
    let mut relay = cluster.try_client(&rights.database.relay(), &rights.database.name).unwrap();
    for statement in [
        "UPDATE sluicegate.credentials SET revoked_at = NULL",
        "DELETE FROM sluicegate.changes",
        "INSERT INTO sluicegate.grants (principal, scope, port_min, port_max) VALUES (1, 'any', 1, 2)",
        "SELECT sluicegate.prune_changes()",
        "CREATE TABLE sluicegate.more (id int)",
    ] {
        let error = relay.batch_execute(statement).unwrap_err();
        assert_eq!(error.code().unwrap().code(), "42501", "{statement}: {error:?}");
    }
}

#[test]
fn a_database_without_a_schema_asks_for_init() {
    let Some(cluster) = Cluster::shared() else { return };
    let database = cluster.empty_database();
    let error = crate::support::postgres_source(&database.owner_url()).read_all().unwrap_err();
    assert!(matches!(error, StoreError::Version { found: 0, .. }), "{error}");
    assert!(error.to_string().contains("`sluicegate store init` fills it"), "{error}");
}

#[test]
fn another_programs_schema_is_refused_and_left_alone() {
    let Some(cluster) = Cluster::shared() else { return };
    let database = cluster.empty_database();
    database.by_hand("CREATE SCHEMA sluicegate; CREATE TABLE sluicegate.notes (text text)");
    let error = crate::support::postgres_source(&database.owner_url()).read_all().unwrap_err();
    assert!(matches!(error, StoreError::Foreign { .. }), "{error}");
    let error = crate::support::open_admin(&database.owner_url()).err().unwrap();
    assert!(matches!(error, StoreError::Foreign { .. }), "{error}");
    let error = crate::support::init_store(&database.owner_url()).unwrap_err();
    assert!(matches!(error, StoreError::Foreign { .. }), "{error}");
    let tables =
        "SELECT count(*) FROM pg_class WHERE relnamespace = 'sluicegate'::regnamespace AND relkind = 'r'";
    assert_eq!(database.client().query_one(tables, &[]).unwrap().get::<_, i64>(0), 1);
}

#[test]
fn a_store_of_another_schema_version_names_the_remedy() {
    let Some(cluster) = Cluster::shared() else { return };
    let rights = Rights::new(cluster);
    for (version, remedy) in [(0, "`sluicegate store init` brings it"), (99, "or a newer one")] {
        rights.by_hand(&format!(
            "DELETE FROM sluicegate.schema_version; INSERT INTO sluicegate.schema_version VALUES ({version})"
        ));
        let error = rights.source().read_all().unwrap_err();
        assert!(matches!(error, StoreError::Version { found, .. } if found == version), "{error}");
        assert!(error.to_string().contains(remedy), "{error}");
    }
}

#[test]
fn a_version_that_only_adds_is_read_before_and_after_it_comes() {
    let Some(cluster) = Cluster::shared() else { return };
    let rights = Rights::new(cluster);
    let mut source = rights.read_source();
    rights.by_hand("UPDATE sluicegate.schema_version SET adds_up_to = 9 WHERE version = 4");
    source.read_changes().unwrap();
    rights.source().read_all().unwrap();
    assert!(rights.database.init().contains("up to date"));
    // Relays of the version before look at this alone, and at the tables that they know.
    let newest = "SELECT max(version) FROM sluicegate.schema_version";
    assert_eq!(rights.database.client().query_one(newest, &[]).unwrap().get::<_, i64>(0), 4);
    rights.by_hand("UPDATE sluicegate.schema_version SET adds_up_to = NULL");
    let error = rights.source().read_all().unwrap_err();
    assert!(matches!(error, StoreError::Version { found: 4, wanted: 5, .. }), "{error}");
}

#[test]
fn init_can_be_repeated() {
    let Some(cluster) = Cluster::shared() else { return };
    let mut rights = Rights::new(cluster);
    rights.grant_any();
    assert!(rights.database.init().contains("up to date"));
    assert_eq!(rights.source().read_all().unwrap().grants.len(), 1);
}

#[test]
fn a_key_is_told_by_its_hash_alone() {
    let Some(cluster) = Cluster::shared() else { return };
    let mut rights = Rights::new(cluster);
    let issued = rights.admin.issue_token("alice", None, None).unwrap();
    let sql = "SELECT count(*) FROM sluicegate.credentials WHERE position($1 IN credentials::text) > 0";
    let found: i64 = rights.database.client().query_one(sql, &[&issued.token]).unwrap().get(0);
    assert_eq!(found, 0);
    let rows = rights.source().read_all().unwrap();
    assert_eq!(rows.credentials[0].key, KeyHash::of_token(issued.token.as_bytes()));
}
