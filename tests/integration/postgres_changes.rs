//! What a relay is told of changes in a store on PostgreSQL, in whatever order transactions commit.

use sluicegate::authz::{Change, DeviceUuid, GrantId, KeyHash};
use sluicegate::store::admin::{DevicePatch, Revoked};
use sluicegate::store::{Quarantined, StoreError};

use crate::support::{Changes, Cluster, Rights, StoreView, UUID, postgres_source, wait_for};

fn changes(source: &mut StoreView) -> (Vec<Change>, Vec<Quarantined>) {
    match source.read_changes().unwrap() {
        Changes::Some { changes, quarantined } => (changes, quarantined),
        other => panic!("no changes: {other:?}"),
    }
}

/// The kind and key of each change, and whether it says that the right has ended.
fn reported(changes: &[Change]) -> Vec<String> {
    let reported = |change: &Change| match change {
        Change::Credential(row) => format!("credential revoked={}", row.revoked),
        Change::CredentialGone(_) => "credential gone".to_owned(),
        Change::Grant(row) => format!("grant {} revoked={}", row.id.0, row.revoked),
        Change::GrantGone(id) => format!("grant {} gone", id.0),
        Change::Device(row) => format!("device {} online={}", row.id.0, row.online),
        Change::DeviceGone(id) => format!("device {} gone", id.0),
        Change::PrincipalGone(id) => format!("principal {} gone", id.0),
    };
    changes.iter().map(reported).collect()
}

fn is_nothing(source: &mut StoreView) -> bool {
    matches!(source.read_changes().unwrap(), Changes::Nothing)
}

fn is_behind(source: &mut StoreView) -> bool {
    matches!(source.read_changes().unwrap(), Changes::Behind)
}

#[test]
fn each_changed_row_is_told_once_as_it_is_now() {
    let Some(cluster) = Cluster::shared() else { return };
    let mut rights = Rights::new(cluster);
    let mut source = rights.read_source();
    assert!(is_nothing(&mut source));

    rights.add_device(UUID);
    rights.grant_any();
    rights.issue();
    let patch = DevicePatch { online: Some(false), ..Default::default() };
    rights.admin.set_device(DeviceUuid::parse(UUID).unwrap(), &patch).unwrap();

    let (seen, quarantined) = changes(&mut source);
    assert_eq!(
        reported(&seen),
        ["grant 1 revoked=false", "credential revoked=false", "device 1 online=false"]
    );
    assert_eq!(quarantined, []);
    assert!(is_nothing(&mut source));
}

#[test]
fn a_transaction_that_commits_late_is_not_passed_over() {
    let Some(cluster) = Cluster::shared() else { return };
    let mut rights = Rights::new(cluster);
    let late_key = rights.issue();
    let mut source = rights.read_source();

    // Begun first, so that its rows have the lowest numbers in the outbox and its own number is the lowest.
    let mut late = rights.database.client();
    let mut late = late.transaction().unwrap();
    late.batch_execute("UPDATE sluicegate.credentials SET revoked_at = now()").unwrap();
    rights.grant_any();
    assert_eq!(reported(&changes(&mut source).0), ["grant 1 revoked=false"]);
    rights.grant_any();
    assert_eq!(reported(&changes(&mut source).0), ["grant 2 revoked=false"]);
    assert!(is_nothing(&mut source));

    late.commit().unwrap();

    let (seen, _) = changes(&mut source);
    assert!(matches!(seen[..], [Change::Credential(row)] if row.key == late_key && row.revoked), "{seen:?}");
    assert!(is_nothing(&mut source));
    rights.grant_any();
    assert_eq!(reported(&changes(&mut source).0), ["grant 3 revoked=false"]);
}

#[test]
fn a_transaction_that_runs_while_everything_is_read_is_not_passed_over() {
    let Some(cluster) = Cluster::shared() else { return };
    let mut rights = Rights::new(cluster);
    let mut late = rights.database.client();
    let mut late = late.transaction().unwrap();
    late.batch_execute("INSERT INTO sluicegate.devices (uuid) VALUES (repeat('ab', 16))").unwrap();
    rights.grant_any();

    let mut source = rights.read_source();
    assert!(is_nothing(&mut source));
    late.commit().unwrap();

    assert_eq!(reported(&changes(&mut source).0), ["device 1 online=true"]);
}

#[test]
fn what_is_rolled_back_never_was() {
    let Some(cluster) = Cluster::shared() else { return };
    let rights = Rights::new(cluster);
    let mut source = rights.read_source();
    rights.by_hand("BEGIN; INSERT INTO sluicegate.devices (uuid) VALUES (repeat('ab', 16)); ROLLBACK");
    assert!(is_nothing(&mut source));
}

#[test]
fn ends_of_every_kind_are_told() {
    let Some(cluster) = Cluster::shared() else { return };
    let mut rights = Rights::new(cluster);
    rights.add_device(UUID);
    rights.grant_any();
    let uuid = DeviceUuid::parse(UUID).unwrap();
    rights.by_hand(
        "INSERT INTO sluicegate.grants (principal, scope, target, port_min, port_max)
        VALUES (1, 'device', 1, 1, 2)",
    );
    let key = rights.issue();
    let mut source = rights.read_source();

    assert_eq!(rights.admin.revoke_credential(&key.credential_id().to_string()).unwrap(), Revoked::Now);
    assert_eq!(reported(&changes(&mut source).0), ["credential revoked=true"]);

    rights.admin.revoke_grant(GrantId(1)).unwrap();
    assert_eq!(reported(&changes(&mut source).0), ["grant 1 revoked=true"]);

    rights.admin.remove_device(uuid).unwrap();
    assert_eq!(reported(&changes(&mut source).0), ["device 1 gone", "grant 2 revoked=true"]);

    rights.by_hand("DELETE FROM sluicegate.credentials; DELETE FROM sluicegate.grants WHERE id = 1");
    let (seen, _) = changes(&mut source);
    assert_eq!(seen, [Change::CredentialGone(key), Change::GrantGone(GrantId(1))]);
}

#[test]
fn removing_a_principal_ends_it_and_all_that_it_holds() {
    let Some(cluster) = Cluster::shared() else { return };
    let mut rights = Rights::new(cluster);
    rights.issue();
    rights.grant_any();
    let mut source = rights.read_source();

    rights.admin.remove_principal("alice").unwrap();

    let (seen, _) = changes(&mut source);
    assert_eq!(reported(&seen), ["principal 1 gone", "credential revoked=true", "grant 1 revoked=true"]);
    let rows = source.read_all().unwrap();
    assert!(rows.credentials[0].revoked && rows.grants[0].revoked);
}

#[test]
fn what_a_deleted_principal_held_is_nobodys_and_absent() {
    let Some(cluster) = Cluster::shared() else { return };
    let mut rights = Rights::new(cluster);
    rights.issue();
    rights.grant_any();
    let mut source = rights.read_source();

    rights.without_checks("DELETE FROM sluicegate.principals");

    assert_eq!(reported(&changes(&mut source).0), ["principal 1 gone"]);
    let rows = source.read_all().unwrap();
    assert!(rows.credentials.is_empty() && rows.grants.is_empty());
}

#[test]
fn what_points_to_no_principal_is_absent_from_answers_and_has_not_ended() {
    let Some(cluster) = Cluster::shared() else { return };
    let mut rights = Rights::new(cluster);
    let key = rights.issue();
    rights.grant_any();
    let mut source = rights.read_source();

    rights.without_checks(
        "UPDATE sluicegate.credentials SET principal = 99; UPDATE sluicegate.grants SET principal = 99",
    );
    let live = ["credential revoked=false", "grant 1 revoked=false"];
    assert_eq!(reported(&changes(&mut source).0), live, "no word that it ended");
    let rows = source.read_all().unwrap();
    assert!(rows.credentials.is_empty() && rows.grants.is_empty());

    rights.by_hand(
        "UPDATE sluicegate.credentials SET principal = 1; UPDATE sluicegate.grants SET principal = 1",
    );
    assert_eq!(reported(&changes(&mut source).0), live);
    assert_eq!(source.read_all().unwrap().credentials[0].key, key);
}

#[test]
fn what_a_view_or_a_policy_shows_in_a_tables_place_is_no_word_of_the_store() {
    let Some(cluster) = Cluster::shared() else { return };
    let mut rights = Rights::new(cluster);
    rights.issue();
    rights.grant_any();
    rights.add_device(UUID);
    let mut source = rights.read_source();
    let relay = rights.database.relay();
    rights.by_hand(&format!(
        "ALTER TABLE sluicegate.grants RENAME TO grants_table;
        CREATE VIEW sluicegate.grants AS SELECT id, principal, scope, target, port_min, port_max, created_at, expires_at,
            created_at AS revoked_at FROM sluicegate.grants_table;
        GRANT SELECT ON sluicegate.grants TO {relay};
        ALTER TABLE sluicegate.credentials ENABLE ROW LEVEL SECURITY;
        ALTER TABLE sluicegate.devices ENABLE ROW LEVEL SECURITY"
    ));

    rights.by_hand(
        "UPDATE sluicegate.grants_table SET port_max = 80; UPDATE sluicegate.credentials SET label = 'laptop';
        UPDATE sluicegate.devices SET online = false",
    );
    assert_eq!(
        reported(&changes(&mut source).0),
        ["grant 1 revoked=false", "credential revoked=false", "device 1 online=false"]
    );
    let rows = source.read_all().unwrap();
    assert!(rows.grants[0].revoked, "the answer shows what the view does");
    assert!(rows.credentials.is_empty() && rows.devices.is_empty(), "and what the policies let through");

    rights.by_hand("DROP VIEW sluicegate.grants; ALTER TABLE sluicegate.grants_table RENAME TO grants");
    rights.by_hand("UPDATE sluicegate.grants SET revoked_at = now(); DELETE FROM sluicegate.credentials");
    assert_eq!(reported(&changes(&mut source).0), ["grant 1 revoked=true", "credential gone"]);
}

#[test]
fn the_outbox_of_the_version_before_is_read_by_its_keys() {
    let Some(cluster) = Cluster::shared() else { return };
    let mut rights = Rights::new(cluster);
    rights.issue();
    rights.grant_any();
    rights.add_device(UUID);
    let mut source = rights.read_source();
    rights.by_hand("UPDATE sluicegate.grants SET revoked_at = now(); DELETE FROM sluicegate.devices");
    // As it was written before rows were recorded.
    rights.without_checks(
        "UPDATE sluicegate.changes SET gone = NULL, revoked = NULL, principal = NULL, scope = NULL",
    );
    assert_eq!(reported(&changes(&mut source).0), ["grant 1 revoked=true", "device 1 gone"]);
}

#[test]
fn a_row_that_gets_another_key_ends_the_old_one() {
    let Some(cluster) = Cluster::shared() else { return };
    let mut rights = Rights::new(cluster);
    let key = rights.issue();
    let mut source = rights.read_source();
    rights.by_hand("UPDATE sluicegate.credentials SET key_sha256 = decode(repeat('09', 32), 'hex')");
    let (seen, _) = changes(&mut source);
    assert!(seen.contains(&Change::CredentialGone(key)), "{seen:?}");
    let new = KeyHash::from_bytes([9; 32]);
    assert!(
        seen.iter().any(|change| matches!(change, Change::Credential(row) if row.key == new)),
        "{seen:?}"
    );
}

#[test]
fn a_revoked_right_cannot_be_brought_back() {
    let Some(cluster) = Cluster::shared() else { return };
    let mut rights = Rights::new(cluster);
    rights.issue();
    rights.grant_any();
    rights.admin.remove_principal("alice").unwrap();
    for (statement, reported) in [
        ("UPDATE sluicegate.credentials SET revoked_at = NULL", "a revoked credential does not come back"),
        ("UPDATE sluicegate.grants SET revoked_at = NULL", "a revoked grant does not come back"),
        ("UPDATE sluicegate.principals SET removed_at = NULL", "a removed principal does not come back"),
    ] {
        let error = rights.database.client().batch_execute(statement).unwrap_err();
        assert!(error.as_db_error().unwrap().message().contains(reported), "{error:?}");
    }
}

#[test]
fn a_row_that_turns_bad_is_quarantined_among_the_changes() {
    let Some(cluster) = Cluster::shared() else { return };
    let mut rights = Rights::new(cluster);
    rights.add_device(UUID);
    let grant = rights.grant_any();
    let mut source = rights.read_source();

    rights.without_checks(
        "UPDATE sluicegate.devices SET address = '10.0.0.0/8'; UPDATE sluicegate.grants SET port_min = 0",
    );
    let (seen, quarantined) = changes(&mut source);
    assert_eq!((seen, quarantined.len()), (vec![], 2));

    rights.by_hand("UPDATE sluicegate.grants SET revoked_at = now()");
    let (seen, quarantined) = changes(&mut source);
    assert_eq!((seen, quarantined.len()), (vec![Change::GrantGone(grant)], 1), "bad, but revoked");
}

#[test]
fn a_row_of_the_outbox_that_no_trigger_wrote_means_behind() {
    let Some(cluster) = Cluster::shared() else { return };
    let rights = Rights::new(cluster);
    let mut source = rights.read_source();
    rights.without_checks("INSERT INTO sluicegate.changes (relation, key_id) VALUES ('planets', 1)");
    assert!(is_behind(&mut source));
    source.read_all().unwrap();
    assert!(is_nothing(&mut source), "behind once, not for ever");
}

#[test]
fn a_table_that_is_emptied_at_once_means_behind() {
    let Some(cluster) = Cluster::shared() else { return };
    let mut rights = Rights::new(cluster);
    rights.grant_any();
    let mut source = rights.read_source();
    rights.by_hand("TRUNCATE sluicegate.grants");
    assert!(is_behind(&mut source));
    assert_eq!(source.read_all().unwrap().grants, []);
    assert!(is_nothing(&mut source));
}

#[test]
fn writing_prunes_the_outbox_and_who_had_not_read_it_is_behind() {
    // One of its own, since a transaction that runs in any database can turn a prune into a gap.
    let Some(cluster) = Cluster::start() else { return };
    let mut rights = Rights::new(&cluster);
    let (mut reader, mut sleeper) = (rights.read_source(), rights.read_source());
    let many = "INSERT INTO sluicegate.changes (relation, key_id) SELECT 'devices', n FROM generate_series(1, 60000) n";
    rights.by_hand(many);
    assert_eq!(changes(&mut reader).0.len(), 60_000);
    for _ in 0..3 {
        rights.by_hand(many);
        assert_eq!(changes(&mut reader).0.len(), 60_000, "who reads along misses nothing");
    }
    for _ in 0..30 {
        rights.by_hand(
            "INSERT INTO sluicegate.changes (relation, key_id) SELECT 'devices', n FROM generate_series(1, 1000) n",
        );
    }
    let rows: i64 =
        rights.database.client().query_one("SELECT count(*) FROM sluicegate.changes", &[]).unwrap().get(0);
    assert!(rows <= 101_000, "{rows}");
    assert!(is_behind(&mut sleeper));
    sleeper.read_all().unwrap();
    rights.grant_any();
    assert_eq!(reported(&changes(&mut sleeper).0), ["grant 1 revoked=false"]);
}

#[test]
fn a_prune_of_what_was_seen_is_no_gap() {
    let Some(cluster) = Cluster::start() else { return };
    let mut rights = Rights::new(&cluster);
    rights.grant_any();
    let mut source = rights.read_source();
    rights.by_hand(
        "UPDATE sluicegate.outbox_state SET prunes = prunes + 1,
            pruned_xid = (SELECT max(xid) FROM sluicegate.changes);
        DELETE FROM sluicegate.changes",
    );
    assert!(is_nothing(&mut source));
    rights.grant_any();
    assert_eq!(reported(&changes(&mut source).0), ["grant 2 revoked=false"]);
}

#[test]
fn more_than_a_hundred_thousand_changes_are_read_by_reading_everything() {
    let Some(cluster) = Cluster::shared() else { return };
    let rights = Rights::new(cluster);
    let mut source = rights.read_source();
    rights.by_hand(
        "INSERT INTO sluicegate.devices (uuid) SELECT md5(n::text) FROM generate_series(1, 100001) n",
    );
    assert!(is_behind(&mut source));
    assert_eq!(source.read_all().unwrap().devices.len(), 100_001);
    assert!(is_nothing(&mut source));
}

#[test]
fn a_large_outbox_is_never_looked_through_whole() {
    let Some(cluster) = Cluster::shared() else { return };
    let rights = Rights::new(cluster);
    rights.by_hand(
        "INSERT INTO sluicegate.devices (uuid) SELECT md5(n::text) FROM generate_series(1, 50000) n",
    );
    rights.by_hand("ANALYZE sluicegate.changes");
    let scans = || -> (i64, i64) {
        let sql = "SELECT seq_scan, idx_scan FROM pg_stat_user_tables WHERE relname = 'changes'";
        let row = rights.database.client().query_one(sql, &[]).unwrap();
        (row.get(0), row.get(1))
    };
    let before = scans();

    let mut source = postgres_source(&rights.database.relay_url());
    source.read_all().unwrap();
    // More than once each, since a server plans a statement anew after some executions.
    for _ in 0..20 {
        assert!(is_nothing(&mut source));
        rights.by_hand("UPDATE sluicegate.devices SET online = false WHERE id = 1");
        assert_eq!(changes(&mut source).0.len(), 1);
    }

    drop(source);
    let after = wait_for(|| Some(scans()).filter(|after| after.1 > before.1 + 40)).unwrap();
    assert_eq!(after.0, before.0);
}

#[test]
fn an_outbox_from_another_cluster_is_told_and_init_mends_it() {
    let Some(cluster) = Cluster::shared() else { return };
    let mut rights = Rights::new(cluster);
    rights.grant_any();
    let mut source = rights.read_source();
    // As a restored dump leaves it: numbers of transactions that are yet to come here.
    rights.by_hand("UPDATE sluicegate.changes SET xid = (xid::text::int8 + 1000000)::text::xid8");

    let error = source.read_changes().unwrap_err();
    assert!(matches!(error, StoreError::Restored { .. }), "{error}");
    assert!(error.to_string().contains("`sluicegate store init` fits its outbox"), "{error}");

    rights.database.init();
    source.read_changes().unwrap();
    assert_eq!(source.read_all().unwrap().grants.len(), 1);
    rights.grant_any();
    assert_eq!(reported(&changes(&mut source).0), ["grant 2 revoked=false"]);
}

#[test]
fn a_store_that_is_migrated_under_a_relay_is_told() {
    let Some(cluster) = Cluster::shared() else { return };
    let rights = Rights::new(cluster);
    let mut source = rights.read_source();
    rights.by_hand("INSERT INTO sluicegate.schema_version VALUES (99)");
    let error = source.read_changes().unwrap_err();
    assert!(matches!(error, StoreError::Version { found: 99, .. }), "{error}");
}

#[test]
fn writers_under_any_isolation_are_never_failed_by_the_outbox() {
    let Some(cluster) = Cluster::shared() else { return };
    let rights = Rights::new(cluster);
    rights.by_hand(
        "INSERT INTO sluicegate.changes (relation, key_id) SELECT 'devices', n FROM generate_series(1, 120000) n",
    );
    // Two whose snapshots are older than a prune, and who come to write the rows with which one is due.
    let (mut one, mut other) = (rights.database.client(), rights.database.client());
    let serializable = |client: &mut postgres::Client| {
        client
            .batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM sluicegate.changes")
            .unwrap();
    };
    serializable(&mut one);
    serializable(&mut other);
    let write =
        "INSERT INTO sluicegate.devices (uuid) SELECT md5($1 || n::text) FROM generate_series(1, 1000) n";
    rights.database.client().execute(write, &[&"a"]).unwrap();
    one.execute(write, &[&"b"]).unwrap();
    other.execute(write, &[&"c"]).unwrap();
    one.batch_execute("COMMIT").unwrap();
    other.batch_execute("COMMIT").unwrap();
}
