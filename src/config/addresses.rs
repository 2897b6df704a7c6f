//! `vpn.addresses`: the sources of the devices' VPN-side addresses.

use std::path::PathBuf;

use serde::Deserialize;

use super::ConfigError;

/// A source of device addresses: `store`, `file:PATH`, `openvpn:PATH` or `wireguard:INTERFACE`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum AddressSource {
    /// The relation `devices`.
    Store,
    /// A file with lines of `uuid address`, watched for changes.
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

/// True for a possible name of an interface. It becomes an argument of a command, so the check is strict.
fn is_interface(name: &str) -> bool {
    let is_fine = |c: char| c.is_ascii_alphanumeric() || "_=+.-".contains(c);
    (1..=INTERFACE_BYTES_MAX).contains(&name.len()) && name.chars().all(is_fine) && !name.starts_with('-')
}

/// Bytes of an interface's name at most: the kernel's IFNAMSIZ without the final zero.
const INTERFACE_BYTES_MAX: usize = 15;
