//! The configuration file as values: every key, its default and its unit. [`Config::load`] reads the file and the
//! environment's overrides.
//!
//! Each file here has one section or a few. `load`, `text`, `overrides` and `validate` make them a checked [`Config`], or
//! all errors at once. `reference` knows how each key is written.

mod addresses;
mod admin;
mod authz;
mod bounded_file;
mod budgets;
mod engine;
mod error;
mod files;
mod forward;
mod guard;
mod key_set;
mod key_source;
mod libpq;
mod listen;
mod load;
mod message;
mod network;
mod overrides;
pub mod postgres;
mod queries;
pub mod reference;
mod reload;
mod security;
mod store;
mod text;
mod tls;
mod token_key;
mod tokens;
mod usage;
mod validate;
mod vpn;

use serde::Deserialize;

pub use addresses::{AddressSource, OpenVpnInterface};
pub use admin::{Admin, Audit, Log, LogFormat, LogLevel, SelfProbeConfig};
pub use authz::Authz;
pub use bounded_file::{SECRET_FILE_BYTES_MAX, TEXT_FILE_BYTES_MAX, read_bounded, read_bounded_text};
pub use budgets::Budgets;
pub use engine::{EngineConfig, Forwarding, KernelTls, Limits, Timeouts};
pub use error::{ConfigError, ConfigErrors, FilePosition};
pub use files::{FileAccess, NamedFile};
pub use forward::{Forward, ForwardTls};
pub use guard::{
    Allowance, Bound, Bounds, Canary, CanaryHolder, CanaryUuid, GuardConfig, OnRegression, Preference,
    Regressions,
};
pub use key_set::{KEY_SET_BYTES_MAX, KEYS_MAX, KeySet, KeySetError, SetKey};
pub use key_source::{HttpsUrl, KeyPlace, KeySource};
pub use listen::{Listen, ListenerKind};
pub use load::{ConfigInspection, state_folder};
pub use overrides::environment;
pub use postgres::PostgresUrl;
pub use queries::{Queries, RelationQuery};
pub use security::{Confine, Security};
pub use store::{Profile, Store, StoreUrl};
pub use tls::{CertificateFiles, ClientCertificates, ClientListenerTls, ListenTls, MinTlsVersion};
pub use token_key::{TokenAlgorithm, TokenKey, TokenKeyError};
pub use tokens::{SignerKeys, SubjectClaims, TokenSigner};
pub use usage::UsageConfig;
pub use validate::{KeyProblem, is_node_name};
pub use vpn::Vpn;

/// A whole configuration. [`Config::load`] returns a checked one. `Config::default()` has every key's default, which
/// allows no device at all.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    pub store: Store,
    pub listen: Vec<Listen>,
    pub engine: EngineConfig,
    pub limits: Limits,
    pub timeouts: Timeouts,
    pub vpn: Vpn,
    pub forward: Forward,
    pub authz: Authz,
    pub admin: Admin,
    pub probe: SelfProbeConfig,
    pub audit: Audit,
    pub usage: UsageConfig,
    pub log: Log,
    pub security: Security,
}

impl Config {
    /// True where the node speaks TLS with clients or with other nodes.
    pub fn speaks_tls(&self) -> bool {
        self.forward.tls.is_some() || self.listen.iter().any(|listen| listen.tls.is_some())
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            store: Store::default(),
            listen: vec![Listen::default()],
            engine: EngineConfig::default(),
            limits: Limits::default(),
            timeouts: Timeouts::default(),
            vpn: Vpn::default(),
            forward: Forward::default(),
            authz: Authz::default(),
            admin: Admin::default(),
            probe: SelfProbeConfig::default(),
            audit: Audit::default(),
            usage: UsageConfig::default(),
            log: Log::default(),
            security: Security::default(),
        }
    }
}
