//! The relay's side of a store on PostgreSQL: one relation at a time, and the words of the outbox. It never writes.
//!
//! Each relation is read in a short transaction of its own, and a query that breaks the contract fails alone. After an
//! error of the server or the network the session is dropped, and the next read connects anew; how far the outbox was
//! followed outlives sessions.

use std::time::Duration;

use crossbeam::channel::{self, Receiver};
use serde::{Deserialize, Serialize};

use super::PostgresName;
use super::connect::Connector;
use super::ended_query::EndedQuery;
use super::host_choice::HostChoice;
use super::listen::WakeUps;
use super::place::{ServerPlace, standing};
use super::reader_session::{OutboxUse, ReaderSession};
use super::relations::SourceSchema;
use super::words::{FollowedPlace, Following, ReadWords};
use crate::authz::UnixMillis;
use crate::config::{Authz, PostgresUrl, Queries, Store};
use crate::store::fingerprints::AnswerFingerprints;
use crate::store::relations::DecodedRelation;
use crate::store::{
    Bookmark, Comparison, Examples, KnownPosition, Position, Quarantined, Relation, RelationAnswer,
    StoreError, StoreReader, StoreWarnings, Word, Words, WordsAnswer,
};
use crate::telemetry::LogOnChange;

/// A reader on a PostgreSQL database.
pub struct PostgresReader {
    connector: Connector,
    schema: SourceSchema,
    queries: Queries,
    reread_every: Duration,
    known: KnownPosition,
    hosts: HostChoice,
    /// `None` before the first read and after an error.
    open: Option<ReaderSession>,
    following: Following,
    /// `None` without `authz.queries.ended`.
    ended: Option<EndedQuery>,
    fingerprints: AnswerFingerprints,
    /// `None` until somebody asks for wake-ups.
    wake_ups: Option<WakeUps>,
    /// Result of the last read of the grants.
    not_understood: Examples,
    logged: LoggedStates,
}

/// What was logged last, each once until it changes.
#[derive(Default)]
struct LoggedStates {
    ended_failure: LogOnChange,
    no_outbox: LogOnChange,
}

/// Content of a [`Bookmark`].
#[derive(Serialize, Deserialize)]
struct KeptPlace {
    followed: FollowedPlace,
    /// Time of the newest end that `authz.queries.ended` gave.
    newest_end: Option<UnixMillis>,
}

impl PostgresReader {
    pub fn new(url: &PostgresUrl, store: &Store, authz: &Authz, known: KnownPosition) -> Self {
        let connector = Connector::new(url, store);
        let mut reader = Self {
            hosts: HostChoice::new(connector.clone(), authz.max_replica_lag, known.clone()),
            connector,
            schema: SourceSchema::of(store.profile, authz),
            queries: Queries::default(),
            reread_every: authz.reread,
            known,
            open: None,
            following: Following::default(),
            ended: None,
            fingerprints: AnswerFingerprints::new(),
            wake_ups: None,
            not_understood: Examples::default(),
            logged: LoggedStates::default(),
        };
        reader.replace_queries(authz.queries.clone());
        reader
    }

    /// Runs `read` on a session. Drops the session if that fails, except for a query that breaks the contract.
    fn with_session<T>(
        &mut self,
        read: impl FnOnce(&mut Self, &mut ReaderSession, &PostgresName) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let mut open = match self.open.take() {
            Some(open) => open,
            None => self.hosts.connect()?,
        };
        let name = self.connector.name.clone();
        match read(self, &mut open, &name) {
            Ok(value) => {
                self.hosts.log_lag(open.state);
                if !self.hosts.is_to_be_left(&open) {
                    self.open = Some(open);
                }
                Ok(value)
            }
            Err(error) => {
                // The transaction that was open goes with the error, whatever becomes of the session.
                let is_kept = error.breaks_contract() && open.session.batch("ROLLBACK").is_ok();
                if is_kept {
                    self.open = Some(open);
                } else {
                    self.following.rewind();
                }
                Err(error)
            }
        }
    }

    /// Goes over to the host of the words, where that is another one and can be read.
    fn follow_words(&mut self) {
        let session = self.open.as_ref().and_then(|open| self.hosts.follow_words(open));
        if let Some(session) = session {
            self.open = Some(session);
            self.following.rewind();
        }
    }

    const fn is_replaced(&self, relation: Relation) -> bool {
        match relation {
            Relation::Credentials => self.queries.credentials.is_some(),
            Relation::Grants => self.queries.grants.is_some(),
            Relation::Devices => self.queries.devices.is_some(),
        }
    }

    fn read_relation_on(
        &mut self,
        open: &mut ReaderSession,
        relation: Relation,
        name: &PostgresName,
    ) -> Result<RelationAnswer, StoreError> {
        let known = self.known.get();
        let query = open.relation(self.schema, &self.queries, relation, name)?;
        // Before the snapshot, so that everything up to there is in it.
        let place = ServerPlace::query(&open.session).map_err(|error| name.error(error))?;
        let read = query.read(&open.session, name)?;
        open.observe(place.state);
        if let Some(not_understood) = read.not_understood {
            self.record_not_understood(not_understood);
        }
        let DecodedRelation { rows, quarantined, ended } = read.decoded;
        let is_ours = self.schema == SourceSchema::Reference && !self.is_replaced(relation);
        let rows =
            if is_ours { rows } else { self.fingerprints.record(relation, rows, &quarantined, &ended) };
        let (position, durable) = self.positions(&place);
        let standing = standing(position, known);
        Ok(RelationAnswer { rows, quarantined, ended, position, durable, standing })
    }

    fn read_words_on(
        &mut self,
        open: &mut ReaderSession,
        name: &PostgresName,
    ) -> Result<WordsAnswer, StoreError> {
        let known = self.known.get();
        let is_standby = open.state.is_standby;
        let is_ours = self.schema == SourceSchema::Reference;
        let outbox_use = if self.queries.are_replaced() { OutboxUse::Optional } else { OutboxUse::Required };
        let no_outbox = &mut self.logged.no_outbox;
        let statements = if is_ours { open.words(outbox_use, no_outbox, name)? } else { None };
        let read = match statements {
            Some(statements) => {
                self.following.read(&open.session, &statements, &self.queries, is_standby, name)?
            }
            None => self.following.read_place(&open.session).map_err(|error| name.error(error))?,
        };
        let ReadWords { mut place, mut words, readable_since } = read;
        open.observe(place.state);
        if !matches!(words, Words::Behind) && self.add_ended(open, &mut words, name) {
            // After the snapshot of that query, too.
            place = ServerPlace::query(&open.session).map_err(|error| name.error(error))?;
        }
        let (position, durable) = self.positions(&place);
        Ok(WordsAnswer { words, position, durable, standing: standing(position, known), readable_since })
    }

    /// Adds the words of `authz.queries.ended`, if it is due. Returns whether it was read. Its failure keeps no other
    /// word back.
    fn add_ended(&mut self, open: &mut ReaderSession, words: &mut Words, name: &PostgresName) -> bool {
        let Some(ended) = self.ended.as_mut().filter(|ended| ended.is_due()) else {
            return false;
        };
        match ended.read(&open.session, name) {
            Ok((more, more_quarantined)) => {
                if self.logged.ended_failure.ends() {
                    tracing::info!("{}: the query for ended rows is read again", name.describe());
                }
                add_words(words, more, more_quarantined);
                true
            }
            Err(error) => {
                // If this fails too, the next read meets the end of the session.
                drop(open.session.batch("ROLLBACK"));
                let failure = error.to_string();
                if self.logged.ended_failure.changes_to(failure.clone()) {
                    tracing::warn!("{failure}; until then what it says has ended is not known");
                }
                false
            }
        }
    }

    /// Position of the answer of a server at `place`, and how much of it survives a crash of the server.
    fn positions(&self, place: &ServerPlace) -> (Position, Position) {
        let position = match self.schema {
            SourceSchema::Reference => place.position,
            // Our tables beside another schema say nothing about it.
            SourceSchema::OpenBalena(_) => place.position_of_database(),
        };
        (position, Position { log: position.log.min(place.flushed), ..position })
    }

    fn record_not_understood(&mut self, not_understood: Examples) {
        if not_understood == self.not_understood {
            return;
        }
        let warnings = StoreWarnings { not_understood, ..StoreWarnings::default() };
        warnings.lines().iter().for_each(|line| tracing::warn!("{}: {line}", self.describe()));
        self.not_understood = warnings.not_understood;
    }
}

impl StoreReader for PostgresReader {
    fn read_relation(&mut self, relation: Relation) -> Result<RelationAnswer, StoreError> {
        self.follow_words();
        self.with_session(|reader, open, name| reader.read_relation_on(open, relation, name))
    }

    fn read_words(&mut self) -> Result<WordsAnswer, StoreError> {
        let read = self.with_session(Self::read_words_on);
        self.hosts.set_words_host(self.open.as_ref().map(|open| open.host));
        read
    }

    fn bookmark(&self) -> Option<Bookmark> {
        let followed = self.following.durable()?.clone();
        let newest_end = self.ended.as_ref().and_then(|ended| ended.log.newest());
        postcard::to_stdvec(&KeptPlace { followed, newest_end }).ok().map(Bookmark)
    }

    /// Goes on from `bookmark`. One that does not decode is of another version, and the reader begins anew.
    fn resume(&mut self, bookmark: Bookmark) {
        let Ok(KeptPlace { followed, newest_end }) = postcard::from_bytes(&bookmark.0) else {
            return;
        };
        self.following.resume(followed);
        if let Some(ended) = &mut self.ended {
            ended.log.resume(newest_end);
        }
    }

    fn compare(&mut self, candidate: &Queries) -> Result<Comparison, StoreError> {
        self.follow_words();
        self.with_session(|reader, open, name| open.compare(reader.schema, &reader.queries, candidate, name))
    }

    fn replace_queries(&mut self, queries: Queries) {
        if self.queries.ended != queries.ended {
            let every = self.reread_every;
            self.ended = queries.ended.clone().map(|query| EndedQuery::new(query, every));
        }
        self.fingerprints.clear();
        self.queries = queries;
        if self.open.take().is_some() {
            self.following.rewind();
        }
    }

    fn follows_outbox(&self) -> bool {
        self.schema == SourceSchema::Reference && !self.queries.are_replaced()
    }

    fn warnings(&self) -> StoreWarnings {
        StoreWarnings { not_understood: self.not_understood.clone(), ..StoreWarnings::default() }
    }

    fn lag(&self) -> Duration {
        self.open.as_ref().map_or(Duration::ZERO, |open| open.state.lag)
    }

    /// Gives wake-ups on the reference schema alone, whose triggers send them.
    fn wake_ups(&mut self) -> Receiver<()> {
        if self.schema != SourceSchema::Reference {
            return channel::never();
        }
        self.wake_ups.get_or_insert_with(|| WakeUps::start(self.connector.clone())).receiver()
    }

    fn describe(&self) -> String {
        let name = self.connector.name.describe();
        match self.schema {
            SourceSchema::Reference => name,
            // A snapshot of another schema on the same server must not pass for one of this.
            SourceSchema::OpenBalena(_) => format!("{name} (openBalena)"),
        }
    }
}

fn add_words(words: &mut Words, more: Vec<Word>, more_quarantined: Vec<Quarantined>) {
    if more.is_empty() && more_quarantined.is_empty() {
        return;
    }
    match words {
        Words::Some { words, quarantined } => {
            words.extend(more);
            quarantined.extend(more_quarantined);
        }
        Words::Nothing | Words::Behind => *words = Words::Some { words: more, quarantined: more_quarantined },
    }
}
