//! A reload: reads the configuration, its queries and its certificates again, and applies them to the running node.
//!
//! Certificates are renewed in any case. Of the rest, all changes are applied or none. A refused reload is logged, and the
//! old configuration stays in force.

use std::path::Path;

use super::confine::files_out_of_reach;
use super::log::{LogError, RunningLog};
use crate::config::{self, Config, ConfigErrors};
use crate::node::{self, Node};
use crate::wire::TlsConfigs;

/// State of the running relay that a reload needs.
pub(super) struct Reloader<'a> {
    /// `None` for the built-in values.
    pub file: Option<&'a Path>,
    /// The configuration in force.
    pub config: Config,
    pub log: RunningLog,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum ReloadError {
    #[error(transparent)]
    Config(#[from] ConfigErrors),
    #[error(
        "this process gave up all files but those that it had been configured for, so it cannot open {}; run \
         `sluicegate upgrade`, or restart it",
        .0.join(", ")
    )]
    OutOfReach(Vec<String>),
    #[error(
        "a running relay cannot take over changes of {}; run `sluicegate upgrade`, or restart it",
        .0.join(", ")
    )]
    NeedsRestart(Vec<String>),
    #[error(transparent)]
    Node(Box<node::ReloadError>),
    #[error(transparent)]
    Log(#[from] LogError),
}

impl Reloader<'_> {
    /// Reloads the configuration, and logs what came of it. Certificates are read again, and the audit log is opened
    /// again, in any case.
    pub fn reload(&mut self, node: &Node) -> Result<(), ReloadError> {
        node.audit_reopener().reopen();
        for error in node.renew_certificates() {
            tracing::error!("certificates stay as they are: {error}");
        }
        let applied = self.apply(node);
        match &applied {
            Ok(()) => tracing::info!("reloaded"),
            // One line of the log, whatever the number of errors.
            Err(error) => {
                let errors = error.to_string().replace('\n', "; ");
                tracing::error!("reload refused, and nothing but certificates has changed: {errors}");
            }
        }
        applied
    }

    fn apply(&mut self, node: &Node) -> Result<(), ReloadError> {
        let (next, tls) = Config::load_with(
            self.file,
            config::environment().map_err(ConfigErrors::from)?,
            TlsConfigs::load_all,
        )?;
        let changed = self.config.needs_restart(&next);
        if !changed.is_empty() {
            return hand_over(changed);
        }
        let out_of_reach = files_out_of_reach(&next);
        if !out_of_reach.is_empty() {
            return Err(ReloadError::OutOfReach(out_of_reach));
        }
        let output = self.log.prepare(&self.config.log, &next.log)?;
        node.reload(next.clone(), tls).map_err(|error| ReloadError::Node(Box::new(error)))?;
        self.log.apply(next.log.level, output);
        self.config = next;
        Ok(())
    }
}

/// The place where a new process takes over, which applies the keys that this one cannot. Until then they are refused.
fn hand_over(changed: Vec<String>) -> Result<(), ReloadError> {
    Err(ReloadError::NeedsRestart(changed))
}
