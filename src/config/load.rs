//! Reads a configuration file and the environment's overrides.

use std::path::PathBuf;

use super::StoreUrl;

/// What is wrong with a configuration, where, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("store.url `{url}` is not understood; use `sqlite:PATH`")]
    StoreUrl { url: String },
}

/// Where the embedded store lives: systemd's state folder, else the XDG one.
pub fn state_folder() -> PathBuf {
    if let Some(folder) = std::env::var_os("STATE_DIRECTORY") {
        return folder.into();
    }
    if let Some(folder) = std::env::var_os("XDG_STATE_HOME") {
        return PathBuf::from(folder).join("sluicegate");
    }
    match std::env::var_os("HOME") {
        Some(home) => PathBuf::from(home).join(".local/state/sluicegate"),
        None => PathBuf::from("/var/lib/sluicegate"),
    }
}

impl TryFrom<String> for StoreUrl {
    type Error = ConfigError;

    fn try_from(url: String) -> Result<Self, ConfigError> {
        match url.strip_prefix("sqlite:") {
            Some(path) if !path.is_empty() => Ok(Self::Sqlite(path.into())),
            _ => Err(ConfigError::StoreUrl { url }),
        }
    }
}
