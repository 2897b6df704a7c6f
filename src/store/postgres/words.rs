//! Follows the outbox of one store through sessions, hosts, failovers and restarts of the relay.

use serde::{Deserialize, Serialize};

use super::changes::{RowQueries, RowsByKey};
use super::horizon::{Horizon, OpenTransactions};
use super::place::ServerPlace;
use super::session::{PostgresSession, SessionError};
use super::transaction::BEGIN_READ;
use super::word_outbox::{OutboxPoll, WordOutbox};
use super::{PostgresName, schema};
use crate::authz::{Change, UnixMillis};
use crate::config::Queries;
use crate::store::changed_key::{ChangedKey, ChangedRow};
use crate::store::{Position, Quarantined, StoreError, StoreId, Word, Words};

/// The statements by which words are read, prepared on a session.
pub(super) struct WordStatements {
    outbox: WordOutbox,
    rows: RowQueries,
}

/// How far a reader has followed a store.
#[derive(Default)]
pub(super) struct Following {
    /// `None` before the first read.
    at: Option<FollowedPlace>,
    /// The last place that a crash of the server cannot take back. A commit that was seen and whose log is not on disk
    /// may be lost, and its number may come again.
    durable: Option<FollowedPlace>,
    /// A later place, which becomes durable when the server's disk has its log position.
    pending: Option<FollowedPlace>,
}

/// A place up to which everything was read.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct FollowedPlace {
    store: StoreId,
    timeline: u64,
    log: u64,
    /// `None` where there was no outbox to read.
    outbox: Option<OutboxPlace>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct OutboxPlace {
    horizon: Horizon,
    /// Number of times that the outbox had been pruned.
    prunes: i64,
}

/// Result of a read.
pub(super) struct ReadWords {
    pub(super) place: ServerPlace,
    pub(super) words: Words,
    pub(super) readable_since: Option<std::time::Instant>,
}

/// Relation of a server to the place that was followed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Course {
    /// The place is in the server's past.
    Onward,
    /// The server may lack something of what was read, and what it wrote since may have the same numbers.
    Anew,
    /// It is another store, or nothing was followed yet.
    Elsewhere,
}

impl WordStatements {
    /// Prepares the statements on a store of this program's schema.
    pub(super) fn prepare(session: &PostgresSession, name: &PostgresName) -> Result<Self, StoreError> {
        schema::check(session, name)?;
        let error = |error| name.error(error);
        Ok(Self {
            outbox: WordOutbox::prepare(session).map_err(error)?,
            rows: RowQueries::prepare(session).map_err(error)?,
        })
    }
}

impl Following {
    /// Goes on from a place that an earlier process has kept.
    pub(super) fn resume(&mut self, place: FollowedPlace) {
        *self = Self { at: Some(place.clone()), durable: Some(place), pending: None };
    }

    /// The place from which another process can go on.
    pub(super) const fn durable(&self) -> Option<&FollowedPlace> {
        self.durable.as_ref()
    }

    /// Goes back to the last durable place: the session has ended, and the server may have crashed.
    pub(super) fn rewind(&mut self) {
        self.at.clone_from(&self.durable);
        self.pending = None;
    }

    /// Reads a store without an outbox, of which only the place is known.
    pub(super) fn read_place(&mut self, session: &PostgresSession) -> Result<ReadWords, SessionError> {
        let place = ServerPlace::query(session)?;
        let is_followed = self.at.as_ref().is_some_and(|at| at.store == place.position.store);
        let words = if is_followed { Words::Nothing } else { Words::Behind };
        self.move_to(&place, None);
        Ok(ReadWords { place, words, readable_since: None })
    }

    /// Reads the words that are new. `is_standby` is how the session was seen last; a server that was a primary then
    /// still is one.
    pub(super) fn read(
        &mut self,
        session: &PostgresSession,
        statements: &WordStatements,
        replaced: &Queries,
        is_standby: bool,
        name: &PostgresName,
    ) -> Result<ReadWords, StoreError> {
        let error = |error| name.error(error);
        let WordStatements { outbox, rows } = statements;
        let at = self.at.as_ref().and_then(|at| at.outbox.clone());
        let at = at.unwrap_or(OutboxPlace { horizon: Horizon::BEGINNING, prunes: 0 });
        // Before any snapshot that rows are read by.
        let moment =
            is_standby.then(|| outbox.still_open(session, &at.horizon)).transpose().map_err(error)?;
        let poll = outbox.poll(session, &at.horizon).map_err(error)?;
        poll.check(name)?;
        match self.course(&poll.place) {
            Course::Elsewhere => return Ok(self.begin(poll, moment)),
            Course::Anew => return Ok(self.begin_anew(&poll, at.prunes)),
            Course::Onward => {}
        }
        if self.has_gap(&at, &poll, moment.as_ref()) {
            return Ok(self.begin(poll, moment));
        }
        if !poll.has_rows {
            let prunes = at.prunes_after(&poll, is_standby);
            let horizon = at.horizon.after(moment.unwrap_or(poll.hidden), std::iter::empty());
            self.move_to(&poll.place, Some(OutboxPlace { horizon, prunes }));
            return Ok(ReadWords { place: poll.place, words: Words::Nothing, readable_since: None });
        }
        session.batch(BEGIN_READ).map_err(error)?;
        // The transaction shows another moment, so the outbox is polled again.
        let poll = outbox.poll(session, &at.horizon).map_err(error)?;
        poll.check(name)?;
        let has_gap = self.course(&poll.place) != Course::Onward || self.has_gap(&at, &poll, moment.as_ref());
        let new = if has_gap { None } else { outbox.new_rows(session, &at.horizon).map_err(error)? };
        let Some(new) = new else {
            session.batch("ROLLBACK").map_err(error)?;
            return Ok(self.begin(poll, moment));
        };
        let found = rows.find(session, &new.rows).map_err(error)?;
        session.batch("COMMIT").map_err(error)?;
        let prunes = at.prunes_after(&poll, is_standby);
        let OutboxPoll { place, hidden, now, .. } = poll;
        let moment = moment.unwrap_or(hidden);
        let moment = match new.cut {
            Some(xid) => moment.before(xid),
            None => moment,
        };
        let horizon = at.horizon.after(moment, new.xids.iter().copied());
        self.move_to(&place, Some(OutboxPlace { horizon, prunes }));
        let words = words(found, &new.rows, replaced, now);
        Ok(ReadWords { place, words, readable_since: new.readable_since })
    }

    fn course(&self, place: &ServerPlace) -> Course {
        let Some(at) = &self.at else {
            return Course::Elsewhere;
        };
        if at.store != place.position.store || at.outbox.is_none() {
            return Course::Elsewhere;
        }
        // A standby may be behind, and goes the same way. A primary that is behind was restored.
        let has_gone_back = !place.state.is_standby && place.position.log < at.log;
        if at.timeline != place.position.timeline || has_gone_back { Course::Anew } else { Course::Onward }
    }

    /// True if rows may have been pruned that were never seen.
    fn has_gap(&self, at: &OutboxPlace, poll: &OutboxPoll, moment: Option<&OpenTransactions>) -> bool {
        let still_open = &moment.unwrap_or(&poll.hidden).open;
        poll.prunes != at.prunes && at.horizon.may_miss(poll.pruned, still_open)
    }

    /// Begins at the store's present.
    fn begin(&mut self, poll: OutboxPoll, moment: Option<OpenTransactions>) -> ReadWords {
        let OutboxPoll { place, hidden, prunes, .. } = poll;
        let beginning = OutboxPlace { horizon: Horizon::BEGINNING, prunes };
        // Until the present is durable, there is nothing before it to go back to but the beginning.
        self.durable = Some(FollowedPlace { log: 0, ..FollowedPlace::new(&place, Some(beginning)) });
        self.pending = None;
        let horizon = Horizon::at(moment.unwrap_or(hidden));
        self.move_to(&place, Some(OutboxPlace { horizon, prunes }));
        ReadWords { place, words: Words::Behind, readable_since: None }
    }

    /// Begins at the beginning of the outbox, whose words say what rows are now. What was pruned since the last read is
    /// not among them.
    fn begin_anew(&mut self, poll: &OutboxPoll, prunes_before: i64) -> ReadWords {
        let place = poll.place;
        self.pending = None;
        self.move_to(&place, Some(OutboxPlace { horizon: Horizon::BEGINNING, prunes: poll.prunes }));
        self.durable.clone_from(&self.at);
        let words = if poll.prunes == prunes_before { Words::Nothing } else { Words::Behind };
        ReadWords { place, words, readable_since: None }
    }

    fn move_to(&mut self, place: &ServerPlace, outbox: Option<OutboxPlace>) {
        let at = FollowedPlace::new(place, outbox);
        let is_durable = |at: &FollowedPlace| at.log <= place.flushed;
        if is_durable(&at) {
            self.durable = Some(at.clone());
            self.pending = None;
        } else if self.pending.as_ref().is_none_or(is_durable) {
            self.durable = self.pending.take().or(self.durable.take());
            self.pending = Some(at.clone());
        }
        self.at = Some(at);
    }
}

impl FollowedPlace {
    const fn new(place: &ServerPlace, outbox: Option<OutboxPlace>) -> Self {
        let Position { store, timeline, log, .. } = place.position;
        Self { store, timeline, log, outbox }
    }
}

impl OutboxPlace {
    /// Number of prunes that the reader knows of after `poll`.
    ///
    /// A standby is asked for open transactions before it is polled. One may have ended and its rows may have gone in
    /// between, so the prune stays to be judged until the reader knows that the transaction has ended.
    fn prunes_after(&self, poll: &OutboxPoll, is_standby: bool) -> i64 {
        let is_undecided = is_standby && self.horizon.open.iter().any(|xid| *xid <= poll.pruned);
        if is_undecided { self.prunes } else { poll.prunes }
    }
}

/// The words on the rows of `changed`, in their order. A row whose relation has another query says here only whether it has
/// ended.
fn words(found: RowsByKey, changed: &[ChangedRow], replaced: &Queries, now: UnixMillis) -> Words {
    let RowsByKey { mut rows, live } = found;
    let (mut words, mut quarantined): (Vec<Word>, Vec<Quarantined>) = Default::default();
    for ChangedRow { key, .. } in changed {
        let is_replaced = match key {
            ChangedKey::Principal(id) => {
                words.push(if live.contains(id) { key.live() } else { key.ended() });
                continue;
            }
            ChangedKey::Credential(_) => replaced.credentials.is_some(),
            ChangedKey::Grant(_) => replaced.grants.is_some(),
            ChangedKey::Device(_) => replaced.devices.is_some(),
        };
        let Some(found) = rows.remove(key) else {
            words.push(if is_replaced { key.ended() } else { Word::Row(key.gone()) });
            continue;
        };
        for row in found {
            match row {
                Ok(row) if is_replaced => {
                    words.push(if has_ended(&row, now) { key.ended() } else { key.live() });
                }
                Ok(row) => words.push(Word::Row(row)),
                Err(bad) => {
                    words.extend(bad.ended_key().map(Word::Ended));
                    if !is_replaced {
                        quarantined.push(bad.quarantined);
                    }
                }
            }
        }
    }
    if words.is_empty() && quarantined.is_empty() {
        return Words::Nothing;
    }
    Words::Some { words, quarantined }
}

fn has_ended(row: &Change, now: UnixMillis) -> bool {
    let (revoked, expires_at) = match row {
        Change::Credential(row) => (row.revoked, row.expires_at),
        Change::Grant(row) => (row.revoked, row.expires_at),
        row => (row.is_gone(), None),
    };
    revoked || expires_at.is_some_and(|at| at <= now)
}
