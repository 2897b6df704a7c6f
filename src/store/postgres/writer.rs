//! The session by which a node writes what it has to say of itself, on the primary.

use std::time::Duration;

use super::connect::{Access, Connector};
use super::session::{Failure, Session};
use crate::config::postgres::TargetSession;
use crate::config::{PostgresUrl, Store};
use crate::store::StoreError;

/// See the module. Connects when it is used, and anew after an error.
pub(super) struct Writer {
    connector: Connector,
    session: Option<Session>,
}

impl Writer {
    pub(super) fn new(url: &PostgresUrl, store: &Store) -> Self {
        Self { connector: Connector::new(url, store), session: None }
    }

    pub(super) fn with<T>(
        &mut self,
        act: impl FnOnce(&Session) -> Result<T, Failure>,
    ) -> Result<T, StoreError> {
        let session = match self.session.take() {
            Some(session) => session,
            None => self.connector.connect(TargetSession::Primary, Access::Write, Duration::ZERO)?.session,
        };
        let done = act(&session);
        self.session = done.is_ok().then_some(session);
        done.map_err(|failure| self.connector.place.error(failure))
    }
}
