//! What a reader of a store file says: one relation at a time, and the words on single rows.

use std::time::Duration;

use rusqlite::Connection;
use sluicegate::authz::{Change, DeviceUuid, GrantId, PrincipalId};
use sluicegate::config::{Authz, Queries, RelationQuery, Store as StoreConfig, StoreUrl};
use sluicegate::store::admin::{NewDevice, Revoked};
use sluicegate::store::{
    Initialised, KnownPosition, Relation, RelationRows, RowKey, Standing, StoreError, StoreReader, Word,
    Words, reader, sqlite,
};

use crate::support::{StoreFile, wait_for};

impl StoreFile {
    fn execute(&self, sql: &str) {
        self.by_hand().execute_batch(sql).unwrap();
    }

    fn add_numbered_device(&mut self, number: u8) {
        let uuid = DeviceUuid::parse(&format!("{number:032x}")).unwrap();
        let (name, fleet, address, node) = (None, None, None, None);
        self.admin.add_device(&NewDevice { uuid, name, fleet, address, node, online: true }).unwrap();
    }

    /// A query in a file of its own, as operators have them.
    fn query(&self, name: &str, sql: &str) -> Option<RelationQuery> {
        let file = self.folder.path().join(name);
        std::fs::write(&file, sql).unwrap();
        Some(RelationQuery::try_from(file).unwrap())
    }

    /// A reader by `queries` that has reached the present.
    fn reader_by(&self, queries: Queries) -> Box<dyn StoreReader> {
        let config = StoreConfig { url: StoreUrl::Sqlite(self.path()), ..StoreConfig::default() };
        let authz = Authz { queries, reread: Duration::from_millis(50), ..Authz::default() };
        let mut reader = reader(&config, &authz, KnownPosition::default());
        assert!(matches!(reader.read_words().unwrap().words, Words::Behind), "the first words");
        reader
    }

    fn reader(&self) -> Box<dyn StoreReader> {
        self.reader_by(Queries::default())
    }
}

/// The next words, and the keys of the rows that are quarantined with them.
fn words(reader: &mut dyn StoreReader) -> (Vec<Word>, Vec<RowKey>) {
    match reader.read_words().unwrap().words {
        Words::Nothing => Default::default(),
        Words::Some { words, quarantined } => (words, quarantined.into_iter().map(|bad| bad.key).collect()),
        Words::Behind => panic!("it is behind"),
    }
}

/// Each word in short.
fn named(words: &[Word]) -> Vec<String> {
    let name = |word: &Word| match word {
        Word::Row(Change::Credential(row)) => format!("credential revoked={}", row.revoked),
        Word::Row(Change::CredentialGone(_)) => "credential gone".to_owned(),
        Word::Row(Change::Grant(row)) => format!("grant {} revoked={}", row.id.0, row.revoked),
        Word::Row(Change::GrantGone(id)) => format!("grant {} gone", id.0),
        Word::Row(Change::Device(row)) => format!("device {}", row.id.0),
        Word::Row(Change::DeviceGone(id)) => format!("device {} gone", id.0),
        Word::Row(Change::PrincipalGone(id)) => format!("principal {} gone", id.0),
        Word::Ended(RowKey::Credential(_)) => "credential ended".to_owned(),
        Word::Live(RowKey::Credential(_)) => "credential live".to_owned(),
        Word::Ended(key) => format!("{key} ended"),
        Word::Live(key) => format!("{key} live"),
        Word::PrincipalEnded(id) => format!("principal {} ended", id.0),
        Word::PrincipalLive(id) => format!("principal {} live", id.0),
    };
    words.iter().map(name).collect()
}

fn next(reader: &mut dyn StoreReader) -> Vec<String> {
    named(&words(reader).0)
}

#[test]
fn words_of_every_kind_come_in_the_order_of_their_commits() {
    let mut store = StoreFile::new();
    let mut reader = store.reader();
    assert_eq!(next(&mut *reader), [""; 0]);
    store.issue();
    store.grant_any();
    store.add_numbered_device(1);
    assert_eq!(next(&mut *reader), ["credential revoked=false", "grant 1 revoked=false", "device 1"]);
    store.admin.revoke_grant(GrantId(1)).unwrap();
    store.execute("DELETE FROM devices; DELETE FROM credentials");
    assert_eq!(next(&mut *reader), ["grant 1 revoked=true", "device 1 gone", "credential gone"]);
    assert_eq!(next(&mut *reader), [""; 0]);
}

#[test]
fn a_principal_that_ends_or_comes_to_exist_has_a_word_of_its_own() {
    let mut store = StoreFile::new();
    let mut reader = store.reader();
    store.admin.add_principal("bob").unwrap();
    assert_eq!(next(&mut *reader), ["principal 2 live"]);
    store.admin.remove_principal("bob").unwrap();
    assert_eq!(next(&mut *reader), ["principal 2 ended"]);
    store.execute("DELETE FROM principals WHERE id = 1");
    assert_eq!(next(&mut *reader), ["principal 1 ended"]);
    store.execute("INSERT INTO principals (id, name, created_at) VALUES (1, 'alice', 0)");
    assert_eq!(next(&mut *reader), ["principal 1 live"], "an undo by hand");
    store.execute("UPDATE principals SET id = 9 WHERE id = 1");
    assert_eq!(next(&mut *reader), ["principal 1 ended", "principal 9 live"]);
}

/// REPLACE deletes what is in its way without the triggers of a DELETE.
#[test]
fn a_row_that_replaces_another_one_ends_it() {
    let mut store = StoreFile::new();
    store.issue();
    store.add_numbered_device(1);
    store.add_numbered_device(2);
    let mut reader = store.reader();
    store.execute(
        "INSERT OR REPLACE INTO credentials (id, key_sha256, principal, created_at) VALUES (1, zeroblob(32), 1, 0)",
    );
    assert_eq!(next(&mut *reader), ["credential gone", "credential revoked=false"]);
    store.execute(
        "INSERT OR REPLACE INTO devices (uuid, created_at) SELECT uuid, 0 FROM devices WHERE id = 1",
    );
    assert_eq!(next(&mut *reader), ["device 1 gone", "device 3"]);
    store.execute("UPDATE OR REPLACE devices SET id = 2 WHERE id = 3");
    assert_eq!(next(&mut *reader), ["device 3 gone", "device 2"]);
    store.issue();
    next(&mut *reader);
    store.execute("UPDATE OR REPLACE credentials SET key_sha256 = zeroblob(32) WHERE id = 2");
    assert_eq!(next(&mut *reader), ["credential gone", "credential revoked=false"]);
}

#[test]
fn a_row_that_does_not_decode_ends_its_right_if_it_says_so() {
    let mut store = StoreFile::new();
    store.grant_any();
    store.grant_any();
    let mut reader = store.reader();
    store.execute("UPDATE grants SET scope = 'planet', revoked_at = iif(id = 2, 1, NULL)");
    let (words, quarantined) = words(&mut *reader);
    assert_eq!(named(&words), ["grants 2 ended"]);
    assert_eq!(quarantined, [RowKey::Grant(GrantId(1)), RowKey::Grant(GrantId(2))]);
}

#[test]
fn of_a_relation_with_a_query_of_the_operators_words_say_only_what_has_ended() {
    let mut store = StoreFile::new();
    let replaced = "SELECT id AS grant_id, 42 AS principal, 'any' AS scope, NULL AS target, 1 AS port_min, 2 AS port_max,
        NULL AS expires_at, 0 AS revoked FROM grants";
    let queries = Queries { grants: store.query("grants", replaced), ..Queries::default() };
    let mut reader = store.reader_by(queries);
    assert!(!reader.follows_outbox(), "the query may read what no outbox names");
    for _ in 0..4 {
        store.grant_any();
    }
    store.issue();
    let live = (1..=4).map(|id| format!("grants {id} live"));
    let expected: Vec<_> = live.chain(["credential revoked=false".to_owned()]).collect();
    assert_eq!(next(&mut *reader), expected);
    assert_eq!(store.admin.revoke_grant(GrantId(1)).unwrap(), Revoked::Now);
    store.execute("DELETE FROM grants WHERE id = 2; UPDATE grants SET expires_at = 1 WHERE id = 3");
    store.execute("UPDATE grants SET expires_at = 99999999999999 WHERE id = 4");
    assert_eq!(next(&mut *reader), ["grants 1 ended", "grants 2 ended", "grants 3 ended", "grants 4 live"]);
    match reader.read_relation(Relation::Grants).unwrap().rows {
        RelationRows::Grants(rows) => assert!(rows.iter().all(|row| row.principal == PrincipalId(42))),
        other => panic!("no grants: {other:?}"),
    }
}

#[test]
fn words_go_on_from_a_bookmark_in_another_process() {
    let mut store = StoreFile::new();
    let mut reader = store.reader();
    store.grant_any();
    next(&mut *reader);
    let bookmark = reader.bookmark().unwrap();
    drop(reader);
    store.grant_any();

    let config = StoreConfig { url: StoreUrl::Sqlite(store.path()), ..StoreConfig::default() };
    let new_reader = || sluicegate::store::reader(&config, &Authz::default(), KnownPosition::default());
    let mut resumed = new_reader();
    assert_eq!(resumed.bookmark(), None);
    resumed.resume(bookmark.clone());
    assert_eq!(next(&mut *resumed), ["grant 2 revoked=false"]);

    store.execute("DELETE FROM changes WHERE id <= (SELECT max(id) FROM changes)");
    store.grant_any();
    let mut pruned = new_reader();
    pruned.resume(bookmark);
    let answer = pruned.read_words().unwrap();
    assert!(matches!(answer.words, Words::Behind), "the rows after the bookmark are gone: {answer:?}");
    assert_eq!(next(&mut *pruned), [""; 0]);

    let mut garbled = new_reader();
    garbled.resume(sluicegate::store::Bookmark(vec![7; 3]));
    assert!(matches!(garbled.read_words().unwrap().words, Words::Behind));
}

#[test]
fn a_relation_that_breaks_its_contract_stops_no_other_one() {
    let mut store = StoreFile::new();
    store.issue();
    store.grant_any();
    let queries =
        Queries { grants: store.query("grants", "SELECT id AS grant FROM grants"), ..Queries::default() };
    let mut reader = store.reader_by(queries);
    let error = reader.read_relation(Relation::Grants).unwrap_err();
    assert!(error.to_string().contains("column 1 of grants is `grant`, wanted is `grant_id`"), "{error}");
    let rows = reader.read_relation(Relation::Credentials).unwrap().rows;
    assert!(matches!(rows, RelationRows::Credentials(rows) if rows.len() == 1));
    assert_eq!(store.admin.revoke_grant(GrantId(1)).unwrap(), Revoked::Now);
    assert_eq!(next(&mut *reader), ["grants 1 ended"], "the outbox says so all the same");
}

#[test]
fn a_relation_is_unchanged_until_one_of_its_rows_changes() {
    let mut store = StoreFile::new();
    let mut reader = store.reader();
    let mut is_unchanged =
        |relation| matches!(reader.read_relation(relation).unwrap().rows, RelationRows::Unchanged);
    assert!(!is_unchanged(Relation::Grants) && !is_unchanged(Relation::Devices));
    assert!(is_unchanged(Relation::Grants) && is_unchanged(Relation::Devices));
    store.grant_any();
    assert!(!is_unchanged(Relation::Grants) && is_unchanged(Relation::Devices));
}

const ENDED: &str = "SELECT relation, id, ended_at FROM gone";
const GONE: &str = "CREATE TABLE gone (relation, id, ended_at)";

/// A file of another program, whose query for relation `ended` is `sql`.
fn foreign(sql: &str) -> (StoreFile, Box<dyn StoreReader>) {
    let folder = tempfile::tempdir().unwrap();
    Connection::open(folder.path().join("store.db")).unwrap().execute_batch(GONE).unwrap();
    let aside = tempfile::tempdir().unwrap();
    sqlite::init(&aside.path().join("unused.db")).unwrap();
    let admin = sqlite::open(&aside.path().join("unused.db")).unwrap();
    let store = StoreFile { folder, admin };
    let nothing = |columns: &str| format!("SELECT {columns} WHERE 0");
    let queries = Queries {
        credentials: store
            .query("credentials", &nothing("1 key_sha256, 2 principal, 3 expires_at, 4 revoked")),
        grants: store.query("grants", "SELECT nothing FROM nowhere"),
        devices: store.query("devices", "SELECT nothing FROM nowhere"),
        ended: store.query("ended", sql),
    };
    let reader = store.reader_by(queries);
    (store, reader)
}

#[test]
fn ends_that_a_foreign_schema_records_are_words() {
    let (store, mut reader) = foreign(ENDED);
    store.execute("INSERT INTO gone VALUES ('grants', 5, 20), ('principals', '7', 10)");
    assert_eq!(next(&mut *reader), ["principal 7 ended", "grants 5 ended"]);
    store.execute("INSERT INTO gone VALUES ('credentials', hex(zeroblob(32)), 5), ('devices', 'x', 5)");
    // The query rests for ten times as long as it took.
    let found = wait_for(|| Some(words(&mut *reader)).filter(|found| found.0.len() + found.1.len() > 0));
    let (words, quarantined) = found.unwrap();
    assert_eq!(named(&words), ["credential ended"]);
    assert_eq!(quarantined[0].to_string(), "devices in relation ended");
    assert_eq!(next(&mut *reader), [""; 0]);
    let answer = reader.read_words().unwrap();
    assert_eq!((answer.standing, answer.position.log), (Standing::Newer, 0));
}

#[test]
fn a_query_for_ended_that_is_broken_or_endless_keeps_no_word_back() {
    let endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)
        SELECT 'grants' AS relation, i AS id, 1 AS ended_at FROM n WHERE i < 0";
    for (sql, message) in [
        ("SELECT relation, key AS id FROM changes", "ended.ended_at is missing, wanted is timestamptz"),
        (endless, "the query for ended on"),
    ] {
        let mut store = StoreFile::new();
        let queries = Queries { ended: store.query("ended", sql), ..Queries::default() };
        let mut reader = store.reader_by(queries);
        store.grant_any();
        assert_eq!(next(&mut *reader), ["grant 1 revoked=false"], "{message}");
        let error = reader.read_words().unwrap_err();
        assert!(error.to_string().contains(message), "{error}");
        store.grant_any();
        assert_eq!(next(&mut *reader), ["grant 2 revoked=false"], "{message}");
    }
}

#[test]
fn a_store_of_the_version_before_gets_an_identity_and_keeps_its_outbox() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.db");
    let connection = Connection::open(&path).unwrap();
    connection.execute_batch(include_str!("../../src/store/schema/sqlite/0001_reference.sql")).unwrap();
    connection.execute_batch(include_str!("../../src/store/schema/sqlite/0002_what_nodes_hold.sql")).unwrap();
    connection
        .execute_batch(
            "PRAGMA journal_mode = WAL; PRAGMA application_id = 0x534c4754; PRAGMA user_version = 2;
            INSERT INTO principals (name, created_at) VALUES ('alice', 0);
            INSERT INTO credentials (key_sha256, principal, created_at) VALUES (zeroblob(32), 1, 0)",
        )
        .unwrap();
    let config = StoreConfig { url: StoreUrl::Sqlite(path.clone()), ..StoreConfig::default() };
    let mut reader = reader(&config, &Authz::default(), KnownPosition::default());
    let error = reader.read_relation(Relation::Credentials).unwrap_err();
    assert!(matches!(error, StoreError::Version { found: 2, wanted: 5, .. }), "{error}");

    assert_eq!(sqlite::init(&path).unwrap(), Initialised::Migrated { from: 2 });
    let answer = reader.read_relation(Relation::Credentials).unwrap();
    assert_eq!((answer.position.log, answer.standing), (1, Standing::Newer));
    assert_ne!(answer.position.store.0, [0; 16]);
    let identity = "UPDATE store_identity SET id = zeroblob(16)";
    assert!(
        connection.execute_batch(identity).unwrap_err().to_string().contains("identity of a store stays")
    );
}
