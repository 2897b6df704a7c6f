//! The relay's side: reads and never writes.
//!
//! Each read is one transaction at REPEATABLE READ. Rows are decoded as they come in, so that nothing is
//! held beside them. After an error the session is dropped, and with it the position in the outbox: the next
//! read may reach another server, whose transaction numbers mean other transactions.

use std::time::Duration;

use crossbeam::channel::Receiver;
use tokio_postgres::Statement;

use super::changes::RowsByKey;
use super::connect::{Access, Connector};
use super::listen::WakeUps;
use super::outbox::{News, Outbox, Position};
use super::relations::{CREDENTIALS, DEVICES, GRANTS};
use super::schema;
use super::session::{Failure, Session};
use crate::config::{Authz, PostgresUrl, Store};
use crate::store::decode::{self, BadRow};
use crate::store::{Changes, Rows, Source, StoreError};

/// See the module.
pub struct PostgresSource {
    connector: Connector,
    lag_max: Duration,
    /// `None` before the first read and after an error.
    open: Option<Open>,
    /// `None` until somebody wants to be woken.
    wake_ups: Option<WakeUps>,
}

/// A session, what was prepared on it, and how far it has read.
struct Open {
    session: Session,
    relations: Relations,
    rows_by_key: RowsByKey,
    outbox: Outbox,
    /// `None` until everything was read through this session.
    position: Option<Position>,
}

/// The relations' queries, prepared on a session.
struct Relations {
    credentials: Statement,
    grants: Statement,
    devices: Statement,
}

impl PostgresSource {
    pub fn new(url: &PostgresUrl, store: &Store, authz: &Authz) -> Self {
        Self {
            connector: Connector::new(url, store),
            lag_max: authz.max_replica_lag,
            open: None,
            wake_ups: None,
        }
    }

    /// Runs `read` on a session, and drops the session where that fails.
    fn with_open<T>(
        &mut self,
        read: impl FnOnce(&mut Open, &Connector) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let mut open = match self.open.take() {
            Some(open) => open,
            None => Open::new(&self.connector, self.lag_max)?,
        };
        let value = read(&mut open, &self.connector)?;
        self.open = Some(open);
        Ok(value)
    }
}

impl Source for PostgresSource {
    fn read_all(&mut self) -> Result<Rows, StoreError> {
        self.with_open(Open::read_all)
    }

    fn read_changes(&mut self) -> Result<Changes, StoreError> {
        self.with_open(Open::read_changes)
    }

    fn wake_ups(&mut self) -> Receiver<()> {
        self.wake_ups.get_or_insert_with(|| WakeUps::start(self.connector.clone())).receiver()
    }

    fn describe(&self) -> String {
        self.connector.place.describe()
    }
}

impl Open {
    fn new(connector: &Connector, lag_max: Duration) -> Result<Self, StoreError> {
        let connected = connector.connect(connector.target(), Access::Read, lag_max)?;
        let (session, host) = (connected.session, connector.host_name(connected.host));
        let kind = if connected.state.is_standby { "standby" } else { "primary" };
        tracing::info!("reading rights from {host}, a {kind}");
        schema::check(&session, &connector.place)?;
        let prepared = || {
            let relations = Relations {
                credentials: session.prepare(CREDENTIALS)?,
                grants: session.prepare(GRANTS)?,
                devices: session.prepare(DEVICES)?,
            };
            Ok((relations, RowsByKey::prepare(&session)?, Outbox::prepare(&session)?))
        };
        let (relations, rows_by_key, outbox) =
            prepared().map_err(|failure| connector.place.error(failure))?;
        Ok(Self { session, relations, rows_by_key, outbox, position: None })
    }

    fn read_all(&mut self, connector: &Connector) -> Result<Rows, StoreError> {
        let error = |failure| connector.place.error(failure);
        self.session.batch(BEGIN).map_err(error)?;
        let look = self.outbox.look(&self.session, &Position::BEGINNING).map_err(error)?;
        look.check(&connector.place)?;
        let position = self.outbox.position(&self.session, &look).map_err(error)?;
        let rows = self.relations.read(&self.session).map_err(error)?;
        self.session.batch("COMMIT").map_err(error)?;
        self.position = Some(position);
        Ok(rows)
    }

    fn read_changes(&mut self, connector: &Connector) -> Result<Changes, StoreError> {
        let error = |failure| connector.place.error(failure);
        let Some(position) = &mut self.position else {
            return Ok(Changes::Behind);
        };
        let look = self.outbox.look(&self.session, position).map_err(error)?;
        look.check(&connector.place)?;
        match look.news {
            News::Nothing => {
                position.advance(&look);
                Ok(Changes::Nothing)
            }
            News::Lost => Ok(Changes::Behind),
            News::Some => self.read_changed(connector),
        }
    }

    fn read_changed(&mut self, connector: &Connector) -> Result<Changes, StoreError> {
        let error = |failure| connector.place.error(failure);
        let (Some(position), session) = (&mut self.position, &self.session) else {
            return Ok(Changes::Behind);
        };
        session.batch(BEGIN).map_err(error)?;
        // Again, since this is another moment.
        let look = self.outbox.look(session, position).map_err(error)?;
        look.check(&connector.place)?;
        let changed = match look.news {
            News::Lost => None,
            News::Some | News::Nothing => self.outbox.changed_rows(session, position).map_err(error)?,
        };
        let Some(changed) = changed else {
            session.batch("ROLLBACK").map_err(error)?;
            return Ok(Changes::Behind);
        };
        let next = self.outbox.position(session, &look).map_err(error)?;
        let rows = self.rows_by_key.read(session, &changed).map_err(error)?;
        session.batch("COMMIT").map_err(error)?;
        *position = next;
        let (mut changes, mut quarantined) = (Vec::new(), Vec::new());
        for row in rows {
            match row {
                Ok(change) => changes.push(change),
                Err(bad) => {
                    changes.extend(bad.end());
                    quarantined.push(bad.quarantined);
                }
            }
        }
        if changes.is_empty() && quarantined.is_empty() {
            return Ok(Changes::Nothing);
        }
        Ok(Changes::Some { changes, quarantined })
    }
}

impl Relations {
    /// Reads all, row by row as they come.
    fn read(&self, session: &Session) -> Result<Rows, Failure> {
        session.batch(&format!("SET LOCAL statement_timeout = {}", FULL_READ_TIMEOUT.as_millis()))?;
        let mut rows = Rows::default();
        let Rows { credentials, grants, devices, quarantined, ended } = &mut rows;
        let mut take_bad = |bad: BadRow| {
            ended.extend(bad.end());
            quarantined.push(bad.quarantined);
        };
        session.for_each(&self.credentials, &[], |row| match decode::credential(row) {
            Ok(credential) => credentials.push(credential),
            Err(bad) => take_bad(bad),
        })?;
        session.for_each(&self.grants, &[], |row| match decode::grant(row) {
            Ok(grant) => grants.push(grant),
            Err(bad) => take_bad(bad),
        })?;
        session.for_each(&self.devices, &[], |row| match decode::device(row) {
            Ok(device) => devices.push(device),
            Err(bad) => take_bad(bad),
        })?;
        Ok(rows)
    }
}

const BEGIN: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";

/// For the server to send one whole relation, which may be tens of millions of rows. That it keeps sending
/// is seen to by `store.statement_timeout`.
const FULL_READ_TIMEOUT: Duration = Duration::from_secs(15 * 60);
