//! A store on PostgreSQL. The relay reads it ([`PostgresReader`]) under a role that needs no other right; the store
//! commands write it.

mod admin;
mod changes;
mod connect;
mod ended_query;
mod horizon;
mod host_choice;
mod listen;
mod openbalena;
mod place;
mod pooler;
mod reader;
mod reader_session;
mod relations;
mod schema;
mod session;
mod state;
mod tls;
mod transaction;
mod value;
mod word_outbox;
mod words;
mod writer;

use tokio_postgres::error::SqlState;

pub(super) use admin::{init, open};
pub(super) use pooler::check_sessions;
pub use reader::PostgresReader;
pub(super) use relations::SourceSchema;
pub(super) use writer::PostgresWriter;

use super::{Relation, StoreError};
use crate::wire::{explain, explain_io};
use session::SessionError;

/// Name of a store in errors: its URL without secrets.
#[derive(Clone)]
struct PostgresName(String);

impl PostgresName {
    fn describe(&self) -> String {
        self.0.clone()
    }

    fn tls(&self, detail: impl ToString) -> StoreError {
        StoreError::Tls { store: self.describe(), detail: detail.to_string() }
    }

    fn unreachable(&self, detail: impl ToString) -> StoreError {
        StoreError::Unreachable { store: self.describe(), detail: detail.to_string() }
    }

    /// Sorts an error of the query for `relation`. A mistake in the query, or in the values that it computes, breaks
    /// the contract.
    fn relation_error(&self, relation: Relation, error: SessionError) -> StoreError {
        match self.error(error) {
            StoreError::Query { store, detail } => {
                StoreError::Contract { store, relation: relation.name(), detail }
            }
            other => other,
        }
    }

    /// Sorts an error of a server or the driver by what a person can do about it.
    fn error(&self, error: SessionError) -> StoreError {
        let store = self.describe();
        let error = match error {
            SessionError::Driver(error) => error,
            SessionError::NoAnswer(timeout) => {
                let detail = format!("no answer for {}", humantime::format_duration(timeout));
                return StoreError::Slow { store, detail };
            }
            SessionError::Runtime(error) => return self.unreachable(error),
        };
        let detail = detail(&error);
        let Some(code) = error.code() else {
            return match detail.strip_prefix(TLS_FAILED) {
                Some(cause) => StoreError::Tls { store, detail: cause.to_owned() },
                None => StoreError::Unreachable { store, detail },
            };
        };
        match *code {
            SqlState::INSUFFICIENT_PRIVILEGE
            | SqlState::INVALID_PASSWORD
            | SqlState::INVALID_AUTHORIZATION_SPECIFICATION => StoreError::Denied { store, detail },
            SqlState::TOO_MANY_CONNECTIONS => StoreError::Full { store, detail },
            // A statement that this session has prepared is unknown, or one of another session has its name.
            SqlState::INVALID_SQL_STATEMENT_NAME | SqlState::DUPLICATE_PSTATEMENT => {
                StoreError::Pooled { store }
            }
            SqlState::QUERY_CANCELED | SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT => {
                StoreError::Slow { store, detail }
            }
            SqlState::LOCK_NOT_AVAILABLE => StoreError::Locked { store },
            SqlState::T_R_SERIALIZATION_FAILURE | SqlState::T_R_DEADLOCK_DETECTED => {
                StoreError::Interrupted { store, detail }
            }
            SqlState::FEATURE_NOT_SUPPORTED if is_outdated_plan(&error) => {
                StoreError::Interrupted { store, detail }
            }
            SqlState::DATA_CORRUPTED | SqlState::INDEX_CORRUPTED => StoreError::Corrupt { store, detail },
            SqlState::INVALID_CATALOG_NAME => StoreError::Unreachable { store, detail },
            _ => match &code.code()[..2] {
                // These classes are errors of connections, and interventions of an operator.
                "08" | "57" => StoreError::Unreachable { store, detail },
                _ => StoreError::Query { store, detail },
            },
        }
    }
}

/// True if a table or a view under a prepared query has changed the type of a column since. The query may still keep the
/// contract: the next session prepares and checks it anew.
fn is_outdated_plan(error: &tokio_postgres::Error) -> bool {
    // The server translates its messages, but not the names of its functions.
    error.as_db_error().and_then(|error| error.routine()) == Some("RevalidateCachedQuery")
}

/// A cause in plain words. The driver passes on errors of the TLS library.
fn cause(cause: &(dyn std::error::Error + 'static)) -> String {
    match (cause.downcast_ref::<std::io::Error>(), cause.downcast_ref::<rustls::Error>()) {
        (Some(error), _) => explain_io(error),
        (_, Some(error)) => explain(error),
        _ => cause.to_string(),
    }
}

/// The error in one line: the server's message, or else the driver's with its causes.
fn detail(error: &tokio_postgres::Error) -> String {
    let message = error.as_db_error().map(|error| match error.detail() {
        Some(detail) => format!("{}: {detail}", error.message()),
        None => error.message().to_owned(),
    });
    let line = message.unwrap_or_else(|| {
        let causes = std::iter::successors(std::error::Error::source(error), |cause| cause.source());
        std::iter::once(error.to_string()).chain(causes.map(cause)).collect::<Vec<_>>().join(": ")
    });
    line.replace('\n', ", ")
}

/// How the driver begins its error for a TLS connection that cannot be made. It has no other mark.
const TLS_FAILED: &str = "error performing TLS handshake: ";
