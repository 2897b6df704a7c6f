//! Parses the output of `wg show INTERFACE dump`, and the file that says which device a WireGuard peer is.
//!
//! wg(8) describes the output: a line about the interface, then a line for each peer. Its fields are separated by tabs:
//! public key, preshared key, endpoint, allowed networks, latest WireGuard handshake (seconds since 1970, 0 for none), bytes
//! in both directions, keepalive.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use crate::authz::{DeviceUuid, UnixMillis};
use crate::store::presence::address_list::{AddressList, BadLineSubject, shown};

/// Devices by public key.
#[derive(Default)]
pub(in crate::store::presence) struct PeerDevices {
    devices: HashMap<String, DeviceUuid>,
    /// Has the bad lines of the file, and no addresses yet.
    list: AddressList,
}

/// Reads a dump.
pub(in crate::store::presence) struct DumpReader {
    /// Name of the source, for log lines about bad lines.
    pub(in crate::store::presence) name: String,
    /// Current time, since 1970.
    pub(in crate::store::presence) now: Duration,
    /// Highest age of the latest WireGuard handshake of a device that is there.
    pub(in crate::store::presence) max_age: Duration,
}

impl PeerDevices {
    /// Parses a file of lines `PUBLIC-KEY uuid`. A comment begins with `#`.
    pub(in crate::store::presence) fn parse(text: &str, name: &str) -> Self {
        let mut peers = Self::default();
        for (number, line) in (1..).zip(text.lines()) {
            let words: Vec<&str> = line.split('#').next().unwrap_or_default().split_whitespace().collect();
            match words[..] {
                [] => {}
                [key, uuid] => match DeviceUuid::parse(uuid) {
                    Some(uuid) => _ = peers.devices.insert(key.to_owned(), uuid),
                    None => peers.list.refuse(BadLineSubject::Unreadable, || {
                        format!("{name}:{number}: {} is no uuid of 32 or 62 hex digits", shown(uuid))
                    }),
                },
                _ => peers.list.refuse(BadLineSubject::Unreadable, || {
                    format!("{name}:{number}: {} words; write `PUBLIC-KEY uuid`", words.len())
                }),
            }
        }
        peers
    }
}

impl DumpReader {
    /// Reads the devices whose latest WireGuard handshake is young enough and whose peer is allowed an address of its own.
    pub(in crate::store::presence) fn read(&self, text: &str, peers: PeerDevices) -> AddressList {
        let PeerDevices { devices, mut list } = peers;
        // The command has succeeded, so a list without devices is meant so.
        list.may_be_empty = true;
        for (number, line) in (2..).zip(text.lines().skip(1)) {
            let place = format!("{}:{number}", self.name);
            let fields: Vec<&str> = line.split('\t').collect();
            let [key, _, _, allowed, handshake, ..] = fields[..] else {
                list.refuse(BadLineSubject::Unreadable, || {
                    format!("{place}: {} fields of a peer", fields.len())
                });
                continue;
            };
            let Ok(handshake) = handshake.parse().map(Duration::from_secs) else {
                let about =
                    devices.get(key).map_or(BadLineSubject::Stranger, |uuid| BadLineSubject::Device(*uuid));
                list.refuse(about, || format!("{place}: {} is no time of a handshake", shown(handshake)));
                continue;
            };
            let address = own_address(allowed);
            match (devices.get(key), address) {
                (Some(uuid), Some(address)) if self.is_there(handshake) => match list.put(*uuid, address) {
                    Ok(()) => _ = list.since.insert(*uuid, millis(handshake)),
                    Err(reason) => {
                        list.refuse(BadLineSubject::Device(*uuid), || format!("{place}: {reason}"));
                    }
                },
                (Some(uuid), None) => list.refuse(BadLineSubject::Device(*uuid), || {
                    format!(
                        "{place}: {uuid} has no address of its own; allow its peer one, such as 10.9.0.2/32"
                    )
                }),
                // The peer is not there, or it is no device.
                (_, address) => address.into_iter().for_each(|address| list.occupy(address)),
            }
        }
        list
    }

    fn is_there(&self, handshake: Duration) -> bool {
        // If the clock was set back since, the age counts as zero.
        !handshake.is_zero() && self.now.saturating_sub(handshake) <= self.max_age
    }
}

/// A time since 1970; one that is too far in the future becomes the last one.
fn millis(time: Duration) -> UnixMillis {
    UnixMillis(i64::try_from(time.as_millis()).unwrap_or(i64::MAX))
}

/// The first single address among networks, IPv4 before IPv6.
fn own_address(allowed: &str) -> Option<IpAddr> {
    let networks = allowed.split(',').filter_map(|network| network.parse::<IpNet>().ok());
    let single = networks.filter(|network| network.prefix_len() == network.max_prefix_len());
    single.map(|network| network.addr()).min_by_key(IpAddr::is_ipv6)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";
    const NOW: u64 = 1_795_455_640;

    fn peer(key: &str, allowed: &str, handshake: u64) -> String {
        format!("{key}\t(none)\t192.0.2.2:51820\t{allowed}\t{handshake}\t1024\t2048\toff\n")
    }

    fn read(peers: &str, dump: &str) -> AddressList {
        let reader = DumpReader {
            name: "wireguard:wg0".to_owned(),
            now: Duration::from_secs(NOW),
            max_age: Duration::from_secs(180),
        };
        reader.read(&format!("secret\tpublic\t51820\toff\n{dump}"), PeerDevices::parse(peers, "peers"))
    }

    fn at(list: &AddressList, uuid: &str) -> Option<String> {
        list.addresses.get(&DeviceUuid::parse(uuid).unwrap()).map(ToString::to_string)
    }

    #[test]
    fn a_peer_is_there_while_its_latest_handshake_is_young() {
        let peers = format!("# fleet one\nkeyA= {A}\nkeyB= {B}\n");
        for (handshake, expected) in [(NOW - 180, true), (NOW + 5, true), (NOW - 181, false), (0, false)] {
            let dump = peer("keyA=", "fd00:77::2/128,10.9.0.0/24,10.9.0.2/32", handshake);
            let lines = read(&peers, &dump);
            assert_eq!(at(&lines, A).as_deref(), expected.then_some("10.9.0.2"), "{handshake}");
            assert_eq!((at(&lines, B), lines.bad.examples.count), (None, 0));
            let since = lines.since.values().map(|since| since.0 / 1000).collect::<Vec<_>>();
            assert_eq!(since, if expected { vec![handshake as i64] } else { vec![] });
        }
    }

    #[test]
    fn a_handshake_beyond_any_clock_is_the_latest_of_all() {
        let lines = read(&format!("keyA= {A}\n"), &peer("keyA=", "10.9.0.2/32", u64::MAX));
        assert_eq!(lines.since.values().copied().collect::<Vec<_>>(), [UnixMillis(i64::MAX)]);
    }

    #[test]
    fn bad_lines_are_shown_with_their_place_and_without_keys() {
        let peers = format!("keyA= {A}\nkeyC= zz\nkeyD=\n");
        let dump = [peer("keyA=", "10.9.0.0/24", NOW), "broken\tline\n".to_owned()].concat();
        let lines = read(&peers, &dump);
        let expected = [
            "peers:2: `zz` is no uuid of 32 or 62 hex digits".to_owned(),
            "peers:3: 1 words; write `PUBLIC-KEY uuid`".to_owned(),
            format!(
                "wireguard:wg0:2: {A} has no address of its own; allow its peer one, such as 10.9.0.2/32"
            ),
            "wireguard:wg0:3: 2 fields of a peer".to_owned(),
        ];
        assert_eq!(lines.bad.examples.examples, expected);
    }

    #[test]
    fn a_peer_that_is_no_device_is_nobody() {
        let lines = read(&format!("keyA= {A}\n"), &peer("laptop=", "10.9.0.7/32", NOW));
        assert_eq!((lines.addresses.len(), lines.bad.examples.count), (0, 0));
        assert!(lines.bad.occupied().contains(&"10.9.0.7".parse().unwrap()));
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics(peers in "(\\PC|[ \n#])*", dump in "(\\PC|[\t\n,/0-9])*") {
            let _whatever = read(&peers, &dump);
        }
    }
}
