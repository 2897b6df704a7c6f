//! SIGHUP: reads the configuration again, with the queries that it names, and takes over what a running node
//! can. All of it or nothing: what is refused is told, and the old one goes on.

use std::path::Path;

use super::log::LevelSwitch;
use crate::config::{self, Config, ConfigError};
use crate::control::QueriesError;
use crate::node::Node;
use crate::wire::TlsConfigs;

/// What a reload needs to know.
pub struct Reload<'a> {
    /// `None` for the embedded defaults.
    pub file: Option<&'a Path>,
    /// That runs.
    pub config: Config,
    pub log: LevelSwitch,
}

#[derive(Debug, thiserror::Error)]
enum ReloadError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("only a restart takes over what has changed in {0}")]
    NeedsRestart(String),
    #[error(transparent)]
    Queries(#[from] QueriesError),
}

impl Reload<'_> {
    /// Opens the audit log anew in any case: it may have been renamed.
    pub fn reload(&mut self, node: &Node) {
        node.audit_reopener().reopen();
        match self.take_over(node) {
            Ok(()) => tracing::info!("reloaded"),
            Err(error) => tracing::error!("reload refused, and nothing has changed: {error}"),
        }
    }

    fn take_over(&mut self, node: &Node) -> Result<(), ReloadError> {
        let (next, tls) = Config::load_with(self.file, config::environment()?, TlsConfigs::load)?;
        let changed = self.config.needs_restart(&next);
        if !changed.is_empty() {
            return Err(ReloadError::NeedsRestart(changed.join(", ")));
        }
        node.reload(next.clone(), tls)?;
        self.log.set(next.log.level);
        self.config = next;
        Ok(())
    }
}
