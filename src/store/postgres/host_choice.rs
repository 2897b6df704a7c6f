//! The host that a reader reads from, of those that the URL names.
//!
//! All readers of one node prefer the host that the words come from. A relation that came from a standby which is a few
//! milliseconds behind it would be older than the words, and could not be believed.

use std::time::{Duration, Instant};

use super::connect::{Access, Connected, Connector};
use super::reader_session::ReaderSession;
use super::state::ServerState;
use crate::store::{KnownPosition, StoreError};
use crate::telemetry::LogOnChange;

/// Chooses hosts for one reader.
pub(super) struct HostChoice {
    connector: Connector,
    lag_max: Duration,
    /// Has the host of the words.
    known: KnownPosition,
    /// Earliest time to try another host than the one that is read.
    try_hosts_at: Instant,
    host: LogOnChange,
    behind: LogOnChange<()>,
}

impl HostChoice {
    pub(super) fn new(connector: Connector, lag_max: Duration, known: KnownPosition) -> Self {
        Self {
            connector,
            lag_max,
            known,
            try_hosts_at: Instant::now(),
            host: LogOnChange::default(),
            behind: LogOnChange::default(),
        }
    }

    /// Opens a session to the host of the words, or to the first that will do.
    pub(super) fn connect(&mut self) -> Result<ReaderSession, StoreError> {
        let preferred = self.known.words_host().and_then(|host| self.connect_to(host));
        let connected = match preferred {
            Some(connected) => connected,
            None => self.connector.connect(self.connector.target(), Access::Read, self.lag_max)?,
        };
        Ok(self.log_opened(connected))
    }

    /// Opens a session to the host of the words, for a reader that has `open`. `None` if it is there already, or if that
    /// host cannot be read now.
    pub(super) fn follow_words(&mut self, open: &ReaderSession) -> Option<ReaderSession> {
        let host = self.known.words_host().filter(|host| *host != open.host)?;
        if Instant::now() < self.try_hosts_at {
            return None;
        }
        self.try_hosts_at = Instant::now() + TRY_HOSTS_EVERY;
        let connected = self.connect_to(host)?;
        Some(self.log_opened(connected))
    }

    /// Records the host that words come from now; `None` where they cannot be read.
    pub(super) fn set_words_host(&self, host: Option<usize>) {
        self.known.set_words_host(host);
    }

    /// True if `open` leads to a host that is behind, and another host is not.
    pub(super) fn is_to_be_left(&mut self, open: &ReaderSession) -> bool {
        let is_behind = open.state.lag > self.lag_max;
        if !is_behind || !self.connector.has_choice() || Instant::now() < self.try_hosts_at {
            return false;
        }
        self.try_hosts_at = Instant::now() + TRY_HOSTS_EVERY;
        let connector = &self.connector;
        // An unreachable host is an error only if there is no other to read from.
        let other = connector.connect(connector.target(), Access::Read, self.lag_max);
        let is_better = other.is_ok_and(|other| other.state.lag <= self.lag_max);
        if is_better {
            tracing::info!("leaving a standby that is behind");
        }
        is_better
    }

    pub(super) fn log_lag(&mut self, state: ServerState) {
        let (store, lag) = (self.connector.name.describe(), state.lag.as_secs());
        if state.lag <= self.lag_max {
            if self.behind.ends() {
                tracing::info!("the standby of {store} has caught up");
            }
        } else if self.behind.changes_to(()) {
            tracing::warn!(
                "the standby of {store} is {lag} s behind its primary, and no other host will do; what was revoked \
                 since is not known here"
            );
        }
    }

    /// A session to `host`, if it may be read and is not behind.
    fn connect_to(&self, host: usize) -> Option<Connected> {
        let connected = self.connector.connect_to_one(host, self.connector.target(), Access::Read).ok()?;
        (connected.state.lag <= self.lag_max).then_some(connected)
    }

    fn log_opened(&mut self, connected: Connected) -> ReaderSession {
        let kind = if connected.state.is_standby { "standby" } else { "primary" };
        let host = format!("{}, a {kind}", self.connector.host_name(connected.host));
        if self.host.changes_to(host.clone()) {
            tracing::info!("reading rights from {host}");
        }
        self.log_lag(connected.state);
        ReaderSession::new(connected)
    }
}

/// Time between two attempts to read from another host.
const TRY_HOSTS_EVERY: Duration = Duration::from_secs(5);
