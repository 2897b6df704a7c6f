//! `vpn.addresses`: who knows at which address the VPN has a device.

use std::path::PathBuf;

use serde::Deserialize;

use super::ConfigError;

/// `store`, `file:PATH` or `openvpn:PATH`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum AddressSource {
    /// The relation `devices`.
    Store,
    /// Lines of `uuid address`, followed as they change.
    File(PathBuf),
    /// An OpenVPN server on this machine: its management socket, or its status file.
    OpenVpn(PathBuf),
}

impl TryFrom<String> for AddressSource {
    type Error = ConfigError;

    fn try_from(source: String) -> Result<Self, ConfigError> {
        match source.split_once(':') {
            None if source == "store" => Ok(Self::Store),
            Some(("file", path)) if !path.is_empty() => Ok(Self::File(path.into())),
            Some(("openvpn", path)) if !path.is_empty() => Ok(Self::OpenVpn(path.into())),
            _ => Err(ConfigError::AddressSource { name: source }),
        }
    }
}
