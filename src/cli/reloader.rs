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

/// What a reload that was not refused has done.
pub(super) enum Reloaded {
    /// The running relay has taken over the configuration.
    Here,
    /// Nothing but certificates yet: these keys need a new process.
    NeedsNewProcess(Vec<String>),
}

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
    #[error(transparent)]
    Node(Box<node::ReloadError>),
    #[error(transparent)]
    Log(#[from] LogError),
}

impl Reloader<'_> {
    /// Reloads the configuration, and logs what came of it. Certificates are read again, and the audit log is opened
    /// again, in any case.
    pub fn reload(&mut self, node: &Node) -> Result<Reloaded, ReloadError> {
        node.audit_reopener().reopen();
        for error in node.renew_certificates() {
            tracing::error!("certificates stay as they are: {error}");
        }
        let applied = self.apply(node);
        match &applied {
            Ok(Reloaded::Here) => tracing::info!("reloaded"),
            Ok(Reloaded::NeedsNewProcess(keys)) => {
                tracing::info!(
                    keys = keys.join(", "),
                    "reloading by a new process, which these changes need"
                );
            }
            // One line of the log, whatever the number of errors.
            Err(error) => {
                let errors = error.to_string().replace('\n', "; ");
                tracing::error!("reload refused, and nothing but certificates has changed: {errors}");
            }
        }
        applied
    }

    fn apply(&mut self, node: &Node) -> Result<Reloaded, ReloadError> {
        let environment = || config::environment().map_err(ConfigErrors::from);
        let (next, tls) = match Config::load_with(self.file, environment()?, TlsConfigs::load_all) {
            Ok(loaded) => loaded,
            // This process may not be able to read what another one can.
            Err(errors) => {
                match Config::load(self.file, environment()?).map(|next| files_out_of_reach(&next)) {
                    Ok(out_of_reach) if !out_of_reach.is_empty() => {
                        return Ok(Reloaded::NeedsNewProcess(out_of_reach));
                    }
                    _ => return Err(errors.into()),
                }
            }
        };
        let changed = self.config.needs_new_process(&next);
        if !changed.is_empty() {
            return Ok(Reloaded::NeedsNewProcess(changed));
        }
        let out_of_reach = files_out_of_reach(&next);
        if !out_of_reach.is_empty() {
            return Ok(Reloaded::NeedsNewProcess(out_of_reach));
        }
        let output = self.log.prepare(&self.config.log, &next.log)?;
        node.reload(next.clone(), tls).map_err(|error| ReloadError::Node(Box::new(error)))?;
        self.log.apply(next.log.level, output);
        self.config = next;
        Ok(Reloaded::Here)
    }
}
