//! The relay's side of a store file: one relation at a time, and the words of the outbox. It reads and never writes.
//!
//! `PRAGMA data_version` says whether anybody else has committed, so that a poll of a quiet store costs a few system
//! calls. In WAL mode no read waits for a writer or makes one wait. An answer counts only if the files that were read
//! are those at the path, before and after.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};
use serde::{Deserialize, Serialize};

use super::connection::{FileMoment, SharedConnection};
use super::ended_reader::EndedReader;
use super::outbox_follower::{OutboxBookmark, OutboxFollower, OutboxPoll};
use super::position::Place;
use super::relations::SqliteRelations;
use super::time_limit::TimeLimit;
use super::words::ReadWords;
use super::{SqlitePath, schema};
use crate::authz::UnixMillis;
use crate::config::{Authz, Queries, RelationQuery, Store};
use crate::store::fingerprints::AnswerFingerprints;
use crate::store::relations::DecodedRelation;
use crate::store::{
    Bookmark, Comparison, KnownPosition, Relation, RelationAnswer, StoreError, StoreReader, Words,
    WordsAnswer,
};

/// A reader on an SQLite file.
pub struct SqliteReader {
    path: SqlitePath,
    queries: Queries,
    relations: SqliteRelations,
    connection: SharedConnection,
    known: KnownPosition,
    answers: AnswerFingerprints,
    outbox: OutboxFollower,
    /// `None` without a query for relation `ended`.
    ended: Option<EndedReader>,
    limits: Limits,
}

/// What [`Bookmark`] holds, in postcard.
#[derive(Clone, Copy, Serialize, Deserialize)]
struct ReaderBookmark {
    outbox: OutboxBookmark,
    ended_until: Option<UnixMillis>,
}

/// Times that reads may take.
#[derive(Clone, Copy)]
struct Limits {
    relation: Duration,
    words: Duration,
    reread: Duration,
}

impl SqliteReader {
    pub fn new(path: &Path, store: &Store, authz: &Authz, known: KnownPosition) -> Self {
        let path = SqlitePath::new(path);
        let limits =
            Limits { relation: FULL_READ_TIMEOUT, words: store.statement_timeout, reread: authz.reread };
        Self {
            connection: SharedConnection::new(path.clone(), open),
            path,
            relations: SqliteRelations::new(&authz.queries),
            ended: ended_reader(&authz.queries, limits.reread),
            queries: authz.queries.clone(),
            known,
            answers: AnswerFingerprints::new(),
            outbox: OutboxFollower::default(),
            limits,
        }
    }

    /// Reads relation `ended` if it is due, and adds its new ends to `read`.
    fn read_ended(&mut self, place: Place, file: FileMoment, read: &mut ReadWords) -> Result<(), StoreError> {
        let Some(ended) = self.ended.as_mut().filter(|ended| ended.is_due(file)) else {
            return Ok(());
        };
        // Where an outbox is followed, its next words must not wait for this query.
        let limit = if place.is_ours { ENDED_BESIDE_OUTBOX_TIMEOUT } else { self.limits.relation };
        let path = &self.path;
        self.connection.with(|open| {
            ended.read(open, file, limit, path, read);
            Ok(())
        })?;
        Ok(())
    }
}

impl StoreReader for SqliteReader {
    fn read_relation(&mut self, relation: Relation) -> Result<RelationAnswer, StoreError> {
        let known = self.known.get();
        let (path, relations) = (&self.path, &self.relations);
        let is_replaced = is_replaced(relation, &self.queries);
        let limit = TimeLimit { relation: relation.name(), limit: self.limits.relation };
        let (decoded, place) = self.connection.with(|open| {
            limit.run(&mut open.connection, path, |connection| {
                let transaction = connection.transaction().map_err(|error| path.error(error))?;
                // A query of the operator's reads whatever is there.
                let is_ours = if is_replaced {
                    schema::is_ours(&transaction, path).unwrap_or(false)
                } else {
                    schema::check(&transaction, path).map(|()| true)?
                };
                let place = Place::of(&transaction, path, known, is_ours)?;
                Ok((relations.read_one(relation, &transaction, path)?, place))
            })
        })?;
        let DecodedRelation { rows, quarantined, ended } = decoded;
        let rows = self.answers.record(relation, rows, &quarantined, &ended);
        let Place { position, standing, .. } = place;
        Ok(RelationAnswer { rows, quarantined, ended, position, durable: position, standing })
    }

    fn read_words(&mut self) -> Result<WordsAnswer, StoreError> {
        let known = self.known.get();
        let limit = TimeLimit { relation: "changes", limit: self.limits.words };
        let poll = self.outbox.poll(&mut self.connection, &self.path, &self.queries, known, limit)?;
        let OutboxPoll { place, file, read } = poll;
        let words = match read {
            None => Words::Behind,
            Some(mut read) => {
                self.read_ended(place, file, &mut read)?;
                let ReadWords { words, quarantined } = read;
                if words.is_empty() && quarantined.is_empty() {
                    if let Some(error) = self.ended.as_mut().and_then(EndedReader::pop_error) {
                        return Err(error);
                    }
                    Words::Nothing
                } else {
                    Words::Some { words, quarantined }
                }
            }
        };
        let Place { position, standing, .. } = place;
        Ok(WordsAnswer { words, position, durable: position, standing, readable_since: None })
    }

    fn bookmark(&self) -> Option<Bookmark> {
        let outbox = self.outbox.bookmark()?;
        let ended_until = self.ended.as_ref().and_then(EndedReader::newest);
        postcard::to_allocvec(&ReaderBookmark { outbox, ended_until }).ok().map(Bookmark)
    }

    /// A bookmark that this program cannot read counts as none: the next words are [`Words::Behind`].
    fn resume(&mut self, bookmark: Bookmark) {
        let bookmark: Option<ReaderBookmark> = postcard::from_bytes(&bookmark.0).ok();
        self.outbox = OutboxFollower::at(bookmark.map(|bookmark| bookmark.outbox));
        if let Some(ended) = &mut self.ended {
            ended.resume(bookmark.and_then(|bookmark| bookmark.ended_until));
        }
    }

    fn compare(&mut self, candidate: &Queries) -> Result<Comparison, StoreError> {
        let (path, running, candidate) = (&self.path, &self.relations, SqliteRelations::new(candidate));
        let limit = TimeLimit { relation: "the comparison", limit: self.limits.relation };
        self.connection.with(|open| {
            limit.run(&mut open.connection, path, |connection| {
                let transaction = connection.transaction().map_err(|error| path.error(error))?;
                let running = running.read(&transaction, path)?;
                Ok(Comparison { running, candidate: candidate.read(&transaction, path)? })
            })
        })
    }

    fn replace_queries(&mut self, queries: Queries) {
        self.relations = SqliteRelations::new(&queries);
        if queries.ended != self.queries.ended {
            self.ended = ended_reader(&queries, self.limits.reread);
        }
        self.queries = queries;
        self.answers.clear();
        self.outbox.reread();
    }

    fn follows_outbox(&self) -> bool {
        !self.queries.are_replaced()
    }

    fn describe(&self) -> String {
        self.path.describe()
    }
}

const fn is_replaced(relation: Relation, queries: &Queries) -> bool {
    match relation {
        Relation::Credentials => queries.credentials.is_some(),
        Relation::Grants => queries.grants.is_some(),
        Relation::Devices => queries.devices.is_some(),
    }
}

fn ended_reader(queries: &Queries, reread_every: Duration) -> Option<EndedReader> {
    let RelationQuery { sql, .. } = queries.ended.as_ref()?;
    Some(EndedReader::new(sql.clone(), reread_every))
}

/// Opens a connection that cannot write. The relay trusts a store with its rows alone.
fn open(path: &SqlitePath) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(&path.path, flags)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.pragma_update(None, "query_only", true)?;
    connection.pragma_update(None, "trusted_schema", false)?;
    Ok(connection)
}

/// Time for one whole relation, which may be tens of millions of rows. As on PostgreSQL.
const FULL_READ_TIMEOUT: Duration = Duration::from_secs(15 * 60);

/// Time for relation `ended` where an outbox is read by the same thread, whose words count within 250 ms.
const ENDED_BESIDE_OUTBOX_TIMEOUT: Duration = Duration::from_millis(100);

/// Time that a read waits for a lock, which no ordinary writer holds in WAL mode.
const BUSY_TIMEOUT: Duration = Duration::from_millis(250);

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::Instant;

    use super::*;
    use crate::store::sqlite;

    const ENDLESS: &str = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)
        SELECT i AS grant_id, 1 AS principal, 'any' AS scope, NULL AS target, 1 AS port_min, 2 AS port_max,
        NULL AS expires_at, 0 AS revoked FROM n WHERE i < 0";

    struct Lab(tempfile::TempDir);

    impl Lab {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            sqlite::init(&folder.path().join("store.db")).unwrap();
            Self(folder)
        }

        fn reader(&self, grants: Option<&str>) -> SqliteReader {
            let query = |sql: &str| RelationQuery { file: "grants.sql".into(), sql: sql.to_owned() };
            let queries = Queries { grants: grants.map(query), ..Queries::default() };
            let authz = Authz { queries, ..Authz::default() };
            SqliteReader::new(
                &self.0.path().join("store.db"),
                &Store::default(),
                &authz,
                KnownPosition::default(),
            )
        }
    }

    #[test]
    fn the_relays_connection_cannot_write() {
        let lab = Lab::new();
        let mut reader = lab.reader(None);
        reader.read_words().unwrap();
        let written = reader.connection.with(|open| {
            open.connection.execute("DELETE FROM changes", []).map_err(|error| reader.path.error(error))
        });
        assert!(matches!(written, Err(StoreError::Unreadable { .. })), "{written:?}");
    }

    #[test]
    fn a_runaway_query_for_one_relation_ends_at_its_time_limit_and_stops_no_other() {
        let lab = Lab::new();
        let mut reader = lab.reader(Some(ENDLESS));
        reader.limits.relation = Duration::from_millis(50);
        let error = reader.read_relation(Relation::Grants).unwrap_err();
        assert!(matches!(error, StoreError::SlowQuery { relation: "grants", .. }), "{error}");
        reader.read_relation(Relation::Devices).unwrap();
    }

    #[test]
    fn a_runaway_query_on_replaced_files_ends_when_another_reader_notices() {
        let lab = Lab::new();
        let mut slow = lab.reader(Some(ENDLESS));
        let mut other = lab.reader(None);
        other.read_words().unwrap();
        let began = Instant::now();
        let slow = thread::spawn(move || slow.read_relation(Relation::Grants));
        thread::sleep(Duration::from_millis(50));
        for suffix in ["-wal", "-shm"] {
            std::fs::remove_file(lab.0.path().join(format!("store.db{suffix}"))).unwrap();
        }
        other.read_words().unwrap();
        let error = slow.join().unwrap().unwrap_err();
        assert!(matches!(error, StoreError::Replaced { .. }), "{error}");
        assert!(began.elapsed() < FULL_READ_TIMEOUT / 10);
    }
}
