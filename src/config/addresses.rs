//! `vpn.addresses`: who knows at which address the VPN has a device.

use std::path::PathBuf;

use serde::Deserialize;

use super::ConfigError;

/// `store` or `file:PATH`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum AddressSource {
    /// The relation `devices`.
    Store,
    /// Lines of `uuid address`, followed as they change.
    File(PathBuf),
}

impl TryFrom<String> for AddressSource {
    type Error = ConfigError;

    fn try_from(source: String) -> Result<Self, ConfigError> {
        match source.split_once(':') {
            None if source == "store" => Ok(Self::Store),
            Some(("file", path)) if !path.is_empty() => Ok(Self::File(path.into())),
            _ => Err(ConfigError::AddressSource { name: source }),
        }
    }
}
