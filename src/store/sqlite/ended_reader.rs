//! When relation `ended` is read from a file, and what became of it.

use std::time::{Duration, Instant};

use super::SqlitePath;
use super::connection::{FileMoment, OpenConnection};
use super::relations::read_ended;
use super::time_limit::TimeLimit;
use super::words::ReadWords;
use crate::authz::UnixMillis;
use crate::store::StoreError;
use crate::store::contract::ENDED_NAME;
use crate::store::ended::EndedLog;

/// The operator's query for relation `ended`, and its ends that are known.
pub(super) struct EndedReader {
    sql: String,
    log: EndedLog,
    reread_every: Duration,
    /// State of the file at the last read.
    read: Option<LastRead>,
    /// An error that no answer has shown yet.
    error: Option<StoreError>,
}

struct LastRead {
    file: FileMoment,
    at: Instant,
    took: Duration,
}

impl EndedReader {
    pub(super) fn new(sql: String, reread_every: Duration) -> Self {
        Self { sql, log: EndedLog::new(), reread_every, read: None, error: None }
    }

    pub(super) fn resume(&mut self, newest: Option<UnixMillis>) {
        self.log.resume(newest);
    }

    pub(super) const fn newest(&self) -> Option<UnixMillis> {
        self.log.newest()
    }

    /// The error of the last read, once.
    pub(super) const fn pop_error(&mut self) -> Option<StoreError> {
        self.error.take()
    }

    /// True if something was committed since the last read, or `reread_every` has passed. The query rests after each
    /// read, so that it takes no more than a tenth of the time, or half of it where it is slower than `reread_every`.
    pub(super) fn is_due(&self, file: FileMoment) -> bool {
        self.read.as_ref().is_none_or(|read| {
            let rest = (read.took * REST_PER_READ).min(self.reread_every.max(read.took));
            let since = read.at.elapsed();
            since >= rest && (read.file != file || since >= self.reread_every)
        })
    }

    /// Reads the relation within `limit`, and adds its new ends to `words`. An error is kept for a later answer, so that
    /// it keeps back nothing else.
    pub(super) fn read(
        &mut self,
        open: &mut OpenConnection,
        file: FileMoment,
        limit: Duration,
        path: &SqlitePath,
        words: &mut ReadWords,
    ) {
        let began = Instant::now();
        let limit = TimeLimit { relation: ENDED_NAME, limit };
        let rows = limit.run(&mut open.connection, path, |connection| {
            let transaction = connection.transaction().map_err(|error| path.error(error))?;
            read_ended(&self.sql, &transaction, path)
        });
        self.read = Some(LastRead { file, at: Instant::now(), took: began.elapsed() });
        match rows {
            Ok(rows) => {
                self.error = None;
                let (ended, bad) = self.log.record(rows);
                words.words.extend(ended);
                words.quarantined.extend(bad);
            }
            Err(error) => self.error = Some(error),
        }
    }
}

/// Rest after a read, in times of what it took.
const REST_PER_READ: u32 = 10;
