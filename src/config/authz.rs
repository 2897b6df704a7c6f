//! `[authz]`: reading rights from the store, and deciding by them.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use super::{GuardConfig, KeySource, Queries, SignerKeys, SubjectClaims, TokenSigner};

/// The section `[authz]`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Authz {
    /// Time between two polls of the store for changes.
    #[serde(with = "humantime_serde")]
    pub refresh: Duration,
    /// Time between two full reads of the store.
    #[serde(with = "humantime_serde")]
    pub reconcile: Duration,
    /// Age of the last answer of the store at which no request is decided any more.
    #[serde(with = "humantime_serde")]
    pub max_stale: Duration,
    /// Lag behind its primary beyond which the relay leaves a standby for another host, where there is one.
    #[serde(with = "humantime_serde")]
    pub max_replica_lag: Duration,
    /// Time between two reads of a store whose queries were replaced. Each is a full read, since there is no outbox.
    #[serde(with = "humantime_serde")]
    pub reread: Duration,
    /// Signers whose session tokens are accepted, besides opaque tokens.
    pub tokens: Vec<TokenSigner>,
    /// Queries for a schema of the operator's own.
    pub queries: Queries,
    /// The folder with the last good snapshot, for a restart without the store. Loading a configuration sets it to the
    /// state folder where it is absent; `None` keeps nothing.
    pub state: Option<PathBuf>,
    /// The checks that a read of the store must pass before it is published.
    pub guard: GuardConfig,
}

impl Authz {
    /// The places of the sets of keys that verify session tokens, in the order of the signers.
    pub fn key_sources(&self) -> impl Iterator<Item = &KeySource> {
        self.tokens.iter().filter_map(|signer| match &signer.keys {
            SignerKeys::Set(source) => Some(source),
            SignerKeys::One { .. } => None,
        })
    }

    /// True where a session token may name its subject by a secret, which must then be among the credentials.
    pub fn takes_login_secrets(&self) -> bool {
        self.tokens
            .iter()
            .any(|signer| matches!(signer.who, SubjectClaims::Secret { .. } | SubjectClaims::OpenBalena))
    }
}

impl Default for Authz {
    fn default() -> Self {
        Self {
            refresh: Duration::from_millis(100),
            reconcile: Duration::from_secs(3600),
            max_stale: Duration::from_secs(24 * 3600),
            max_replica_lag: Duration::from_secs(10),
            reread: Duration::from_secs(10),
            tokens: Vec::new(),
            queries: Queries::default(),
            state: None,
            guard: GuardConfig::default(),
        }
    }
}
