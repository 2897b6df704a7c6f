//! Reads the three relations of the contract, and checks that their queries keep it.

use std::time::Duration;

use tokio_postgres::{Row, Statement};

use super::session::{PostgresSession, SessionError};
use super::transaction::BEGIN_READ;
use super::{PostgresName, openbalena};
use crate::config::{Authz, Profile, Queries};
use crate::store::contract::{self, GivenColumn};
use crate::store::dialect::POSTGRES;
use crate::store::relations::{DecodedRelation, PerRelation};
use crate::store::{Examples, Relation, Rows, StoreError};

/// The schema that is read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::store) enum SourceSchema {
    Reference,
    OpenBalena(LoginSecrets),
}

/// Use of the secrets that openBalena's users log in by.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::store) enum LoginSecrets {
    Read,
    LeftAlone,
}

impl SourceSchema {
    pub(in crate::store) fn of(profile: Profile, authz: &Authz) -> Self {
        match profile {
            Profile::Reference => Self::Reference,
            Profile::OpenBalena if authz.takes_login_secrets() => Self::OpenBalena(LoginSecrets::Read),
            Profile::OpenBalena => Self::OpenBalena(LoginSecrets::LeftAlone),
        }
    }

    /// The queries on this schema, which the operator may replace.
    pub(in crate::store) fn queries(self) -> PerRelation<String> {
        let (credentials, grants) = match self {
            Self::Reference => return PerRelation::of_reference_schema(&POSTGRES),
            Self::OpenBalena(LoginSecrets::Read) => {
                (openbalena::CREDENTIALS_AND_LOGINS, openbalena::GRANTS_AND_ROLES)
            }
            Self::OpenBalena(LoginSecrets::LeftAlone) => (openbalena::CREDENTIALS, openbalena::GRANTS),
        };
        PerRelation {
            credentials: credentials.to_owned(),
            grants: grants.to_owned(),
            devices: openbalena::DEVICES.to_owned(),
        }
    }
}

/// The query of one relation, prepared on a session.
pub(super) struct PostgresRelation {
    relation: Relation,
    query: Statement,
    /// Gives rights that the profile does not understand. `None` for other relations, and where the grants come from
    /// another query.
    not_understood: Option<Statement>,
}

/// Rows of one relation, and the rights among them that are not understood.
pub(super) struct ReadRelation {
    pub(super) decoded: DecodedRelation,
    pub(super) not_understood: Option<Examples>,
}

impl PostgresRelation {
    /// Prepares the query for `relation`, which `queries` may replace, and checks its columns against the contract.
    pub(super) fn prepare(
        session: &PostgresSession,
        schema: SourceSchema,
        queries: &Queries,
        relation: Relation,
        name: &PostgresName,
    ) -> Result<Self, StoreError> {
        let sqls = schema.queries().replaced_by(queries);
        let query = prepare(session, relation, sqls.get(relation), name)?;
        // An operator who replaces the query for grants decides what they mean.
        let is_read_by_us = matches!(schema, SourceSchema::OpenBalena(_)) && queries.grants.is_none();
        let not_understood = (is_read_by_us && relation == Relation::Grants)
            .then(|| session.prepare(openbalena::NOT_UNDERSTOOD))
            .transpose()
            .map_err(|error| name.relation_error(relation, error))?;
        Ok(Self { relation, query, not_understood })
    }

    /// Reads all rows as of one moment, in a transaction of its own. After an error the transaction may still be open.
    pub(super) fn read(
        &self,
        session: &PostgresSession,
        name: &PostgresName,
    ) -> Result<ReadRelation, StoreError> {
        session.batch(BEGIN_READ).map_err(|error| name.error(error))?;
        allow_full_read(session, name)?;
        let mut decoded = DecodedRelation::new(self.relation);
        read(session, name, self.relation, &self.query, |row| decoded.add(row))?;
        let mut examples = Examples::default();
        if let Some(statement) = &self.not_understood {
            read(session, name, self.relation, statement, |row| {
                examples.add(|| openbalena::describe(row));
            })?;
        }
        session.batch("COMMIT").map_err(|error| name.error(error))?;
        Ok(ReadRelation { decoded, not_understood: self.not_understood.is_some().then_some(examples) })
    }
}

/// The queries of all relations, prepared on a session.
pub(super) struct PostgresRelations(PerRelation<Statement>);

impl PostgresRelations {
    /// Prepares the queries of `schema`, except for those that `queries` replaces, and checks their columns against
    /// the contract.
    pub(super) fn prepare(
        session: &PostgresSession,
        schema: SourceSchema,
        queries: &Queries,
        name: &PostgresName,
    ) -> Result<Self, StoreError> {
        let queries = schema.queries().replaced_by(queries);
        queries.try_map(|relation, sql| prepare(session, relation, sql, name)).map(Self)
    }

    /// Reads all rows in the open transaction, and decodes them as they come.
    pub(super) fn read(&self, session: &PostgresSession, name: &PostgresName) -> Result<Rows, StoreError> {
        allow_full_read(session, name)?;
        let mut rows = Rows::default();
        for (relation, statement) in self.0.iter() {
            read(session, name, relation, statement, |row| rows.add(relation, row))?;
        }
        Ok(rows)
    }
}

fn prepare(
    session: &PostgresSession,
    relation: Relation,
    sql: &str,
    name: &PostgresName,
) -> Result<Statement, StoreError> {
    let statement = session.prepare(sql).map_err(|error| name.relation_error(relation, error))?;
    check(relation, &statement, name)?;
    log_nullable(session, relation, &statement).map_err(|error| name.error(error))?;
    Ok(statement)
}

/// Gives the open transaction the time for a whole relation.
pub(super) fn allow_full_read(session: &PostgresSession, name: &PostgresName) -> Result<(), StoreError> {
    let timeout = format!("SET LOCAL statement_timeout = {}", FULL_READ_TIMEOUT.as_millis());
    session.batch(&timeout).map_err(|error| name.error(error))
}

fn check(relation: Relation, statement: &Statement, name: &PostgresName) -> Result<(), StoreError> {
    let broken =
        |detail: String| StoreError::Contract { store: name.describe(), relation: relation.name(), detail };
    if !statement.params().is_empty() {
        return Err(broken("it wants parameters, and there are none".to_owned()));
    }
    let columns = statement.columns().iter();
    let given: Vec<_> = columns
        .map(|column| GivenColumn { name: column.name(), kind: Some(column.type_().name()) })
        .collect();
    contract::check(relation, &given).map_err(|mismatch| broken(mismatch.to_string()))
}

/// Logs columns that may be null in their table and may not in the contract. This is no breach: the query may leave
/// such rows out, and each of the others is quarantined.
fn log_nullable(
    session: &PostgresSession,
    relation: Relation,
    statement: &Statement,
) -> Result<(), SessionError> {
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
    session: &PostgresSession,
    name: &PostgresName,
    relation: Relation,
    statement: &Statement,
    on_row: impl FnMut(&Row),
) -> Result<(), StoreError> {
    let read = session.for_each(statement, &[], on_row);
    read.map_err(|error| name.relation_error(relation, error))
}

/// Names a table's column by the table's number and its own, if it may be null. A view's columns are not known.
const NULLABLE: &str = "
    SELECT format('%I.%I', relname, attname) FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid
    WHERE attrelid = $1 AND attnum = $2 AND NOT attnotnull AND relkind IN ('r', 'p')";

/// Time for the server to send one whole relation, which may be tens of millions of rows. A server that stops sending
/// meets `store.statement_timeout` first.
const FULL_READ_TIMEOUT: Duration = Duration::from_secs(15 * 60);
