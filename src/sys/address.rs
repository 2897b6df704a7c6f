//! The one form of an address: an IPv4 client of a dual-stack socket, or of a load balancer that writes all addresses as
//! IPv6, is an IPv4 client (RFC 4291, section 2.5.5.2).

use std::net::{IpAddr, SocketAddr};

use ipnet::{IpNet, Ipv4Net};

/// The address with an IPv4-mapped IPv6 address written as IPv4.
pub fn canonical(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        ip @ IpAddr::V4(_) => SocketAddr::new(ip, address.port()),
        // As it is: a link-local address has a scope.
        IpAddr::V6(_) => address,
    }
}

/// The network with a prefix of IPv4-mapped addresses written as IPv4.
pub fn canonical_network(network: IpNet) -> IpNet {
    let IpNet::V6(mapped) = network else { return network };
    let prefix = mapped.prefix_len().checked_sub(MAPPED_PREFIX);
    match (mapped.addr().to_ipv4_mapped(), prefix) {
        (Some(address), Some(prefix)) => Ipv4Net::new(address, prefix).map_or(network, IpNet::V4),
        _ => network,
    }
}

/// True where one of `networks` has `address`, in whichever form each is written.
pub fn any_contains(networks: &[IpNet], address: IpAddr) -> bool {
    let address = address.to_canonical();
    networks.iter().any(|network| canonical_network(*network).contains(&address))
}

/// Bits in front of the IPv4 address in an IPv4-mapped one.
const MAPPED_PREFIX: u8 = 96;

#[cfg(test)]
mod tests {
    use super::*;

    fn network(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn a_mapped_address_is_an_ipv4_address_and_others_stay() {
        for (address, expected) in [
            ("[::ffff:192.0.2.9]:51000", "192.0.2.9:51000"),
            ("192.0.2.9:51000", "192.0.2.9:51000"),
            ("[2001:db8::1]:1", "[2001:db8::1]:1"),
            ("[fe80::1%3]:1", "[fe80::1%3]:1"),
            ("[::192.0.2.9]:1", "[::192.0.2.9]:1"),
            ("[::1]:1", "[::1]:1"),
        ] {
            assert_eq!(
                canonical(address.parse().unwrap()).to_string(),
                expected.parse::<SocketAddr>().unwrap().to_string()
            );
        }
    }

    #[test]
    fn a_mapped_network_is_an_ipv4_network() {
        assert_eq!(canonical_network(network("::ffff:10.0.0.0/104")), network("10.0.0.0/8"));
        assert_eq!(canonical_network(network("::ffff:0.0.0.0/96")), network("0.0.0.0/0"));
        for other in ["10.0.0.0/8", "2001:db8::/32", "::/0", "::ffff:0.0.0.0/95"] {
            assert_eq!(canonical_network(network(other)), network(other));
        }
    }

    #[test]
    fn an_address_is_found_in_a_network_however_both_are_written() {
        for text in ["10.0.0.0/8", "::ffff:10.0.0.0/104"] {
            for address in ["10.1.2.3", "::ffff:10.1.2.3"] {
                assert!(any_contains(&[network(text)], address.parse().unwrap()), "{address} in {text}");
            }
            for address in ["11.1.2.3", "::10.1.2.3", "2001:db8::1"] {
                assert!(!any_contains(&[network(text)], address.parse().unwrap()), "{address} in {text}");
            }
        }
        assert!(
            !any_contains(&[network("::/0")], "10.1.2.3".parse().unwrap()),
            "every IPv6 address is no IPv4 address"
        );
    }
}
