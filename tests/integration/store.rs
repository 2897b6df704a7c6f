//! The embedded store, on real files: what a relay reads of what was written, and what it is told when the
//! file is not what it should be.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rusqlite::Connection;
use sluicegate::authz::{Change, DeviceUuid, GrantId, KeyHash, PortRange, PrincipalId};
use sluicegate::config::Authz;
use sluicegate::store::admin::{DevicePatch, GrantTarget, NewDevice, Revoked};
use sluicegate::store::sqlite;
use sluicegate::store::{Initialised, Quarantined, StoreError};

use crate::support::{Changes, StoreFile, StoreView, store_at};

const UUID: &str = "00112233445566778899aabbccddeeff";

const PRUNE_ALL_BUT_THE_LAST: &str = "DELETE FROM changes WHERE id < (SELECT max(id) FROM changes)";

impl StoreFile {
    /// A source that has read everything there is now.
    fn source(&self) -> StoreView {
        let mut source = source_at(&self.path());
        source.read_all().unwrap();
        source
    }

    fn add_device(&mut self, uuid: &str) {
        self.admin.add_device(&device(uuid)).unwrap();
    }
}

fn source_at(path: &Path) -> StoreView {
    StoreView::new(&store_at(&format!("sqlite:{}", path.display())), &Authz::default())
}

fn device(uuid: &str) -> NewDevice {
    NewDevice {
        uuid: DeviceUuid::parse(uuid).unwrap(),
        name: None,
        fleet: None,
        address: Some("127.0.0.1".parse().unwrap()),
        node: None,
        online: true,
    }
}

fn changes(source: &mut StoreView) -> (Vec<Change>, Vec<Quarantined>) {
    match source.read_changes().unwrap() {
        Changes::Some { changes, quarantined } => (changes, quarantined),
        other => panic!("no changes: {other:?}"),
    }
}

/// The kind and key of each change, and whether it says that the right has ended.
fn message(changes: &[Change]) -> Vec<String> {
    let message = |change: &Change| match change {
        Change::Credential(row) => format!("credential revoked={}", row.revoked),
        Change::CredentialGone(_) => "credential gone".to_owned(),
        Change::Grant(row) => format!("grant {} revoked={}", row.id.0, row.revoked),
        Change::GrantGone(id) => format!("grant {} gone", id.0),
        Change::Device(row) => format!("device {} online={}", row.id.0, row.online),
        Change::DeviceGone(id) => format!("device {} gone", id.0),
        Change::PrincipalGone(id) => format!("principal {} gone", id.0),
    };
    changes.iter().map(message).collect()
}

#[test]
fn everything_that_was_written_is_read() {
    let mut store = StoreFile::new();
    let key = store.issue();
    store.add_device(UUID);
    let uuid = DeviceUuid::parse(UUID).unwrap();
    let ports = PortRange::new(22, 80).unwrap();
    store.admin.add_grant("alice", &GrantTarget::Device(uuid), ports, None).unwrap();

    let rows = source_at(&store.path()).read_all().unwrap();

    assert_eq!((rows.credentials.len(), rows.grants.len(), rows.devices.len()), (1, 1, 1));
    assert_eq!((rows.credentials[0].key, rows.credentials[0].revoked), (key, false));
    assert_eq!((rows.grants[0].ports, rows.grants[0].principal), (ports, PrincipalId(1)));
    assert_eq!((rows.devices[0].uuid, rows.devices[0].address), (uuid, device(UUID).address));
    assert_eq!((rows.quarantined, rows.ended), (vec![], vec![]));
}

#[test]
fn changes_come_in_commit_order_and_each_row_once() {
    let mut store = StoreFile::new();
    let mut source = store.source();
    assert!(matches!(source.read_changes(), Ok(Changes::Nothing)));

    store.add_device(UUID);
    store.grant_any();
    store.issue();
    let patch = DevicePatch { online: Some(false), ..Default::default() };
    store.admin.set_device(DeviceUuid::parse(UUID).unwrap(), &patch).unwrap();

    let (seen, quarantined) = changes(&mut source);
    assert_eq!(
        message(&seen),
        ["grant 1 revoked=false", "credential revoked=false", "device 1 online=false"]
    );
    assert_eq!(quarantined, []);
    assert!(matches!(source.read_changes(), Ok(Changes::Nothing)));
}

#[test]
fn a_commit_that_touches_no_relation_is_no_change() {
    let mut store = StoreFile::new();
    let mut source = store.source();
    store.admin.add_principal("bob").unwrap();
    assert!(matches!(source.read_changes(), Ok(Changes::Nothing)));
}

#[test]
fn ends_of_every_kind_are_told() {
    let mut store = StoreFile::new();
    store.add_device(UUID);
    store.grant_any();
    let uuid = DeviceUuid::parse(UUID).unwrap();
    store.admin.add_grant("alice", &GrantTarget::Device(uuid), PortRange::ANY, None).unwrap();
    let key = store.issue();
    let mut source = store.source();

    assert_eq!(store.admin.revoke_credential(&key.credential_id().to_string()).unwrap(), Revoked::Now);
    assert_eq!(message(&changes(&mut source).0), ["credential revoked=true"]);

    store.admin.revoke_grant(GrantId(1)).unwrap();
    assert_eq!(message(&changes(&mut source).0), ["grant 1 revoked=true"]);

    store.admin.remove_device(uuid).unwrap();
    assert_eq!(message(&changes(&mut source).0), ["device 1 gone", "grant 2 revoked=true"]);

    store.by_hand().execute_batch("DELETE FROM credentials; DELETE FROM grants WHERE id = 1").unwrap();
    let (seen, _) = changes(&mut source);
    assert_eq!(seen, [Change::CredentialGone(key), Change::GrantGone(GrantId(1))]);
}

#[test]
fn removing_a_principal_ends_it_and_all_that_it_holds() {
    let mut store = StoreFile::new();
    store.issue();
    store.grant_any();
    let mut source = store.source();

    store.admin.remove_principal("alice").unwrap();

    let (seen, _) = changes(&mut source);
    assert_eq!(message(&seen), ["principal 1 gone", "credential revoked=true", "grant 1 revoked=true"]);
    let rows = store.source().read_all().unwrap();
    assert!(rows.credentials[0].revoked && rows.grants[0].revoked);
}

#[test]
fn what_a_deleted_principal_held_is_nobodys_and_absent() {
    let mut store = StoreFile::new();
    store.issue();
    store.grant_any();
    let mut source = store.source();

    store.by_hand().execute_batch("DELETE FROM principals").unwrap();

    assert_eq!(message(&changes(&mut source).0), ["principal 1 gone"]);
    let rows = source.read_all().unwrap();
    assert!(rows.credentials.is_empty() && rows.grants.is_empty());
}

#[test]
fn what_a_view_shows_in_a_tables_place_is_no_word_of_the_store() {
    let mut store = StoreFile::new();
    store.issue();
    store.grant_any();
    let mut source = store.source();
    let by_hand = store.by_hand();
    by_hand
        .execute_batch(
            "ALTER TABLE grants RENAME TO grants_table;
            CREATE VIEW grants AS SELECT id, principal, scope, target, port_min, port_max, created_at, expires_at,
                created_at AS revoked_at FROM grants_table;
            ALTER TABLE credentials RENAME TO credentials_table;
            CREATE VIEW credentials AS SELECT * FROM credentials_table WHERE label = 'shown'",
        )
        .unwrap();

    by_hand
        .execute_batch("UPDATE grants_table SET port_max = 80; UPDATE credentials_table SET label = 'laptop'")
        .unwrap();
    assert_eq!(message(&changes(&mut source).0), ["grant 1 revoked=false", "credential revoked=false"]);
    let rows = source.read_all().unwrap();
    assert!(rows.grants[0].revoked && rows.credentials.is_empty(), "the answer shows what the views do");

    by_hand.execute_batch("UPDATE grants_table SET revoked_at = 1; DELETE FROM credentials_table").unwrap();
    assert_eq!(message(&changes(&mut source).0), ["grant 1 revoked=true", "credential gone"]);
}

#[test]
fn the_outbox_of_the_version_before_is_read_by_its_keys() {
    let mut store = StoreFile::new();
    store.issue();
    store.grant_any();
    store.add_device(UUID);
    let mut source = store.source();
    // As it was written before rows were recorded.
    store
        .by_hand()
        .execute_batch(
            "UPDATE grants SET revoked_at = 1; DELETE FROM devices;
            UPDATE changes SET gone = NULL, revoked = NULL, principal = NULL, scope = NULL",
        )
        .unwrap();
    assert_eq!(message(&changes(&mut source).0), ["grant 1 revoked=true", "device 1 gone"]);
}

#[test]
fn a_row_that_is_left_as_it_is_by_a_conflict_has_not_ended() {
    let mut store = StoreFile::new();
    store.issue();
    store.add_device(UUID);
    let mut source = store.source();
    store
        .by_hand()
        .execute_batch(
            "INSERT OR IGNORE INTO credentials (key_sha256, principal, created_at)
                SELECT key_sha256, principal, 0 FROM credentials;
            INSERT INTO devices (uuid, created_at) SELECT uuid, 0 FROM devices WHERE true ON CONFLICT DO NOTHING",
        )
        .unwrap();
    assert_eq!(message(&changes(&mut source).0), ["credential revoked=false", "device 1 online=true"]);
}

#[test]
fn a_row_that_gets_another_key_ends_the_old_one() {
    let mut store = StoreFile::new();
    let key = store.issue();
    let mut source = store.source();
    store.by_hand().execute("UPDATE credentials SET key_sha256 = ?1", [[9; 32]]).unwrap();
    let (seen, _) = changes(&mut source);
    assert_eq!(seen[0], Change::CredentialGone(key));
    assert!(matches!(seen[1], Change::Credential(row) if row.key == KeyHash::from_bytes([9; 32])));
}

#[test]
fn a_revoked_right_cannot_be_brought_back() {
    let mut store = StoreFile::new();
    store.issue();
    store.grant_any();
    store.admin.remove_principal("alice").unwrap();
    let by_hand = store.by_hand();
    for (statement, message) in [
        ("UPDATE credentials SET revoked_at = NULL", "a revoked credential does not come back"),
        ("UPDATE grants SET revoked_at = NULL", "a revoked grant does not come back"),
        ("UPDATE principals SET removed_at = NULL", "a removed principal does not come back"),
    ] {
        let error = by_hand.execute(statement, []).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
}

#[test]
fn bad_rows_are_quarantined_and_the_others_read() {
    let mut store = StoreFile::new();
    store.add_device(UUID);
    store.grant_any();
    let mut source = store.source();

    store
        .by_hand()
        .execute_batch(
            "UPDATE devices SET address = 'nowhere';
            INSERT INTO devices (uuid, online, created_at) VALUES ('xyz', 1, 0);
            INSERT INTO grants (principal, scope, port_min, port_max, created_at) VALUES
                (1, 'planet', 1, 2, 0), (1, 'any', 0, 70000, 0), (1, 'any', 5, 6, 0);
            INSERT INTO credentials (key_sha256, principal, created_at) VALUES (x'01', 1, 0);",
        )
        .unwrap();

    // A key that cannot be one leaves no way to follow: everything is read.
    assert!(matches!(source.read_changes(), Ok(Changes::Behind)));
    let rows = source.read_all().unwrap();
    assert_eq!((rows.credentials.len(), rows.grants.len(), rows.devices.len()), (0, 2, 0));
    let quarantined: Vec<_> = rows.quarantined.iter().map(|q| format!("{}: {}", q.key, q.reason)).collect();
    assert_eq!(
        quarantined,
        [
            "credentials 1 bytes: key_sha256 is 1 bytes, which is no SHA-256 (32 bytes)",
            "grants 2: scope `planet` is none of any, fleet, device",
            "grants 3: port_max is 70000, which is no port",
            "devices 1: address is `nowhere`, which is no IP address",
            "devices 2: uuid is `xyz`, which is no uuid of 32 or 62 hex digits",
        ]
    );
    assert!(matches!(source.read_changes(), Ok(Changes::Nothing)), "behind once, not for ever");
}

#[test]
fn a_row_that_turns_bad_is_quarantined_among_the_changes() {
    let mut store = StoreFile::new();
    store.add_device(UUID);
    let grant = store.grant_any();
    let mut source = store.source();

    let by_hand = store.by_hand();
    by_hand.execute_batch("UPDATE devices SET address = 'nowhere'; UPDATE grants SET port_min = 0").unwrap();
    let (seen, quarantined) = changes(&mut source);
    assert_eq!((seen, quarantined.len()), (vec![], 2));

    by_hand.execute_batch("UPDATE grants SET revoked_at = 1").unwrap();
    let (seen, quarantined) = changes(&mut source);
    assert_eq!((seen, quarantined.len()), (vec![Change::GrantGone(grant)], 1), "bad, but revoked");
}

#[test]
fn a_pruned_outbox_means_behind() {
    let mut store = StoreFile::new();
    store.add_device(UUID);
    let mut source = store.source();
    store.grant_any();
    store.grant_any();
    store.by_hand().execute_batch(PRUNE_ALL_BUT_THE_LAST).unwrap();
    assert!(matches!(source.read_changes(), Ok(Changes::Behind)));

    source.read_all().unwrap();
    store.grant_any();
    assert_eq!(message(&changes(&mut source).0), ["grant 3 revoked=false"]);
}

#[test]
fn an_outbox_pruned_before_anything_was_seen_means_behind() {
    let mut store = StoreFile::new();
    let mut source = store.source();
    store.grant_any();
    store.grant_any();
    store.by_hand().execute_batch(PRUNE_ALL_BUT_THE_LAST).unwrap();
    assert!(matches!(source.read_changes(), Ok(Changes::Behind)));
}

#[test]
fn more_than_a_hundred_thousand_changes_are_read_by_reading_everything() {
    for (rows, is_behind) in [(100_000, false), (100_001, true)] {
        let store = StoreFile::new();
        let mut source = store.source();
        let insert = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1)
            INSERT INTO changes (relation, key) SELECT 'devices', i FROM n";
        store.by_hand().execute(insert, [rows]).unwrap();
        assert_eq!(matches!(source.read_changes(), Ok(Changes::Behind)), is_behind, "{rows}");
        assert!(matches!(source.read_changes(), Ok(Changes::Nothing)), "{rows}: once");
    }
}

#[test]
fn the_store_prunes_its_outbox_itself_whoever_writes() {
    let store = StoreFile::new();
    let by_hand = store.by_hand();
    let outbox = || {
        let row = |row: &rusqlite::Row<'_>| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?));
        by_hand.query_row("SELECT count(*), max(id) FROM changes", [], row).unwrap()
    };
    let change = |rows: i64| {
        let insert = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1)
            INSERT INTO changes (relation, key) SELECT 'devices', i FROM n";
        by_hand.execute(insert, [rows]).unwrap();
    };
    let (before, _) = outbox();
    change(100_999 - before);
    assert_eq!(outbox(), (100_999, 100_999), "the bound and what comes between two prunings");
    change(1);
    assert_eq!(outbox(), (100_000, 101_000));
}

#[test]
fn a_store_restored_in_place_means_behind() {
    let mut store = StoreFile::new();
    store.add_device(UUID);
    store.grant_any();
    let mut source = store.source();

    // As `.restore` of a backup from before the grant leaves it, with a change of its own since.
    store
        .by_hand()
        .execute_batch(
            "BEGIN; DELETE FROM grants; DELETE FROM changes WHERE id > 1;
            UPDATE sqlite_sequence SET seq = 1 WHERE name = 'changes'; COMMIT",
        )
        .unwrap();
    store.issue();

    assert!(matches!(source.read_changes(), Ok(Changes::Behind)));
    assert_eq!(source.read_all().unwrap().grants, []);
}

#[test]
fn a_file_that_takes_the_place_of_the_store_is_read_instead() {
    let mut store = StoreFile::new();
    store.grant_any();
    let mut source = store.source();

    let mut other = StoreFile::new();
    other.issue();
    drop(other.admin);
    std::fs::rename(other.folder.path().join("store.db"), store.path()).unwrap();
    for leftover in ["store.db-wal", "store.db-shm"] {
        std::fs::remove_file(store.folder.path().join(leftover)).ok();
    }

    assert!(matches!(source.read_changes(), Ok(Changes::Behind)));
    let rows = source.read_all().unwrap();
    assert_eq!((rows.credentials.len(), rows.grants.len()), (1, 0));
}

#[test]
fn a_store_that_is_removed_is_missing_until_it_is_back() {
    let mut store = StoreFile::new();
    store.grant_any();
    let mut source = store.source();
    let aside = store.folder.path().join("aside.db");
    std::fs::rename(store.path(), &aside).unwrap();

    let error = source.read_changes().unwrap_err();
    assert!(matches!(error, StoreError::Missing { .. }), "{error}");
    assert!(error.to_string().contains("`sluicegate store init` creates it"), "{error}");

    std::fs::rename(&aside, store.path()).unwrap();
    assert!(matches!(source.read_changes(), Ok(Changes::Nothing)), "it goes on where it was");
    assert_eq!(source.read_all().unwrap().grants.len(), 1);
}

#[test]
fn a_file_that_is_no_database_is_damaged() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.db");
    std::fs::write(
        &path,
        "a text that is not a database, and quite a bit longer than its header. ".repeat(99),
    )
    .unwrap();
    let error = source_at(&path).read_all().unwrap_err();
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
    assert!(error.to_string().contains("restore it from a backup"), "{error}");
    let error = sqlite::init(&path).unwrap_err();
    assert!(matches!(error, StoreError::Corrupt { .. }), "init must not overwrite: {error}");
}

#[test]
fn overwritten_pages_are_damage() {
    let mut store = StoreFile::new();
    for n in 0..200 {
        store.add_device(&format!("{n:032x}"));
    }
    let path = store.path();
    drop(store.admin);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[4096..].fill(0xa5);
    std::fs::write(&path, bytes).unwrap();
    let error = source_at(&path).read_all().unwrap_err();
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
}

#[test]
fn a_store_of_another_schema_version_names_the_remedy() {
    let store = StoreFile::new();
    for (version, remedy) in [(0, "`sluicegate store init` brings it"), (99, "or a newer one")] {
        store.by_hand().pragma_update(None, "user_version", version).unwrap();
        let error = source_at(&store.path()).read_all().unwrap_err();
        assert!(matches!(error, StoreError::Version { found, .. } if found == version), "{error}");
        assert!(error.to_string().contains(remedy), "{error}");
    }
}

#[test]
fn a_version_that_only_adds_is_read_before_and_after_it_comes() {
    let store = StoreFile::new();
    let mut source = store.source();
    store.by_hand().execute_batch("INSERT INTO schema_additions (version, adds_to) VALUES (9, 4)").unwrap();
    source.read_changes().unwrap();
    source_at(&store.path()).read_all().unwrap();
    assert_eq!(sqlite::init(&store.path()).unwrap(), Initialised::UpToDate);
    // Relays of the version before look at this alone, and at the tables that they know.
    let required: i64 = store.by_hand().pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
    assert_eq!(required, 4);
    store.by_hand().execute_batch("DELETE FROM schema_additions").unwrap();
    let error = source_at(&store.path()).read_all().unwrap_err();
    assert!(matches!(error, StoreError::Version { found: 4, wanted: 5, .. }), "{error}");
}

#[test]
fn a_store_that_is_migrated_under_a_relay_is_told() {
    let store = StoreFile::new();
    let mut source = store.source();
    store.by_hand().execute_batch("PRAGMA user_version = 99").unwrap();
    let error = source.read_changes().unwrap_err();
    assert!(matches!(error, StoreError::Version { found: 99, .. }), "{error}");
}

#[test]
fn an_empty_file_asks_for_init() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.db");
    std::fs::write(&path, "").unwrap();
    let error = source_at(&path).read_all().unwrap_err();
    assert!(matches!(error, StoreError::Version { found: 0, .. }), "{error}");
    assert!(error.to_string().contains("`sluicegate store init` fills it"), "{error}");
}

#[test]
fn another_programs_database_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("other.db");
    let other = Connection::open(&path).unwrap();
    other.execute_batch("CREATE TABLE notes (text); PRAGMA user_version = 3").unwrap();
    let before = std::fs::read(&path).unwrap();

    let error = source_at(&path).read_all().unwrap_err();
    assert!(matches!(error, StoreError::Foreign { .. }), "{error}");
    let error = sqlite::init(&path).unwrap_err();
    assert!(matches!(error, StoreError::Foreign { .. }), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), before);
}

#[test]
fn a_store_that_somebody_holds_exclusively_is_locked() {
    let store = StoreFile::new();
    let path = store.path();
    drop(store.admin);
    let holder = Connection::open(&path).unwrap();
    holder
        .execute_batch("PRAGMA locking_mode = EXCLUSIVE; BEGIN EXCLUSIVE; DELETE FROM changes; COMMIT")
        .unwrap();
    let mut source = source_at(&path);
    let error = source.read_all().unwrap_err();
    assert!(matches!(error, StoreError::Locked { .. }), "{error}");

    drop(holder);
    source.read_all().unwrap();
}

#[test]
fn readers_and_writers_do_not_wait_for_each_other() {
    let mut store = StoreFile::new();
    let mut source = store.source();
    let mut writer = store.by_hand();
    let transaction = writer.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate).unwrap();
    transaction.execute("UPDATE principals SET name = 'bob'", []).unwrap();
    assert!(matches!(source.read_changes(), Ok(Changes::Nothing)), "nothing is committed");
    transaction.commit().unwrap();
    store.admin.add_principal("carol").unwrap();
}

#[test]
fn a_folder_made_for_the_store_is_its_owners_alone() {
    let folder = tempfile::tempdir().unwrap();
    let made = folder.path().join("a/b");
    sqlite::init(&made.join("store.db")).unwrap();
    let mode = std::fs::metadata(&made).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700, "{mode:o}");
}

#[test]
fn init_can_be_repeated() {
    let mut store = StoreFile::new();
    store.grant_any();
    let outcome = sqlite::init(&store.path()).unwrap();
    assert_eq!(outcome, Initialised::UpToDate);
    assert_eq!(store.source().read_all().unwrap().grants.len(), 1);
}
