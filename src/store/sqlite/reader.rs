//! The relay's side of a store file: one relation at a time, and the words of the outbox. It reads and never writes.
//!
//! `PRAGMA data_version` says whether anybody else has committed, so that a poll of a quiet store costs a few system
//! calls. In WAL mode no read waits for a writer or makes one wait. An answer counts only if the files that were read
//! are those at the path, before and after.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, Transaction};
use serde::{Deserialize, Serialize};

use super::connection::{OpenConnection, SharedConnection};
use super::ended_reader::{EndedReader, FileMoment};
use super::files::DatabaseStamp;
use super::position::{self, OutboxMark};
use super::relations::SqliteRelations;
use super::time_limit::TimeLimit;
use super::words::{self, ReadWords};
use super::{SqlitePath, schema};
use crate::authz::UnixMillis;
use crate::config::{Authz, Queries, RelationQuery, Store};
use crate::store::polling::AnswerFingerprints;
use crate::store::relations::DecodedRelation;
use crate::store::{
    Bookmark, Comparison, KnownPosition, Position, Relation, RelationAnswer, Standing, StoreError, StoreId,
    StoreReader, Words, WordsAnswer,
};

/// A reader on an SQLite file.
pub struct SqliteReader {
    path: SqlitePath,
    queries: Queries,
    relations: SqliteRelations,
    connection: SharedConnection,
    known: KnownPosition,
    answers: AnswerFingerprints,
    bookmark: Option<ReaderBookmark>,
    /// The last answer of the outbox, for as long as nothing is committed.
    quiet: Option<QuietPoll>,
    /// `None` without a query for relation `ended`.
    ended: Option<EndedReader>,
    limits: Limits,
}

/// Times that reads may take.
#[derive(Clone, Copy)]
struct Limits {
    relation: Duration,
    words: Duration,
    reread: Duration,
}

/// What [`Bookmark`] holds, in postcard.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct ReaderBookmark {
    store: StoreId,
    number: i64,
    mark: u64,
    ended_until: Option<i64>,
}

/// A poll after which nothing was committed.
struct QuietPoll {
    file: FileMoment,
    stamp: DatabaseStamp,
    known: Option<Position>,
    place: Place,
}

/// Where an answer stands.
#[derive(Clone, Copy)]
struct Place {
    position: Position,
    standing: Standing,
    /// True for a store of ours, which has an outbox.
    is_ours: bool,
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
            bookmark: None,
            quiet: None,
            limits,
        }
    }

    /// The answer of the last poll, if nothing was committed since. A checkpoint changes the database without a commit;
    /// so does a copy over the file, and then the pages that SQLite keeps are out of date.
    fn quiet_place(&mut self, known: Option<Position>) -> Result<Option<(Place, FileMoment)>, StoreError> {
        let Some(quiet) = &self.quiet else {
            return Ok(None);
        };
        let stamp = DatabaseStamp::at(&self.path)?;
        let path = &self.path;
        let file = self.connection.with(|open| moment(open, path))?;
        if quiet.file == file && quiet.stamp == stamp && quiet.known == known {
            return Ok(Some((quiet.place, file)));
        }
        if quiet.file == file && quiet.stamp != stamp {
            self.connection.close();
        }
        Ok(None)
    }

    /// Reads the outbox from the bookmark on.
    fn read_outbox(
        &mut self,
        known: Option<Position>,
    ) -> Result<(Place, FileMoment, Option<ReadWords>), StoreError> {
        let (path, queries, bookmark) = (&self.path, &self.queries, self.bookmark);
        let stamp = DatabaseStamp::at(path)?;
        let limit = TimeLimit { relation: "changes", limit: self.limits.words };
        let (file, place, newest, read) = self.connection.with(|open| {
            // Before the transaction, so that a commit in between is read twice rather than missed.
            let file = moment(open, path)?;
            limit.run(&mut open.connection, path, |connection| {
                let error = |error| path.error(error);
                let transaction = connection.transaction().map_err(error)?;
                if !queries.are_replaced() {
                    schema::check(&transaction, path)?;
                }
                let place = place(&transaction, path, known, schema::is_ours(&transaction, path)?)?;
                if !place.is_ours {
                    return Ok((file, place, OutboxMark::default(), Some(ReadWords::default())));
                }
                let newest = OutboxMark::newest(&transaction).map_err(error)?;
                let read = match bookmark.filter(|bookmark| bookmark.store == place.position.store) {
                    None => None,
                    Some(bookmark) => {
                        let bookmark = OutboxMark { number: bookmark.number, mark: bookmark.mark };
                        let now = UnixMillis::now();
                        words::since(&transaction, bookmark, newest, queries, now).map_err(error)?
                    }
                };
                Ok((file, place, newest, read))
            })
        })?;
        // A file without an outbox has missed nothing, but its first answer begins at the present all the same.
        let read = read.filter(|_| bookmark.is_some_and(|bookmark| bookmark.store == place.position.store));
        let OutboxMark { number, mark } = newest;
        let ended_until = self.ended_until();
        self.bookmark = Some(ReaderBookmark { store: place.position.store, number, mark, ended_until });
        self.quiet = Some(QuietPoll { file, stamp, known, place });
        Ok((place, file, read))
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
        let ended_until = self.ended_until();
        if let Some(bookmark) = &mut self.bookmark {
            bookmark.ended_until = ended_until;
        }
        Ok(())
    }

    fn ended_until(&self) -> Option<i64> {
        self.ended.as_ref().and_then(EndedReader::newest).map(|time| time.0)
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
                let place = place(&transaction, path, known, is_ours)?;
                Ok((relations.read_one(relation, &transaction, path)?, place))
            })
        })?;
        let DecodedRelation { rows, quarantined, ended } = decoded;
        let rows = self.answers.record(relation, rows, &quarantined, &ended);
        let Place { position, standing, .. } = place;
        Ok(RelationAnswer { rows, quarantined, ended, position, standing })
    }

    fn read_words(&mut self) -> Result<WordsAnswer, StoreError> {
        let known = self.known.get();
        let (place, file, read) = match self.quiet_place(known)? {
            Some((place, file)) => (place, file, Some(ReadWords::default())),
            None => self.read_outbox(known)?,
        };
        let words = match read {
            None => Words::Behind,
            Some(mut read) => {
                self.read_ended(place, file, &mut read)?;
                let ReadWords { words, quarantined } = read;
                if words.is_empty() && quarantined.is_empty() {
                    if let Some(error) = self.ended.as_mut().and_then(EndedReader::take_error) {
                        return Err(error);
                    }
                    Words::Nothing
                } else {
                    Words::Some { words, quarantined }
                }
            }
        };
        let Place { position, standing, .. } = place;
        Ok(WordsAnswer { words, position, standing, readable_since: None })
    }

    fn bookmark(&self) -> Option<Bookmark> {
        let bookmark = self.bookmark.as_ref()?;
        postcard::to_allocvec(bookmark).ok().map(Bookmark)
    }

    /// A bookmark that this program cannot read counts as none: the next words are [`Words::Behind`].
    fn resume(&mut self, bookmark: Bookmark) {
        self.bookmark = postcard::from_bytes(&bookmark.0).ok();
        self.quiet = None;
        let ended_until = self.bookmark.and_then(|bookmark| bookmark.ended_until).map(UnixMillis);
        if let Some(ended) = &mut self.ended {
            ended.resume(ended_until);
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
        self.quiet = None;
    }

    fn follows_outbox(&self) -> bool {
        !self.queries.are_replaced()
    }

    fn describe(&self) -> String {
        self.path.describe()
    }
}

/// Where a read in `transaction` stands.
fn place(
    transaction: &Transaction<'_>,
    path: &SqlitePath,
    known: Option<Position>,
    is_ours: bool,
) -> Result<Place, StoreError> {
    let place = || {
        let position =
            if is_ours { position::of_our_store(transaction)? } else { position::of_foreign_file(path) };
        Ok(Place { position, standing: position::standing(transaction, position, known)?, is_ours })
    };
    place().map_err(|error| path.error(error))
}

fn moment(open: &OpenConnection, path: &SqlitePath) -> Result<FileMoment, StoreError> {
    let version = open.connection.pragma_query_value(None, "data_version", |row| row.get(0));
    let data_version = version.map_err(|error| path.error(error))?;
    Ok(FileMoment { opening: open.opening, data_version })
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
