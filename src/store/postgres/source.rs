//! The relay's side of a store on PostgreSQL. It reads and never writes.
//!
//! Each read is one transaction at REPEATABLE READ. Rows are decoded as they come in, so that nothing is held beside
//! them. After an error the session is dropped, and the position in the outbox with it: the next read may reach
//! another server, whose transaction numbers mean other transactions.

use std::time::{Duration, Instant};

use crossbeam::channel::{self, Receiver};

use super::connect::{Access, Connector};
use super::listen::WakeUps;
use super::open_session::OpenSession;
use super::outbox_reader::OutboxReader;
use super::relations::{PostgresRelations, SourceSchema};
use super::state::ServerState;
use super::{PostgresName, schema};
use crate::config::{Authz, PostgresUrl, Queries, Store};
use crate::store::polling::Polling;
use crate::store::{Changes, Comparison, Examples, Rows, Source, StoreError, StoreWarnings};

/// A source on a PostgreSQL database.
pub struct PostgresSource {
    connector: Connector,
    schema: SourceSchema,
    queries: Queries,
    reread_every: Duration,
    lag_max: Duration,
    /// Present if the schema or a query is not ours: then there is no outbox to read.
    polling: Option<Polling>,
    /// `None` before the first read and after an error.
    open: Option<OpenSession>,
    /// Earliest time to try the other hosts for one that is less behind.
    try_hosts_at: Instant,
    /// `None` until somebody asks for wake-ups.
    wake_ups: Option<WakeUps>,
    /// Result of the last full read.
    not_understood: Examples,
}

impl PostgresSource {
    pub fn new(url: &PostgresUrl, store: &Store, authz: &Authz) -> Self {
        let mut source = Self {
            connector: Connector::new(url, store),
            schema: SourceSchema::of(store.profile, authz),
            queries: Queries::default(),
            reread_every: authz.reread,
            lag_max: authz.max_replica_lag,
            polling: None,
            open: None,
            try_hosts_at: Instant::now(),
            wake_ups: None,
            not_understood: Examples::default(),
        };
        source.replace_queries(authz.queries.clone());
        source
    }

    /// Runs `read` on a session, and drops the session if that fails.
    fn with_open<T>(
        &mut self,
        read: impl FnOnce(&mut OpenSession, &PostgresName) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let mut open = match self.open.take() {
            Some(open) => open,
            None => self.connect()?,
        };
        let was_behind = open.state.lag > self.lag_max;
        let value = read(&mut open, &self.connector.name)?;
        self.log_lag(was_behind, open.state);
        self.open = Some(open);
        self.leave_if_behind();
        Ok(value)
    }

    fn connect(&self) -> Result<OpenSession, StoreError> {
        let connected = self.connector.connect(self.connector.target(), Access::Read, self.lag_max)?;
        let host = self.connector.host_name(connected.host);
        let kind = if connected.state.is_standby { "standby" } else { "primary" };
        tracing::info!("reading rights from {host}, a {kind}");
        self.log_lag(false, connected.state);
        let name = &self.connector.name;
        let follows_outbox = self.polling.is_none();
        if follows_outbox {
            schema::check(&connected.session, name)?;
        }
        let relations = PostgresRelations::prepare(&connected.session, self.schema, &self.queries, name)?;
        let outbox = follows_outbox.then(|| OutboxReader::prepare(&connected.session)).transpose();
        Ok(OpenSession::new(connected, relations, outbox.map_err(|error| name.error(error))?))
    }

    fn read_everything(&mut self) -> Result<Rows, StoreError> {
        let (rows, not_understood) = self.with_open(OpenSession::read_all)?;
        if not_understood != self.not_understood {
            let warnings = StoreWarnings { not_understood, ..StoreWarnings::default() };
            warnings.lines().iter().for_each(|line| tracing::warn!("{}: {line}", self.describe()));
            self.not_understood = warnings.not_understood;
        }
        Ok(rows)
    }

    fn log_lag(&self, was_behind: bool, state: ServerState) {
        let is_behind = state.lag > self.lag_max;
        let (store, lag) = (self.connector.name.describe(), state.lag.as_secs());
        if is_behind && !was_behind {
            tracing::warn!(
                "the standby of {store} is {lag} s behind its primary, and no other host will do; what was revoked \
                 since is not known here"
            );
        } else if was_behind && !is_behind {
            tracing::info!("the standby of {store} has caught up");
        }
    }

    /// Drops the session to a host that is behind, if another host is not.
    fn leave_if_behind(&mut self) {
        let is_behind = self.open.as_ref().is_some_and(|open| open.state.lag > self.lag_max);
        if !is_behind || !self.connector.has_choice() || Instant::now() < self.try_hosts_at {
            return;
        }
        self.try_hosts_at = Instant::now() + TRY_HOSTS_EVERY;
        // An unreachable host is an error only if there is no other to read from.
        if let Ok(other) = self.connector.connect(self.connector.target(), Access::Read, self.lag_max)
            && other.state.lag <= self.lag_max
        {
            tracing::info!("leaving a standby that is behind");
            self.open = None;
        }
    }
}

impl Source for PostgresSource {
    fn read_all(&mut self) -> Result<Rows, StoreError> {
        let rows = self.read_everything()?;
        if let Some(polling) = &mut self.polling {
            polling.record(&rows);
        }
        Ok(rows)
    }

    fn read_changes(&mut self) -> Result<Changes, StoreError> {
        if let Some(polling) = &self.polling {
            if !polling.is_due() {
                return Ok(Changes::Nothing);
            }
            let rows = self.read_everything()?;
            return Ok(self.polling.as_mut().map_or(Changes::Behind, |polling| polling.changes(rows)));
        }
        self.with_open(OpenSession::read_changes)
    }

    fn compare(&mut self, candidate: &Queries) -> Result<Comparison, StoreError> {
        let schema = self.schema;
        self.with_open(|open, name| open.compare(schema, candidate, name))
    }

    fn replace_queries(&mut self, queries: Queries) {
        let is_ours = self.schema == SourceSchema::Reference && !queries.are_replaced();
        self.polling = (!is_ours).then(|| Polling::new(self.reread_every));
        if !is_ours {
            self.wake_ups = None;
        }
        self.queries = queries;
        self.open = None;
    }

    fn warnings(&self) -> StoreWarnings {
        StoreWarnings { not_understood: self.not_understood.clone(), ..StoreWarnings::default() }
    }

    fn lag(&self) -> Duration {
        self.open.as_ref().map_or(Duration::ZERO, |open| open.state.lag)
    }

    fn readable_since(&self) -> Option<Instant> {
        self.open.as_ref()?.outbox.as_ref()?.readable_since()
    }

    /// Gives wake-ups on the reference schema alone, whose triggers send them.
    fn wake_ups(&mut self) -> Receiver<()> {
        if self.polling.is_some() {
            return channel::never();
        }
        self.wake_ups.get_or_insert_with(|| WakeUps::start(self.connector.clone())).receiver()
    }

    fn describe(&self) -> String {
        let name = self.connector.name.describe();
        match self.schema {
            SourceSchema::Reference => name,
            // A snapshot of another schema on the same server must not pass for one of this.
            SourceSchema::OpenBalena(_) => format!("{name} (openBalena)"),
        }
    }
}

/// Time between two attempts to find a host that is less behind.
const TRY_HOSTS_EVERY: Duration = Duration::from_secs(5);
