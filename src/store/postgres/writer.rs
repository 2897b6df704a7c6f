//! The session that a node writes its heartbeat and its devices by, on the primary.

use std::time::Duration;

use super::connect::{Access, Connector};
use super::session::PostgresSession;
use super::{PostgresName, transaction};
use crate::config::postgres::TargetSession;
use crate::config::{PostgresUrl, Store};
use crate::store::StoreError;
use crate::store::sql::{SqlDatabase, SqlTransaction, TransactionEnd, TransactionKind};

/// Connects at its first use, and again after an error.
pub(in crate::store) struct PostgresWriter {
    connector: Connector,
    session: Option<PostgresSession>,
}

impl PostgresWriter {
    pub(in crate::store) fn new(url: &PostgresUrl, store: &Store) -> Self {
        Self { connector: Connector::new(url, store), session: None }
    }

    /// Runs `act` on the session, which is kept if that succeeds.
    fn with<T>(
        &mut self,
        act: impl FnOnce(&PostgresSession, &PostgresName) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let session = match self.session.take() {
            Some(session) => session,
            None => self.connector.connect(TargetSession::Primary, Access::Write, Duration::ZERO)?.session,
        };
        let value = act(&session, &self.connector.name)?;
        self.session = Some(session);
        Ok(value)
    }
}

impl SqlDatabase for PostgresWriter {
    fn transact(
        &mut self,
        kind: TransactionKind,
        work: &mut dyn FnMut(&dyn SqlTransaction) -> TransactionEnd,
    ) -> Result<TransactionEnd, StoreError> {
        let end = self.with(|session, name| transaction::run(session, name, kind, work))?;
        if end == TransactionEnd::RollBack {
            // The connection may be what failed.
            self.session = None;
        }
        Ok(end)
    }
}
