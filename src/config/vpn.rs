//! `[vpn]`: the network that the devices are in.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use nix::net::if_::if_nametoindex;
use serde::Deserialize;

use super::AddressSource;
use super::network::networks;
use crate::sys::address::any_contains;

/// The section `[vpn]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Vpn {
    /// Networks of the device addresses. Nothing is dialled outside them. A file must name them; only a node without a
    /// file starts with loopback.
    #[serde(deserialize_with = "networks")]
    pub allow: Vec<IpNet>,
    /// Sources of device addresses. The first table that holds a device counts, and the store after all tables.
    pub addresses: Vec<AddressSource>,
    /// A file that names the device of each WireGuard peer: lines of `PUBLIC-KEY uuid`.
    pub wireguard_peers: Option<PathBuf>,
    /// Age of a WireGuard peer's latest handshake at most. A peer with traffic makes one every two minutes.
    #[serde(with = "humantime_serde")]
    pub wireguard_max_age: Duration,
    /// The command that is called with `show INTERFACE dump`.
    pub wireguard_command: PathBuf,
    /// Network interface that connections to devices are bound to (SO_BINDTODEVICE).
    pub interface: Option<String>,
    /// This node's name. A device whose row names another node is not dialled here.
    pub node: Option<String>,
    /// Reports to the store which devices are at `addresses`, by the role of `forward.directory_url`.
    pub report: bool,
}

impl Vpn {
    /// True where a device address may be dialled, whatever the store says. An IPv4-mapped IPv6 address counts as the
    /// IPv4 address that the kernel would dial.
    pub fn allows(&self, address: IpAddr) -> bool {
        any_contains(&self.allow, address)
    }

    /// A warning for each network of `allow` that is every address.
    pub fn warnings(&self) -> Vec<String> {
        let all = self.allow.iter().filter(|network| network.prefix_len() == 0);
        all.map(|network| {
            format!(
                "vpn.allow has {network}, so the relay connects clients to whatever address the store names: to this \
                 machine, its neighbours and the internet; name the VPN's network, such as 10.8.0.0/16"
            )
        })
        .collect()
    }

    /// True where [`Vpn::interface`] is set and not there (yet).
    pub fn lacks_interface(&self) -> bool {
        self.interface.as_deref().is_some_and(|interface| if_nametoindex(interface).is_err())
    }

    /// True where every device address is from the VPN, and none from the store.
    pub fn knows_addresses(&self) -> bool {
        !self.addresses.contains(&AddressSource::Store)
    }
}

impl Vpn {
    /// The networks of the embedded default and of the demo.
    pub fn loopback() -> Self {
        let v4 = IpNet::new(IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0)), 8).expect("8 is a valid prefix");
        let v6 = IpNet::new(IpAddr::V6(Ipv6Addr::LOCALHOST), 128).expect("128 is a valid prefix");
        Self { allow: vec![v4, v6], ..Self::default() }
    }
}

impl Default for Vpn {
    fn default() -> Self {
        Self {
            allow: Vec::new(),
            addresses: vec![AddressSource::Store],
            wireguard_peers: None,
            wireguard_max_age: Duration::from_secs(180),
            wireguard_command: "wg".into(),
            interface: None,
            node: None,
            report: false,
        }
    }
}
