//! Reads an event from the environment and the arguments that OpenVPN gives to a script.
//!
//! openvpn(8) describes them under "Environmental Variables" and `--learn-address`.

use std::net::IpAddr;

use crate::authz::DeviceUuid;

/// A change of the addresses in the VPN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum VpnEvent {
    /// A device has connected, at this address.
    Came { uuid: DeviceUuid, address: IpAddr },
    /// A device has left these addresses. An empty list means all of its addresses.
    Left { uuid: DeviceUuid, addresses: Vec<IpAddr> },
    /// An address is free again.
    Freed { address: IpAddr },
    /// The server starts, and no device is connected.
    Began,
    /// An event without a device address.
    Other,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum EventError {
    #[error(
        "{variable} is missing or unusable ({value:?}); this is called by OpenVPN, as its `client-connect`, \
         `client-disconnect`, `learn-address` or `up`"
    )]
    NotByOpenVpn { variable: &'static str, value: String },
    #[error(
        "the common name {common_name:?} is not a device uuid of 32 or 62 hex digits; --ignore-unknown lets such \
         clients in"
    )]
    Unknown { common_name: String },
    #[error(
        "the device {uuid} has no address; OpenVPN gives one with `server`, `server-ipv6` or `ifconfig-push`"
    )]
    NoAddress { uuid: DeviceUuid },
}

impl VpnEvent {
    pub(super) fn read(
        variable: impl Fn(&str) -> Option<String>,
        arguments: &[String],
    ) -> Result<Self, EventError> {
        let script_type = variable("script_type").unwrap_or_default();
        let own = ["ifconfig_pool_remote_ip", "ifconfig_pool_remote_ip6"];
        let own: Vec<IpAddr> = own.iter().filter_map(|name| variable(name)?.parse().ok()).collect();
        match script_type.as_str() {
            "client-connect" => {
                let uuid = uuid(variable("common_name"))?;
                let address = *own.first().ok_or(EventError::NoAddress { uuid })?;
                Ok(Self::Came { uuid, address })
            }
            "client-disconnect" => Ok(Self::Left { uuid: uuid(variable("common_name"))?, addresses: own }),
            "learn-address" => Self::learned(&own, arguments),
            "up" => Ok(Self::Began),
            _ => Err(EventError::NotByOpenVpn { variable: "script_type", value: script_type }),
        }
    }

    /// Reads a `learn-address` event. `own` are the addresses that the server gave the client.
    fn learned(own: &[IpAddr], arguments: &[String]) -> Result<Self, EventError> {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let (operation, address) = match arguments[..] {
            [operation, address, ..] => (operation, address.parse::<IpAddr>().ok()),
            _ => {
                return Err(EventError::NotByOpenVpn {
                    variable: "its arguments",
                    value: arguments.join(" "),
                });
            }
        };
        match (operation, address, arguments.get(2)) {
            // A network behind a client, or a hardware address.
            (_, None, _) => Ok(Self::Other),
            ("delete", Some(address), _) => Ok(Self::Freed { address }),
            ("add" | "update", Some(address), Some(common_name)) => {
                let uuid = uuid(Some((*common_name).to_owned()))?;
                // OpenVPN also learns hosts in a network behind the client. The relay dials the first address of
                // the client itself.
                let is_its = own.is_empty() || own[0] == address;
                Ok(if is_its { Self::Came { uuid, address } } else { Self::Other })
            }
            _ => Err(EventError::NotByOpenVpn { variable: "its arguments", value: arguments.join(" ") }),
        }
    }
}

fn uuid(common_name: Option<String>) -> Result<DeviceUuid, EventError> {
    let Some(common_name) = common_name else {
        return Err(EventError::NotByOpenVpn { variable: "common_name", value: String::new() });
    };
    DeviceUuid::parse(&common_name).ok_or(EventError::Unknown { common_name })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const V4: (&str, &str) = ("ifconfig_pool_remote_ip", "10.77.0.2");
    const V6: (&str, &str) = ("ifconfig_pool_remote_ip6", "fd00:77::1000");

    fn read(
        script_type: &str,
        variables: &[(&str, &str)],
        arguments: &[&str],
    ) -> Result<VpnEvent, EventError> {
        let variable = |name: &str| {
            let mut all = variables.iter().copied().chain([("script_type", script_type)]);
            all.find(|(known, _)| *known == name).map(|(_, value)| value.to_owned())
        };
        let arguments: Vec<String> = arguments.iter().map(|&word| word.to_owned()).collect();
        VpnEvent::read(variable, &arguments)
    }

    fn came(address: &str) -> VpnEvent {
        VpnEvent::Came { uuid: DeviceUuid::parse(A).unwrap(), address: address.parse().unwrap() }
    }

    // OpenVPN 2.6.14 gives these variables and arguments.

    #[test]
    fn a_client_that_connects_is_at_its_ipv4_address_where_it_has_one() {
        let name = ("common_name", A);
        assert_eq!(read("client-connect", &[name, V4, V6], &["/tmp/cc.tmp"]), Ok(came("10.77.0.2")));
        assert_eq!(read("client-connect", &[name, V6], &["/tmp/cc.tmp"]), Ok(came("fd00:77::1000")));
        let uuid = DeviceUuid::parse(A).unwrap();
        assert_eq!(read("client-connect", &[name], &[]), Err(EventError::NoAddress { uuid }));
    }

    #[test]
    fn of_what_is_learned_a_devices_own_address_counts() {
        for (own, operation, address, expected) in [
            (&[V4, V6][..], "add", "10.77.0.2", came("10.77.0.2")),
            (&[V4, V6], "update", "10.77.0.2", came("10.77.0.2")),
            (&[V4, V6], "add", "fd00:77::1000", VpnEvent::Other),
            (&[V6], "add", "fd00:77::1000", came("fd00:77::1000")),
            (&[V4], "add", "192.168.7.0/24", VpnEvent::Other),
            (&[V4], "add", "192.168.7.9", VpnEvent::Other),
            (&[V4], "add", "00:ff:01:02:03:04", VpnEvent::Other),
            (&[], "add", "10.77.0.9", came("10.77.0.9")),
        ] {
            assert_eq!(read("learn-address", own, &[operation, address, A]), Ok(expected), "{address}");
        }
        let freed = VpnEvent::Freed { address: "10.77.0.2".parse().unwrap() };
        assert_eq!(read("learn-address", &[], &["delete", "10.77.0.2"]), Ok(freed));
    }

    #[test]
    fn a_name_that_is_no_uuid_is_an_error_that_says_the_remedy() {
        for (script_type, arguments) in
            [("client-connect", &[][..]), ("learn-address", &["add", "10.77.0.2", "spare laptop"])]
        {
            let error = read(script_type, &[("common_name", "spare laptop"), V4], arguments).unwrap_err();
            assert_eq!(
                error.to_string(),
                "the common name \"spare laptop\" is not a device uuid of 32 or 62 hex digits; --ignore-unknown \
                 lets such clients in"
            );
        }
    }

    #[test]
    fn a_call_that_is_not_from_openvpn_is_an_error() {
        for (script_type, variables, arguments) in [
            ("", &[][..], &[][..]),
            ("route-up", &[V4], &[]),
            ("client-connect", &[V4], &[]),
            ("learn-address", &[V4], &["add"]),
            ("learn-address", &[V4], &["add", "10.77.0.2"]),
            ("learn-address", &[V4], &["replace", "10.77.0.2", A]),
        ] {
            let error = read(script_type, variables, arguments).unwrap_err();
            assert!(error.to_string().contains("this is called by OpenVPN"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_arguments_never_panic(
            script_type in "client-connect|client-disconnect|learn-address|up|\\PC*",
            name in "\\PC*",
            address in "\\PC*",
            arguments in prop::collection::vec("add|update|delete|\\PC*", 0..5),
        ) {
            let variables =
                [("common_name", name.as_str()), ("ifconfig_pool_remote_ip", address.as_str())];
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            let _whatever = read(&script_type, &variables, &arguments);
        }
    }
}
