//! A session that the relay reads by, and everything that belongs to it alone.

use std::time::Instant;

use super::PostgresName;
use super::connect::Connected;
use super::outbox_reader::OutboxReader;
use super::relations::{PostgresRelations, SourceSchema};
use super::session::PostgresSession;
use super::state::ServerState;
use super::transaction::BEGIN_READ;
use crate::config::Queries;
use crate::store::{Changes, Comparison, Examples, Rows, StoreError};

/// A session and the statements that were prepared on it.
pub(super) struct OpenSession {
    session: PostgresSession,
    pub(super) state: ServerState,
    /// Time when the server was last seen to have no lag.
    caught_up_at: Option<Instant>,
    relations: PostgresRelations,
    /// `None` if the schema or a query is not ours.
    pub(super) outbox: Option<OutboxReader>,
}

impl OpenSession {
    pub(super) fn new(
        connected: Connected,
        relations: PostgresRelations,
        outbox: Option<OutboxReader>,
    ) -> Self {
        let Connected { session, state, .. } = connected;
        Self { relations, state, caught_up_at: None, outbox, session }
    }

    /// Records the state of the server. The server measures its lag by the last commit that it has, which is too much
    /// just after a long silence; so the lag is at most the time since it was last seen to have none.
    fn observe(&mut self, mut state: ServerState) {
        if state.lag.is_zero() {
            self.caught_up_at = Some(Instant::now());
        } else if let Some(at) = self.caught_up_at {
            state.lag = state.lag.min(at.elapsed());
        }
        self.state = state;
    }

    pub(super) fn read_all(&mut self, name: &PostgresName) -> Result<(Rows, Examples), StoreError> {
        let session = &self.session;
        let error = |error| name.error(error);
        session.batch(BEGIN_READ).map_err(error)?;
        let (server, position) = match &self.outbox {
            Some(reader) => reader.full_read(session, name).map(|(server, at)| (server, Some(at)))?,
            None => (ServerState::query(session).map_err(error)?, None),
        };
        let rows = self.relations.read(session, name)?;
        let not_understood = self.relations.read_not_understood(session, name)?;
        session.batch("COMMIT").map_err(error)?;
        if let (Some(reader), Some(position)) = (&mut self.outbox, position) {
            reader.continue_from(position);
        }
        self.observe(server);
        Ok((rows, not_understood))
    }

    pub(super) fn compare(
        &mut self,
        schema: SourceSchema,
        candidate: &Queries,
        name: &PostgresName,
    ) -> Result<Comparison, StoreError> {
        let session = &self.session;
        let candidate = PostgresRelations::prepare(session, schema, candidate, name)?;
        session.batch(BEGIN_READ).map_err(|error| name.error(error))?;
        let running = self.relations.read(session, name)?;
        let candidate = candidate.read(session, name)?;
        session.batch("COMMIT").map_err(|error| name.error(error))?;
        Ok(Comparison { running, candidate })
    }

    pub(super) fn read_changes(&mut self, name: &PostgresName) -> Result<Changes, StoreError> {
        let Some(reader) = &mut self.outbox else {
            return Ok(Changes::Behind);
        };
        let mut server = self.state;
        let changes = reader.read_changes(&self.session, &mut server, name)?;
        self.observe(server);
        Ok(changes)
    }
}
