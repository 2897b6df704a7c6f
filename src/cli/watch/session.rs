//! Selects and sorts the sessions of a relay, and formats their parts.

use std::cmp::Reverse;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use clap::{Args, ValueEnum};
use ipnet::IpNet;

use crate::admin::api::SessionInfo;
use crate::authz::PrincipalId;
use crate::sys::address::{any_contains, canonical};

/// Conditions on a session; a session must meet every one that is given.
#[derive(Clone, Default, Debug, Args)]
pub struct SessionFilter {
    /// Show only sessions to this device; the first digits of its uuid are enough.
    #[arg(long, value_name = "UUID")]
    pub device: Option<String>,
    /// Show only sessions of this principal, by its name or its number.
    #[arg(long, value_name = "NAME")]
    pub principal: Option<String>,
    /// Show only sessions from this client: an address, with or without a port, or a network such as 192.0.2.0/24.
    #[arg(long, value_name = "ADDRESS")]
    pub client: Option<ClientFilter>,
}

/// The clients that a person asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ClientFilter {
    Network(IpNet),
    /// One connection.
    Address(SocketAddr),
}

/// Order of sessions: the largest value first, or alphabetical.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum SortKey {
    /// Bytes per second, both directions.
    Rate,
    /// Bytes so far, both directions.
    Bytes,
    Age,
    Device,
    Principal,
    Client,
}

impl SessionFilter {
    /// Tests a session. `principal` is the one that the filter names.
    pub fn fits(&self, session: &SessionInfo, principal: Option<PrincipalId>) -> bool {
        let is_device = self.device.as_ref().is_none_or(|wanted| {
            session.uuid.is_some_and(|uuid| uuid.to_string().starts_with(&wanted.to_ascii_lowercase()))
        });
        is_device
            && self.client.is_none_or(|wanted| session.client.is_some_and(|client| wanted.fits(client)))
            && principal.is_none_or(|wanted| session.principal == Some(wanted))
    }
}

impl ClientFilter {
    fn fits(self, client: SocketAddr) -> bool {
        match self {
            Self::Network(network) => any_contains(&[network], client.ip()),
            Self::Address(address) => canonical(address) == canonical(client),
        }
    }
}

impl FromStr for ClientFilter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // An IPv6 address may stand in brackets, as in front of a port.
        let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
        if let Ok(ip) = bare.parse::<IpAddr>() {
            return Ok(Self::Network(ip.into()));
        }
        text.parse().map(Self::Network).or_else(|_| text.parse().map(Self::Address)).map_err(|_| {
            "not an address (192.0.2.7, 2001:db8::1, with a port 192.0.2.7:5000) or a network (192.0.2.0/24)".to_owned()
        })
    }
}

impl SortKey {
    /// Returns the next key; the first one after the last.
    pub fn next(self) -> Self {
        let all = Self::value_variants();
        let place = all.iter().position(|key| *key == self).unwrap_or(0);
        all[(place + 1) % all.len()]
    }

    pub fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

/// Sorts by `by`, and equal sessions by age, so that a live list does not flicker.
pub fn sort(sessions: &mut [SessionInfo], by: SortKey) {
    sessions.sort_by_key(|session| (session.since, session.id));
    match by {
        SortKey::Rate => sessions.sort_by_key(|session| Reverse((rate_sum(session), bytes_sum(session)))),
        SortKey::Bytes => sessions.sort_by_key(|session| Reverse(bytes_sum(session))),
        SortKey::Age => {}
        SortKey::Device => sessions.sort_by_cached_key(target),
        SortKey::Principal => sessions.sort_by_key(|session| session.principal),
        SortKey::Client => sessions.sort_by_key(|session| session.client),
    }
}

/// Bytes per second, both directions; 0 where it is not known.
fn rate_sum(session: &SessionInfo) -> u64 {
    session.rate_up.unwrap_or(0) + session.rate_down.unwrap_or(0)
}

/// `UUID:PORT`, or `-` as long as it is not known.
pub fn target(session: &SessionInfo) -> String {
    match (&session.uuid, session.port) {
        (Some(uuid), Some(port)) => format!("{uuid}:{port}"),
        _ => "-".to_owned(),
    }
}

/// The client's address, as long as it is known.
pub fn client(session: &SessionInfo) -> Option<String> {
    session.client.map(|client| client.to_string())
}

/// The principal's name, where it is known, or its number.
pub fn principal(session: &SessionInfo) -> Option<String> {
    let number = session.principal.map(|principal| principal.0.to_string());
    session.principal_name.clone().or(number)
}

/// The path of both directions, or of each where they differ.
pub fn paths(session: &SessionInfo) -> String {
    match (&session.path_up, &session.path_down) {
        (Some(up), Some(down)) if up == down => up.to_string(),
        (Some(up), Some(down)) => format!("{up}/{down}"),
        _ => "-".to_owned(),
    }
}

/// Tests for `text` in the session's id, client, credential, device, principal and state.
pub fn mentions(session: &SessionInfo, text: &str) -> bool {
    let words = [
        Some(session.id.to_string()),
        client(session),
        session.credential.map(|credential| credential.to_string()),
        session.uuid.map(|uuid| uuid.to_string()),
        session.principal.map(|principal| format!("principal {}", principal.0)),
        session.principal_name.clone(),
        Some(session.state.to_string()),
    ];
    words.into_iter().flatten().any(|word| word.contains(text))
}

fn bytes_sum(session: &SessionInfo) -> u64 {
    session.bytes_up + session.bytes_down
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::admin::api::SessionId;
    use crate::authz::{CredentialId, DeviceId, DeviceUuid, Generation, GrantId, PrincipalId, UnixMillis};

    pub fn session(number: i64) -> SessionInfo {
        SessionInfo {
            id: SessionId(number as u64),
            client: format!("192.0.2.{number}:5000").parse().ok(),
            principal: Some(PrincipalId(number % 2)),
            principal_name: (number == 1).then(|| "alice".to_owned()),
            credential: CredentialId::parse("00ff00ff00ff00ff"),
            grant: Some(GrantId(1)),
            device: Some(DeviceId(number)),
            uuid: DeviceUuid::parse(&format!("{:032x}", 10 - number)),
            port: Some(80),
            generation: Some(Generation(1)),
            state: "open".into(),
            since: UnixMillis(1000 - number),
            handshake_us: Some(100),
            bytes_up: 10 * number as u64,
            bytes_down: 0,
            path_up: Some("copy".into()),
            path_down: Some("splice".into()),
            rate_up: Some(number as u64 % 3),
            rate_down: None,
        }
    }

    fn sorted(by: SortKey) -> Vec<String> {
        let mut sessions: Vec<_> = (1..=4).map(session).collect();
        sort(&mut sessions, by);
        sessions.into_iter().map(|session| session.id.to_string()).collect()
    }

    #[test]
    fn sessions_come_in_the_order_that_was_asked_for() {
        assert_eq!(sorted(SortKey::Rate), ["2", "4", "1", "3"]);
        assert_eq!(sorted(SortKey::Bytes), ["4", "3", "2", "1"]);
        assert_eq!(sorted(SortKey::Age), ["4", "3", "2", "1"]);
        assert_eq!(sorted(SortKey::Device), ["4", "3", "2", "1"]);
        assert_eq!(sorted(SortKey::Principal), ["4", "2", "3", "1"]);
        assert_eq!(sorted(SortKey::Client), ["1", "2", "3", "4"]);
        let all = SortKey::value_variants();
        assert_eq!(all.iter().map(|key| key.next()).collect::<Vec<_>>().last(), all.first());
    }

    #[test]
    fn a_filter_wants_all_that_it_names() {
        let fits = |device: Option<&str>, principal, client: Option<&str>| {
            let client = client.map(|text| text.parse().unwrap());
            let device = device.map(str::to_owned);
            SessionFilter { device, client, ..SessionFilter::default() }.fits(&session(1), principal)
        };
        assert!(fits(None, None, None));
        assert!(fits(Some("0000000"), Some(PrincipalId(1)), Some("192.0.2.1")));
        assert!(!fits(Some("00000009"), None, None));
        assert!(!fits(None, Some(PrincipalId(2)), None));
        assert!(!fits(Some("0000000"), Some(PrincipalId(1)), Some("192.0.3.0/24")));
    }

    #[test]
    fn a_client_is_found_by_its_address_and_not_by_the_text_of_it() {
        let finds = |filter: &str, client: &str| {
            let session = SessionInfo { client: client.parse().ok(), ..session(1) };
            let filter = SessionFilter { client: Some(filter.parse().unwrap()), ..SessionFilter::default() };
            filter.fits(&session, None)
        };
        let client = "192.0.2.9:5000";
        for filter in [
            "192.0.2.9",
            "::ffff:192.0.2.9",
            "::ffff:c000:209",
            "192.0.2.0/24",
            "::ffff:192.0.2.0/120",
            client,
        ] {
            assert!(finds(filter, client), "{filter}");
        }
        for filter in ["192.0.2.90", "192.0.3.0/24", "192.0.2.9:5001", "2001:db8::1", "::/0"] {
            assert!(!finds(filter, client), "{filter}");
        }
        for filter in ["2001:db8:0::1", "[2001:DB8::1]", "2001:db8::/32", "[2001:db8::1]:5000"] {
            assert!(finds(filter, "[2001:db8::1]:5000"), "{filter}");
        }
        assert!(!finds("192.0.2.1", "192.0.2.10:1"), "an address is not the beginning of another");
        for text in ["", "192.0.2.", "192.0.2.0/33", "relay.example", "192.0.2.9:"] {
            assert!(text.parse::<ClientFilter>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_session_is_found_by_what_it_is_known_by() {
        let session = session(1);
        for text in ["192.0.2.1", "00ff", "principal 1", "alice", "open"] {
            assert!(mentions(&session, text), "{text}");
        }
        assert!(!mentions(&session, "192.0.2.2"));
    }
}
