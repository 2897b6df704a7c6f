//! A store on PostgreSQL. The relay reads it ([`PostgresSource`]) under a role that may do nothing else;
//! the store commands write it ([`Admin`]).

mod admin;
mod changes;
mod connect;
mod listen;
mod locations;
mod nodes;
mod openbalena;
mod outbox;
mod relations;
mod row;
mod schema;
mod session;
mod source;
mod state;
mod tls;
mod writer;

use tokio_postgres::error::SqlState;

pub use admin::Admin;
pub use locations::PostgresLocations;
pub use nodes::PostgresNodes;
pub(super) use relations::Schema;
pub use source::PostgresSource;

use super::{Relation, StoreError};
use session::Failure;

/// What a store is called in errors: its URL without secrets.
#[derive(Clone)]
struct Place(String);

impl Place {
    fn describe(&self) -> String {
        self.0.clone()
    }

    fn unreachable(&self, detail: impl ToString) -> StoreError {
        StoreError::Unreachable { store: self.describe(), detail: detail.to_string() }
    }

    /// As [`Place::error`], of the query for `relation`: what is wrong with a query, or with the values that it
    /// computes, breaks the contract.
    fn relation_error(&self, relation: Relation, failure: Failure) -> StoreError {
        match self.error(failure) {
            StoreError::Query { store, detail } => {
                StoreError::Contract { store, relation: relation.name(), detail }
            }
            other => other,
        }
    }

    /// Sorts what a server or the driver says by what a person can do about it.
    fn error(&self, failure: Failure) -> StoreError {
        let store = self.describe();
        let error = match failure {
            Failure::Postgres(error) => error,
            Failure::Silent(patience) => {
                let detail = format!("no answer for {}", humantime::format_duration(patience));
                return StoreError::Slow { store, detail };
            }
            Failure::Machine(error) => return self.unreachable(error),
        };
        let detail = detail(&error);
        let Some(code) = error.code() else {
            return StoreError::Unreachable { store, detail };
        };
        match *code {
            SqlState::INSUFFICIENT_PRIVILEGE
            | SqlState::INVALID_PASSWORD
            | SqlState::INVALID_AUTHORIZATION_SPECIFICATION => StoreError::Denied { store, detail },
            SqlState::TOO_MANY_CONNECTIONS => StoreError::Full { store, detail },
            SqlState::QUERY_CANCELED | SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT => {
                StoreError::Slow { store, detail }
            }
            SqlState::LOCK_NOT_AVAILABLE => StoreError::Locked { store },
            SqlState::T_R_SERIALIZATION_FAILURE | SqlState::T_R_DEADLOCK_DETECTED => {
                StoreError::Interrupted { store, detail }
            }
            SqlState::DATA_CORRUPTED | SqlState::INDEX_CORRUPTED => StoreError::Corrupt { store, detail },
            SqlState::INVALID_CATALOG_NAME => StoreError::Unreachable { store, detail },
            _ => match &code.code()[..2] {
                // Of connections, and what an operator does to a server.
                "08" | "57" => StoreError::Unreachable { store, detail },
                _ => StoreError::Query { store, detail },
            },
        }
    }
}

/// One line: what the server said, or else the causes behind the driver's words.
fn detail(error: &tokio_postgres::Error) -> String {
    let said = error.as_db_error().map(|said| match said.detail() {
        Some(detail) => format!("{}: {detail}", said.message()),
        None => said.message().to_owned(),
    });
    let line = said.unwrap_or_else(|| {
        let causes = std::iter::successors(std::error::Error::source(error), |cause| cause.source());
        std::iter::once(error.to_string())
            .chain(causes.map(ToString::to_string))
            .collect::<Vec<_>>()
            .join(": ")
    });
    line.replace('\n', ", ")
}
