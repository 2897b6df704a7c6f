//! Statements that run on either kind of store.
//!
//! [`SqlDatabase`] and [`SqlTransaction`] are what a store has to provide. Their callers write statements once, in the
//! words of [`Dialect`].

use std::net::IpAddr;

use super::StoreError;
use super::dialect::Dialect;
use super::value::{Reason, StoreRow};
use crate::authz::UnixMillis;

/// A store that runs transactions, one at a time.
pub(super) trait SqlDatabase: Send {
    /// Runs `work` in one transaction and ends it as `work` returns. Returns how it ended.
    fn transact(
        &mut self,
        kind: TransactionKind,
        work: &mut dyn FnMut(&dyn SqlTransaction) -> TransactionEnd,
    ) -> Result<TransactionEnd, StoreError>;
}

/// An open transaction.
pub(super) trait SqlTransaction {
    fn dialect(&self) -> &'static Dialect;

    /// Name of the store for errors, without secrets.
    fn store(&self) -> String;

    /// Runs a statement and returns the number of rows that it changed.
    fn execute_sql(&self, sql: &str, params: &[SqlParam<'_>]) -> Result<u64, StoreError>;

    /// Runs a statement and gives each of its rows to `on_row`.
    fn query_sql(
        &self,
        sql: &str,
        params: &[SqlParam<'_>],
        on_row: &mut dyn FnMut(&dyn StoreRow),
    ) -> Result<(), StoreError>;
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum TransactionKind {
    /// Shows one moment of the store, and changes nothing.
    Read,
    Write,
    /// Has one statement, which is a transaction by itself.
    OneStatement,
}

/// The end of a transaction.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum TransactionEnd {
    Commit,
    RollBack,
}

/// A value for a statement's parameter.
#[derive(Clone, Copy, Debug)]
pub(super) enum SqlParam<'a> {
    Null,
    Integer(i64),
    Boolean(bool),
    Text(&'a str),
    Bytes(&'a [u8]),
    Time(UnixMillis),
    Address(IpAddr),
}

impl dyn SqlDatabase + '_ {
    /// Runs `work` in one transaction, which is rolled back if `work` fails.
    pub(super) fn transaction<T, E: From<StoreError>>(
        &mut self,
        kind: TransactionKind,
        work: impl FnOnce(&dyn SqlTransaction) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut work = Some(work);
        let mut result = None;
        self.transact(kind, &mut |transaction| {
            let done = work.take().map(|work| work(transaction));
            let end =
                if matches!(done, Some(Ok(_))) { TransactionEnd::Commit } else { TransactionEnd::RollBack };
            result = done;
            end
        })?;
        result.expect("a transaction runs its work once")
    }
}

impl dyn SqlTransaction + '_ {
    /// Runs `statement` and returns the number of rows that it changed.
    pub(super) fn execute(&self, statement: &str, params: &[SqlParam<'_>]) -> Result<u64, StoreError> {
        self.execute_sql(&self.dialect().sql(statement), params)
    }

    /// Decodes each row that `statement` gives.
    pub(super) fn rows<T>(
        &self,
        statement: &str,
        params: &[SqlParam<'_>],
        decode: impl Fn(&dyn StoreRow) -> Result<T, Reason>,
    ) -> Result<Vec<T>, StoreError> {
        let mut rows = Vec::new();
        let mut bad = None;
        self.query_sql(&self.dialect().sql(statement), params, &mut |row| match decode(row) {
            Ok(row) => rows.push(row),
            Err(reason) => bad = Some(reason),
        })?;
        match bad {
            Some(detail) => Err(StoreError::Query { store: self.store(), detail }),
            None => Ok(rows),
        }
    }

    /// The first row that `statement` gives.
    pub(super) fn first_row<T>(
        &self,
        statement: &str,
        params: &[SqlParam<'_>],
        decode: impl Fn(&dyn StoreRow) -> Result<T, Reason>,
    ) -> Result<Option<T>, StoreError> {
        Ok(self.rows(statement, params, decode)?.into_iter().next())
    }
}

impl<'a, T: Into<SqlParam<'a>>> From<Option<T>> for SqlParam<'a> {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}

impl From<i64> for SqlParam<'_> {
    fn from(integer: i64) -> Self {
        Self::Integer(integer)
    }
}

impl From<bool> for SqlParam<'_> {
    fn from(boolean: bool) -> Self {
        Self::Boolean(boolean)
    }
}

impl<'a> From<&'a str> for SqlParam<'a> {
    fn from(text: &'a str) -> Self {
        Self::Text(text)
    }
}

impl<'a> From<&'a [u8]> for SqlParam<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Self::Bytes(bytes)
    }
}

impl From<UnixMillis> for SqlParam<'_> {
    fn from(time: UnixMillis) -> Self {
        Self::Time(time)
    }
}

impl From<IpAddr> for SqlParam<'_> {
    fn from(address: IpAddr) -> Self {
        Self::Address(address)
    }
}
