//! Readers of a store file while the file is restored, replaced, copied over or loses what is beside it. What is written
//! after that comes from another process, whose files are those at the path.

use std::path::{Path, PathBuf};
use std::process::Command;

use rusqlite::Connection;
use rusqlite::backup::Backup;
use sluicegate::authz::{Change, KeyHash};
use sluicegate::config::{Authz, Store as StoreConfig, StoreUrl};
use sluicegate::store::admin::Admin;
use sluicegate::store::{
    KnownPosition, NodeHeartbeat, NodeTable, Position, Relation, RelationAnswer, RelationRows, Standing,
    StoreError, StoreReader, Word, Words, WordsAnswer, node_table, reader, sqlite,
};

use crate::support::BINARY;

/// A store with one token, and the position that its readers share.
struct Store {
    folder: tempfile::TempDir,
    token: String,
    known: KnownPosition,
}

impl Store {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store.db");
        sqlite::init(&path).unwrap();
        let token = admin(&path, |admin| {
            admin.add_principal("alice").unwrap();
            admin.issue_token("alice", None, None).unwrap().token
        });
        Self { folder, token, known: KnownPosition::default() }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("store.db")
    }

    fn beside(&self, suffix: &str) -> PathBuf {
        self.folder.path().join(format!("store.db{suffix}"))
    }

    fn remove_beside(&self, suffixes: &[&str]) {
        for suffix in suffixes {
            std::fs::remove_file(self.beside(suffix)).unwrap();
        }
    }

    /// A copy of the store as it is now, in one file.
    fn backup(&self) -> PathBuf {
        let path = self.folder.path().join("backup.db");
        Connection::open(self.path()).unwrap().execute("VACUUM INTO ?1", [path.to_str().unwrap()]).unwrap();
        path
    }

    /// A reader that has read everything, and has told the others where that was.
    fn reader(&self) -> Box<dyn StoreReader> {
        let mut reader = self.new_reader();
        assert!(matches!(reader.read_words().unwrap().words, Words::Behind), "the first words");
        let answer = reader.read_relation(Relation::Credentials).unwrap();
        self.known.advance(answer.position);
        assert!(matches!(reader.read_words().unwrap().words, Words::Nothing));
        reader
    }

    fn new_reader(&self) -> Box<dyn StoreReader> {
        reader(&self.config(), &Authz::default(), self.known.clone())
    }

    fn config(&self) -> StoreConfig {
        StoreConfig { url: StoreUrl::Sqlite(self.path()), ..StoreConfig::default() }
    }

    fn key(&self) -> KeyHash {
        KeyHash::of_token(self.token.as_bytes())
    }

    /// Revokes the token from another process.
    fn revoke_elsewhere(&self) {
        self.run_elsewhere(&["token", "revoke", &self.key().credential_id().to_string()]);
    }

    fn run_elsewhere(&self, arguments: &[&str]) {
        let mut command = Command::new(BINARY);
        command.args(arguments).env("SLUICEGATE_STORE__URL", format!("sqlite:{}", self.path().display()));
        command.env("HOME", self.folder.path()).env_remove("STATE_DIRECTORY");
        let output = command.output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// True if a reader shows the token as revoked, in a word or after one that says to read the relation.
    fn sees_revocation(&self, reader: &mut dyn StoreReader) -> bool {
        let is_revoked = |change: &Change| matches!(change, Change::Credential(row) if row.revoked);
        match words(reader).words {
            Words::Nothing => false,
            Words::Some { words, .. } => {
                words.iter().any(|word| matches!(word, Word::Row(change) if is_revoked(change)))
            }
            Words::Behind => match relation(reader, Relation::Credentials).rows {
                RelationRows::Credentials(rows) => {
                    rows.iter().any(|row| row.key == self.key() && row.revoked)
                }
                other => panic!("no credentials: {other:?}"),
            },
        }
    }
}

/// Runs commands on a store in this process, and closes it.
fn admin<T>(path: &Path, run: impl FnOnce(&mut Admin) -> T) -> T {
    run(&mut sqlite::open(path).unwrap())
}

/// The next answer. A read during which the files were replaced is told as an error, and the next one succeeds.
fn words(reader: &mut dyn StoreReader) -> WordsAnswer {
    match reader.read_words() {
        Err(StoreError::Replaced { .. }) => reader.read_words().unwrap(),
        other => other.unwrap(),
    }
}

fn relation(reader: &mut dyn StoreReader, relation: Relation) -> RelationAnswer {
    reader.read_relation(relation).unwrap()
}

#[test]
fn positions_of_one_store_grow_with_what_is_committed() {
    let store = Store::new();
    let mut reader = store.reader();
    let before = words(&mut *reader);
    assert_eq!(before.standing, Standing::Newer);
    admin(&store.path(), |admin| admin.add_principal("bob").map(drop).unwrap());
    let after = words(&mut *reader);
    assert_eq!(after.standing, Standing::Newer);
    assert_eq!((after.position.store, after.position.timeline), (before.position.store, 0));
    assert!(after.position.log > before.position.log);
    let read = relation(&mut *reader, Relation::Grants);
    assert_eq!(read.position, after.position);
}

#[test]
fn a_revocation_is_seen_after_what_is_beside_the_store_was_removed() {
    for removed in [&["-wal", "-shm"][..], &["-wal"], &["-shm"]] {
        let store = Store::new();
        let mut reader = store.reader();
        store.remove_beside(removed);
        store.revoke_elsewhere();
        assert!(store.sees_revocation(&mut *reader), "{removed:?} removed");
    }
}

/// As a file system does that is mounted for a moment less.
#[test]
fn a_store_that_was_renamed_away_and_back_is_read_again() {
    let store = Store::new();
    let mut reader = store.reader();
    store.run_elsewhere(&["principal", "add", "bob"]);
    assert!(store.beside("-wal").metadata().unwrap().len() > 0, "its log has what was written");
    let away = store.folder.path().join("away.db");
    std::fs::rename(store.path(), &away).unwrap();
    reader.read_words().unwrap_err();
    std::fs::rename(&away, store.path()).unwrap();
    store.revoke_elsewhere();
    assert!(store.sees_revocation(&mut *reader));
}

#[test]
fn a_revocation_is_seen_after_a_copy_over_the_store() {
    let store = Store::new();
    let backup = store.backup();
    let mut reader = store.reader();
    std::fs::copy(&backup, store.path()).unwrap();
    store.remove_beside(&["-wal", "-shm"]);
    store.revoke_elsewhere();
    assert!(store.sees_revocation(&mut *reader));
}

fn heartbeat() -> NodeHeartbeat<'static> {
    NodeHeartbeat {
        name: "vpn-1",
        forward: "127.0.0.1:9".parse().unwrap(),
        devices: None,
        process: None,
        max_age: std::time::Duration::from_secs(15),
    }
}

/// SQLite shares the index of the log among the connections of a process, so that one that stays open would keep the
/// deleted one in use for all.
#[test]
fn all_readers_and_writers_of_a_process_leave_replaced_files_together() {
    let store = Store::new();
    let config = sluicegate::config::Config { store: store.config(), ..Default::default() };
    let mut nodes: NodeTable = node_table(&config);
    let mut readers: Vec<_> = (0..3).map(|_| store.reader()).collect();
    nodes.write(&heartbeat(), None).unwrap();

    store.remove_beside(&["-wal", "-shm"]);
    store.revoke_elsewhere();
    for reader in &mut readers {
        assert!(store.sees_revocation(&mut **reader));
    }
    nodes.write(&heartbeat(), None).unwrap();
    let found: i64 = Connection::open(store.path())
        .unwrap()
        .query_row("SELECT count(*) FROM nodes JOIN credentials ON revoked_at IS NOT NULL", [], |row| {
            row.get(0)
        })
        .unwrap();
    assert_eq!(found, 1, "a heartbeat and the revocation");
}

/// Restores `backup` over `store`.
type Restore = fn(store: &Store, backup: &Path);

const RESTORES: [(&str, Restore); 3] = [
    ("renamed", |store, backup| {
        std::fs::rename(backup, store.path()).unwrap();
        store.remove_beside(&["-wal", "-shm"]);
    }),
    ("copied over", |store, backup| {
        std::fs::copy(backup, store.path()).unwrap();
        store.remove_beside(&["-wal", "-shm"]);
    }),
    (".restore", |store, backup| {
        let mut to = Connection::open(store.path()).unwrap();
        let from = Connection::open(backup).unwrap();
        Backup::new(&from, &mut to)
            .unwrap()
            .run_to_completion(1000, std::time::Duration::ZERO, None)
            .unwrap();
    }),
];

#[test]
fn a_restored_backup_is_older_until_it_is_accepted() {
    for (way, restore) in RESTORES {
        let store = Store::new();
        let backup = store.backup();
        admin(&store.path(), |admin| admin.add_principal("bob").map(drop).unwrap());
        let mut reader = store.reader();

        restore(&store, &backup);
        let answer = words(&mut *reader);
        assert!(matches!(answer.words, Words::Behind), "{way}: {answer:?}");
        assert_eq!(answer.standing, Standing::Older, "{way}");
        assert_eq!(relation(&mut *reader, Relation::Credentials).standing, Standing::Older, "{way}");

        // It goes on, past the number that was known, and is still not the history that was followed.
        store.run_elsewhere(&["principal", "add", "carol"]);
        store.run_elsewhere(&["principal", "add", "dave"]);
        let answer = words(&mut *reader);
        assert!(matches!(&answer.words, Words::Some { words, .. } if words.len() == 2), "{way}: {answer:?}");
        assert_eq!(answer.standing, Standing::Older, "{way}");
        assert_eq!(
            store.new_reader().read_words().unwrap().standing,
            Standing::Older,
            "{way}: another reader"
        );

        store.known.replace(Some(answer.position));
        assert_eq!(words(&mut *reader).standing, Standing::Newer, "{way}, and accepted");
    }
}

#[test]
fn a_copy_of_the_present_in_place_of_the_store_is_the_same_store() {
    let store = Store::new();
    let mut reader = store.reader();
    let before = words(&mut *reader).position;
    let copy = store.backup();
    std::fs::rename(copy, store.path()).unwrap();
    store.remove_beside(&["-wal", "-shm"]);

    let answer = words(&mut *reader);
    assert_eq!((answer.standing, answer.position), (Standing::Newer, before));
    assert!(matches!(answer.words, Words::Nothing), "{answer:?}");
    store.revoke_elsewhere();
    assert!(store.sees_revocation(&mut *reader));
}

#[test]
fn another_store_at_the_path_is_elsewhere() {
    let store = Store::new();
    let mut reader = store.reader();
    std::fs::remove_file(store.path()).unwrap();
    let error = reader.read_words().unwrap_err();
    assert!(matches!(error, StoreError::Missing { .. }), "{error}");
    store.remove_beside(&["-wal", "-shm"]);

    store.run_elsewhere(&["store", "init"]);
    let answer = words(&mut *reader);
    assert!(matches!(answer.words, Words::Behind));
    assert_eq!(answer.standing, Standing::Elsewhere);
    assert_eq!(relation(&mut *reader, Relation::Credentials).standing, Standing::Elsewhere);
}

/// The log of the file before would be read as if it belonged to the new one.
#[test]
fn a_file_put_in_place_beside_the_log_of_another_one_is_refused() {
    let store = Store::new();
    let copy = store.backup();
    let mut reader = store.reader();
    store.run_elsewhere(&["principal", "add", "bob"]);
    store.known.advance(words(&mut *reader).position);
    std::fs::rename(copy, store.path()).unwrap();

    for _ in 0..2 {
        let error = reader.read_words().unwrap_err();
        assert!(matches!(error, StoreError::LeftLog { .. }), "{error}");
        assert!(error.to_string().contains("store.db-wal and its -shm"), "{error}");
    }
    store.remove_beside(&["-wal", "-shm"]);
    assert_eq!(words(&mut *reader).standing, Standing::Older);
}

#[test]
fn a_symbolic_link_that_leads_to_another_store_is_followed() {
    let (store, other) = (Store::new(), Store::new());
    let link = store.folder.path().join("link.db");
    std::os::unix::fs::symlink(store.path(), &link).unwrap();
    let config = StoreConfig { url: StoreUrl::Sqlite(link.clone()), ..StoreConfig::default() };
    let mut reader = reader(&config, &Authz::default(), KnownPosition::default());
    let before = words(&mut *reader).position;
    std::fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink(other.path(), &link).unwrap();

    let answer = words(&mut *reader);
    assert!(matches!(answer.words, Words::Behind), "{answer:?}");
    assert_ne!(answer.position.store, before.store);
}

#[test]
fn the_position_does_not_go_back_with_the_outbox() {
    let store = Store::new();
    let mut reader = store.reader();
    let Position { log: before, .. } = words(&mut *reader).position;
    Connection::open(store.path()).unwrap().execute_batch("DELETE FROM changes").unwrap();
    let answer = words(&mut *reader);
    assert_eq!((answer.position.log, answer.standing), (before, Standing::Newer));
    assert!(matches!(answer.words, Words::Nothing), "nothing was written: {answer:?}");
    store.revoke_elsewhere();
    assert!(store.sees_revocation(&mut *reader), "words go on where the row before them is gone");
}
