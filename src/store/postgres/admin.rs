//! Makes and opens a store on PostgreSQL for commands that change it.

use super::connect::{Access, Connector};
use super::session::PostgresSession;
use super::{PostgresName, schema, transaction};
use crate::config::postgres::TargetSession;
use crate::config::{PostgresUrl, Store};
use crate::store::admin::Admin;
use crate::store::sql::{SqlDatabase, SqlTransaction, TransactionEnd, TransactionKind};
use crate::store::{Initialised, StoreError};

/// Brings the database at `url`, which must exist, to this program's schema.
pub(in crate::store) fn init(url: &PostgresUrl, store: &Store) -> Result<Initialised, StoreError> {
    let admin = PostgresAdmin::connect(url, store)?;
    schema::initialise(&admin.session, &admin.name)
}

/// Opens the store at `url`, which must be of this program's schema.
pub(in crate::store) fn open(url: &PostgresUrl, store: &Store) -> Result<Admin, StoreError> {
    let admin = PostgresAdmin::connect(url, store)?;
    schema::check(&admin.session, &admin.name)?;
    Ok(Admin::new(admin))
}

/// A session that commands change the store by.
struct PostgresAdmin {
    name: PostgresName,
    session: PostgresSession,
}

impl PostgresAdmin {
    /// Connects to the primary, whichever server the URL wants a relay to read.
    fn connect(url: &PostgresUrl, store: &Store) -> Result<Self, StoreError> {
        let connector = Connector::new(url, store);
        let connected =
            connector.connect(TargetSession::Primary, Access::Write, std::time::Duration::ZERO)?;
        Ok(Self { name: connector.name, session: connected.session })
    }
}

impl SqlDatabase for PostgresAdmin {
    fn transact(
        &mut self,
        kind: TransactionKind,
        work: &mut dyn FnMut(&dyn SqlTransaction) -> TransactionEnd,
    ) -> Result<TransactionEnd, StoreError> {
        transaction::run(&self.session, &self.name, kind, work)
    }
}
