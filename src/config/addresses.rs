//! `vpn.addresses`: the sources of the devices' VPN-side addresses.

use std::fmt;
use std::path::PathBuf;

use serde::Deserialize;

use super::ConfigError;

/// A source of device addresses: `store`, `file:PATH`, `openvpn:PATH`, `openvpn:HOST:PORT` or `wireguard:INTERFACE`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum AddressSource {
    /// The relation `devices`.
    Store,
    /// A file with lines of `uuid address`, watched for changes.
    File(PathBuf),
    /// An OpenVPN server: its management interface, or its status file.
    OpenVpn(OpenVpnInterface),
    /// A WireGuard interface of this machine.
    WireGuard(String),
}

/// The interface of an OpenVPN server that says who is connected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OpenVpnInterface {
    /// A management socket, or a status file.
    Path(PathBuf),
    /// A management interface over TCP: host and port, an IPv6 address in brackets.
    Tcp(String),
}

impl OpenVpnInterface {
    fn parse(text: &str) -> Option<Self> {
        let is_port = |port: &str| port.parse::<u16>().is_ok_and(|port| port != 0);
        match text.rsplit_once(':') {
            _ if text.is_empty() => None,
            // A colon may stand in a path too.
            Some((host, port)) if !text.contains('/') && is_port(port) => {
                let is_bracketed = host.starts_with('[') && host.ends_with(']');
                let is_host = !host.is_empty() && (is_bracketed || !host.contains(':'));
                is_host.then(|| Self::Tcp(text.to_owned()))
            }
            _ => Some(Self::Path(text.into())),
        }
    }
}

impl fmt::Display for OpenVpnInterface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => path.display().fmt(f),
            Self::Tcp(address) => f.write_str(address),
        }
    }
}

impl TryFrom<String> for AddressSource {
    type Error = ConfigError;

    fn try_from(source: String) -> Result<Self, ConfigError> {
        match source.split_once(':') {
            None if source == "store" => Ok(Self::Store),
            Some(("file", path)) if !path.is_empty() => Ok(Self::File(path.into())),
            Some(("openvpn", interface)) => OpenVpnInterface::parse(interface)
                .map(Self::OpenVpn)
                .ok_or(ConfigError::AddressSource { name: source.clone() }),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_openvpn_server_is_at_a_path_or_at_a_host_and_port() {
        let source = |text: &str| AddressSource::try_from(text.to_owned());
        for text in ["127.0.0.1:7505", "[::1]:7505", "localhost:7505"] {
            let tcp = AddressSource::OpenVpn(OpenVpnInterface::Tcp(text.to_owned()));
            assert_eq!(source(&format!("openvpn:{text}")).unwrap(), tcp);
        }
        for text in ["/run/openvpn/devices", "/run/a:7505", "status.log", "./a:7505", "status:log"] {
            let path = AddressSource::OpenVpn(OpenVpnInterface::Path(text.into()));
            assert_eq!(source(&format!("openvpn:{text}")).unwrap(), path);
        }
        for text in ["", ":7505", "::1:7505"] {
            let refused = source(&format!("openvpn:{text}")).unwrap_err().to_string();
            assert!(refused.contains("`openvpn:HOST:PORT`"), "{refused}");
        }
    }
}
