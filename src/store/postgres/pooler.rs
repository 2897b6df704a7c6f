//! Finds a pooler in front of a server that gives each transaction another connection, such as PgBouncer with
//! `pool_mode = transaction`.
//!
//! A relay needs a session of its own: time limits, prepared queries and LISTEN belong to it. Behind such a pooler they
//! reach whoever gets the connection next.

use std::time::Duration;

use super::connect::{Access, Connector};
use super::session::{PostgresSession, SessionError};
use crate::config::{PostgresUrl, Store};
use crate::store::StoreError;

/// Fails where sessions of `url` are not connections of their own.
pub fn check_sessions(url: &PostgresUrl, store: &Store) -> Result<(), StoreError> {
    let connector = Connector::new(url, store);
    let error = |error| connector.name.error(error);
    let target = connector.target();
    let one = connector.connect(target, Access::Read, Duration::MAX)?;
    let before = backend(&one.session).map_err(error)?;
    let other = connector.connect_to_one(one.host, target, Access::Read)?;
    // The other session keeps a connection for the length of its transaction: that of the first, if they share it.
    other.session.batch("BEGIN").map_err(error)?;
    let is_shared =
        backend(&other.session).map_err(error)? == before || backend(&one.session).map_err(error)? != before;
    match is_shared {
        true => Err(StoreError::Pooled { store: connector.name.describe() }),
        false => Ok(()),
    }
}

/// The process of the server that serves this session now.
fn backend(session: &PostgresSession) -> Result<i32, SessionError> {
    Ok(session.query_one("SELECT pg_backend_pid()", &[])?.try_get(0)?)
}
