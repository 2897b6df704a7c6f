//! Errors of stores.

use std::time::Duration;

/// Reason why a store could not be read or written. Each text ends in the remedy.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("{store} does not exist; `sluicegate store init` creates it")]
    Missing { store: String },
    #[error("{store} is locked by another process; end its long transaction, then try again")]
    Locked { store: String },
    #[error("{store} is damaged ({detail}); restore it from a backup")]
    Corrupt { store: String, detail: String },
    #[error("{store} is a database of another program; point `store.url` elsewhere")]
    Foreign { store: String },
    #[error("{store} has schema version {found}, this sluicegate needs {wanted}; {remedy}")]
    Version { store: String, found: i64, wanted: i64, remedy: &'static str },
    #[error("{store} cannot be used ({detail}); check its path, permissions and disk")]
    Unreadable { store: String, detail: String },
    #[error(
        "{store} cannot be opened: the user {user} may not write {path} ({reason}), and SQLite writes beside a store even to read \
         it; give the folder and the store's files to that user (`chown`), or run as the user who owns them"
    )]
    Unwritable { store: String, path: String, reason: &'static str, user: String },
    #[error("{store} cannot be reached ({detail}); see that it runs and that `store.url` leads to it")]
    Unreachable { store: String, detail: String },
    #[error(
        "TLS with {store} failed ({detail}); see sslmode and sslrootcert in `store.url`, and the server's certificate"
    )]
    Tls { store: String, detail: String },
    #[error(
        "{store} is behind a pooler that gives each transaction another connection (PgBouncer's pool_mode = transaction); \
         a relay's time limits, prepared queries and notifications belong to a session, and are lost there: connect to \
         the server itself, or set pool_mode = session"
    )]
    Pooled { store: String },
    #[error(
        "{store} refuses its role ({detail}); see to its password and to the rights in docs/postgresql.md"
    )]
    Denied { store: String, detail: String },
    #[error("{store} has no connection left ({detail}); end idle ones or raise its max_connections")]
    Full { store: String, detail: String },
    #[error("{store} is too slow ({detail}); see what it is busy with, or raise `store.statement_timeout`")]
    Slow { store: String, detail: String },
    #[error(
        "{store} broke a read off ({detail}); it is tried again. If this repeats on a standby, set \
         `hot_standby_feedback = on` there"
    )]
    Interrupted { store: String, detail: String },
    #[error("the files of {store} were replaced while they were read; they are read again")]
    Replaced { store: String },
    #[error(
        "{store} was replaced, and the log of the file before is still beside it; end what uses the store, remove \
         {log} and its -shm, and restore the store again"
    )]
    LeftLog { store: String, log: String },
    #[error(
        "the query for {relation} on {store} ran for more than {} and was ended; see its plan with EXPLAIN QUERY PLAN, \
         and give it an index",
        humantime::format_duration(*limit)
    )]
    SlowQuery { store: String, relation: &'static str, limit: Duration },
    #[error("{store} was restored from a dump; `sluicegate store init` fits its outbox to this server")]
    Restored { store: String },
    #[error("{store} runs PostgreSQL {found}; the reference schema needs 13 or later")]
    ServerVersion { store: String, found: String },
    #[error("store.password_file {path} cannot be read ({detail}); see that it is there and readable")]
    PasswordFile { path: String, detail: String },
    #[error("the query for {relation} on {store} breaks the contract ({detail}); mend it or what it reads")]
    Contract { store: String, relation: &'static str, detail: String },
    #[error("a query on {store} failed ({detail}); is its schema as `sluicegate store init` made it?")]
    Query { store: String, detail: String },
}

impl StoreError {
    /// The fault without the name of the store, for a list of servers that all failed.
    pub(super) fn detail(&self) -> String {
        match self {
            Self::Unreadable { detail, .. }
            | Self::Corrupt { detail, .. }
            | Self::Unreachable { detail, .. }
            | Self::Tls { detail, .. }
            | Self::Denied { detail, .. }
            | Self::Full { detail, .. }
            | Self::Slow { detail, .. }
            | Self::Interrupted { detail, .. }
            | Self::Contract { detail, .. }
            | Self::Query { detail, .. } => detail.clone(),
            whole => whole.to_string(),
        }
    }

    /// True where the store may be there later as it is configured now, without a hand on the node.
    pub const fn is_away(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. }
                | Self::Full { .. }
                | Self::Slow { .. }
                | Self::Locked { .. }
                | Self::Interrupted { .. }
                | Self::Replaced { .. }
        )
    }

    /// True if the store answers, but not as the contract says.
    pub const fn breaks_contract(&self) -> bool {
        matches!(self, Self::Query { .. } | Self::Contract { .. } | Self::Version { .. })
    }
}
