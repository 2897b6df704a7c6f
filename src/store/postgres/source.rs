//! The relay's side: reads and never writes.
//!
//! Each read is one transaction at REPEATABLE READ. Rows are decoded as they come in, so that nothing is
//! held beside them. After an error the session is dropped, and with it the position in the outbox: the next
//! read may reach another server, whose transaction numbers mean other transactions.

use std::time::Duration;

use tokio_postgres::{Row, Statement};

use super::connect::{Access, Connector};
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
}

/// A session and what was prepared on it.
struct Open {
    session: Session,
    credentials: Statement,
    grants: Statement,
    devices: Statement,
}

impl PostgresSource {
    pub fn new(url: &PostgresUrl, store: &Store, authz: &Authz) -> Self {
        Self { connector: Connector::new(url, store), lag_max: authz.max_replica_lag, open: None }
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
        Ok(Changes::Behind)
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
        let prepare = |sql| session.prepare(sql).map_err(|failure| connector.place.error(failure));
        let (credentials, grants, devices) = (prepare(CREDENTIALS)?, prepare(GRANTS)?, prepare(DEVICES)?);
        Ok(Self { session, credentials, grants, devices })
    }

    fn read_all(&mut self, connector: &Connector) -> Result<Rows, StoreError> {
        self.read_all_rows().map_err(|failure| connector.place.error(failure))
    }

    fn read_all_rows(&mut self) -> Result<Rows, Failure> {
        let mut rows = Rows::default();
        let Rows { credentials, grants, devices, quarantined, ended } = &mut rows;
        let mut take_bad = |bad: BadRow| {
            ended.extend(bad.end());
            quarantined.push(bad.quarantined);
        };
        let session = &self.session;
        session.batch(BEGIN)?;
        session.batch(&format!("SET LOCAL statement_timeout = {}", FULL_READ_TIMEOUT.as_millis()))?;
        session.for_each(&self.credentials, &[], |row: &Row| match decode::credential(row) {
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
        session.batch("COMMIT")?;
        Ok(rows)
    }
}

const BEGIN: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";

/// For the server to send one whole relation, which may be tens of millions of rows. That it keeps sending
/// is seen to by `store.statement_timeout`.
const FULL_READ_TIMEOUT: Duration = Duration::from_secs(15 * 60);
