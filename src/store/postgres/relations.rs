//! The three relations of the contract: by which queries, and whether these keep it.

use std::time::Duration;

use tokio_postgres::{Row, Statement};

use super::session::{Failure, Session};
use super::{Place, openbalena};
use crate::config::{Authz, Profile, Queries};
use crate::store::contract::{self, Given};
use crate::store::decode::{self, BadRow};
use crate::store::{Noted, Relation, Rows, StoreError};

/// Whose schema is read, and how much of it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::store) enum Schema {
    Reference,
    OpenBalena(Logins),
}

/// What users log in by.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::store) enum Logins {
    Read,
    LeftAlone,
}

impl Schema {
    pub(in crate::store) fn of(profile: Profile, authz: &Authz) -> Self {
        match profile {
            Profile::Reference => Self::Reference,
            Profile::OpenBalena if authz.takes_login_secrets() => Self::OpenBalena(Logins::Read),
            Profile::OpenBalena => Self::OpenBalena(Logins::LeftAlone),
        }
    }

    /// By which credentials, grants and devices are read where nothing replaces them.
    pub(in crate::store) const fn queries(self) -> [&'static str; 3] {
        let credentials = match self {
            Self::Reference => return [CREDENTIALS, GRANTS, DEVICES],
            Self::OpenBalena(Logins::Read) => openbalena::CREDENTIALS_AND_LOGINS,
            Self::OpenBalena(Logins::LeftAlone) => openbalena::CREDENTIALS,
        };
        [credentials, openbalena::GRANTS, openbalena::DEVICES]
    }
}

/// The relations' queries, prepared on a session.
pub(super) struct Relations {
    credentials: Statement,
    grants: Statement,
    devices: Statement,
    /// Gives rights that the profile cannot tell the meaning of; `None` where there are none of those.
    not_understood: Option<Statement>,
}

impl Relations {
    /// Prepares the queries, those of `schema` where `queries` has no others, and holds what they would give
    /// against the contract.
    pub(super) fn prepare(
        session: &Session,
        schema: Schema,
        queries: &Queries,
        place: &Place,
    ) -> Result<Self, StoreError> {
        let [credentials, grants, devices] = schema.queries();
        let prepare = |relation: Relation, replaced: &Option<crate::config::RelationQuery>, ours: &str| {
            let sql = replaced.as_ref().map_or(ours, |query| query.sql.as_str());
            let statement =
                session.prepare(sql).map_err(|failure| place.relation_error(relation, failure))?;
            check(relation, &statement, place)?;
            tell_nullable(session, relation, &statement).map_err(|failure| place.error(failure))?;
            Ok(statement)
        };
        // Whoever replaces the query for grants says what they mean.
        let is_read_by_us = matches!(schema, Schema::OpenBalena(_)) && queries.grants.is_none();
        let not_understood = is_read_by_us.then(|| session.prepare(openbalena::NOT_UNDERSTOOD)).transpose();
        Ok(Self {
            credentials: prepare(Relation::Credentials, &queries.credentials, credentials)?,
            grants: prepare(Relation::Grants, &queries.grants, grants)?,
            devices: prepare(Relation::Devices, &queries.devices, devices)?,
            not_understood: not_understood
                .map_err(|failure| place.relation_error(Relation::Grants, failure))?,
        })
    }

    /// Reads all rows, in the transaction that is open, and decodes them as they come.
    pub(super) fn read(&self, session: &Session, place: &Place) -> Result<Rows, StoreError> {
        let mut rows = Rows::default();
        let Rows { credentials, grants, devices, quarantined, ended } = &mut rows;
        let mut take_bad = |bad: BadRow| {
            ended.extend(bad.end());
            quarantined.push(bad.quarantined);
        };
        let timeout = format!("SET LOCAL statement_timeout = {}", FULL_READ_TIMEOUT.as_millis());
        session.batch(&timeout).map_err(|failure| place.error(failure))?;
        read(session, place, Relation::Credentials, &self.credentials, |row| {
            match decode::credential(row) {
                Ok(credential) => credentials.push(credential),
                Err(bad) => take_bad(bad),
            }
        })?;
        read(session, place, Relation::Grants, &self.grants, |row| match decode::grant(row) {
            Ok(grant) => grants.push(grant),
            Err(bad) => take_bad(bad),
        })?;
        read(session, place, Relation::Devices, &self.devices, |row| match decode::device(row) {
            Ok(device) => devices.push(device),
            Err(bad) => take_bad(bad),
        })?;
        Ok(rows)
    }

    /// Reads, in the same transaction, what was not understood of the rights that are there.
    pub(super) fn read_not_understood(&self, session: &Session, place: &Place) -> Result<Noted, StoreError> {
        let mut noted = Noted::default();
        if let Some(statement) = &self.not_understood {
            read(session, place, Relation::Grants, statement, |row| noted.add(|| openbalena::describe(row)))?;
        }
        Ok(noted)
    }
}

fn check(relation: Relation, statement: &Statement, place: &Place) -> Result<(), StoreError> {
    let broken =
        |detail: String| StoreError::Contract { store: place.describe(), relation: relation.name(), detail };
    if !statement.params().is_empty() {
        return Err(broken("it wants parameters, and there are none".to_owned()));
    }
    let columns = statement.columns().iter();
    let given: Vec<_> =
        columns.map(|column| Given { name: column.name(), kind: Some(column.type_().name()) }).collect();
    contract::check(relation, &given).map_err(|mismatch| broken(mismatch.to_string()))
}

/// Tells of columns that come right from a table that allows null, where the contract has none. No breach: the
/// query may leave such rows out, and those that it does not are quarantined one by one.
fn tell_nullable(session: &Session, relation: Relation, statement: &Statement) -> Result<(), Failure> {
    for (index, name) in contract::not_null(relation) {
        let origin =
            statement.columns().get(index).and_then(|column| column.table_oid().zip(column.column_id()));
        let Some((table, column)) = origin else {
            continue;
        };
        let found = session.query_opt(NULLABLE, &[&table, &column])?;
        if let Some(row) = found {
            tracing::info!(
                "{}.{name} comes from {}, which may be null; rows in which it is will be quarantined",
                relation.name(),
                row.try_get::<_, &str>(0)?
            );
        }
    }
    Ok(())
}

fn read(
    session: &Session,
    place: &Place,
    relation: Relation,
    statement: &Statement,
    take: impl FnMut(&Row),
) -> Result<(), StoreError> {
    let read: Result<(), Failure> = session.for_each(statement, &[], take);
    read.map_err(|failure| place.relation_error(relation, failure))
}

/// Relation `credentials` on the reference schema. The credentials of a removed principal are revoked. A credential whose
/// principal does not exist is left out and not revoked: if the column has come to mean something else, nothing may end
/// for ever.
pub(super) const CREDENTIALS: &str = "
    SELECT key_sha256, principal, expires_at,
        revoked_at IS NOT NULL OR removed_at IS NOT NULL AS revoked
    FROM sluicegate.credentials JOIN sluicegate.principals ON principals.id = principal";

/// Relation `grants` on the reference schema.
pub(super) const GRANTS: &str = "
    SELECT grants.id AS grant_id, principal, scope, target, port_min, port_max, expires_at,
        revoked_at IS NOT NULL OR removed_at IS NOT NULL AS revoked
    FROM sluicegate.grants JOIN sluicegate.principals ON principals.id = principal";

/// Relation `devices` on the reference schema.
pub(super) const DEVICES: &str = "
    SELECT id AS device, uuid, fleet, address, node, online FROM sluicegate.devices";

/// A table's column by the table's and its own number, if it may be null. Of a view nothing is known.
const NULLABLE: &str = "
    SELECT format('%I.%I', relname, attname) FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid
    WHERE attrelid = $1 AND attnum = $2 AND NOT attnotnull AND relkind IN ('r', 'p')";

/// For the server to send one whole relation, which may be tens of millions of rows. That it keeps sending
/// is seen to by `store.statement_timeout`.
const FULL_READ_TIMEOUT: Duration = Duration::from_secs(15 * 60);
