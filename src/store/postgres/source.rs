//! The relay's side: reads and never writes.
//!
//! Each read is one transaction at REPEATABLE READ. Rows are decoded as they come in, so that nothing is
//! held beside them. After an error the session is dropped, and with it the position in the outbox: the next
//! read may reach another server, whose transaction numbers mean other transactions.

use std::time::{Duration, Instant};

use crossbeam::channel::{self, Receiver};

use super::changes::RowsByKey;
use super::connect::{Access, Connected, Connector};
use super::listen::WakeUps;
use super::outbox::{News, Outbox, Position};
use super::relations::{Relations, Schema};
use super::session::{Failure, Session};
use super::state::ServerState;
use super::{Place, schema};
use crate::config::{Authz, PostgresUrl, Queries, Store};
use crate::store::polling::Rereading;
use crate::store::{Changes, Comparison, Noted, Rows, Source, StoreError, StoreWarnings};

/// See the module.
pub struct PostgresSource {
    connector: Connector,
    schema: Schema,
    queries: Queries,
    reread_every: Duration,
    lag_max: Duration,
    /// Where the schema is not ours, so that there is no outbox to go by.
    rereading: Option<Rereading>,
    /// `None` before the first read and after an error.
    open: Option<Open>,
    /// When hosts are next looked through for one that is less behind.
    look_around_at: Instant,
    /// `None` until somebody wants to be woken.
    wake_ups: Option<WakeUps>,
    /// As of the last full read.
    not_understood: Noted,
}

/// A session and what was prepared on it.
struct Open {
    session: Session,
    state: ServerState,
    /// When the server was last seen to be behind by nothing.
    caught_up_at: Option<Instant>,
    relations: Relations,
    /// `None` where the schema is not ours.
    follower: Option<Follower>,
}

/// What follows the outbox of the reference schema.
struct Follower {
    outbox: Outbox,
    rows_by_key: RowsByKey,
    /// `None` until everything was read through this session.
    position: Option<Position>,
    /// When the oldest of the changes that were read last was written.
    readable_since: Option<Instant>,
}

impl PostgresSource {
    pub fn new(url: &PostgresUrl, store: &Store, authz: &Authz) -> Self {
        let mut source = Self {
            connector: Connector::new(url, store),
            schema: Schema::of(store.profile, authz),
            queries: Queries::default(),
            reread_every: authz.reread,
            lag_max: authz.max_replica_lag,
            rereading: None,
            open: None,
            look_around_at: Instant::now(),
            wake_ups: None,
            not_understood: Noted::default(),
        };
        source.replace_queries(authz.queries.clone());
        source
    }

    /// Runs `read` on a session, and drops the session where that fails.
    fn with_open<T>(
        &mut self,
        read: impl FnOnce(&mut Open, &Place) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let mut open = match self.open.take() {
            Some(open) => open,
            None => self.connect()?,
        };
        let was_behind = open.state.lag > self.lag_max;
        let value = read(&mut open, &self.connector.place)?;
        self.tell_lag(was_behind, open.state);
        self.open = Some(open);
        self.leave_if_behind();
        Ok(value)
    }

    fn connect(&self) -> Result<Open, StoreError> {
        let connected = self.connector.connect(self.connector.target(), Access::Read, self.lag_max)?;
        let host = self.connector.host_name(connected.host);
        let kind = if connected.state.is_standby { "standby" } else { "primary" };
        tracing::info!("reading rights from {host}, a {kind}");
        self.tell_lag(false, connected.state);
        let place = &self.connector.place;
        let follows_outbox = self.rereading.is_none();
        if follows_outbox {
            schema::check(&connected.session, place)?;
        }
        let relations = Relations::prepare(&connected.session, self.schema, &self.queries, place)?;
        let follower = follows_outbox.then(|| Follower::prepare(&connected.session)).transpose();
        Ok(Open::new(connected, relations, follower.map_err(|failure| place.error(failure))?))
    }

    fn read_everything(&mut self) -> Result<Rows, StoreError> {
        let (rows, not_understood) = self.with_open(Open::read_all)?;
        if not_understood != self.not_understood {
            let warnings = StoreWarnings { not_understood, ..StoreWarnings::default() };
            warnings.lines().iter().for_each(|line| tracing::warn!("{}: {line}", self.describe()));
            self.not_understood = warnings.not_understood;
        }
        Ok(rows)
    }

    fn tell_lag(&self, was_behind: bool, state: ServerState) {
        let is_behind = state.lag > self.lag_max;
        let (store, lag) = (self.connector.place.describe(), state.lag.as_secs());
        if is_behind && !was_behind {
            tracing::warn!(
                "the standby of {store} is {lag} s behind its primary, and no other host will do; what was revoked \
                 since is not known here"
            );
        } else if was_behind && !is_behind {
            tracing::info!("the standby of {store} has caught up");
        }
    }

    /// Goes over to a host that is not behind, where there is one.
    fn leave_if_behind(&mut self) {
        let is_behind = self.open.as_ref().is_some_and(|open| open.state.lag > self.lag_max);
        if !is_behind || !self.connector.has_choice() || Instant::now() < self.look_around_at {
            return;
        }
        self.look_around_at = Instant::now() + LOOK_AROUND_PAUSE;
        // What cannot be reached is told when there is nothing else to read from.
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
        if let Some(rereading) = &mut self.rereading {
            rereading.note(&rows);
        }
        Ok(rows)
    }

    fn read_changes(&mut self) -> Result<Changes, StoreError> {
        if let Some(rereading) = &self.rereading {
            if !rereading.is_due() {
                return Ok(Changes::Nothing);
            }
            let rows = self.read_everything()?;
            return Ok(self.rereading.as_mut().map_or(Changes::Behind, |rereading| rereading.changes(rows)));
        }
        self.with_open(Open::read_changes)
    }

    fn compare(&mut self, candidate: &Queries) -> Result<Comparison, StoreError> {
        let schema = self.schema;
        self.with_open(|open, place| open.compare(schema, candidate, place))
    }

    fn replace_queries(&mut self, queries: Queries) {
        let is_ours = self.schema == Schema::Reference && !queries.are_replaced();
        self.rereading = (!is_ours).then(|| Rereading::new(self.reread_every));
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
        self.open.as_ref()?.follower.as_ref()?.readable_since
    }

    /// Only the reference schema's triggers give any.
    fn wake_ups(&mut self) -> Receiver<()> {
        if self.rereading.is_some() {
            return channel::never();
        }
        self.wake_ups.get_or_insert_with(|| WakeUps::start(self.connector.clone())).receiver()
    }

    fn describe(&self) -> String {
        let place = self.connector.place.describe();
        match self.schema {
            Schema::Reference => place,
            // What was kept of another schema on the same server is no snapshot of this one.
            Schema::OpenBalena(_) => format!("{place} (openBalena)"),
        }
    }
}

impl Open {
    fn new(connected: Connected, relations: Relations, follower: Option<Follower>) -> Self {
        let Connected { session, state, .. } = connected;
        Self { relations, state, caught_up_at: None, follower, session }
    }

    /// Takes note of what the server is at. What it says of its lag is as old as the last commit that it
    /// has, and so too much where a long silence has just ended; it cannot lag by more than it was seen to
    /// not lag for.
    fn observe(&mut self, mut state: ServerState) {
        if state.lag.is_zero() {
            self.caught_up_at = Some(Instant::now());
        } else if let Some(at) = self.caught_up_at {
            state.lag = state.lag.min(at.elapsed());
        }
        self.state = state;
    }

    fn read_all(&mut self, place: &Place) -> Result<(Rows, Noted), StoreError> {
        let session = &self.session;
        let error = |failure| place.error(failure);
        session.batch(BEGIN).map_err(error)?;
        let (state, position) = match &self.follower {
            Some(follower) => {
                let look = follower.outbox.look(session, &Position::BEGINNING).map_err(error)?;
                look.check(place)?;
                (look.state, Some(follower.outbox.position(session, &look).map_err(error)?))
            }
            None => (ServerState::query(session).map_err(error)?, None),
        };
        let rows = self.relations.read(session, place)?;
        let not_understood = self.relations.read_not_understood(session, place)?;
        session.batch("COMMIT").map_err(error)?;
        if let Some(follower) = &mut self.follower {
            follower.position = position;
        }
        self.observe(state);
        Ok((rows, not_understood))
    }

    fn compare(
        &mut self,
        schema: Schema,
        candidate: &Queries,
        place: &Place,
    ) -> Result<Comparison, StoreError> {
        let session = &self.session;
        let candidate = Relations::prepare(session, schema, candidate, place)?;
        session.batch(BEGIN).map_err(|failure| place.error(failure))?;
        let running = self.relations.read(session, place)?;
        let candidate = candidate.read(session, place)?;
        session.batch("COMMIT").map_err(|failure| place.error(failure))?;
        Ok(Comparison { running, candidate })
    }

    fn read_changes(&mut self, place: &Place) -> Result<Changes, StoreError> {
        let Some(follower) = &mut self.follower else {
            return Ok(Changes::Behind);
        };
        let mut state = self.state;
        let changes = follower.read_changes(&self.session, &mut state, place)?;
        self.observe(state);
        Ok(changes)
    }
}

impl Follower {
    fn prepare(session: &Session) -> Result<Self, Failure> {
        let (outbox, rows_by_key) = (Outbox::prepare(session)?, RowsByKey::prepare(session)?);
        Ok(Self { outbox, rows_by_key, position: None, readable_since: None })
    }

    fn read_changes(
        &mut self,
        session: &Session,
        state: &mut ServerState,
        place: &Place,
    ) -> Result<Changes, StoreError> {
        let error = |failure| place.error(failure);
        let Some(position) = &mut self.position else {
            return Ok(Changes::Behind);
        };
        let look = self.outbox.look(session, position).map_err(error)?;
        look.check(place)?;
        *state = look.state;
        match look.news {
            News::Nothing => {
                position.advance(&look);
                return Ok(Changes::Nothing);
            }
            News::Lost => return Ok(Changes::Behind),
            News::Some => {}
        }
        session.batch(BEGIN).map_err(error)?;
        // Again, since this is another moment.
        let look = self.outbox.look(session, position).map_err(error)?;
        look.check(place)?;
        let changed = match look.news {
            News::Lost => None,
            News::Some | News::Nothing => self.outbox.changed_rows(session, position).map_err(error)?,
        };
        let Some(changed) = changed else {
            session.batch("ROLLBACK").map_err(error)?;
            return Ok(Changes::Behind);
        };
        let next = self.outbox.position(session, &look).map_err(error)?;
        self.readable_since = changed.readable_since;
        let rows = self.rows_by_key.read(session, &changed.rows).map_err(error)?;
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

const BEGIN: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";

/// Between two looks for a host that is less behind than the one that is read.
const LOOK_AROUND_PAUSE: Duration = Duration::from_secs(5);
