//! `vpn.addresses`: who knows at which address the VPN has a device.

use std::path::PathBuf;

use serde::Deserialize;

use super::ConfigError;

/// `store`, `file:PATH`, `openvpn:PATH` or `wireguard:INTERFACE`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum AddressSource {
    /// The relation `devices`.
    Store,
    /// Lines of `uuid address`, followed as they change.
    File(PathBuf),
    /// An OpenVPN server on this machine: its management socket, or its status file.
    OpenVpn(PathBuf),
    /// A WireGuard interface of this machine.
    WireGuard(String),
}

impl TryFrom<String> for AddressSource {
    type Error = ConfigError;

    fn try_from(source: String) -> Result<Self, ConfigError> {
        match source.split_once(':') {
            None if source == "store" => Ok(Self::Store),
            Some(("file", path)) if !path.is_empty() => Ok(Self::File(path.into())),
            Some(("openvpn", path)) if !path.is_empty() => Ok(Self::OpenVpn(path.into())),
            Some(("wireguard", interface)) if is_interface(interface) => {
                Ok(Self::WireGuard(interface.to_owned()))
            }
            _ => Err(ConfigError::AddressSource { name: source }),
        }
    }
}

/// Whether it can be an interface's name; it becomes an argument of a command.
fn is_interface(name: &str) -> bool {
    let is_fine = |c: char| c.is_ascii_alphanumeric() || "_=+.-".contains(c);
    (1..=INTERFACE_BYTES_MAX).contains(&name.len()) && name.chars().all(is_fine) && !name.starts_with('-')
}

/// The kernel's IFNAMSIZ, without the zero at its end.
const INTERFACE_BYTES_MAX: usize = 15;
