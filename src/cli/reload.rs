//! SIGHUP: reads the configuration and its queries again, and applies what a running node can apply.
//!
//! Either all changes are applied or none. A refused reload is logged, and the old configuration stays in force.

use std::path::Path;

use super::log::LevelSwitch;
use crate::config::{self, Config, ConfigErrors};
use crate::control::QueriesError;
use crate::node::Node;
use crate::wire::TlsConfigs;

/// State of the running relay that a reload needs.
pub struct Reload<'a> {
    /// `None` for the built-in values.
    pub file: Option<&'a Path>,
    /// The configuration in force.
    pub config: Config,
    pub log: LevelSwitch,
}

#[derive(Debug, thiserror::Error)]
enum ReloadError {
    #[error(transparent)]
    Config(#[from] ConfigErrors),
    #[error("changes in {0} need a restart")]
    NeedsRestart(String),
    #[error(transparent)]
    Queries(#[from] QueriesError),
}

impl Reload<'_> {
    /// Reloads the configuration, and reopens the audit log in any case, since it may have been renamed.
    pub fn reload(&mut self, node: &Node) {
        node.audit_reopener().reopen();
        match self.apply(node) {
            Ok(()) => tracing::info!("reloaded"),
            // One line of the log, whatever the number of errors.
            Err(error) => {
                let errors = error.to_string().replace('\n', "; ");
                tracing::error!("reload refused, and nothing has changed: {errors}");
            }
        }
    }

    fn apply(&mut self, node: &Node) -> Result<(), ReloadError> {
        let (next, tls) = Config::load_with(
            self.file,
            config::environment().map_err(ConfigErrors::from)?,
            TlsConfigs::load_all,
        )?;
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
