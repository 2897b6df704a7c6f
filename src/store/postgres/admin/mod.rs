//! The writing side of a store on PostgreSQL.
//!
//! Each call is one transaction. Triggers of the schema tell the relays what changed and keep the outbox
//! short.

mod devices;
mod grants;
mod principals;
mod tokens;

use super::connect::{Access, Connector};
use super::session::{self, Session};
use super::{Place, schema};
use crate::config::postgres::TargetSession;
use crate::config::{PostgresUrl, Store};
use crate::store::admin::{AdminError, Nearest};
use crate::store::{Initialised, StoreError};

/// An open store that may be changed.
pub struct Admin {
    place: Place,
    session: Session,
}

impl Admin {
    /// Brings the database at `url`, which must exist, to this program's schema.
    pub fn init(url: &PostgresUrl, store: &Store) -> Result<Initialised, StoreError> {
        let admin = Self::connect(url, store)?;
        schema::initialise(&admin.session, &admin.place)
    }

    /// Opens the store at `url`, which must be of this program's schema.
    pub fn open(url: &PostgresUrl, store: &Store) -> Result<Self, StoreError> {
        let admin = Self::connect(url, store)?;
        schema::check(&admin.session, &admin.place)?;
        Ok(admin)
    }

    /// Whatever the URL says of which server a relay is to read: writes go to the primary.
    fn connect(url: &PostgresUrl, store: &Store) -> Result<Self, StoreError> {
        let connector = Connector::new(url, store);
        let connected =
            connector.connect(TargetSession::Primary, Access::Write, std::time::Duration::ZERO)?;
        Ok(Self { place: connector.place, session: connected.session })
    }

    /// Changes the store by `change`, wholly or not at all.
    fn write<T>(&mut self, change: impl FnOnce(&Session) -> Result<T, Failure>) -> Result<T, AdminError> {
        self.transact("BEGIN", change)
    }

    fn read<T>(&mut self, read: impl FnOnce(&Session) -> Result<T, Failure>) -> Result<T, AdminError> {
        self.transact("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY", read)
    }

    fn transact<T>(
        &mut self,
        begin: &str,
        work: impl FnOnce(&Session) -> Result<T, Failure>,
    ) -> Result<T, AdminError> {
        let session = &self.session;
        let work = || {
            session.batch(begin)?;
            let value = work(session)?;
            session.batch("COMMIT")?;
            Ok(value)
        };
        work().map_err(|failure| {
            // Where even that fails the session is over, and the transaction with it.
            drop(session.batch("ROLLBACK"));
            match failure {
                Failure::Session(failure) => self.place.error(failure).into(),
                Failure::Admin(error) => *error,
            }
        })
    }
}

/// What can go wrong inside a transaction, before it is known which store it was.
enum Failure {
    Session(session::Failure),
    Admin(Box<AdminError>),
}

impl From<session::Failure> for Failure {
    fn from(failure: session::Failure) -> Self {
        Self::Session(failure)
    }
}

impl From<tokio_postgres::Error> for Failure {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Session(error.into())
    }
}

impl From<AdminError> for Failure {
    fn from(error: AdminError) -> Self {
        Self::Admin(Box::new(error))
    }
}

/// What `name` may have been meant to be, among the texts that `sql` selects.
fn nearest(session: &Session, sql: &str, name: &str, otherwise: &'static str) -> Result<Nearest, Failure> {
    let rows = session.query(sql, &[])?;
    let candidates: Vec<String> = rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?;
    Ok(Nearest::among(candidates, name, otherwise))
}
