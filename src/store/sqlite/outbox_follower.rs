//! Follows the outbox from a bookmark on. A poll of a quiet store costs a few system calls.

use serde::{Deserialize, Serialize};

use super::connection::{FileMoment, SharedConnection};
use super::files::DatabaseStamp;
use super::position::{OutboxMark, Place};
use super::time_limit::TimeLimit;
use super::words::{self, ReadWords};
use super::{SqlitePath, schema};
use crate::authz::UnixMillis;
use crate::config::Queries;
use crate::store::{Position, StoreError, StoreId};

/// The place in the outbox up to which words were read.
#[derive(Default)]
pub(super) struct OutboxFollower {
    /// `None` before the first poll.
    bookmark: Option<OutboxBookmark>,
    /// `None` if the next poll has to read the outbox whatever was committed.
    quiet: Option<QuietPoll>,
}

/// The newest row that was read, and the store that it is in.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct OutboxBookmark {
    store: StoreId,
    newest: OutboxMark,
}

/// The result of a poll.
pub(super) struct OutboxPoll {
    pub(super) place: Place,
    pub(super) file: FileMoment,
    /// `None` if the outbox does not lead from the bookmark to now.
    pub(super) read: Option<ReadWords>,
}

/// A poll after which nothing was committed.
struct QuietPoll {
    file: FileMoment,
    stamp: DatabaseStamp,
    known: Option<Position>,
    place: Place,
}

impl OutboxFollower {
    pub(super) fn at(bookmark: Option<OutboxBookmark>) -> Self {
        Self { bookmark, quiet: None }
    }

    pub(super) const fn bookmark(&self) -> Option<OutboxBookmark> {
        self.bookmark
    }

    /// Makes the next poll read the outbox whatever was committed: it is read by other queries.
    pub(super) fn reread(&mut self) {
        self.quiet = None;
    }

    /// Reads what was recorded after the bookmark, which moves on to the newest row.
    pub(super) fn poll(
        &mut self,
        connection: &mut SharedConnection,
        path: &SqlitePath,
        queries: &Queries,
        known: Option<Position>,
        limit: TimeLimit,
    ) -> Result<OutboxPoll, StoreError> {
        if let Some((place, file)) = self.poll_quietly(connection, path, known)? {
            return Ok(OutboxPoll { place, file, read: Some(ReadWords::default()) });
        }
        let stamp = DatabaseStamp::at(path)?;
        let bookmark = self.bookmark;
        let (newest, poll) = connection.with(|open| {
            // Before the transaction, so that a commit in between is read twice rather than missed.
            let file = open.moment(path)?;
            limit.run(&mut open.connection, path, |connection| {
                let error = |error| path.error(error);
                let transaction = connection.transaction().map_err(error)?;
                if !queries.are_replaced() {
                    schema::check(&transaction, path)?;
                }
                let place = Place::of(&transaction, path, known, schema::is_ours(&transaction, path)?)?;
                let bookmark = bookmark.filter(|bookmark| bookmark.store == place.position.store);
                let newest = if place.is_ours {
                    OutboxMark::newest(&transaction).map_err(error)?
                } else {
                    OutboxMark::default()
                };
                let read = match bookmark {
                    None => None,
                    // A file without an outbox records nothing.
                    Some(_) if !place.is_ours => Some(ReadWords::default()),
                    Some(OutboxBookmark { newest: since, .. }) => {
                        words::since(&transaction, since, newest, queries, UnixMillis::now())
                            .map_err(error)?
                    }
                };
                Ok((newest, OutboxPoll { place, file, read }))
            })
        })?;
        let OutboxPoll { place, file, .. } = poll;
        self.bookmark = Some(OutboxBookmark { store: place.position.store, newest });
        self.quiet = Some(QuietPoll { file, stamp, known, place });
        Ok(poll)
    }

    /// The place of the last poll, if nothing was committed since. A checkpoint changes the database without a commit;
    /// so does a copy over the file, and then the pages that SQLite keeps are out of date.
    fn poll_quietly(
        &self,
        connection: &mut SharedConnection,
        path: &SqlitePath,
        known: Option<Position>,
    ) -> Result<Option<(Place, FileMoment)>, StoreError> {
        let Some(quiet) = &self.quiet else {
            return Ok(None);
        };
        let stamp = DatabaseStamp::at(path)?;
        let file = connection.with(|open| open.moment(path))?;
        if quiet.file == file && quiet.stamp == stamp && quiet.known == known {
            return Ok(Some((quiet.place, file)));
        }
        if quiet.file == file && quiet.stamp != stamp {
            connection.close();
        }
        Ok(None)
    }
}
