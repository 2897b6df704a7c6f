//! The reader of a store on PostgreSQL: relations one by one with their positions, and the words of the outbox.

mod follow;
mod positions;
mod relations;
mod words;

use sluicegate::config::{Authz, Queries, RelationQuery};
use sluicegate::store::{self, KnownPosition, Relation, RelationRows, StoreReader, Word, Words};

use crate::support::{Cluster, store_at, wait_for};

type Reader = Box<dyn StoreReader>;

fn reader(url: &str) -> Reader {
    reader_with(url, Queries::default(), &KnownPosition::default())
}

fn reader_with(url: &str, queries: Queries, known: &KnownPosition) -> Reader {
    let authz = Authz { queries, reread: std::time::Duration::ZERO, ..Authz::default() };
    store::reader(&store_at(url), &authz, known.clone())
}

/// A reader that follows the outbox from now on.
fn following(url: &str, queries: Queries) -> Reader {
    let mut reader = reader_with(url, queries, &KnownPosition::default());
    assert!(matches!(reader.read_words().unwrap().words, Words::Behind));
    reader
}

fn query(sql: &str) -> Option<RelationQuery> {
    Some(RelationQuery { file: "test.sql".into(), sql: sql.to_owned() })
}

/// The words that there are now.
fn words(reader: &mut Reader) -> Vec<Word> {
    match reader.read_words().unwrap().words {
        Words::Nothing => Vec::new(),
        Words::Some { words, .. } => words,
        Words::Behind => panic!("the reader is behind"),
    }
}

/// Reads until a word `is_wanted`; all words until then.
fn wait_for_word(reader: &mut Reader, is_wanted: impl Fn(&Word) -> bool) -> Option<Vec<Word>> {
    let mut all = Vec::new();
    wait_for(|| {
        all.extend(words(reader));
        all.iter().any(&is_wanted).then(|| all.clone())
    })
}

/// Number of rows that the reader gives of a relation.
fn rows(reader: &mut Reader, relation: Relation) -> usize {
    match reader.read_relation(relation).unwrap().rows {
        RelationRows::Credentials(rows) => rows.len(),
        RelationRows::Grants(rows) => rows.len(),
        RelationRows::Devices(rows) => rows.len(),
        RelationRows::Unchanged => panic!("unchanged"),
    }
}

fn wait_until_replayed(standby: &Cluster, primary: &Cluster) {
    // Makes all of the log reach the standby, unflushed pages too.
    primary.client("postgres").batch_execute("CHECKPOINT").unwrap();
    let sql = "SELECT pg_current_wal_insert_lsn()::text";
    let written: String = primary.client("postgres").query_one(sql, &[]).unwrap().get(0);
    let sql = "SELECT coalesce(pg_last_wal_replay_lsn() >= $1::text::pg_lsn, false)";
    let has_replayed =
        || standby.client("postgres").query_one(sql, &[&written]).unwrap().get::<_, bool>(0).then_some(());
    wait_for(has_replayed).unwrap();
}

/// Makes a standby a primary, and waits until it is one.
fn promote(standby: &Cluster) {
    standby.client("postgres").batch_execute("SELECT pg_promote()").unwrap();
    let sql = "SELECT NOT pg_is_in_recovery()";
    wait_for(|| standby.client("postgres").query_one(sql, &[]).unwrap().get::<_, bool>(0).then_some(()))
        .unwrap();
}
