//! A session of a reader, and the statements that were prepared on it. Each is prepared when it is first needed, since a
//! reader serves one relation, or the words.

use std::sync::Arc;
use std::time::Instant;

use super::PostgresName;
use super::connect::Connected;
use super::relations::{PostgresRelation, PostgresRelations, SourceSchema};
use super::session::PostgresSession;
use super::state::ServerState;
use super::transaction::BEGIN_READ;
use super::words::WordStatements;
use crate::config::Queries;
use crate::store::{Comparison, Relation, StoreError};
use crate::telemetry::LogOnChange;

pub(super) struct ReaderSession {
    pub(super) session: PostgresSession,
    /// Place of the server among the hosts of the URL.
    pub(super) host: usize,
    pub(super) state: ServerState,
    /// Time when the server was last seen to have no lag.
    caught_up_at: Option<Instant>,
    relations: [Option<Arc<PostgresRelation>>; Relation::ALL.len()],
    words: Option<Outbox>,
}

/// The outbox, as a session found it.
enum Outbox {
    Prepared(Arc<WordStatements>),
    /// There is none that can be read.
    Absent,
}

/// Use of the outbox by a reader.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum OutboxUse {
    /// A store without it cannot be read.
    Required,
    /// The operator's queries need nothing of the reference schema, which need not exist.
    Optional,
}

impl ReaderSession {
    pub(super) fn new(connected: Connected) -> Self {
        let Connected { session, host, state } = connected;
        Self { session, host, state, caught_up_at: None, relations: Default::default(), words: None }
    }

    /// Records the state of the server. The server measures its lag by the last commit that it has, which is too much
    /// just after a long silence; so the lag is at most the time since it was last seen to have none.
    pub(super) fn observe(&mut self, mut state: ServerState) {
        if state.lag.is_zero() {
            self.caught_up_at = Some(Instant::now());
        } else if let Some(at) = self.caught_up_at {
            state.lag = state.lag.min(at.elapsed());
        }
        self.state = state;
    }

    /// The query for `relation`.
    pub(super) fn relation(
        &mut self,
        schema: SourceSchema,
        queries: &Queries,
        relation: Relation,
        name: &PostgresName,
    ) -> Result<Arc<PostgresRelation>, StoreError> {
        let slot = &mut self.relations[relation as usize];
        if let Some(prepared) = slot {
            return Ok(Arc::clone(prepared));
        }
        let prepared = PostgresRelation::prepare(&self.session, schema, queries, relation, name)?;
        Ok(Arc::clone(slot.insert(Arc::new(prepared))))
    }

    /// The statements on the outbox; `None` where it is optional and cannot be read.
    pub(super) fn words(
        &mut self,
        outbox_use: OutboxUse,
        absent: &mut LogOnChange,
        name: &PostgresName,
    ) -> Result<Option<Arc<WordStatements>>, StoreError> {
        match &self.words {
            Some(Outbox::Prepared(statements)) => return Ok(Some(Arc::clone(statements))),
            Some(Outbox::Absent) => return Ok(None),
            None => {}
        }
        match WordStatements::prepare(&self.session, name) {
            Ok(statements) => {
                let statements = Arc::new(statements);
                self.words = Some(Outbox::Prepared(Arc::clone(&statements)));
                let _was_absent = absent.ends();
                Ok(Some(statements))
            }
            Err(error) if outbox_use == OutboxUse::Optional && is_lasting(&error) => {
                self.words = Some(Outbox::Absent);
                let reason = error.to_string();
                if absent.changes_to(reason.clone()) {
                    tracing::info!("no outbox is read beside the operator's queries: {reason}");
                }
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    pub(super) fn compare(
        &mut self,
        schema: SourceSchema,
        running: &Queries,
        candidate: &Queries,
        name: &PostgresName,
    ) -> Result<Comparison, StoreError> {
        let session = &self.session;
        let running = PostgresRelations::prepare(session, schema, running, name)?;
        let candidate = PostgresRelations::prepare(session, schema, candidate, name)?;
        session.batch(BEGIN_READ).map_err(|error| name.error(error))?;
        let running = running.read(session, name)?;
        let candidate = candidate.read(session, name)?;
        session.batch("COMMIT").map_err(|error| name.error(error))?;
        Ok(Comparison { running, candidate })
    }
}

/// True for a database that is no store of ours, or that its role may not read. An operator has to change that.
const fn is_lasting(error: &StoreError) -> bool {
    matches!(
        error,
        StoreError::Denied { .. }
            | StoreError::Foreign { .. }
            | StoreError::Query { .. }
            | StoreError::ServerVersion { .. }
            | StoreError::Version { .. }
    )
}
