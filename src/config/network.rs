//! Reads a list of networks. An address without a prefix is the network of that address alone.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::de::Visitor;
use serde::{Deserialize, Deserializer};

/// Deserializes networks such as `10.8.0.0/16` and addresses such as `10.8.0.1`.
pub(super) fn networks<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<IpNet>, D::Error> {
    let networks = Vec::<Network>::deserialize(deserializer)?;
    Ok(networks.into_iter().map(|Network(network)| network).collect())
}

/// One element of the list.
struct Network(IpNet);

#[derive(Debug, thiserror::Error)]
#[error(
    "`{0}` is neither a network nor an address; write for example `10.8.0.0/16`, `10.8.0.1` or `fd00::/8`"
)]
struct NotANetwork(String);

/// Reads a network where its text stands, so that an error has the element's position.
struct NetworkVisitor;

impl<'de> Deserialize<'de> for Network {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(NetworkVisitor)
    }
}

impl Visitor<'_> for NetworkVisitor {
    type Value = Network;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Network, E> {
        Network::parse(text).map_err(E::custom)
    }
}

impl Network {
    fn parse(text: &str) -> Result<Self, NotANetwork> {
        let address = || text.parse::<IpAddr>().map(|address| IpNet::from(address.to_canonical()));
        match text.parse::<IpNet>().or_else(|_| address()) {
            Ok(network) => Ok(Self(network)),
            Err(_) => Err(NotANetwork(text.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_network_of_its_own() {
        for (text, expected) in [
            ("10.8.0.0/16", "10.8.0.0/16"),
            ("10.8.0.1", "10.8.0.1/32"),
            ("fd00::1", "fd00::1/128"),
            ("::ffff:10.8.0.1", "10.8.0.1/32"),
        ] {
            assert_eq!(Network::parse(text).unwrap().0.to_string(), expected);
        }
        for text in ["", "10.8.0.0/33", "10.8.0", "vpn.example"] {
            let Err(error) = Network::parse(text) else { panic!("{text} is no network") };
            assert!(error.to_string().contains("10.8.0.0/16"), "{error}");
        }
    }
}
