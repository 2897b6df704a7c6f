//! Reads the changes that the outbox of the reference schema names.

use std::time::Instant;

use super::PostgresName;
use super::changes::QueriesByKey;
use super::outbox::{OutboxPosition, OutboxProgress, PostgresOutbox};
use super::session::{PostgresSession, SessionError};
use super::state::ServerState;
use super::transaction::BEGIN_READ;
use crate::store::{Changes, StoreError};

/// Reads the outbox of the reference schema.
pub(super) struct OutboxReader {
    outbox: PostgresOutbox,
    queries: QueriesByKey,
    /// `None` until everything was read through this session.
    position: Option<OutboxPosition>,
    /// Time when the oldest of the last read changes was written.
    readable_since: Option<Instant>,
}

impl OutboxReader {
    pub(super) fn prepare(session: &PostgresSession) -> Result<Self, SessionError> {
        let (outbox, queries) = (PostgresOutbox::prepare(session)?, QueriesByKey::prepare(session)?);
        Ok(Self { outbox, queries, position: None, readable_since: None })
    }

    /// The state of the server and the position of a full read, in the open transaction.
    pub(super) fn full_read(
        &self,
        session: &PostgresSession,
        name: &PostgresName,
    ) -> Result<(ServerState, OutboxPosition), StoreError> {
        let error = |error| name.error(error);
        let state = self.outbox.poll(session, &OutboxPosition::BEGINNING).map_err(error)?;
        state.check(name)?;
        Ok((state.server, self.outbox.position(session, &state).map_err(error)?))
    }

    /// Continues from the position of a full read that has succeeded.
    pub(super) fn continue_from(&mut self, position: OutboxPosition) {
        self.position = Some(position);
    }

    /// Time when the oldest of the last read changes was written.
    pub(super) const fn readable_since(&self) -> Option<Instant> {
        self.readable_since
    }

    /// Reads the changes since the position. Also writes the server's state to `server`.
    pub(super) fn read_changes(
        &mut self,
        session: &PostgresSession,
        server: &mut ServerState,
        name: &PostgresName,
    ) -> Result<Changes, StoreError> {
        let error = |error| name.error(error);
        let Some(position) = &mut self.position else {
            return Ok(Changes::Behind);
        };
        let state = self.outbox.poll(session, position).map_err(error)?;
        state.check(name)?;
        *server = state.server;
        match state.progress {
            OutboxProgress::Nothing => {
                position.advance(&state);
                return Ok(Changes::Nothing);
            }
            OutboxProgress::Lost => return Ok(Changes::Behind),
            OutboxProgress::Some => {}
        }
        session.batch(BEGIN_READ).map_err(error)?;
        // The transaction shows another moment, so the outbox is polled again.
        let state = self.outbox.poll(session, position).map_err(error)?;
        state.check(name)?;
        let changed = match state.progress {
            OutboxProgress::Lost => None,
            OutboxProgress::Some | OutboxProgress::Nothing => {
                self.outbox.changed_keys(session, position).map_err(error)?
            }
        };
        let Some(changed) = changed else {
            session.batch("ROLLBACK").map_err(error)?;
            return Ok(Changes::Behind);
        };
        let next = self.outbox.position(session, &state).map_err(error)?;
        self.readable_since = changed.readable_since;
        let changes = self.queries.read(session, &changed.keys).map_err(error)?;
        session.batch("COMMIT").map_err(error)?;
        *position = next;
        Ok(changes.into())
    }
}
